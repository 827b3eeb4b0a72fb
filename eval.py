"""
Evaluate a trained run: grade its answers with the codes on, off, random and shuffled, on the same problems. Or compare
finished runs of several methods and seeds.

    python eval.py runs/NAME                       # the test split the run was made for
    python eval.py runs/NAME --split test_numbers --rows 200
    python eval.py runs/NAME --no-generate         # held-out likelihood only (fast, for large models on a CPU)
    python eval.py --compare runs/my/*       # one table of several methods and seeds, against the first sft run
    python eval.py --analyze runs/NAME --rows 300  # what do the codes do? causal tests, in words and as JSON
    python eval.py --report runs/NAME              # a page to look at, RUN/report.html
    python eval.py runs/NAME --ask "Mia had 12 shells. She found 7 more. How many shells did Mia have then?"

The arms. "on": the router's argmax codes, as in deployment. "off": the plain language model, prompt included. "random":
every chunk of prompt and answer gets a uniformly drawn code. "shuffled": the codes that "on" used, permuted among the
chunks of the same row, which keeps their frequencies. An arm that changes nothing is reported as such.
"""

import argparse
import contextlib
import dataclasses
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

from data.tokens import collate, encode_row, end_token, load_encoding, load_rows
from dlr import GPT, load_checkpoint

ARMS = ("on", "off", "random", "shuffled")

# ----------------------------------------------------------------------------------------------------------------------
# Grading. Text in, verdicts out; the gold answer comes from the data, never from tokens. It is a number, the letter of
# a choice, or yes or no, and only answers of its kind are looked for in the text.

NUMBER = r"(?:(?<![\w).])-\$?|\$-?)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"  # the minus of 10-3 is no sign


def to_number(text):
    """The value of "$1,234.00", "18.", "50%" or "-3" as a Decimal; None if `text` is no number (or None)."""
    text = re.sub(r"[$,%\s]", "", text or "").removesuffix(".")
    return Decimal(text) if re.fullmatch(r"-?(\d+(\.\d*)?|\.\d+)", text, re.ASCII) else None


def answers(text, pattern, value):
    """(strict, flexible): what stands right after the first `####`, and the last match anywhere; None where missing."""
    strict = re.match(rf"[ \t]*\(?({pattern})", text.partition("####")[2], re.ASCII)
    last = re.findall(pattern, text, re.ASCII)
    return strict and value(strict[1]), value(last[-1]) if last else None


def grade(text, gold):
    """
    Generated text against the gold string, a number, a letter A-Z, "yes" or "no" -> {"strict", "flexible", "parsed"}.
    A missing answer is wrong. ValueError for any other gold.
    """
    gold = str(gold).strip()
    if to_number(gold) is not None:
        (strict, flexible), right = answers(text, NUMBER, to_number), to_number(gold)
    elif re.fullmatch("[A-Z]", gold):
        (strict, flexible), right = answers(text, r"\b[A-Z]\b", str), gold
    elif gold.lower() in ("yes", "no"):
        (strict, flexible), right = answers(text, r"(?i:\byes\b|\bno\b)", str.lower), gold.lower()
    else:
        raise ValueError(f"the gold answer must be a number, a letter A-Z, yes or no, got {gold!r}")
    return {"strict": strict == right, "flexible": flexible == right, "parsed": strict is not None}


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
    texts, end = {arm: [None] * len(prompts) for arm in arms}, end_token(enc)
    for batch in tqdm(batches([len(p) for p in prompts], batch_size), desc="answers", leave=False, disable=None):
        ids = [prompts[i] for i in batch]
        n_chunks = math.ceil(min(max(map(len, ids)) + max_new_tokens, model.config.block_size) / K)
        on = None
        for arm in arms:
            if arm == "on" or (arm == "shuffled" and on is None):
                on = out = model.generate(ids, max_new_tokens, stop=end)
            if arm == "off":
                out = model.generate(ids, max_new_tokens, codes="off", stop=end)
            if arm == "random":
                codes = random_codes(batch, n_chunks, C, seed).to(device)
                out = model.generate(ids, max_new_tokens, codes=codes, stop=end)
            if arm == "shuffled":
                used = []
                for prompt, new in zip(ids, on):
                    whole = torch.tensor([prompt + new], device=device)[:, : model.config.block_size]
                    used.append(model.route(whole)[0].argmax(-1).cpu())
                codes = shuffled_codes(used, n_chunks, batch, seed).to(device)
                out = model.generate(ids, max_new_tokens, codes=codes, stop=end)
            for i, new in zip(batch, out):
                texts[arm][i] = enc.decode([t for t in new if t < enc.n_vocab])  # added tokens have no text
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
# Statistics over problems and seeds.

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # t at 97.5 %, 1 to 10 degrees


def bootstrap(a, b, weights=None, n=10_000, seed=0):
    """
    mean(a) - mean(b) (weighted) and its 95 % interval -> (diff, low, high). a, b: (problems,), paired by problem, or
    (seeds, problems), paired by both. The interval is a bootstrap over problems. With several seeds it is widened, in
    squares, by Student's interval for the mean over seeds: a bootstrap of 5 seeds would miss one time in six.
    """
    d = np.atleast_2d(np.asarray(a, float) - np.asarray(b, float))
    w = np.ones(d.shape[1]) if weights is None else np.asarray(weights, float)
    runs, P = d @ w / w.sum(), d.shape[1]  # (seeds,): each run's own difference
    pick = np.random.default_rng(seed).multinomial(P, np.full(P, 1 / P), size=n)  # (n, problems)
    diff, around = runs.mean(), np.quantile(pick @ (w * d.mean(0)) / (pick @ w), [0.025, 0.975]) - runs.mean()
    if len(runs) > 1:
        df = len(runs) - 1
        t = STUDENT[df - 1] if df <= len(STUDENT) else 1.96 + 2.5 / df
        around = np.copysign(np.hypot(around, t * runs.std(ddof=1) / math.sqrt(len(runs))), [-1, 1])
    return tuple(map(float, (diff, *(diff + around))))


def mcnemar(a, b):
    """Exact two-sided McNemar p of paired verdicts: chance of a split of the disagreements at least as uneven."""
    helped, hurt = sum(x > y for x, y in zip(a, b)), sum(x < y for x, y in zip(a, b))
    n = helped + hurt
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(min(helped, hurt) + 1)) / 2**n)


def fitting(model, enc, rows, suffix=()):
    """(items, their rows, how many rows were too long for the context); ValueError if none fits."""
    encoded = [encode_row(r, enc, suffix) for r in rows]
    kept = [i for i, (ids, _) in enumerate(encoded) if len(ids) - 1 <= model.config.block_size]
    if not kept:
        raise ValueError(f"none of the {len(rows)} rows fits the context of {model.config.block_size} tokens")
    return [encoded[i] for i in kept], [rows[i] for i in kept], len(rows) - len(kept)


def evaluate(model, enc, rows, arms=ARMS, generate=True, max_new_tokens=320, batch_size=128, seed=0, suffix=()):
    """
    Every arm on the same problems. Returns (summary, records): per arm nats per answer token and, where answers are
    generated, strict and flexible accuracy and parse rate (fractions); nats and strict with their paired differences to
    "off" and, for random and shuffled codes, to "on", each with its 95 % bootstrap interval; records is one dict for
    each problem. Rows too long for the context are left out and counted. `suffix`: token ids that end every prompt.
    """
    for arm in arms:
        if arm not in ARMS:
            raise ValueError(f"arms must be among {', '.join(ARMS)}, got {arm!r}")
    was_training, start = model.training, time.time()
    model.eval()
    items, rows, left_out = fitting(model, enc, rows, suffix)
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
    width = max(8, *map(len, summaries))
    lines = [f"{'run':>{width}} {'codes':9}{'nats/token':>11}{'  minus off [95 %]':27}{'strict':>7}"
             f"{'  minus off [95 %]':23}{'flexible':>9}{'parsed':>8}"]
    for name, summary in summaries.items():
        for arm, s in summary["arms"].items():
            line = f"{name:>{width}} {arm:9}{s['nats']:11.4f}"
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


def finished_run(folder):
    """(config, summary, records) of a folder that train.py has finished. ValueError says what is missing."""
    files = [Path(folder, name) for name in ("config.json", "summary.json", "answers.jsonl")]
    missing = [f.name for f in files if not f.exists()]
    if missing:
        raise ValueError(f"{folder}: no finished and evaluated run of train.py, {', '.join(missing)} not found")
    try:
        config, summary, records = (json.loads(files[0].read_text()), json.loads(files[1].read_text()),
                                    [json.loads(line) for line in files[2].read_text().splitlines()])
        _ = config["method"], config["seed"], summary["steps"], summary["train_seconds"], summary["arms"]["off"]["nats"]
        _ = [(r["gold"], r["tokens"], r["off"]["nll"]) for r in records]
    except (ValueError, KeyError, TypeError) as e:
        names = ", ".join(f.name for f in files)
        raise ValueError(f"{folder}: {names} are not as train.py writes them: {e!r}") from e
    return config, summary, records


def compare(runs, reference=None):
    """
    Runs of several methods and seeds, {name: (config, summary, records)} -> a list of dicts, one for each group.

    Runs that differ in nothing but their seed are one group. Differences are to the group of the run `reference` (its
    name), by default of the first sft run given, paired by seed and problem. Accuracy and nats are those with the codes
    on where a method has any. Runs without records get their means alone. ValueError names a run that was evaluated on
    other problems.
    """
    once = ("seed", "out", "resume", "baseline", "device", "save_every", "tiny", "method")  # not part of the setting
    problems = lambda name: [(r.get("question"), r["gold"], r["tokens"]) for r in runs[name][2]]  # noqa: E731
    reference = reference or next((name for name, (config, _, _) in runs.items() if config["method"] == "sft"), None)
    if reference not in runs:
        raise ValueError(f"--compare needs the run that the others are compared with: one of --method sft, or "
                         f"--reference RUN among the runs given; got {reference}")
    first = next(iter(runs))
    groups, labels = {}, {}  # label -> {seed: (summary, records)}; name -> label
    for name, (config, summary, records) in runs.items():
        if problems(name) != problems(first):
            raise ValueError(f"{name} was evaluated on other problems than {first}, or in other tokens")
        same = [c for c, _, _ in runs.values() if c["method"] == config["method"]]
        label = ", ".join([config["method"], *(f"{k} {v}" for k, v in config.items()  # only what sets its runs apart
                                               if k not in once and any(c.get(k) != v for c in same))])
        if config["seed"] in groups.setdefault(label, {}):
            raise ValueError(f"{name}: a second run of {label} with seed {config['seed']}")
        groups[label][config["seed"]], labels[name] = (summary, records), label
    reference = labels[reference]

    def matrix(label, seeds, key):
        """(seeds, problems)"""
        return [[r["on" if "on" in r else "off"].get(key) for r in groups[label][s][1]] for s in seeds]

    lines = []
    for label, group in groups.items():
        summaries = [summary for summary, _ in group.values()]
        arm = "on" if "on" in summaries[0]["arms"] else "off"
        line = {"label": label, "reference": label == reference, "seeds": sorted(group),
                "steps": sorted({s["steps"] for s in summaries})}
        for key, values in {
            "strict": [s["arms"][arm].get("strict") for s in summaries],
            "strict_off": [s["arms"]["off"].get("strict") for s in summaries],
            "nats_on": [s["arms"].get("on", {}).get("nats") for s in summaries],
            "nats_off": [s["arms"]["off"]["nats"] for s in summaries],
            "compute_seconds": [s.get("compute_seconds") for s in summaries],
            "train_seconds": [s["train_seconds"] for s in summaries],
        }.items():
            if None not in values:
                line[key] = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
        seeds = sorted(group.keys() & groups[reference].keys())
        if not seeds:
            raise ValueError(f"no seed of {label}, {sorted(group)}, is one of {reference}, {sorted(groups[reference])}")
        line["paired_seeds"] = seeds
        if label != reference and runs[first][2]:
            tokens = np.array([r["tokens"] for r in runs[first][2]], float)
            a, b = (np.array(matrix(g, seeds, "nll")) / tokens for g in (label, reference))
            line["nats_minus_reference"] = bootstrap(a, b, tokens)
            a, b = (matrix(g, seeds, "strict") for g in (label, reference))
            if None not in a[0] + b[0]:
                line["strict_minus_reference"] = bootstrap(a, b)
                line["mcnemar_p"] = [mcnemar(x, y) for x, y in zip(a, b)]
        lines.append(line)
    return lines


def compare_table(lines):
    """The groups of `compare` in Markdown. Mean ± sd over seeds; McNemar's p: median over seeds (least - most)."""

    def pair(x, scale=1.0, form=".1f"):
        if x is None:
            return ""
        return f"{scale * x[0]:{form}}" + ("" if x[1] is None else f" ± {scale * x[1]:{form}}")

    def interval(x, scale, form):
        return "" if x is None else "{:+{f}} [{:+{f}}, {:+{f}}]".format(*(scale * v for v in x), f=form)

    to = next(line["label"] for line in lines if line["reference"])
    out = [f"| run | seeds | accuracy % | codes off | minus {to}, points [95 %] | McNemar p | nats on | nats off "
           f"| minus {to}, nats [95 %] | steps | compute s | wall s |", "|---" * 12 + "|"]
    for line in lines:
        p = sorted(line.get("mcnemar_p", []))
        ps = "" if not p else f"{np.median(p):.2g}" + (f" ({p[0]:.2g} - {p[-1]:.2g})" if len(p) > 1 else "")
        off = pair(line.get("strict_off"), 100) if "nats_on" in line else ""
        seeds = f"{len(line['seeds'])}"
        if line["paired_seeds"] != line["seeds"]:
            seeds += f" ({len(line['paired_seeds'])} paired)"
        cells = [line["label"], seeds, pair(line.get("strict"), 100), off,
                 interval(line.get("strict_minus_reference"), 100, ".1f"), ps, pair(line.get("nats_on"), 1, ".4f"),
                 pair(line["nats_off"], 1, ".4f"), interval(line.get("nats_minus_reference"), 1, ".4f"),
                 ", ".join(map(str, line["steps"])), pair(line.get("compute_seconds"), 1, ".0f"),
                 pair(line["train_seconds"], 1, ".0f")]
        out.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(out)


def write(path, save):
    """Write a file so that it is either whole or absent: save(temporary path), then rename."""
    tmp = path.with_name(path.name + ".tmp")
    try:
        save(tmp)
        os.replace(tmp, path)
    except (OSError, RuntimeError) as e:  # torch.save says RuntimeError when the disk is full
        raise OSError(f"cannot write {path}: {e}") from e
    finally:
        tmp.unlink(missing_ok=True)


def precision(dtype, device):
    """The context in which a model runs for --dtype auto, float32 or bfloat16 on a device: autocast, or nothing."""
    bf16 = dtype == "bfloat16"
    if dtype == "auto":
        bf16 = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device, torch.bfloat16) if bf16 else contextlib.nullcontext()


def load_run(path):
    """A run's folder (or its ckpt.pt) -> (model, encoding, tokens that end every prompt, the settings of the run)."""
    path = Path(path)
    saved = load_checkpoint(path / "ckpt.pt" if path.is_dir() else path)
    if not {"tokenizer", "train"} <= saved.keys():
        raise ValueError(f"{path}: a checkpoint without tokenizer and settings; give a run made by train.py")
    return GPT.from_checkpoint(saved), load_encoding(saved["tokenizer"]), saved.get("suffix", []), saved["train"]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("run", nargs="*", help="folder made by train.py, or its ckpt.pt; several with --compare; with "
                                               "--ask the newest in runs/ if none is given")
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--compare", action="store_true", help="one table of finished runs, also as .md and .json")
    task.add_argument("--analyze", action="store_true", help="causal tests of the codes: RUN/analysis.json, a summary")
    task.add_argument("--report", action="store_true", help="RUN/report.html: problems in the colours of their codes, "
                      "and all of RUN/analysis.json as pictures")
    task.add_argument("--ask", metavar="QUESTION", help="print the answer to one question, with its codes and without")
    parser.add_argument("--reference", metavar="RUN", help="with --compare: the run whose setting the others are "
                                                           "compared with (default: the first of --method sft)")
    parser.add_argument("--data", help="as in train.py (default: what the run was trained on)")
    parser.add_argument("--split", default="test", help="split of the data (default: test)")
    parser.add_argument("--rows", type=int, default=0, help="problems; 0 = all of the split (--report: 6)")
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS, help="what happens to the codes")
    parser.add_argument("--generate", action=argparse.BooleanOptionalAction, default=True,
                        help="generate and grade answers, not only score their likelihood")
    parser.add_argument("--max_new_tokens", type=int, default=320, help="longest answer generated")
    parser.add_argument("--batch_size", type=int, default=128, help="prompts generated at once")
    parser.add_argument("--seed", type=int, default=0, help="of the random and shuffled codes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        choices=("cpu", "cuda", "mps"))
    parser.add_argument("--out", help="one JSON line a problem (default: RUN/eval-DATA-SPLIT.jsonl); the summary goes "
                                      "beside it, to .json. With --compare: NAME of the table (default: runs/compare); "
                                      "with --analyze, --report: the .json or .html file")
    args = parser.parse_args(argv)
    try:
        if args.compare:
            lines = compare({folder: finished_run(folder) for folder in args.run}, args.reference)
            out = Path(args.out or "runs/compare")
            if not out.parent.is_dir():
                raise ValueError(f"--out must be a file NAME in an existing folder, got {out}")
            write(out.with_suffix(".json"), lambda p: p.write_text(json.dumps(lines, indent=1)))
            write(out.with_suffix(".md"), lambda p: p.write_text(compare_table(lines) + "\n"))
            print(compare_table(lines))
            return
        if not args.run and args.ask is not None:
            found = [p.parent for p in Path("runs").rglob("ckpt.pt")]
            found = [p for p in found if p.parent not in found]  # not the baseline inside a run
            args.run = [str(p) for p in sorted(found, key=lambda p: (p / "ckpt.pt").stat().st_mtime)[-1:]]
        if len(args.run) != 1:
            raise ValueError(f"one run at a time, a folder made by train.py; got {' '.join(args.run) or 'none'}; "
                             f"several only with --compare")
        args.run = args.run[0]
        if args.rows < 0 or args.batch_size < 1 or args.max_new_tokens < 1 or args.seed < 0:
            raise ValueError(f"--rows and --seed must be >= 0, --batch_size and --max_new_tokens >= 1, "
                             f"got {args.rows}, {args.seed}, {args.batch_size}, {args.max_new_tokens}")
        folder = Path(args.run) if Path(args.run).is_dir() else Path(args.run).parent
        kind = ".json" if args.analyze else ".html" if args.report else ".jsonl"
        if args.out and (Path(args.out).suffix != kind or not Path(args.out).parent.is_dir()):
            raise ValueError(f"--out must be a file NAME{kind} in an existing folder, got {args.out}")
        if args.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: no CUDA GPU was found")
        model, enc, suffix, settings = load_run(args.run)
        model.to(args.device)
        data = args.data or settings["data"]
        if args.ask is not None:
            from analysis.ask import ask
            with precision(settings["dtype"], args.device):
                print(f"{folder}\n" + ask(model, enc, args.ask, args.max_new_tokens, suffix, sys.stdout.isatty()))
            return
        rows = load_rows(data, args.split, args.rows or (6 if args.report else None))
        if args.report:
            from analysis.report import report
            out = Path(args.out or folder / "report.html")
            with precision(settings["dtype"], args.device):
                report(folder, model, enc, rows, out, suffix, args.seed, args.max_new_tokens)
            print(f"wrote {out}")
            return
        if args.analyze:
            from analysis.causal import analyze  # here, since it imports this file
            with precision(settings["dtype"], args.device):
                found = analyze(model, enc, rows, args.generate, args.max_new_tokens, args.batch_size, args.seed,
                                suffix)
            found = {"run": str(folder), "method": settings["method"], "data": data, "split": args.split,
                     "config": dataclasses.asdict(model.config), **found}
            out = Path(args.out or folder / "analysis.json")
            write(out, lambda p: p.write_text(json.dumps(found, indent=1)))
            print(f"{found['problems']} problems of {data}/{args.split} ({found['left_out']} too long for the context)")
            print("\n".join(found["findings"]) + f"\neverything: {out}")
            return
        with precision(settings["dtype"], args.device):  # as train.py evaluated it
            summary, records = evaluate(model, enc, rows, args.arms, args.generate,
                                        args.max_new_tokens, args.batch_size, args.seed, suffix)
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
