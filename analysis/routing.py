"""
Is routing input-dependent, beyond position? Codes against labels: purity, lift, mutual information, n-grams.

Which code belongs to a token. The code of chunk m steers the states at positions mK .. mK+K-1, and the state at t
predicts token t+1. So every answer token is counted with the code that steers the state that predicts it.

The trap. A code that always fires at one position looks pure: the first answer token of a word problem is always a
word, so a router that reads nothing but the position has a code with purity 1 there. Purity and lift alone say nothing
about the input. Position-matched lift divides by the label's rate at the positions where the code fires, and every
overall number comes with a null that keeps position:

The null permutes whole rows: the codes of row r meet the labels of row s, token by token at the same answer position
(0 = the first answer token). Whatever codes and labels share through the position stays; what they share through the
problem goes. Where either row has ended or has no label, nothing can be paired, so a permutation uses only some of the
tokens, and fewer tokens alone make codes look purer and more informative. Hence each permutation also has the observed
number at exactly the tokens that it uses (same codes, same positions, the row's own labels). "paired" is the mean of
these, and p = (1 + permutations with null >= paired) / (1 + permutations). With rows of equal length and every token
labelled, paired is observed and p is the usual permutation p. Otherwise the null, having fewer tokens, varies more than
the observed number would by chance, and p errs on the cautious side.

Plug-in estimates: with few tokens for many codes and labels, purity and information are far above their true values
(most of all given position). Read "excess" = paired - null_mean and p, not "observed" alone.
"""

import numpy as np


def codes_of_answer_tokens(codes_per_chunk, n_prompt, n_ids, K):
    """
    The code that steers the state predicting each answer token: (n_ids - n_prompt,), from the row's codes (M,), more
    than needed being fine. Token j is predicted at position j - 1, in chunk (j - 1) // K. Raises ValueError.
    """
    if K < 1 or not 1 <= n_prompt < n_ids:
        raise ValueError(f"chunk K={K}, n_prompt={n_prompt}, n_ids={n_ids}: must be K >= 1 and 1 <= n_prompt < n_ids")
    chunks = (np.arange(n_prompt, n_ids) - 1) // K
    if chunks[-1] >= len(codes_per_chunk):
        raise ValueError(f"{n_ids} tokens in chunks of {K} need {chunks[-1] + 1} codes, got {len(codes_per_chunk)}")
    return np.asarray(codes_per_chunk)[chunks]


def _padded(codes, labels):
    """(codes (R, T), labels (R, T), label names in order); -1 where a row has ended or a token has no label."""
    if len(codes) != len(labels):
        raise ValueError(f"codes of {len(codes)} rows, labels of {len(labels)}")
    for r, (own, known) in enumerate(zip(codes, labels)):
        if len(own) != len(known):
            raise ValueError(f"row {r} has {len(own)} codes and {len(known)} labels")
    names = sorted({y for row in labels for y in row if y is not None})
    if not names:
        raise ValueError(f"no token of the {len(labels)} rows has a label")
    number = {y: i for i, y in enumerate(names)} | {None: -1}
    k, y = np.full((2, len(codes), max(map(len, codes))), -1)
    for r, (own, known) in enumerate(zip(codes, labels)):
        k[r, : len(own)] = own
        y[r, : len(known)] = [number[label] for label in known]
    if k[y >= 0].min() < 0:
        raise ValueError(f"codes must be >= 0, got {k[y >= 0].min()}")
    return k, y, names


def _permute(y, use, statistics, permutations, seed):
    """
    (paired, null), each (permutations, S): `statistics(keep, labels at keep)` -> (S,) with the rows' own labels and
    with those of permuted rows. y (R, T) labels or -1; use (R, T): which tokens count.
    """
    rng, paired, null = np.random.default_rng(seed), [], []
    for _ in range(permutations):
        other = y[rng.permutation(len(y))]
        keep = use & (y >= 0) & (other >= 0)
        paired.append(statistics(keep, y[keep]))
        null.append(statistics(keep, other[keep]))
    return np.array(paired), np.array(null)


def _p(paired, null):
    return (1 + (null >= paired.mean(0) - 1e-9).sum(0)) / (1 + len(null))  # equal but for rounding counts as equal


def _compared(observed, paired, null):
    """One statistic against its null, as a dict of floats: see `routing`."""
    low, high = np.quantile(null, [0.025, 0.975])
    found = dict(observed=observed, paired=paired.mean(), null_mean=null.mean(), null_low=low, null_high=high)
    return {k: float(v) for k, v in (found | dict(excess=paired.mean() - null.mean(), p=_p(paired, null))).items()}


def _sum(counts):
    """sum of n log2 n, of which every entropy here is made: H = log2 N - sum / N."""
    counts = counts[counts > 0]
    return (counts * np.log2(counts)).sum()


def _joint(a, b, n_b, n_a=None):
    """Counts (n_a, n_b) of the pairs (a, b), n_a = max(a) + 1 by default. Laid out for fast sums over the short b."""
    n_a = n_a or a.max(initial=0) + 1
    return np.bincount(b * n_a + a, minlength=n_a * n_b).reshape(n_b, n_a).T


def _purity(joint):
    """sum over codes of P(code) * max P(label | code), from counts (codes, labels)."""
    return joint.max(1).sum() / max(joint.sum(), 1)


def _information(joint):
    """Mutual information of the two axes of a table of counts, in bits."""
    N = max(joint.sum(), 1)
    return np.log2(N) + (_sum(joint) - _sum(joint.sum(0)) - _sum(joint.sum(1))) / N


def routing(codes, labels, minimum=20, permutations=200, seed=0):
    """
    One kind of label against one router's codes.

    Args:
        codes: rows of ints, one for each answer token (see codes_of_answer_tokens).
        labels: rows of strings or None, equally long; tokens without a label are left out.
        minimum: how many tokens a (code, label) pair must have to be listed.

    Returns a dict:
        tokens, problems: how many labelled tokens, and rows that have any. labels: {label: share of the tokens}.
        entropy_bits: of the label, no code can tell more. majority: the largest share, the purity of a single code.
        codes: one dict for each code that fires, the most frequent first:
            code, tokens, problems, label (its most frequent), purity P(label | code), and pairs, a list, highest
            matched_lift first, of dicts: label, count, rate P(y|k), lift P(y|k) / P(y), matched_lift = P(y|k) / (mean
            over the tokens where k fires of P(y | their position)), p (of the count, one-sided, for this one pair: of
            100 pairs 5 are below .05 by chance) and p_corrected (for all pairs listed: how often the null's most
            unusual pair, in standard deviations of its count, is at least as unusual). best: the first pair, or None.
            Rates at a position include the tokens themselves, so where rows are few matched_lift is too close to 1.
        purity, mi_bits, cmi_bits: P(code)-weighted mean purity, mutual information of code and label, and the same
            given the position; each a dict of observed, paired, null_mean, null_low and null_high (95 % of the
            permutations), excess and p (see the top of this file).
        used: the mean share of the tokens that a permutation uses.
        position: codes, purity and mi_bits (floats) if the code were the position itself.
    """
    k, y, names = _padded(codes, labels)
    everywhere, Y = y >= 0, len(names)
    row, position = (np.broadcast_to(a, y.shape) for a in np.ogrid[: y.shape[0], : y.shape[1]])
    used, k_dense = np.unique(np.where(everywhere, k, k[everywhere][0]), return_inverse=True)
    k_dense = k_dense.reshape(y.shape)
    both = np.unique(position * len(used) + k_dense, return_inverse=True)[1].reshape(y.shape)  # (position, code) as one

    def statistics(keep, label):
        """(purity, mi, cmi, counts of all pairs)"""
        code, place, N = k_dense[keep], position[keep], max(len(label), 1)
        joint = _joint(code, label, Y, len(used))
        with_code, without = _joint(both[keep], label, Y), _joint(place, label, Y)
        cmi = (_sum(with_code) - _sum(with_code.sum(1)) - _sum(without) + _sum(without.sum(1))) / N
        return np.array([_purity(joint), _information(joint), cmi, *joint.ravel()])

    observed = statistics(everywhere, y[everywhere])
    paired, null = _permute(y, everywhere, statistics, permutations, seed)
    joint, p = observed[3:].reshape(-1, Y), _p(paired, null)[3:].reshape(-1, Y)
    listed = joint >= max(minimum, 1)
    unusual = np.vstack([paired.mean(0), null])[:, 3:]  # the observed counts are one permutation among the others
    unusual = (unusual - unusual.mean(0)) / (unusual.std(0) + 1e-6)
    most = unusual[1:, listed.ravel()].max(1, initial=-np.inf)  # (permutations,)
    p_corrected = ((1 + (most[:, None] >= unusual[0] - 1e-6).sum(0)) / (1 + permutations)).reshape(-1, Y)
    places = _joint(position[everywhere], y[everywhere], Y)  # (T, Y)
    at_place = places / places.sum(1, keepdims=True).clip(1)
    rate, share = joint / joint.sum(1, keepdims=True), joint.sum(0) / joint.sum()

    found = []
    for i in np.argsort(-joint.sum(1), kind="stable"):
        fires = everywhere & (k_dense == i)
        matched = at_place[position[fires]].mean(0)  # (Y,)
        top = joint[i].argmax()
        pairs = [dict(label=names[j], count=int(joint[i, j]), rate=float(rate[i, j]), lift=float(rate[i, j] / share[j]),
                      matched_lift=float(rate[i, j] / matched[j]), p=float(p[i, j]),
                      p_corrected=float(p_corrected[i, j])) for j in range(Y) if listed[i, j]]
        pairs.sort(key=lambda pair: -pair["matched_lift"])
        found.append(dict(code=int(used[i]), tokens=int(fires.sum()), problems=len(set(row[fires].tolist())),
                          label=names[top], purity=float(rate[i, top]), best=pairs[0] if pairs else None, pairs=pairs))
    pair_counts = paired[:, 3:].sum(1)
    return {
        "tokens": int(everywhere.sum()), "problems": int(everywhere.any(1).sum()),
        "labels": dict(zip(names, share.tolist())),
        "entropy_bits": float(np.log2(joint.sum()) - _sum(joint.sum(0)) / joint.sum()), "majority": float(share.max()),
        "codes": found,
        **{name: _compared(observed[s], paired[:, s], null[:, s])
           for s, name in enumerate(("purity", "mi_bits", "cmi_bits"))},
        "used": float(pair_counts.mean() / everywhere.sum()), "permutations": permutations, "minimum": minimum,
        "position": {"codes": int((places.sum(1) > 0).sum()), "purity": float(_purity(places)),
                     "mi_bits": float(_information(places))},
    }


def ngram_purity(codes_per_chunk, labels, n_prompts, K, longest=6, permutations=200, seed=0):
    """
    How pure the last n codes are, n = 1 .. longest, chunk by chunk: the label of a chunk is that of the token
    that its last state predicts (chunks where that has none or lies beyond the row's end are left out), its n-gram the
    codes of the chunk and of the n - 1 before it, prompt included; what would lie before the first token is one more
    code. So the chunks are the same for every n. Purity rises with n by sparsity alone (an n-gram seen once is pure):
    the null shows how much.

    codes_per_chunk: rows of ints, from the prompt's first chunk on. labels: rows of strings or None for each answer
    token. n_prompts: prompt tokens of each row. Raises ValueError if nothing has a label.

    Returns {"chunks": how many, "ngrams": [{"n", "distinct": different n-grams, and observed, paired, null_mean,
    null_low, null_high, excess, p of the purity, as in `routing`}]}.
    """
    if longest < 1:
        raise ValueError(f"longest={longest} codes of an n-gram: it must be at least 1")
    codes = [codes_of_answer_tokens(own, n_prompt, n_prompt + len(known), K)
             for own, known, n_prompt in zip(codes_per_chunk, labels, n_prompts, strict=True)]
    _, y, names = _padded(codes, labels)
    use, history = np.zeros(y.shape, bool), []
    for r, n_prompt in enumerate(n_prompts):
        token = n_prompt + np.arange(y.shape[1])
        use[r] = (token % K == 0) & (y[r] >= 0)  # its position before is the chunk's last
        own = np.append(np.full(longest - 1, -1), codes_per_chunk[r])
        history.append(own[(token[use[r], None] - 1) // K + np.arange(longest)])
    history = np.concatenate(history)  # (chunks, longest), in the order of y[use]
    if not len(history):
        raise ValueError("no chunk's last state predicts a token with a label")
    grams = [np.unique(history[:, longest - n :], axis=0, return_inverse=True)[1].ravel()
             for n in range(1, longest + 1)]  # the number of each chunk's n-gram

    def statistics(keep, label):
        return np.array([_purity(_joint(gram[keep[use]], label, len(names))) for gram in grams])

    observed = statistics(use, y[use])
    paired, null = _permute(y, use, statistics, permutations, seed)
    return {"chunks": len(history),
            "ngrams": [{"n": n + 1, "distinct": int(grams[n].max() + 1),
                        **_compared(observed[n], paired[:, n], null[:, n])} for n in range(longest)]}
