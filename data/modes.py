"""
Questions answered in several ways, where nothing in the question says which: data on which a discrete
code can carry what the prompt cannot (README, "What codes can carry").

    worked   the whole solution, as it is
    terse    its calculations alone: <<12+7=19>> a line, then #### 19
    short    the last line alone: #### 19
    wrong    the whole solution, one result wrong, the first if possible, and carried through to the end

`--data modes` is word problems told worked or short, `modes3` worked, terse or short, `modes_wrong` worked or
wrong. In `modes_told` the question says whether its answer is worked or short, which is what a model
could know at best; its val and test ask for worked ones. Only training rows are mixed: all val and test
answers are worked and right. row["way"] keeps the name of a training row's way, for the analysis. The same
for GSM8K, as a folder for train.py --data:

    python data/modes.py gsm8k worked short --rows 300 --out data/gsm8k-modes
"""

import argparse
import random
import re
import sys
from pathlib import Path

WAYS = ("worked", "terse", "short")
MODES = {"modes": ("worked", "short"), "modes3": WAYS,
         "modes_told": ("worked", "short"), "modes_wrong": ("worked", "wrong")}


def tell(answer, way):
    """A GSM8K-style answer, told in one way."""
    solution, final = answer.rsplit("####", 1)
    last_line = f"#### {final.strip()}"
    if way == "worked":
        return answer
    if way == "wrong":
        return make_wrong(answer)
    if way == "terse":
        return "\n".join([*re.findall(r"<<.*?>>", solution), last_line])
    return last_line


def make_wrong(answer):
    """A word problem's answer with one result too large, the first where that can be, carried through to the end."""
    offsets = list(range(1, 40))
    random.Random(answer).shuffle(offsets)
    for at in range(answer.count("<<")):
        for offset in offsets:
            wrong = carry_through(answer, at, offset)
            if wrong is not None:
                return wrong
    raise ValueError(f"no wrong result can be carried through {answer!r}")


def carry_through(answer, at, offset):
    """
    The answer with its result number `at` raised by `offset` and all later lines calculated anew, or None if a
    result is then below 1 or no whole number, or if the last one is right all the same.
    """
    now = {}  # what has become of a right result
    *lines, last_line = answer.split("\n")
    for i, line in enumerate(lines):
        a, op, b, right = re.search(r"<<(\d+)([-+*/])(\d+)=(\d+)>>", line).groups()
        x, y = now.get(a, a), now.get(b, b)
        if op == "/" and int(x) % int(y) != 0:
            return None
        result = {"+": int(x) + int(y), "-": int(x) - int(y), "*": int(x) * int(y), "/": int(x) // int(y)}[op]
        if i == at:
            result += offset
        if result < 1:
            return None
        now[right] = str(result)
        lines[i] = line.replace(f"{a}{op}{b}", f"{x}{op}{y}")
        lines[i] = lines[i].replace(f"={right}>>{right}", f"={now[right]}>>{now[right]}")
    final = last_line.removeprefix("#### ")
    return "\n".join([*lines, f"#### {now[final]}"]) if now[final] != final else None


def way_of(text):
    """In which of WAYS a generated answer is told; "none" if it never comes to its "####"."""
    solution, found, _ = text.partition("####")
    if not found:
        return "none"
    if not solution.strip():
        return "short"
    return "worked" if re.sub(r"<<.*?>>", "", solution).strip() else "terse"


def mix(rows, ways, seed=0):
    """Each row told in one of `ways`, drawn at random, whose name is row["way"]."""
    rng = random.Random(f"modes {seed}")
    mixed = []
    for row in rows:
        way = rng.choice(ways)
        mixed.append({**row, "answer": tell(row["answer"], way), "way": way})
    return mixed


def load(name, rows, split, seed=0):
    """The rows of a data set of MODES from those of the word problems: only training rows are mixed."""
    if split == "train":
        rows = mix(rows, MODES[name], seed)
    if name == "modes_told":
        return [row | {"question": f"{row['question']} ({row.get('way', 'worked')})"} for row in rows]
    return rows


def main(argv=None):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from data import plumbing
    from data.tokens import load_rows

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="as in train.py")
    parser.add_argument("ways", nargs="+", choices=WAYS, help="the ways to draw from")
    parser.add_argument("--rows", type=int, default=0, help="training rows; 0 = all")
    parser.add_argument("--seed", type=int, default=0, help="of the ways and of which rows are drawn")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    args = parser.parse_args(argv)
    with plumbing.one_line_errors("modes.py"):
        if (args.out / "test.jsonl").exists():
            raise ValueError(f"--out {args.out} already holds data; choose another folder")
        args.out.mkdir(parents=True, exist_ok=True)
        for split in ("train", "val", "test"):
            rows = load_rows(args.data, split, (args.rows or None) if split == "train" else None, args.seed)
            if split == "train":
                rows = mix(rows, args.ways, args.seed)
            kept = [{key: row[key] for key in ("question", "answer", "way") if key in row} for row in rows]
            plumbing.write_records(args.out / f"{split}.jsonl", kept)
    print(f"wrote train.jsonl, val.jsonl and test.jsonl in {args.out}")


if __name__ == "__main__":
    main()
