"""General Dijkstra Search: lessons, each compared with something that shares no code with gds.py."""

import copy
import itertools
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gds
from gds import MDP

settings.register_profile("gds", derandomize=True, deadline=None, max_examples=60,
                          suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gds")
ROOT = Path(__file__).parent.parent
PRINTED = ("parent", "child")


# ---- References on dense arrays, independent of gds.py ---------------------------------------------


def simulate(P, r, gamma, start, rules):
    """(value, set of ends) of full rules (L,S) by dense matrices; the support by a boolean product."""
    S = len(P)
    d, support, value = np.eye(S)[start], np.arange(S) == start, 0.0
    for t, rule in enumerate(rules):
        step = P[np.arange(S), rule]  # (S,S)
        value += gamma**t * d @ r[t, np.arange(S), rule]
        d, support = d @ step, (step[support] > 0).any(0)
    return value, set(np.flatnonzero(support).tolist())


def enumerate_all(P, r, gamma, start, goals, mode):
    """The best value over every sequence of every full rule S -> A, or None."""
    S, A, _ = P.shape
    best = None
    every_rule = [*itertools.product(range(A), repeat=S)]
    for L in range(1, len(r) + 1):
        for rules in itertools.product(every_rule, repeat=L):
            value, ends = simulate(P, r, gamma, start, np.array(rules))
            if (ends <= goals if mode == "reach" else ends >= goals) and (best is None or value > best):
                best = value
    return best


@st.composite
def problems(draw, S=3, T=3):
    """(P, r, gamma, start, goals, mode) with A = 2: ties, edges of 1e-15, gamma 0 and 1, any goals."""
    S, T = draw(st.integers(2, S)), draw(st.integers(1, T))
    P = np.zeros((S, 2, S))
    for s, a in itertools.product(range(S), range(2)):
        x, y = draw(st.integers(0, S - 1)), draw(st.integers(0, S - 1))
        p = draw(st.sampled_from([1.0, 0.5, 0.3, 1e-15]))
        P[s, a, x] += p
        P[s, a, y] += 1 - p
    cost, n = st.sampled_from([0.0, 0.0, 0.5, 1.0, 0.123]), T * S * 2
    costs = draw(st.lists(cost, min_size=n, max_size=n))
    gamma = draw(st.sampled_from([0, 0.25, 0.5, 0.9, 0.99, 1]))
    goals = draw(st.sets(st.integers(0, S - 1)))
    return (P, -np.reshape(costs, (T, S, 2)), gamma, draw(st.integers(0, S - 1)), goals,
            draw(st.sampled_from(["reach", "cover"])))


def agrees(result, best):
    return result.status == ("infeasible" if best is None else "optimal") and (
        result.value == -np.inf if best is None else abs(result.value - best) < 1e-9)


# ---- The solvers are exact -------------------------------------------------------------------------


def solvers(m, start, goals, mode):
    """What each exact solver answers."""
    yield gds.gds(m, start, goals, mode)
    yield gds.gds(m, start, goals, mode, heuristic=False)
    yield gds.gds_literal(m, start, goals, mode, "repaired")
    yield gds.brute_force(m, start, goals, mode)
    if mode == "reach":
        yield gds.reach_dp(m, start, goals)


@given(problems())
def test_everything_agrees_with_enumeration(problem):
    """Broken if some solver did not return the optimum over all sequences of all rules S -> A."""
    P, r, gamma, start, goals, mode = problem
    if len(P) == 3 and len(r) == 3:
        r = r[:2]  # 8 rules, 2 steps: 72 sequences; the next test goes deeper
    best = enumerate_all(P, r, gamma, start, goals, mode)
    m = MDP(P, r, gamma)
    plain = gds.gds_plain(m, start, goals, mode), gds.gds_literal(m, start, goals, mode, "none")
    for result in (*plain, *solvers(m, start, goals, mode)):
        assert agrees(result, best)


@given(problems(S=4, T=4))
@settings(max_examples=150)
def test_solvers_agree_and_policies_do_what_they_promise(problem):
    """Broken if a solver were wrong at longer horizons, or its policy did not do what it says."""
    P, r, gamma, start, goals, mode = problem
    m = MDP(P, r, gamma)
    exact = gds.brute_force(m, start, goals, mode)
    results = [*solvers(m, start, goals, mode)]
    assert all(gds.same(result, exact) for result in results)
    for result in [*results, gds.static_best(m, start, goals, mode)]:
        if result.status != "optimal":
            assert result.value == -np.inf and result.policy == []
            continue
        rules = [[rule.get(s, 0) for s in range(len(P))] for rule in result.policy]
        value, ends = simulate(P, r, gamma, start, rules)
        assert 1 <= len(result.policy) == result.length <= len(r)
        assert abs(value - result.value) < 1e-9
        assert abs(gds.policy_value(m, start, result.policy) - value) < 1e-9
        assert ends <= goals if mode == "reach" else ends >= goals


FROZEN_LAKE = {4: "SFFF FHFH FFFH HFFG",
               8: "SFFFFFFF FFFFFFFF FFFHFFFF FFFFFHFF FFFHFFFF FHHFFFHF FHFFHFHF FFFHFFFG"}


@pytest.mark.parametrize("size, steps, slippery_value", [(4, 6, 0.5420), (8, 14, 0.4146)])
def test_frozen_lake(size, steps, slippery_value):
    """Broken if the published optima of FrozenLake (slippery: gamma .99) did not come out."""
    letters = FROZEN_LAKE[size].replace(" ", "")
    i, j = np.divmod(np.arange(size * size), size)
    near = np.stack([np.clip(i + di, 0, size - 1) * size + np.clip(j + dj, 0, size - 1)
                     for di, dj in ((0, -1), (1, 0), (0, 1), (-1, 0))], 1)  # (S,A)
    stuck = np.array([letter in "HG" for letter in letters])
    near[stuck] = np.flatnonzero(stuck)[:, None]
    goal = letters.index("G")
    walk = gds.gds(MDP.deterministic(near, np.full((2 * steps, size * size, 4), -1.0), 1), 0, {goal})
    assert (walk.value, walk.length) == (-steps, steps)

    P = sum(np.eye(size * size)[near[:, (np.arange(4) + turn) % 4]] for turn in (-1, 0, 1)) / 3
    r = np.full((1500, size * size, 4), -0.01)  # V = E .99^t - 1, where the goal is reached at t
    r[:, goal] = 0
    stop = np.zeros((1501, size * size), bool)
    stop[-1] = True
    V, _ = gds.backward(MDP(P, r, 0.99), stop)
    assert abs((1 + V[0, 0]) / 0.99 - slippery_value) < 1e-4  # they pay the reward a step earlier


@given(problems(S=3, T=3))
def test_static_best_agrees_with_trying_every_rule(problem):
    """Broken if the static policy shown beside a plan were not the best one."""
    P, r, gamma, start, goals, mode = problem
    tried = [simulate(P, r, gamma, start, np.array([rule] * L)) for L in range(1, len(r) + 1)
             for rule in itertools.product(range(2), repeat=len(P))]
    values = [value for value, ends in tried if (ends <= goals if mode == "reach" else ends >= goals)]
    assert agrees(gds.static_best(MDP(P, r, gamma), start, goals, mode), max(values, default=None))


def test_cover_bound_by_hand():
    """Broken if the bound for COVER did not weigh a branch's regret by its probability."""
    P, r = np.zeros((5, 2, 5)), np.zeros((2, 5, 2))
    P[0, :, [1, 2]] = 0.5  # 0 -> 1 or 2 by chance; 1 -> 3 free, 1 -> 4 for 1; the others end in 3
    P[1, 0, 3] = P[1, 1, 4] = P[2, :, 3] = P[3, :, 3] = P[4, :, 4] = 1
    r[1, 1, 1] = -1
    m = MDP(P, r, 0.5)
    one, two = (gds.relax(m, 0, {4}, "cover", range(L, L + 1)) for L in (1, 2))
    assert one.root == two.root == 0
    assert (one.miss[0, 0, 0], two.miss[0, 0, 0]) == (np.inf, 0.5 * 0.5 * 1)
    assert gds.gds(m, 0, {4}, "cover").value == -0.25
    both, late = (((1, 0.5), (2, 0.5)), ()), (((2, 0.5),), ((1, 0.5),))
    left = [gds.upper_bound(two, gds.Entry(0.0, 0.0, 1, *branches, None, None)) for branches in (both, late)]
    assert left == [-0.25, -np.inf]  # a branch that has moved to 1 is there at t = 2, which is too late
    pops = []  # 0; 1 and 2; 2 alone; 3, which has lost 4 or 5 and is given up
    assert gds.gds(*gds.merging(), "cover", trace=pops).pops == 4
    assert pops == [(0, [0], 0, "expand"), (1, [1, 2], 0, "expand"), (1, [2], 0, "expand, go on"),
                    (2, [3], 0, "expand")]


def test_grid_against_networkx():
    """Broken if GDS on a deterministic P were not Dijkstra on (time, state)."""
    rng = np.random.default_rng(0)
    for gamma in (0, 0.5, 0.95, 1):
        S, T = 12, 9
        succ, cost = rng.integers(S, size=(S, 3)), rng.choice([0, 0.1, 0.7, 2.0], size=(T, S, 3))
        graph = nx.MultiDiGraph()
        for t, s, a in np.ndindex(T, S, 3):
            graph.add_edge((t, s), (t + 1, int(succ[s, a])), weight=gamma**t * cost[t, s, a])
        distance = nx.single_source_dijkstra_path_length(graph, (0, 0))
        m = MDP.deterministic(succ, -cost, gamma)
        for goals in ({11}, {3, 7}, {0}, set()):  # the empty set is never reached, so everything is searched
            best = min((distance.get((t, g), np.inf) for t in range(1, T + 1) for g in goals), default=np.inf)
            for heuristic in (True, False):
                result = gds.gds(m, 0, goals, heuristic=heuristic)
                assert result.status == ("optimal" if best < np.inf else "infeasible")
                assert result.pops <= T * S + 1
                assert abs(result.value + best) < 1e-9 or best == np.inf


def test_pops_by_hand():
    """Broken if a prefix were popped twice or after a better one, or the wrong pop were the last."""
    r = np.zeros((3, 5, 2))
    r[0, 0], r[1, 1], r[1, 2], r[2, 3] = (-1, -2), -5, -1, -10  # 0 -> 1 for 1, 0 -> 2 for 2, ...
    m = MDP.deterministic([[1, 2], [3, 3], [3, 3], [4, 4], [4, 4]], r, 1)
    plain = gds.gds(m, 0, {4}, heuristic=False)
    assert (plain.value, plain.length) == (-13, 3)
    assert plain.pops == 5  # 0; 1 at -1; 2 at -2; 3 at -3, and not again at -6; 4 at -13
    pops, steps = [], []
    gds.gds(m, 0, {4}, heuristic=False, trace=pops)
    assert pops == [(0, [0], 0, "expand"), (1, [1], -1, "expand"), (1, [2], -2, "expand"),
                    (2, [3], -3, "expand"), (3, [4], -13, "return")]
    gds.gds(m, 0, {4}, trace=steps)
    assert steps == [(0, [0], 0, "read off"), (1, [2], -2, "read off"), (2, [3], -3, "read off"),
                     (3, [4], -13, "return")]
    assert gds.gds(m, 0, {4}).pops == 4  # straight along 0, 2, 3, 4
    assert gds.gds(m, 0, {0}).pops == 0  # the bound knows that there is no way back
    assert [gds.gds(m, 0, {4}, heuristic=False, max_pops=n).status for n in (4, 5)] == ["capped", "optimal"]
    assert gds.gds(m, 0, {4}, heuristic=False, max_pops=4).pops == 4
    free = MDP.deterministic([[0, 1], [1, 2], [2, 2]], np.zeros((3, 3, 2)), 1)
    tied = gds.gds(free, 0, {2}, heuristic=False)
    assert (tied.length, tied.pops) == (3, 7)  # the longer first: 0, 0, 0, 0 and 1 (too late), 1, 2


def test_static_by_hand():
    """Broken if static prefixes with the same ends but bound to other actions were merged."""
    P, r = np.zeros((4, 2, 4)), np.zeros((3, 4, 2))
    P[0, :, [1, 2]], P[1, :, 3], P[2, :, 1], P[3, :, 3] = 0.5, 1, 1, 1  # in 1 at t = 1 or at t = 2
    r[1, 1, 1], r[2, 1, 0] = -1, -10  # action 0 is the better one at t = 1, action 1 at t = 2
    assert gds.gds(MDP(P, r, 1), 0, {3}).value == 0 and gds.static_best(MDP(P, r, 1), 0, {3}).value == -0.5


# ---- Supports, caps, limits ------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.5, 1e-15, 1e-300])
def test_tiny_probabilities_are_support(p):
    """Broken if an end of probability 1e-15, or one that underflows to 0, did not count as an end."""
    P = np.zeros((4, 1, 4))
    P[0, 0, [0, 1]] = [1 - p, p] if p > 1e-16 else [1.0, p]
    P[1, 0, [1, 2]] = P[0, 0, [0, 1]]
    P[2:, 0, 3] = 1  # state 2 at t = 2 with probability p^2, which is 0.0 in floats at p = 1e-300
    m = MDP(P, np.zeros((3, 4, 1)), 1)
    for heuristic in (True, False):
        assert gds.gds(m, 0, {0, 1}, heuristic=heuristic).length == 1
        assert gds.gds(m, 0, {0, 1, 2}, "cover", heuristic=heuristic).length == 2
        assert gds.gds(m, 0, {3}, "cover", heuristic=heuristic).length == 3
        assert gds.gds(m, 0, {0}, heuristic=heuristic).status == "infeasible"
    assert gds.reach_dp(m, 0, {0}).status == "infeasible"
    assert set(gds.follow(m, 0, [{0: 0}, {0: 0, 1: 0}])[0][-1]) == {0, 1, 2}
    assert gds.gds_literal(m, 0, {0, 1, 2}, "cover", "repaired").status == "optimal"


def test_which_distributions_are_merged():
    """Broken if equal distributions were searched twice, or different ones taken for equal."""
    P = np.zeros((5, 2, 5))  # {3, 4} in either order: 0; 1 and 2; 2 alone, twice; {3}, {4}, {3, 4}
    P[0, :, [1, 2]] = 0.5
    P[1, 0, 3] = P[1, 1, 4] = P[2, 0, 4] = P[2, 1, 3] = P[3, :, 3] = P[4, :, 4] = 1
    nothing = gds.gds(MDP(P, np.zeros((2, 5, 2)), 1), 0, [], heuristic=False)
    assert (nothing.status, nothing.pops) == ("infeasible", 7)
    for apart, pops in ((1e-6, 3), (1e-16, 2)):  # the start, and each outcome that differs in 12 digits
        P = np.zeros((3, 2, 3))
        P[0, 0, [1, 2]], P[0, 1, [1, 2]] = [0.3, 0.7], [0.3 + apart, 0.7 - apart]
        P[1:, :, 2] = 1
        assert P[0, 1, 1] != P[0, 0, 1]
        assert gds.gds(MDP(P, np.zeros((1, 3, 2)), 1), 0, [], heuristic=False).pops == pops
    P, r = np.zeros((4, 2, 4)), np.zeros((2, 4, 2))
    P[0, 0, 1], P[0, 1, [1, 2]] = 1, [1 - 1e-15, 1e-15]  # action 0 is free; action 1 costs 1, may lead to 2
    P[1, :, 1], P[2:, :, 3] = 1, 1
    r[0, 0, 1] = -1
    assert gds.gds(MDP(P, r, 1), 0, {3}, "cover", heuristic=False).value == -1  # only the support differs


def test_capped_is_never_infeasible():
    """Broken if a search that was cut short claimed to have proved that no policy exists."""
    m = MDP.deterministic([[1, 0], [2, 1], [3, 2], [3, 3]], np.full((6, 4, 2), -0.1), 0.9)
    needed = gds.gds(m, 0, {3}).pops
    for limit in range(1, 12):
        capped = gds.gds(m, 0, {3}, max_pops=limit)
        assert capped.status == ("optimal" if limit >= needed else "capped") and capped.pops <= limit
        assert np.isnan(capped.value) or capped.status == "optimal"
        assert gds.gds(m, 0, {3}, heuristic=False, max_pops=limit).status != "infeasible"
        assert gds.gds_literal(m, 0, {3}, max_pops=limit).status != "infeasible"
        assert gds.static_best(m, 0, {3}, max_pops=limit).status != "infeasible"
    wide = MDP(np.full((12, 2, 12), 1 / 12), np.zeros((2, 12, 2)), 0.9)  # 2^12 rules would wait
    too_many = gds.gds_literal(wide, 0, [], reading="repaired", max_pops=1000)
    assert (too_many.status, too_many.pops) == ("capped", 2) and np.isnan(too_many.value)


def test_brute_force_refuses_what_would_not_finish():
    """Broken if brute_force hung on a gridworld, did not say why, or overflowed on a long chain."""
    with pytest.raises(ValueError, match="more than"):
        gds.brute_force(*gds.bridge().problem)
    coin = MDP(np.full((2, 1, 2), 0.5), np.zeros((40, 2, 1)), 1)
    with pytest.raises(ValueError, match="more than"):  # one policy, but 2^40 paths
        gds.brute_force(coin, 0, [], history=True)
    chain = MDP.deterministic([[0]], np.full((1200, 1, 1), -1.0), 1)
    assert gds.brute_force(chain, 0, [], "cover").value == -1  # deeper than Python may recurse


# ---- The printed algorithm -------------------------------------------------------------------------


def literal_unfolded(P, r, gamma, start, goals, mode, reading):
    """Algorithms 1 and 2 word for word, every rule S -> A appended, a sorted list: the value or None."""
    S, T, bound = len(P), len(r), abs(r).max()
    queue, records, popped, born = [(0.0, 0, [])], [], set(), itertools.count(1)
    while queue:
        queue.sort(key=lambda entry: (-entry[0], entry[1]))
        v, _, rules = queue.pop(0)
        t = len(rules)
        G = frozenset(simulate(P, r, gamma, start, np.array(rules, int).reshape(t, S))[1])
        popped.add(G)
        if t and (G <= goals if mode == "reach" else G >= goals):
            return v
        eps = bound / (1 - gamma) * gamma**t / (1 - gamma)
        inside = (lambda a, b: a <= b) if mode == "reach" else (lambda a, b: a >= b)
        if t == T or any(inside(G2, G) and v <= v2 - eps for G2, v2 in records):
            continue
        for rule in itertools.product(range(2), repeat=S):
            v2, ends = simulate(P, r, gamma, start, np.array([*rules, rule]))
            if frozenset(ends) not in popped:
                records.append((G if reading == "parent" else frozenset(ends), v2))
            queue.append((v2, next(born), [*rules, rule]))
    return None


@given(problems(S=3, T=2), st.sampled_from(["parent", "child"]), st.sampled_from([0.25, 0.5, 0.9]))
def test_folding_copies_does_not_change_the_literal_algorithm(problem, reading, gamma):
    """Broken if gds_literal were not the printed algorithm, which appends all A^S rules."""
    P, r, _, start, goals, mode = problem
    r = r - 0.0
    r[0, start, 0] = -1.0  # with no cost at all eps is 0 and ties decide; see the zero-reward test
    printed = literal_unfolded(P, r, gamma, start, goals, mode, reading)
    assert agrees(gds.gds_literal(MDP(P, r, gamma), start, goals, mode, reading), printed)


CE1 = ([[0, 1], [2, 2], [2, 2]], [(0, 0, 1)], 0.25, 2, -1)
CE2 = ([[0, 1], [2, 2], [3, 3], [3, 3]], [(0, 0, 1)], 0.25, 3, -1)
CE3 = ([[0, 1], [2, 2], [3, 3], [4, 4], [4, 4]], [(0, 0, 1), (1, 1, 0), (1, 1, 1)], 0.5, 4, -1.5)
# By hand, what prunes the one prefix in time, at t = 1, 1, 2: the goal set and value of the record, and
# eps_t = gamma^t / (1 - gamma)^2.
CE_RECORDS = {2: ({1}, 0, 4 / 9), 3: ({1}, 0, 4 / 9), 4: ({2}, 0, 1)}


@pytest.mark.parametrize("mode", ["reach", "cover"])
@pytest.mark.parametrize("problem, reading", [(CE1, "child"), (CE2, "child"), (CE2, "parent"), (CE3, "child"),
                                              (CE3, "parent")])
def test_counterexamples_written_by_hand(problem, reading, mode):
    """Broken if the printed pruning were right where it is known to be wrong, or the repair were not."""
    succ, costs, gamma, T, optimum = problem
    r = np.zeros((T, len(succ), 2))
    for cost in costs:
        r[cost] = -1
    m, goal = MDP.deterministic(succ, r, gamma), {len(succ) - 1}
    trace, why = [], []
    printed = gds.gds_literal(m, 0, goal, mode, reading, trace=trace, why=why)
    assert printed.status == "infeasible" and printed.fired >= 1
    assert [what for _, _, _, what in trace].count("PRUNE") == len(why) == printed.fired
    G, v, eps = CE_RECORDS[T]
    assert why[-1][:2] == (G, v) and why[-1][2] == pytest.approx(eps)
    for result in (gds.gds(m, 0, goal, mode), gds.gds_literal(m, 0, goal, mode, "repaired")):
        assert result.value == optimum
    family, start, goals = gds.late_shortcut(gamma, T)
    assert (family.next[..., 0].tolist(), start, goals) == (succ, 0, goal) and (family.r == r).all()


def test_a_record_that_comes_early_prunes_the_best_too():
    """Broken if only lateness were the fault: in state 1 going is free at last, but an early record prunes waiting."""
    r = [np.zeros((3, 2)), [[0, 0], [-0.9, -1], [0, 0]], np.zeros((3, 2))]
    problem = gds.MDP.deterministic([[1, 1], [1, 2], [2, 2]], r, 0.25), 0, {2}
    assert gds.gds_literal(*problem, reading="child").value == -0.25
    assert gds.gds_literal(*problem, reading="repaired").value == gds.brute_force(*problem).value == -0.225


@pytest.mark.parametrize("mode", ["reach", "cover"])
@pytest.mark.parametrize("reading, eps", [("parent", 64 / 9), ("child", 64 / 9), ("repaired", 5)])
def test_what_a_prefix_must_cost_to_be_pruned(reading, eps, mode):
    """Broken if eps differed from that by hand: t = 1, T = 3, gamma .25, costs c, 0, 16."""
    for cost, what in ((eps * 0.99, "expand"), (eps if reading == "repaired" else eps * 1.01, "PRUNE")):
        r, seen = np.zeros((3, 3, 2)), []
        r[0, 0, 1], r[2, 0, 0] = -cost, -16  # 0 -> 1 for nothing or for c, and then nothing but 1 -> 2
        m, goals = MDP.deterministic([[1, 1], [2, 2], [2, 2]], r, 0.25), {0} if mode == "reach" else {0, 1}
        result = gds.gds_literal(m, 0, goals, mode, reading, trace=seen)
        assert result.status == "infeasible" and (1, [1], -cost, what) in seen and len(seen) == result.pops
        assert sum(pop[-1] == "PRUNE" for pop in seen) == result.fired


def test_why_names_the_record_not_the_pruned_prefix():
    """Broken if what is told to have pruned were not the record: {1} at 0 prunes {1, 2} at -1."""
    P, r, why = np.zeros((3, 2, 3)), np.zeros((2, 3, 2)), []
    P[0, 0, 1], P[0, 1, [1, 2]], P[1:, :, 2] = 1, 0.5, 1
    r[0, 0, 1] = -1
    gds.gds_literal(MDP(P, r, 0.25), 0, {0}, reading="child", why=why)
    assert (set(why[-1][0]), why[-1][1]) == ({1}, 0)


def test_pruning_without_discount_or_costs():
    """Broken if eps were not infinite at gamma = 1, so that nothing is pruned, or not 0 without costs."""
    def along(gamma, cost, reading):  # from 0 to 2: action 0 waits for nothing, action 1 steps on
        r = np.zeros((3, 3, 2))
        r[:, :-1, 1] = -cost
        return gds.gds_literal(MDP.deterministic([[0, 1], [1, 2], [2, 2]], r, gamma), 0, {2}, reading=reading)

    for reading in PRINTED:
        assert (along(1, 1, reading).value, along(1, 1, reading).fired) == (-2, 0)
    short_sighted = along(0, 1, "child")  # gamma = 0: eps is 0 from t = 1 on
    assert short_sighted.status == "infeasible" and short_sighted.fired > 0
    for gamma in (0.5, 1):
        assert along(gamma, 0, "child").status == "infeasible"
        assert along(gamma, 0, "repaired").length >= 2


def test_goal_sets_popped_before_are_not_recorded():
    """Broken if the start pruned whatever comes back to it, which is not what is printed."""
    m = MDP.deterministic([[0, 0]], [[[0.0, -1.0]], [[0.0, 0.0]]], 0.25)
    for reading in PRINTED:
        seen = []  # gamma .25, so a record of {0} at 0 would prune (1, {0}, -1)
        gds.gds_literal(m, 0, [], reading=reading, trace=seen)
        assert (1, [0], -1, "expand") in seen


def test_no_smaller_counterexample():
    """Broken if CE1 were not the smallest: it wants three states, and the child reading."""
    parent = gds.gds_literal(*gds.late_shortcut(0.25, 2), reading="parent")
    assert parent.value == -1  # the parent reading goes wrong from T = 3 on: CE2
    for succ in itertools.product(range(2), repeat=4):
        for cost in itertools.product([0.0, -1.0], repeat=6):  # what state 1 costs at t = 0 is never paid
            r = np.array([[cost[:2], (0, 0)], [cost[2:4], cost[4:]]])
            if r.any():
                m = MDP.deterministic(np.reshape(succ, (2, 2)), r, 0.25)
                for goal in ({0}, {1}):
                    exact = gds.brute_force(m, 0, goal)
                    assert all(gds.same(gds.gds_literal(m, 0, goal, reading=x), exact) for x in PRINTED)


def test_least_firing_depth():
    """Broken if the claim of when the printed pruning is dead code were wrong (by hand)."""
    by_hand = {0: 1, 0.38: 1, 0.39: 2, 0.6: 3, 0.9: 23, 0.99: 460, 1: np.inf}
    assert {gamma: gds.least_firing_depth(gamma) for gamma in by_hand} == by_hand


# ---- The other theorems ----------------------------------------------------------------------------


@given(problems(S=3, T=2))
def test_policy_iteration(problem):
    """Broken if some sequence of T rules beat what policy iteration converged to (Theorem 3)."""
    P, r, gamma, _, _, _ = problem
    policy, V, rounds = gds.policy_iteration(MDP(P, r, gamma))
    for s in range(len(P)):
        best = max(simulate(P, r, gamma, s, np.array(rules))[0] for rules in
                   itertools.product(itertools.product(range(2), repeat=len(P)), repeat=len(r)))
        assert abs(V[0, s] - best) < 1e-9 and abs(simulate(P, r, gamma, s, policy)[0] - best) < 1e-9
    assert rounds <= len(r) + 1


def test_sat_gadget():
    """Broken if the reduction from SAT that makes COVER NP-hard were wrong."""
    every = [*itertools.product((1, -1), (2, -2), (3, -3))]  # each excludes one assignment
    for heuristic in (True, False):
        nothing_left = gds.gds(*gds.sat_gadget(every, 3), "cover", heuristic)
        assert nothing_left.status == "infeasible"
        for i, clause in enumerate(every):  # without it, only the assignment that it excludes is left
            result = gds.gds(*gds.sat_gadget(every[:i] + every[i + 1 :], 3), "cover", heuristic)
            assert [result.policy[1][v] for v in (1, 2, 3)] == [int(literal < 0) for literal in clause]


# ---- Worlds and the command line -------------------------------------------------------------------

# name: value, length, best static value (None: infeasible), the least horizon with a solution
OPTIMA = {
    "toll": (-0.2734875, 4, -1.195, 2),  # .05 + .95 * .05 + .95^2 * .1 + .95^3 * .1; static 1.1 + .95 * .1
    "bridge": (-0.742, 12, -1.734, 6),
    "guard": (-0.922, 12, -4.443, 10),
    "doors": (-0.846, 12, -1.817, 8),
    "river": (-0.843, 9, -2.174, 7),
    "scouts": (-0.626, 8, None, 8)}


@pytest.mark.parametrize("name", gds.WORLDS)
def test_worlds(name, capsys):
    """Broken if an optimum that readers check their own solver against had changed."""
    value, length, static, horizon = OPTIMA[name]
    mdp, start, goals, mode = gds.WORLDS[name]().problem
    for heuristic in (True, False) if mdp.K == 1 else (True,):
        result = gds.gds(mdp, start, goals, mode, heuristic)
        assert (round(result.value, 3), result.length) == (round(value, 3), length)
        dists, replayed = gds.follow(mdp, start, result.policy)
        assert abs(replayed - result.value) < 1e-9 and gds.feasible(mode, set(dists[-1]), goals)
    best_static = gds.static_best(mdp, start, goals, mode)
    assert best_static.status == ("optimal" if static else "infeasible")
    assert static is None or round(best_static.value, 3) == static
    for T, status in ((horizon, "optimal"), (horizon - 1, "infeasible")):
        cut = copy.copy(mdp)
        cut.r, cut.T = mdp.r[:T], T
        assert gds.gds(cut, start, goals, mode).status == status
    assert gds.main(["--world", name]) == 0
    printed = capsys.readouterr().out
    assert f"{result.value:.3f}" in printed and printed.count("t = ") > result.length and "Arrived" in printed


def frames(capsys, world):
    """What show prints for each time, as a list of lists of lines."""
    gds.show(world)
    return [frame.splitlines() for frame in capsys.readouterr().out.split("\n\n")[1:]]


def test_frames_by_hand(capsys):
    """Broken if a frame showed other costs than those of the landing that comes, or another's action."""
    assert frames(capsys, gds.toll()) == [
        ["t = 0, paid 0.00", "@Xg   stay"],  # the toll of 1 is taken at t = 1 and t = 2
        ["t = 1, paid 0.05", "@Xg   stay"],
        ["t = 2, paid 0.10", "@.g   east"],
        ["t = 3, paid 0.19", ".@g   east"],
        ["t = 4, paid 0.27. Arrived", "..@"]]
    shift = {"stay": (0, 0), "north": (-1, 0), "east": (0, 1), "west": (0, -1)}
    scouts = frames(capsys, gds.scouts())[1:]  # the coin has been thrown; from now on moves are sure
    for now, after in itertools.pairwise(scouts):
        moved = set()
        for i, line in enumerate(now[-5:]):
            agents = [j for j in range(5) if line[j] == "@"]
            actions = line[5:].strip().split(", ") if agents else []
            for j, action in zip(agents, actions, strict=True):
                moved.add((i + shift[action][0], j + shift[action][1]))
        assert moved == {(i, j) for i in range(5) for j in range(5) if after[-5:][i][j] == "@"}


def test_a_world_without_a_policy(capsys):
    """Broken if show said Arrived, or drew an action, where no policy leads to the goal."""
    cheap = gds.grid("a story", "s#g", 3, lambda t, i, j, letter: 0)
    assert frames(capsys, cheap) == [["t = 0, paid 0.00", "@#g"]]
    gds.show(cheap)
    assert "infeasible: no path leads from state 0 to a goal" in capsys.readouterr().out


def test_grid_from_lines():
    """Broken if a string of lines were another map than the list, or small costs were drawn as 0 or 10."""
    price = lambda t, i, j, letter: {"a": 0.01, "b": 0.97, "c": 3.0}.get(letter, 0)  # noqa: E731
    lines, listed = (gds.grid("", rows, 4, price) for rows in ("\n  s.a\n  #bg\n", ["s.a", "#bg"]))
    assert lines.rows == listed.rows and (lines.problem[0].r == listed.problem[0].r).all()
    mdp, start, goals, mode = lines.problem
    assert lines.cells == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2)] and (start, goals, mode) == (0, {4}, "reach")
    north, east, south, west, stay = (list(gds.MOVES).index(m) for m in
                                      ("north", "east", "south", "west", "stay"))
    assert mdp.next[0, [north, east, south, west, stay], 0].tolist() == [0, 1, 0, 0, 0]  # wall, map's end
    assert mdp.next[1, [north, east, south, west, stay], 0].tolist() == [1, 2, 3, 0, 1]
    assert np.allclose(mdp.r[:, 1, [south, stay, east]], [-0.1 - 0.97, -0.05, -0.1 - 0.01])
    assert gds._frame(lines, {0: 1.0}, {0: east}, lines.extra[1]) == "@.1   east\n#9g"


def test_command_line_verifies(capsys):
    """Broken if `python gds.py` did not print plan, counterexample and table, or a claim came out wrong."""
    assert gds.main(["--n", "400"]) == 0
    out = capsys.readouterr().out
    parts = ("t = 4, paid 0.27. Arrived", "PRUNE: -1 <= 0 - 0.444, by {1} with value 0", "holds  Theorem 1",
             "15 of 15 verdicts as expected")
    assert [out.index(part) for part in parts] == sorted(out.index(part) for part in parts)
    assert "fails  Theorem 1" not in out and "control  for Theorem 1: if second's clock restarts" in out
    assert "UNEXPECTED" not in out and out.count("holds") >= 9 and out.count("fails") >= 6 and "PRUNE" in out
    assert gds.main(["--n", "24"]) == 0  # the least that has every kind of problem
    assert " 0 problems" not in capsys.readouterr().out


@pytest.mark.parametrize("broken", ["gds", "relax"])
def test_verification_can_fail(monkeypatch, capsys, broken):
    """Broken if a solver or a bound that forgets the discount passed the verification."""
    right = getattr(gds, broken)

    def undiscounted(mdp, *args):
        patient = copy.copy(mdp)
        patient.gamma = 1.0
        return right(patient, *args)

    monkeypatch.setattr(gds, broken, undiscounted)
    assert gds.main(["--n", "120"]) == 1
    assert "UNEXPECTED: " in capsys.readouterr().out


def test_runs_without_torch():
    """Broken if gds.py needed more than numpy."""
    code = ("import sys\nfor name in ('torch', 'tqdm', 'networkx', 'hypothesis'): sys.modules[name] = None\n"
            "import gds; sys.exit(gds.main(['--world', 'toll']))")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_runs_alone(tmp_path):
    """Broken if gds.py, copied into an empty folder, needed any other file of this repository."""
    shutil.copy(ROOT / "gds.py", tmp_path)
    for flags, words in ((["--world", "river"], "Arrived"), (["--n", "24"], "15 of 15 verdicts")):
        run = subprocess.run([sys.executable, "-I", "gds.py", *flags], cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0 and words in run.stdout, run.stderr


# ---- As a library ----------------------------------------------------------------------------------


def lake(slippery):
    """The 4 x 4 FrozenLake as gymnasium's P[s][a] = [(p, s', reward, end), ...]; holes and goal absorb."""
    letters, P = FROZEN_LAKE[4].replace(" ", ""), {}
    for s, letter in enumerate(letters):
        i, j = divmod(s, 4)
        near = [min(max(i + di, 0), 3) * 4 + min(max(j + dj, 0), 3)
                for di, dj in ((0, -1), (1, 0), (0, 1), (-1, 0))]
        P[s] = {a: [(1 / 3, near[(a + turn) % 4], float(letters[near[(a + turn) % 4]] == "G"), False)
                    for turn in (-1, 0, 1)] if slippery else [(1.0, near[a], 0.0, False)] for a in range(4)}
        if letter in "HG":
            P[s] = {a: [(1.0, s, 0, True)] for a in range(4)}
    return P


@given(problems(S=4, T=2))
def test_from_successors_is_the_same_mdp(problem):
    """Broken if it did not add duplicates up, or differed from the MDP of the dense P."""
    P, r, gamma, _, _, _ = problem
    split = {s: {a: [(p / 2, s2, "reward", "end") for s2, p in enumerate(row) for _ in range(2)][::-1]
                 for a, row in enumerate(rows)} for s, rows in enumerate(P)}
    listed = [[split[s][a] for a in range(2)] for s in range(len(P))]
    dense = MDP(P, r, gamma)
    for form in (split, listed):
        m = MDP.from_successors(form, r, gamma)
        assert (m.S, m.A, m.K, m.T) == (dense.S, dense.A, dense.K, dense.T)
        assert m.successors == dense.successors and (m.r == dense.r).all()
        assert gds.same(gds.gds(m, 0, {1}), gds.gds(dense, 0, {1}))


def test_rewards_that_do_not_change():
    """Broken if an r (S,A) with T=3 were another problem than r three times over."""
    P, r = np.full((2, 2, 2), 0.5), np.array([[-1.0, -2], [0, -3]])
    succ = [[[(1, 0)], [(1, 1)]], [[(1, 1)], [(1, 0)]]]
    for build, first in ((MDP, P), (MDP.deterministic, [[0, 1], [1, 0]]), (MDP.from_successors, succ)):
        for m in (build(first, r, 0.5, T=3), build(first, np.array([r] * 3), 0.5, T=3)):
            assert m.T == 3 and m.r.tolist() == [r.tolist()] * 3
    assert gds.gds(m, 0, {0}).value == -1 and gds.gds(m, 0, {1}, "cover", heuristic=False).value == -2


def slippery_torus(n):
    """P[s][a] of n x n cells: a move goes ahead with .8, back with .2."""
    return {s: {a: [(0.8, (s + step) % n**2, 0, False), (0.2, (s - step) % n**2, 0, False)]
                for a, step in enumerate((1, -1, n, -n))} for s in range(n * n)}


def test_a_large_grid_from_successors():
    """Broken if a stochastic grid took an (S,A,S) array, its r were copied T times, or it took long."""
    P, r = slippery_torus(100), np.full((10000, 4), -1.0)
    began = time.process_time()
    m = MDP.from_successors(P, r, 1, T=1000)
    assert time.process_time() - began < 5  # it takes half a second
    assert m.successors[5][2] == [(105, 0.8), (9905, 0.2)] and m.r.shape == (1000, 10000, 4)
    P, r = slippery_torus(40), np.full((1600, 4), -1.0)
    tracemalloc.start()
    MDP.from_successors(P, r, 1, T=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # the array would have 82 MB, r 51 MB


def test_why_no_policy():
    """Broken if "infeasible" and "capped" did not say why, or said what is not so."""
    costs = np.full((16, 4), -1.0)
    sure, icy = (MDP.from_successors(lake(slippery), costs, 1, T=20) for slippery in (False, True))
    short = MDP.from_successors(lake(False), costs, 1, T=5)
    assert (gds.gds(sure, 0, {15}).value, gds.gds(sure, 0, {15}).reason) == (-6, "")
    for heuristic in (True, False):
        reason = gds.gds(short, 0, {15}, heuristic=heuristic).reason
        assert reason == "the shortest path to goal 15 takes 6 steps, but T = 5"
        assert gds.gds(sure, 0, [], heuristic=heuristic).reason.startswith("goals is empty")
        hole = gds.gds(sure, 5, {14, 15}, heuristic=heuristic).reason  # 5 is a hole
        assert hole == "no path leads from state 5 to a goal"
    assert gds.gds(short, 0, {1, 15}, "cover").reason == "the shortest path to goal 15 takes 6 steps, but T = 5"
    assert "goal 7" in gds.gds(sure, 15, {15, 7}, "cover").reason
    assert "no policy is sure to end in one" in gds.gds(icy, 0, {15}).reason
    assert "no policy is sure" in gds.reach_dp(icy, 0, {15}).reason
    assert "no static policy is sure" in gds.static_best(icy, 0, {15}).reason
    assert "no policy has a branch in each" in gds.gds(sure, 0, {1, 4}, "cover").reason  # one branch only
    for capped in (gds.gds(icy, 0, {15}, "cover", max_pops=2), gds.gds(sure, 0, {15}, max_pops=2)):
        assert capped.status == "capped" and "max_pops = 2" in capped.reason


@given(problems(S=4, T=3))
def test_trace_has_every_pop(problem):
    """Broken if trace left out a pop, or a search returned before its greatest value was due."""
    P, r, gamma, start, goals, mode = problem
    m = MDP(P, r, gamma)
    for heuristic in (True, False):
        trace = []
        result = gds.gds(m, start, goals, mode, heuristic, trace=trace)
        if mode == "cover" or not heuristic:
            assert len(trace) == result.pops
        else:
            assert len(trace) == (result.length + 1 if result.policy else 0)
        if not heuristic:
            values = [v for _, _, v, _ in trace]
            assert all(a >= b - 1e-12 for a, b in itertools.pairwise(values))
        if result.policy:
            t, states, v, what = trace[-1]
            rules = [[rule.get(s, 0) for s in range(len(P))] for rule in result.policy]
            assert (t, set(states), what) == (result.length, simulate(P, r, gamma, start, rules)[1], "return")
            assert abs(v - result.value) < 1e-9


# ---- Size and bad input ----------------------------------------------------------------------------


def test_memory_of_a_slippery_grid():
    """Broken if P (6.4 MB) were copied or kept, or the bounds of all lengths (60-90 MB) were kept."""
    slippery = pytest.importorskip("bench_gds").slippery  # which needs Unix
    tracemalloc.start()
    m, start, goals = slippery(20, 0)
    built, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    result = gds.gds(m, start, goals)
    solved = tracemalloc.get_traced_memory()[1]
    assert built < 3e6 and peak < 6.4e6 + 3e6 and solved - built < 6e6
    dists, value = gds.follow(m, start, result.policy)
    assert abs(value - result.value) < 1e-9 and set(dists[-1]) <= goals
    tracemalloc.reset_peak()
    gds.gds(m, 0, {399}, "cover", max_pops=1)  # builds the relaxation of each length
    assert tracemalloc.get_traced_memory()[1] - built < 18e6
    tracemalloc.stop()


def test_rows_of_float32():
    """Broken if a P that was normalised in float32 were refused, or kept its error of 1e-7."""
    P = np.random.default_rng(0).random((40, 3, 40)).astype(np.float32)
    P /= P.sum(-1, keepdims=True)
    assert abs(P.astype(float).sum(-1) - 1).max() > 1e-9
    m = MDP(P, np.zeros((2, 40, 3)), 1)
    assert abs(m.prob.sum(-1) - 1).max() < 1e-15 * 40


GOOD_P, GOOD_R = np.full((2, 1, 2), 0.5), np.zeros((3, 2, 1))
GOOD, GOOD_EDGES = MDP(GOOD_P, GOOD_R, 1), [[[(0.5, 0), (0.5, 1)]]] * 2


@pytest.mark.parametrize("build, message", [
    (lambda: MDP(GOOD_P * 1.001, GOOD_R, 1), r"P: every row must sum to 1, P\[0,0\] sums to 1.001"),
    (lambda: MDP(GOOD_P[:, :, :1], GOOD_R, 1), r"P: expected shape \(S,A,S\)"),
    (lambda: MDP([[[0.5, 0.5], [1.0]]], GOOD_R, 1), "P: expected an array of numbers"),
    (lambda: MDP([[[1.5, -0.5]]] * 2, GOOD_R, 1), "P: probabilities must be >= 0"),
    (lambda: MDP(GOOD_P, GOOD_R[:, :1], 1), r"r: expected shape \(T,2,1\)"),
    (lambda: MDP(GOOD_P, GOOD_R[:0], 1), "r: expected shape"),
    (lambda: MDP(GOOD_P, GOOD_R - np.inf, 1), "r: expected finite"),
    (lambda: MDP(GOOD_P, GOOD_R + 1, 1), "r: .* <= 0, got 1; give costs instead.*different lengths"),
    (lambda: MDP(GOOD_P, GOOD_R[0], 1), r"r: its shape \(S,A\) = \(2, 1\) needs T="),
    (lambda: MDP.deterministic([[0], [1]], GOOD_R[0], 1), r"r: .*\(2, 1\) needs T="),
    (lambda: MDP.from_successors(GOOD_EDGES, GOOD_R[0], 1), r"r: .*\(2, 1\) needs T="),
    (lambda: MDP(GOOD_P, GOOD_R, 1, T=2), r"T: expected 3.*\(3, 2, 1\), got 2"),
    *[(lambda T=T: MDP(GOOD_P, GOOD_R[0], 1, T=T), f"T: expected an integer >= 1, got {T}")
      for T in (0, -1, 2.0, True)],
    (lambda: MDP.from_successors(GOOD_EDGES, GOOD_R + 1, 1), "r: .* <= 0, got 1; give costs instead"),
    *[(lambda P=P: MDP.from_successors(P, GOOD_R, 1), r"P(\[1\]\[0\])?: expected .*P\[s\]\[a\] = \[\(p, s', ...")
      for P in (5, [], {}, {1: GOOD_EDGES[0], 2: GOOD_EDGES[1]}, [GOOD_EDGES[0], {1: [(1, 0)]}],
                [GOOD_EDGES[0], [[1, 0]]], [GOOD_EDGES[0], [[("high", 0)]]])],
    (lambda: MDP.from_successors([[], []], GOOD_R, 1), r"P\[0\]: expected as many actions.*got 0"),
    (lambda: MDP.from_successors([*GOOD_EDGES[:1], [[(1, 0)]] * 2], GOOD_R, 1), r"P\[1\]: .*actions.*got 2"),
    (lambda: MDP.from_successors([[[(1, 0)]], [[(1, 2)]]], GOOD_R, 1), r"P\[1\]\[0\]: .* state 0..1, got 2"),
    (lambda: MDP.from_successors([[[(1, 0)]], [[(1, 1.0)]]], GOOD_R, 1), r"P\[1\]\[0\]: .*got 1.0"),
    (lambda: MDP.from_successors([[[(1.5, 0), (-0.5, 0)]]] * 2, GOOD_R, 1), r"P\[0\]\[0\]: .*>= 0, got -0.5"),
    (lambda: MDP.from_successors([[[(0.9, 0)]]] * 2, GOOD_R, 1), r"P: every row must sum to 1.*0.9"),
    (lambda: MDP.from_successors([[[]]] * 2, GOOD_R, 1), r"P: every row must sum to 1.*to 0"),
    (lambda: gds.grid("", ["s.", "g"], 3, None), r"rows: expected lines of one length, got \[2, 1\]"),
    (lambda: gds.grid("", "", 3, None), "rows: expected lines of one length"),
    (lambda: gds.grid("", "..g", 3, None), "rows: expected one start 's', got 0"),
    (lambda: gds.grid("", "sg\ns.", 3, None), "rows: expected one start 's', got 2"),
    (lambda: gds.grid("", [1, 2], 3, None), "rows: expected a list of strings or one string"),
    (lambda: gds.grid("", "s.g", 0, None), "T: expected an integer >= 1, got 0"),
    (lambda: gds.grid("", "s#g", 1, lambda *x: 0, land=lambda *x: [(0, 1)]), r"land: .*got \[\(0, 1\)\]"),
    *[(lambda solve=solve: solve(GOOD, 0, {0}, trace="yes"), "trace: expected a list.*got 'yes'")
      for solve in (gds.gds, gds.gds_literal)],
    (lambda: MDP(GOOD_P, GOOD_R, 1.01), "gamma.*1.01"),
    (lambda: MDP(GOOD_P, GOOD_R, float("nan")), "gamma.*nan"),
    (lambda: MDP(GOOD_P, GOOD_R, "high"), "gamma.*high"),
    (lambda: MDP(GOOD_P, GOOD_R, True), "gamma.*True"),
    (lambda: MDP.deterministic([[0], [2]], GOOD_R, 1), "next_state: states are 0..1, got 0..2"),
    (lambda: MDP.deterministic([[False], [True]], GOOD_R, 1), "next_state: expected integers.*bool"),
    (lambda: gds.gds(GOOD, -1, {0}), "start.*0..1, got -1"),
    (lambda: gds.gds(GOOD, "s", {0}), "start.*0..1, got 's'"),
    (lambda: gds.gds(GOOD, 0, {5}), "goals.*0..1, got 5"),
    (lambda: gds.gds(GOOD, 0, 1), "goals: expected a collection"),
    (lambda: gds.gds(GOOD, 0, np.array([False, True])), "goals: .*0..1, got .*False"),
    *[(lambda solve=solve: solve(GOOD, 0, {0}, "touch"), "mode: expected one of reach, cover, got 'touch'")
      for solve in (gds.gds, gds.gds_literal, gds.static_best, gds.brute_force)],
    *[(lambda solve=solve, n=n: solve(GOOD, 0, {0}, max_pops=n), f"max_pops.*>= 1, got {n}")
      for solve in (gds.gds, gds.gds_literal, gds.static_best) for n in (0, 1.5, True)],
    (lambda: gds.gds_literal(GOOD, 0, {0}, reading="mine"), "reading: expected one of parent"),
    (lambda: gds.policy_value(GOOD, 0, [{0: 0}, {0: 0}]), r"rule 1 must have an action .*\[0, 1\]"),
    (lambda: gds.policy_value(GOOD, 0, [{0: 3}]), "rule 0 in state 0: .*0..0.*got 3"),
    (lambda: gds.policy_value(GOOD, 0, [[0, 0]] * 4), "overrun T = 3")])
def test_bad_input(build, message):
    """Broken if bad input gave an answer, or an error without the argument or its value."""
    with pytest.raises(ValueError, match=message):
        build()
