"""
Evaluate a trained run: grade its answers with the codes on, off, random and shuffled, on the same
problems; or use it: ask it one question, or a file of them.

    python eval.py runs/NAME                           # the test split of the run's own data
    python eval.py runs/NAME --split test_numbers --rows 200
    python eval.py runs/NAME --no-generate             # likelihood only: fast, for large models
    python eval.py runs/NAME --ask "Mia had 12 shells. She found 7 more. How many had she then?"
    python eval.py runs/NAME --code best --ask questions.jsonl --out answers.jsonl

--code answers with one code everywhere: its number, or the one that was chosen on val. A file of
questions has one {"question": "..."} a line; each answer is a line of question, answer and final, what
follows the first "####" (null if nothing does).

The arms: what happens to the codes, in prompt and answer alike.
    on        the router's argmax, as in deployment
    off       the plain language model
    random    every chunk gets a uniformly drawn code
    shuffled  the codes that "on" used, permuted among the chunks of the row
    code 3    code 3 everywhere
    each      one such arm for each code (of at most 16); the best on val is marked
An arm that changes nothing is reported as such.
"""

import argparse
import hashlib
import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import plumbing
from data.files import read_json, read_jsonl, text_field, to_row
from data.grading import check_golds, grade
from data.handles import describe, follow_plans
from data.modes import LINES, way_of
from data.tokens import DATASETS, collate, encode_row, end_tokens, load_rows
from dlr import load_checkpoint

ARMS = ("on", "off", "random", "shuffled")
MAX_EACH, CHOOSE_ON = 16, 200  # "each" makes arms of at most so many codes, chosen on so many rows of val

# ---- The arms. Codes are drawn from seeds of each problem, so batching has no say. ---------------


def each_code(model):
    """The arms "code 0", "code 1", ..., of a model with at most MAX_EACH codes."""
    if model.config.n_codes > MAX_EACH:
        raise ValueError(f"--arms each is for at most {MAX_EACH} codes, this model has {model.config.n_codes}")
    return [f"code {code}" for code in range(model.config.n_codes)]


def choosing_rows(data, n):
    """Rows of val on which a code is chosen: as many as are evaluated, at most CHOOSE_ON."""
    return load_rows(data, "val", min(CHOOSE_ON, n), at_most=True)


def arm_codes(arm, problems, own, n_chunks, model, seed):
    """
    What model(codes=...) takes for an arm: None, "off", an int, or codes (len(problems), n_chunks).
    own: the codes of each problem's chunks under "on", (m,) each, which "shuffled" permutes, and repeats
    if an answer becomes longer.
    """
    if arm in ("on", "off"):
        return None if arm == "on" else "off"
    if arm.startswith("code "):
        code = int(arm.removeprefix("code "))
        if code >= model.config.n_codes:
            raise ValueError(f"there is no code {code}: this model has codes 0 to {model.config.n_codes - 1}")
        return code
    if arm not in ARMS:
        raise ValueError(f"arms must be among {', '.join(ARMS)}, each, got {arm!r}")
    codes = []
    for j, problem in enumerate(problems):
        generator = torch.Generator().manual_seed(seed + 7919 * problem)
        if arm == "random":
            codes.append(torch.randint(model.config.n_codes, (n_chunks,), generator=generator))
        else:
            permuted = own[j][torch.randperm(len(own[j]), generator=generator)]
            codes.append(permuted.repeat(math.ceil(n_chunks / len(permuted)))[:n_chunks])
    return torch.stack(codes).to(model.cos.device)


def by_length(lengths, batch_size):
    """Problem numbers in batches of similar length."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


@torch.no_grad()
def answer(model, enc, prompts, arms, max_new_tokens=320, batch_size=128, seed=0):
    """Greedy answers to prompts (lists of token ids) under each arm: {arm: texts}, in their order."""
    K, device = model.config.chunk, model.cos.device
    texts = {arm: [None] * len(prompts) for arm in arms}
    for batch in tqdm(by_length([len(p) for p in prompts], batch_size), "answers", leave=False, disable=None):
        ids = [prompts[i] for i in batch]
        n_chunks = math.ceil(min(max(map(len, ids)) + max_new_tokens, model.config.block_size) / K)
        on, own = None, []
        if "on" in arms or "shuffled" in arms:
            on = model.generate(ids, max_new_tokens, stop=end_tokens(enc))
        if "shuffled" in arms:
            for prompt, new in zip(ids, on):
                whole = torch.tensor([(prompt + new)[: model.config.block_size]], device=device)
                own.append(model.route(whole)[0].argmax(-1).cpu())
        for arm in arms:
            codes = arm_codes(arm, batch, own, n_chunks, model, seed)
            out = on if arm == "on" else model.generate(ids, max_new_tokens, codes, end_tokens(enc))
            for i, new in zip(batch, out):
                texts[arm][i] = decode(enc, new)
    return texts


def decode(enc, ids):
    """Text of token ids; a model may have more tokens than its tokenizer, those have no text."""
    return enc.decode([t for t in ids if t < enc.n_vocab])


@torch.no_grad()
def likelihood(model, items, arms, batch_size=32, seed=0):
    """
    How likely is each item's answer? items: (ids, n_prompt) as of encode_row. Returns {arm: summed
    negative log-likelihood of each answer in nats (n,)} and the answers' lengths in tokens (n,).
    """
    K, device = model.config.chunk, model.cos.device
    nll = {arm: np.zeros(len(items)) for arm in arms}
    counts = np.array([len(ids) - n_prompt for ids, n_prompt in items])
    for batch in by_length([len(ids) for ids, _ in items], batch_size):
        idx, targets = (t.to(device) for t in collate([items[i] for i in batch]))
        h = model.lower(idx)
        routed = model.router_logits(h[:, ::K]).argmax(-1)  # (B, M)
        real = [math.ceil((len(items[i][0]) - 1) / K) for i in batch]  # chunks that are not padding
        own = [codes[:m].cpu() for codes, m in zip(routed, real)]
        for arm in arms:
            codes = routed if arm == "on" else arm_codes(arm, batch, own, routed.size(1), model, seed)
            steered = h if arm == "off" else model.steer(h, codes)
            nll[arm][batch] = -model.token_logp(steered, targets).sum(-1).cpu().double().numpy()
    return nll, counts


# ---- All arms on the same problems. --------------------------------------------------------------


def bootstrap(a, b, weights=None, n=10_000, seed=0):
    """
    The (weighted) mean of a - b over problems and its 95 % interval: (diff, low, high), from n draws
    of as many problems, with replacement.
    """
    d = np.asarray(a, float) - np.asarray(b, float)
    w = np.ones(len(d)) if weights is None else np.asarray(weights, float)
    picks = np.random.default_rng(seed).multinomial(len(d), np.full(len(d), 1 / len(d)), size=n)
    draws = picks @ (w * d) / (picks @ w)  # (n,)
    return float(d @ w / w.sum()), *map(float, np.quantile(draws, [0.025, 0.975]))


def evaluate(model, enc, rows, arms=ARMS, generate=True, max_new_tokens=320, batch_size=128,
             seed=0, suffix=(), choose_on=()):
    """
    Every arm on the same problems -> (summary, records). Per arm: nats per answer token and, where
    answers are generated, the fractions strict, flexible and parsed; differences in nats and strict to
    "off" (of the other arms also to "on") with 95 % intervals, and the ways in which they are told.
    records: a dict per problem. Rows too long for the context are left out and counted.
    suffix: ids that end every prompt. choose_on: rows of val; the code that, forced, does best on them
    is summary["chosen"], its scores there and those of the others summary["choice"]: see choose.
    """
    if "each" in arms:
        arms = [arm for arm in arms if arm != "each"] + each_code(model)
    arms = list(dict.fromkeys(arms))  # each one once
    items, kept = [], []
    for row in rows:
        ids, n_prompt = encode_row(row, enc)
        ids = ids[:n_prompt] + list(suffix) + ids[n_prompt:]
        if len(ids) - 1 <= model.config.block_size:
            items.append((ids, n_prompt + len(suffix)))
            kept.append(row)
    if not kept:
        raise ValueError(f"none of the {len(rows)} rows fits the context of {model.config.block_size} tokens")
    if generate:
        check_golds(kept)
    nll, counts = likelihood(model, items, arms, min(batch_size, 32), seed)
    if generate:
        prompts = [ids[:n_prompt] for ids, n_prompt in items]
        texts = answer(model, enc, prompts, arms, max_new_tokens, batch_size, seed)

    records = []
    for i, row in enumerate(kept):
        record = {"problem": i, "question": row["question"], "gold": row["final"],
                  "tokens": int(counts[i])}
        for arm in arms:
            record[arm] = {"nll": float(nll[arm][i])}
            if generate:
                text = texts[arm][i]
                record[arm] |= {"text": text, "way": way_of(text), **grade(text, row["final"])}
        records.append(record)

    summary = {"rows": len(kept), "left_out": len(rows) - len(kept), "arms": {}}
    for arm in arms:
        s = {"nats": float(nll[arm].sum() / counts.sum())}
        for key in ("strict", "flexible", "parsed") if generate else ():
            s[key] = float(np.mean([r[arm][key] for r in records]))
        if generate:
            ways = Counter(r[arm]["way"] for r in records)
            s["ways"] = {way: n / len(kept) for way, n in ways.most_common()}
        against = {"off": (), "on": ("off",)}.get(arm, ("off", "on"))
        for other in [other for other in against if other in arms]:
            s[f"nats_minus_{other}"] = bootstrap(nll[arm] / counts, nll[other] / counts, counts)
            s[f"same_as_{other}"] = bool((nll[arm] == nll[other]).all())
            if generate:
                a, b = ([r[x]["strict"] for r in records] for x in (arm, other))
                s[f"strict_minus_{other}"] = bootstrap(a, b)
                s[f"same_as_{other}"] &= texts[arm] == texts[other]
        summary["arms"][arm] = s
    if choose_on:
        codes = each_code(model)
        on_val = evaluate(model, enc, choose_on, codes, generate, max_new_tokens, batch_size, seed, suffix)
        summary["chosen"], summary["choice"] = choose(*on_val)
    return summary, records


def choose(summary, records):
    """
    The best of the arms that were evaluated on val: (arm, why). The most accurate one, or, of those that
    accuracy does not tell from it, its "rivals", the one of the greatest likelihood.
    """
    arms = summary["arms"]
    rivals = list(arms)
    if "strict" in arms[rivals[0]]:
        right = {arm: [r[arm]["strict"] for r in records] for arm in arms}
        most = max(arms, key=lambda arm: arms[arm]["strict"])
        # Within noise: the 95 % interval of the difference, paired by problem, reaches down to 0.
        rivals = [arm for arm in arms if bootstrap(right[most], right[arm])[1] <= 0]
    chosen = min(rivals, key=lambda arm: arms[arm]["nats"])
    scores = {arm: {key: s[key] for key in ("nats", "strict") if key in s} for arm, s in arms.items()}
    return chosen, {"rows": summary["rows"], "rivals": rivals, "scores": scores}


def describe_choice(chosen, choice):
    """What decided, the chosen arm against the next best: "31.0 against 2.5 % of 200"."""
    scores, rows = choice["scores"], choice["rows"]
    others = [arm for arm in scores if arm != chosen]
    rivals = [arm for arm in others if arm in choice["rivals"]]
    if not others:
        return "the only code"

    def percent(other):
        return f"{100 * scores[chosen]['strict']:.1f} against {100 * scores[other]['strict']:.1f} %"

    if not rivals:
        return f"{percent(max(others, key=lambda arm: scores[arm]['strict']))} of {rows}"
    other = min(rivals, key=lambda arm: scores[arm]["nats"])
    nats = f"{scores[chosen]['nats']:.4f} against {scores[other]['nats']:.4f} nats/token of {rows}"
    return f"{nats}; {percent(other)} is within noise" if "strict" in scores[chosen] else nats


CAPTION = """\
nats/token: minus log-likelihood of a held-out answer's token; less is better. strict: right after the first ####.
minus off: against the same weights without codes. Intervals: over the problems of this run; seeds differ, too."""


def table(summaries):
    """
    {name of a run: summary} as text, one line for each arm. Said only where there is something to say: how
    answers are told, if in several ways; how many are right by their last number (flexible), if that is
    another number; how many have no answer after ####.
    """
    told = {way for summary in summaries.values() for s in summary["arms"].values() for way in s.get("ways", ())}
    told.discard("none")  # cut short, without ####
    wide = max(14, *map(len, summaries))
    lines = [f"{'run':>{wide}} {'codes':9}{'nats/token':>11}{'  minus off [95 %]':28}{'strict':>7}  minus off [95 %]"]
    for name, summary in summaries.items():
        for arm, s in summary["arms"].items():
            line = f"{name:>{wide}} {arm:9}{s['nats']:11.4f}"
            if "nats_minus_off" in s:
                line += "  {:+.4f} [{:+.4f}, {:+.4f}]".format(*s["nats_minus_off"])
            if "strict" in s:
                line = line.ljust(wide + 49) + f"{s['strict']:7.1%}"
                if "strict_minus_off" in s:
                    points = [100 * x for x in s["strict_minus_off"]]
                    line += "  {:+.1f} [{:+.1f}, {:+.1f}]".format(*points)
                notes = [f"{share:.0%} {way}" for way, share in s["ways"].items()] if len(told) > 1 else []
                if s["flexible"] != s["strict"]:
                    notes.append(f"flexible {s['flexible']:.1%}")
                if s["parsed"] < 0.995:
                    notes.append(f"{1 - s['parsed']:.0%} without an answer after ####")
                line = f"{line:{wide + 76}}  {', '.join(notes)}".rstrip()
            if arm == summary.get("chosen"):
                line += "  <- best on val"
                if "choice" in summary:
                    line += f": {describe_choice(arm, summary['choice'])}"
            same = [other for other in ("on", "off") if s.get(f"same_as_{other}")]
            lines.append(line + (f"  changes nothing: the same as {same[0]}" if same else ""))
    return "\n".join(lines)


# ---- Runs, files, the command line. --------------------------------------------------------------


def ask(model, enc, question, max_new_tokens=320, suffix=()):
    """The answer to one question as text: codes on, the code of each chunk before it, then codes off."""
    K, end = model.config.chunk, end_tokens(enc)
    ids, n_prompt = encode_row({"question": question.strip(), "answer": ""}, enc)
    prompt = ids[:n_prompt] + list(suffix)
    on = model.generate([prompt], max_new_tokens, stop=end)[0]
    off = model.generate([prompt], max_new_tokens, codes="off", stop=end)[0]
    if not model.codebook.weight.any():
        return f"this run has no codes; its answer:\n{decode(enc, off).strip()}"
    ids = (prompt + on)[: model.config.block_size]
    codes = model.route(torch.tensor([ids], device=model.cos.device))[0].argmax(-1).tolist()  # (M,)
    chunks = [f"[{code}]{decode(enc, ids[m * K : m * K + K])}" for m, code in enumerate(codes)]
    out = (f"codes on, [code] before each chunk of {K} tokens ({len(set(codes))} codes used):\n"
           f"{''.join(chunks)}\n\n"
           f"answer with codes on:\n{decode(enc, on).strip()}\n\n"
           f"answer with codes off:{'  (the same)' if on == off else ''}\n{decode(enc, off).strip()}")
    if model.config.n_codes > MAX_EACH:
        return out
    said = {}  # text: the codes that, forced everywhere, say it
    for arm, (text,) in answer(model, enc, [prompt], each_code(model), max_new_tokens).items():
        said.setdefault(text.strip(), []).append(arm.removeprefix("code "))
    for text, same in said.items():
        out += f"\n\nanswer with code {', '.join(same)} everywhere:\n{text}"
    return out


def serve(model, enc, rows, arm, max_new_tokens=320, batch_size=128, suffix=()):
    """
    Answers for use, under one arm, to rows with a "question" and "where" it is from: dicts of question,
    answer and final, the text after the first "####" or None.
    """
    prompts = []
    for row in rows:
        ids, n_prompt = encode_row({"question": row["question"], "answer": ""}, enc)
        prompts.append(ids[:n_prompt] + list(suffix))
        if len(prompts[-1]) > model.config.block_size:
            raise ValueError(f"{row['where']}: the question has {len(prompts[-1])} tokens, the context "
                             f"(block_size) {model.config.block_size}")
    texts = answer(model, enc, prompts, [arm], max_new_tokens, batch_size)[arm]
    served = []
    for row, text in zip(rows, texts):
        final = text.partition("####")[2].strip()
        served.append({"question": row["question"], "answer": text.strip(), "final": final or None})
    return served


def read_questions(asked):
    """--ask: the rows of a file of questions, or one question as a row."""
    if not asked.endswith(".jsonl"):
        if not asked.strip():
            raise ValueError("--ask: the question is empty")
        return [{"question": asked.strip(), "where": "--ask"}]
    rows = [to_row(lambda item: {"question": text_field(item, "question")}, item, where)
            for where, item in read_jsonl(asked)]
    if not rows:
        raise ValueError(f"{asked} has no questions")
    return rows


def reply(args, model, enc, suffix, folder):
    """What --ask prints or writes."""
    rows = read_questions(args.ask)
    many = args.ask.endswith(".jsonl")
    if not many and args.code is None:
        print(ask(model, enc, args.ask, args.max_new_tokens, suffix))
        return
    arm = "on"  # the router's codes
    if args.code is not None:
        if not model.codebook.weight.any():
            raise ValueError("--code: this run has no codes")
        arm = f"code {plumbing.find_code(folder, args.code)}"
    if args.out:
        plumbing.check_writable(Path(args.out))  # before the work, not after it
    answers = serve(model, enc, rows, arm, args.max_new_tokens, args.batch_size, suffix)
    if not many:
        print(answers[0]["answer"])
    elif args.out:
        plumbing.write_records(Path(args.out), answers)
        print(f"{len(answers)} answers: {args.out}")
    else:
        for record in answers:
            print(json.dumps(record))


def arm_name(text):
    """One of --arms."""
    if re.fullmatch("code [0-9]+", text):
        return f"code {int(text.removeprefix('code '))}"
    if text not in (*ARMS, "each"):
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(ARMS)}, each, "
                                         '"code 0", "code 1", ...)')
    return text


def results_file(folder, data, split):
    """Where the records go: eval-DATA-SPLIT.jsonl; a longer name if other data have taken that one."""
    flat = re.sub(r"[/\\]", "-", split)
    name = f"eval-{Path(data).name}-{flat}"
    taken = folder / f"{name}.json"
    if taken.exists():
        before = read_json(taken)
        if (before.get("data", data), before.get("split", split)) != (data, split):
            name += "-" + hashlib.sha256(f"{data} {split}".encode()).hexdigest()[:8]
    return folder / f"{name}.jsonl"


def load_run(path):
    """A run's folder or ckpt.pt -> (model, encoding, ids that end every prompt (pause), flags)."""
    path = Path(path)
    saved = load_checkpoint(path / "ckpt.pt" if path.is_dir() else path)
    if not {"tokenizer", "train"} <= saved.keys():
        raise ValueError(f"{path}: a checkpoint without tokenizer and flags; give a run made by train.py")
    return *plumbing.open_model(saved), saved.get("suffix", []), saved["train"]


def main(argv=None):
    plumbing.safe_output()
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder made by train.py, or its ckpt.pt")
    parser.add_argument("--ask", metavar="QUESTION", help="print the answer to one question, codes on and off; or "
                        "FILE.jsonl: answer all questions of a file")
    parser.add_argument("--code", help="of --ask: answer with this code everywhere; its number, or best (on val)")
    parser.add_argument("--out", metavar="FILE", help="of --ask FILE.jsonl: write the answers there, do not print them")
    parser.add_argument("--data", help="as in train.py (default: what the run was trained on)")
    parser.add_argument("--split", default="test", help="split of the data (default: test)")
    parser.add_argument("--rows", type=int, default=0, help="problems; 0 = all of the split")
    parser.add_argument("--arms", nargs="+", default=ARMS, type=arm_name, help="what happens to the codes")
    parser.add_argument("--generate", action=argparse.BooleanOptionalAction, default=True,
                        help="generate and grade answers, not only score their likelihood")
    parser.add_argument("--max_new_tokens", type=int, default=320, help="longest answer generated")
    parser.add_argument("--batch_size", type=int, default=128, help="prompts generated at once")
    parser.add_argument("--seed", type=int, default=0, help="of the random and shuffled codes")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    args = parser.parse_args(argv)
    with plumbing.one_line_errors("eval.py"):
        if min(args.rows, args.seed) < 0 or min(args.batch_size, args.max_new_tokens) < 1:
            raise ValueError(f"--rows and --seed must be >= 0, --batch_size and --max_new_tokens >= 1, got "
                             f"{args.rows}, {args.seed}, {args.batch_size}, {args.max_new_tokens}")
        if args.ask is None and (args.code is not None or args.out):
            raise ValueError('--code and --out go with --ask; to grade the answers of a code: --arms "code 1"')
        if args.out and not args.ask.endswith(".jsonl"):
            raise ValueError(f"--out takes the answers to --ask FILE.jsonl, got --ask {args.ask!r}")
        device, _ = plumbing.find_device(args.device)
        model, enc, suffix, flags = load_run(args.run)
        model.to(device).eval()
        plumbing.spare_threads(model, device)
        run = Path(args.run)
        folder = run if run.is_dir() else run.parent
        with plumbing.precision(flags["dtype"], device):  # as it was trained
            if args.ask is not None:
                reply(args, model, enc, suffix, folder)
                return
            data = args.data or flags["data"]
            if data not in DATASETS:
                data = str(Path(data).resolve())
            out = results_file(folder, data, args.split)
            rows = load_rows(data, args.split, args.rows or None)
            val = choosing_rows(data, len(rows)) if "each" in args.arms else ()
            summary, records = evaluate(model, enc, rows, args.arms, args.generate, args.max_new_tokens,
                                        args.batch_size, args.seed, suffix, val)
            if data in LINES and args.generate and "each" in args.arms:
                summary["handles"] = follow_plans(model, enc, rows, args.max_new_tokens, seed=args.seed)
        # Printed before it is written: a full disk or a read-only folder loses the files alone.
        print(f"{summary['rows']} problems of {data}/{args.split} ({summary['left_out']} too long for the context)")
        print(table({flags["method"]: summary}), CAPTION, sep="\n")
        if "handles" in summary:
            print(describe(summary["handles"]))
        summary |= {"data": data, "split": args.split}
        plumbing.write_records(out, records)
        plumbing.write_text(out.with_suffix(".json"), json.dumps(summary, indent=1))
        print(f"records: {out}")


if __name__ == "__main__":
    main()
