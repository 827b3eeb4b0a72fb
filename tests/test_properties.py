"""What must hold for any input (hypothesis): batching, grading, the chunk grid, generation."""

import math
import random
from decimal import Decimal

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tokens import collate, encode_row, load_encoding
from dlr import GPT, GPTConfig, real_chunks
from eval import batches, grade, shuffled_codes

few = settings(max_examples=40, deadline=None, derandomize=True)
many = settings(max_examples=300, deadline=None, derandomize=True)
ENC = load_encoding("wordproblems")
ITEMS = st.lists(st.lists(st.integers(0, 49), min_size=2, max_size=12).flatmap(
    lambda ids: st.tuples(st.just(ids), st.integers(1, len(ids) - 1))), min_size=1, max_size=6)


def make(chunk, seed=0):
    """A tiny model whose codes and weights are far from zero."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(50, 24, 2, 2, 1, 16, n_codes=4, chunk=chunk, ffn_dim=16, steer_scale=4.0)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=0.0 if p.dim() == 2 else 1.0, std=0.5)
    return model


@many
@given(items=ITEMS)
def test_collate_keeps_every_token_and_labels_the_answer_alone(items):
    """Broken if a token were lost or shifted, a prompt token or padding labelled, or an answer token not."""
    idx, targets = collate(items, pad=7)
    assert idx.shape == targets.shape == (len(items), max(len(ids) for ids, _ in items) - 1)
    for x, y, (ids, n_prompt) in zip(idx.tolist(), targets.tolist(), items):
        n = len(ids) - 1
        assert [*x[:n], ids[-1]] == ids and set(x[n:]) <= {7}
        for t in range(len(y)):
            assert y[t] == (ids[t + 1] if n_prompt - 1 <= t < n else -1)


@many
@given(lengths=st.lists(st.integers(0, 99), max_size=30), size=st.integers(1, 9))
def test_batches_hold_every_row_once(lengths, size):
    """Broken if a row were dropped, doubled, or batched with one far longer while a closer one was there."""
    groups = batches(lengths, size)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(len(group) == size for group in groups[:-1]) and len(groups) == math.ceil(len(lengths) / size)
    assert [lengths[i] for group in groups for i in group] == sorted(lengths)


@many
@given(question=st.text(max_size=30), answer=st.text(max_size=30))
def test_a_row_is_its_text(question, answer):
    """Broken if tokens of question or answer were lost, changed or on the wrong side of the border, for any text."""
    ids, n_prompt = encode_row({"question": question, "answer": answer}, ENC)
    clean = [text.encode("utf-8", "replace").decode() for text in (question, answer)]
    assert ENC.decode(ids[:n_prompt]) == f"Question: {clean[0]}\nAnswer:"
    assert ENC.decode(ids[n_prompt:-1]) == f" {clean[1]}" and ids[-1] == ENC.eot_token


NUMBERS = st.decimals(-10**9, 10**9, places=2)


def spell(x, style, digits):
    """A number as someone may write it: value and sign stay."""
    sign, x = "-" if x < 0 else "", abs(x)
    text = f"{x:,.{digits}f}" if "comma" in style else f"{x:.{digits}f}"
    return sign + ("$" if "dollar" in style else "") + text + ("." if "stop" in style else "")


@many
@given(x=NUMBERS, y=NUMBERS, style=st.sets(st.sampled_from(["comma", "dollar", "stop"])), digits=st.integers(2, 5),
       gap=st.sampled_from(["", " ", "\t"]), before=st.sampled_from(["", "So 1,000 and -7.\n", "x = 3 "]))
def test_how_a_number_is_written_never_changes_the_verdict(x, y, style, digits, gap, before):
    """Broken if commas, a dollar sign, zeros or a full stop made a right answer wrong or a wrong one right."""
    text = f"{before}####{gap}{spell(x, style, digits)}"
    for gold in (y, x):
        right = Decimal(x) == Decimal(gold)
        for written in (f"{gold}", f"{gold:,}", f"${gold}" if gold >= 0 else f"-${-gold}"):
            assert grade(text, written) == {"strict": right, "flexible": right, "parsed": True}


@many
@given(text=st.text(st.sampled_from("#0123456789.,-$ ABCyesno\n"), max_size=25),
       gold=st.sampled_from(["3", "-1.5", "B", "yes"]))
def test_any_text_gets_a_verdict(text, gold):
    """Broken if some output crashed the grader, or were strictly right without an answer after ####."""
    got = grade(text, gold)
    assert not got["strict"] or (got["parsed"] and "####" in text)
    assert grade(f"{text}\n#### ", gold)["parsed"] == got["parsed"] or "####" not in text


@few
@given(items=ITEMS, K=st.integers(1, 5))
def test_the_chunk_grid_is_a_plain_loop(items, K):
    """Broken if a token were steered by another chunk than floor(t / K) of its own row, or padding counted as real."""
    model = make(K)
    idx, targets = collate(items)
    M, h = math.ceil(idx.size(1) / K), torch.zeros(*idx.shape, 16)
    codes = torch.randint(4, (len(items), M), generator=torch.Generator().manual_seed(len(items)))
    steered, real = model.steer(h, codes), real_chunks(targets, K)
    for b, (ids, _) in enumerate(items):
        for t in range(idx.size(1)):
            assert torch.equal(steered[b, t], 4.0 * model.codebook.weight[codes[b, t // K]])
        assert real[b].tolist() == [any(K * m <= t < K * m + K for t in range(len(ids) - 1)) for m in range(M)]


@many
@given(rows=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=8), min_size=1, max_size=5),
       n=st.integers(1, 20), seed=st.integers(0, 99))
def test_shuffled_codes_are_the_rows_own_in_any_company(rows, n, seed):
    """Broken if a row's shuffled codes depended on the other rows, or were not the same codes, repeated in order."""
    out = shuffled_codes([torch.tensor(row) for row in rows], n, range(len(rows)), seed)
    for i, row in enumerate(rows):
        assert torch.equal(out[i], shuffled_codes([torch.tensor(row)], n, [i], seed)[0])
        m = min(n, len(row))
        assert n < len(row) or sorted(out[i, :m].tolist()) == sorted(row)
        assert all(out[i, j] == out[i, j - len(row)] for j in range(len(row), n))


@few
@given(seed=st.integers(0, 10**6), K=st.integers(2, 5), stop=st.one_of(st.none(), st.integers(0, 49)),
       off=st.sampled_from([False, False, True]))
def test_generation_does_not_depend_on_the_batch(seed, K, stop, off):
    """Broken if a row's text changed with its neighbours, their lengths, their ends or its place (trap 1)."""
    model, codes, r = make(K), "off" if off else None, random.Random(seed)
    new, lengths = r.randint(3, 12), [r.randint(1, 14) for _ in range(r.randint(2, 9))]
    prompts = [[r.randrange(50) for _ in range(n)] for n in lengths]
    together = model.generate(prompts, new, codes=codes, stop=stop)
    assert together == [model.generate([p], new, codes=codes, stop=stop)[0] for p in prompts]
    places = list(range(len(prompts)))
    r.shuffle(places)
    assert model.generate([prompts[i] for i in places], new, codes=codes, stop=stop) == [together[i] for i in places]


@few
@given(prompt=st.lists(st.integers(0, 49), min_size=1, max_size=14), new=st.integers(1, 12), K=st.integers(1, 5))
def test_generation_is_the_argmax_of_the_whole_sequence(prompt, new, K):
    """Broken if a generated token, or the code of its chunk, were not that of a fresh pass over everything so far."""
    model = make(K)
    out, x = model.generate([prompt], new)[0], list(prompt)
    for token in out:
        with torch.no_grad():
            logits = model(torch.tensor([x]))[0][0, -1]
        assert logits[token] >= logits.max() - 1e-4
        x.append(token)
    assert len(out) == min(new, 24 + 1 - len(prompt))
