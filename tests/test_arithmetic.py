"""Addition and subtraction: true results, exact sub-task labels on exact tokens, splits that don't leak."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from data import arithmetic
from data.arithmetic import generate, sub_tasks
from data.tokens import encode_row, load_encoding
from eval import grade

SMOLLM2_DIR = Path(__file__).parents[1] / "data" / "smollm2"
needs_smollm2 = pytest.mark.skipif(not SMOLLM2_DIR.is_dir(), reason="run python data/smollm2.py")


def operands(row):
    """(x, sign, y) of a question, x and y as ints."""
    x, sign, y = re.fullmatch(r"(\d+)([+-])(\d+)", row["question"]).groups()
    return int(x), sign, int(y)


@pytest.fixture(scope="module")
def rows():
    short = generate(500, 3, "val", digits=3, cascade=0)
    return generate(1000, 1) + generate(1000, 2, "test", cascade=0.4) + short


@pytest.mark.parametrize("problem, labels", [
    ("0123456 + 0654399", "SA SA SA SA UC UC SC"),  # 6+9 makes a carry, 5+9+1 too, 4+3+1 ends it
    ("0045678 + 0054322", "SA UC US US US US SC"),  # 8+2 starts a cascade through four nines
    ("0555555 + 0444444", "SA SS SS SS SS SS SS"),  # nines, but nothing to cascade
    ("0700000 - 0000001", "ME UB UD UD UD UD MB"),  # 0-1 borrows through four equal columns
    ("0654321 - 0123456", "ME MD MD UB UB UB MB"),  # 1-6, 2-5, 3-4 borrow, 4-1-3 = 0 does not
    ("0940000 - 0050000", "ME UB MB ME ME ME ME"),  # 4-5 borrows from the 9, which ends it
])
def test_labels_worked_by_hand(problem, labels):
    """Broken if a carry, a borrow, a cascade or a tie (s = 9, x = y) is labelled otherwise."""
    assert sub_tasks(*problem.split()) == labels.split()


def test_results_of_every_row(rows):
    """Broken if a result is wrong or negative, or there is not one label for each of its digits."""
    for row in rows:
        x, sign, y = operands(row)
        result = {"+": x + y, "-": x - y}[sign]
        assert int(row["final"]) == result >= 0 and row["ops"] == [{"+": "add", "-": "sub"}[sign]]
        assert row["answer"] == "#### " + row["final"]
        assert len(row["final"]) == len(row["labels"]) == len(row["question"]) // 2 + 1
    for row in rows[:50]:
        assert all(grade(f"#### {int(row['final'])}", row["final"]).values())  # without zeros


@pytest.mark.parametrize("name", ["wordproblems", pytest.param(SMOLLM2_DIR, marks=needs_smollm2)])
def test_each_answer_digit_is_one_supervised_token(name, rows):
    """Broken if offsets are off by one, or digits merge: a label would be another digit's."""
    enc = load_encoding(name)
    for row in rows[:200] + rows[-20:]:
        ids, n_prompt = encode_row(row, enc)
        tokens = [enc.decode([i]) for i in ids[n_prompt:-1]]
        starts = [len("".join(tokens[:i])) for i in range(len(tokens))]  # characters of " " + answer
        for digit, offset in zip(row["final"], row["offsets"], strict=True):
            assert tokens[starts.index(offset + 1)] == digit
        prompt = [enc.decode([i]) for i in ids[:n_prompt]]
        assert [t for t in prompt if t.isdigit()] == [c for c in row["question"] if c.isdigit()]


def test_splits_are_disjoint():
    """Broken if a problem, or its operands swapped, is in two splits (chance would do it)."""
    seen = {}
    for split, n in dict(train=3000, val=400, test=800).items():
        rows = generate(n, 0, split, digits=2) + generate(n, 1, split, digits=2, cascade=0.4)
        seen[split] = {(*sorted((x, y)), sign) for x, sign, y in map(operands, rows)}
    assert not seen["train"] & seen["val"]
    assert not (seen["train"] | seen["val"]) & seen["test"]


def test_the_benchmark_never_changes():
    """Broken if the held-out rows of published numbers change: that must be a conscious change here."""
    for split, digest in dict(val="86e8f88c3400651e", test="1fce9fcc2d201b04").items():
        rows = generate(100, 0, split)
        assert hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] == digest
        assert generate(40, 0, split) == rows[:40] != generate(40, 1, split)
    assert len({row["question"] for row in generate(3000, 0, digits=2)}) == 3000


def test_command_line(capsys):
    """Broken if a flag is ignored, or a printed label is not under its digit."""
    [row] = generate(1, 4, "test", 5, "sub", 0.3)
    arithmetic.main("--n 1 --seed 4 --split test --digits 5 --op sub --cascade 0.3".split())
    digits, labels = "  ".join(row["final"]), " ".join(row["labels"])
    text = f"Question: {row['question']}\nAnswer: {row['answer']}\n{digits}\n{labels}\n\n"
    assert "-" in row["question"] and capsys.readouterr().out == text
