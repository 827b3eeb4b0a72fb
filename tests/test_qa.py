"""The readers of ScienceQA, StrategyQA and CommonsenseQA, on tiny files and on the published ones."""

import copy
import json
import os
import re
from pathlib import Path

import pytest

from data.qa import SPLITS, load

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
    {"question": "Do mail carriers need multiple uniforms?", "answer": True, "facts": []},
]
PLACES = zip("ABCDE", ("bank", "library", "department store", "mall", "new york"))
DOOR = "A revolving door is convenient, but also a security measure at a what?"
COMMONSENSEQA = [
    {"answerKey": "E", "question": {
        "stem": DOOR, "choices": [{"label": c, "text": place} for c, place in PLACES]}},
    {"answerKey": "B", "question": {
        "stem": "What do people aim to do at work? #######",
        "choices": [{"label": "A", "text": "race\u2028track"},
                    {"label": "B", "text": "populated areas"}]}},
]


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
    """Rows of these splits together, without "where"; a tiny file may have none for one of them."""
    rows = []
    for split in splits:
        try:
            rows += load(name, folder, split)
        except ValueError as error:
            assert f"has no rows for {split}" in str(error)
    return [{key: row[key] for key in ("question", "answer", "final")} for row in rows]


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
    question = "Is a rock a mineral?\n(A) yes\n(B) no\n(C) # ### A"
    expected = {"question": question, "answer": "#### C", "final": "C"}
    assert rows_of("scienceqa", folder, ["test"]) == [expected]
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="has no rows for val"):  # the only one has an image
        load("scienceqa", folder, "val")


def test_strategyqa_by_hand(folder):
    """Broken if true is not yes, facts are lost, needed, or leave a second '####'."""
    answer = "It takes from Judo. Judo is not ### from the # ### Colosseum.\n#### no"
    assert sorted(rows_of("strategyqa", folder), key=lambda row: row["final"]) == [
        {"question": COLOSSEUM, "answer": answer, "final": "no"},
        {"question": STRATEGYQA[1]["question"], "answer": "#### yes", "final": "yes"},
    ]
    filtered = {"qid": "1", "term": "Tea", "question": "Is tea wet?", "answer": True}  # no facts
    write(folder / "strategyqa_train_filtered.json", [filtered])
    expected = {"question": "Is tea wet?", "answer": "#### yes", "final": "yes"}
    assert rows_of("strategyqa_filtered", folder) == [expected]


def test_commonsenseqa_by_hand(folder):
    """Broken if test is not the published dev file, or if a letter or a choice moves."""
    choices = "(A) bank\n(B) library\n(C) department store\n(D) mall\n(E) new york"
    first = {"question": f"{DOOR}\n{choices}", "answer": "#### E", "final": "E"}
    question = "What do people aim to do at work? # # # # ###\n(A) race track\n(B) populated areas"
    second = {"question": question, "answer": "#### B", "final": "B"}
    assert rows_of("commonsenseqa", folder, ["test"]) == [first, second]
    assert rows_of("commonsenseqa", folder, ["train", "val"]) == [first]
    where = [row["where"] for row in load("commonsenseqa", folder, "test")]
    assert where == [f"{folder}/dev_rand_split.jsonl:{line}" for line in (1, 2)]


PUBLISHED = {  # rows of train, val, test: carved, but for ScienceQA's 465 without an image (of 900)
    "scienceqa": (273, 99, 93),
    "strategyqa": (1554, 259, 477),
    "strategyqa_filtered": (1932, 306, 583),
    "commonsenseqa": (8775, 966, 1221),
}


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
    explained = sum(not row["answer"].startswith("####") for row in rows)
    assert (explained > 0.8 * len(rows)) == (name in ("scienceqa", "strategyqa"))


# ---- splits


def many(folder, order=1):
    """600 questions in each data set that is carved, in the given order."""
    questions = [f"Is {chr(97 + i % 26)}{chr(97 + i // 26)} a word?" for i in range(600)][::order]
    write(folder / "strategyqa_train.json", [STRATEGYQA[0] | {"question": q} for q in questions])
    first = COMMONSENSEQA[0]
    items = [first | {"question": first["question"] | {"stem": q}} for q in questions]
    write(folder / "train_rand_split.jsonl", items)


@pytest.mark.parametrize("name, shares", [
    ("strategyqa", dict(train=0.7, val=0.1, test=0.2)),
    ("commonsenseqa", dict(train=0.9, val=0.1)),
])
def test_carving(folder, name, shares):
    """Broken if a row is in two splits or in none, or changes its split with the order of the file."""
    many(folder)
    splits = {split: [row["question"] for row in load(name, folder, split)] for split in shares}
    everything = [question for questions in splits.values() for question in questions]
    assert len(everything) == len(set(everything)) == 600
    assert all(abs(len(splits[split]) / 600 - share) < 0.05 for split, share in shares.items())
    many(folder, order=-1)
    again = {split: [row["question"] for row in load(name, folder, split)] for split in shares}
    assert {split: questions[::-1] for split, questions in again.items()} == splits


def test_carving_never_changes(folder):
    """Broken if the hash changes: rows trained on would be tested on; or if the test is carved, too."""
    many(folder)
    val = [row["question"][3:5] for row in load("strategyqa", folder, "val")]
    assert val[:5] == ["pa", "fb", "kb", "qb", "sb"]
    assert [row["question"][3:5] for row in load("commonsenseqa", folder, "val")] == val
    (folder / "train_rand_split.jsonl").rename(folder / "dev_rand_split.jsonl")
    assert len(load("commonsenseqa", folder, "test")) == 600  # everybody reports on the whole file


def test_the_same_question_is_on_one_side(folder):
    """Broken if twins with other choices are told apart: the stem would be in train and in val."""
    twins = []
    for i in range(50):
        twin = copy.deepcopy(COMMONSENSEQA[0])
        twin["question"]["choices"][4]["text"] = f"place {i}"
        twins.append(twin)
    write(folder / "train_rand_split.jsonl", twins)
    sizes = sorted(len(rows_of("commonsenseqa", folder, [split])) for split in ("train", "val"))
    assert sizes == [0, 50]


# ---- errors

READ_BY = {
    "problems.json": ("scienceqa", "test", SCIENCEQA),
    "pid_splits.json": ("scienceqa", "test", PID_SPLITS),
    "strategyqa_train.json": ("strategyqa", "val", STRATEGYQA),
    "dev_rand_split.jsonl": ("commonsenseqa", "test", COMMONSENSEQA),
}
PROBLEM, DEV = ", problem '3'", "dev_rand_split.jsonl"
MALFORMED = [  # file, path to a value in it, the bad value (DELETE: none), place named, the reason
    ("problems.json", ["3", "answer"], 3, PROBLEM, "an index into the 3 choices, got 3"),
    ("problems.json", ["3", "answer"], True, PROBLEM, "'answer' must be an integer, got True"),
    ("problems.json", ["3", "choices"], ["a"], PROBLEM, "'choices' must be 2 to 26"),
    ("problems.json", ["3", "solution"], "DELETE", PROBLEM, "'solution' is missing"),
    ("problems.json", ["3", "image"], 0, PROBLEM, "'image' must be a string or null, got 0"),
    ("pid_splits.json", ["test"], ["3", "9"], ", 'test'", "'9' is no id of problems.json"),
    ("strategyqa_train.json", [1, "answer"], "yes", ", item 1", "must be true or false, got 'yes'"),
    ("strategyqa_train.json", [0, "facts"], "a fact", ", item 0", "'facts' must be an array"),
    ("strategyqa_train.json", [], {}, "", "expected an array, got {}"),
    (DEV, [1, "answerKey"], "C", ":2", "one of A, B, got 'C'"),
    (DEV, [1, "question", "choices", 0], "a", ":2", "expected an object"),
    (DEV, [1, "question", "choices", 1, "label"], "A", ":2", "got A, A"),
    (DEV, [0, "question", "choices", 1, "text"], "", ":1", "'text' must"),
]


@pytest.mark.parametrize("file, keys, bad, place, reason", MALFORMED)
def test_malformed_rows_are_named(folder, file, keys, bad, place, reason):
    """Broken if a bad row passes, ends in a KeyError, or cannot be found from the message."""
    name, split, value = READ_BY[file]
    value = {"": copy.deepcopy(value)}
    *keys, last = ["", *keys]
    at = value
    for key in keys:
        at = at[key]
    if bad == "DELETE":
        del at[last]
    else:
        at[last] = bad
    write(folder / file, value[""])
    with pytest.raises(ValueError) as error:
        load(name, folder, split)
    message = str(error.value)
    assert message.startswith(f"{folder / file}{place}: ") and reason in message, message


@pytest.mark.parametrize("name, file, where", [
    ("scienceqa", "pid_splits.json", "https://github.com/lupantech/ScienceQA"),
    ("strategyqa", "strategyqa_train.json", "https://allenai.org/data/strategyqa"),
    ("commonsenseqa", "train_rand_split.jsonl", "https://www.tau-nlp.org/commonsenseqa"),
])
def test_truncated_and_missing_files_are_named(folder, name, file, where):
    """Broken if a user does not learn which file is cut or missing, and where to get it."""
    (folder / file).write_bytes(b"\n{}x")
    with pytest.raises(ValueError, match=re.escape(f"{file}:2: not JSON")):
        load(name, folder, "train")
    (folder / file).unlink()
    message = re.escape(f"{file} does not exist: {name} is published at {where}")
    with pytest.raises(FileNotFoundError, match=message):
        load(name, folder, "train")


def test_unknown_names_are_refused(folder):
    """Broken if a typo falls through to another data set or split."""
    with pytest.raises(ValueError, match="data set 'sciqa' is none of scienceqa, strategyqa, strat"):
        load("sciqa", folder, "train")
    for name in ("scienceqa", "strategyqa", "commonsenseqa"):
        with pytest.raises(ValueError, match=f"'minitest' of {name} is none of train, val, test"):
            load(name, folder, "minitest")
