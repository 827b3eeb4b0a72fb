"""Codes against labels: stored scikit-learn values, brute force, known cases. No network."""

import json
import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from analysis.routing import codes_of_answer_tokens, ngram_purity, routing

NAMES = ("purity", "bits", "bits_beyond_position")


def at_positions(rng, R=60, T=12, spread=4):
    """Rows of labels that depend on the position, with some chance, as in every answer format."""
    lengths = rng.integers(T - spread, T + 1, R)
    return [["abc"[(t // 2 + int(rng.random() < 0.3)) % 3] for t in range(n)] for n in lengths]


@pytest.mark.parametrize("codes, n_prompt, n_ids, K, expected", [
    ([5, 6, 7, 8, 9], 2, 6, 1, [6, 7, 8, 9]),  # token 2 is predicted at position 1
    # positions 012 345 67: token 3 is predicted at 2, in the first chunk; 7 and 8 at 6 and 7
    ([5, 6, 7], 3, 9, 3, [5, 6, 6, 6, 7, 7]),
    ([5, 6, 7, 99], 6, 10, 4, [6, 6, 6, 7])])  # padding may bring more codes
def test_codes_of_answer_tokens_by_hand(codes, n_prompt, n_ids, K, expected):
    """Broken if a token is counted with its own chunk's code, not that of the predicting state."""
    assert codes_of_answer_tokens(codes, n_prompt, n_ids, K).tolist() == expected


def test_numbers_against_scikit_learn_and_by_hand():
    """Broken if a purity, information or lift is wrong, or a token without label is counted."""
    codes = [[0, 1, 1, 2], [0, 1, 0, 2, 1], [2, 1, 0], [1, 1, 2, 0]]
    labels = [[*"abca"], ["a", "b", None, "b", "a"], ["b", None, "c"], [*"acba"]]
    s = routing(codes, labels, minimum=3, permutations=10)
    # mutual_info_score / ln 2 (scikit-learn 1.9.1), the last within each position; scipy's entropy
    observed = [s[name]["observed"] for name in NAMES]
    assert observed == pytest.approx([8 / 14, 0.38776185199137425, 0.4824919644402477])
    assert s["entropy_bits"] == pytest.approx(1.530618994848517) and s["tokens"] == 14
    assert s["position_bits"] == pytest.approx(0.7084922088251644)
    codes = [(c["code"], c["tokens"], c["label"]) for c in s["codes"]]
    assert codes == [(1, 6, "a"), (0, 4, "a"), (2, 4, "b")]
    # code 0 fires at positions 0, 0, 2, 3 with a, a, c, a; the rate of a there: 3/4, 3/4, 0, 2/3
    [pair] = s["codes"][1]["pairs"]  # c has one token only
    matched = (3 / 4 + 3 / 4 + 0 + 2 / 3) / 4
    assert s["codes"][1]["purity"] == 3 / 4 and 0 < pair.pop("p") <= 1
    assert pair == {"label": "a", "count": 3, "rate": 3 / 4, "lift": pytest.approx(7 / 4),
                    "matched_lift": pytest.approx(3 / 4 / matched)}
    json.dumps(s)


def brute_force(codes, labels):
    """(purity, information in bits, the same given the position) of lists, with dictionaries."""
    triples = [(k, y, t) for own, known in zip(codes, labels) for t, (k, y) in enumerate(zip(own, known))]

    def information(pairs):
        n, joint = len(pairs), Counter(pairs)
        a, b = Counter(k for k, _ in pairs), Counter(y for _, y in pairs)
        return sum(c / n * math.log2(c * n / a[k] / b[y]) for (k, y), c in joint.items())

    pairs = [(k, y) for k, y, _ in triples]
    most = [max(Counter(y for k, y in pairs if k == own).values()) for own in {k for k, _ in pairs}]
    places = [[(k, y) for k, y, s in triples if s == t] for t in {t for _, _, t in triples}]
    beyond = sum(len(own) * information(own) for own in places)
    return sum(most) / len(pairs), information(pairs), beyond / len(pairs)


def test_null_is_all_permutations_of_rows():
    """Broken if the null permutes tokens, codes within a row or anything but whole rows."""
    codes = [[0, 1, 1], [1, 1, 0], [0, 0, 2], [2, 1, 0]]
    labels = ["aab", "bab", "abc", "cab"]
    s = routing(codes, labels, minimum=1, permutations=1500)
    own = brute_force(codes, labels)
    every = np.array([brute_force(codes, order) for order in permutations(labels)])  # 24
    for i, name in enumerate(NAMES):
        assert [s[name]["observed"], s[name]["paired"]] == pytest.approx([own[i]] * 2)
        assert s[name]["null_mean"] == pytest.approx(every[:, i].mean(), abs=0.015)
        assert s[name]["p"] == pytest.approx((every[:, i] >= own[i] - 1e-9).mean(), abs=0.04)


def test_a_code_that_always_fires_at_one_position_looks_pure():
    """Broken if a router that reads nothing but the position is given credit: the trap."""
    labels = at_positions(np.random.default_rng(1), spread=0)
    labels = [["word", "digit", *row, "end"] for row in labels]
    codes = [list(range(len(row))) for row in labels]
    s = routing(codes, labels)
    assert s["purity"]["observed"] > 0.7  # what the trap shows
    assert s["bits"]["observed"] == pytest.approx(s["position_bits"])
    for pair in (pair for c in s["codes"] for pair in c["pairs"]):
        assert pair["matched_lift"] == pytest.approx(1) and pair["p"] == 1
    for name in NAMES:
        assert s[name]["p"] == 1 and s[name]["excess"] == pytest.approx(0, abs=1e-9)


def test_codes_that_mean_nothing():
    """Broken if small samples, rows that end early or the most striking of many pairs pass for signal."""
    rng, found, best = np.random.default_rng(2), [], []
    for _ in range(20):  # labels with gaps, rows of 2 to 20 tokens, codes of position and chance
        labels = [[None if rng.random() < 0.2 else y for y in row] for row in at_positions(rng, 40, 20, 18)]
        codes = [[(t + int(rng.integers(3))) % 6 for t in range(len(row))] for row in labels]
        s = routing(codes, labels, minimum=10, permutations=100)
        assert s["bits_beyond_position"]["observed"] > 0.03
        found.append([(s[name]["p"], s[name]["excess"]) for name in NAMES])
        best.append(min(pair["p"] for code in s["codes"] for pair in code["pairs"]))
    p, excess = np.moveaxis(np.array(found), 2, 0)  # (20, 3) each
    assert (abs(excess.mean(0)) < 3 * excess.std(0) / math.sqrt(20) + 1e-9).all()  # chance
    assert (p > 0.05).sum() >= 55
    assert sum(p <= 0.05 for p in best) <= 4, "of 18 pairs one or more often looks special"


def test_where_nothing_can_be_shown_nothing_is():
    """Broken if there is a small p, or an error, where there is nothing to compare with."""
    one_row, unpaired = ([[0, 1, 0]], ["aba"]), ([[0], [0, 1]], ["a", [None, "b"]])
    for codes, labels in (one_row, unpaired):  # some permutations pair nothing at all
        s = routing(codes, labels, minimum=1)
        assert all(s[name]["p"] > 0.3 for name in NAMES)


def test_ngrams_by_hand():
    """Broken if a chunk gets another token's label, or an n-gram another chunk's codes."""
    # K = 3, prompts of 4 and 5 tokens. Tokens 6 and 9 are predicted by the last states of chunks 1
    # and 2: answer tokens 2 and 5 of the first row, 1 and 4 of the second. Token 12 is beyond both.
    codes = [[7, 1, 2, 9], [8, 1, 2, 9]]
    labels = [[None if y == "_" else y for y in row] for row in ("__x__y_", "_z__y__")]
    found = ngram_purity(codes, labels, [4, 5], K=3, longest=4, permutations=5)
    # 1-grams 1 1 (x, z), 2 2 (y, y); 2-grams 7-1 8-1 1-2 1-2; longer ones all differ
    assert [(g["n"], g["chunks"], g["distinct"], g["observed"]) for g in found] == [
        (1, 4, 2, 3 / 4), (2, 4, 3, 1), (3, 4, 4, 1), (4, 4, 4, 1)]
    assert ngram_purity([[0, 0]], [["a", None]], [2], K=3) == []  # no last state predicts a label


def test_ngram_purity_rises_by_sparsity_alone():
    """Broken if random codes pass for n-gram structure because long n-grams are rare, so pure."""
    rng = np.random.default_rng(4)
    labels = at_positions(rng, 100, 24, 10)
    codes = [rng.integers(8, size=40) for _ in labels]
    grams = ngram_purity(codes, labels, rng.integers(5, 12, 100), K=2, longest=5, permutations=100)
    assert grams[0]["observed"] < 0.6 and grams[-1]["observed"] > 0.99
    assert all(g["p"] > 0.05 and abs(g["excess"]) < 0.05 for g in grams)
