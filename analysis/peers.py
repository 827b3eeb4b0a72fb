"""
What someone would do without codes, where training answers go several ways and nobody says which (data/modes.py):

    clean     SFT on the worked rows alone, which only their maker can tell, as many steps: perfect filtering
    clusters  k-means (2 clusters) on the base model's mean last state of each answer, standardised; SFT whose
              question ends in the cluster's number; the cluster to ask for is chosen on val
    filter    SFT; drop the half of the rows with the highest loss a token under it; train anew, as many steps
    finish    SFT; then 3 epochs of SFT on the 200 val rows on which a code would be chosen. It needs their worked
              answers, where choosing a code needs the final results only

    python analysis/peers.py modes_wrong clusters filter --seeds 0 1 2     # appends to results/peers.jsonl
    python analysis/peers.py --table
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import train
from data import plumbing
from data.files import read_jsonl
from data.tokens import collate, encode_rows, load_rows
from eval import CHOOSE_ON, by_length, evaluate, likelihood

PEERS = ("clean", "clusters", "filter", "finish")
RESULTS = Path(__file__).parent / "results" / "peers.jsonl"
TEST_ROWS = 300


def two_means(x, seed=0, restarts=10):
    """k-means with k = 2 on x (n, d), by Lloyd's algorithm; the best of several starts: clusters (n,)."""
    rng, best, found = np.random.default_rng(seed), np.inf, None
    for _ in range(restarts):
        centres = x[rng.choice(len(x), 2, replace=False)]
        for _ in range(100):
            distance = ((x[:, None] - centres) ** 2).sum(-1)  # (n, 2)
            cluster = distance.argmin(1)
            if len(set(cluster)) < 2:
                break
            moved = np.stack([x[cluster == k].mean(0) for k in range(2)])
            if np.allclose(moved, centres):
                break
            centres = moved
        if distance.min(1).sum() < best:
            best, found = distance.min(1).sum(), cluster
    return found


@torch.no_grad()
def clusters(rows):
    """Each row's cluster by the base model's mean last state over the tokens of its answer."""
    model, enc = plumbing.open_model("base", 512)
    items, _ = encode_rows(rows, enc, 512)
    states = np.zeros((len(items), model.config.n_embd))
    for batch in by_length([len(ids) for ids, _ in items], 32):
        idx, targets = collate([items[i] for i in batch])
        answer = (targets >= 0)[..., None]  # (B, T, 1)
        h = model.upper(model.lower(idx))  # (B, T, H)
        states[batch] = ((h * answer).sum(1) / answer.sum(1)).numpy()
    return two_means((states - states.mean(0)) / states.std(0))


def sft(rows, out, seed, epochs=3.0, init_from="base"):
    """A model trained by train.py on these rows of question and answer."""
    out.mkdir(parents=True, exist_ok=True)
    folder = out / "data"
    folder.mkdir(exist_ok=True)
    plumbing.write_records(folder / "train.jsonl", [{key: row[key] for key in ("question", "answer")} for row in rows])
    args = train.parse(["--method", "sft", "--data", str(folder), "--seed", str(seed), "--epochs", str(epochs),
                        "--init_from", str(init_from), "--eval_rows", "-1", "--out", str(out)])
    model, enc, _ = train.train(args)
    return model.eval(), enc


def accuracy(model, enc, data, split, n, suffix=""):
    """(fraction right, "0110...", a digit for each problem) on n rows whose question ends in suffix."""
    rows = [row | {"question": row["question"] + suffix} for row in load_rows(data, split, n)]
    summary, records = evaluate(model, enc, rows, ("off",))
    return summary["arms"]["off"]["strict"], "".join(str(int(r["off"]["strict"])) for r in records)


def measure(data, peer, seed, out):
    """One line of results/peers.jsonl."""
    rows, line, suffix = load_rows(data, "train"), {"data": data, "peer": peer, "seed": seed}, ""
    way = np.array([row["way"] == "worked" for row in rows])
    if peer == "clean":
        clean = [row for row in rows if row["way"] == "worked"]
        model, enc = sft(clean, out, seed, epochs=3.0 * len(rows) / len(clean))
    elif peer == "finish":
        sft(rows, out / "first", seed)
        model, enc = sft(load_rows(data, "val", CHOOSE_ON), out / "second", seed, init_from=out / "first")
    elif peer == "clusters":
        cluster = clusters(rows)
        told = [row | {"question": f"{row['question']} ({k})"} for row, k in zip(rows, cluster)]
        model, enc = sft(told, out, seed)
        val = [accuracy(model, enc, data, "val", CHOOSE_ON, f" ({k})")[0] for k in range(2)]
        suffix = f" ({np.argmax(val)})"
        line |= {"val": val, "worked of each cluster": [[int(way[cluster == k].sum()), int((cluster == k).sum())]
                                                      for k in range(2)]}
    elif peer == "filter":
        model, enc = sft(rows, out / "first", seed)
        items, _ = encode_rows(rows, enc, model.config.block_size)
        nll, counts = likelihood(model, items, ["off"])
        kept = np.argsort(nll["off"] / counts)[: len(rows) // 2]
        model, enc = sft([rows[i] for i in sorted(kept)], out / "second", seed, epochs=6.0)
        line["worked of those kept"] = [int(way[kept].sum()), len(kept)]
    line["strict"] = accuracy(model, enc, data, "test", TEST_ROWS, suffix)[1]
    return line


def table():
    """Markdown: accuracy in percent, mean ± sd over seeds, for each data set and peer."""
    groups = {}
    for _, line in read_jsonl(RESULTS):
        groups.setdefault((line["data"], line["peer"]), []).append(line)
    out = ["| training answers | peer | seeds | accuracy % | |", "|---|---|---|---|---|"]
    for (data, peer), lines in sorted(groups.items()):
        points = [100 * line["strict"].count("1") / len(line["strict"]) for line in lines]
        spread = f" ± {np.std(points, ddof=1):.1f}" if len(points) > 1 else ""
        notes = [f"{key}: {lines[0][key]}" for key in lines[0] if key.startswith("worked of")]
        out.append(f"| {data} | {peer} | {len(lines)} | {np.mean(points):.1f}{spread} | {', '.join(notes)} |")
    return "\n".join(out)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", choices=("modes", "modes_early", "modes_wrong"))
    parser.add_argument("peers", nargs="*", help=f"{', '.join(PEERS)} (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--table", action="store_true", help="print the table of what has been measured")
    args = parser.parse_args(argv)
    with plumbing.one_line_errors("peers.py"):
        for peer in args.peers:
            if peer not in PEERS:
                raise ValueError(f"peers must be among {', '.join(PEERS)}, got {peer!r}")
        if args.table or not args.data:
            print(table())
            return
        lines = [line for _, line in read_jsonl(RESULTS)] if RESULTS.exists() else []
        done = {(line["data"], line["peer"], line["seed"]) for line in lines}
        for seed in args.seeds:
            for peer in args.peers or PEERS:
                if (args.data, peer, seed) in done:
                    continue
                out = Path("runs/peers") / f"{args.data}-{peer}-{seed}-{time.strftime('%H%M%S')}"
                line = measure(args.data, peer, seed, out)
                with open(RESULTS, "a", encoding="utf-8") as f:
                    f.write(json.dumps(line) + "\n")
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
