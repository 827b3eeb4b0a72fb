"""
Questions answered in several ways, where nothing in the question says which: data on which a discrete
code can carry what the prompt cannot (README).

A way that holds for the whole answer:

    worked   the whole solution, as it is
    terse    its calculations alone: <<12+7=19>> a line, then #### 19
    short    the last line alone: #### 19
    early    the solution without its last step, whose result so far is given as the final one
    wrong    the whole solution, one result wrong, the first if possible, and carried through to the end

`--data modes` is word problems told worked or short, `modes3` worked, terse or short, `modes_early` and
`modes_wrong` worked or so. In `modes_told` the question says whether its answer is worked or short, which
is what a model could know at best; its val and test ask for worked ones. row["way"] keeps the name of a
training row's way, for the analysis.

A manner that is drawn anew for each line of an answer, LINE_MANNERS: `--data lines` is worked or terse,
`lines_so`, `lines_makes`, ... are worked or so. row["ways"] has the manner of each line before "####".

Only training rows are mixed: all val and test answers are worked and right. The same for GSM8K, as a
folder for train.py --data:

    python data/modes.py gsm8k worked short --rows 300 --out data/gsm8k-modes
"""

import argparse
import random
import re
import sys
from pathlib import Path

if __name__ == "__main__":  # a script's own folder is on the path, the repository's root is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data.wordproblems import HE, SHE

NAMES = {*HE, *SHE}
WAYS = ("worked", "terse", "short")
MODES = {"modes": ("worked", "short"), "modes3": WAYS, "modes_told": ("worked", "short"),
         "modes_early": ("worked", "early"), "modes_wrong": ("worked", "wrong")}
LINE_MANNERS = {  # of the worked line "Mia had 12+7 = <<12+7=19>>19 shells."
    "terse": "<<12+7=19>>",
    "makes": "12+7 makes 19.",
    "from": "19 from 12 + 7.",
    "first": "12+7 = <<12+7=19>>19, so Mia had 19 shells.",
    "so": "So Mia had 12+7 = <<12+7=19>>19 shells.",
    "capitals": "MIA HAD 12+7 = <<12+7=19>>19 SHELLS.",
}
LINES = {"lines": ("worked", "terse")} | {f"lines_{manner}": ("worked", manner) for manner in [*LINE_MANNERS][1:]}
LINE = re.compile(r"(.*?)(\d+)([-+*/])(\d+) = (<<.*?>>)(\d+)(.*)")  # of a word problem's answer


def tell(answer, way):
    """A GSM8K-style answer, told in one way."""
    solution, final = answer.rsplit("####", 1)
    last_line = f"#### {final.strip()}"
    if way == "worked":
        return answer
    if way == "wrong":
        return make_wrong(answer)
    if way == "early":
        lines = solution.strip().split("\n")[:-1]
        return "\n".join([*lines, f"#### {LINE.match(lines[-1])[6]}"])
    if way == "terse":
        return "\n".join([*re.findall(r"<<.*?>>", solution), last_line])
    return last_line


def tell_line(line, manner):
    """One line of a word problem's answer, told in one of LINE_MANNERS or "worked", as it is."""
    if manner == "worked":
        return line
    words, a, op, b, annotation, result, rest = LINE.match(line).groups()
    words = words if words.split()[0] in NAMES else words[0].lower() + words[1:]  # within a sentence
    return {"terse": annotation,
            "makes": f"{a}{op}{b} makes {result}.",
            "from": f"{result} from {a} {op} {b}.",
            "first": f"{a}{op}{b} = {annotation}{result}, so {words}{result}{rest}",
            "so": f"So {words}{a}{op}{b} = {annotation}{result}{rest}",
            "capitals": line.upper()}[manner]


def manner_of(line):
    """In which of LINE_MANNERS a generated line is told; "worked" if in none."""
    if re.fullmatch(r"<<[^<>]*>>", line):
        return "terse"
    if re.match(r"\d+[-+*/]\d+ makes", line):
        return "makes"
    if re.match(r"\d+ from", line):
        return "from"
    if line[:1].isdigit():
        return "first"
    if line.startswith("So "):
        return "so"
    return "capitals" if line.isupper() else "worked"


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


def mix_lines(rows, manners, seed=0):
    """Each line of each row told in one of `manners`, drawn at random, whose names are row["ways"]."""
    rng = random.Random(f"lines {seed}")
    mixed = []
    for row in rows:
        *lines, last_line = row["answer"].split("\n")
        ways = [rng.choice(manners) for _ in lines]
        told = [tell_line(line, manner) for line, manner in zip(lines, ways)]
        mixed.append({**row, "answer": "\n".join([*told, last_line]), "ways": ways})
    return mixed


def mix(rows, ways, seed=0):
    """Each row told in one of `ways`, drawn at random, whose name is row["way"]."""
    rng = random.Random(f"modes {seed}")
    mixed = []
    for row in rows:
        way = rng.choice(ways)
        answer = tell(row["answer"], way)
        final = answer.rsplit("####", 1)[1].strip()  # another one, if the way is wrong
        mixed.append({**row, "answer": answer, "final": final, "way": way})
    return mixed


def load(name, rows, split, seed=0):
    """The rows of a data set of MODES or LINES from the word problems' rows: only training rows are mixed."""
    if name in LINES:
        return mix_lines(rows, LINES[name], seed) if split == "train" else rows
    if split == "train":
        rows = mix(rows, MODES[name], seed)
    if name == "modes_told":
        return [row | {"question": f"{row['question']} ({row.get('way', 'worked')})"} for row in rows]
    return rows


def main(argv=None):
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
