"""
Evaluate a trained run: grade its answers with the codes on, off, random and shuffled, on the same problems.

    python eval.py runs/NAME                       # the test split the run was made for
    python eval.py runs/NAME --split test_numbers --rows 200
    python eval.py runs/NAME --no-generate         # held-out likelihood only (fast, for large models on a CPU)

The arms. "on": the router's argmax codes, as in deployment. "off": the plain language model, prompt included. "random":
every chunk of prompt and answer gets a uniformly drawn code. "shuffled": the codes that "on" used, permuted among the
chunks of the same row, which keeps their frequencies. An arm that changes nothing is reported as such.
"""

import argparse
import json
import math
import os
import re
import sys
import time
from decimal import Decimal
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.tokens import collate, encode_row, load_encoding, load_rows
from dlr import GPT, load_checkpoint

ARMS = ("on", "off", "random", "shuffled")

# ----------------------------------------------------------------------------------------------------------------------
# Grading. Text in, numbers out; the gold answer comes from the data, never from tokens.

NUMBER = r"(?:(?<![\w).])-\$?|\$-?)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"  # the minus of 10-3 is no sign


def to_number(text):
    """The value of "$1,234.00", "18.", "50%" or "-3" as a Decimal; None if `text` is no number (or None)."""
    text = re.sub(r"[$,%\s]", "", text or "").removesuffix(".")
    return Decimal(text) if re.fullmatch(r"-?(\d+(\.\d*)?|\.\d+)", text, re.ASCII) else None


def strict_answer(text):
    """The number right after the first `####`, or None."""
    found = re.match(rf"[ \t]*({NUMBER})", text.partition("####")[2], re.ASCII)
    return to_number(found[1]) if found else None


def flexible_answer(text):
    """The last number anywhere, or None."""
    found = re.findall(NUMBER, text, re.ASCII)
    return to_number(found[-1]) if found else None


def grade(text, gold):
    """Generated text against the gold string -> {"strict", "flexible", "parsed"}; a missing answer is wrong."""
    number, strict, flexible = to_number(str(gold)), strict_answer(text), flexible_answer(text)
    if number is None:
        raise ValueError(f"the gold answer must be a number, got {gold!r}")
    return {"strict": strict == number, "flexible": flexible == number, "parsed": strict is not None}


# ----------------------------------------------------------------------------------------------------------------------
# The arms.


def random_codes(rows, n_chunks, n_codes, seed):
    """Uniform codes (len(rows), n_chunks), drawn row by row from (seed, row number): no batch composition in them."""
    return torch.stack([torch.randint(n_codes, (n_chunks,), generator=torch.Generator().manual_seed(seed + 7919 * i))
                        for i in rows])


def shuffled_codes(codes, n_chunks, rows, seed):
    """Each row's own codes (a list of 1-D LongTensors) permuted, and repeated in that order up to n_chunks."""
    out = []
    for i, own in zip(rows, codes):
        own = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(seed + 7919 * i))]
        out.append(own.repeat(math.ceil(n_chunks / len(own)))[:n_chunks])
    return torch.stack(out)


def batches(lengths, batch_size):
    """Row numbers in batches of similar length, so that little is padded."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


@torch.no_grad()
def answer(model, enc, prompts, arms, max_new_tokens=320, batch_size=128, seed=0):
    """
    Greedy answers of every arm to prompts (lists of token ids) -> {arm: list of texts}, in the order of `prompts`.
    Prompts that the context cannot hold raise ValueError.
    """
    K, C, device = model.config.chunk, model.config.n_codes, model.embed_tokens.weight.device
    texts = {arm: [None] * len(prompts) for arm in arms}
    for batch in tqdm(batches([len(p) for p in prompts], batch_size), desc="answers", leave=False, disable=None):
        ids = [prompts[i] for i in batch]
        n_chunks = math.ceil(min(max(map(len, ids)) + max_new_tokens, model.config.block_size) / K)
        on = None
        for arm in arms:
            if arm == "on" or (arm == "shuffled" and on is None):
                on = out = model.generate(ids, max_new_tokens, stop=enc.eot_token)
            if arm == "off":
                out = model.generate(ids, max_new_tokens, codes="off", stop=enc.eot_token)
            if arm == "random":
                codes = random_codes(batch, n_chunks, C, seed).to(device)
                out = model.generate(ids, max_new_tokens, codes=codes, stop=enc.eot_token)
            if arm == "shuffled":
                used = []
                for prompt, new in zip(ids, on):
                    whole = torch.tensor([prompt + new], device=device)[:, : model.config.block_size]
                    used.append(model.route(whole)[0].argmax(-1).cpu())
                codes = shuffled_codes(used, n_chunks, batch, seed).to(device)
                out = model.generate(ids, max_new_tokens, codes=codes, stop=enc.eot_token)
            for i, new in zip(batch, out):
                texts[arm][i] = enc.decode(new)
    return texts


@torch.no_grad()
def likelihood(model, items, arms, batch_size=32, seed=0):
    """Summed negative log-likelihood in nats and count of each item's labelled tokens -> {arm: (n,)}, counts (n,)."""
    K, C, device = model.config.chunk, model.config.n_codes, model.embed_tokens.weight.device
    nll = {arm: np.zeros(len(items)) for arm in arms}
    counts = np.array([len(ids) - n_prompt for ids, n_prompt in items])
    for batch in batches([len(ids) for ids, _ in items], batch_size):
        idx, targets = (t.to(device) for t in collate([items[i] for i in batch]))
        h = model.lower(idx)
        own = model.router_logits(h[:, ::K]).argmax(-1)
        for arm in arms:
            if arm == "off":
                logp = model.token_logp(h, targets)
            else:
                codes = own
                if arm == "random":
                    codes = random_codes(batch, own.size(1), C, seed).to(device)
                if arm == "shuffled":
                    used = [c[: math.ceil((len(items[i][0]) - 1) / K)].cpu() for i, c in zip(batch, own)]
                    codes = shuffled_codes(used, own.size(1), batch, seed).to(device)
                logp = model.token_logp(model.steer(h, codes), targets)
            nll[arm][batch] = -logp.sum(-1).cpu().double().numpy()
    return nll, counts


# ----------------------------------------------------------------------------------------------------------------------
# Statistics over problems.


def bootstrap(a, b, weights=None, n=10_000, seed=0):
    """Paired bootstrap over problems: mean(a) - mean(b) (weighted) and its 95 % interval -> (diff, low, high)."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    w = np.ones(len(a)) if weights is None else np.asarray(weights, float)
    pick = np.random.default_rng(seed).multinomial(len(a), np.full(len(a), 1 / len(a)), size=n)  # (n, problems)
    diffs = (pick @ (w * (a - b))) / (pick @ w)
    return tuple(map(float, ((w * (a - b)).sum() / w.sum(), *np.quantile(diffs, [0.025, 0.975]))))


def evaluate(model, enc, rows, arms=ARMS, generate=True, max_new_tokens=320, batch_size=128, seed=0):
    """
    Every arm on the same problems. Returns (summary, records): per arm nats per answer token and, where answers are
    generated, strict and flexible accuracy and parse rate (fractions); nats and strict with their paired differences to
    "off" and, for random and shuffled codes, to "on", each with its 95 % bootstrap interval; records is one dict for
    each problem. Rows too long for the context are left out and counted.
    """
    for arm in arms:
        if arm not in ARMS:
            raise ValueError(f"arms must be among {', '.join(ARMS)}, got {arm!r}")
    was_training, start = model.training, time.time()
    model.eval()
    encoded = [encode_row(r, enc) for r in rows]
    kept = [i for i, (ids, _) in enumerate(encoded) if len(ids) - 1 <= model.config.block_size]
    if not kept:
        raise ValueError(f"none of the {len(rows)} rows fits the context of {model.config.block_size} tokens")
    items, left_out, rows = [encoded[i] for i in kept], len(rows) - len(kept), [rows[i] for i in kept]
    nll, counts = likelihood(model, items, arms, seed=seed)
    prompts = [ids[:n_prompt] for ids, n_prompt in items]
    texts = answer(model, enc, prompts, arms, max_new_tokens, batch_size, seed) if generate else {}
    model.train(was_training)

    records = []
    for i, row in enumerate(rows):
        record = {"problem": i, "question": row["question"], "gold": row["final"], "tokens": int(counts[i])}
        record |= {k: row[k] for k in ("n_ops", "template") if k in row}
        for arm in arms:
            record[arm] = {"nll": float(nll[arm][i])}
            if generate:
                record[arm] |= {"text": texts[arm][i], **grade(texts[arm][i], row["final"])}
        records.append(record)

    summary = {"rows": len(rows), "left_out": left_out, "seconds": round(time.time() - start, 1), "arms": {}}
    for arm in arms:
        s = {"nats": float(nll[arm].sum() / counts.sum())}
        if generate:
            for k in ("strict", "flexible", "parsed"):
                s[k] = float(np.mean([r[arm][k] for r in records]))
            if all("n_ops" in r for r in records):
                s["strict_by_ops"] = {n: float(np.mean([r[arm]["strict"] for r in records if r["n_ops"] == n]))
                                      for n in sorted({r["n_ops"] for r in records})}
        for other in {"on": ["off"], "off": []}.get(arm, ["on", "off"]):
            if other not in arms:
                continue
            s[f"nats_minus_{other}"] = bootstrap(nll[arm] / counts, nll[other] / counts, weights=counts)
            s[f"same_as_{other}"] = bool((nll[arm] == nll[other]).all())
            if generate:
                pairs = [(r[arm]["strict"], r[other]["strict"]) for r in records]
                s[f"strict_minus_{other}"] = bootstrap(*zip(*pairs))
                s[f"helped_{other}"], s[f"hurt_{other}"] = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
                s[f"same_as_{other}"] &= all(r[arm]["text"] == r[other]["text"] for r in records)
        summary["arms"][arm] = s
    return summary, records


def table(summaries):
    """{name: summary} as text, one line for each arm; differences are to the same run's "off"."""
    lines = [f"{'run':>8} {'codes':9}{'nats/token':>11}{'  minus off [95 %]':27}{'strict':>7}{'  minus off [95 %]':23}"
             f"{'flexible':>9}{'parsed':>8}"]
    for name, summary in summaries.items():
        for arm, s in summary["arms"].items():
            line = f"{name:>8} {arm:9}{s['nats']:11.4f}"
            vs = "nats_minus_off" in s
            line += "  {:+.4f} [{:+.4f}, {:+.4f}]".format(*s["nats_minus_off"]) if vs else " " * 27
            if "strict" in s:
                line += f"{s['strict']:7.1%}"
                line += ("  {:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in s["strict_minus_off"])) if vs
                         else "").ljust(23)
                line += f"{s['flexible']:9.1%}{s['parsed']:8.1%}"
            for other in ("on", "off"):
                if s.get(f"same_as_{other}"):
                    line += f"  changes nothing: the same as {other}"
                    break
            lines.append(line)
    return "\n".join(lines)


def write(path, save):
    """Write a file so that it is either whole or absent: save(temporary path), then rename."""
    tmp = path.with_name(path.name + ".tmp")
    try:
        save(tmp)
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def load_run(path):
    """A run's folder (or its ckpt.pt) -> (model, encoding, the settings it was trained with)."""
    path = Path(path)
    saved = load_checkpoint(path / "ckpt.pt" if path.is_dir() else path)
    if not {"tokenizer", "train"} <= saved.keys():
        raise ValueError(f"{path}: a checkpoint without tokenizer and settings; give a run made by train.py")
    return GPT.from_checkpoint(saved), load_encoding(saved["tokenizer"]), saved["train"]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("run", help="folder made by train.py, or its ckpt.pt")
    parser.add_argument("--data", help="wordproblems, gsm8k or a folder (default: what the run was trained on)")
    parser.add_argument("--split", default="test", help="split of the data (default: test)")
    parser.add_argument("--rows", type=int, default=0, help="problems; 0 = all of the split")
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS, help="what happens to the codes")
    parser.add_argument("--generate", action=argparse.BooleanOptionalAction, default=True,
                        help="generate and grade answers, not only score their likelihood")
    parser.add_argument("--max_new_tokens", type=int, default=320, help="longest answer generated")
    parser.add_argument("--batch_size", type=int, default=128, help="prompts generated at once")
    parser.add_argument("--seed", type=int, default=0, help="of the random and shuffled codes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        choices=("cpu", "cuda", "mps"))
    parser.add_argument("--out", help="one JSON line a problem (default: RUN/eval-DATA-SPLIT.jsonl); the summary goes "
                                      "beside it, to .json")
    args = parser.parse_args(argv)
    try:
        if args.rows < 0 or args.batch_size < 1 or args.max_new_tokens < 1:
            raise ValueError(f"--rows must be >= 0, --batch_size and --max_new_tokens >= 1, "
                             f"got {args.rows}, {args.batch_size}, {args.max_new_tokens}")
        folder = Path(args.run) if Path(args.run).is_dir() else Path(args.run).parent
        if args.out and (Path(args.out).suffix != ".jsonl" or not Path(args.out).parent.is_dir()):
            raise ValueError(f"--out must be a file NAME.jsonl in an existing folder, got {args.out}")
        if args.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: no CUDA GPU was found")
        model, enc, settings = load_run(args.run)
        data = args.data or settings["data"]
        rows = load_rows(data, args.split, args.rows or None)
        summary, records = evaluate(model.to(args.device), enc, rows, args.arms, args.generate, args.max_new_tokens,
                                    args.batch_size, args.seed)
        out = Path(args.out or folder / f"eval-{Path(data).name}-{args.split}.jsonl")
        write(out, lambda p: p.write_text("".join(json.dumps(r) + "\n" for r in records)))
        write(out.with_suffix(".json"), lambda p: p.write_text(json.dumps(summary, indent=1)))
    except (ValueError, OSError, ImportError) as e:
        print(f"eval.py: error: {e}", file=sys.stderr)
        sys.exit(2)
    print(f"{summary['rows']} problems of {data}/{args.split} ({summary['left_out']} too long for the context)")
    print(table({settings["method"]: summary}))
    for arm, s in summary["arms"].items():
        if "strict_by_ops" in s:
            print(f"{arm}: strict by number of operations: "
                  + ", ".join(f"{n}: {x:.1%}" for n, x in s["strict_by_ops"].items()))
    print(f"records: {out}")


if __name__ == "__main__":
    main()
