"""
What do the codes do? Causal tests of a trained run: writes RUN/analysis.json, prints a summary in words.

    python analysis/causal.py runs/NAME --rows 200
    python analysis/causal.py runs/NAME --rows 200 --no-generate     # likelihood only: fast

Three questions, each with the control that a naive answer lacks:

1. Is the codebook active?      Usage, perplexity, cosine and norms of the codes.
2. Is routing input-dependent?  What codes tell about labels of the tokens beyond their position (see
                                routing.py): the trained router, untrained ones, random codes.
3. Do the routes matter?        Interventions on the same problems, each compared with "on":

    on        the router's argmax codes           off       no vector anywhere, prompt included
    random    uniformly drawn codes               shuffled  a row's own codes, permuted within the row
    position  codes of other problems at the same place: what is left is what position alone says
    mean      the mean vector in every chunk: what one static code would do
    code 3    code 3 in every chunk, for each code of at most 16; the one chosen on val is marked
    a code    wherever the router chooses it, another code that is in use takes its place
    sham      the same for a code that never fires: must change nothing

An intervention is a codebook and a function choose(z, row, chunk) -> codes in place of the argmax. Both
teacher-forced likelihood and greedy generation go through it, prompt and answer alike.

Letters: P problems, B rows of a batch, M chunks, C codes, H = n_embd, K tokens a chunk.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from analysis.labels import label_rows  # noqa: E402
from analysis.routing import codes_of_answer_tokens, ngram_purity, routing  # noqa: E402
from data.files import read_json  # noqa: E402
from data.plumbing import find_device, one_line_errors, precision, safe_output, write_text  # noqa: E402
from data.tokens import collate, encode_row, end_tokens, load_rows  # noqa: E402
from eval import MAX_EACH, arm_codes, bootstrap, by_length, check_golds, decode, each_code, grade, load_run  # noqa: E402

ARMS = {  # the interventions in words; those that force a code: see in_words
    "off": "no codes", "mean": "the mean vector everywhere", "random": "random codes",
    "shuffled": "own codes, shuffled", "position": "other problems' codes"}
FRESH = 8  # untrained routers, and drawings of random codes, measured beside the trained router
FEW = 20  # with fewer problems no verdict is given


def in_words(result):
    """{arm: what it does} of the interventions that `analyze` made: ARMS, then each code that was forced."""
    forced = [arm for arm in result["arms"] if arm.startswith("code ")]
    best = result.get("chosen")
    return ARMS | {arm: f"{arm} everywhere{', best on val' if arm == best else ''}" for arm in forced}


# --------------------------------------------------------------------------------------------------
# Interventions.


@contextlib.contextmanager
def swapped(layer, weight):
    """The layer (model.codebook, model.router) with another weight, for a while."""
    own = layer.weight.data
    layer.weight.data = weight
    try:
        yield
    finally:
        layer.weight.data = own


def argmax(z, row, chunk):
    """What the router does: z (B, m, C) of m chunks -> codes (B, m)."""
    return z.argmax(-1)


def from_table(table):
    """The codes of a table (P, M), whatever the router says."""
    return lambda z, row, chunk: table[row, chunk]


def without(code, others, dice):
    """The router's codes, but one of `others` (n,) for `code`: drawn by dice (P, M), uniform in [0, 1)."""

    def choose(z, row, chunk):
        own = z.argmax(-1)
        return torch.where(own == code, others[(dice[row, chunk] * len(others)).long()], own)

    return choose


def position_codes(codes, starts, n_chunks, seed):
    """
    Codes permuted among the problems at the same place: codes, a list of (m,); starts, the chunk where
    each answer starts, from which places are counted -> (P, n_chunks). Places that a row does not reach
    take codes of rows that do, or any where none does.
    """
    rng = np.random.default_rng(seed)
    table = torch.zeros(len(codes), n_chunks, dtype=torch.long)
    for place in range(-max(starts), n_chunks - min(starts)):
        chunk = {i: start + place for i, start in enumerate(starts) if 0 <= start + place < n_chunks}
        reach = [i for i in chunk if chunk[i] < len(codes[i])]
        pool = torch.stack([codes[i][chunk[i]] for i in reach]) if reach else torch.cat(codes)
        rest = [i for i in chunk if i not in reach]
        for i, code in zip(reach + rest, itertools.cycle(rng.permutation(pool.numpy()).tolist())):
            table[i, chunk[i]] = code
    return table


# --------------------------------------------------------------------------------------------------
# Measuring. items: (ids, n_prompt) of each problem; an arm is (codebook, choose).


def batches(lengths, batch_size, only, desc):
    """Numbers of problems, similar lengths together; without the batches that hold none of `only`."""
    found = [b for b in by_length(lengths, batch_size) if only is None or only & set(b)]
    return tqdm(found, desc=desc, leave=False, disable=None)


@torch.no_grad()
def token_nll(model, items, arm, only=None, batch_size=32):
    """
    Negative log-likelihood in nats of every answer token: a list of (tokens,) arrays. Problems not in
    `only` may be None: a batch is run whole, so that rounding is the same, or not at all.
    """
    (codebook, choose), K, device = arm, model.config.chunk, model.cos.device
    out = [None] * len(items)
    for batch in batches([len(ids) for ids, _ in items], batch_size, only, "likelihood"):
        idx, targets = (t.to(device) for t in collate([items[i] for i in batch]))
        h = model.lower(idx)
        z = model.router_logits(h[:, ::K])  # (B, M, C)
        row = torch.tensor(batch, device=device)[:, None].expand(z.shape[:2])
        chunk = torch.arange(z.size(1), device=device).expand(z.shape[:2])
        with swapped(model.codebook, codebook):
            nll = -model.token_logp(model.steer(h, choose(z, row, chunk)), targets)  # (B, T)
        for i, own, labelled in zip(batch, nll.cpu().double(), (targets >= 0).cpu()):
            out[i] = own[labelled].numpy()
    return out


@torch.no_grad()
def generated(model, items, arm, end, only=None, max_new_tokens=320, batch_size=128):
    """Greedy answers: a list of lists of token ids; `only` as in token_nll."""
    (codebook, choose), out = arm, [None] * len(items)
    for batch in batches([n_prompt for _, n_prompt in items], batch_size, only, "answers"):
        problem = torch.tensor(batch, device=model.cos.device)
        prompts = [items[i][0][: items[i][1]] for i in batch]

        def codes(z, row, chunk, problem=problem):
            return choose(z, problem[row], chunk)

        with swapped(model.codebook, codebook):
            new = model.generate(prompts, max_new_tokens, codes, stop=end)
        for i, ids in zip(batch, new):
            out[i] = ids
    return out


@torch.no_grad()
def routes(model, sequences, router=None, batch_size=32):
    """The argmax codes of each list of token ids, a list of (m,). router: another weight (C, H)."""
    out = [None] * len(sequences)
    for batch in by_length([len(ids) for ids in sequences], batch_size):
        idx, _ = collate([(sequences[i] + [0], 1) for i in batch])
        with swapped(model.router, model.router.weight.data if router is None else router):
            codes = model.route(idx.to(model.cos.device)).argmax(-1).cpu()  # (B, M)
        for i, own in zip(batch, codes):
            out[i] = own[: math.ceil(len(sequences[i]) / model.config.chunk)]
    return out


def mcnemar(a, b):
    """Exact two-sided McNemar p of paired verdicts: how often is a fair coin at least as uneven?"""
    helped, hurt = sum(x > y for x, y in zip(a, b)), sum(x < y for x, y in zip(a, b))
    n = helped + hurt
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(min(helped, hurt) + 1)) / 2**n)


def holm(p):
    """Holm's correction of many p-values, in the given order."""
    out, worst = np.empty(len(p)), 0.0
    for rank, i in enumerate(np.argsort(p, kind="stable")):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        out[i] = worst
    return out.tolist()


# --------------------------------------------------------------------------------------------------
# The three questions.


def analyze(model, enc, rows, generate=True, max_new_tokens=320, batch_size=128, seed=0, chosen=None):
    """
    All tests on the problems `rows` -> a dict for json: problems, left_out (too long for the context),
    codebook, routing, arms, codes, sham, and findings in sentences. Differences are to "on": difference,
    low, high, a 95 % bootstrap interval over problems, in nats per answer token and as a fraction right.
    chosen: the arm of the code that did best on val, such as "code 1".
    """
    if not model.codebook.weight.any():
        raise ValueError("every code of this run is zero: there is nothing to analyze")
    model.eval()
    C, K, device, end = model.config.n_codes, model.config.chunk, model.cos.device, end_tokens(enc)
    encoded = [(row, encode_row(row, enc)) for row in rows]
    fitting = [(row, item) for row, item in encoded if len(item[0]) - 1 <= model.config.block_size]
    if not fitting:
        raise ValueError(f"none of the {len(rows)} rows fits the context of {model.config.block_size} tokens")
    rows, items = zip(*fitting)
    if generate:
        check_golds(rows)
    P = len(items)
    counts = np.array([len(ids) - n for ids, n in items])
    longest = max(max(len(ids), n + max_new_tokens) for ids, n in items)
    n_chunks = math.ceil(min(longest, model.config.block_size) / K)

    def measure(codebook, choose, choose_text=None, only=(None, None)):
        """(token_nll, generated) of an arm; choose_text, only[1]: for its own text, not the gold one."""
        tokens = token_nll(model, items, (codebook, choose), only[0], min(32, batch_size))
        if not generate:
            return tokens, None
        arm = codebook, choose_text or choose
        return tokens, generated(model, items, arm, end, only[1], max_new_tokens, batch_size)

    def verdicts(texts):
        return [grade(decode(enc, new), row["final"])["strict"] for new, row in zip(texts, rows)]

    def against_on(tokens, texts):
        """An arm's numbers beside those of "on"; None in a list: as with "on"."""
        nll = np.array([a.sum() if b is None else b.sum() for a, b in zip(on_tokens, tokens)])
        s = {"nats": float(nll.sum() / counts.sum()),
             "nats_minus_on": bootstrap(nll / counts, on_nll / counts, counts),
             "changes_nothing": bool((nll == on_nll).all())}
        if generate:
            texts = [a if b is None else b for a, b in zip(on_texts, texts)]
            strict = verdicts(texts)
            helped = sum(a > b for a, b in zip(strict, on_strict))
            hurt = sum(a < b for a, b in zip(strict, on_strict))
            s |= {"strict": float(np.mean(strict)), "strict_minus_on": bootstrap(strict, on_strict),
                  "helped": helped, "hurt": hurt, "same": P - helped - hurt,
                  "mcnemar_p": mcnemar(strict, on_strict)}
            s["changes_nothing"] &= texts == on_texts
        return s

    # "on", and the codes that it uses: on the gold text, and on its own text.
    vectors = model.codebook.weight.detach()
    on_tokens, on_texts = measure(vectors, argmax)
    on_nll = np.array([nll.sum() for nll in on_tokens])
    arms = {"on": {"nats": float(on_nll.sum() / counts.sum())}}
    gold_codes = text_codes = routes(model, [ids[:-1] for ids, _ in items])
    if generate:
        on_strict = verdicts(on_texts)
        arms["on"]["strict"] = float(np.mean(on_strict))
        whole = [(ids[:n] + new)[: model.config.block_size] for (ids, n), new in zip(items, on_texts)]
        text_codes = routes(model, whole)
    usage = torch.bincount(torch.cat(gold_codes), minlength=C)  # (C,)

    # The other arms. shuffled and position permute the codes of the text at hand.
    starts = [(n - 1) // K for _, n in items]  # the chunk that predicts the first answer token
    share = (usage / usage.sum()).to(device)
    mean = (share[:, None] * vectors).sum(0)  # no matrix product: autocast would round it

    def drawn(name, codes):
        """choose(...) of an arm whose codes do not come from the router."""
        if name == "position":
            return from_table(position_codes(codes, starts, n_chunks, seed).to(device))
        return from_table(arm_codes(name, range(P), codes, n_chunks, model, seed))

    tests = {"off": (torch.zeros_like(vectors), argmax), "mean": (mean.expand(C, -1).contiguous(), argmax)}
    for name in ("random", "shuffled", "position"):
        tests[name] = vectors, drawn(name, gold_codes), drawn(name, text_codes)
    for code, arm in enumerate(each_code(model) if C <= MAX_EACH else ()):
        tests[arm] = vectors, from_table(torch.full((P, n_chunks), code, device=device))
    for name, test in tqdm(tests.items(), desc="arms", leave=False, disable=None):
        arms[name] = against_on(*measure(*test))

    # Each code replaced by others, run only where it fires; and the sham, run in full.
    generator = torch.Generator().manual_seed(seed)
    dice = torch.rand(P, n_chunks, generator=generator).to(device)
    used = usage.nonzero()[:, 0].tolist()

    def ablation(code, in_full=False):
        others = [k for k in used if k != code] or [k for k in range(C) if k != code]
        fires = [{i for i in range(P) if (codes[i] == code).any()} for codes in (gold_codes, text_codes)]
        choose = without(code, torch.tensor(others, device=device), dice)
        return against_on(*measure(vectors, choose, only=(None, None) if in_full else fires))

    ablations = {k: ablation(k) for k in tqdm(used if C > 1 else [], desc="codes", leave=False, disable=None)}
    if generate and ablations:
        for s, p in zip(ablations.values(), holm([s["mcnemar_p"] for s in ablations.values()])):
            s["p_holm"] = p
    codes = [{"code": k, "norm": float(vectors[k].norm()), "chunks": int(usage[k]), "share": float(share[k]),
              "problems": sum(int((own == k).any()) for own in gold_codes), "ablation": ablations.get(k)}
             for k in range(C)]
    silent = [k for k in range(C) if not any((own == k).any() for own in gold_codes + text_codes)]
    sham = {"code": silent[0], **ablation(silent[0], in_full=True)} if silent else None

    result = {"problems": P, "left_out": len(encoded) - P, "seed": seed, "arms": arms, "chosen": chosen,
              "codes": codes, "sham": sham, "codebook": codebook(vectors, usage),
              "routing": routing_of(model, items, gold_codes, label_rows(rows, items, enc), seed)}
    return result | {"findings": findings(result)}


def codebook(vectors, usage):
    """Is the codebook active? vectors (C, H), usage (C,) counts of chunks."""
    live = torch.nn.functional.normalize(vectors[(usage > 0).to(vectors.device)], dim=1)  # (n, H)
    n = len(live)
    pairs = live.sum(0).square().sum() - n  # the sum over all pairs, less the diagonal
    return {"used": int((usage > 0).sum()), "norms": vectors.norm(dim=1).tolist(),
            "perplexity": float(torch.special.entr(usage.double() / usage.sum()).sum().exp()),
            "cosine": float(pairs / (n * (n - 1))) if n > 1 else None}  # mean over pairs of used codes


def routing_of(model, items, trained, labels, seed):
    """
    For each kind of label: routing(...) of the trained router, with its "ngrams"; and as "untrained"
    and "random" the bits beyond position, [mean, least, most], of FRESH drawn routers, random codes.
    """
    C, K, H = model.config.n_codes, model.config.chunk, model.config.n_embd
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    fresh = model.config.router_std * torch.randn(FRESH, C, H, generator=generator).to(model.cos.device)
    sequences, prompts = [ids[:-1] for ids, _ in items], [n for _, n in items]

    def of_tokens(codes):
        return [codes_of_answer_tokens(own, n, len(ids), K) for own, (ids, n) in zip(codes, items)]

    drawn = {"untrained": [of_tokens(routes(model, sequences, router)) for router in fresh],
             "random": [of_tokens([rng.integers(C, size=len(own)) for own in trained]) for _ in fresh]}
    found = {}
    for kind, own in labels.items():
        found[kind] = routing(of_tokens(trained), own, seed=seed)
        found[kind]["ngrams"] = ngram_purity(trained, own, prompts, K, seed=seed)
        for name, draws in drawn.items():
            each = [routing(codes, own, permutations=20, seed=seed) for codes in draws]
            bits = [r["bits_beyond_position"]["excess"] for r in each]
            found[kind][name] = [float(np.mean(bits)), min(bits), max(bits)]
    return found


# --------------------------------------------------------------------------------------------------
# In words.


def findings(result):
    """What the numbers of `analyze` support and what they do not, as sentences."""
    book, arms, kinds, said = result["codebook"], result["arms"], result["routing"], []
    C, P, generate = len(result["codes"]), result["problems"], "strict" in arms["on"]

    most = max(code["share"] for code in result["codes"])
    active = "No" if book["used"] == 1 else "Barely" if most > 0.9 else "Yes"
    cosine = "" if book["cosine"] is None else f", mean cosine between them {book['cosine']:.2f}"
    said.append("1. Is the codebook active? " + ("It is one static vector." if C == 1 else (
        f"{active}: {book['used']} of {C} codes fire, the most frequent in {most:.0%} of the chunks, "
        f"perplexity {book['perplexity']:.1f}{cosine}.")))

    # Bonferroni over the kinds of label.
    beyond = {kind: r for kind, r in kinds.items() if r["bits_beyond_position"]["p"] < 0.05 / len(kinds)}
    learned = [kind for kind, r in beyond.items() if r["bits_beyond_position"]["excess"] > r["untrained"][2]]
    said.append("2. Is routing input-dependent? " + (
        f"Not shown beyond position, on {P} problems." if not beyond else
        (f"Yes, about {', '.join(learned)}" if learned else "Not by training: untrained routers tell as much") +
        ". Bits that the codes tell about a token at the same position:"))
    for kind, r in beyond.items():
        bits, left = r["bits_beyond_position"]["excess"], r["entropy_bits"] - r["position_bits"]
        ranges = "untrained routers {:.2f} ({:.2f} to {:.2f}), random codes {:.2f} ({:.2f} to {:.2f})"
        more = "more than every" if kind in learned else "NOT more than every"
        said.append(f"   {kind}: {bits:.2f} of {left:.2f}; {ranges.format(*r['untrained'], *r['random'])}: "
                    f"{more} untrained router.")
    special = [(pair["count"] * math.log(pair["matched_lift"]), r["code"], kind, pair)  # most evidence first
               for kind in beyond.keys() - {"class"} for r in kinds[kind]["codes"] for pair in r["pairs"]
               if pair["p"] < 0.05 and pair["matched_lift"] >= 1.5]
    for _, code, kind, pair in sorted(special, key=lambda x: -x[0])[:3]:
        said.append(f"   Code {code} is special to {kind} {pair['label']}: {pair['rate']:.0%} of its {kind} "
                    f"tokens, {pair['matched_lift']:.1f} times the rate at the same positions.")

    said.append("3. Do the routes matter? Nats per answer token, minus on (positive: worse)"
                + (", and points of strict accuracy:" if generate else ":"))
    for name, words in in_words(result).items():
        a = arms[name]
        line = f"   {words}: " + "{:+.4f} [{:+.4f}, {:+.4f}] nats".format(*a["nats_minus_on"])
        if generate:
            line += ", {:+.1f} [{:+.1f}, {:+.1f}] points".format(*(100 * x for x in a["strict_minus_on"]))
            line += f" (helps {a['helped']}, hurts {a['hurt']}, McNemar p {a['mcnemar_p']:.2g})"
        said.append(line + (": changes nothing." if a["changes_nothing"] else "."))
    if P < FEW:
        said.append(f"   No verdict from {P} problems; {FEW} are the least.")
    else:
        claims = {"off": "the router's codes help at all", "mean": "routes beat the mean vector",
                  "position": "it matters which code a problem gets, beyond position"}
        claims = {name: words for name, words in claims.items() if not arms[name]["changes_nothing"]}
        holds = {name for name in claims if arms[name]["nats_minus_on"][1] > 0}  # the whole interval
        told = ["; ".join(w for name, w in claims.items() if (name in holds) == yes) for yes in (True, False)]
        said.append(f"   Supported by likelihood: {told[0] or 'nothing'}. Not supported: {told[1] or 'nothing'}.")
        if arms["off"]["nats_minus_on"][2] < 0:
            said.append("   The router's codes do harm: answers are likelier without them.")
        tested = [c["ablation"] for c in result["codes"] if c["ablation"]]
        if tested:
            worse = sum(a["nats_minus_on"][1] > 0 for a in tested)
            better = sum(a["nats_minus_on"][2] < 0 for a in tested)
            line = (f"   Replacing one code (intervals not corrected for their number) makes answers less likely "
                    f"for {worse} of {len(tested)} codes, likelier for {better}")
            if generate:
                line += f"; changes accuracy (Holm) for {sum(a['p_holm'] < 0.05 for a in tested)}"
            said.append(line + ".")
    sham = result["sham"]
    if sham:
        said.append(f"   Sham, replacing code {sham['code']}, which never fires: " + (
            "changes nothing, as it must." if sham["changes_nothing"] else
            "CHANGES something, so none of this can be trusted."))
    elif C > 1:
        said.append("   No sham: every code fires.")
    return said


def main(argv=None):
    safe_output()
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder made by train.py")
    parser.add_argument("--data", help="as in train.py (default: what the run was trained on)")
    parser.add_argument("--split", default="test", help="split of the data (default: test)")
    parser.add_argument("--rows", type=int, default=200, help="problems; 0 = all of the split (default: 200)")
    parser.add_argument("--generate", action=argparse.BooleanOptionalAction, default=True,
                        help="generate and grade answers, not only score their likelihood")
    parser.add_argument("--batch_size", type=int, default=128, help="prompts generated at once")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    args = parser.parse_args(argv)
    with one_line_errors("causal.py"):
        if args.rows < 0 or args.batch_size < 1:
            raise ValueError(f"--rows must be >= 0, --batch_size >= 1, got {args.rows}, {args.batch_size}")
        device, _ = find_device(args.device)
        model, enc, _, flags = load_run(args.run)
        model.to(device)
        data, out = args.data or flags["data"], Path(args.run) / "analysis.json"
        summary = Path(args.run) / "summary.json"
        chosen = read_json(summary).get("chosen") if summary.exists() else None
        rows = load_rows(data, args.split, args.rows or None)
        with precision(flags["dtype"], device):  # as it was trained
            result = analyze(model, enc, rows, args.generate, batch_size=args.batch_size, chosen=chosen)
        about = {"method": flags["method"], "data": data, "split": args.split}
        write_text(out, json.dumps(about | {"config": dataclasses.asdict(model.config)} | result, indent=1))
    print(f"{result['problems']} problems of {data}/{args.split} ({result['left_out']} too long)")
    print("\n".join(result["findings"]))
    print(f"numbers: {out}")


if __name__ == "__main__":
    main()
