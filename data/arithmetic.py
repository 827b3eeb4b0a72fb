"""
Seeded addition and subtraction of D-digit numbers, D = 6, with the sub-task of each answer digit
(Quirke et al. 2024).

A question is two operands of D digits, the answer has D + 1 digits, and leading zeros are written
in both:

    123456+654399    #### 0777855
    700000-000001    #### 0699999

So a column stands at the same place in every row, a tokenizer that keeps digits apart makes each
digit one token, and the answer is a number that the usual grader compares by value. The most
significant digit comes first, as in Quirke et al.: that digit may hang on a carry from the last
column, so the model has to look ahead along the whole cascade (written from the end, every digit
would need its own column and one carry only).

Subtraction is drawn with x >= y, so no result is negative. Below zero the printed digits are those
of y - x, and the labels, which describe the columns of x - y, would not be theirs. The sign that
Quirke et al. write before the result would then always be "+" and is left out.

The label of an answer digit, from its column's digits x, y and the carry (or borrow) that comes in
from the right:

    addition, s = x + y    no carry: SA s < 9, SS s = 9, SC s > 9     carry: UC s != 9, US s = 9
    subtraction            no borrow: MD x > y, ME x = y, MB x < y    borrow: UB x != y, UD x = y

Through US and UD the carry or borrow cascades.

The first digit belongs to the column 0, 0 in front of the operands: SA or UC (the last carry
itself), always ME in subtraction. A column can be forced to s = 9 or x = y, where cascades run
through; 10 % of the columns are so by chance. At the default `cascade` the columns of the operands
are, in percent, SA 25, SS 11, SC 24, UC 32, US 8 and MD 28, ME 13, MB 20, UB 32, UD 6; 35 % of the
additions have a US, 28 % of the subtractions a UD, 6 % and 4 % two in a row.

Splits never share a question, nor one with its operands swapped, whatever the seeds and sizes: a
hash decides.

    python data/arithmetic.py --n 5 --seed 0 --split train     # print examples, labels under the digits
"""

import argparse
import hashlib
import random
import re

SPLITS = ("train", "val", "test")
OPS = {"add": "+", "sub": "-"}
CASCADE = 0.1  # probability that a column is forced to s = 9 (addition) or x = y (subtraction)
MAX_CASCADE = 0.4  # beyond, nearly all sums are close to 10 ** D and nearly all differences to 0


def sub_tasks(x, sign, y):
    """The labels of the columns of x + y or x - y, strings of equally many digits, left to right."""
    labels, carry = [], False
    for a, b in zip(reversed(x), reversed(y)):
        a, b = int(a), int(b)
        if sign == "+":
            s = a + b
            label = ("US" if s == 9 else "UC") if carry else "SC" if s > 9 else "SS" if s == 9 else "SA"
            carry = s + carry > 9
        else:
            label = ("UD" if a == b else "UB") if carry else "MB" if a < b else "ME" if a == b else "MD"
            carry = a - carry < b
        labels.append(label)
    return labels[::-1]


def side(question):
    """The only split that may hold this question: test (20 %), val (10 %) or train (70 %)."""
    x, sign, y = re.split(r"([+-])", question)
    bucket = hashlib.sha256(f"{min(x, y)}{sign}{max(x, y)}".encode()).digest()[0] % 10
    return "test" if bucket < 2 else "val" if bucket == 2 else "train"


def _draw(rng, op, digits, cascade):
    """One problem as a row of generate()."""
    x, y = [], []
    for _ in range(digits):
        a, b = rng.randrange(10), rng.randrange(10)
        if rng.random() < cascade:
            b = 9 - a if op == "add" else a
        x.append(str(a))
        y.append(str(b))
    x, y = "".join(x), "".join(y)
    if op == "sub" and x < y:  # equally many digits, so strings compare as numbers do
        x, y = y, x
    result = int(x) + int(y) if op == "add" else int(x) - int(y)
    final = f"{result:0{digits + 1}d}"
    answer = f"#### {final}"
    return {
        "question": x + OPS[op] + y,
        "answer": answer,
        "final": final,
        "ops": [op],
        "labels": sub_tasks("0" + x, OPS[op], "0" + y),
        "offsets": list(range(len(answer) - len(final), len(answer))),
    }


def generate(n, seed, split="train", digits=6, op=None, cascade=CASCADE):
    """
    n problems, no question twice, always the same for the same arguments (and the first m < n are
    those of n=m).

    Args:
        split: one of SPLITS.
        digits: D, digits of each operand.
        op: "add", "sub", or None for either with equal probability.
        cascade: probability, within [0, MAX_CASCADE], that a column is forced to sum to 9 or to
            have equal digits.

    Returns a list of dicts: question, answer, final (str, D + 1 digits), ops (["add"] or ["sub"]),
    labels (D + 1 sub-tasks, one per digit of final) and offsets (D + 1 ints): labels[i] is that of
    the digit answer[offsets[i]]. What the model is taught is " " + answer, there the digit is one
    character later.

    Raises ValueError on arguments out of range, and when a split has not that many questions.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    if n < 1:
        raise ValueError(f"n={n} problems: it must be at least 1")
    if digits < 1:
        raise ValueError(f"digits={digits} of an operand: it must be at least 1")
    if op is not None and op not in OPS:
        raise ValueError(f"op {op!r} is none of {', '.join(OPS)} or None for both")
    if not 0 <= cascade <= MAX_CASCADE:
        raise ValueError(f"cascade {cascade} must be within [0, {MAX_CASCADE}]")
    rng = random.Random(f"{split} {seed}")
    rows, questions, failures = [], set(), 0
    while len(rows) < n:
        kind = op or rng.choice(list(OPS))
        row = None
        while row is None:  # kind stays, so that neither operation is rarer
            failures += 1
            if failures > 5_000:
                raise ValueError(f"{split} has too few {digits}-digit problems: {len(rows)} of n={n} found")
            row = _draw(rng, kind, digits, cascade)
            if row["question"] in questions or side(row["question"]) != split:
                row = None
        failures = 0
        questions.add(row["question"])
        rows.append(row)
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description="print additions and subtractions with sub-tasks")
    parser.add_argument("--n", type=int, default=5, help="number of problems to print")
    parser.add_argument("--seed", type=int, default=0, help="seed of the generator")
    parser.add_argument("--split", default="train", choices=SPLITS, help="which split to draw from")
    parser.add_argument("--digits", type=int, default=6, help="digits of each operand")
    parser.add_argument("--op", choices=list(OPS), help="one operation only (default: both)")
    parser.add_argument("--cascade", type=float, default=CASCADE,
                        help=f"share of forced columns, 0 to {MAX_CASCADE}")
    args = parser.parse_args(argv)
    try:
        rows = generate(args.n, args.seed, args.split, args.digits, args.op, args.cascade)
    except ValueError as error:
        parser.error(str(error))
    for row in rows:
        print(f"Question: {row['question']}\nAnswer: {row['answer']}")
        print("  ".join(row["answer"][i] for i in row["offsets"]))
        print(" ".join(row["labels"]) + "\n")


if __name__ == "__main__":
    main()
