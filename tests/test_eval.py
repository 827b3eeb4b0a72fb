"""Grading, arms and statistics of eval.py."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import eval as evaluation
from data.tokens import PROMPT, collate, encode, encode_row, end_token, load_encoding, load_rows
from dlr import GPT, GPTConfig

ROOT = Path(__file__).parents[1]
ENC = load_encoding("wordproblems")


def make(codes=1.0):
    torch.manual_seed(0)
    model = GPT(GPTConfig(ENC.n_vocab, 256, 2, 2, 1, 32, n_codes=5, chunk=3)).eval()
    torch.nn.init.normal_(model.codebook.weight, std=codes)
    torch.nn.init.normal_(model.router.weight, std=1.0)
    return model


@pytest.mark.parametrize("text, gold, strict, flexible", [
    ("6*3=18\n#### 18", "18", True, True),
    ("#### 18", 18, True, True),
    ("#### 18.", "18", True, True),  # a trailing full stop
    ("#### 18.0", "18", True, True),
    ("#### $18", "18", True, True),
    ("#### $18.00.", "18", True, True),
    ("#### 18%", "18", True, True),
    ("####18 shells", "18", True, True),
    ("#### 1,234", "1234", True, True),
    ("#### 1234", "1,234", True, True),
    ("#### -3", "-3", True, True),
    ("#### -$3", "-3", True, True),
    ("#### $-3", "-3", True, True),
    ("#### 3", "-3", False, False),
    ("#### 18\nQuestion: next\n#### 20", "18", True, False),  # the first #### wins, the last number is flexible's
    ("The answer is 18.", "18", False, True),
    ("she has 18 shells, not 20", "18", False, False),
    ("10-3", "3", False, True),  # the minus of a subtraction is no sign
    ("#### eighteen", "18", False, False),
    ("#### x 18", "18", False, True),
    ("####", "18", False, False),
    ("", "18", False, False),
    ("#### 1.5", "1.50", True, True),
    ("#### 0.1", ".1", True, True),
    ("#### __import__('os')", "18", False, False)])
def test_grader_truth_table(text, gold, strict, flexible):
    """Broken if formatting made a right answer wrong, or a missing answer right."""
    got = evaluation.grade(text, gold)
    assert (got["strict"], got["flexible"]) == (strict, flexible)
    assert got["parsed"] == (strict or text in ("#### 3", "#### 18\nQuestion: next\n#### 20"))


@pytest.mark.parametrize("text, gold, strict, flexible, parsed", [
    ("#### B", "B", True, True, True),
    ("Plants need light.\n#### (B)", "B", True, True, True),
    ("####B.", "B", True, True, True),
    ("#### A", "B", False, False, True),
    ("#### B\n#### A", "B", True, False, True),  # the first #### wins, the last letter is flexible's
    ("The answer is (B)", "B", False, True, False),
    ("#### Both", "B", False, False, False),  # a word is no letter
    ("#### b", "B", False, False, False),
    ("", "B", False, False, False),
    ("#### yes", "yes", True, True, True),
    ("#### Yes.", "yes", True, True, True),
    ("So no.\n#### yes", "no", False, False, True),
    ("#### nobody", "no", False, False, False),
    ("the answer is no", "no", False, True, False),
    ("#### 1", "yes", False, False, False)])
def test_grader_of_choices(text, gold, strict, flexible, parsed):
    """Broken if a choice were compared as a number, read out of a word, or a missing one counted as right."""
    assert evaluation.grade(text, gold) == {"strict": strict, "flexible": flexible, "parsed": parsed}


def test_none_is_not_none():
    """Broken if no answer equalled no gold (trap 6)."""
    assert not any(evaluation.grade("nothing", "18").values()) and evaluation.to_number(None) is None
    for gold in ("nothing", "", None, "AB"):
        with pytest.raises(ValueError, match="gold"):
            evaluation.grade("nothing", gold)


def test_gold_answers_of_the_data_grade_as_right():
    """Broken if the grader failed on the task's own reference answers."""
    rows = load_rows("wordproblems", "test", 200)
    assert all(evaluation.grade(r["answer"], r["final"])["strict"] for r in rows)


def test_likelihood_is_the_models_loss_and_batches_do_not_matter():
    """Broken if padding, sorting or arms shifted a row's likelihood: compared with one unbatched forward per row."""
    model = make()
    items = [encode_row(r, ENC) for r in load_rows("wordproblems", "test", 7)]
    nll, counts = evaluation.likelihood(model, items, evaluation.ARMS, batch_size=3)
    for i, item in enumerate(items):
        idx, targets = collate([item])
        assert counts[i] == (targets >= 0).sum()
        for arm, codes in (("on", None), ("off", "off")):
            assert nll[arm][i] == pytest.approx(model(idx, targets, codes)[1].item() * counts[i], rel=1e-4)
    one_by_one, _ = evaluation.likelihood(model, items, evaluation.ARMS, batch_size=1)
    for arm in evaluation.ARMS:
        np.testing.assert_allclose(nll[arm], one_by_one[arm], rtol=1e-4)
    assert len({round(nll[arm].sum(), 3) for arm in evaluation.ARMS}) == 4, "every intervention must bite"


def test_answers_do_not_depend_on_batch_composition():
    """Broken if a problem's answer under any arm changed with its neighbours (trap 1)."""
    model, rows = make(), load_rows("wordproblems", "test", 6)
    prompts = [encode(ENC, PROMPT.format(question=r["question"])) for r in rows]
    together = evaluation.answer(model, ENC, prompts, evaluation.ARMS, max_new_tokens=12, batch_size=6)
    apart = evaluation.answer(model, ENC, prompts, evaluation.ARMS, max_new_tokens=12, batch_size=2)
    assert together == apart
    assert len({tuple(texts) for texts in together.values()}) == 4, "every intervention must bite"
    for arm, codes in (("on", None), ("off", "off")):
        assert together[arm] == [ENC.decode(model.generate([p], 12, codes, end_token(ENC))[0]) for p in prompts]


def test_shuffled_answers_use_the_rows_own_codes_in_another_order(monkeypatch):
    """Broken if the shuffled arm left the codes in place or drew others."""
    model, rows, seen = make(), load_rows("wordproblems", "test", 3), []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda ids, n, codes=None, stop=None: (
        seen.append((ids, codes)), generate(ids, n, codes, stop))[1])
    prompts = [encode(ENC, PROMPT.format(question=r["question"])) for r in rows]
    evaluation.answer(model, ENC, prompts, ("on", "shuffled"), max_new_tokens=12)
    (ids, _), (_, codes) = seen
    for prompt, mine, new in zip(ids, codes, generate(ids, 12, None, end_token(ENC))):
        own = model.route(torch.tensor([prompt + new]))[0].argmax(-1)
        assert sorted(mine[: len(own)].tolist()) == sorted(own.tolist()) and not torch.equal(mine[: len(own)], own)


def test_summary_follows_from_the_records(monkeypatch):
    """Broken if a reported mean, difference or count were not that of the per-problem records."""
    rows = load_rows("wordproblems", "test", 8)
    right = [f"#### {r['final']}" for r in rows]
    texts = {"on": [*right[:5], "x", "7", "####"], "off": ["x", *right[1:4], f"so {rows[4]['final']}", "x", "y", "z"],
             "random": ["x"] * 8, "shuffled": right}
    monkeypatch.setattr(evaluation, "answer", lambda *a: texts)
    summary, records = evaluation.evaluate(make(), ENC, rows)
    tokens = np.array([r["tokens"] for r in records])
    nll = {arm: np.array([r[arm]["nll"] for r in records]) for arm in texts}
    arms = summary["arms"]
    assert {arm: arms[arm]["strict"] for arm in texts} == {"on": 5 / 8, "off": 3 / 8, "random": 0, "shuffled": 1}
    assert (arms["off"]["flexible"], arms["on"]["parsed"]) == (4 / 8, 5 / 8)
    assert (arms["on"]["helped_off"], arms["on"]["hurt_off"], arms["random"]["hurt_on"]) == (2, 0, 5)
    assert arms["on"]["strict_minus_off"][0] == pytest.approx(2 / 8)
    assert arms["shuffled"]["strict_minus_on"][0] == pytest.approx(3 / 8)
    for arm in texts:
        for n, share in arms[arm]["strict_by_ops"].items():
            assert share == np.mean([r[arm]["strict"] for r in records if r["n_ops"] == n])
        assert arms[arm]["nats"] == pytest.approx(nll[arm].sum() / tokens.sum())
    assert arms["on"]["nats_minus_off"][0] == pytest.approx((nll["on"] - nll["off"]).sum() / tokens.sum())
    assert arms["random"]["nats_minus_on"][0] == pytest.approx((nll["random"] - nll["on"]).sum() / tokens.sum())


def test_shuffled_codes_keep_each_rows_own_codes():
    """Broken if shuffling changed how often a row uses each code, or did not move them."""
    own = [torch.arange(10), torch.tensor([4, 4, 2])]
    out = evaluation.shuffled_codes(own, 10, rows=[0, 1], seed=3)
    assert sorted(out[0].tolist()) == list(range(10)) and out[0].tolist() != list(range(10))
    assert sorted(out[1, :3].tolist()) == [2, 4, 4] and torch.equal(out[1, 3:6], out[1, :3])
    again = evaluation.shuffled_codes(own[:1], 10, rows=[0], seed=3)
    assert torch.equal(out[:1], again), "a row's shuffle must not depend on its neighbours"


def test_random_codes_are_uniform():
    """Broken if the random control favoured some codes."""
    codes = evaluation.random_codes(range(500), 40, 8, seed=0)
    share = torch.bincount(codes.flatten(), minlength=8) / codes.numel()
    assert (share - 1 / 8).abs().max() < 0.01


def test_bootstrap_matches_the_normal_approximation():
    """Broken if the interval were not that of a paired difference over problems."""
    rng = np.random.default_rng(1)
    a, b = rng.random(800) < 0.6, rng.random(800) < 0.5
    diff, low, high = evaluation.bootstrap(a, b)
    d = a.astype(float) - b
    half = 1.96 * d.std() / math.sqrt(800)
    assert diff == pytest.approx(d.mean())
    assert low == pytest.approx(d.mean() - half, abs=0.005) and high == pytest.approx(d.mean() + half, abs=0.005)
    assert evaluation.bootstrap([1, 3], [0, 0], weights=[3, 1])[0] == pytest.approx(6 / 4)
    assert evaluation.bootstrap([1, 0, 1], [1, 0, 1]) == (0, 0, 0)


def test_bootstrap_over_seeds_holds_their_spread():
    """Broken if the interval over several seeds ignored that training runs differ, or were too narrow for so few."""
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(4, 400))
    shifts = np.array([-1.0, -0.5, 0.5, 1.0])[:, None]  # every problem of a run is shifted alike: pure seed variance
    still = evaluation.bootstrap(noise, np.zeros_like(noise))
    moved = evaluation.bootstrap(noise + shifts, np.zeros_like(noise))
    assert still[0] == pytest.approx(noise.mean()) and moved[0] == pytest.approx(noise.mean())
    # the shifts' sample variance is 5/6, t at 97.5 % with 3 degrees of freedom 3.182: half 3.182 * sqrt(5 / 24) = 1.452
    assert moved[2] - moved[1] == pytest.approx(2 * 1.452, rel=0.1) and still[2] - still[1] < 0.25
    covered = 0
    for _ in range(200):  # 5 seeds of standard deviation 1 around a true difference of 0
        runs = rng.normal(size=(5, 1)) + rng.normal(size=(5, 50))
        _, low, high = evaluation.bootstrap(runs, np.zeros_like(runs), n=300)
        covered += low <= 0 <= high
    assert 0.91 <= covered / 200 <= 0.99


@pytest.mark.parametrize("helped, hurt, p", [
    (9, 1, 0.021484375), (1, 9, 0.021484375), (5, 5, 1.0), (0, 0, 1.0), (10, 0, 0.001953125), (30, 14, 0.0226288)])
def test_mcnemar_is_the_exact_binomial_test(helped, hurt, p):
    """Broken if p were one-sided, approximate, or counted problems on which both agree (values: scipy)."""
    a, b = [1] * helped + [0] * hurt + [1, 0] * 7, [0] * helped + [1] * hurt + [1, 0] * 7
    assert evaluation.mcnemar(a, b) == pytest.approx(p, rel=1e-4)


def finished(method, seed, right, nll, **settings):
    """A run as `finished_run` gives it: 4 problems of 10, 10, 10 and 30 answer tokens."""
    arms = {"off": (right, nll)} if method == "sft" else {"on": (right, nll), "off": ([0] * 4, [9.0] * 4)}
    tokens = [10, 10, 10, 30]
    records = [{"question": f"q{i}", "gold": "1", "tokens": tokens[i],
                **{arm: {"strict": bool(v[0][i]), "nll": v[1][i]} for arm, v in arms.items()}} for i in range(4)]
    summary = {"arms": {arm: {"strict": sum(v[0]) / 4, "nats": sum(v[1]) / 60} for arm, v in arms.items()},
               "steps": 7, "compute_seconds": 50.0 + seed, "train_seconds": 60.0}
    config = {"method": method, "seed": seed, "out": f"runs/{method}{seed}", "lr": 0.1, **settings}
    return config, summary, records


def test_compare_by_hand():
    """Broken if the table's means, spreads, pairing or reference were wrong."""
    runs = {"d0": finished("dlr", 0, [1, 1, 1, 0], [1, 1, 1, 3], chunk=1),
            "s0": finished("sft", 0, [1, 0, 0, 0], [2, 2, 2, 6]),
            "s1": finished("sft", 1, [0, 0, 0, 0], [4, 2, 2, 6]),
            "d1": finished("dlr", 1, [1, 1, 1, 1], [1, 1, 1, 3], chunk=1),
            "e0": finished("dlr", 0, [0, 0, 0, 0], [1, 1, 1, 3], chunk=4),
            "t0": finished("sft", 0, [1, 1, 1, 1], [0, 0, 0, 0], lr=0.2)}
    lines = {line["label"]: line for line in evaluation.compare(runs)}
    assert list(lines) == ["dlr, chunk 1", "sft, lr 0.1", "dlr, chunk 4", "sft, lr 0.2"]
    dlr, sft = lines["dlr, chunk 1"], lines["sft, lr 0.1"]
    assert dlr["seeds"] == [0, 1] and dlr["steps"] == [7]
    assert dlr["strict"] == pytest.approx((0.875, math.sqrt(0.03125))) and dlr["strict_off"] == (0.0, 0.0)
    assert dlr["nats_on"] == pytest.approx((0.1, 0.0)) and dlr["nats_off"] == pytest.approx((0.6, 0.0))
    assert sft["nats_off"][0] == pytest.approx((12 + 14) / 2 / 60) and "nats_on" not in sft
    assert sft["compute_seconds"] == pytest.approx((50.5, math.sqrt(0.5))) and "nats_minus_reference" not in sft
    assert sft["train_seconds"] == (60.0, 0.0) and [line["reference"] for line in lines.values()] == [0, 1, 0, 0]
    assert dlr["strict_minus_reference"][0] == pytest.approx(0.75)  # .75 - .25 and 1 - 0
    assert dlr["nats_minus_reference"][0] == pytest.approx(6 / 60 - 13 / 60)
    assert dlr["mcnemar_p"] == pytest.approx([0.5, 0.125])  # two and four helped, none hurt
    assert lines["dlr, chunk 4"]["mcnemar_p"] == [1.0] and lines["dlr, chunk 4"]["strict"] == (0.0, None)
    text = evaluation.compare_table(evaluation.compare(runs)).splitlines()
    assert len(text) == 6 and text[2].startswith("| dlr, chunk 1 | 2 | 87.5 ± 17.7 | 0.0 ± 0.0 | +75.0 [")
    assert "| 0.31 (0.12 - 0.5) | 0.1000 ± 0.0000 | 0.6000 ± 0.0000 | -0.1167 [" in text[2]
    assert text[2].endswith("| 7 | 50 ± 1 | 60 ± 0 |") and all(line.count("|") == 13 for line in text)
    assert "minus sft, lr 0.1, nats" in text[0] and "| 100.0 |" in text[5] and "| sft, lr 0.2 | 1 |" in text[5]
    other = {line["label"]: line for line in evaluation.compare(runs, "e0")}
    assert other["dlr, chunk 1"]["strict_minus_reference"][0] == 0.75 and other["dlr, chunk 1"]["paired_seeds"] == [0]
    assert "| dlr, chunk 1 | 2 (1 paired) |" in evaluation.compare_table(evaluation.compare(runs, "e0"))


def test_compare_refuses_what_cannot_be_compared():
    """Broken if runs on other problems, twice the same run, or a table without its reference were let through."""
    sft, dlr = finished("sft", 0, [1, 0, 0, 0], [2, 2, 2, 6]), finished("dlr", 1, [1, 0, 0, 0], [2, 2, 2, 6])
    other = finished("dlr", 0, [1, 0, 0, 0], [2, 2, 2, 6])
    other[2][0]["question"] = "another"
    longer = finished("dlr", 0, [1, 0, 0, 0], [2, 2, 2, 6])
    longer[2][0]["tokens"] = 20
    for runs, words in [({"a": sft, "b": other}, "b was evaluated on other problems than a"), ({"b": dlr}, "sft"),
                        ({"a": sft, "b": longer}, "in other tokens"), ({"a": sft, "b": dlr}, "no seed of dlr"),
                        ({"a": sft, "b": sft}, "a second run")]:
        with pytest.raises(ValueError, match=words):
            evaluation.compare(runs)
    with pytest.raises(ValueError, match="--reference RUN among the runs given; got c"):
        evaluation.compare({"a": sft}, "c")


def test_compare_from_the_command_line(tmp_path, capsys):
    """Broken if finished runs could not be compared from their folders, or a broken folder were no clear error."""
    for name, run in {"s": finished("sft", 0, [1, 0, 0, 0], [2, 2, 2, 6]),
                      "d": finished("dlr", 0, [1, 1, 0, 0], [1, 2, 2, 6])}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(run[0]))
        (tmp_path / name / "summary.json").write_text(json.dumps(run[1]))
        (tmp_path / name / "answers.jsonl").write_text("".join(json.dumps(r) + "\n" for r in run[2]))
    folders = [str(tmp_path / "s"), str(tmp_path / "d")]
    evaluation.main(["--compare", *folders, "--out", str(tmp_path / "table")])
    text = capsys.readouterr().out
    assert "| dlr | 1 | 50.0 |" in text and (tmp_path / "table.md").read_text() == text
    assert [line["label"] for line in json.loads((tmp_path / "table.json").read_text())] == ["sft", "dlr"]
    for file, content in [("config.json", "{}"), ("config.json", "[]"), ("summary.json", '{"arms": {}}'),
                          ("answers.jsonl", "{no"), ("summary.json", None)]:
        good = (tmp_path / "d" / file).read_text()
        (tmp_path / "d" / file).write_text(content) if content else (tmp_path / "d" / file).unlink()
        with pytest.raises(SystemExit) as stop:
            evaluation.main(["--compare", *folders, "--out", str(tmp_path / "other")])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and str(tmp_path / "d") in error and file in error, error
        assert not (tmp_path / "other.md").exists()
        (tmp_path / "d" / file).write_text(good)


def test_kept_results_render():
    """Broken if a file of raw results in the repository could no longer be made into the README's table."""
    names = [path.stem for path in (ROOT / "results").glob("*.jsonl") if not path.stem.startswith("bench")]
    assert len(names) >= 5
    cases = subprocess.run([sys.executable, str(ROOT / "results" / "case_studies.py"), "--table"], check=True,
                           capture_output=True, text=True).stdout.strip()
    assert len(cases.splitlines()) > 10 and cases in (ROOT / "README.md").read_text()
    for name in names:
        run = [sys.executable, str(ROOT / "results" / "run.py"), name, "--table"]
        text = subprocess.run(run, check=True, capture_output=True, text=True).stdout
        assert text.startswith("| run | seeds |") and len(text.splitlines()) > 3, name


def test_an_arm_that_changes_nothing_is_said_to():
    """Broken if an intervention without effect passed for evidence (trap 2)."""
    rows = load_rows("wordproblems", "test", 4)
    dead, _ = evaluation.evaluate(make(codes=0.0), ENC, rows, max_new_tokens=8)
    text = evaluation.table({"x": dead}).splitlines()
    said = [line.partition("changes nothing: ")[2] for line in text]
    assert said == ["", "the same as off", "", "the same as on", "the same as on"]
    alive, records = evaluation.evaluate(make(), ENC, rows, max_new_tokens=8)
    assert "changes nothing" not in evaluation.table({"x": alive})
    assert alive["rows"] == 4 and len(records) == 4 and set(records[0]) >= {"question", "gold", *evaluation.ARMS}


def test_likelihood_alone_needs_no_answers():
    """Broken if --no-generate asked for grades that were never made."""
    summary, records = evaluation.evaluate(make(), ENC, load_rows("wordproblems", "test", 3), generate=False)
    assert all("strict" not in s and s["nats"] > 0 for s in summary["arms"].values()) and "text" not in records[0]["on"]


def test_too_long_rows_are_counted_not_cut():
    """Broken if a problem longer than the context vanished silently or was truncated."""
    rows = load_rows("wordproblems", "test", 3)
    rows.append({"question": "Why? " * 300, "answer": "x\n#### 1", "final": "1"})
    summary, records = evaluation.evaluate(make(), ENC, rows, ("off",), generate=False)
    assert (summary["rows"], summary["left_out"], len(records)) == (3, 1, 3)


def test_command_line(tmp_path, capsys):
    """Broken if a run could not be evaluated from the command line, or bad input were not one clear error."""
    run = tmp_path / "run"
    run.mkdir()
    model = make()
    torch.save({"config": vars(model.config), "model": model.state_dict(), "tokenizer": "wordproblems",
                "train": {"data": "wordproblems", "method": "dlr", "dtype": "auto"}}, run / "ckpt.pt")
    evaluation.main([str(run), "--rows", "5", "--max_new_tokens", "8", "--device", "cpu"])
    lines = (run / "eval-wordproblems-test.jsonl").read_text().splitlines()
    assert len(lines) == 5 and json.loads(lines[0])["off"]["strict"] in (True, False)
    assert "5 problems of wordproblems/test" in capsys.readouterr().out
    (run / "cut.pt").write_bytes((run / "ckpt.pt").read_bytes()[:999])
    for argv, words in [(["none"], "none"), ([str(run), "--rows", "-1"], "--rows"), ([str(run), "--split", "x"], "x"),
                        ([str(run / "cut.pt")], "cut.pt"), ([str(run), "--data", str(tmp_path)], "test.jsonl"),
                        ([str(run), "--arms", "sideways"], "sideways"), ([str(run), "--bogus"], "--bogus"),
                        ([str(run), "--out", str(run / "x.json")], "x.json"), ([str(run), "--device", "tpu"], "tpu"),
                        ([str(run), "--out", str(run / "no" / "x.jsonl")], "existing folder"),
                        ([str(run), str(run)], "--compare"), (["--compare", str(run)], "summary.json")]:
        with pytest.raises(SystemExit) as stop:
            evaluation.main(argv)
        assert stop.value.code == 2 and words in capsys.readouterr().err
