"""
Is routing input-dependent, beyond position? Codes against labels: purity, lift, information, n-grams.

Which code belongs to a token. The code of chunk m steers the states at positions mK .. mK+K-1, and
the state at t predicts token t+1. So an answer token is counted with the code of the chunk that
predicts it, not of the chunk that it lies in.

The trap. A code that always fires at one position looks pure: the first answer token of a word
problem is always a word, so a router that reads nothing but the position has a code of purity 1
there. Hence every number has a control that keeps the position:

The null permutes whole rows. Codes of row r meet labels of row s, token by token at the same place
of the answer. What codes and labels share through the position stays, what they share through the
problem goes. Where either row has ended or has no label nothing can be paired, and fewer tokens
alone make codes look purer. So each permutation also has the true value at exactly the tokens that
it uses. "paired" is the mean of those, excess = paired - null_mean, and
p = (1 + permutations with null >= paired) / (1 + permutations).

With few tokens for many codes and labels, plug-in purity and information lie far above their true
values, most of all given the position. Read excess and p, not "observed" alone.
"""

import numpy as np


def codes_of_answer_tokens(codes, n_prompt, n_ids, K):
    """The code that predicts each answer token, (n_ids - n_prompt,), from a row's codes (M,)."""
    position = np.arange(n_prompt, n_ids) - 1  # token j is predicted by the state at j - 1
    return np.asarray(codes)[position // K]


def padded(codes, labels):
    """(codes (R, T), labels (R, T) as numbers, their names); -1 where a row has ended or has no label."""
    names = sorted({y for row in labels for y in row if y is not None})
    number = {y: i for i, y in enumerate(names)} | {None: -1}
    k, y = np.full((2, len(codes), max(map(len, codes))), -1)
    for r, (own, known) in enumerate(zip(codes, labels)):
        k[r, : len(own)] = own
        y[r, : len(known)] = [number[label] for label in known]
    return k, y, names


def counts(a, b):
    """Table (max a + 1, max b + 1) of how often each pair of a and b, equally long, occurs."""
    n_a, n_b = a.max(initial=0) + 1, b.max(initial=0) + 1
    return np.bincount(a * n_b + b, minlength=n_a * n_b).reshape(n_a, n_b)


def purity(table):
    """sum over codes of P(code) max P(label | code), from counts (codes, labels)."""
    return table.max(1).sum() / max(table.sum(), 1)


def n_log_n(table):
    """sum of n log2 n, of which every entropy here is made: H = log2 N - n_log_n / N."""
    table = table[table > 0]
    return (table * np.log2(table)).sum()


def information(table):
    """Mutual information in bits of the two axes of a table of counts."""
    N = max(table.sum(), 1)
    return np.log2(N) + (n_log_n(table) - n_log_n(table.sum(0)) - n_log_n(table.sum(1))) / N


def permute(y, use, statistics, permutations, seed):
    """
    (paired, null), each (permutations, S): statistics(keep, labels at keep) -> (S,), with the rows'
    own labels and with those of permuted rows. y (R, T) labels or -1; use (R, T): which tokens count.
    """
    rng, paired, null = np.random.default_rng(seed), [], []
    for _ in range(permutations):
        other = y[rng.permutation(len(y))]
        keep = use & (y >= 0) & (other >= 0)
        paired.append(statistics(keep, y[keep]))
        null.append(statistics(keep, other[keep]))
    return np.array(paired), np.array(null)


def compared(observed, paired, null):
    """One statistic beside its null, as a dict of floats; see the top of this file."""
    at_least = (null >= paired.mean() - 1e-9).sum()  # equal but for rounding counts as equal
    found = {"observed": observed, "paired": paired.mean(), "null_mean": null.mean(),
             "excess": paired.mean() - null.mean(), "p": (1 + at_least) / (1 + len(null))}
    return {name: float(x) for name, x in found.items()}


def routing(codes, labels, minimum=20, permutations=200, seed=0):
    """
    One kind of label against one router: codes, rows of ints, one for each answer token; labels, rows
    of strings or None, equally long. Tokens without a label are left out. Returns a dict:

        tokens         how many have a label
        entropy_bits   of the label: no code can tell more. position_bits: what the position tells
        purity, bits, bits_beyond_position    mean purity, mutual information of code and label, and
                       the same given the position; each observed, paired, null_mean, excess, p
        codes          a dict for each code that fires, the most frequent first: code, tokens, label
                       (its most frequent one), purity = P(label | code), and
                       pairs, those of >= `minimum` tokens, highest matched_lift first: label, count,
                       rate P(y | k), lift = P(y | k) / P(y), matched_lift = P(y | k) / (mean of
                       P(y | position) where k fires), p, corrected for all pairs listed (how often
                       the null's most unusual pair, in standard deviations, is as unusual)
    """
    k, y, names = padded(codes, labels)
    use, C, Y = y >= 0, k.max() + 1, len(names)
    position = np.broadcast_to(np.arange(y.shape[1]), y.shape)
    place_and_code = position * C + k

    def statistics(keep, label):
        """purity, bits, bits beyond position, and the counts of all pairs (C * Y)."""
        pairs = np.bincount(k[keep] * Y + label, minlength=C * Y).reshape(C, Y)
        with_code, without = counts(place_and_code[keep], label), counts(position[keep], label)
        beyond = n_log_n(with_code) - n_log_n(with_code.sum(1)) - n_log_n(without) + n_log_n(without.sum(1))
        return np.array([purity(pairs), information(pairs), beyond / max(len(label), 1), *pairs.ravel()])

    observed = statistics(use, y[use])
    paired, null = permute(y, use, statistics, permutations, seed)
    pairs = observed[3:].reshape(C, Y)
    listed = pairs >= minimum
    # How unusual is each pair's count? The observed counts are one permutation among the others.
    unusual = np.vstack([paired.mean(0), null])[:, 3:]
    unusual = (unusual - unusual.mean(0)) / (unusual.std(0) + 1e-6)
    most = unusual[1:, listed.ravel()].max(1, initial=-np.inf)  # (permutations,)
    p = (1 + (most[:, None] >= unusual[0] - 1e-6).sum(0)) / (1 + permutations)  # (C * Y,)
    p = p.reshape(C, Y)

    places = counts(position[use], y[use])
    at_place = places / places.sum(1, keepdims=True).clip(1)  # P(y | position)
    share = pairs.sum(0) / pairs.sum()  # P(y)
    found = []
    for i in np.argsort(-pairs.sum(1), kind="stable"):
        if not pairs[i].any():
            continue
        rate = pairs[i] / pairs[i].sum()  # P(y | k)
        matched = at_place[position[use & (k == i)]].mean(0)
        own = [{"label": names[j], "count": int(pairs[i, j]), "rate": float(rate[j]), "p": float(p[i, j]),
                "lift": float(rate[j] / share[j]), "matched_lift": float(rate[j] / matched[j])}
               for j in range(Y) if listed[i, j]]
        own.sort(key=lambda pair: -pair["matched_lift"])
        found.append({"code": int(i), "tokens": int(pairs[i].sum()), "label": names[rate.argmax()],
                      "purity": float(rate.max()), "pairs": own})
    named = {name: compared(observed[s], paired[:, s], null[:, s])
             for s, name in enumerate(("purity", "bits", "bits_beyond_position"))}
    entropy = np.log2(pairs.sum()) - n_log_n(pairs.sum(0)) / pairs.sum()
    return {"tokens": int(use.sum()), "entropy_bits": float(entropy),
            "position_bits": float(information(places)), **named, "codes": found}


def ngram_purity(codes, labels, n_prompts, K, longest=6, permutations=200, seed=0):
    """
    How pure are the last n codes, n = 1 .. longest? Purity rises with n by sparsity alone, as an
    n-gram seen once is pure; the null shows how much.

    codes: rows of ints, from the prompt's first chunk on; labels: rows of strings or None for each
    answer token; n_prompts: prompt tokens of each row. A chunk's label is that of the token that its
    last state predicts; chunks without one are left out. What would lie before the first chunk is one
    more code, so the chunks are the same for every n. Returns a list of dicts: n, chunks, distinct
    (different n-grams), observed, paired, null_mean, excess, p. It is empty where no chunk has a label.
    """
    _, y, _ = padded([[0] * len(known) for known in labels], labels)
    use, history = np.zeros(y.shape, bool), []
    for r, n_prompt in enumerate(n_prompts):
        token = n_prompt + np.arange(y.shape[1])
        use[r] = (token % K == 0) & (y[r] >= 0)  # the position before it is its chunk's last
        own = np.concatenate([np.full(longest - 1, -1), codes[r]])
        history.append(own[(token[use[r], None] - 1) // K + np.arange(longest)])
    history = np.concatenate(history)  # (chunks, longest), in the order of y[use]
    if len(history) == 0:
        return []
    grams = [np.unique(history[:, longest - n :], axis=0, return_inverse=True)[1].ravel()
             for n in range(1, longest + 1)]  # the number of each chunk's n-gram

    def statistics(keep, label):
        return np.array([purity(counts(gram[keep[use]], label)) for gram in grams])

    observed = statistics(use, y[use])
    paired, null = permute(y, use, statistics, permutations, seed)
    return [{"n": n + 1, "chunks": len(history), "distinct": int(gram.max() + 1),
             **compared(observed[n], paired[:, n], null[:, n])} for n, gram in enumerate(grams)]
