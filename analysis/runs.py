"""
The study's measurements: run train.py for every setting and seed of an experiment that analysis/results/NAME.jsonl
lacks, append a line for each, and print the table.

    python analysis/runs.py NAME              # measure what is missing, one CPU thread a run, then the table
    python analysis/runs.py NAME --jobs 2     # two runs at once
    python analysis/runs.py NAME --table      # only the table of what is there
    python analysis/runs.py --compare RUN RUN ...     # the same table of finished runs of your own

A line holds the flags, steps, seconds, and for each arm every problem's negative log-likelihood and verdict.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from analysis import figures, modes  # noqa: E402
from data import plumbing  # noqa: E402
from data.files import read_json, read_jsonl  # noqa: E402
from data.modes import LINES  # noqa: E402
from eval import bootstrap  # noqa: E402

# Rates are chosen on val, with a seed that the comparison does not use; the comparison reports test.
LR = "--eval_split val --eval_rows 400 --no-generate --rows 1000"
TEST = "--eval_split test --eval_rows 500"
METHODS = {
    "sft": "--method sft",
    "likelihood": "--select likelihood",
    "greedy": "--select greedy",
    "static": "--method static",
    "random_router": "--method random_router",
}
WORDS = METHODS | {"path": "--select path --n_codes 2"}
BASELINES = {"pause": "", "tokenassorted": ""}  # the paper's, made by baselines.py
RATES = ("5e-4", "1e-3", "2e-3")
# The language model's rate, from the paper's to three times our best (1e-3, in words1000). At the low ones
# nothing is answered rightly, so only likelihoods are measured.
SWEEP = {"1e-5": " --no-generate", "3e-5": " --no-generate", "1e-4": " --no-generate", "3e-4": "", "3e-3": ""}
# A DLR step with N = 4 costs (4.5 + 4 / 2) / 3 = 2.17 SFT steps: 3 epochs of it are 6.5 epochs of SFT.
MATCHED = {"sft, 6.5 epochs": "--method sft --epochs 6.5"}

# Real data sets with a real model: does the whole path work? "before": one step at a rate of nothing.
REAL = ("--init_from data/smollm2 --lr 1e-5 --epochs 1 --batch_size 4 --n_rollouts 2 --rows 64 "
        "--eval_rows 32 --no-generate")
WHOLE = {"before": "--method sft --rows 4 --lr 1e-12", "sft": "--method sft", "dlr": "--method dlr"}
# On GSM8K the sweep of rates in small, too: one vector, ten times the rate, a low and a high rate for codes.
SWEPT = {
    "static": "--method static",
    "sft, 1e-4": "--method sft --lr 1e-4",
    "dlr, 1e-4": "--method dlr --lr 1e-4",
    "static, 1e-4": "--method static --lr 1e-4",
    "dlr, codes at 1e-3": "--method dlr --code_lr 1e-3",
    "dlr, codes at 6e-2": "--method dlr --code_lr 6e-2",
    "static, codes at 6e-2": "--method static --code_lr 6e-2",
}

# Data answered in several ways: the search by shortest path. Its default cost was chosen on val, seed 100.
MODES = "--eval_split test --eval_rows 300"
TWO = "--select path --n_codes 2"
FOUR = "--select path --n_codes 4"
# A step of the path with two codes, added after 3 of 4 blocks, costs 4.25 / 3 SFT steps.
AS_DEAR = "--method sft --epochs 4.25"
PAPER = "--n_codes 2 --n_rollouts 8 --code_lr 1e-1 --alpha_reg 0"  # the paper's search, the path's rates

# What decides whether codes find the ways: the same with one thing changed.
CHANGED = {
    "switch cost 0": f"{TWO} --switch_cost 0",
    "switch cost .3": f"{TWO} --switch_cost .3",
    "switch cost 1": f"{TWO} --switch_cost 1",
    "switch cost 2": f"{TWO} --switch_cost 2",
    "K = 1": f"{TWO} --chunk 1",
    "K = 16": f"{TWO} --chunk 16",
    "C = 4": FOUR,
    "C = 8": "--select path --n_codes 8",
    "code rate 1e-2": f"{TWO} --code_lr 1e-2",
    "alpha_policy 0": f"{TWO} --alpha_policy 0",
}

# SmolLM2-135M, an epoch of GSM8K, on a GPU; half of the answers cut to their last line by
# python data/modes.py gsm8k worked short --out data/gsm8k-modes
SMOL = "--init_from data/smollm2 --lr 1e-4 --epochs 1 --batch_size 16 --eval_rows 200 --max_new_tokens 256"
HALF = f"--data data/gsm8k-modes {SMOL}"
# What a CPU can do; of a flag given twice the last one counts.
SMALL = "--rows 960 --batch_size 4 --eval_rows 40 --max_new_tokens 200"

# NAME: (seeds, {label: flags}). Everything not named is train.py's default.
EXPERIMENTS = {
    "lr": ([100], {f"{name}, {rate}": f"{LR} {METHODS[name]} --lr {rate}"
                   for name in ("sft", "likelihood", "greedy") for rate in RATES}),
    "words1000": ([0, 1, 2], {name: f"{TEST} --rows 1000 {flags}"
                              for name, flags in (WORDS | MATCHED | BASELINES).items()}),
    "words2000": ([0, 1, 2], {name: f"{TEST} --rows 2000 {flags}" for name, flags in (METHODS | MATCHED).items()}),
    "rates": ([0, 1, 2], {f"{name}, {rate}": f"{TEST} --rows 1000 {WORDS[name]} --lr {rate}" + quiet
                          for rate, quiet in SWEEP.items() for name in ("sft", "likelihood", "static", "random_router")}
              | {"sft, 6.5 epochs, 1e-5": f"{TEST} --rows 1000 --method sft --lr 1e-5 --epochs 6.5 --no-generate"}),
    "lines": ([0, 1, 2, 3, 4], {
        "path": f"{MODES} --data lines {TWO}",
        "one code a row": f"{MODES} --data lines {TWO} --switch_cost inf",
        "the paper's search": f"{MODES} --data lines {PAPER}",
        "the paper's search, three quarters": f"{MODES} --data lines {PAPER} --steer_layer 3",
    }),
    "lines_pairs": ([0, 1, 2], {name: f"{MODES} --data {name} {TWO}" for name in [*LINES][1:]}),
    "lines_why": ([0], {label: f"{MODES} --data lines {flags}" for label, flags in CHANGED.items()}),
    "modes": ([0, 1, 2, 3, 4], {
        "SFT": f"{MODES} --data modes --method sft",
        "SFT, told the way": f"{MODES} --data modes_told --method sft",
        "SFT, 4.25 epochs": f"{MODES} --data modes {AS_DEAR}",
        "path": f"{MODES} --data modes {TWO}",
    }),
    "modes_why": ([0], {label: f"{MODES} --data modes {flags}"
                        for label, flags in (CHANGED | {"switch cost inf": f"{TWO} --switch_cost inf"}).items()}),
    "modes3": ([0, 1, 2, 3, 4], {
        "SFT": f"{MODES} --data modes3 --method sft",
        "path": f"{MODES} --data modes3 {FOUR}",
    }),
    **{data: ([0, 1, 2, 3, 4], {
        "SFT": f"{MODES} --data {data} --method sft",
        "SFT, 4.25 epochs": f"{MODES} --data {data} {AS_DEAR}",
        "path": f"{MODES} --data {data} {TWO}",
    }) for data in ("modes_early", "modes_wrong")},
    # GSM8K as it is, and the small base model: where do codes change, and what do they mean?
    "manners": ([0, 1, 2], {f"switch cost {cost}": f"--data gsm8k --rows 2000 --epochs 2 {FOUR} --switch_cost {cost} "
                            "--eval_split test --eval_rows 600 --no-generate" for cost in ("1", "3", "10", "inf")}),
    "modes_gsm8k": ([0], {
        "SFT": f"{HALF} --method sft",
        "path": f"{HALF} {TWO}",
        "manners: path on GSM8K as it is": f"--data gsm8k {SMOL} {FOUR}",
        "path, 960 rows": f"{HALF} {TWO} {SMALL}",
        "path at a price of 3, 960 rows": f"{HALF} {TWO} --switch_cost 3 {SMALL}",
    }),
    "gsm8k": ([0], {name: f"--data gsm8k {REAL} {flags}" for name, flags in (WHOLE | SWEPT).items()}),
    "gsm8k_gpu": ([0], {f"{name}, {rate}": f"--data gsm8k {SMOL} {METHODS[name]} --lr {rate}"
                        for rate in ("1e-5", "1e-4") for name in ("sft", "static", "likelihood")}),
} | {data: ([0], {name: f"--data {data} {REAL} {flags}" for name, flags in WHOLE.items()})
     for data in ("commonsenseqa", "strategyqa", "scienceqa")}

LOCK = Lock()


def measure(name, label, flags, seed):
    """One run of train.py, from the start or where it was left, and its line."""
    slug = "".join(c if c.isalnum() else "-" for c in label)
    out = HERE.parent / "runs" / name / f"{slug}-{seed}"
    script = ["analysis/baselines.py", label] if label in BASELINES else ["train.py"]
    argv = [sys.executable, *script, *flags.split(), "--seed", str(seed), "--no-baseline", "--out", str(out)]
    if (out / "config.json").exists() and label not in BASELINES:
        argv = [sys.executable, "train.py", "--resume", "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, cwd=HERE.parent, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{label}, seed {seed}: failed\n{done.stderr[-2000:]}")
    line = {"label": label, "seed": seed, "flags": flags, **read_run(out)}
    line["device"], line["torch"] = plumbing.find_device("auto")[0], torch.__version__
    if name.startswith(("modes", "lines", "manners")):  # its table reads verdicts, ways and the study
        del line["nll"]
        line["study"] = modes.study(out, len(line["tokens"]), votes=name == "modes")
    (HERE / "results").mkdir(exist_ok=True)
    with LOCK, open(HERE / "results" / f"{name}.jsonl", "a", encoding="utf-8") as f:
        f.write(json.dumps(line) + "\n")
    (out / "ckpt.pt").unlink()  # a large model's runs would fill the disk
    print(f"{label}, seed {seed}: done in {line['seconds']:.0f} s", flush=True)


def read_run(out):
    """What a finished run's folder says, as the rest of a line."""
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    metrics, records = read_lines(out / "metrics.jsonl"), read_lines(out / "answers.jsonl")
    line = {"steps": len(metrics), "seconds": summary["train_seconds"]}
    if "info_gain" in metrics[-1]:  # under the search's codes, in the end
        line["info_gain"] = round(float(np.mean([m["info_gain"] for m in metrics[-100:]])), 4)
    line |= {"tokens": [r["tokens"] for r in records], "nll": {}}
    for arm in summary["arms"]:
        line["nll"][arm] = [round(r[arm]["nll"], 3) for r in records]
        if "strict" in records[0][arm]:
            verdicts = "".join(str(int(r[arm]["strict"])) for r in records)
            line.setdefault("strict", {})[arm] = verdicts  # "0110...", a digit for each problem
            ways = "".join(r[arm]["way"][0] for r in records)
            line.setdefault("ways", {})[arm] = ways  # "wsw...", a letter for each problem
    if "chosen" in summary:
        line["chosen"] = summary["chosen"]
    return line


def read_lines(path):
    return [item for _, item in read_jsonl(path)]


def compare(folders):
    """
    Lines of finished runs, each labelled by its folder. All must have answered the same problems, in tokens
    of the same tokenizer: the table pairs them problem by problem.
    """
    lines, problems = [], {}
    for folder in folders:
        summary = read_json(Path(folder, "summary.json"))
        records = read_lines(Path(folder, "answers.jsonl"))
        if "train_seconds" not in summary or summary["rows"] != len(records):
            raise ValueError(f"--compare: {folder}/summary.json is not what train.py wrote beside answers.jsonl")
        problems[folder] = [(r["question"], r["gold"], r["tokens"]) for r in records]
        first = folders[0]
        if problems[folder] != problems[first]:
            raise ValueError(f"--compare: {first} and {folder} were evaluated on different problems, or with different "
                             f"tokenizers ({len(problems[first])} and {len(records)} problems)")
        # A row is one run. Runs of different seeds are paired, too: by problem alone.
        lines.append({"label": folder, "seed": 0, **read_run(Path(folder))})
    return lines


# --------------------------------------------------------------------------------------------------
# The table.

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # t at 97.5 %, 1..10 degrees


def over_seeds(a, b, weights=None):
    """
    mean(a) - mean(b) for a, b (seeds, problems), paired by both, with a 95 % interval: (diff, low, high).

    A bootstrap over problems, widened, in squares, by Student's interval for the mean over seeds: a plain bootstrap
    of 5 seeds would miss one time in six.
    """
    d = np.asarray(a, float) - np.asarray(b, float)
    diff, low, high = bootstrap(d.mean(0), np.zeros(d.shape[1]), weights)
    if len(d) > 1:
        runs = np.average(d, axis=1, weights=weights)  # (seeds,)
        spread = STUDENT[min(len(d) - 1, len(STUDENT)) - 1] * runs.std(ddof=1) / math.sqrt(len(d))
        low, high = diff - math.hypot(diff - low, spread), diff + math.hypot(high - diff, spread)
    return diff, low, high


def table(lines, reference=None):
    """
    Markdown: one row for each label, mean ± sd over seeds. "minus" is the run, codes on where it has any, minus
    `reference` (a label; default: the first one) with its codes off, paired by problem and seed.
    """
    groups = {}
    for line in lines:
        groups.setdefault(line["label"], {})[line["seed"]] = line
    reference = reference or next(iter(groups))
    if reference not in groups:
        raise ValueError(f"no run is labelled {reference!r}; there are {', '.join(groups)}")
    base, tokens = groups[reference], np.array(lines[0]["tokens"], float)

    def nats(line, arm):  # per answer token of each problem
        return np.array(line["nll"][arm]) / tokens

    def mean(group, read, arm, weights, form):
        means = [np.average(read(line, arm), weights=weights) for line in group.values()]
        return f"{np.mean(means):{form}}" + (f" ± {np.std(means, ddof=1):{form}}" if len(means) > 1 else "")

    def difference(group, arm, other, other_arm, read, weights, form):
        seeds = sorted(group.keys() & other.keys())
        if not seeds or (read is verdicts and "strict" not in other[seeds[0]]):
            return ""
        a, b = [read(group[s], arm) for s in seeds], [read(other[s], other_arm) for s in seeds]
        return "{:+{f}} [{:+{f}}, {:+{f}}]".format(*over_seeds(a, b, weights), f=form)

    out = [f"| run | seeds | accuracy %, on | off | minus {reference}, points [95 %] | nats, on | off "
           f"| minus {reference}, nats [95 %] | on - off, nats [95 %] | steps |", "|---" * 10 + "|"]
    for label, group in groups.items():
        one = next(iter(group.values()))
        coded = "on" in one["nll"]
        arm = "on" if coded else "off"
        cells = [label, str(len(group))]
        for read, weights, form in ((verdicts, None, ".1f"), (nats, tokens, ".4f")):
            if read is verdicts and "strict" not in one:
                cells += ["", "", ""]
                continue
            cells.append(mean(group, read, "on", weights, form) if coded else "")
            cells.append(mean(group, read, "off", weights, form))
            versus = difference(group, arm, base, "off", read, weights, form)
            cells.append("" if label == reference else versus)
        cells.append(difference(group, "on", group, "off", nats, tokens, ".4f") if coded else "")
        cells.append(", ".join(map(str, sorted({line["steps"] for line in group.values()}))))
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def differences(lines):
    """Text: accuracy under the code chosen on val minus that of each run without codes, a line each, common seeds."""
    runs = {(line["label"], line["seed"]): line for line in lines}
    labels = list(dict.fromkeys(line["label"] for line in lines))
    coded = [label for label in labels if any("chosen" in line for line in lines if line["label"] == label)]
    out = []
    for label in coded:
        for plain in [plain for plain in labels if plain not in coded]:
            seeds = [seed for name, seed in runs if name == label and (plain, seed) in runs]
            a = [verdicts(runs[label, seed], runs[label, seed]["chosen"]) for seed in seeds]
            b = [verdicts(runs[plain, seed], "off") for seed in seeds]
            if seeds and len(a[0]) == len(b[0]):
                points = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*over_seeds(a, b))
                out.append(f"{label}, chosen code, minus {plain}: {points} points, {len(seeds)} seeds")
    return "\n".join(out)


def verdicts(line, arm):
    """100 for each problem that was answered rightly, 0 for the others."""
    return np.array([100.0 * (digit == "1") for digit in line["strict"][arm]])


def main(argv=None):
    plumbing.safe_output()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=[*EXPERIMENTS], help="the experiment")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these (default: all of the experiment)")
    parser.add_argument("--labels", nargs="+", help="only these settings (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--table", action="store_true", help="print the table of what has been measured, run nothing")
    parser.add_argument("--reference", help="label, or folder, that the others are compared with (default: the first)")
    parser.add_argument("--compare", nargs="+", metavar="RUN", help="folders of finished runs, instead of NAME")
    args = parser.parse_args(argv)
    if args.compare:
        print(table(compare(args.compare), args.reference))
        return
    if not args.name:
        parser.error("give the NAME of an experiment, or --compare RUN RUN ...")
    seeds, settings = EXPERIMENTS[args.name]
    if not args.table:
        finished = {(line["label"], line["seed"]) for line in figures.read(args.name)}
        todo = [(label, seed) for seed in args.seeds or seeds for label in args.labels or settings
                if (label, seed) not in finished]
        with ThreadPoolExecutor(args.jobs) as pool:
            jobs = [pool.submit(measure, args.name, label, settings[label], seed) for label, seed in todo]
            for job in jobs:
                job.result()  # raises what the job raised, after the others
    lines = figures.read(args.name)
    if not lines:
        raise ValueError(f"{args.name}: nothing has been measured; without --table it runs {len(settings)} settings")
    order = list(settings)
    order += sorted({line["label"] for line in lines} - set(order))  # of earlier code: their flags say how
    lines.sort(key=lambda line: (order.index(line["label"]), line["seed"]))
    if args.name == "rates":
        print(figures.rates_table())
    elif args.name.startswith("lines"):
        print(modes.lines_table(lines))
    elif args.name == "manners":
        print(modes.manners_table(lines))
    elif args.name.startswith("modes"):
        print(modes.table(lines), differences(lines), sep="\n\n")
    else:
        print(table(lines, args.reference))


if __name__ == "__main__":
    with plumbing.one_line_errors("runs.py"):
        main()
