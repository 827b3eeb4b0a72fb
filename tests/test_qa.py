"""The readers of ScienceQA, StrategyQA and CommonsenseQA, on tiny files and on the published ones."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data.qa import PUBLISHED as PUBLISHED_AT
from data.qa import SPLITS, load
from data.tokens import encode_row, load_encoding

ROOT = Path(__file__).parents[1]
QA_DIR = Path(os.environ.get("QA_DIR", ROOT.parent / "shared" / "qa"))  # the published files

SCIENCEQA = {
    "1": {"question": "Which?", "choices": ["a", "b"], "answer": 0, "hint": "",
          "image": "image.png", "solution": "a."},
    "2": {"question": "Which trait did the seal inherit?", "answer": 1, "image": None,
          "choices": ["its  scar", "its thick\nfur "],
          "hint": "A seal swam into a rock. It has thick fur.\nIt has a scar.",
          "solution": "#### Fur\nThick fur is inherited. #####"},
    "3": {"question": "Is a rock a mineral?\n", "choices": ["yes", "no", "#### A"], "answer": 2,
          "hint": "", "image": None, "solution": ""},
}
PID_SPLITS = {"train": ["2", "1"], "val": ["1"], "test": ["3"]}
COLOSSEUM = "Is Mixed martial arts totally original from Roman Colosseum games?"
STRATEGYQA = [
    {"question": COLOSSEUM, "answer": False,
     "facts": ["It takes from Judo.", " Judo is not ### from the #### Colosseum. ", ""]},
    {"question": "Do mail carriers need multiple uniforms?", "answer": True, "facts": []}]
PLACES = zip("ABCDE", ("bank", "library", "department store", "mall", "new york"))
DOOR = "A revolving door is convenient, but also a security measure at a what?"
COMMONSENSEQA = [
    {"answerKey": "E", "question": {
        "stem": DOOR, "choices": [{"label": c, "text": place} for c, place in PLACES]}},
    {"answerKey": "B", "question": {
        "stem": "What do people aim to do at work? #######",
        "choices": [{"label": "A", "text": "race\u2028track"}, {"label": "B", "text": "populated areas"}]}}]


def write(path, value):
    """A JSON file; for .jsonl, one line for each item."""
    lines = value if path.suffix == ".jsonl" else [value]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """All data sets in one folder, as published."""
    write(tmp_path / "problems.json", SCIENCEQA)
    write(tmp_path / "pid_splits.json", PID_SPLITS)
    write(tmp_path / "strategyqa_train.json", STRATEGYQA)
    write(tmp_path / "train_rand_split.jsonl", COMMONSENSEQA[:1])
    write(tmp_path / "dev_rand_split.jsonl", COMMONSENSEQA)
    return tmp_path


def rows_of(name, folder, splits=SPLITS):
    """(question, answer, final) of these splits; a tiny file may have no row for one of them."""
    rows = []
    for split in splits:
        try:
            rows += load(name, folder, split)
        except ValueError as error:
            assert f"has no rows for {split}" in str(error)
    return [(row["question"], row["answer"], row["final"]) for row in rows]


# ---- what a row becomes


def test_scienceqa_by_hand(folder, capsys):
    """Broken if hint, choices, letter or solution go astray, or images stay in or go unreported."""
    assert load("scienceqa", folder, "train") == [{
        "question": "A seal swam into a rock. It has thick fur.\nIt has a scar.\n"
        "Which trait did the seal inherit?\n(A) its scar\n(B) its thick fur",
        "answer": "# ### Fur\nThick fur is inherited. # # ###\n#### B",
        "final": "B",
        "where": f"{folder}/problems.json, problem '2'",
    }]
    assert capsys.readouterr().err == "scienceqa/train: 1 of 2 rows have an image: left out\n"
    [row] = load("scienceqa", folder, "test")
    assert row["question"] == "Is a rock a mineral?\n(A) yes\n(B) no\n(C) # ### A"
    assert row["answer"] == "#### C" and capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="has no rows for val"):  # the only one has an image
        load("scienceqa", folder, "val")


def test_strategyqa_by_hand(folder):
    """Broken if true is not yes, facts are lost, needed, or leave a second '####'."""
    answer = "It takes from Judo. Judo is not ### from the # ### Colosseum.\n#### no"
    assert sorted(rows_of("strategyqa", folder)) == [
        (STRATEGYQA[1]["question"], "#### yes", "yes"), (COLOSSEUM, answer, "no")]
    filtered = {"qid": "1", "term": "Tea", "question": "Is tea wet?", "answer": True}  # no facts
    write(folder / "strategyqa_train_filtered.json", [filtered])
    assert rows_of("strategyqa_filtered", folder) == [("Is tea wet?", "#### yes", "yes")]


def test_commonsenseqa_by_hand(folder):
    """Broken if test is not the published dev file, or if a letter or a choice moves."""
    choices = "(A) bank\n(B) library\n(C) department store\n(D) mall\n(E) new york"
    first = (f"{DOOR}\n{choices}", "#### E", "E")
    question = "What do people aim to do at work? # # # # ###\n(A) race track\n(B) populated areas"
    assert rows_of("commonsenseqa", folder, ["test"]) == [first, (question, "#### B", "B")]
    assert rows_of("commonsenseqa", folder, ["train", "val"]) == [first]
    second = load("commonsenseqa", folder, "test")[1]
    assert second["where"] == f"{folder}/dev_rand_split.jsonl:2"


PUBLISHED = {  # rows of train, val, test: carved, but for ScienceQA's 465 without an image (of 900)
    "scienceqa": (273, 99, 93),
    "strategyqa": (1554, 259, 477),
    "strategyqa_filtered": (1932, 306, 583),
    "commonsenseqa": (8775, 966, 1221)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_files(name):
    """Broken if a row of the real files is refused or lost, or its final is no choice of its own."""
    folder = QA_DIR / name.removesuffix("_filtered")
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set QA_DIR")
    splits = [load(name, folder, split) for split in SPLITS]
    assert tuple(map(len, splits)) == PUBLISHED[name]
    rows = [row for split in splits for row in split]
    assert len({row["where"] for row in rows}) == len(rows)
    for row in rows:
        assert row["answer"].endswith(f"#### {row['final']}") and row["answer"].count("####") == 1
        choices = re.findall(r"^\(([A-Z])\) \S", row["question"], re.MULTILINE) or ["yes", "no"]
        assert row["final"] in choices

# ---- splits


def many(folder, order=1):
    """600 questions in each data set that is carved, in the given order."""
    questions = [f"Is {chr(97 + i % 26)}{chr(97 + i // 26)} a word?" for i in range(600)][::order]
    write(folder / "strategyqa_train.json", [STRATEGYQA[0] | {"question": q} for q in questions])
    first = COMMONSENSEQA[0]
    items = [first | {"question": first["question"] | {"stem": q}} for q in questions]
    write(folder / "train_rand_split.jsonl", items)


@pytest.mark.parametrize("name, shares", [("strategyqa", dict(train=0.7, val=0.1, test=0.2)),
                                          ("commonsenseqa", dict(train=0.9, val=0.1))])
def test_carving(folder, name, shares):
    """Broken if a row is in two splits or none, or moves: by another hash, or by the file's order."""
    many(folder)
    splits = {split: [row["question"] for row in load(name, folder, split)] for split in shares}
    everything = [question for questions in splits.values() for question in questions]
    assert len(everything) == len(set(everything)) == 600
    assert all(abs(len(splits[split]) / 600 - share) < 0.05 for split, share in shares.items())
    assert [question[3:5] for question in splits["val"][:5]] == ["pa", "fb", "kb", "qb", "sb"]
    many(folder, order=-1)
    again = {split: [row["question"] for row in load(name, folder, split)] for split in shares}
    assert {split: questions[::-1] for split, questions in again.items()} == splits


def test_the_same_question_is_on_one_side(folder):
    """Broken if twins with other choices are told apart: the stem would be in train and in val."""
    twins = [copy.deepcopy(COMMONSENSEQA[0]) for _ in range(50)]
    for i, twin in enumerate(twins):
        twin["question"]["choices"][4]["text"] = "far " * i + "away"
    write(folder / "train_rand_split.jsonl", twins)
    sizes = sorted(len(rows_of("commonsenseqa", folder, [split])) for split in ("train", "val"))
    assert sizes == [0, 50]


# ---- errors

READ_BY = {"problems.json": ("scienceqa", SCIENCEQA), "pid_splits.json": ("scienceqa", PID_SPLITS),
           "strategyqa_train.json": ("strategyqa", STRATEGYQA),
           "dev_rand_split.jsonl": ("commonsenseqa", COMMONSENSEQA)}
PROBLEM, DEV = ", problem '3'", "dev_rand_split.jsonl"
MALFORMED = [  # file, path to a value in it, the bad value, place named, the reason
    ("problems.json", ["3", "answer"], 3, PROBLEM, "an index into the 3 choices, got 3"),
    ("problems.json", ["3", "answer"], True, PROBLEM, "'answer' must be an integer, got True"),
    ("problems.json", ["3", "choices"], ["a"], PROBLEM, "'choices' must be 2 to 26"),
    ("problems.json", ["3"], {"image": None}, PROBLEM, "'hint' is missing"),
    ("problems.json", ["3", "choices", 1], 7, PROBLEM, "'choices' must be strings, got 7"),
    ("pid_splits.json", ["test"], ["3", "9"], ", 'test'", "'9' is no id of problems.json"),
    ("pid_splits.json", ["test"], [["3"]], "", "'test' must be strings, got ['3']"),
    ("strategyqa_train.json", [0, "facts"], [7], ", item 0", "'facts' must be strings, got 7"),
    ("strategyqa_train.json", [1, "answer"], "yes", ", item 1", "must be true or false, got 'yes'"),
    (DEV, [1, "answerKey"], "C", ":2", "one of A, B, got 'C'"),
    (DEV, [1, "question", "choices", 0], "a", ":2", "expected an object"),
    (DEV, [1, "question", "choices", 1, "label"], "A", ":2", "got A, A")]


@pytest.mark.parametrize("file, keys, bad, place, reason", MALFORMED)
def test_malformed_rows_are_named(folder, file, keys, bad, place, reason):
    """Broken if a bad row passes, ends in a KeyError, or cannot be found from the message."""
    name, value = READ_BY[file]
    at = value = copy.deepcopy(value)
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = bad
    write(folder / file, value)
    with pytest.raises(ValueError, match=re.escape(f"{folder / file}{place}: ")) as error:
        load(name, folder, "test")
    assert reason in str(error.value)


def test_half_a_character(folder):
    """Broken if a lone surrogate, which JSON may hold and UTF-8 may not, ended in a traceback."""
    item = STRATEGYQA[0] | {"question": "Is \ud800 a word?", "facts": ["\udfff is none."]}
    (folder / "strategyqa_train.json").write_text(json.dumps([item]))  # as escapes
    [(question, answer, final)] = rows_of("strategyqa", folder)
    assert (question, answer, final) == ("Is \ud800 a word?", "\udfff is none.\n#### no", "no")
    enc = load_encoding("wordproblems")
    ids, n_prompt = encode_row({"question": question, "answer": answer}, enc)
    assert enc.decode(ids[:n_prompt]) == "Question: Is \ufffd a word?\nAnswer:"


def test_the_command_says_where_the_files_go(capsys):
    """Broken if who runs the module as the scripts beside it got a traceback, or no place to look."""
    script = [sys.executable, str(ROOT / "data" / "qa.py"), "--help"]
    done = subprocess.run(script, capture_output=True, text=True, cwd="/", timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    for name, place in PUBLISHED_AT.items():
        assert f"{name}: {place}" in done.stdout and str(ROOT / "data" / name) in done.stdout


def test_truncated_missing_and_unknown_data_are_named(folder):
    """Broken if a user does not learn which file is cut or missing, where to get it, or of a typo."""
    (folder / "pid_splits.json").write_bytes(b"\n{}x")
    with pytest.raises(ValueError, match=r"pid_splits\.json:2: not JSON"):
        load("scienceqa", folder, "train")
    (folder / "pid_splits.json").unlink()
    where = "pid_splits.json does not exist: scienceqa is published at https://github.com/lupantech"
    with pytest.raises(FileNotFoundError, match=where):
        load("scienceqa", folder, "train")
    with pytest.raises(ValueError, match="data set 'sciqa' is none of scienceqa, strategyqa, strat"):
        load("sciqa", folder, "train")
    with pytest.raises(ValueError, match="'minitest' of scienceqa is none of train, val, test"):
        load("scienceqa", folder, "minitest")
