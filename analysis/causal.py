"""
What do the codes do? Causal tests of a trained run: `python eval.py --analyze RUN` writes RUN/analysis.json and prints
a summary in words.

Three questions (method, section 6), each with the control that a naive answer lacks:

1. Is the codebook active?          Usage, perplexity, cosine and norms of the codes.
2. Is routing input-dependent?      What codes tell about labels of the tokens beyond their position
                                    (analysis/routing.py), for the trained router, untrained ones and random codes.
3. Do the routes matter?            Interventions on the same problems, each compared with "on":

    on           the router's argmax codes                off         no vector anywhere, prompt included
    random       uniform codes                            shuffled    a row's own codes, permuted within the row
    position     codes permuted among the rows at the same place: what remains is what position alone says
    mean         every chunk gets the mean vector used: what one static code would do
    directions   the same routes, but each code's vector points in a random direction, with its norm
    untrained    a freshly drawn router chooses among the trained codes (whose numbers mean nothing to it)
    a code, or an n-gram of codes: wherever the router completes it, another code that is in use takes its place
    sham         the same for a code (or n-gram) that never fires: must change nothing

An intervention is two things: weights that take the place of the codebook's or the router's, and a function
choose(z, row, chunk) -> codes in place of the argmax. Likelihood (teacher-forced) and greedy generation both go through
it, so nothing is steered that the intervention does not steer.

Letters: P problems, B rows of a batch, M chunks, C codes, H = n_embd, K tokens a chunk.
"""

import contextlib
import math
from collections import Counter

import numpy as np
import torch
from tqdm import tqdm

from analysis.labels import label_rows
from analysis.routing import codes_of_answer_tokens, ngram_purity, routing
from data.tokens import collate, end_token
from eval import batches, bootstrap, fitting, grade, mcnemar, random_codes, shuffled_codes

ARMS = ("on", "off", "random", "shuffled", "position", "mean", "directions", "untrained")
FRESH = 8  # untrained routers measured beside the trained one
FEW = 20  # problems below which no verdict is given
N_GRAMS = {2: 4, 3: 4}  # how many of the most frequent n-grams are ablated, for each n


# ----------------------------------------------------------------------------------------------------------------------
# Interventions.


@contextlib.contextmanager
def replaced(model, weights):
    """The model with other weights in {"codebook" or "router": (C, H)}, for a while."""
    own = {name: getattr(model, name).weight.data for name in weights}
    try:
        for name, w in weights.items():
            getattr(model, name).weight.data = w
        yield
    finally:
        for name, w in own.items():
            getattr(model, name).weight.data = w


def argmax(z, row, chunk):
    """What the router does: z (..., C) -> codes (...)."""
    return z.argmax(-1)


def from_table(table):
    """The codes of a table (P, M), whatever the router says."""
    return lambda z, row, chunk: table[row, chunk]


def without(ngram, others, dice):
    """
    The router's codes, but where they complete `ngram` (a tuple of codes of consecutive chunks, often one) one of
    `others` (LongTensor) does, drawn by dice (P, M), uniform in [0, 1). Remembers what the router chose in each row.
    """
    seen = torch.full(dice.shape, -1, device=dice.device)

    def choose(z, row, chunk):
        own = z.argmax(-1)
        seen[row, chunk] = own
        complete = own == ngram[-1]
        for back, code in enumerate(reversed(ngram[:-1]), 1):
            complete &= (chunk >= back) & (seen[row, (chunk - back).clamp(min=0)] == code)
        return torch.where(complete, others[(dice[row, chunk] * len(others)).long()], own)

    return choose


def position_codes(codes, starts, n_chunks, seed):
    """
    Codes permuted among the rows at the same place, counted from the chunk where the answer starts: codes, a list of
    1-D LongTensors; starts, that chunk of each row -> (P, n_chunks). Places that a row does not reach are drawn from
    the rows that do, or from all codes where none does.
    """
    rng = np.random.default_rng(seed)
    out = torch.empty(len(codes), n_chunks, dtype=torch.long)
    everything = torch.cat(codes).numpy()
    for place in range(-max(starts), n_chunks - min(starts)):
        have = [i for i, (own, start) in enumerate(zip(codes, starts)) if 0 <= start + place < len(own)]
        pool = np.array([codes[i][starts[i] + place] for i in have]) if have else everything
        for i, code in zip(have, rng.permutation(pool)):
            out[i, starts[i] + place] = int(code)
        for i in set(range(len(codes))) - set(have):
            if 0 <= starts[i] + place < n_chunks:
                out[i, starts[i] + place] = int(rng.choice(pool))
    return out


def occurs(ngram, codes):
    """How often the codes of one row, a 1-D LongTensor, complete the n-gram."""
    windows = codes.unfold(0, len(ngram), 1) if len(codes) >= len(ngram) else codes.new_empty(0, len(ngram))
    return int((windows == torch.tensor(ngram)).all(1).sum())


# ----------------------------------------------------------------------------------------------------------------------
# Measuring. An arm is (weights, choose).


@torch.no_grad()
def token_nll(model, items, arm, only=None, batch_size=32):
    """
    Negative log-likelihood in nats of every answer token under an arm, a list of (tokens,) arrays. `only`: the others
    stay None. Batches without any of these problems are not run; the rest are run whole, for the same rounding.
    """
    weights, choose = arm
    K, device, out = model.config.chunk, model.embed_tokens.weight.device, [None] * len(items)
    for batch in batches([len(ids) for ids, _ in items], batch_size):
        if only is not None and not only & set(batch):
            continue
        idx, targets = (t.to(device) for t in collate([items[i] for i in batch]))
        with replaced(model, weights):
            h = model.lower(idx)
            z = model.router_logits(h[:, ::K])  # (B, M, C)
            row = torch.tensor(batch, device=device)[:, None].expand(z.shape[:2])
            codes = choose(z, row, torch.arange(z.size(1), device=device).expand(z.shape[:2]))
            nll = -model.token_logp(model.steer(h, codes), targets)
        for i, own, labelled in zip(batch, nll.cpu().double(), (targets >= 0).cpu()):
            if only is None or i in only:
                out[i] = own[labelled].numpy()
    return out


@torch.no_grad()
def generated(model, items, arm, end, only=None, max_new_tokens=320, batch_size=128):
    """Greedy answers under an arm: a list of lists of token ids, None as in token_nll."""
    weights, choose = arm
    device, out = model.embed_tokens.weight.device, [None] * len(items)
    for batch in batches([n_prompt for _, n_prompt in items], batch_size):
        if only is not None and not only & set(batch):
            continue
        problem = torch.tensor(batch, device=device)
        with replaced(model, weights):
            new = model.generate([items[i][0][: items[i][1]] for i in batch], max_new_tokens, stop=end,
                                 codes=lambda z, row, chunk, problem=problem: choose(z, problem[row], chunk))
        for i, ids in zip(batch, new):
            if only is None or i in only:
                out[i] = ids
    return out


@torch.no_grad()
def routes(model, sequences, router=None, batch_size=32):
    """The argmax codes of each sequence of token ids, a list of 1-D LongTensors. `router`: other weights (C, H)."""
    K, device, out = model.config.chunk, model.embed_tokens.weight.device, [None] * len(sequences)
    for batch in batches([len(ids) for ids in sequences], batch_size):
        idx, _ = collate([(sequences[i] + [0], 1) for i in batch])
        with replaced(model, {} if router is None else {"router": router}):
            codes = model.route(idx.to(device)).argmax(-1).cpu()
        for i, own in zip(batch, codes):
            out[i] = own[: math.ceil(len(sequences[i]) / K)]
    return out


def holm(p):
    """Holm's correction of p-values: adjusted ones, in the given order."""
    order, out, worst = np.argsort(p, kind="stable"), np.empty(len(p)), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        out[i] = worst
    return out.tolist()


def summed(tokens):
    """A list of arrays -> their sums (P,)."""
    return np.array([t.sum() for t in tokens])


# ----------------------------------------------------------------------------------------------------------------------
# The analysis.


def analyze(model, enc, rows, generate=True, max_new_tokens=320, batch_size=128, seed=0, suffix=(), progress=True):
    """
    All tests on the same problems `rows` -> a JSON-able dict: "problems", "left_out" (too long for the context),
    "arms", "codes", "sham", "ngrams", "codebook", "transitions", "information_gain", "routing" and "findings".
    Differences are [difference, low, high], 95 % bootstrap over problems, and always to "on": nats per answer token,
    strict accuracy as a fraction. ValueError if the run has no codes or no problem fits.
    """
    if not model.codebook.weight.any():
        raise ValueError("every code of this run is zero: there is nothing to analyze (was it trained with codes?)")
    was_training, C, K = model.training, model.config.n_codes, model.config.chunk
    model.eval()
    device, end = model.embed_tokens.weight.device, end_token(enc)
    items, rows, left_out = fitting(model, enc, rows, suffix)
    P, numbers = len(items), range(len(items))
    counts = np.array([len(ids) - n for ids, n in items])
    starts = [(n - 1) // K for _, n in items]  # the chunk that predicts the first answer token
    longest = min(max(max(len(ids), n + max_new_tokens) for ids, n in items), model.config.block_size)
    n_chunks = math.ceil(longest / K)

    def measure(arm, arm_text=None, only=(None, None)):
        """An arm's tokens' nll, and its verdicts; `only` as in token_nll, for gold and for generated text."""
        tokens = token_nll(model, items, arm, only[0])
        texts = generated(model, items, arm_text or arm, end, only[1], max_new_tokens, batch_size) if generate else None
        return tokens, texts

    def right(new, i):
        return grade(enc.decode([t for t in new if t < enc.n_vocab]), rows[i]["final"])["strict"]

    def against_on(tokens, texts):
        """What an arm's numbers say beside those of "on"; None in a list = as "on"."""
        tokens = [on_tokens[i] if t is None else t for i, t in enumerate(tokens)]
        nll = summed(tokens)
        s = {"nats": float(nll.sum() / counts.sum()), "nats_minus_on": bootstrap(nll / counts, on_nll / counts, counts),
             "changes_nothing": bool((nll == on_nll).all())}
        if generate:
            texts = [on_texts[i] if t is None else t for i, t in enumerate(texts)]
            strict = [on_strict[i] if t == on_texts[i] else right(t, i) for i, t in enumerate(texts)]
            helped, hurt = (sum(a > b for a, b in zip(*pair)) for pair in ((strict, on_strict), (on_strict, strict)))
            s |= {"strict": float(np.mean(strict)), "strict_minus_on": bootstrap(strict, on_strict), "helped": helped,
                  "hurt": hurt, "same": P - helped - hurt, "mcnemar_p": mcnemar(strict, on_strict)}
            s["changes_nothing"] &= texts == on_texts
        return s

    # "on", and the codes that it uses: on the gold text (for likelihood) and on its own text (for generation).
    on_tokens, on_texts = measure(({}, argmax))
    on_nll = summed(on_tokens)
    arms = {"on": {"nats": float(on_nll.sum() / counts.sum())}}
    gold_codes = routes(model, [ids[:-1] for ids, _ in items])
    text_codes = gold_codes
    if generate:
        on_strict = [right(new, i) for i, new in enumerate(on_texts)]
        arms["on"]["strict"] = float(np.mean(on_strict))
        text_codes = routes(model, [(ids[:n] + new)[: model.config.block_size]
                                    for (ids, n), new in zip(items, on_texts)])
    usage = torch.bincount(torch.cat(gold_codes), minlength=C)
    used = usage.nonzero()[:, 0].tolist()

    # The other arms.
    vectors, generator = model.codebook.weight.detach(), torch.Generator().manual_seed(seed)
    mean = ((usage / usage.sum()).to(device)[:, None] * vectors).sum(0)  # no matrix product: autocast would round it
    directions = torch.nn.functional.normalize(torch.randn(C, vectors.size(1), generator=generator), dim=1)
    directions = directions.to(device) * vectors.norm(dim=1, keepdim=True)
    fresh = model.config.router_std * torch.randn(FRESH, C, vectors.size(1), generator=generator).to(device)
    table = random_codes(numbers, n_chunks, C, seed).to(device)
    shuffled, position = ([f(codes).to(device) for codes in (gold_codes, text_codes)] for f in (
        lambda codes: shuffled_codes(codes, n_chunks, numbers, seed),
        lambda codes: position_codes(codes, starts, n_chunks, seed)))
    tests = {"off": ({"codebook": torch.zeros_like(vectors)}, argmax),
             "random": ({}, from_table(table)),
             "shuffled": ({}, from_table(shuffled[0]), from_table(shuffled[1])),
             "position": ({}, from_table(position[0]), from_table(position[1])),
             "mean": ({"codebook": mean.expand(C, -1).contiguous()}, argmax),
             "directions": ({"codebook": directions}, argmax),
             "untrained": ({"router": fresh[0]}, argmax)}
    tokens_of = {"on": on_tokens}
    for name, (weights, choose, *choose_text) in tqdm(tests.items(), desc="arms", leave=False, disable=not progress):
        tokens_of[name], texts = measure((weights, choose), (weights, choose_text[0]) if choose_text else None)
        arms[name] = against_on(tokens_of[name], texts)

    # Codes and n-grams replaced by others, only where they fire; and the sham, run in full.
    dice = torch.rand(P, n_chunks, generator=generator).to(device)

    def ablation(ngram, full=False):
        others = torch.tensor([k for k in used if k != ngram[-1]] or [k for k in range(C) if k != ngram[-1]],
                              device=device)
        fires = [{i for i in numbers if occurs(ngram, codes[i])} for codes in (gold_codes, text_codes)]
        return against_on(*measure(({}, without(ngram, others, dice)), ({}, without(ngram, others, dice)),
                                   (None, None) if full else fires))

    def corrected(tested):
        if generate and tested:
            for s, p in zip(tested, holm([s["mcnemar_p"] for s in tested])):
                s["p_holm"] = p

    def found(n):
        return Counter(tuple(g) for own in gold_codes if len(own) >= n for g in own.unfold(0, n, 1).tolist())

    ablate = used if C > 1 else []
    ablations = {k: ablation((k,)) for k in tqdm(ablate, desc="codes", leave=False, disable=not progress)}
    corrected(list(ablations.values()))
    codes = [{"code": k, "norm": float(vectors[k].norm()), "chunks": int(usage[k]),
              "share": float(usage[k] / usage.sum()), "problems": sum(int((own == k).any()) for own in gold_codes),
              "ablation": ablations.get(k)} for k in range(C)]
    ngrams = [{"codes": list(g), "chunks": count, "problems": sum(occurs(g, own) > 0 for own in gold_codes)}
              for n, most in N_GRAMS.items() for g, count in found(n).most_common(most) if C > 1]
    for g in tqdm(ngrams, desc="n-grams", leave=False, disable=not progress):
        g["ablation"] = ablation(tuple(g["codes"]))
    corrected([g["ablation"] for g in ngrams])
    absent = next(((k,) for k in range(C) if not any((own == k).any() for own in gold_codes + text_codes)), None)
    if absent is None and C > 1:  # every code fires: an n-gram that does not
        pairs = found(2).keys() | {tuple(g) for own in text_codes if len(own) > 1 for g in own.unfold(0, 2, 1).tolist()}
        absent = next(((i, j) for i in range(C) for j in range(C) if (i, j) not in pairs), None)
    sham = None if absent is None or C == 1 else {"codes": list(absent), **ablation(absent, full=True)}

    pairs = found(2)
    labels = label_rows(rows, items, enc)
    result = {"problems": P, "left_out": left_out, "seed": seed, "arms": arms, "codes": codes, "sham": sham,
              "ngrams": ngrams, "codebook": codebook(vectors, usage),
              "transitions": [[pairs[i, j] for j in range(C)] for i in range(C)],
              "information_gain": information_gain(tokens_of["off"], on_tokens, labels["class"]),
              "routing": routing_of(model, items, gold_codes, fresh, labels, seed)}
    result["findings"] = findings(result)
    model.train(was_training)
    return result


def codebook(vectors, usage):
    """Is the codebook active? vectors (C, H), usage (C,) counts of chunks."""
    share = usage.double() / usage.sum()
    live = torch.nn.functional.normalize(vectors[(usage > 0).to(vectors.device)], dim=1)
    n = len(live)  # the sum over pairs is that over all less the diagonal's n
    return {"used": int((usage > 0).sum()), "fraction_used": float((usage > 0).double().mean()),
            "perplexity": float(torch.special.entr(share).sum().exp()),
            "cosine": float((live.sum(0).square().sum() - n) / (n * (n - 1))) if n > 1 else None,  # mean over pairs
            "norms": vectors.norm(dim=1).tolist()}


def information_gain(off, on, classes, bins=16):
    """
    log p(x | argmax codes) - log p(x) per answer token in nats: the mean, by place in the answer (at most `bins`
    groups of equal width) and by class of token. off, on: lists of (tokens,) nll; classes: lists of each token's.
    """
    gains = [a - b for a, b in zip(off, on)]

    def of(mask):
        """Over the tokens picked by mask(i) (a bool array for problem i)."""
        picked = [(g[m].mean(), m.sum()) for g, m in ((g, mask(i)) for i, g in enumerate(gains)) if m.any()]
        mean, weight = (np.array(x, float) for x in zip(*picked))
        return {"tokens": int(weight.sum()), "problems": len(picked),
                "gain": bootstrap(mean, np.zeros_like(mean), weight)}

    width = math.ceil(max(map(len, gains)) / bins)
    places = [{"from": a, "to": min(a + width, max(map(len, gains))) - 1,
               **of(lambda i, a=a: (np.arange(len(gains[i])) // width) == a // width)}
              for a in range(0, max(map(len, gains)), width)]
    return {"mean": of(lambda i: np.ones(len(gains[i]), bool))["gain"], "by_position": places,
            "by_class": {c: of(lambda i, c=c: np.array([x == c for x in classes[i]]))
                         for c in sorted({c for own in classes for c in own})}}


def routing_of(model, items, trained, fresh, labels, seed):
    """
    {"trained": {kind of label: routing(...) with "ngrams", the purity of n = 1 to 6 codes, where any chunk ends in a
    label}, "untrained" and "random": {kind: {"cmi_bits": {"excess": mean, "low", "high"}}} over len(fresh) freshly
    drawn routers (len(fresh), C, H), and as many drawings of random codes}.
    """
    sequences, C, K = [ids[:-1] for ids, _ in items], model.config.n_codes, model.config.chunk
    rng, prompts = np.random.default_rng(seed), [n for _, n in items]

    def tokens(chunks):
        return [codes_of_answer_tokens(own, n, len(ids), K) for own, (ids, n) in zip(chunks, items)]

    trained = [own.numpy() for own in trained]
    references = {"untrained": [routes(model, sequences, router) for router in fresh],
                  "random": [[rng.integers(C, size=len(own)) for own in trained] for _ in fresh]}
    out = {"trained": {kind: routing(tokens(trained), own, seed=seed) for kind, own in labels.items()}}
    for name, draws in references.items():
        out[name] = {}
        for kind, own in labels.items():
            excess = [routing(tokens(d), own, permutations=20, seed=seed)["cmi_bits"]["excess"] for d in draws]
            out[name][kind] = {"cmi_bits": {"excess": float(np.mean(excess)), "low": min(excess), "high": max(excess)}}
    for kind, own in labels.items():
        with contextlib.suppress(ValueError):  # no chunk ends in a label of this kind
            out["trained"][kind]["ngrams"] = ngram_purity(trained, own, prompts, K, seed=seed)
    return out


# ----------------------------------------------------------------------------------------------------------------------
# In words.


def findings(result):
    """What the numbers of `analyze` support and what they do not, as sentences."""
    book, arms, said = result["codebook"], result["arms"], []
    C, generate = len(result["codes"]), "strict" in arms["on"]

    def nats(x):
        return "{:+.4f} [{:+.4f}, {:+.4f}] nats".format(*x)

    # 1
    active = "Yes" if book["perplexity"] >= 2 else "Barely" if book["used"] > 1 else "No"
    cosine = "" if book["cosine"] is None else f", mean cosine between them {book['cosine']:.2f}"
    said.append("1. Is the codebook active? " + (
        f"{active}: {book['used']} of {C} codes fire, perplexity {book['perplexity']:.1f}{cosine}." if C > 1 else
        "It is one static vector."))

    # 2
    kinds = result["routing"]["trained"]
    beyond = {kind: r["cmi_bits"] for kind, r in kinds.items() if r["cmi_bits"]["p"] < 0.05 / len(kinds)}
    left = {kind: r["entropy_bits"] - r["position"]["mi_bits"] for kind, r in kinds.items()}  # when the place is known

    def range_of(router, kind):
        return "{excess:.2f} ({low:.2f} to {high:.2f})".format(**result["routing"][router][kind]["cmi_bits"])

    told = "; ".join(f"{kind} {c['excess']:.2f} of {left[kind]:.2f} bits (untrained routers "
                     f"{range_of('untrained', kind)}, random codes {range_of('random', kind)})"
                     for kind, c in beyond.items())
    said.append("2. Is routing input-dependent? " + (
        f"Yes, beyond position. What the codes tell about a token's label at the same position: {told}." if beyond else
        f"Not shown beyond position, on {result['problems']} problems."))
    if beyond:
        more = [kind for kind, c in beyond.items()
                if c["excess"] > result["routing"]["untrained"][kind]["cmi_bits"]["high"]]
        said.append("   Did training the router do that? "
                    + (f"It tells more than each of {FRESH} untrained ones about {', '.join(more)}." if more else
                       f"Not shown: some of {FRESH} untrained routers tell as much."))
    special = [(pair["count"] * math.log(pair["matched_lift"]), r["code"], kind, pair)  # the most evidence first
               for kind, k in kinds.items() if kind in beyond and kind != "class"
               for r in k["codes"] for pair in r["pairs"]
               if pair["p_corrected"] < 0.05 and pair["matched_lift"] >= 1.5]
    if special:
        named = [f"code {code} for {kind} {pair['label']} ({pair['count']} tokens, {pair['rate']:.0%} of its {kind} "
                 f"tokens, lift {pair['lift']:.1f}, at the same positions {pair['matched_lift']:.1f})"
                 for _, code, kind, pair in sorted(special, key=lambda x: -x[0])[:3]]
        said.append(f"   Most specialised beyond position: {'; '.join(named)}.")
    kind = next((kind for kind in ("subtask", "operation") if "ngrams" in kinds.get(kind, {})), None)
    if kind:
        first, *_, last = kinds[kind]["ngrams"]["ngrams"]
        said.append(f"   Purity for the {kind}: {first['paired']:.0%} for one code, {last['paired']:.0%} for "
                    f"{last['n']} in a row; with another problem's codes {first['null_mean']:.0%} and "
                    f"{last['null_mean']:.0%}.")

    # 3
    said.append("3. Do the routes matter? In nats per answer token (positive: worse than with the codes on)"
                + (", and points of strict accuracy:" if generate else ":"))
    for name, what in {
        "off": "without the codes", "mean": "the mean vector everywhere", "directions": "vectors of random direction",
        "random": "random codes", "shuffled": "own codes, shuffled within the problem",
        "position": "codes of other problems at the same place", "untrained": "routes of an untrained router"}.items():
        a = arms[name]
        line = f"   {what}: {nats(a['nats_minus_on'])}"
        if generate:
            line += (", {:+.1f} [{:+.1f}, {:+.1f}] points".format(*(100 * x for x in a["strict_minus_on"]))
                     + f" (helps {a['helped']}, hurts {a['hurt']}, McNemar p {a['mcnemar_p']:.2g})")
        said.append(line + (": changes nothing." if a["changes_nothing"] else "."))
    if result["problems"] < FEW:
        said.append(f"   No verdict from {result['problems']} problems; {FEW} are the least.")
    else:
        verdicts = {"off": "the codes help at all (better than off)", "mean": "routes beat the mean vector",
                    "position": "it matters which code a problem gets, beyond position",
                    "untrained": "the codes need the router that they grew with"}
        verdicts = {name: what for name, what in verdicts.items() if not arms[name]["changes_nothing"]}
        holds = [what for name, what in verdicts.items() if arms[name]["nats_minus_on"][1] > 0]  # the whole interval
        fails = [what for what in verdicts.values() if what not in holds]
        said.append(f"   Supported by likelihood: {'; '.join(holds) or 'nothing'}. "
                    f"Not supported: {'; '.join(fails) or 'nothing'}.")
        if arms["off"]["nats_minus_on"][2] < 0:
            said.append("   The codes do harm: answers are likelier without them.")
    tested = [(c["code"], c["ablation"]) for c in result["codes"] if c["ablation"]]
    if tested and result["problems"] >= FEW:
        worse = [k for k, a in tested if a["nats_minus_on"][1] > 0]
        better = [k for k, a in tested if a["nats_minus_on"][2] < 0]
        line = (f"   One code at a time, intervals not corrected for their number: replacing it makes answers less "
                f"likely for {len(worse)} of {len(tested)} codes, likelier for {len(better)}")
        if generate:
            lost = [k for k, a in tested if a["p_holm"] < 0.05]
            line += (f"; accuracy changes beyond chance (Holm-corrected) for {len(lost)}"
                     + (f": {', '.join(map(str, lost))}" if lost else ""))
        said.append(line + ".")
    sham = result["sham"]
    if sham:
        said.append(f"   Sham, replacing {'-'.join(map(str, sham['codes']))}, which never fires: "
                    + ("changes nothing, as it must." if sham["changes_nothing"] else
                       "CHANGES something, so none of this can be trusted."))
    elif C > 1:
        said.append("   No sham: every code and every pair of codes fires.")
    return said
