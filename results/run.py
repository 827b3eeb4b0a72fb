"""
The measurements behind the README's tables: runs train.py for each setting and seed that results/NAME.jsonl lacks, and
appends one line with the run's flags and evaluation.

    python results/run.py NAME [--jobs 2]      # each job on one CPU thread, or the GPU
    python results/run.py NAME --table         # the table, as Markdown
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

HERE = Path(__file__).resolve().parent
SMOLLM2 = "--data gsm8k --init_from data/smollm2 --rows 240 --epochs 1 --batch_size 4 --eval_rows 100 --no-generate"
SFT = "--method sft"

# NAME: (seeds, {label: flags}). Everything not named is train.py's default.
EXPERIMENTS = {
    "selection": ((0, 1, 2), {  # how rollouts teach, all else equal
        "SFT": SFT,
        "DLR advantage": "--select advantage",
        "DLR likelihood": "--select likelihood",
        "DLR joint": "--select joint",
        "DLR, C=1": "--n_codes 1 --n_rollouts 1",
    }),
    "sft_lr": ((0,), {f"SFT, lr {lr}": f"{SFT} --lr {lr}" for lr in ("3e-4", "5e-4", "1e-3", "2e-3")}),
    "chunk": ((0,), {"DLR advantage, K=1": "--select advantage --chunk 1"}),
    "gsm8k": ((0,), {
        "SFT, lr 1e-5": f"{SMOLLM2} {SFT} --lr 1e-5",
        "DLR advantage K=1, lr 1e-5": f"{SMOLLM2} --lr 1e-5 --chunk 1 --code_lr 6e-2 --router_std 0.05 --n_rollouts 2",
        "SFT, lr 1e-4": f"{SMOLLM2} {SFT} --lr 1e-4",
        "DLR C=1, lr 1e-5": f"{SMOLLM2} --lr 1e-5 --n_codes 1 --code_lr 6e-2 --n_rollouts 1",
        "DLR likelihood, lr 1e-5": f"{SMOLLM2} --lr 1e-5 --select likelihood --code_lr 1e-3 --n_rollouts 4",
        "DLR advantage K=1, lr 1e-4": f"{SMOLLM2} --lr 1e-4 --chunk 1 --code_lr 6e-2 --router_std 0.05 --n_rollouts 2",
    }),
}


def run(name, label, flags, seed):
    slug = "".join(c if c.isalnum() else "-" for c in label)
    out = HERE.parent / "runs" / name / f"{slug}-{seed}"
    argv = [sys.executable, "train.py", *flags.split(), "--seed", str(seed), "--no-baseline", "--out", str(out)]
    argv += ["--eval_split", "val"]  # choices are made on val; eval.py reports test
    if (out / "config.json").exists():
        argv = [sys.executable, "train.py", "--resume", "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, cwd=HERE.parent, env=env, capture_output=True, text=True)
    if done.returncode:
        print(f"{label}, seed {seed}: failed\n{done.stderr[-2000:]}", file=sys.stderr)
        return
    summary = json.loads((out / "summary.json").read_text())
    if "gsm8k" not in flags:
        test = [sys.executable, "eval.py", str(out), "--arms", *summary["arms"]]
        subprocess.run(test, cwd=HERE.parent, env=env, capture_output=True, check=True)
        summary["test"] = json.loads((out / "eval-wordproblems-test.json").read_text())["arms"]
    with open(HERE / f"{name}.jsonl", "a") as f:
        f.write(json.dumps({"label": label, "seed": seed, "flags": flags, **summary}) + "\n")
    print(f"{label}, seed {seed}: done in {summary['train_seconds']:.0f} s", flush=True)


def load(name):
    path = HERE / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(name):
    """Mean and standard deviation over seeds, on val and, where it was run, on test."""
    rows = load(name)

    def cell(mine, split, arm, key, form):
        values = [(r["arms"] if split == "val" else r["test"]).get(arm, {}).get(key) for r in mine]
        if None in values:
            return ""
        return f"{mean(values):{form}}" + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")

    for split in ("val", "test") if all("test" in r for r in rows) else ("val",):
        arms = ("on", "off", "random", "shuffled")
        print(f"{split}:\n\n| run | seeds | " + " | ".join(f"nats {arm}" for arm in arms)
              + " | strict on | off | random | seconds |\n" + "|---" * 10 + "|")
        for label in dict.fromkeys(r["label"] for r in rows):
            mine = [r for r in rows if r["label"] == label]
            cells = [cell(mine, split, arm, "nats", ".4f") for arm in arms]
            cells += [cell(mine, split, arm, "strict", ".1%") for arm in arms[:3]]
            cells.append(f"{mean(r['train_seconds'] for r in mine):.0f}")
            print(f"| {label} | {len(mine)} | " + " | ".join(cells) + " |")
        print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--table", action="store_true", help="print the table of what has been measured")
    args = parser.parse_args()
    if args.table:
        table(args.name)
        sys.exit()
    seeds, settings = EXPERIMENTS[args.name]
    finished = {(r["label"], r["seed"]) for r in load(args.name)}
    with ThreadPoolExecutor(args.jobs) as pool:
        todo = [pool.submit(run, args.name, label, flags, seed) for seed in seeds for label, flags in settings.items()
                if (label, seed) not in finished]
        for job in todo:
            job.result()  # raises what the job raised
