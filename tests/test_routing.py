"""Codes against labels: stored scikit-learn values, brute force, and cases whose answer is known. No network."""

import json
import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from analysis.routing import codes_of_answer_tokens, ngram_purity, routing

CODES = ["0112", "01021", "210", "1120"]  # four rows
LABELS = ["abca", "ab-ba", "b-c", "acba"]  # "-": no label


def rows(codes=CODES, labels=LABELS):
    return [[int(c) for c in row] for row in codes], [[None if y == "-" else y for y in row] for row in labels]


def at_positions(rng, R=60, T=12, spread=4):
    """Rows of labels that depend on the position, with some chance: what every answer format looks like."""
    lengths = rng.integers(T - spread, T + 1, R)
    return [["abc"[(t // 2 + int(rng.random() < 0.3)) % 3] for t in range(n)] for n in lengths]


# ---- which code belongs to which token


@pytest.mark.parametrize("codes, n_prompt, n_ids, K, expected", [
    ([5, 6, 7, 8, 9], 2, 6, 1, [6, 7, 8, 9]),  # token 2 is predicted at position 1
    # positions 012 345 67: token 3 is predicted at 2, in the first chunk; 4, 5, 6 at 3, 4, 5; 7, 8 at 6, 7
    ([5, 6, 7], 3, 9, 3, [5, 6, 6, 6, 7, 7]),
    ([5, 6, 7], 4, 9, 3, [6, 6, 6, 7, 7]),
    ([5, 6, 7, 99], 6, 10, 4, [6, 6, 6, 7]),  # positions 0123 4567 8; padding may bring more codes
    ([5], 1, 5, 4, [5, 5, 5, 5]),
])
def test_codes_of_answer_tokens_by_hand(codes, n_prompt, n_ids, K, expected):
    """Broken if a token is counted with the code of its own chunk, not with that of the state that predicts it."""
    assert codes_of_answer_tokens(codes, n_prompt, n_ids, K).tolist() == expected


@pytest.mark.parametrize("args, message", [
    (([5, 6], 3, 9, 3), "9 tokens in chunks of 3 need 3 codes, got 2"),
    (([5, 6], 0, 4, 3), "n_prompt=0"),
    (([5, 6], 4, 4, 3), "n_ids=4"),
    (([5, 6], 2, 4, 0), "K=0"),
])
def test_codes_of_answer_tokens_refuses(args, message):
    """Broken if missing codes or an empty answer end in a bare IndexError or in no tokens."""
    with pytest.raises(ValueError, match=message):
        codes_of_answer_tokens(*args)


# ---- numbers


def test_numbers_against_scikit_learn_and_by_hand():
    """Broken if a purity, an information or a lift is not what its name says, or a token without label is counted."""
    s = routing(*rows(), minimum=3, permutations=10)
    assert (s["tokens"], s["problems"], s["labels"]) == (14, 4, {"a": 6 / 14, "b": 5 / 14, "c": 3 / 14})
    # mutual_info_score / ln 2 (scikit-learn 1.9.1), for cmi within each position; entropy of scipy
    assert s["purity"]["observed"] == pytest.approx(8 / 14)
    assert s["mi_bits"]["observed"] == pytest.approx(0.38776185199137425)
    assert s["cmi_bits"]["observed"] == pytest.approx(0.4824919644402477)
    assert s["entropy_bits"] == pytest.approx(1.530618994848517) and s["majority"] == pytest.approx(6 / 14)
    assert s["position"] == {"codes": 5, "purity": pytest.approx(10 / 14),
                             "mi_bits": pytest.approx(0.7084922088251644)}
    assert [(c["code"], c["tokens"], c["problems"], c["label"]) for c in s["codes"]] == [
        (1, 6, 3, "a"), (0, 4, 4, "a"), (2, 4, 4, "b")]
    # code 0 fires at positions 0, 0, 2, 3 with a, a, c, a; the rate of a there is 3/4, 3/4, 0, 2/3
    zero = s["codes"][1]
    assert zero["purity"] == 3 / 4 and len(zero["pairs"]) == 1  # c has one token only
    assert zero["best"] == zero["pairs"][0]
    p, p_corrected = zero["best"].pop("p"), zero["best"].pop("p_corrected")
    assert zero["best"] == {"label": "a", "count": 3, "rate": 3 / 4, "lift": pytest.approx(3 / 4 / (6 / 14)),
                            "matched_lift": pytest.approx(3 / 4 / ((3 / 4 + 3 / 4 + 0 + 2 / 3) / 4))}
    assert 0 < p <= p_corrected <= 1
    assert all(c["best"] is None for c in routing(*rows(), minimum=9, permutations=10)["codes"])
    json.dumps(s)


def brute_force(codes, labels):
    """(purity, mutual information in bits, the same given the position) of lists of rows, with dictionaries."""
    triples = [(k, y, t) for own, known in zip(codes, labels) for t, (k, y) in enumerate(zip(own, known))]

    def information(pairs):
        n, joint = len(pairs), Counter(pairs)
        a, b = Counter(k for k, _ in pairs), Counter(y for _, y in pairs)
        return sum(c / n * math.log2(c * n / a[k] / b[y]) for (k, y), c in joint.items())

    pairs = [(k, y) for k, y, _ in triples]
    purity = sum(max(Counter(y for k, y in pairs if k == code).values()) for code in {k for k, _ in pairs}) / len(pairs)
    places = {t: [(k, y) for k, y, s in triples if s == t] for _, _, t in triples}
    return purity, information(pairs), sum(len(own) / len(pairs) * information(own) for own in places.values())


def test_null_is_all_permutations_of_rows():
    """Broken if the null permutes tokens, codes within a row or anything but whole rows of labels."""
    codes, labels = [[0, 1, 1], [1, 1, 0], [0, 0, 2], [2, 1, 0]], [list("aab"), list("bab"), list("abc"), list("cab")]
    s = routing(codes, labels, minimum=1, permutations=1500)
    observed = brute_force(codes, labels)
    every = np.array([brute_force(codes, order) for order in permutations(labels)])  # 24
    for i, name in enumerate(("purity", "mi_bits", "cmi_bits")):
        assert s[name]["observed"] == pytest.approx(observed[i]) and s[name]["paired"] == pytest.approx(observed[i])
        assert s[name]["null_mean"] == pytest.approx(every[:, i].mean(), abs=0.015)
        assert s[name]["p"] == pytest.approx((every[:, i] >= observed[i] - 1e-9).mean(), abs=0.04)
        assert min(every[:, i]) <= s[name]["null_low"] <= s[name]["null_high"] <= max(every[:, i]) + 1e-9
    pair = next(pair for c in s["codes"] if c["code"] == 0 for pair in c["pairs"] if pair["label"] == "b")
    counts = [sum(k == 0 and y == "b" for own, known in zip(codes, order) for k, y in zip(own, known))
              for order in permutations(labels)]
    assert pair["p"] == pytest.approx(np.mean(np.array(counts) >= pair["count"]), abs=0.04)


# ---- cases whose answer is known


def test_codes_that_are_the_labels():
    """Broken if a perfect router is not perfect, or does not stand out from its null."""
    labels = at_positions(np.random.default_rng(0))
    s = routing([["abc".index(y) for y in row] for row in labels], labels)
    assert s["purity"]["observed"] == 1 and s["mi_bits"]["observed"] == pytest.approx(s["entropy_bits"])
    for name in ("purity", "mi_bits", "cmi_bits"):
        assert s[name]["p"] == 1 / 201 and s[name]["null_high"] < s[name]["paired"]
    for code in s["codes"]:
        assert code["label"] == "abc"[code["code"]] and code["best"]["p_corrected"] == 1 / 201
        assert code["best"]["lift"] > code["best"]["matched_lift"] > 1.2  # the position tells part of the label


def test_a_code_that_always_fires_at_one_position_looks_pure():
    """Broken if a router that reads nothing but the position is given credit: the trap that this file is about."""
    rng = np.random.default_rng(1)
    labels = [["word", "digit", *row, "end"] for row in at_positions(rng, spread=0)]
    codes = [list(range(len(row))) for row in labels]
    s = routing(codes, labels)
    assert s["purity"]["observed"] == s["position"]["purity"] > 0.7 and s["mi_bits"]["observed"] > 1
    first = next(c for c in s["codes"] if c["code"] == 0)
    assert first["purity"] == 1 and first["best"]["lift"] > 10  # what the trap shows
    for code in s["codes"]:
        for pair in code["pairs"]:
            assert pair["matched_lift"] == pytest.approx(1) and pair["p"] == pair["p_corrected"] == 1
    for name in ("purity", "mi_bits", "cmi_bits"):
        assert s[name]["p"] == 1 and s[name]["excess"] == pytest.approx(0, abs=1e-9)
    assert s["cmi_bits"]["observed"] == pytest.approx(0, abs=1e-9)
    for gram in ngram_purity([[0] * 4 + own for own in codes], labels, [5] * len(labels), K=1)["ngrams"]:
        assert gram["p"] == 1 and gram["observed"] == pytest.approx(s["purity"]["observed"])


def test_codes_that_mean_nothing():
    """Broken if the bias of small samples (information far above 0) or rows that end early pass for a signal."""
    rng, found = np.random.default_rng(2), []
    for _ in range(20):  # labels with gaps, rows of 2 to 20 tokens, codes that follow the position and chance
        labels = [[None if rng.random() < 0.2 else y for y in row] for row in at_positions(rng, 40, 20, 18)]
        codes = [[(t + int(rng.integers(3))) % 6 for t in range(len(row))] for row in labels]
        s = routing(codes, labels, permutations=50)
        assert s["cmi_bits"]["observed"] > 0.03 and 0.3 < s["used"] < 0.7
        found.append([(s[name]["p"], s[name]["excess"]) for name in ("purity", "mi_bits", "cmi_bits")])
    p, excess = np.moveaxis(np.array(found), 2, 0)  # (20, 3) each
    assert (abs(excess.mean(0)) < 3 * excess.std(0) / math.sqrt(20) + 1e-9).all()  # 0 but for chance
    assert (p > 0.05).sum() >= 55 and (abs(p.mean(0) - 0.5) < 0.25).all()


def test_the_best_of_many_pairs_of_nothing():
    """Broken if p_corrected does not make up for looking at the most striking of many pairs."""
    rng, best = np.random.default_rng(7), []
    for _ in range(20):
        labels = at_positions(rng, 50, 10, 0)
        s = routing(rng.integers(8, size=(50, 10)), labels, minimum=10, permutations=100)
        best.append([min(pair[p] for code in s["codes"] for pair in code["pairs"]) for p in ("p", "p_corrected")])
    alone, corrected = (np.array(best) <= 0.05).sum(0)  # tables of 24 pairs where some p is .05 or less
    assert alone >= 10 and corrected <= 4


def test_codes_that_mean_something_in_ragged_rows():
    """Broken if dropping the tokens that have no partner also drops the signal."""
    rng = np.random.default_rng(3)
    labels = at_positions(rng, 60, 20, 18)
    codes = [[int(rng.integers(3)) if rng.random() < 0.5 else "abc".index(y) for y in row] for row in labels]
    s = routing(codes, labels)
    assert s["mi_bits"]["p"] == s["cmi_bits"]["p"] == s["purity"]["p"] == 1 / 201
    assert s["cmi_bits"]["null_high"] < s["cmi_bits"]["paired"]


def test_one_row_or_one_label_shows_nothing():
    """Broken if there is a p below 1 where nothing can be permuted, or an error where all labels are alike."""
    one = routing([[0, 1, 0]], [["a", "b", "a"]], minimum=1)
    assert one["mi_bits"]["p"] == one["codes"][0]["best"]["p"] == 1 and one["mi_bits"]["excess"] == 0
    alike = routing([[0, 1], [1, 0, 2]], [["a"] * 2, ["a"] * 3])
    assert alike["purity"]["observed"] == 1 and alike["purity"]["p"] == alike["mi_bits"]["p"] == 1
    assert alike["mi_bits"]["observed"] == pytest.approx(0) and alike["entropy_bits"] == 0
    routing([[0], [0, 1]], [["a"], [None, "b"]])  # some permutations pair nothing at all


# ---- n-grams


def test_ngrams_by_hand():
    """Broken if a chunk gets another token's label, or an n-gram another chunk's codes."""
    # K = 3, positions 012 345 678 9..; prompts of 4 and 5 tokens. Tokens 6 and 9 are predicted by the last states of
    # chunks 1 and 2: answer tokens 2 and 5 of the first row, 1 and 4 of the second. Token 12 lies beyond both rows.
    codes = [[7, 1, 2, 9], [8, 1, 2, 9]]
    labels = [list("__x__y_"), list("_z__y__")]
    labels = [[None if y == "_" else y for y in row] for row in labels]
    found = ngram_purity(codes, labels, [4, 5], K=3, longest=4, permutations=5)
    # 1-grams 1 1 (x, z), 2 2 (y, y); 2-grams 7-1 8-1 1-2 1-2; longer ones the same
    assert found["chunks"] == 4
    assert [(g["n"], g["distinct"], g["observed"]) for g in found["ngrams"]] == [
        (1, 2, 3 / 4), (2, 3, 1), (3, 4, 1), (4, 4, 1)]
    # with K = 1 every answer token counts, and n = 1 is the purity of the tokens
    own, known = rows()
    s = routing(own, known, permutations=5)
    found = ngram_purity([[3, *row] for row in own], known, [2] * 4, K=1, longest=2, permutations=5)
    assert found["chunks"] == s["tokens"] and found["ngrams"][0]["observed"] == s["purity"]["observed"]


def test_ngram_purity_rises_by_sparsity_alone():
    """Broken if random codes pass for an n-gram structure because long n-grams are rare, hence pure."""
    rng = np.random.default_rng(4)
    labels = at_positions(rng, 100, 24, 10)
    prompts = rng.integers(5, 12, 100)
    codes = [rng.integers(8, size=40) for _ in labels]
    grams = ngram_purity(codes, labels, prompts, K=2, longest=5, permutations=100)["ngrams"]
    purities = [g["observed"] for g in grams]
    assert purities == sorted(purities) and purities[0] < 0.6 and purities[-1] > 0.99
    assert all(g["p"] > 0.05 and g["null_low"] <= g["paired"] <= g["null_high"] for g in grams)


def test_what_only_pairs_of_codes_tell():
    """Broken if the 2-gram is not that of neighbouring chunks: here the label is the parity of two codes."""
    rng = np.random.default_rng(6)
    codes = rng.integers(2, size=(50, 30))
    labels = [[str((row[t] + row[t - 1]) % 2) for t in range(9, 29)] for row in codes]
    one, two, three = ngram_purity(codes, labels, [10] * 50, K=1, longest=3, permutations=100)["ngrams"]
    assert one["observed"] < 0.6 and one["p"] > 0.05
    assert two["observed"] == three["observed"] == 1 and two["p"] == three["p"] == 1 / 101


# ---- errors


@pytest.mark.parametrize("codes, labels, message", [
    ([[0]], [["a"], ["b"]], "codes of 1 rows, labels of 2"),
    ([[0], [0, 1]], [["a"], ["b"]], "row 1 has 2 codes and 1 labels"),
    ([[0]], [[None]], "no token of the 1 rows has a label"),
    ([[0, -1]], [["a", "b"]], "codes must be >= 0, got -1"),
])
def test_bad_input_is_named(codes, labels, message):
    """Broken if rows that are out of step, or padding taken for codes, end in a table instead of an error."""
    with pytest.raises(ValueError, match=message):
        routing(codes, labels)


def test_bad_ngrams_are_named():
    """Broken if no labelled chunk, or n-grams of nothing, ends in a traceback from numpy."""
    with pytest.raises(ValueError, match="no chunk's last state predicts a token with a label"):
        ngram_purity([[0, 0]], [["a", None]], [2], K=3)
    with pytest.raises(ValueError, match="longest=0"):
        ngram_purity([[0, 0]], [["a", None]], [2], K=3, longest=0)
