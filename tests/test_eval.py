"""eval.py: grading, arms, statistics, and what a run's folder must hold to be used anywhere."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch

import eval as evaluation
from data.grading import to_number
from data.plumbing import load_checkpoint
from data.tokens import PROMPT, collate, encode, encode_row, end_token, load_encoding, load_rows
from dlr import GPT, GPTConfig

ENC = load_encoding("wordproblems")


def make(codes=1.0):
    """A small model with random weights whose codes matter."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(ENC.n_vocab, 256, 2, 2, 1, 32, n_codes=5, chunk=3)).eval()
    torch.nn.init.normal_(model.codebook.weight, std=codes)
    torch.nn.init.normal_(model.router.weight, std=1.0)
    return model


@pytest.fixture
def run(tmp_path):
    """A run's folder as train.py leaves it, of make()'s model."""
    model, folder = make(), tmp_path / "run"
    folder.mkdir()
    flags = {"data": "wordproblems", "method": "dlr", "dtype": "auto"}
    torch.save({"config": vars(model.config), "model": model.state_dict(), "train": flags,
                "tokenizer": "wordproblems"}, folder / "ckpt.pt")
    return folder


# ---- grading -------------------------------------------------------------------------------------

BOTH, STRICT, FLEXIBLE, WRONG, NOTHING = "both", "strict", "flexible", "wrong", "nothing"
TRUTH = [  # text, gold, which of the two verdicts are right; "nothing": no answer after ####
    ("6*3=18\n#### 18", "18", BOTH), ("#### 18", 18, BOTH), ("####18 shells", "18", BOTH),
    # how a number is written
    ("#### 18.", "18", BOTH), ("#### 18.0", "18", BOTH), ("#### $18", "18", BOTH),
    ("#### $29.00.", "29", BOTH), ("#### 50%", "50", BOTH), ("#### $70,000!", "70000", BOTH),
    ("#### 72 clips, altogether", "72", BOTH), ("#### (3)", "3", BOTH), ("#### 1.5", "1.50", BOTH),
    ("#### 1,234", "1234", BOTH), ("#### 1234", "1,234", BOTH), ("#### 0.1", ".1", BOTH),
    ("#### 0.0000020107", "2.0107e-06", BOTH), ("#### 2.0107e-06", "2.0107e-06", BOTH),
    # signs; U+2212 is the typographic minus
    ("#### -3", "-3", BOTH), ("#### -$3", "-3", BOTH), ("#### $-3", "-3", BOTH),
    ("#### 3", "+3", BOTH), ("#### +3", "3", BOTH), ("#### 3", "-3", WRONG),
    ("#### \u22125", "-5", BOTH), ("#### -5", "\u22125", BOTH), ("#### \u22125", "5", WRONG),
    ("so \u22125", "5", NOTHING), ("10-3", "3", FLEXIBLE), ("10\u22123", "3", FLEXIBLE),
    # a part of a longer literal is no answer
    ("#### 1/2", "1", NOTHING), ("#### 1/2", "2", NOTHING), ("#### 1 1/2", "1", NOTHING),
    ("#### 1 000", "1", NOTHING), ("#### 3:30", "3", NOTHING), ("#### 5^2", "5", NOTHING),
    ("#### 1 / 2", "1", NOTHING), ("#### 1e6", "1", WRONG), ("#### 2.5e-06", "2.5", WRONG),
    ("#### 1e99999999999999999999", "1", NOTHING),
    # which one counts: the first after ####, and anywhere the last
    ("#### 18\nQuestion: next\n#### 20", "18", STRICT), ("The answer is 18.", "18", FLEXIBLE),
    ("#### x 18", "18", FLEXIBLE), ("she has 18 shells, not 20", "18", NOTHING),
    ("#### eighteen", "18", NOTHING), ("####", "18", NOTHING), ("", "18", NOTHING),
    ("nothing", "18", NOTHING), ("#### __import__('os')", "18", NOTHING),
    # letters
    ("Plants need light.\n#### (B)", "B", BOTH), ("####B.", "B", BOTH), ("#### A", "B", WRONG),
    ("#### B\n#### A", "B", STRICT), ("The answer is (B)", "B", FLEXIBLE),
    ("#### Both", "B", NOTHING), ("#### b", "B", NOTHING), ("", "B", NOTHING),
    # yes and no
    ("#### Yes.", "yes", BOTH), ("#### yes", "Yes", BOTH), ("So no.\n#### yes", "no", WRONG),
    ("the answer is no", "no", FLEXIBLE), ("#### nobody", "no", NOTHING),
    ("#### 1", "yes", NOTHING)]


@pytest.mark.parametrize("text, gold, right", TRUTH)
def test_grader_truth_table(text, gold, right):
    """Broken if formatting made a right answer wrong, or a wrong or missing one right."""
    assert evaluation.grade(text, gold) == {
        "strict": right in (BOTH, STRICT), "flexible": right in (BOTH, FLEXIBLE),
        "parsed": right in (BOTH, STRICT, WRONG)}


def test_a_gold_answer_that_cannot_be_graded_is_an_error():
    """Broken if no answer equalled no gold (trap 6), or a fraction were compared as text."""
    assert to_number(None) is None
    for gold in ("nothing", "", None, "AB", "7/2", "1e"):
        with pytest.raises(ValueError, match="gold answer"):
            evaluation.grade("nothing", gold)
    rows = [{"final": "3", "where": "x.jsonl:1"}, {"final": "7/2", "where": "x.jsonl:2"}]
    with pytest.raises(ValueError, match=r"x\.jsonl:2: .*'7/2'"):
        evaluation.check_golds(rows)


def test_the_datas_own_answers_are_right():
    """Broken if the grader failed on the task's own reference answers."""
    rows = load_rows("wordproblems", "test", 200)
    assert all(evaluation.grade(r["answer"], r["final"])["strict"] for r in rows)


# ---- arms ----------------------------------------------------------------------------------------


def test_likelihood_is_the_models_loss_in_any_batch():
    """Broken if padding, sorting or arms moved a row's likelihood from a pass of its own."""
    model = make()
    items = [encode_row(r, ENC) for r in load_rows("wordproblems", "test", 7)]
    nll, counts = evaluation.likelihood(model, items, evaluation.ARMS, batch_size=3)
    for i, item in enumerate(items):
        idx, targets = collate([item])
        assert counts[i] == (targets >= 0).sum() == len(item[0]) - item[1]
        for arm, codes in (("on", None), ("off", "off")):
            alone = model(idx, targets, codes)[1].item() * counts[i]
            assert nll[arm][i] == pytest.approx(alone, rel=1e-4)
    one_by_one, _ = evaluation.likelihood(model, items, evaluation.ARMS, batch_size=1)
    for arm in evaluation.ARMS:
        np.testing.assert_allclose(nll[arm], one_by_one[arm], rtol=1e-4)
    assert len({round(nll[arm].sum(), 3) for arm in evaluation.ARMS}) == 4, "every arm must bite"


def test_answers_do_not_depend_on_the_batch():
    """Broken if an answer under any arm changed with the batch (trap 1), or an arm was idle."""
    model, rows = make(), load_rows("wordproblems", "test", 6)
    prompts = [encode(ENC, PROMPT.format(question=r["question"])) for r in rows]
    together = evaluation.answer(model, ENC, prompts, evaluation.ARMS, 12, batch_size=6)
    assert together == evaluation.answer(model, ENC, prompts, evaluation.ARMS, 12, batch_size=2)
    assert len({tuple(texts) for texts in together.values()}) == 4, "every arm must bite"
    for arm, codes in (("on", None), ("off", "off")):
        alone = [model.generate([p], 12, codes, end_token(ENC))[0] for p in prompts]
        assert together[arm] == [ENC.decode(ids) for ids in alone]


def test_the_shuffled_arm_permutes_the_rows_own_codes(monkeypatch):
    """Broken if it left the codes in place, drew others, or shuffled those of another row."""
    model, rows, seen = make(), load_rows("wordproblems", "test", 3), []
    prompts = [encode(ENC, PROMPT.format(question=r["question"])) for r in rows]
    generate = model.generate

    def spy(ids, n, codes=None, stop=None):
        seen.append((ids, codes))
        return generate(ids, n, codes, stop)

    monkeypatch.setattr(model, "generate", spy)
    evaluation.answer(model, ENC, prompts, ("shuffled",), 12)
    (ids, _), (_, codes) = seen  # first on, for the codes, then shuffled
    for prompt, mine, new in zip(ids, codes, generate(ids, 12, None, end_token(ENC))):
        own = model.route(torch.tensor([prompt + new]))[0].argmax(-1)
        m = len(own)
        assert sorted(mine[:m].tolist()) == sorted(own.tolist())
        assert not torch.equal(mine[:m], own)


def test_random_codes_are_uniform_and_belong_to_the_problem():
    """Broken if the random control favoured some codes, or a neighbour changed a problem's draw."""
    model = GPT(GPTConfig(50, 8, 1, 1, 1, 8, n_codes=8))
    codes = evaluation.arm_codes("random", range(500), [], 40, model, seed=0)
    assert (torch.bincount(codes.flatten(), minlength=8) / codes.numel() - 1 / 8).abs().max() < 0.01
    alone = evaluation.arm_codes("random", [7], [], 40, model, seed=0)
    assert torch.equal(alone[0], codes[7])
    assert not torch.equal(evaluation.arm_codes("random", [7], [], 40, model, seed=1)[0], codes[7])


def test_an_arm_that_changes_nothing_is_said_to():
    """Broken if an intervention without effect passed for evidence (trap 2)."""
    rows = load_rows("wordproblems", "test", 4)
    dead, _ = evaluation.evaluate(make(codes=0.0), ENC, rows, max_new_tokens=8)
    lines = evaluation.table({"x": dead}).splitlines()[1:]
    said = [line.partition("changes nothing: ")[2] for line in lines]
    assert said == ["the same as off", "", "the same as on", "the same as on"]
    alive, records = evaluation.evaluate(make(), ENC, rows, max_new_tokens=8)
    assert "changes nothing" not in evaluation.table({"x": alive})
    assert len(records) == 4 and set(records[0]) >= {"question", "gold", *evaluation.ARMS}


def test_a_token_beyond_the_tokenizer_has_no_text():
    """Broken if a model with more tokens than its tokenizer crashed the decoding."""
    ids = ENC.encode("12 apples")
    assert evaluation.decode(ENC, [ENC.n_vocab, *ids, ENC.n_vocab + 5]) == "12 apples"


# ---- statistics ----------------------------------------------------------------------------------


def test_the_summary_follows_from_the_records(monkeypatch):
    """Broken if a reported mean or difference were not that of the per-problem records."""
    rows = load_rows("wordproblems", "test", 8)
    right = [f"#### {r['final']}" for r in rows]
    so = f"so {rows[4]['final']}"
    texts = {"on": [*right[:5], "x", "7", "####"], "off": ["x", *right[1:4], so, "x", "y", "z"],
             "random": ["x"] * 8, "shuffled": right}
    monkeypatch.setattr(evaluation, "answer", lambda *a: texts)
    summary, records = evaluation.evaluate(make(), ENC, rows)
    arms = summary["arms"]
    assert [arms[arm]["strict"] for arm in texts] == [5 / 8, 3 / 8, 0, 1]
    assert (arms["off"]["flexible"], arms["on"]["parsed"]) == (4 / 8, 5 / 8)
    assert arms["on"]["strict_minus_off"][0] == pytest.approx(2 / 8)
    assert arms["shuffled"]["strict_minus_on"][0] == pytest.approx(3 / 8)
    assert "strict_minus_on" not in arms["off"] and "strict_minus_off" not in arms["off"]
    tokens = np.array([r["tokens"] for r in records])
    nll = {arm: np.array([r[arm]["nll"] for r in records]) for arm in texts}
    for arm in texts:
        assert arms[arm]["nats"] == pytest.approx(nll[arm].sum() / tokens.sum())
    for arm, other in (("on", "off"), ("random", "on")):
        expected = (nll[arm] - nll[other]).sum() / tokens.sum()
        assert arms[arm][f"nats_minus_{other}"][0] == pytest.approx(expected)


def test_bootstrap_is_the_interval_of_a_paired_weighted_difference():
    """Broken if pairs were torn apart or the interval were not that of resampling."""
    rng = np.random.default_rng(1)
    a, b = rng.random(800) < 0.6, rng.random(800) < 0.5
    d = a.astype(float) - b
    half = 1.96 * d.std() / math.sqrt(800)
    interval = [d.mean(), d.mean() - half, d.mean() + half]
    assert evaluation.bootstrap(a, b) == pytest.approx(interval, abs=0.005)

    w = rng.integers(1, 9, size=40)
    x, y = rng.normal(size=40), rng.normal(size=40)
    draws = []
    for _ in range(4000):
        i = rng.integers(40, size=40)
        draws.append(((x - y)[i] * w[i]).sum() / w[i].sum())
    diff, low, high = evaluation.bootstrap(x, y, w)
    assert diff == pytest.approx(((x - y) * w).sum() / w.sum())
    assert [low, high] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.04)
    assert evaluation.bootstrap([1, 0, 1], [1, 0, 1]) == (0, 0, 0)


def test_likelihood_alone_needs_no_answers():
    """Broken if --no-generate asked for grades that were never made, or for gradable golds."""
    rows = load_rows("wordproblems", "test", 3)
    rows[0] |= {"final": "7/2"}
    summary, records = evaluation.evaluate(make(), ENC, rows, generate=False)
    assert all("strict" not in s and s["nats"] > 0 for s in summary["arms"].values())
    assert "text" not in records[0]["on"]


def test_too_long_rows_are_counted_not_cut():
    """Broken if a problem longer than the context vanished silently or was truncated."""
    rows = load_rows("wordproblems", "test", 3)
    rows.append({"question": "Why? " * 300, "answer": "x\n#### 1", "final": "1"})
    summary, records = evaluation.evaluate(make(), ENC, rows, ("off",), generate=False)
    assert (summary["rows"], summary["left_out"], len(records)) == (3, 1, 3)
    with pytest.raises(ValueError, match="256"):
        evaluation.evaluate(make(), ENC, rows[3:], ("off",))


# ---- the command line ----------------------------------------------------------------------------


def test_a_run_is_evaluated_from_the_command_line(run, capsys):
    """Broken if the table, the records or the summary of a run were not made."""
    evaluation.main([str(run), "--rows", "5", "--max_new_tokens", "8", "--device", "cpu"])
    text = capsys.readouterr().out
    assert "5 problems of wordproblems/test (0 too long for the context)" in text
    assert [line.split()[1] for line in text.splitlines() if line.lstrip().startswith("dlr ")] == [
        "on", "off", "random", "shuffled"]
    lines = (run / "eval-wordproblems-test.jsonl").read_text().splitlines()
    assert len(lines) == 5 and json.loads(lines[0])["off"]["strict"] in (True, False)
    assert json.loads((run / "eval-wordproblems-test.json").read_text())["rows"] == 5


def test_a_run_is_found_anywhere_with_its_own_tokenizer(run, tmp_path, monkeypatch):
    """Broken if a moved run, named from another folder, were not the same model and tokenizer."""
    (tmp_path / "elsewhere").mkdir()
    shutil.move(run, tmp_path / "elsewhere" / "moved")
    monkeypatch.chdir(tmp_path / "elsewhere")
    model, enc, suffix, flags = evaluation.load_run("moved")
    idx = torch.tensor([[1, 2, 3, 4, 5]])
    assert torch.equal(model(idx)[0], make()(idx)[0])
    assert (enc.n_vocab, suffix, flags["method"]) == (ENC.n_vocab, [], "dlr")
    saved = load_checkpoint("moved/ckpt.pt")
    torch.save({k: v for k, v in saved.items() if k != "tokenizer"}, "moved/base.pt")
    with pytest.raises(ValueError, match=r"base\.pt: .*tokenizer"):
        evaluation.load_run("moved/base.pt")


def test_ask_shows_the_code_before_each_chunk(run, capsys):
    """Broken if --ask showed other codes, other text or other answers than the model's."""
    evaluation.main([str(run), "--ask", " What is 1 + 2? ", "--max_new_tokens", "9"])
    text, model = capsys.readouterr().out, make()
    prompt = encode(ENC, PROMPT.format(question="What is 1 + 2?"))
    new = model.generate([prompt], 9, stop=end_token(ENC))[0]
    codes = model.route(torch.tensor([prompt + new]))[0].argmax(-1).tolist()
    shown = text.split(":\n", 1)[1].split("\n\nanswer with codes on")[0]
    assert [int(code) for code in re.findall(r"\[(\d)\]", shown)] == codes
    assert re.sub(r"\[\d\]", "", shown) == "".join(
        ENC.decode((prompt + new)[i : i + 3]) for i in range(0, len(prompt + new), 3))
    off = ENC.decode(model.generate([prompt], 9, "off", end_token(ENC))[0]).strip()
    assert f"answer with codes on:\n{ENC.decode(new).strip()}\n" in text
    assert f"answer with codes off:\n{off}\n" in text
    with pytest.raises(ValueError, match="empty"):
        evaluation.ask(model, ENC, "  ")
