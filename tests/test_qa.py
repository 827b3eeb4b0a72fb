"""The readers of ScienceQA, StrategyQA and CommonsenseQA, on tiny files in their published layouts."""

import copy
import json
import re

import pytest

from data.qa import SPLITS, load
from data.tokens import read_jsonl

SCIENCEQA = {
    "1": {
        "question": "Which state is farthest north?",
        "choices": ["West Virginia", "Louisiana", "Arizona", "Oklahoma"],
        "answer": 0,
        "hint": "",
        "image": "image.png",
        "task": "closed choice",
        "grade": "grade2",
        "subject": "social science",
        "topic": "geography",
        "category": "Geography",
        "skill": "Read a map: cardinal directions",
        "lecture": "Maps have four cardinal directions.",
        "solution": "West Virginia is farthest north.",
        "split": "train",
    },
    "2": {
        "question": "Which trait did the seal inherit?",
        "choices": ["its  scar", "its thick\nfur "],
        "answer": 1,
        "hint": "A seal swam into a rock. It has thick fur.\nIt has a scar.",
        "image": None,
        "task": "closed choice",
        "grade": "grade4",
        "subject": "natural science",
        "topic": "biology",
        "category": "Genes to traits",
        "skill": "Inherited and acquired traits",
        "lecture": "Traits can be inherited.",
        "solution": "#### Fur\nThick fur is inherited. #####",
        "split": "train",
    },
    "3": {
        "question": "Is a rock a mineral?\n",
        "choices": ["yes", "no", "#### A"],
        "answer": 2,
        "hint": "",
        "image": None,
        "task": "yes or no",
        "grade": "grade3",
        "subject": "natural science",
        "topic": "earth-science",
        "category": "Rocks and minerals",
        "skill": "Identify minerals",
        "lecture": "",
        "solution": "",
        "split": "test",
    },
}
PID_SPLITS = {"train": ["2", "1"], "val": ["1"], "test": ["3"], "trainval": ["1", "2"], "minitest": []}

STRATEGYQA = [
    {
        "qid": "4fd64bb6ce5b78ab20b6",
        "term": "Mixed martial arts",
        "description": "full contact combat sport",
        "question": "Is Mixed martial arts totally original from Roman Colosseum games?",
        "answer": False,
        "facts": ["It takes from Judo.", " Judo is not ### from the #### Colosseum. ", ""],
        "decomposition": ["Which sports does it take from?", "Is #1 from the Colosseum?"],
        "evidence": [[[["Mixed martial arts-1"]], ["operation"]]],
    },
    {
        "qid": "aa5e1a4ab6d3e0b2c4f1",
        "term": "Mail carrier",
        "description": "employee of a post",
        "question": "Do mail carriers need multiple uniforms?",
        "answer": True,
        "facts": [],
        "decomposition": ["What seasons are there?"],
        "evidence": [[["no_evidence"]]],
    },
]

COMMONSENSEQA = [
    {
        "answerKey": "E",
        "id": "1f74ee5d0f4b1d5a0b8a6b5c0f6d7e8f",
        "question": {
            "question_concept": "revolving door",
            "choices": [
                {"label": "A", "text": "bank"},
                {"label": "B", "text": "library"},
                {"label": "C", "text": "department store"},
                {"label": "D", "text": "mall"},
                {"label": "E", "text": "new york"},
            ],
            "stem": "A revolving door is convenient, but also a security measure at a what?",
        },
    },
    {
        "answerKey": "B",
        "id": "0a",
        "question": {
            "question_concept": "people",
            "choices": [{"label": "A", "text": "race\u2028track"}, {"label": "B", "text": "populated areas"}],
            "stem": "What do people aim to do at work? #######",
        },
    },
]


def write(path, value):
    """A JSON file; for .jsonl, one line for each item."""
    text = "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in value) if path.suffix == ".jsonl" else None
    path.write_text(text if text is not None else json.dumps(value, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """All data sets in one folder, as published."""
    write(tmp_path / "problems.json", SCIENCEQA)
    write(tmp_path / "pid_splits.json", PID_SPLITS)
    write(tmp_path / "strategyqa_train.json", STRATEGYQA)
    write(tmp_path / "train_rand_split.jsonl", COMMONSENSEQA[:1])
    write(tmp_path / "dev_rand_split.jsonl", COMMONSENSEQA)
    return tmp_path


def all_rows(name, folder, splits=SPLITS):
    """Rows of these splits together; a tiny file may have none for one of them."""
    rows = []
    for split in splits:
        try:
            rows += load(name, folder, split)
        except ValueError as error:
            assert f"has no rows for {split}" in str(error)
    return rows


# ---- what a row becomes


def test_scienceqa_by_hand(folder, capsys):
    """Broken if hint, choices, letter or solution go astray, or if rows with an image stay in or vanish unreported."""
    assert load("scienceqa", folder, "train") == [
        {
            "question": "A seal swam into a rock. It has thick fur.\nIt has a scar.\n"
            "Which trait did the seal inherit?\n(A) its scar\n(B) its thick fur",
            "answer": "# ### Fur\nThick fur is inherited. # # ###\n#### B",
            "final": "B",
        }
    ]
    assert capsys.readouterr().err == "scienceqa/train: 1 of 2 rows have an image: left out\n"
    assert load("scienceqa", folder, "test") == [
        {"question": "Is a rock a mineral?\n(A) yes\n(B) no\n(C) # ### A", "answer": "#### C", "final": "C"}
    ]
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="has no rows for val"):  # the only one has an image
        load("scienceqa", folder, "val")


def test_strategyqa_by_hand(folder):
    """Broken if true is not yes, or if the facts are lost or leave a second '####'."""
    rows = sorted(all_rows("strategyqa", folder), key=lambda row: row["final"])
    assert rows == [
        {
            "question": "Is Mixed martial arts totally original from Roman Colosseum games?",
            "answer": "It takes from Judo. Judo is not ### from the # ### Colosseum.\n#### no",
            "final": "no",
        },
        {"question": "Do mail carriers need multiple uniforms?", "answer": "#### yes", "final": "yes"},
    ]


def test_strategyqa_filtered_may_have_no_facts(folder):
    """Broken if the filtered questions are mixed into the others, or refused for want of facts."""
    item = {"qid": "1", "term": "Tea", "description": "drink", "question": "Is tea wet?", "answer": True}
    write(folder / "strategyqa_train_filtered.json", [item])
    assert all_rows("strategyqa_filtered", folder) == [
        {"question": "Is tea wet?", "answer": "#### yes", "final": "yes"}
    ]
    assert len(all_rows("strategyqa", folder)) == 2


def test_commonsenseqa_by_hand(folder):
    """Broken if test is not the published dev file, or if a letter or a choice moves."""
    first = {
        "question": "A revolving door is convenient, but also a security measure at a what?\n"
        "(A) bank\n(B) library\n(C) department store\n(D) mall\n(E) new york",
        "answer": "#### E",
        "final": "E",
    }
    assert load("commonsenseqa", folder, "test") == [
        first,
        {
            "question": "What do people aim to do at work? # # # # ###\n(A) race track\n(B) populated areas",
            "answer": "#### B",
            "final": "B",
        },
    ]
    assert all_rows("commonsenseqa", folder, ("train", "val")) == [first]


@pytest.mark.parametrize("hashes", range(1, 20))
def test_no_source_can_fake_the_final_answer(folder, tmp_path, hashes):
    """Broken if any run of # in a source survives as '####': the grader would read the answer behind it."""
    items = copy.deepcopy(STRATEGYQA)
    items[0]["facts"] = ["#" * hashes, "#" * hashes + " yes"]
    write(folder / "strategyqa_train.json", items)
    rows = all_rows("strategyqa", folder)
    write(tmp_path / "rows.jsonl", rows)
    assert all(row["answer"].count("####") == 1 for row in rows)
    assert sorted(row["final"] for row in read_jsonl(tmp_path / "rows.jsonl")) == ["no", "yes"]


# ---- splits


def many(folder, order=1):
    """600 questions in each data set that is carved, in the given order."""
    questions = [f"Is {chr(97 + i % 26)}{chr(97 + i // 26)} a word?" for i in range(600)][::order]
    write(folder / "strategyqa_train.json", [STRATEGYQA[0] | {"question": q} for q in questions])
    items = [COMMONSENSEQA[0] | {"question": COMMONSENSEQA[0]["question"] | {"stem": q}} for q in questions]
    write(folder / "train_rand_split.jsonl", items)


@pytest.mark.parametrize(
    "name, shares", [("strategyqa", dict(train=0.7, val=0.1, test=0.2)), ("commonsenseqa", dict(train=0.9, val=0.1))]
)
def test_carving(folder, name, shares):
    """Broken if a row is in two splits or in none, or changes its split with the order of the file."""
    many(folder)
    splits = {split: [row["question"] for row in load(name, folder, split)] for split in shares}
    everything = [question for questions in splits.values() for question in questions]
    assert len(everything) == len(set(everything)) == 600
    assert all(abs(len(splits[split]) / 600 - share) < 0.05 for split, share in shares.items())
    many(folder, order=-1)
    assert {split: [row["question"] for row in load(name, folder, split)][::-1] for split in shares} == splits


def test_carving_never_changes(folder):
    """Broken if the hash changes: rows that were trained on would be tested on."""
    many(folder)
    val = [row["question"][3:5] for row in load("strategyqa", folder, "val")]
    assert val[:5] == ["pa", "fb", "kb", "qb", "sb"]
    assert [row["question"][3:5] for row in load("commonsenseqa", folder, "val")] == val


def test_the_published_dev_file_is_the_whole_test(folder):
    """Broken if test rows are carved, too: results would be on a part of the file that everybody uses."""
    many(folder)
    (folder / "train_rand_split.jsonl").rename(folder / "dev_rand_split.jsonl")
    assert len(load("commonsenseqa", folder, "test")) == 600


def test_the_same_question_is_on_one_side(folder):
    """Broken if twins with other choices are told apart: the stem would be in train and in val."""
    question = COMMONSENSEQA[0]["question"]
    twins = [
        COMMONSENSEQA[0] | {"id": str(i), "question": question | {"choices": question["choices"][:4] + [last]}}
        for i, last in enumerate({"label": "E", "text": f"place {j}"} for j in range(50))
    ]
    write(folder / "train_rand_split.jsonl", twins)
    sizes = sorted(len(all_rows("commonsenseqa", folder, (split,))) for split in ("train", "val"))
    assert sizes == [0, 50]


# ---- errors

READ_BY = {
    "problems.json": ("scienceqa", "test", SCIENCEQA),
    "pid_splits.json": ("scienceqa", "test", PID_SPLITS),
    "strategyqa_train.json": ("strategyqa", "val", STRATEGYQA),
    "dev_rand_split.jsonl": ("commonsenseqa", "test", COMMONSENSEQA),
}
MALFORMED = [  # file, path to a value in it, the bad value (DELETE: none), place named, what is expected
    ("problems.json", ["3", "answer"], 3, "problem '3'", "an index into the 3 choices, got 3"),
    ("problems.json", ["3", "answer"], -1, "problem '3'", "an index into the 3 choices, got -1"),
    ("problems.json", ["3", "answer"], True, "problem '3'", "'answer' must be an integer, got True"),
    ("problems.json", ["3", "answer"], "C", "problem '3'", "'answer' must be an integer, got 'C'"),
    ("problems.json", ["3", "choices"], [], "problem '3'", "'choices' must be 2 to 26"),
    ("problems.json", ["3", "choices"], ["a", "b", " "], "problem '3'", "none of them empty"),
    ("problems.json", ["3", "choices"], ["a", 7, "c"], "problem '3'", "an array of strings"),
    ("problems.json", ["3", "question"], 7, "problem '3'", "'question' must be a string, got 7"),
    ("problems.json", ["3", "question"], " \n", "problem '3'", "'question' must not be empty"),
    ("problems.json", ["3", "hint"], None, "problem '3'", "'hint' must be a string, got None"),
    ("problems.json", ["3", "solution"], "DELETE", "problem '3'", "'solution' is missing"),
    ("problems.json", ["3", "image"], "DELETE", "problem '3'", "'image' is missing"),
    ("problems.json", ["3", "image"], 0, "problem '3'", "'image' must be a string or null, got 0"),
    ("problems.json", ["3"], [], "problem '3'", "expected an object, got []"),
    ("problems.json", [], [], "", "expected an object, got []"),
    ("pid_splits.json", ["test"], ["3", "9"], "'test'", "ids of problems.json, '9' is none"),
    ("pid_splits.json", ["test"], [3], "", "'test' must be an array of strings, got [3]"),
    ("pid_splits.json", ["test"], "DELETE", "", "'test' is missing"),
    ("strategyqa_train.json", [1, "answer"], "yes", "item 1", "must be true or false, got 'yes'"),
    ("strategyqa_train.json", [1, "answer"], 1, "item 1", "'answer' must be true or false, got 1"),
    ("strategyqa_train.json", [1, "answer"], "DELETE", "item 1", "'answer' is missing"),
    ("strategyqa_train.json", [0, "facts"], "a fact", "item 0", "'facts' must be an array"),
    ("strategyqa_train.json", [0, "facts", 1], 7, "item 0", "'facts' must be an array of strings"),
    ("strategyqa_train.json", [1, "question"], "", "item 1", "'question' must not be empty"),
    ("strategyqa_train.json", [], {}, "", "expected an array, got {}"),
    ("dev_rand_split.jsonl", [1, "answerKey"], "C", "line 2", "one of A, B, got 'C'"),
    ("dev_rand_split.jsonl", [1, "answerKey"], "DELETE", "line 2", "'answerKey' is missing"),
    ("dev_rand_split.jsonl", [1, "question"], "?", "line 2", "'question' must be an object"),
    ("dev_rand_split.jsonl", [1, "question", "stem"], 1, "line 2", "'stem' must be a string"),
    ("dev_rand_split.jsonl", [1, "question", "choices"], [], "line 2", "must be 2 to 26"),
    ("dev_rand_split.jsonl", [1, "question", "choices", 0], "a", "line 2", "expected an object"),
    ("dev_rand_split.jsonl", [1, "question", "choices", 1, "label"], "A", "line 2", "got A, A"),
    ("dev_rand_split.jsonl", [0, "question", "choices", 1, "text"], "", "line 1", "'text' must"),
    ("dev_rand_split.jsonl", [1], [], "line 2", "expected an object, got []"),
]  # fmt: skip


@pytest.mark.parametrize("file, keys, bad, place, expected", MALFORMED)
def test_malformed_rows_are_named(folder, file, keys, bad, place, expected):
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
    assert message.startswith(f"{folder / file}{', ' * bool(place)}{place}: ") and expected in message, message
    assert error.value.__suppress_context__ or error.value.__context__ is None  # one error, not a chain


@pytest.mark.parametrize(
    "name, file, content, message",
    [
        ("scienceqa", "problems.json", b'{"1": ', r"problems\.json: expected JSON: Expecting value"),
        ("scienceqa", "pid_splits.json", b"\xff{}", r"pid_splits\.json: expected text in UTF-8"),
        ("strategyqa", "strategyqa_train.json", b"", r"strategyqa_train\.json: expected JSON: Expecting value"),
        ("commonsenseqa", "train_rand_split.jsonl", b"", r"train_rand_split\.jsonl, line 1: expected JSON"),
        ("commonsenseqa", "train_rand_split.jsonl", b"{}x\n", r"train_rand_split\.jsonl, line 1: expected JSON"),
    ],
)
def test_malformed_files_are_named(folder, name, file, content, message):
    """Broken if a truncated download ends in a traceback that does not name it."""
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(name, folder, "train")


def test_an_empty_line_is_named(folder):
    """Broken if a line in the middle is skipped: line numbers and rows would be off unnoticed."""
    lines = (folder / "dev_rand_split.jsonl").read_text(encoding="utf-8").split("\n")
    (folder / "dev_rand_split.jsonl").write_text("\n".join([lines[0], "", lines[1]]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"dev_rand_split\.jsonl, line 2: expected JSON"):
        load("commonsenseqa", folder, "test")


@pytest.mark.parametrize(
    "name, file, where",
    [
        ("scienceqa", "problems.json", "https://github.com/lupantech/ScienceQA"),
        ("scienceqa", "pid_splits.json", "https://github.com/lupantech/ScienceQA"),
        ("strategyqa", "strategyqa_train.json", "https://allenai.org/data/strategyqa"),
        ("commonsenseqa", "train_rand_split.jsonl", "https://www.tau-nlp.org/commonsenseqa"),
    ],
)
def test_missing_files_say_where_they_are_published(folder, name, file, where):
    """Broken if a user without the files does not learn which one is missing and where to get it."""
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"{file} does not exist: {name} is published at {where}")):
        load(name, folder, "train")


def test_unknown_names_are_refused(folder):
    """Broken if a typo falls through to another data set or split."""
    with pytest.raises(ValueError, match="data set 'sciqa' is none of scienceqa, strategyqa, strat"):
        load("sciqa", folder, "train")
    for name in ("scienceqa", "strategyqa", "commonsenseqa"):
        with pytest.raises(ValueError, match=f"split 'minitest' of {name} is none of train, val, test"):
            load(name, folder, "minitest")
