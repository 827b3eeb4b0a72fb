"""What must hold for any input (hypothesis): batches, grading, generation."""

import functools
import random
from decimal import Decimal

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tokens import collate
from dlr import GPT, GPTConfig
from eval import grade

few = settings(max_examples=40, deadline=None, derandomize=True)
many = settings(max_examples=300, deadline=None, derandomize=True)
IDS = st.lists(st.integers(0, 49), min_size=2, max_size=12)
ITEM = IDS.flatmap(lambda ids: st.tuples(st.just(ids), st.integers(1, len(ids) - 1)))
ITEMS = st.lists(ITEM, min_size=1, max_size=6)


@functools.cache
def make(chunk):
    """A tiny model whose codes and weights are far from zero, in float64."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(50, 24, 2, 2, 1, 16, n_codes=4, chunk=chunk, ffn_dim=16, steer_scale=4.0))
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=0.0 if p.dim() == 2 else 1.0, std=0.5)
    return model.double()


@many
@given(items=ITEMS)
def test_collate_keeps_every_token_and_labels_the_answer_alone(items):
    """Broken if a token were lost or shifted, a prompt token labelled, or an answer token not."""
    idx, targets = collate(items, pad=7)
    assert idx.shape == targets.shape == (len(items), max(len(ids) for ids, _ in items) - 1)
    for x, y, (ids, n_prompt) in zip(idx.tolist(), targets.tolist(), items):
        n = len(ids) - 1
        assert [*x[:n], ids[-1]] == ids and set(x[n:]) <= {7}
        assert y == [ids[t + 1] if n_prompt - 1 <= t < n else -1 for t in range(len(y))]


NUMBERS = st.decimals(-(10**9), 10**9, places=2)


@many
@given(x=NUMBERS, y=NUMBERS, style=st.sets(st.sampled_from([",", "$", ".", "%"])),
       digits=st.integers(2, 5), minus=st.sampled_from("-\u2212"),
       gap=st.sampled_from(["", " ", "\t"]), before=st.sampled_from(["", "So 1,000 and -7.\n"]))
def test_how_a_number_is_written_never_changes_the_verdict(x, y, style, digits, minus, gap, before):
    """Broken if commas, a dollar sign, zeros or a full stop made a right answer wrong, or back."""
    written = f"{abs(x):,.{digits}f}" if "," in style else f"{abs(x):.{digits}f}"
    written = (minus if x < 0 else "") + ("$" if "$" in style else "") + written
    text = f"{before}####{gap}{written}{'%' if '%' in style else ''}{'.' if '.' in style else ''}"
    for gold in (x, y):
        right = Decimal(x) == Decimal(gold)
        dollars = f"${gold}" if gold >= 0 else f"-${-gold}"
        for spelt in (f"{gold}", f"{gold:,}", dollars):
            assert grade(text, spelt) == {"strict": right, "flexible": right, "parsed": True}


@many
@given(text=st.text(st.sampled_from("#0123456789.,-/e$ ABCyesno\n"), max_size=25),
       gold=st.sampled_from(["3", "-1.5", "B", "yes"]))
def test_any_text_gets_a_verdict(text, gold):
    """Broken if some output crashed the grader, or were strictly right without parsed or ####."""
    got = grade(text, gold)
    assert not got["strict"] or (got["parsed"] and "####" in text)
    assert grade(f"{text}\n#### ", gold)["parsed"] == got["parsed"] or "####" not in text


@few
@given(seed=st.integers(0, 10**6), K=st.integers(1, 5), off=st.sampled_from([False, False, True]),
       stop=st.one_of(st.none(), st.integers(0, 49)))
def test_generation_is_the_argmax_of_the_whole_sequence_in_any_batch(seed, K, off, stop):
    """Broken if a token depended on neighbours, their lengths, ends or places, or on the cache."""
    model, codes, r = make(K), "off" if off else None, random.Random(seed)
    prompts = [[r.randrange(50) for _ in range(r.randint(1, 14))] for _ in range(r.randint(1, 6))]
    for prompt, new in zip(prompts, model.generate(prompts, 12, codes=codes, stop=stop)):
        ids = list(prompt)
        while len(ids) < min(len(prompt) + 12, 24 + 1):
            token = model(torch.tensor([ids]), codes=codes)[0][0, -1].argmax().item()
            if token == stop:
                break
            ids.append(token)
        assert new == ids[len(prompt) :]
