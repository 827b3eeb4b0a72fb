"""
Questions answered in several ways, where nothing in the question says which: data on which a discrete
code can carry what the prompt cannot (README, "What codes can carry").

    worked   the whole solution, as it is
    terse    its calculations alone: <<12+7=19>> a line, then #### 19
    short    the last line alone: #### 19
    wrong    the whole solution, its first result wrong and carried through to the end

`--data modes` is word problems told worked or short, `modes3` worked, terse or short, `modes_wrong` worked or
wrong. In `modes_told` the question says whether its answer is worked or short, which is what a model
could know at best; its val and test ask for worked ones. The training rows keep the name of their way
in row["way"], which training never reads. The same for GSM8K, as a folder for train.py --data:

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
    """A word problem's answer whose first result is off by 1 to 9, and all that follows from it."""
    now = {}  # what has become of a right result
    lines = answer.split("\n")
    for i, line in enumerate(lines[:-1]):
        a, op, b, right = re.search(r"<<(\d+)([-+*/])(\d+)=(\d+)>>", line).groups()
        x, y = now.get(a, a), now.get(b, b)
        result = {"+": int(x) + int(y), "-": int(x) - int(y), "*": int(x) * int(y), "/": int(x) // int(y)}[op]
        if i == 0:
            result += random.Random(answer).randint(1, 9)
        now[right] = str(abs(result))
        lines[i] = line.replace(f"{a}{op}{b}", f"{x}{op}{y}")
        lines[i] = lines[i].replace(f"={right}>>{right}", f"={now[right]}>>{now[right]}")
    final = lines[-1].removeprefix("#### ")
    return "\n".join([*lines[:-1], f"#### {now[final]}"])


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
