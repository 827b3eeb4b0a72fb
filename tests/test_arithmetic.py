"""Addition and subtraction: true results, exact sub-task labels on exact tokens, splits that don't leak."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data import arithmetic
from data.arithmetic import generate, sub_tasks
from data.tokens import encode_row, load_encoding
from eval import grade

ROOT = Path(__file__).parents[1]
SMOLLM2_DIR = ROOT / "data" / "smollm2"
needs_smollm2 = pytest.mark.skipif(not SMOLLM2_DIR.is_dir(), reason="run python data/smollm2.py")


def operands(row):
    """(x, sign, y, result) of a question, all but the sign as ints."""
    x, sign, y = re.fullmatch(r"(\d+)([+-])(\d+)", row["question"]).groups()
    x, y = int(x), int(y)
    return x, sign, y, x + y if sign == "+" else x - y


def reference(x, sign, y, digits):
    """The labels from whole numbers: the last i digits alone decide what comes into column i."""
    labels = []
    for i in range(digits, -1, -1):
        low_x, low_y, p, q = x % 10**i, y % 10**i, x // 10**i % 10, y // 10**i % 10
        if sign == "+":
            no_carry = "SA" if p + q < 9 else "SS" if p + q == 9 else "SC"
            carried = "US" if p + q == 9 else "UC"
            labels.append(carried if low_x + low_y >= 10**i else no_carry)
        else:
            no_borrow = "MD" if p > q else "ME" if p == q else "MB"
            borrowed = "UD" if p == q else "UB"
            labels.append(borrowed if low_x < low_y else no_borrow)
    return labels


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


def test_results_and_labels_of_every_row(rows):
    """Broken if a result is wrong or negative, or labels are not those of carries in whole numbers."""
    for row in rows:
        x, sign, y, result = operands(row)
        assert int(row["final"]) == result >= 0 and row["ops"] == [{"+": "add", "-": "sub"}[sign]]
        assert row["answer"] == "#### " + row["final"]
        digits = len(row["question"]) // 2 + 1
        assert len(row["final"]) == len(row["labels"]) == len(row["offsets"]) == digits
        assert row["labels"] == reference(x, sign, y, digits - 1), row
        assert all(grade(f"#### {result}", row["final"]).values())  # without zeros
    seen = {label for row in rows for label in row["labels"]}
    assert seen == set("SA SS SC UC US MD ME MB UB UD".split())


@pytest.mark.parametrize("name", ["wordproblems", pytest.param(SMOLLM2_DIR, marks=needs_smollm2)])
def test_each_answer_digit_is_one_supervised_token(name, rows):
    """Broken if offsets are off by one, or digits merge: a label would be another digit's."""
    enc = load_encoding(name)
    for row in rows[:200] + rows[-20:]:
        ids, n_prompt = encode_row(row, enc)
        tokens = [enc.decode([i]) for i in ids[n_prompt:-1]]
        starts = [len("".join(tokens[:i])) for i in range(len(tokens))]  # characters of " " + answer
        *_, result = operands(row)
        for place, offset in zip(reversed(range(len(row["labels"]))), row["offsets"]):
            assert tokens[starts.index(offset + 1)] == str(result // 10**place % 10)
        prompt = [enc.decode([i]) for i in ids[:n_prompt]]
        assert [t for t in prompt if t.isdigit()] == [c for c in row["question"] if c.isdigit()]


def test_splits_are_disjoint():
    """Broken if a problem, or its operands swapped, is in two splits (chance would do it)."""
    seen = {}
    for split, n in dict(train=3000, val=400, test=800).items():
        rows = generate(n, 0, split, digits=2) + generate(n, 1, split, digits=2, cascade=0.4)
        seen[split] = {(*sorted((x, y)), sign) for x, sign, y, _ in map(operands, rows)}
    assert not seen["train"] & seen["val"]
    assert not (seen["train"] | seen["val"]) & seen["test"]


def test_the_benchmark_never_changes():
    """Broken if everybody gets other rows than in published numbers, by hash seed, n or a change here."""
    for split, digest in dict(val="86e8f88c3400651e", test="1fce9fcc2d201b04").items():
        code = f"""if True:
            import hashlib, json
            from data.arithmetic import generate
            rows = json.dumps(generate(120, 0, {split!r})[:100])
            print(hashlib.sha256(rows.encode()).hexdigest()[:16])"""
        run, env = [sys.executable, "-c", code], os.environ | {"PYTHONHASHSEED": "123"}
        out = subprocess.run(run, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        assert out.stdout.strip() == digest
    assert generate(50, 1) != generate(50, 2)
    assert len({row["question"] for row in generate(3000, 0, digits=2)}) == 3000


@pytest.mark.parametrize("cascade", [0, 0.4])
def test_forced_columns(cascade):
    """Broken if `op` is ignored, or `cascade` is not the share of columns forced beyond chance."""
    for op in ("add", "sub"):
        rows = generate(1500, 0, op=op, cascade=cascade)
        assert all(row["ops"] == [op] for row in rows)
        columns = [zip(*re.split("[+-]", row["question"])) for row in rows]
        tied = [int(a) + int(b) == 9 if op == "add" else a == b for row in columns for a, b in row]
        expected = cascade + (1 - cascade) * 0.1
        assert sum(tied) / len(tied) == pytest.approx(expected, abs=0.015)  # 3 standard errors


def test_generator_refuses():
    """Broken if an impossible wish ends in an endless loop or in rows that nobody asked for."""
    with pytest.raises(ValueError, match=r"cascade 0.41 must be within \[0, 0.4\]"):
        generate(3, 0, cascade=0.41)
    with pytest.raises(ValueError, match=r"train has too few 1-digit problems: \d+ of n=200 found"):
        generate(200, 0, digits=1)


def test_command_line(capsys):
    """Broken if a printed label is not under its digit, or a flag is ignored."""
    arithmetic.main("--n 3 --seed 4 --split test --digits 5 --op sub --cascade 0.3".split())
    printed = capsys.readouterr().out.strip().split("\n\n")
    expected = generate(3, 4, "test", 5, "sub", 0.3)
    assert printed == [f"Question: {row['question']}\nAnswer: {row['answer']}\n"
                       + "  ".join(row["final"]) + "\n" + " ".join(row["labels"])
                       for row in expected]
