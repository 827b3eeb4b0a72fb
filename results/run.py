"""
The measurements behind the README's tables: runs train.py for each setting and seed that results/NAME.jsonl lacks, and
appends one line with the run's settings, its evaluation and every problem's verdict and likelihood.

    python results/run.py NAME [--jobs 2]      # each job on one CPU thread, or the GPU
    python results/run.py NAME --table         # the table of `eval.py --compare`, as Markdown
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

HERE = Path(__file__).resolve().parent
LOCK = Lock()
sys.path.insert(0, str(HERE.parent))
from eval import compare, compare_table, finished_run  # noqa: E402

# Learning rates are chosen on val, with a seed that the comparison does not use; the comparison reports test.
LR = "--rows 1000 --eval_split val --eval_rows 400 --no-generate"
WORDS = "--rows 1000 --eval_split test --eval_rows 500"
GSM8K_VAL = ("--data gsm8k --init_from data/smollm2 --rows 240 --epochs 1 --batch_size 4 --no-generate "
             "--eval_split val --eval_rows 100")
GSM8K_GPU = "--data gsm8k --init_from data/smollm2 --block_size 1024 --lr 1e-4 --eval_split test"
DLR_GSM8K = "--chunk 1 --code_lr 6e-2 --router_std 0.05 --n_rollouts 2"
METHODS = {
    "sft": "--method sft",
    "dlr": "",
    "dlr, the paper's selection": "--select likelihood",
    "static": "--method static",
    "frozen": "--method frozen --code_lr 1e-1",
    "frozen, one code": "--method frozen --n_codes 1 --n_rollouts 0 --code_lr 1e-1",
    "random_router": "--method random_router",
    "pause": "--method pause",
    "tokenassorted": "--method tokenassorted",
}

RATES = {name: ("5e-4", "1e-3", "2e-3") for name in METHODS}
RATES |= {name: ("5e-4", "1e-3") for name in ("dlr, the paper's selection", "static", "random_router")}  # time
RATES |= {name: ("1e-2", "3e-2", "1e-1", "3e-1") for name in ("frozen", "frozen, one code")}  # of the codes

# NAME: (seeds, {label: flags}). Everything not named is train.py's default.
EXPERIMENTS = {
    "selection": ((0, 1, 2), {  # how rollouts teach, on all 2,000 rows; measured before problems were kept: means alone
        "SFT": "--method sft",
        "DLR advantage": "--select advantage",
        "DLR advantage, answer only": "--select advantage",  # as it is now; the line above: prompt, too
        "DLR likelihood": "--select likelihood",
        "DLR joint": "--select joint",
        "DLR, C=1": "--n_codes 1 --n_rollouts 1",
    }),
    "lr": ((100,), {f"{name}, {rate}": f"{LR} {flags} {'--code_lr' if 'frozen' in name else '--lr'} {rate}"
                    for name, flags in METHODS.items() for rate in RATES[name]}),
    # By "lr" all do best at lr 1e-3, the default, and the frozen ones at code_lr 1e-1; and 7.2 epochs cost SFT as much
    # as 3 epochs cost DLR (2.4 times the compute).
    "compare": ((0, 1, 2, 3, 4), {name: f"{WORDS} {flags}" for name, flags in METHODS.items()}
                | {"sft, matched compute": f"{WORDS} --method sft --epochs 7.2"}),
    "gsm8k": ((0,), {f"{name}, {rate}": f"{GSM8K_VAL} --dtype bfloat16 --lr {rate} {flags}" for name, rate, flags in (
        ("sft", "1e-4", "--method sft"),
        ("dlr", "1e-4", DLR_GSM8K),
        ("sft", "3e-4", "--method sft"),
        ("static", "1e-4", "--method static --code_lr 6e-2"),
        ("sft", "1e-5", "--method sft"),
        ("dlr", "1e-5", DLR_GSM8K),
        ("static", "1e-5", "--method static --code_lr 6e-2"))}),
    "gsm8k_float32": ((0,), {  # measured before problems were kept
        "SFT, lr 1e-5": f"{GSM8K_VAL} --method sft --lr 1e-5",
        "DLR advantage K=1, lr 1e-5": f"{GSM8K_VAL} --lr 1e-5 {DLR_GSM8K}",
        "SFT, lr 1e-4": f"{GSM8K_VAL} --method sft --lr 1e-4"}),
    # How the codes' worth depends on how fast the LM learns; not at all: the frozen runs of "compare".
    "rate": ((0, 1, 2), {f"{name}, {rate}": f"{WORDS} --lr {rate} {METHODS[name]}"
                         for rate in ("1e-4", "3e-4") for name in ("sft", "dlr", "static")}),
    # For a GPU (not run yet): every method on all of GSM8K, and fewer rows.
    "gsm8k_gpu": ((0, 1, 2), {name: f"{GSM8K_GPU} {flags}" for name, flags in METHODS.items()}),
    "gsm8k_rows": ((0, 1, 2), {f"{name}, {rows} rows": f"{GSM8K_GPU} --rows {rows} {METHODS[name]}"
                               for rows in (128, 512, 2048) for name in ("sft", "dlr", "static")}),
}


def run(name, label, flags, seed):
    slug = "".join(c if c.isalnum() else "-" for c in label)
    out = HERE.parent / "runs" / name / f"{slug}-{seed}"
    argv = [sys.executable, "train.py", *flags.split(), "--seed", str(seed), "--no-baseline", "--out", str(out)]
    if (out / "config.json").exists():
        argv = [sys.executable, "train.py", "--resume", "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, cwd=HERE.parent, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{label}, seed {seed}: failed\n{done.stderr[-2000:]}")
    config, summary, records = finished_run(out)
    config["out"] = str(out.relative_to(HERE.parent))
    problems = {"gold": [r["gold"] for r in records], "tokens": [r["tokens"] for r in records]}
    for arm in summary["arms"]:
        problems[arm] = {"nll": [round(r[arm]["nll"], 3) for r in records]}
        if config["generate"]:
            problems[arm]["strict"] = "".join(str(int(r[arm]["strict"])) for r in records)
    line = {"label": label, "seed": seed, "flags": flags, "config": config, "summary": summary, "problems": problems}
    with LOCK, open(HERE / f"{name}.jsonl", "a") as f:
        f.write(json.dumps(line) + "\n")
    (out / "ckpt.pt").unlink(missing_ok=True)  # a large model's runs would fill the disk
    print(f"{label}, seed {seed}: done in {summary['train_seconds']:.0f} s", flush=True)


def load(name):
    path = HERE / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(name, reference=None):
    """What `python eval.py --compare` prints of the runs' folders, from the lines that are kept here."""
    runs, order = {}, list(EXPERIMENTS[name][1])
    for line in sorted(load(name), key=lambda line: (order.index(line["label"]), line["seed"])):
        problems, arms = line.get("problems", {"gold": [], "tokens": []}), line["summary"]["arms"]
        records = [{"gold": gold, "tokens": tokens} for gold, tokens in zip(problems["gold"], problems["tokens"])]
        for i, record in enumerate(records):
            for arm in arms:
                record[arm] = {"nll": problems[arm]["nll"][i]}
                if "strict" in problems[arm]:
                    record[arm]["strict"] = problems[arm]["strict"][i] == "1"
        runs[f"{line['label']}, seed {line['seed']}"] = line["config"], line["summary"], records
    print(compare_table(compare(runs, reference)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--table", action="store_true", help="print the table of what has been measured")
    parser.add_argument("--reference", help='run to compare with, "LABEL, seed N" (default: the first sft run)')
    args = parser.parse_args()
    if args.table:
        table(args.name, args.reference)
        sys.exit()
    seeds, settings = EXPERIMENTS[args.name]
    finished = {(r["label"], r["seed"]) for r in load(args.name)}
    with ThreadPoolExecutor(args.jobs) as pool:
        todo = [pool.submit(run, args.name, label, flags, seed) for seed in seeds for label, flags in settings.items()
                if (label, seed) not in finished]
        for job in todo:
            job.result()  # raises what the job raised
