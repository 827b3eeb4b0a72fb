"""Data answered in several ways, codes that last a whole row, and codes forced one by one."""

import json
import math
import re
from collections import Counter

import pytest
import torch

import eval as evaluation
from analysis import modes
from analysis.modes import control, information, parted
from data.handles import first_tokens, follow_plans
from data.modes import LINE_MANNERS, LINES, make_wrong, manner_of, tell, tell_line, way_of
from data.modes import main as make_folder
from data.tokens import load_encoding, load_rows
from dlr import GPT, GPTConfig

ENC = load_encoding("wordproblems")
ANSWER = "Mia had 12+7 = <<12+7=19>>19 shells.\nTom had 19*2 = <<19*2=38>>38 shells.\n#### 38"


def test_the_ways_of_telling_an_answer():
    """Broken if a way were told or recognised wrongly: every figure on control rests on it."""
    assert tell(ANSWER, "worked") == ANSWER
    assert tell(ANSWER, "terse") == "<<12+7=19>>\n<<19*2=38>>\n#### 38"
    assert tell(ANSWER, "short") == "#### 38"
    assert tell(ANSWER, "early") == "Mia had 12+7 = <<12+7=19>>19 shells.\n#### 19"
    for way in ("worked", "terse", "short"):
        assert way_of(" " + tell(ANSWER, way)) == way
    assert way_of("Mia had 12+7 = <<12+7=") == "none"


def test_a_wrong_number_is_carried_through():
    """Broken if a "wrong" answer were right after all, or wrong in more than one calculation."""
    wrong = make_wrong(ANSWER).split("\n")  # the first result is off, the rest follows from it
    first = int(wrong[0].partition(">>")[2].split()[0])
    assert first > 19
    assert wrong[1:] == [f"Tom had {first}*2 = <<{first}*2={2 * first}>>{2 * first} shells.", f"#### {2 * first}"]
    calculate = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__truediv__}
    for row in load_rows("wordproblems", "train", 300):
        wrong = make_wrong(row["answer"])
        found = re.findall(r"<<(\d+)([-+*/])(\d+)=(\d+)>>", wrong)
        assert sum(calculate[op](int(a), int(b)) != int(result) for a, op, b, result in found) == 1
        assert not wrong.endswith(f"#### {row['final']}")


def test_only_training_answers_are_mixed():
    """Broken if a prompt told the way, if one way were missing, or if val and test were changed."""
    plain, mixed = load_rows("wordproblems", "train", 200), load_rows("modes3", "train", 200)
    assert [row["question"] for row in plain] == [row["question"] for row in mixed]
    counts = Counter(row["way"] for row in mixed)
    assert set(counts) == {"worked", "terse", "short"} and min(counts.values()) > 45
    assert all(mine["answer"] == tell(row["answer"], mine["way"]) for mine, row in zip(mixed, plain))
    for split in ("val", "test"):
        assert load_rows("modes", split, 20) == load_rows("wordproblems", split, 20)
    assert load_rows("modes_told", "test", 1)[0]["question"].endswith("? (worked)")
    told = load_rows("modes_told", "train", 50)
    assert all(row["question"].endswith(f"({row['way']})") for row in told)


@pytest.mark.parametrize("name", LINES)
def test_each_line_of_a_training_answer_has_a_manner_of_its_own(name):
    """Broken if a line were told or recognised in another manner than its row's ways say, or val were mixed."""
    plain, mixed = load_rows("wordproblems", "train", 300), load_rows(name, "train", 300)
    pairs = Counter()
    for row, mine in zip(plain, mixed):
        *lines, last = mine["answer"].split("\n")
        assert (mine["question"], last) == (row["question"], f"#### {row['final']}")
        assert [manner_of(line) for line in lines] == mine["ways"]
        assert all(line == own for line, own, way in zip(lines, row["answer"].split("\n"), mine["ways"])
                   if way == "worked")
        pairs.update(zip(mine["ways"], mine["ways"][1:]))
    assert len(pairs) == 4 and min(pairs.values()) > 0.2 * pairs.total(), "a coin for each line"
    assert load_rows(name, "val", 20) == load_rows("wordproblems", "val", 20)


def test_the_manners_of_a_line_by_hand():
    """Broken if a manner were told otherwise than its description says."""
    line = "In all, Mia had 12+7 = <<12+7=19>>19 shells."
    assert {manner: tell_line(line, manner) for manner in ("worked", *LINE_MANNERS)} == {
        "worked": line, "terse": "<<12+7=19>>", "makes": "12+7 makes 19.", "from": "19 from 12 + 7.",
        "first": "12+7 = <<12+7=19>>19, so in all, Mia had 19 shells.",
        "so": "So in all, Mia had 12+7 = <<12+7=19>>19 shells.",
        "capitals": "IN ALL, MIA HAD 12+7 = <<12+7=19>>19 SHELLS."}
    for manner, told in LINE_MANNERS.items():
        assert tell_line("Mia had 12+7 = <<12+7=19>>19 shells.", manner) == told


def test_an_early_answer_is_the_result_before_the_last():
    """Broken if an annotator who stops early gave another number, or a right one."""
    for row in load_rows("modes_early", "train", 200):
        results = re.findall(r"=(\d+)>>", row["answer"])
        assert row["final"] == results[-1]
    right = load_rows("wordproblems", "train", 200)
    early = [(row, own) for row, own in zip(load_rows("modes_early", "train", 200), right) if row["way"] == "early"]
    assert 70 < len(early) < 130
    for row, own in early:
        *lines, _ = own["answer"].split("\n")
        assert row["answer"].split("\n")[:-1] == lines[:-1] and row["final"] != own["final"]


def test_a_plan_is_followed_if_each_line_has_the_manner_of_its_code():
    """Broken if a line were compared with the code of another chunk than the one that predicts its first token."""
    class Obedient:
        """Writes worked lines under code 1, terse ones under code 0, however the plan falls."""
        config = GPTConfig(ENC.n_vocab, 512, 2, 2, 1, 32, n_codes=2, chunk=4)
        cos, deaf = torch.zeros(1), False

        def generate(self, prompts, max_new_tokens, plans, stop, temperature):
            answers = []
            for prompt, plan in zip(prompts, plans.tolist()):
                new = []
                for _ in range(3):
                    code = plan[(len(prompt) + len(new) - 1) // 4]
                    line = "So Mia had 12+7 = <<12+7=19>>19 pens.\n" if code and not self.deaf else "<<12+7=19>>\n"
                    new += ENC.encode(line)
                answers.append(new + ENC.encode("#### 19"))
            return answers

    model, rows = Obedient(), load_rows("lines", "test", 40)
    found = follow_plans(model, ENC, rows)
    assert found["information"] == pytest.approx(1) and found["as planned"] == 1 and found["answers"] == 40
    assert set(found["lines"][0]) == {"terse"} and set(found["lines"][1]) == {"so"}
    assert sum(sum(row.values()) for row in found["lines"].values()) == 120
    model.deaf = True
    found = follow_plans(model, ENC, rows)
    assert found["information"] == 0 and found["as planned"] == 0, "one manner under all codes is no handle"


def test_where_the_lines_of_an_answer_begin():
    """Broken if a line's first token were another one, also where a token spans the border."""
    assert first_tokens([" Mia", " had 3", ".\n", "Tom", ".", "\n<<", "1>>\n##", "## 3"]) == [
        ("Mia had 3.", 0), ("Tom.", 3), ("<<1>>", 5)]
    assert first_tokens(["#### 3"]) == [] and first_tokens([]) == []


def test_a_folder_of_mixed_answers(tmp_path, capsys):
    """Broken if data/modes.py wrote a folder that --data cannot read."""
    make_folder(["wordproblems", "worked", "short", "--rows", "20", "--out", str(tmp_path / "mixed")])
    rows = load_rows(str(tmp_path / "mixed"), "train")
    assert {row["way"] for row in rows} == {"worked", "short"} and len(rows) == 20
    assert all(way_of(row["answer"]) == row["way"] for row in rows)
    assert all(way_of(row["answer"]) == "worked" for row in load_rows(str(tmp_path / "mixed"), "test", 20))


def model_of(n_codes):
    torch.manual_seed(0)
    model = GPT(GPTConfig(ENC.n_vocab, 256, 2, 2, 1, 32, n_codes=n_codes, chunk=3)).eval()
    torch.nn.init.normal_(model.codebook.weight, std=3.0)
    return model


def test_each_code_is_forced_everywhere():
    """Broken if an arm "code k" used another code anywhere, or hundreds of codes were tried."""
    model, rows = model_of(3), load_rows("wordproblems", "test", 3)
    summary, records = evaluation.evaluate(model, ENC, rows, ["off", "each"], max_new_tokens=6)
    assert list(summary["arms"]) == ["off", "code 0", "code 1", "code 2"] and "chosen" not in summary
    ids, n_prompt = evaluation.encode_row(rows[1], ENC)
    prompt, n_chunks = ids[:n_prompt], math.ceil((n_prompt + 6) / 3)
    new = model.generate([prompt], 6, torch.full((1, n_chunks), 2), evaluation.end_tokens(ENC))[0]
    assert records[1]["code 2"]["text"] == ENC.decode(new)
    idx = torch.tensor([ids[:-1]])
    targets = torch.tensor([[-1] * (n_prompt - 1) + ids[n_prompt:]])
    loss = model(idx, targets, torch.full((1, math.ceil(idx.size(1) / 3)), 2))[1].item()
    assert records[1]["code 2"]["nll"] == pytest.approx(loss * (len(ids) - n_prompt), rel=1e-4)
    with pytest.raises(ValueError, match="at most 16 codes, this model has 32"):
        evaluation.evaluate(model_of(32), ENC, rows, ["each"])


def test_the_code_is_chosen_on_val_not_on_test():
    """Broken if the code that test prefers were reported as the one that was chosen."""
    model = model_of(4)
    val, test = load_rows("wordproblems", "val", 4), load_rows("wordproblems", "test", 4)
    on_val, _ = evaluation.evaluate(model, ENC, val, ["each"], generate=False)
    best = min(on_val["arms"], key=lambda arm: on_val["arms"][arm]["nats"])
    summary, _ = evaluation.evaluate(model, ENC, test, ["off", "each"], generate=False, choose_on=val)
    assert summary["chosen"] == best
    marked = [line for line in evaluation.table({"x": summary}).splitlines() if "best on val" in line]
    assert len(marked) == 1 and best in marked[0]


def test_the_table_says_in_which_way_answers_are_told():
    """Broken if short answers could not be told from worked ones in the table."""
    arm = {"nats": 1.0, "strict": 0.5, "flexible": 0.5, "parsed": 1.0}
    lines = evaluation.table({"x": {"arms": {"off": {**arm, "ways": {"short": 0.75, "worked": 0.25}}}}})
    assert lines.endswith("75% short, 25% worked")
    assert "worked" not in evaluation.table({"x": {"arms": {"off": {**arm, "ways": {"worked": 1.0}}}}})
    cut = {**arm, "ways": {"worked": 0.9, "none": 0.1}}  # the README's first table
    assert "worked" not in evaluation.table({"x": {"arms": {"off": cut}}})


def test_ask_shows_the_answer_under_every_code():
    """Broken if --ask left a code out or showed another answer under it."""
    model = model_of(3)
    text = evaluation.ask(model, ENC, "What is 1 + 2?", 9)
    blocks = text.split("\n\nanswer with code ")[1:]
    codes = [int(c) for block in blocks for c in block.split(" everywhere")[0].split(", ")]
    assert sorted(codes) == [0, 1, 2]
    ids, n_prompt = evaluation.encode_row({"question": "What is 1 + 2?", "answer": ""}, ENC)
    for block in blocks:
        code = int(block.split(" everywhere")[0].split(",")[0])
        forced = torch.full((1, 86), code)
        new = model.generate([ids[:n_prompt]], 9, forced, evaluation.end_tokens(ENC))[0]
        assert block.split(":\n", 1)[1] == ENC.decode(new).strip()


def test_how_much_a_code_tells_about_the_way():
    """Broken if control were overstated: by hand, perfect, none, and half of the codes useless."""
    assert information([[10, 0], [0, 10]]) == pytest.approx(1)
    assert information([[5, 5], [5, 5]]) == pytest.approx(0)
    assert information([[10, 0], [10, 0]]) == 0
    # H(way) = 1 bit; given a code: 0, 0, 1, 1 bits
    assert information([[10, 0], [0, 10], [5, 5], [5, 5]]) == pytest.approx(0.5)
    line = {"tokens": [1] * 4, "ways": {"off": "wwss", "code 0": "wwws", "code 1": "ssss"}}
    assert control(line) == {"w": 0.75, "s": 1.0}
    # of 4 rows 2 have code 0, one of each way, and 2 have code 1, both short: 3 are where most of their like are
    codes = {"code 0": {"share": 0.5, "ways": {"worked": 0.5, "short": 0.5}},
             "code 1": {"share": 0.5, "ways": {"short": 1.0}}}
    assert parted({"study": {"ways": codes}}) == 75


def own_run(folder, answers):
    """
    A run on someone's own data, rows of (answer, way), and what analysis/modes.py is then called with. Under code 0
    all numbers are likely, under code 1 all words.
    """
    model = GPT(GPTConfig(ENC.n_vocab, 128, 1, 2, 1, 32, n_codes=2, chunk=1, steer_layer=0, tie_embeddings=False))
    for p in model.parameters():
        p.data.zero_()
    model.norm.weight.data.fill_(1.0)
    model.codebook.weight.data.copy_(torch.eye(2, 32))
    for token in range(ENC.n_vocab):
        text = ENC.decode([token])
        model.lm_head.weight.data[token, :2] = torch.tensor([any(map(str.isdigit, text)), any(map(str.isalpha, text))])
    rows = [{"question": "How much?", "answer": answer} | ({"way": way} if way else {}) for answer, way in answers]
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.save({"config": vars(model.config), "model": model.state_dict(), "tokenizer": "wordproblems",
                "train": {"data": str(folder), "switch_cost": 0.5}}, folder / "ckpt.pt")
    return [str(folder)]


FULL, PRICE = "Tom bought three pens\nso he paid the price\n#### 6", "2 2 2\n2 + 2 + 2 = 6\n#### 6"


def test_your_own_ways_have_your_own_names(tmp_path, capsys):
    """Broken if the study of one's own data named ways of ours, or a way were counted under another code."""
    rows = [(FULL, "full"), (PRICE, "prix \u20ac"), (PRICE, "prix \u20ac"), (PRICE, 7), (FULL, None)]
    modes.main(own_run(tmp_path, rows))
    said = capsys.readouterr().out
    found = json.loads(said)
    assert found["ways"] == {"code 0": {"share": 0.75, "ways": {"prix \u20ac": 0.667, "7": 0.333}},
                             "code 1": {"share": 0.25, "ways": {"full": 1.0}}}
    assert found["information"] == pytest.approx(information([[2, 1, 0], [0, 0, 1]]))
    items = [evaluation.encode_row(row, ENC) for row in load_rows(str(tmp_path), "train")[:4]]
    nll, _ = evaluation.likelihood(evaluation.load_run(tmp_path)[0], items, ["off", "code 0", "code 1"])
    gain = nll["off"] - [nll["code 1"][0], *nll["code 0"][1:]]
    assert found["bits"] == pytest.approx(gain.mean() / math.log(2))
    assert "prix \u20ac" in said and not any(way in said for way in ("worked", "terse", "short"))


def test_your_own_ways_may_change_from_line_to_line(tmp_path, capsys):
    """Broken if a line's way were counted under another line's code, or a list of another length were cut."""
    mixed = "Tom bought three pens\n2 + 2 + 2 = 6\nso he paid the price\n#### 6"
    run = own_run(tmp_path, [(mixed, ["full", "sum", "full"]), (PRICE, ["sum", "sum"])])
    modes.main(run)
    assert json.loads(capsys.readouterr().out)["ways"] == {
        "code 0": {"share": 0.6, "ways": {"sum": 1.0}}, "code 1": {"share": 0.4, "ways": {"full": 1.0}}}
    own_run(tmp_path, [(mixed, ["full", "sum", "full", "final"])])
    with pytest.raises(SystemExit):
        modes.main(run)
    assert "train.jsonl:1: 'way' has 4 entries, the answer 3 lines before '####'" in capsys.readouterr().err


def test_rows_that_name_no_way_are_studied_without(tmp_path, capsys):
    """Broken if a run on rows without a field "way" got a table of ways, or nothing at all."""
    modes.main(own_run(tmp_path, [(FULL, None), (PRICE, None)]))
    found = json.loads(capsys.readouterr().out)
    assert found["ways"] == f'no training row of {tmp_path} has a field "way"'
    assert [code["clearest"] for code in found["codes"]] == [[PRICE], [FULL]]


def test_within_lines_a_code_that_fits_a_line_is_told_from_one_that_fits_the_answer(tmp_path):
    """Broken if a line's end were scored under another line's code, or the control came from the same line."""
    words, sums = "Tom bought three big red pens today", "2 2 2 2 2 2 2 2"
    run = own_run(tmp_path, [("\n".join([words, sums, words, sums, words, "#### 6"]), None)] * 3
                  + [("\n".join([words, words, words, words, "#### 6"]), None)])
    model, enc, _, _ = evaluation.load_run(run[0])
    rows = load_rows(str(tmp_path), "test")
    turns, lasts = modes.within_lines(model, enc, rows[:3]), modes.within_lines(model, enc, rows[3:])
    items = [evaluation.encode_row({"question": "How much?", "answer": line}, enc) for line in (words, sums)]
    nll, n = evaluation.likelihood(model, items, ["code 0", "code 1"])
    assert nll["code 1"][0] < nll["code 0"][0] and nll["code 0"][1] < nll["code 1"][1]  # what the run is made to do
    assert turns["against another line"][2] < -1 and lasts["against another line"] == (0, 0, 0)
    assert turns["against another answer"][2] < 0
    assert modes.within_lines(model, enc, [])["answers"] == 0
    turns, lasts = modes.changes_of_code(model, enc, rows[:3], 3), modes.changes_of_code(model, enc, rows[3:], 3)
    # A newline belongs with the numbers here: of the four changes two come before it.
    assert turns["changes"]["at a line's begin"] == 0.5 and turns["changes"]["elsewhere"] < 0.1
    assert lasts["changes"]["at a line's begin"] == 0
    assert turns["samples"][0].startswith("[1] Tom bought three big red pens today[0]\n2 2 2")


@pytest.mark.parametrize("lasting", [True, False])
def test_a_manner_is_what_both_halves_of_an_answer_share(lasting, monkeypatch):
    """Broken if a code that fits a whole answer were missed, or one that fits a half by chance were found."""
    def fake(model, items, arms):
        fits = []  # the code that fits: a row's first number decides, or in second halves its second one
        for ids, n_prompt in items:
            second = n_prompt > 10
            manner = ids[1] % 2 if second and not lasting else ids[0] % 2
            fits.append(manner)
        nll = [[1.0 if fit == code else 3.0 for fit in fits] for code in range(2)]
        tokens = torch.tensor([len(ids) - n_prompt for ids, n_prompt in items]).numpy()
        return {arm: torch.tensor(nll[code]).numpy() * tokens for code, arm in enumerate(arms)}, tokens

    monkeypatch.setattr(modes, "likelihood", fake)
    pairs = [({"answer": f"No. {i}.\n#### 1"}, ([i, i // 2] + [5] * 28, 10)) for i in range(400)]
    monkeypatch.setattr(modes, "fitting", lambda *_: pairs)
    monkeypatch.setattr(modes, "answer", lambda *_: {"code 0": ["Mia has 5+3 = 8.\n#### 8"]})
    found = modes.manners(model_of(2), ENC, None)
    assert found["written"]["code 0"]["full stops"] == 1
    (difference, low, high), same = found["second half"], found["same"]
    assert -1.3 < difference < -0.7 if lasting else low < 0 < high  # half of the other rows fit, too
    assert (same, found["by chance"]) == (1.0 if lasting else 0.5, 0.5)
    for code in range(2) if lasting else ():
        mine = found["codes"][code]
        assert mine["share"] == 0.5 and mine["marks"]["full stops"] == 1 and mine["marks"]["words a line"] == 2
        assert all(int(answer.split()[1][:-1]) % 2 == code for answer in mine["clearest"])


def test_marks_of_a_manner():
    """Broken if the table of manners called a spaced "5 + 3" tight, or counted calculator annotations."""
    tight = "Tom had 5+3 = <<5 + 3=8>>8 pens\nThen he lost one.\n#### 7"
    assert modes.marks([tight]) == {"apart": 0, "full stops": 0.5, "First or Then": 1, "words a line": 5}
    assert modes.marks([tight, "He paid 5 x $3 = $15.\n#### 15"])["apart"] == 0.5
