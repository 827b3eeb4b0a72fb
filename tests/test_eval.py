"""eval.py: grading, arms, statistics, and what a run's folder must hold to be used anywhere."""

import json
import math
import re
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import eval as evaluation
from data.grading import grade
from data.tokens import PROMPT, collate, encode, encode_row, end_token, load_encoding, load_rows
from dlr import GPT, GPTConfig

ENC = load_encoding("wordproblems")
many = settings(max_examples=300, deadline=None, derandomize=True)


def make(codes=1.0):
    """A small model with random weights whose codes matter."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(ENC.n_vocab, 256, 2, 2, 1, 32, n_codes=5, chunk=3)).eval()
    torch.nn.init.normal_(model.codebook.weight, std=codes)
    torch.nn.init.normal_(model.router.weight, std=1.0)
    return model


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
    assert grade(text, gold) == {
        "strict": right in (BOTH, STRICT), "flexible": right in (BOTH, FLEXIBLE),
        "parsed": right in (BOTH, STRICT, WRONG)}


def test_a_gold_answer_that_cannot_be_graded_is_an_error():
    """Broken if no answer equalled no gold (trap 6), or a fraction were compared as text."""
    for gold in ("nothing", "", None, "AB", "7/2", "1e", "3, 5", "1 000", "1\u202f000", "$ 5", "- 5", ",5", "3 4"):
        with pytest.raises(ValueError, match="gold answer"):
            grade("nothing", gold)


NUMBERS = st.decimals(-(10**9), 10**9, places=2)


@many
@given(gold=st.text(st.sampled_from("0123456789.,-+/^:e$% \t\n\u2212\u202fAByesno"), min_size=1, max_size=8),
       gap=st.sampled_from(["", " ", "\n", " \u00a0"]))
def test_a_gold_that_is_accepted_is_right_as_an_answer(gold, gap):
    """Broken if some gold were accepted with which no answer, not even its row's own, could be right."""
    try:
        grade("", gold)
    except ValueError:
        return
    assert grade(f"So 3 or no.\n####{gap}{gold}", gold) == {"strict": True, "flexible": True, "parsed": True}


@many
@given(x=NUMBERS, form=st.sampled_from(["{}", "{:,}", "{:.0f}", "{:,.2f}%", "{:.2e}", "${}.", "{} %"]))
def test_golds_that_people_write_are_accepted(x, form):
    """Broken if a stricter reading of golds refused one that published data has."""
    gold = form.format(x)
    value = Decimal(re.sub(r"[$,% ]", "", gold).removesuffix("."))
    assert grade(f"#### {value}", gold)["strict"] and not grade(f"#### {value + 1}", gold)["strict"]


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


def test_the_shuffled_arm_permutes_the_rows_own_codes():
    """Broken if it left the codes in place, drew others, or shuffled those of another row."""
    model, rows, end = make(), load_rows("wordproblems", "test", 3), end_token(ENC)
    prompts = [encode(ENC, PROMPT.format(question=r["question"])) for r in rows]
    texts = [prompt + new for prompt, new in zip(prompts, model.generate(prompts, 12, stop=end))]
    own = [model.route(torch.tensor([ids]))[0].argmax(-1) for ids in texts]
    codes = evaluation.arm_codes("shuffled", range(3), own, 86, model, seed=0)
    for mine, shuffled in zip(own, codes):
        permuted = shuffled[: len(mine)]
        assert sorted(permuted.tolist()) == sorted(mine.tolist()) and not torch.equal(permuted, mine)
    expected = [ENC.decode(ids) for ids in model.generate(prompts, 12, codes, end)]
    assert evaluation.answer(model, ENC, prompts, ("shuffled",), 12) == {"shuffled": expected}


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
    """Broken if pairs were torn apart, weights forgotten, or the interval not that of resampling."""
    rng = np.random.default_rng(1)
    w, y = rng.integers(1, 9, size=40), 10 * rng.normal(size=40)
    x, draws = y + rng.normal(size=40), []  # unpaired, the interval would be ten times as wide
    for _ in range(4000):
        i = rng.integers(40, size=40)
        draws.append(((x - y)[i] * w[i]).sum() / w[i].sum())
    diff, low, high = evaluation.bootstrap(x, y, w)
    assert diff == pytest.approx(((x - y) * w).sum() / w.sum())
    assert [low, high] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.04)
    assert evaluation.bootstrap([1, 0, 1], [1, 0, 1]) == (0, 0, 0)
    diff, low, high = evaluation.bootstrap([True] * 300 + [False] * 100, [False] * 400)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert [diff, low, high] == pytest.approx([0.75, 0.75 - half, 0.75 + half], abs=0.005)


def test_likelihood_alone_needs_no_answers_and_leaves_out_what_is_too_long():
    """Broken if --no-generate graded, or a row beyond the context vanished silently or was cut."""
    rows = load_rows("wordproblems", "test", 3)
    rows[0] |= {"final": "7/2"}
    rows.append({"question": "Why? " * 300, "answer": "x\n#### 1", "final": "1"})
    summary, records = evaluation.evaluate(make(), ENC, rows, generate=False)
    assert all("strict" not in s and s["nats"] > 0 for s in summary["arms"].values())
    assert "text" not in records[0]["on"]
    assert (summary["rows"], summary["left_out"], len(records)) == (3, 1, 3)
    with pytest.raises(ValueError, match="256"):
        evaluation.evaluate(make(), ENC, rows[3:], ("off",))


def test_ask_shows_the_code_before_each_chunk():
    """Broken if --ask showed other codes, other text or other answers than the model's."""
    model, prompt = make(), encode(ENC, PROMPT.format(question="What is 1 + 2?"))
    text = evaluation.ask(model, ENC, " What is 1 + 2? ", 9)
    new = model.generate([prompt], 9, stop=end_token(ENC))[0]
    codes = model.route(torch.tensor([prompt + new]))[0].argmax(-1).tolist()
    shown = text.split(":\n", 1)[1].split("\n\nanswer with codes on")[0]
    assert [int(code) for code in re.findall(r"\[(\d)\]", shown)] == codes
    assert re.sub(r"\[\d\]", "", shown) == "".join(
        ENC.decode((prompt + new)[i : i + 3]) for i in range(0, len(prompt + new), 3))
    off = ENC.decode(model.generate([prompt], 9, "off", end_token(ENC))[0]).strip()
    assert f"answer with codes on:\n{ENC.decode(new).strip()}\n" in text
    assert f"answer with codes off:\n{off}\n" in text


# ---- the choice of a code, and its use -----------------------------------------------------------


def on_val(right, nats):
    """What evaluate returns for two codes: right = their verdicts, "0110..."."""
    arms, records = {}, [{"code 0": {}, "code 1": {}} for _ in right[0]]
    for code, (digits, nat) in enumerate(zip(right, nats)):
        arms[f"code {code}"] = {"nats": nat, "strict": digits.count("1") / len(digits)}
        for record, digit in zip(records, digits):
            record[f"code {code}"] = {"strict": digit == "1"}
    return {"rows": len(records), "arms": arms}, records


def test_accuracy_chooses_a_code_and_within_noise_likelihood_does():
    """Broken if one lucky problem outweighed likelihood, or likelihood a clear difference in accuracy."""
    clear = on_val(["1" * 31 + "0" * 69, "0" * 98 + "11"], nats=[0.3, 0.1])
    assert evaluation.choose(*clear)[0] == "code 0"
    lucky = on_val(["11" + "0" * 98, "1" + "0" * 99], nats=[0.9, 0.1])  # 2 against 1 right of 100
    chosen, choice = evaluation.choose(*lucky)
    assert chosen == "code 1" and choice["rivals"] == ["code 0", "code 1"]
    assert choice["scores"]["code 0"] == {"nats": 0.9, "strict": 0.02}
    said = [evaluation.describe_choice(*evaluation.choose(*case)) for case in (clear, lucky)]
    assert said == ["31.0 against 2.0 % of 100",
                    "0.1000 against 0.9000 nats/token of 100; 1.0 against 2.0 % is within noise"]
    # the same counts of 30 and 20 %: paired, ten problems more are clear; torn apart, they are noise
    assert evaluation.choose(*on_val(["1" * 30 + "0" * 70, "1" * 20 + "0" * 80], [0.9, 0.1]))[0] == "code 0"
    apart = on_val(["1" * 30 + "0" * 70, "0" * 80 + "1" * 20], [0.9, 0.1])
    assert evaluation.choose(*apart)[0] == "code 1"


def test_the_scores_of_the_choice_are_kept_and_shown():
    """Broken if the table marked the best code without a word on how much better it was on val."""
    model, rows, val = make(), load_rows("wordproblems", "test", 3), load_rows("wordproblems", "val", 4)
    summary, _ = evaluation.evaluate(model, ENC, rows, ["off", "each"], max_new_tokens=4, choose_on=val)
    alone, _ = evaluation.evaluate(model, ENC, val, ["each"], max_new_tokens=4)
    assert summary["choice"]["rows"] == 4
    for arm, score in summary["choice"]["scores"].items():
        assert score == {key: alone["arms"][arm][key] for key in ("nats", "strict")}
    [marked] = [line for line in evaluation.table({"x": summary}).splitlines() if "best on val" in line]
    assert re.search(r"<- best on val: .* of 4; 0\.0 against 0\.0 % is within noise$", marked)
    del summary["choice"]  # of a run that was made before scores were kept
    assert evaluation.table({"x": summary}).count("<- best on val") == 1


@pytest.fixture
def run(tmp_path):
    """A run's folder, as train.py leaves it, whose code 2 was chosen on val."""
    model, flags = make(), {"method": "dlr", "data": "wordproblems", "dtype": "float32"}
    torch.save({"config": vars(model.config), "model": model.state_dict(), "tokenizer": "wordproblems",
                "train": flags}, tmp_path / "ckpt.pt")
    (tmp_path / "summary.json").write_text('{"chosen": "code 2"}')
    return tmp_path


QUESTIONS = ["What is 1 + 2?", "Mia had 12 shells. She found 7 more. How many had she then?", "Žofie?"]
FEW = ["--max_new_tokens", "9", "--device", "cpu"]


def ask_file(run, *flags):
    """What eval.py --ask FILE.jsonl --out FILE writes."""
    lines = [json.dumps({"question": f" {question} ", "id": 5}) for question in QUESTIONS]
    (run / "asked.jsonl").write_text("\n\n".join(lines) + "\n")
    evaluation.main([str(run), "--ask", str(run / "asked.jsonl"), "--out", str(run / "out.jsonl"), *FEW, *flags])
    return [json.loads(line) for line in (run / "out.jsonl").read_text().splitlines()]


def test_a_file_of_questions_is_answered_under_one_code(run, capsys):
    """Broken if --code answered with another code, lost the order, or best were not the one chosen on val."""
    model, said = make(), set()
    for flags, codes in (["--code", "best"], 2), (["--code", "0"], 0), (["--code", "code 4"], 4), ([], None):
        answers = ask_file(run, *flags)
        assert [record["question"] for record in answers] == QUESTIONS
        for record in answers:
            prompt = encode(ENC, PROMPT.format(question=record["question"]))
            [new] = model.generate([prompt], 9, codes, end_token(ENC))
            assert record == {"question": record["question"], "answer": ENC.decode(new).strip(), "final": None}
        capsys.readouterr()
        evaluation.main([str(run), "--ask", str(run / "asked.jsonl"), *FEW, *flags])
        assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == answers
        if flags:
            evaluation.main([str(run / "ckpt.pt"), "--ask", QUESTIONS[1], *FEW, *flags])
            assert capsys.readouterr().out.strip() == answers[1]["answer"]
        said.add(str(answers))
    assert len(said) == 4, "every code must bite"


def test_the_final_answer_is_what_follows_the_first_mark(monkeypatch):
    """Broken if a program that reads "final" got a later answer, blanks, or "" where there is none."""
    texts = [" 1+2=3\n#### 3 ", "3", "no ####  ", "#### 18 #### 20"]
    monkeypatch.setattr(evaluation, "answer", lambda *args: {"code 1": texts})
    rows = [{"question": "?", "where": "here"}] * 4
    served = evaluation.serve(make(), ENC, rows, "code 1")
    assert [record["final"] for record in served] == ["3", None, None, "18 #### 20"]
    assert served[0]["answer"] == "1+2=3\n#### 3"


def test_one_code_can_be_graded(run, capsys):
    """Broken if --arms "code 3" were refused, or graded another code."""
    evaluation.main([str(run), "--arms", "off", "code 3", "--rows", "2", "--no-generate", *FEW])
    assert "dlr code 3 " in capsys.readouterr().out
    found = json.loads((run / "eval-wordproblems-test.json").read_text())
    rows = load_rows("wordproblems", "test", 2)
    expected, _ = evaluation.evaluate(make(), ENC, rows, ["off", "code 3"], generate=False)
    assert found["arms"] == json.loads(json.dumps(expected["arms"]))


# ---- results that are not lost -------------------------------------------------------------------


def test_results_are_printed_although_they_cannot_be_written(run, capsys):
    """Broken if a folder that takes no file also took the table, after all the work."""
    (run / "eval-wordproblems-test.jsonl").mkdir()  # root may write into any folder
    with pytest.raises(SystemExit) as stop:
        evaluation.main([str(run), "--rows", "2", "--arms", "on", "off", "--no-generate", *FEW])
    said = capsys.readouterr()
    assert stop.value.code == 2 and "dlr on " in said.out
    assert "cannot write" in said.err and said.err.count("\n") == 1


def test_results_of_other_data_are_not_overwritten(run, capsys):
    """Broken if two folders of one name, or a split within a folder, shared a file or had none."""
    for i, (folder, split) in enumerate([("a/rows", "test"), ("b/rows", "test"), ("a/rows", "sub/test")]):
        path = run / folder / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"question": f"{i}?", "answer": f"#### {i}"}) + "\n")
    for folder, split in [("a/rows", "test"), ("b/rows", "test"), ("a/rows", "sub/test"), ("a/rows", "test")]:
        evaluation.main([str(run), "--data", str(run / folder), "--split", split, "--arms", "off", *FEW])
    written = sorted(run.glob("eval-*.jsonl"))
    assert len(written) == 3 and {run / "eval-rows-test.jsonl", run / "eval-rows-sub-test.jsonl"} < {*written}
    for path in written:
        about = json.loads(path.with_suffix(".json").read_text())
        asked = json.loads((run / about["data"] / f"{about['split']}.jsonl").read_text())
        assert json.loads(path.read_text())["question"] == asked["question"]
