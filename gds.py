"""General Dijkstra Search (GDS): what it says, where the printed algorithm fails, and the repair, in one file.

    python gds.py                                  put every claim to the test and print the table of verdicts
    python gds.py --world bridge                   solve one gridworld and watch the plan
    python gds.py --world bridge --svg bridge.svg  the same as a picture

Source: Yu, Su, Abdullah, "Dynamic Latent Routing", arXiv 2605.14323 (2026). Definitions, in the paper's letters:

    dynamic MDP   S states, A actions, P(s'|s,a) fixed in time, rewards r_t(s,a) <= 0 for t = 0..T-1, discount gamma
    policy        of length L <= T: decision rules pi_0..pi_{L-1}, each S -> A
    value         V = E sum_{i<L} gamma^i r_i(s_i, pi_i(s_i)), over the policy's own length only
    goal set      G = support of s_L, the states that a policy may end in
    REACH G*      G is a subset of G*: every branch ends in a goal     COVER G*: G is a superset: every goal is hit
    optimal       the greatest V among the feasible policies of length 1..T (the empty policy does not count)

GDS is Dijkstra's algorithm on policies: pop the prefix of greatest V; if it is feasible it is optimal, because
rewards <= 0 only lower an extension; otherwise append every rule. `gds` is the version to use, `gds_literal` the
printed one, whose pruning is unsound. Needs numpy and tqdm only.
"""

from __future__ import annotations

import argparse
import copy
import heapq
import itertools
import operator
import sys
import textwrap
from collections import Counter
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

TINY = 5e-324  # the smallest positive float: a branch whose probability underflows must still feel an infinite regret


# ---------------------------------------------------------------------------------------------------------------------
# The problem


class MDP:
    """A dynamic MDP. P (S,A,S): P[s,a,s'], rows sum to 1. r (T,S,A): r[t,s,a] <= 0. gamma in [0,1].

    Every P > 0, however small, is an edge. Kept as lists of successors, padded to the largest number K of them:
    next (S,A,K) states, prob (S,A,K), 0 where padded; and successors[s][a] = [(s', p), ...].
    Raises ValueError, naming the argument, for anything else.
    """

    def __init__(self, P, r, gamma):
        P = _numbers("P", P, "(S,A,S)")
        if P.shape[0] != P.shape[2] or 0 in P.shape:
            raise ValueError(f"P: expected shape (S,A,S) with S, A >= 1, got {P.shape}")
        if (P < 0).any():
            raise ValueError(f"P: probabilities must be >= 0, got {P.min():g}")
        total = P.sum(-1)
        if abs(total - 1).max() > 1e-9:
            s, a = np.unravel_index(abs(total - 1).argmax(), total.shape)
            raise ValueError(f"P: every row P[s,a] must sum to 1, P[{s},{a}] sums to {total[s, a]:.12g}")
        K = int((P > 0).sum(-1).max())
        successors_first = np.argsort(P <= 0, axis=-1, kind="stable")[..., :K]  # (S,A,K)
        self._set(successors_first, np.take_along_axis(P, successors_first, -1), r, gamma)

    @classmethod
    def deterministic(cls, next_state, r, gamma):
        """The MDP in which action a leads from s to next_state[s,a] surely: (S,A) integers instead of P (S,A,S)."""
        next_state = np.asarray(next_state)
        if next_state.ndim != 2 or 0 in next_state.shape or next_state.dtype.kind not in "iu":
            raise ValueError(f"next_state: expected integers (S,A), got {next_state.dtype} {next_state.shape}")
        if next_state.min() < 0 or next_state.max() >= len(next_state):
            raise ValueError(f"next_state: states are 0..{len(next_state) - 1}, got {next_state.min()}.."
                             f"{next_state.max()}")
        mdp = cls.__new__(cls)
        mdp._set(next_state[..., None], np.ones(next_state.shape + (1,)), r, gamma)
        return mdp

    def _set(self, next_states, prob, r, gamma):
        self.S, self.A, self.K = prob.shape
        r = _numbers("r", r, "(T,S,A)")
        if r.shape[1:] != (self.S, self.A) or len(r) == 0:
            raise ValueError(f"r: expected shape (T,{self.S},{self.A}) with T >= 1, got {r.shape}")
        if (r > 0).any():
            raise ValueError(f"r: rewards must be <= 0, got {r.max():g}: best-first search returns the first feasible "
                             "policy it pops, which is best only if longer is never better. Subtracting the maximum "
                             "is no way out: policies of different lengths would be shifted by different amounts")
        if not isinstance(gamma, (int, float, np.number)) or not 0 <= gamma <= 1:
            raise ValueError(f"gamma: expected a number in [0,1], got {gamma!r}")
        self.next, self.prob, self.r, self.gamma, self.T = next_states, prob, r, float(gamma), len(r)
        pairs = zip(next_states.reshape(-1, self.K).tolist(), prob.reshape(-1, self.K).tolist())
        flat = [[(s, p) for s, p in zip(*row) if p > 0] for row in pairs]
        self.successors = [flat[i:i + self.A] for i in range(0, len(flat), self.A)]

    def until(self, T):
        """The same MDP with its horizon cut to T."""
        cut = copy.copy(self)
        cut.r, cut.T = self.r[:T], min(T, self.T)
        return cut


@dataclass(frozen=True)
class Result:
    """value V, length L and policy: L dicts {state: action} on the support. pops: prefixes taken from the heap.

    status "optimal"; "infeasible" (value -inf, no policy exists); "capped" (value nan: max_pops came first, nothing
    is known). fired: how many prefixes were pruned (gds_literal only).
    """

    value: float
    length: int
    policy: list
    pops: int
    status: str
    fired: int = 0


def _failed(status, pops, fired=0):
    return Result(-np.inf if status == "infeasible" else np.nan, 0, [], pops, status, fired)


def _numbers(name, x, shape):
    try:
        x = np.asarray(x, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected an array of numbers of shape {shape}, got {x!r:.80}") from None
    if x.ndim != 3:
        raise ValueError(f"{name}: expected shape {shape}, got {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: expected finite numbers, got {x[~np.isfinite(x)][0]}")
    return x


def _state(mdp, name, s):
    try:
        index = operator.index(s)
    except TypeError:
        index = -1
    if not 0 <= index < mdp.S:
        raise ValueError(f"{name}: expected a state 0..{mdp.S - 1}, got {s!r}")
    return index


def _goals(mdp, goals):
    try:
        goals = list(goals)
    except TypeError:
        raise ValueError(f"goals: expected a collection of states 0..{mdp.S - 1}, got {goals!r}") from None
    return frozenset(_state(mdp, "goals", g) for g in goals)


def _one_of(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")


def _pop_limit(max_pops):
    if not isinstance(max_pops, (int, np.integer)) or max_pops < 1:
        raise ValueError(f"max_pops: expected an integer >= 1, got {max_pops!r}")


def feasible(mode, support, goals):
    """REACH: support is a subset of the goals. COVER: a superset."""
    return support <= goals if mode == "reach" else support >= goals


# ---------------------------------------------------------------------------------------------------------------------
# Following a policy


def occupancy(mdp, start, policy, clock=0):
    """Distributions {state: probability} at times 0..L when the policy runs from start; keys are the exact support."""
    if clock + len(policy) > mdp.T:
        raise ValueError(f"policy: {len(policy)} rules from time {clock} overrun the horizon T = {mdp.T}")
    out = [{_state(mdp, "start", start): 1.0}]
    for t, rule in enumerate(policy):
        after = {}
        for s, p in out[-1].items():
            for s2, q in mdp.successors[s][_action(mdp, rule, t, s)]:
                after[s2] = after.get(s2, 0) + p * q
        out.append(after)
    return out


def _action(mdp, rule, t, s):
    try:
        action = operator.index(rule[s])
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"policy: rule {t} gives no action for state {s}, which it can meet") from None
    if not 0 <= action < mdp.A:
        raise ValueError(f"policy: rule {t} gives action {action} in state {s}; actions are 0..{mdp.A - 1}")
    return action


def policy_value(mdp, start, policy, clock=0):
    """V of a policy from start: sum_i gamma^i E r_{clock+i}(s_i, pi_i(s_i)). A rule is a dict or an array over states.

    clock: the time at which the first reward is read. The empty policy is worth 0.
    """
    visits = occupancy(mdp, start, policy, clock)
    return sum(mdp.gamma**i * p * mdp.r.item(clock + i, s, _action(mdp, rule, i, s))
               for i, rule in enumerate(policy) for s, p in visits[i].items())


def concatenate(first, second):
    """The policy that follows first, then second.

    Theorem 1: V(first+second) = V(first) + gamma^T1 E[V(second from s_T1)], T1 = len(first). It holds when second's
    rewards are read from clock T1 on, and fails if its clock restarts at 0 (see verify).
    """
    return [*first, *second]


# ---------------------------------------------------------------------------------------------------------------------
# Backward induction: exact for REACH, an admissible bound for both modes


def _scaled(c, x):
    """c * x, except that infinities stay: 0 * inf is nan, and at gamma = 0 what is impossible stays impossible."""
    return np.multiply(c, x, out=x.copy(), where=np.isfinite(x))


def backward(mdp, stop):
    """Best values when a branch may stop where stop (T+1,S) says so. Returns V (T+1,S) and Q (T,S,A), -inf = cannot.

    V_t(s) = max(0 if stop[t,s], max_a Q_t(s,a)),  Q_t(s,a) = r_t(s,a) + gamma E V_{t+1}(s').
    An action one of whose successors can no longer stop has Q = -inf, whatever its probability. O(T S A K).
    """
    V = np.where(stop, 0.0, -np.inf)
    Q = np.empty(mdp.r.shape)
    edge = mdp.prob > 0
    for t in reversed(range(mdp.T)):
        ahead = (mdp.prob * np.where(edge, V[t + 1][mdp.next], 0)).sum(-1)  # (S,A)
        Q[t] = mdp.r[t] + _scaled(mdp.gamma, ahead)
        V[t] = np.maximum(V[t], Q[t].max(-1))
    return V, Q


def _stops(mdp, goals, mode):
    """The relaxed ends, a list of arrays stop (T+1,S): each is one way in which every branch could end in time.

    In general one per length L, since all branches end together: REACH at the goals, COVER anywhere.
    A deterministic P has a single branch, so one array serves all lengths, and COVER {g} is REACH {g}.
    """
    if mdp.K == 1:
        if mode == "cover":
            goals = [*goals] if len(goals) == 1 else [] if goals else [*range(mdp.S)]
        stop = np.zeros((mdp.T + 1, mdp.S), bool)
        stop[1:, [*goals]] = True
        return [stop]
    ends = [*goals] if mode == "reach" else [*range(mdp.S)]
    stops = np.zeros((mdp.T, mdp.T + 1, mdp.S), bool)
    for L in range(1, mdp.T + 1):
        stops[L - 1, L, ends] = True
    return [*stops]


def reach_dp(mdp, start, goals):
    """The optimal REACH policy by backward induction, once per length: no search. O(T^2 S A K), deterministic O(T S A).

    At length L only the goals may end; backwards, an action is allowed iff all its successors are (Q > -inf).
    This also proves that REACH needs no history: the branches' choices do not constrain each other.
    """
    start, goals = _state(mdp, "start", start), _goals(mdp, goals)
    solved = [(stop, *backward(mdp, stop)) for stop in _stops(mdp, goals, "reach")]
    stop, V, Q = max(solved, key=lambda one: one[1][0, start])
    if V[0, start] == -np.inf:
        return _failed("infeasible", 0)
    policy, support = [], {start}
    while not stop[len(policy), [*support]].all():
        rule = {s: int(Q[len(policy), s].argmax()) for s in sorted(support)}
        support = {s2 for s, a in rule.items() for s2, _ in mdp.successors[s][a]}
        policy.append(rule)
    return Result(float(V[0, start]), len(policy), policy, 0, "optimal")


@dataclass(frozen=True)
class Bound:
    """An upper bound on every completion of a prefix, one for each of the n relaxed ends of _stops.

    bound(prefix) = root - sum over its steps of regret: A* with the costs -r replaced by the regrets V_t(s) - Q_t(s,a)
    of backward induction, which are exactly 0 along the best actions.
    root (n,); regret (T,S,A,n), discounted to time 0, inf = impossible;
    miss (T+1,S,G,n), COVER only: the least further regret if the branch in s is the one that must end in goal g.
    """

    root: np.ndarray
    regret: np.ndarray
    miss: np.ndarray | None = None


def no_bound(mdp):
    """The trivial bound 0 on what is still to come: the priority of a prefix is its value, as in the paper."""
    discount = mdp.gamma ** np.arange(mdp.T)
    return Bound(np.zeros(1), -(mdp.r * discount[:, None, None])[..., None])


def backward_bound(mdp, start, goals, mode):
    """Bound from backward induction: exact for REACH, admissible for COVER.

    COVER to length L: value <= V_0(start) - (all regrets). For each goal g some branch must end in g; the regrets on
    that branch's path alone, weighted by its probability, are at least miss. So the bound loses max over g of min
    over branches of (probability * miss), and a goal out of every branch's reach makes it -inf.
    """
    stops = _stops(mdp, goals, mode)
    discount = mdp.gamma ** np.arange(mdp.T + 1)
    root, regret = np.empty(len(stops)), np.empty((*mdp.r.shape, len(stops)))
    with_miss = mode == "cover" and mdp.K > 1 and goals
    miss = np.full((mdp.T + 1, mdp.S, len(goals), len(stops)), np.inf) if with_miss else None
    edge = (mdp.prob > 0)[..., None]
    for n, stop in enumerate(stops):
        V, Q = backward(mdp, stop)
        root[n] = V[0, start]
        loss = np.subtract(np.where(np.isinf(V[:-1]), 0, V[:-1])[..., None], Q, out=Q)  # (T,S,A), inf where Q = -inf
        for t in range(mdp.T):  # one time at a time: no third array of this size
            regret[t, ..., n] = _scaled(discount[t], loss[t])
        if with_miss:
            L, M = n + 1, miss[..., n]  # M (T+1,S,G)
            for j, g in enumerate(sorted(goals)):
                M[L, g, j] = 0
            for t in reversed(range(L)):
                on = np.where(edge, mdp.prob[..., None] * np.where(edge, M[t + 1][mdp.next], 0), np.inf).min(2)
                M[t] = (loss[t][..., None] + _scaled(mdp.gamma, on)).min(1)  # on (S,A,G)
            M[:] = _scaled(discount[:, None, None], M)
    return Bound(root, regret, miss)


# ---------------------------------------------------------------------------------------------------------------------
# The search


def gds(mdp, start, goals, mode="reach", heuristic=True, max_pops=10**6):
    """The optimal policy from state start that reaches or covers the set goals, with the greatest value. Exact.

    Theorems 4 (REACH) and 5 (COVER), without the printed pruning rule, which is unsound (gds_literal). Instead:
    - rules on the support only: rules that differ elsewhere have the same future;
    - branches choose one after another, so a pop appends at most A entries and a rule is never enumerated as A^n;
    - prefixes with the same time and distribution have the same future: only the best one is kept. With a
      deterministic P this is Dijkstra's algorithm on (time, state), at most T*S+1 pops;
    - heuristic=True: A* with the admissible bound of `backward_bound`.
    Distributions count as equal when the supports are and probabilities agree to 12 digits, so V is exact up to
    1e-12 * T * S * max|r|. COVER is NP-hard (sat_gadget): expect "capped" on large stochastic problems.
    """
    start, goals = _state(mdp, "start", start), _goals(mdp, goals)
    _one_of("mode", mode, ("reach", "cover"))
    _pop_limit(max_pops)
    bound = backward_bound(mdp, start, goals, mode) if heuristic else no_bound(mdp)
    return _search(mdp, start, goals, mode, bound, max_pops)


def static_best(mdp, start, goals, mode="reach", max_pops=10**6):
    """The best static policy: one rule S -> A used at every time (length 1..T). Same search, each state choosing once.

    Theorem 2: some dynamic MDP has no optimal static policy, i.e. this may be worse than gds, or infeasible.
    """
    start, goals = _state(mdp, "start", start), _goals(mdp, goals)
    _one_of("mode", mode, ("reach", "cover"))
    _pop_limit(max_pops)
    return _search(mdp, start, goals, mode, backward_bound(mdp, start, goals, mode), max_pops, static=True)


def _search(mdp, start, goals, mode, bound, max_pops, dedupe=True, static=False):
    """Best-first search over prefixes. An entry is a prefix of t rules and a part of the next one:

    todo: ((state, probability), ...) at time t, still to be given an action; done: the same at time t+1, from the
    branches that moved already. link: the choices made, newest first: (older link, t, state, action).
    """
    discount = [mdp.gamma**t for t in range(mdp.T)]
    todo = ((start, 1.0),)
    seen = {}  # (t, branches still to move, branches that moved) -> best value of a prefix leading there
    tick = itertools.count()  # ties go to the longer prefix, then to the older entry
    heap = []  # (-bound, -t, tick, value, bound per relaxed end, t, todo, done, link, key in seen)
    if bound.root.max() > -np.inf:
        heap.append((0.0, 0, next(tick), 0.0, bound.root, 0, todo, (), None, None))
    pops = 0
    while heap:
        _, _, _, value, left, t, todo, done, link, key = heapq.heappop(heap)
        if key is not None and value < seen[key]:
            continue  # a better prefix with the same future came later
        if pops == max_pops:
            return _failed("capped", pops)
        pops += 1
        if t >= 1 and not done and feasible(mode, {s for s, _ in todo}, goals):
            policy = [{} for _ in range(t)]
            for time, s, a in _choices(link):
                policy[time][s] = a
            return Result(value, t, policy, pops, "optimal")
        if t == mdp.T:
            continue
        (s, p), rest = todo[0], todo[1:]
        waiting = _rounded(rest)
        fixed = {s2: a for _, s2, a in _choices(link)} if static else {}
        for a in [fixed[s]] if s in fixed else range(mdp.A):
            after = dict(done)
            for s2, q in mdp.successors[s][a]:
                after[s2] = after.get(s2, 0) + (p * q or TINY)
            after = tuple(sorted(after.items()))
            t2, todo2, done2 = (t, rest, after) if rest else (t + 1, after, ())
            value2 = value + discount[t] * p * mdp.r.item(t, s, a)
            key = None
            if dedupe:
                key = (t2, waiting, _rounded(after), frozenset({**fixed, s: a}.items()) if static else None)
                if value2 <= seen.get(key, -np.inf):
                    continue
                seen[key] = value2
            left2 = left - p * bound.regret[t, s, a]  # (n,)
            priority = left2 if bound.miss is None else left2 - _miss(bound, t2, todo2, done2)
            best = max(priority.tolist())
            if best > -np.inf:
                entry = (-best, -t2, next(tick), value2, left2, t2, todo2, done2, (link, t, s, a), key)
                heapq.heappush(heap, entry)
    return _failed("infeasible", pops)


def _choices(link):
    while link is not None:
        link, t, s, a = link
        yield t, s, a


def _rounded(branches):
    return tuple([(s, round(p * 1e12)) for s, p in branches])


def _miss(bound, t, todo, done):
    """(n,) the least regret still to come in COVER: max over goals of min over branches (see backward_bound)."""
    times, (states, p) = [t] * len(todo) + [t + 1] * len(done), zip(*todo, *done)
    return (np.array(p)[:, None, None] * bound.miss[times, states]).min(0).max(0)


# ---------------------------------------------------------------------------------------------------------------------
# The algorithm as printed, and sound versions of its pruning


def least_firing_depth(gamma):
    """t*: the printed rule prunes no prefix shorter than t*, the least t with gamma^t <= (1-gamma)/(2-gamma).

    Proof: it prunes v <= v' - eps_t, with v' <= 0, v >= -r_max (1-gamma^t)/(1-gamma) and
    eps_t = r_max gamma^t/(1-gamma)^2. So (1-gamma^t)(1-gamma) >= gamma^t. (r_max > 0; without it every eps is 0.)
    Hence the printed algorithm is right for T <= t*. From T = t*+1 on (child reading; parent: t*+2) `late_shortcut`
    is a problem on which it is wrong.
    """
    t = 0
    while gamma < 1 and gamma**t > (1 - gamma) / (2 - gamma):
        t += 1
    return t if gamma < 1 else np.inf


def gds_literal(mdp, start, goals, mode="reach", reading="parent", max_pops=10**6, trace=None):
    """Algorithm 1 (REACH) and 2 (COVER) as printed, with their pruning. `fired` counts the prefixes pruned.

    Pop the prefix of greatest value. Feasible: return it. Length T: drop it. Prune it if some record (G', v') has
    G' a subset of its goal set G (COVER: superset) and v <= v' - eps_t, eps_t = r_max/(1-gamma) sum_{i>=t} gamma^i.
    Otherwise append every rule, and record each child's value unless its goal set was popped before:
      reading "parent": under the parent's goal set, as printed; "child": under its own, as was probably meant.
    Wrong answers: a record carries no time, so a prefix of another length may prune the only one that gets there.
    And at eps = 0 (gamma = 0, or all rewards 0) in the child reading a prefix is pruned by its own record.

    Two sound readings of our own, which record a prefix (t, G, v) when it is expanded (so never against itself):
      "repaired": only records of the same length t, and eps = r_max sum_{t<=i<T} gamma^i.
      "cross": also records of shorter prefixes t' <= t, and eps = sum_{t'<=i<t'+T-t} gamma^i max|r_i|.
    Proof of both (REACH; COVER with "superset"): let sigma complete the pruned prefix in k <= T-t steps. Run after the
    recorded one, which is no longer, sigma ends by t'+k <= T, within the pruned one's ends since G' is a subset of
    G: feasible. It costs at most eps more than v', so is worth >= v' - eps >= v >= the pruned completion. If it is
    pruned in turn, repeat: fewer than k steps are then left, so this ends with an optimal policy that is found. A
    record of a LONGER prefix proves nothing: sigma may overrun T. That is what goes wrong in the counterexamples.

    Rules that agree on the support are copies (same G, V and future), so one of each is appended: answers are those
    of appending all A^S. max_pops also caps the prefixes waiting in the heap. trace(t, G, v, what) sees every pop.
    """
    start, goals = _state(mdp, "start", start), _goals(mdp, goals)
    _one_of("mode", mode, ("reach", "cover"))
    _one_of("reading", reading, ("parent", "child", "repaired", "cross"))
    _pop_limit(max_pops)
    g, T = mdp.gamma, mdp.T
    worst = abs(mdp.r).max((1, 2))  # (T,) the largest cost at each time
    r_max = worst.max()
    dear = np.concatenate([[0], np.cumsum(g ** np.arange(T) * worst)])  # (T+1,) the largest cost before each time

    def eps(t, t2):
        if reading == "cross":
            return dear[t2 + T - t] - dear[t2]
        if reading == "repaired":
            return r_max * sum(g**i for i in range(t, T))
        return 0 if r_max == 0 else np.inf if g == 1 else r_max * g**t / (1 - g) ** 2

    def pruned(t, G, v):
        times = {"repaired": [t], "cross": range(t + 1)}.get(reading, [None])  # None: printed records carry no time
        return any(v <= v2 - eps(t, t2) for t2 in times for G2, v2 in records.get(t2, {}).items()
                   if (G2 <= G if mode == "reach" else G2 >= G))

    def record(t, G, v):
        at_t = records.setdefault(t, {})
        at_t[G] = max(v, at_t.get(G, -np.inf))

    records, popped = {}, set()
    heap, tick, pops, fired = [(0.0, 0, 0, {start: 1.0}, [])], itertools.count(1), 0, 0
    while heap:
        if pops == max_pops:
            return _failed("capped", pops, fired)
        cost, _, t, dist, policy = heapq.heappop(heap)
        v, G = 0.0 - cost, frozenset(dist)
        pops += 1
        popped.add(G)
        what = "expand"
        if t >= 1 and feasible(mode, G, goals):
            what = "return"
        elif t == T:
            what = "drop, t = T"
        elif pruned(t, G, v):
            what, fired = "PRUNE", fired + 1
        if trace:
            trace(t, sorted(G), v, what)
        if what == "return":
            return Result(v, t, policy, pops, "optimal", fired)
        if what != "expand":
            continue
        if len(heap) + mdp.A ** len(G) > max_pops:
            return _failed("capped", pops, fired)
        if reading in ("repaired", "cross"):
            record(t, G, v)
        for actions in itertools.product(range(mdp.A), repeat=len(dist)):
            rule = dict(zip(dist, actions))
            v2, after = v, {}
            for s, a in rule.items():
                v2 += g**t * dist[s] * mdp.r.item(t, s, a)
                for s2, q in mdp.successors[s][a]:
                    after[s2] = after.get(s2, 0) + dist[s] * q
            after = dict(sorted(after.items()))
            if reading in ("parent", "child") and frozenset(after) not in popped:
                record(None, G if reading == "parent" else frozenset(after), v2)
            heapq.heappush(heap, (-v2, next(tick), t + 1, after, [*policy, rule]))
    return _failed("infeasible", pops, fired)


# ---------------------------------------------------------------------------------------------------------------------
# References: slow and obvious


def brute_force(mdp, start, goals, mode="reach", history=False, limit=2 * 10**6):
    """The optimum by enumerating every policy on its support. Raises ValueError if they may be more than limit.

    history=True: rules may depend on the whole path so far, so that branches which merge may still act differently.
    """
    start, goals = _state(mdp, "start", start), _goals(mdp, goals)
    _one_of("mode", mode, ("reach", "cover"))
    states, policies = {start}, 1
    for t in range(mdp.T):
        policies *= mdp.A ** (mdp.K**t if history else len(states))  # a policy meets at most K^t paths of t steps
        states = {s2 for s in states for row in mdp.successors[s] for s2, _ in row}
        if policies > limit:
            raise ValueError(f"brute_force: this would not finish: up to {float(policies):.1e} policies of {t + 1} of "
                             f"T = {mdp.T} steps, limit is {limit}. Use gds")
    best = _failed("infeasible", 0)

    def extend(dist, value, policy):  # dist: {path: probability}; without history a path is just (state,)
        nonlocal best
        t = len(policy)
        if t >= 1 and value > best.value and feasible(mode, {path[-1] for path in dist}, goals):
            best = Result(value, t, policy, 0, "optimal")
        if t == mdp.T:
            return
        for actions in itertools.product(range(mdp.A), repeat=len(dist)):
            after, v = {}, value
            for (path, p), a in zip(dist.items(), actions):
                v += mdp.gamma**t * p * mdp.r.item(t, path[-1], a)
                for s2, q in mdp.successors[path[-1]][a]:
                    end = (*path, s2) if history else (s2,)
                    after[end] = after.get(end, 0) + p * q
            keys = dist if history else [path[-1] for path in dist]
            extend(after, v, [*policy, dict(zip(keys, actions))])

    extend({(start,): 1.0}, 0.0, [])
    return best


def policy_iteration(mdp):
    """The best T rules when nothing must be reached: evaluate all T, improve all T, until nothing changes.

    Returns (policy (T,S) actions, values (T+1,S), rounds). Theorem 3: this converges to the optimum. It takes at most
    T+1 rounds, since after n of them the last n rules are optimal.
    """
    policy, rounds = np.zeros((mdp.T, mdp.S), int), 0
    everywhere = np.arange(mdp.S)
    while True:
        rounds += 1
        V, better = np.zeros((mdp.T + 1, mdp.S)), policy.copy()
        for t in reversed(range(mdp.T)):
            Q = mdp.r[t] + mdp.gamma * (mdp.prob * V[t + 1][mdp.next]).sum(-1)  # (S,A)
            V[t] = Q[everywhere, policy[t]]
            gain = Q.max(-1) > V[t] + 1e-12  # a tie is no reason to change, and rounding must not look like a gain
            better[t] = np.where(gain, Q.argmax(-1), policy[t])
        if (better == policy).all():
            return policy, V, rounds
        policy = better


# ---------------------------------------------------------------------------------------------------------------------
# Gridworlds one can watch

MOVES = {"stay": (0, 0), "north": (-1, 0), "east": (0, 1), "south": (1, 0), "west": (0, -1)}
STEP, STAY = 0.10, 0.05  # what every move and every wait costs, on top of the costs that come and go


@dataclass(frozen=True)
class World:
    """A gridworld as an MDP. rows: the map ('#' cannot be entered); cells: state -> (row, column); extra (T+1,S): the
    cost of landing on a cell at time t, on top of STEP or STAY, undiscounted. easier: a larger goal set, named."""

    name: str
    story: str
    rows: list
    cells: list
    extra: np.ndarray
    mdp: MDP
    start: int
    goals: frozenset
    mode: str = "reach"
    easier: tuple | None = None


def grid(name, story, rows, T, extra, gamma=0.97, land=None, mode="reach", easier=None):
    """A World from a map with start 's' and goals 'g'. r_t(s,a) = -(STEP or STAY) - E extra(t+1, s').

    extra(t, row, column, map letter): cost of landing there at time t. Moves off the map or into '#' go nowhere.
    land(row, column, target): the equally likely landings of a move from (row, column) to target; None means [target].
    """
    cells = [(i, j) for i, row in enumerate(rows) for j, letter in enumerate(row) if letter != "#"]
    index = {cell: s for s, cell in enumerate(cells)}
    letters = [rows[i][j] for i, j in cells]
    P = np.zeros((len(cells), len(MOVES), len(cells)))
    for s, (i, j) in enumerate(cells):
        for a, (di, dj) in enumerate(MOVES.values()):
            target = (i + di, j + dj) if (i + di, j + dj) in index else (i, j)
            landings = land(i, j, target) if land else [target]
            for landing in landings:
                P[s, a, index[landing]] += 1 / len(landings)
    costs = np.array([[extra(t, i, j, c) for (i, j), c in zip(cells, letters)] for t in range(T + 1)])  # (T+1,S)
    own = np.where(np.arange(len(MOVES)) == 0, STAY, STEP)  # (A,)
    r = -own - np.einsum("sax,tx->tsa", P, costs[1:])
    goals = frozenset(s for s, letter in enumerate(letters) if letter == "g")
    if easier:
        easier = easier[0], frozenset(s for s, cell in enumerate(cells) if easier[1](*cell))
    return World(name, story, rows, cells, costs, MDP(P, r, gamma), letters.index("s"), goals, mode, easier)


def toll():
    return grid("toll", "The toll on the middle cell is 1 until t = 2, then nothing: wait for it.",
                ["sBg"], 6, lambda t, i, j, c: 1.0 * (c == "B" and t <= 2), gamma=0.95)


def bridge():
    price = [2] * 5 + [1] * 3 + [0] * 7
    return grid("bridge", "The bridge's toll falls from 2 to 1 at t = 5 and to 0 at t = 8; the ford costs 0.5 a cell.",
                ["..###..",
                 "..###..",
                 "s.B...g",
                 "..###..",
                 "..FFF.."], 14, lambda t, i, j, c: price[t] if c == "B" else 0.5 * (c == "F"))


def guard():
    wall = [(2, 1), (1, 1), (0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 5),
            (2, 5), (3, 5), (4, 5), (4, 4), (4, 3), (4, 2), (4, 1), (3, 1)]  # clockwise

    def watched(t, i, j, c):
        if (i, j) not in wall:
            return 0
        away = abs(wall.index((i, j)) - (t + 15)) % 16  # the guard is at wall[15] when t = 0
        return {0: 2.0, 1: 0.5, 15: 0.5}.get(away, 0)

    return grid("guard", "A guard walks clockwise round the wall (2 in his cell, 0.5 beside): let him pass, follow.",
                ["#.....#",
                 "#.###.#",
                 "s.###.g",
                 "#.###.#",
                 "#.....#"], 14, watched)


def doors():
    every = {"A": 4, "B": 5}
    return grid("doors", "Door A stands open when t is a multiple of 4, door B of 5; forcing a shut door costs 0.9.",
                ["s.#..#..",
                 "..A..B.g",
                 "..#..#.."], 12, lambda t, i, j, c: 0.9 * (c in every and t % every.get(c, 1) > 0))


def river():
    def drift(i, j, target):  # from the water (rows 1 and 2) the current may carry one cell further east
        return [target, (target[0], min(target[1] + 1, 4))] if i in (1, 2) and target != (3, 0) else [target]

    return grid("river", "The current carries the boat 0 or 1 cells east, by chance; the river is in flood (0.8) until "
                "t = 2. Every branch must be at the dock at the same time.",
                ["....g",
                 "~~~~~",
                 "~~~~~",
                 "s####"], 10, lambda t, i, j, c: (0.8 if t <= 2 else 0.1) * (c == "~"), land=drift,
                easier=("the whole far bank", lambda i, j: i == 0))


def scouts():
    def coin(i, j, target):
        return [(3, 1), (3, 3)] if (i, j) == (4, 2) else [target]

    return grid("scouts", "A coin sends the scout left or right; both outposts must be covered. Branches that meet in "
                "the neck share their action, so one of them has to wait.",
                ["g...g",
                 "##.##",
                 "##.##",
                 ".....",
                 "##s##"], 10, lambda t, i, j, c: 0, land=coin, mode="cover")


WORLDS = {make.__name__: make for make in (toll, bridge, guard, doors, river, scouts)}


def first_horizon(world, goals):
    """The least T at which the problem has any solution, or None."""
    return next((T for T in range(1, world.mdp.T + 1)
                 if gds(world.mdp.until(T), world.start, goals, world.mode).status == "optimal"), None)


def safe_states(world, length):
    """Per time 0..length, the states from which the goals can still be reached for sure at that length (REACH)."""
    stop = np.zeros((world.mdp.T + 1, world.mdp.S), bool)
    stop[length, [*world.goals]] = True
    return [set(np.flatnonzero(v > -np.inf).tolist()) for v in backward(world.mdp, stop)[0][:length + 1]]


def frames(world, policy):
    """What the terminal and the picture show, per time 0..L: (t, expected cost so far, {state: probability})."""
    visits = occupancy(world.mdp, world.start, policy)
    return [(t, -policy_value(world.mdp, world.start, policy[:t]), dist) for t, dist in enumerate(visits)]


def describe(result):
    if result.status == "optimal":
        return f"value {result.value:.3f} in {result.length} steps"
    return {"infeasible": "no such policy", "capped": f"not found in {result.pops:,} pops"}[result.status]


def show(world, out=print, across=5, cap=20_000):
    """Solve a world and print it: the plan frame by frame, the best static policy, what each idea saves."""
    m, start, goals, mode = world.mdp, world.start, world.goals, world.mode
    best, static = gds(m, start, goals, mode), static_best(m, start, goals, mode)
    out(f"{world.name}: {mode} {sorted(world.cells[g] for g in goals)} (row, column), T = {m.T}, gamma = {m.gamma}")
    out(world.story)
    out(f"\nGDS:         {describe(best)}\nbest static: {describe(static)}")
    for what, ends in [("the goal", goals), *([world.easier] if world.easier else [])]:
        out(f"solvable from T = {first_horizon(world, ends)} on: {what}")
    safe = safe_states(world, best.length) if m.K > 1 and mode == "reach" else None
    extra = "  o still safe: the goal can be reached for sure" if safe else ""
    out(f"\n@ agent  g goal  . free  1-9 extra cost in tenths  X extra cost >= 1{extra}")

    def glyph(t, dist, i, j):
        if (i, j) not in world.cells:
            return "#"
        s = world.cells.index((i, j))
        cost = round(10 * world.extra[t, s])
        return ("@" if s in dist else "g" if s in goals else "X" if cost >= 10 else str(cost) if cost
                else "o" if safe and s in safe[t] else ".")

    pictures = []
    for t, paid, dist in frames(world, best.policy):
        if t < best.length:
            chosen = [[*MOVES][a] for a in best.policy[t].values()]
            action = chosen[0] if len(set(chosen)) == 1 else " ".join("-NESW"[a] for a in best.policy[t].values())
        else:
            action = "arrived"
        lines = [f"t={t} {action}", f"paid {paid:.2f}"]
        lines += ["".join(glyph(t, dist, i, j) for j in range(len(row))) for i, row in enumerate(world.rows)]
        pictures.append(lines)
    width = max(len(line) for lines in pictures for line in lines) + 3
    for k in range(0, len(pictures), across):
        out("")
        for line in zip(*pictures[k:k + across]):
            out("".join(part.ljust(width) for part in line).rstrip())

    rules = m.A**m.S
    literal = gds_literal(m, start, goals, mode, max_pops=cap)
    plain = _search(m, start, goals, mode, no_bound(m), cap, dedupe=False)
    dedupe = gds(m, start, goals, mode, heuristic=False, max_pops=cap)
    out(f"\npops         until the answer is out ('capped' at {cap:,} popped, or waiting in the literal version)")
    for what, result in [
            (f"literal: as printed; copies counted once, of {rules:.1e} rules a step; pruned {literal.fired}", literal),
            ("rules on the support, one branch at a time", plain),
            ("and one prefix per (time, distribution)", dedupe),
            ("and the bound from backward induction", best)]:
        out(f"{result.pops:<12,} {what}{'' if result.status == 'optimal' else ': ' + result.status}")


def svg(world):
    """The same as one self-contained picture: small multiples over time, the best static policy below."""
    cell, half, high = 18, 8.5, 18 * len(world.rows)
    wide = 14 + max(100, cell * len(world.rows[0]))  # per frame; captions need 100
    across = 980 // wide
    best = gds(world.mdp, world.start, world.goals, world.mode)
    static = static_best(world.mdp, world.start, world.goals, world.mode)
    safe = safe_states(world, best.length) if world.mdp.K > 1 and world.mode == "reach" else None
    top = max(world.extra.max(), 1e-9)
    body, y = [], 14

    def text(x, y, words, size=11, colour="#444", weight="normal"):
        body.append(f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" font-weight="{weight}">{words}'
                    "</text>")

    def frame(x, y, t, paid, dist, rule, marks):
        text(x, y, f"t = {t}, paid {paid:.2f}")
        y += 6
        for i, row in enumerate(world.rows):
            for j, letter in enumerate(row):
                left, up, fill = x + j * cell, y + i * cell, "#4a5568"
                if letter != "#":
                    s = world.cells.index((i, j))
                    share = (world.extra[t, s] / top) ** 0.5
                    fill = "#{:02x}{:02x}{:02x}".format(*(round(a + (b - a) * share) for a, b in
                                                          zip((237, 242, 247), (221, 84, 38))))
                body.append(f'<rect x="{left:g}" y="{up:g}" width="{cell - 1}" height="{cell - 1}" fill="{fill}"/>')
                if letter == "g":
                    body.append(f'<rect x="{left + 2:g}" y="{up + 2:g}" width="{cell - 5}" height="{cell - 5}" '
                                'fill="none" stroke="#2f855a" stroke-width="2.5"/>')
                if letter != "#" and marks and s in marks:
                    body.append(f'<circle cx="{left + half:g}" cy="{up + half:g}" r="2" fill="#2f855a"/>')
        for s, p in dist.items():
            i, j = world.cells[s]
            cx, cy = x + j * cell + half, y + i * cell + half
            body.append(f'<circle cx="{cx:g}" cy="{cy:g}" r="{1.5 + 3.5 * p**0.5:.2f}" fill="#1a56b0"/>')
            di, dj = [*MOVES.values()][rule[s]] if rule else (0, 0)
            if di or dj:
                body.append(f'<path d="M{cx:g} {cy:g}l{9 * dj} {9 * di}" stroke="#1a56b0" stroke-width="2.5"/>')

    text(14, y + 8, f"{world.name}: {world.mode}, T = {world.mdp.T}, gamma = {world.mdp.gamma}", 15, "#111", "bold")
    y += 24
    for line in textwrap.wrap(world.story, across * wide // 6):
        text(14, y + 4, line)
        y += 15
    for title, result in ("GDS", best), ("best static policy", static):
        y += 22
        text(14, y, f"{title}: {describe(result)}", 13, "#111", "bold")
        y += 20
        if result.status != "optimal":
            continue
        for k, (t, paid, dist) in enumerate(frames(world, result.policy)):
            x, row = 14 + k % across * wide, k // across
            rule = result.policy[t] if t < result.length else None
            frame(x, y + row * (high + 28), t, paid, dist, rule, safe[t] if safe and result is best else None)
        y += (row + 1) * (high + 28) - 12
    text(14, y + 12, "disc: agent, larger is likelier; tail: its move; orange: extra cost of landing; green frame: goal"
         + ("; dot: goal still sure" if safe else ""), 10, "#666")
    width, height = 14 + across * wide, y + 24
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} '
            f'{height:g}" font-family="Helvetica, Arial, sans-serif">\n'
            f'<rect width="100%" height="100%" rx="8" fill="#ffffff"/>\n' + "\n".join(body) + "\n</svg>\n")


# ---------------------------------------------------------------------------------------------------------------------
# Small problems with a point


def late_shortcut(gamma, T):
    """The family of counterexamples to the printed pruning: (mdp, start 0, goal T), T > t* = least_firing_depth(gamma).

    A corridor 0 -> 1 -> ... -> T as long as the horizon; in 0, action 0 waits. Leaving at once costs 1 a step for t*
    steps; leaving later is free, but too late. So the optimum leaves at once. The free late prefix, popped first,
    reaches state t* one step later with value 0, and its record prunes the only prefix that is in time.
    """
    fires = least_firing_depth(gamma)
    step = np.minimum(np.arange(T + 1) + 1, T)
    next_state = np.stack([np.where(step == 1, 0, step), step], 1)  # (S,A)
    r = np.zeros((T, T + 1, 2))
    r[0, 0, 1] = -1
    for t in range(1, fires):
        r[t, t] = -1
    return MDP.deterministic(next_state, r, gamma), 0, {T}


def corridor(length, T, gamma, cost):
    """States 0..length in a row, action 0 waits for nothing, action 1 steps east at a constant cost: (mdp, 0, goal)."""
    here = np.arange(length + 1)
    r = np.zeros((T, length + 1, 2))
    r[:, :-1, 1] = -cost
    return MDP.deterministic(np.stack([here, np.minimum(here + 1, length)], 1), r, gamma), 0, {length}


def merging():
    """COVER {4,5} where branches merge: 0 -> 1 or 2 by chance -> 3 -> 4 (action 0) or 5 (action 1). Costs nothing."""
    P = np.zeros((6, 2, 6))
    P[0, :, [1, 2]] = 0.5
    P[[1, 2], :, 3] = P[3, 0, 4] = P[3, 1, 5] = P[4, :, 4] = P[5, :, 5] = 1
    return MDP(P, np.zeros((3, 6, 2)), 0.9), 0, {4, 5}


def sat_gadget(clauses, n):
    """COVER is NP-hard even with T = 2, A = 2 and zero rewards: the problem (mdp, start, goals) of a formula in CNF.

    clauses: lists of literals +v or -v, v = 1..n. State 0 goes to every variable by chance; a variable's action, its
    truth value, goes by chance to all clauses that it makes true (or to a dead end). All clauses can be covered iff
    one assignment makes them all true: each variable is one state, so it acts once for all its clauses.
    """
    S, first = n + len(clauses) + 2, n + 1
    P = np.zeros((S, 2, S))
    P[0, :, 1:first] = 1 / n
    for v in range(1, first):
        for truth in (0, 1):
            true = [first + c for c, clause in enumerate(clauses) if (v if truth else -v) in clause] or [S - 1]
            P[v, truth, true] = 1 / len(true)
    for s in range(first, S):
        P[s, :, s] = 1
    return MDP(P, np.zeros((2, S, 2)), 1.0), 0, set(range(first, S - 1))


def random_problem(rng, gamma, deterministic):
    """A random (mdp, start, goals) that brute_force can solve: 2-5 states, 2 actions, T = 2-5, ties, 1e-15 odds.

    Half of them are corridors (successors s and s+1, from 0 to the last state) with few costs, where being late
    matters; the others have any successors, start and goals, also none or all.
    """
    S, A = int(rng.integers(2, 6 if deterministic else 5)), 2
    T = int(rng.integers(2, 6 if deterministic else 5 if S < 4 else 4))
    is_corridor = rng.random() < 0.5
    P = np.zeros((S, A, S))
    for s, a in itertools.product(range(S), range(A)):
        near = sorted({s, min(s + 1, S - 1)}) if is_corridor else [*range(S)]
        branches = 1 if deterministic else int(rng.integers(1, 3))
        ends = rng.choice(near, min(branches, len(near)), replace=False)
        p = rng.choice([0.5, 0.3, 1e-15]) if len(ends) == 2 else 1.0
        P[s, a, ends] = [p, 1 - p][:len(ends)]
    if is_corridor:
        return MDP(P, -1.0 * (rng.random((T, S, A)) < 0.15), gamma), 0, [S - 1]
    r = -rng.choice([0, 0, 0.5, 1, rng.random()], size=(T, S, A))
    return MDP(P, r, gamma), int(rng.integers(S)), rng.choice(S, int(rng.integers(0, S + 1)), replace=False).tolist()


# ---------------------------------------------------------------------------------------------------------------------
# The verification

GAMMAS = (0, 0.25, 0.5, 0.9, 0.99, 1)
PRINTED, SOUND = ("parent", "child"), ("repaired", "cross")


@dataclass(frozen=True)
class Claim:
    """One row of the table. wrong: how often the claim was contradicted, by which its verdict is decided."""

    text: str
    evidence: str
    wrong: int
    expected: str = "holds"

    @property
    def verdict(self):
        return "holds" if self.wrong == 0 else "fails"


def same(a, b):
    """Two results agree: same status, and values equal to 1e-9."""
    return a.status == b.status and (a.value == b.value or abs(a.value - b.value) < 1e-9)


def sweep(rng, n):
    """Solves n random problems in every way and counts, in a Counter, what contradicts what."""
    count = Counter()
    for i in tqdm(range(n), desc="random problems", disable=None, leave=False):
        gamma, deterministic, mode = GAMMAS[i % 6], i // 6 % 2 == 0, ("reach", "cover")[i // 12 % 2]
        m, start, goals = random_problem(rng, gamma, deterministic)
        exact = brute_force(m, start, goals, mode)
        plain, bounded = gds(m, start, goals, mode, heuristic=False), gds(m, start, goals, mode)
        kind = "deterministic" if deterministic else "stochastic"
        count[mode, kind] += 1
        count[mode, "solvable"] += exact.status == "optimal"
        count[mode, "wrong"] += not (same(plain, exact) and same(bounded, exact))
        for result in (plain, bounded):
            if result.status == "optimal":
                ends = set(occupancy(m, start, result.policy)[-1])
                replayed = policy_value(m, start, result.policy)
                count["replay wrong"] += abs(replayed - result.value) > 1e-9 or not feasible(mode, ends, set(goals))
        bound = backward_bound(m, start, goals, mode).root.max()
        count["bound too low"] += bound < exact.value - 1e-9
        count["reach bound not tight"] += mode == "reach" and bound > exact.value + 1e-9
        count["pops without"] += plain.pops
        count["pops with"] += bounded.pops
        count["too many pops"] += deterministic and max(plain.pops, bounded.pops) > m.T * m.S + 1
        if mode == "reach":
            count["dp wrong"] += not same(reach_dp(m, start, goals), exact)
            if start in goals and exact.status == "optimal":
                count["starts in the goal"] += 1
                count["empty is wrong"] += exact.value < 0
        if m.K**m.T <= 8:
            count[mode, "history helps"] += not same(brute_force(m, start, goals, mode, history=True), exact)
            count[mode, "history runs"] += 1

        costs, fires = (m.r < 0).any(), least_firing_depth(gamma)
        for reading in (*PRINTED, *SOUND):
            if reading in PRINTED and not costs:
                continue  # check_zero_rewards is about these
            pruned_at = []
            result = gds_literal(m, start, goals, mode, reading,
                                 trace=lambda t, G, v, what, to=pruned_at: what == "PRUNE" and to.append(t))
            wrong = not same(result, exact)
            count[reading, "runs", gamma] += 1
            count[reading, "wrong", gamma] += wrong
            count[reading, "fired", gamma] += result.fired
            count[reading, "pops"] += result.pops
            if reading in PRINTED:
                count["pruned too early"] += any(t < fires for t in pruned_at)
                count["short horizon"] += m.T <= fires
                count["wrong at short horizon"] += wrong and m.T <= fires
    return count


def check_theorem_1(rng, n):
    """Theorem 1 on random policies: V(first+second) against V(first) + gamma^T1 E[V(second)], for both clocks."""
    wrong = Counter()
    free_then_dear = MDP.deterministic([[0]], [[[0.0]], [[-1.0]]], 1), 0, {0}
    for m, start, _ in [free_then_dear, *(random_problem(rng, GAMMAS[i % 6], i % 2) for i in range(1, n))]:
        T1 = int(rng.integers(1, m.T))
        rules = [*rng.integers(m.A, size=(m.T, m.S))]
        first, second = rules[:T1], rules[T1:]
        both = policy_value(m, start, concatenate(first, second))
        ends = occupancy(m, start, first)[-1]
        for clock in (T1, 0):
            tail = sum(p * policy_value(m, s, second, clock) for s, p in ends.items())
            parts = policy_value(m, start, first) + m.gamma**T1 * tail
            wrong[clock > 0] += abs(parts - both) > 1e-9
    return [Claim("Theorem 1: V(first+second) = V(first) + gamma^T1 E[V(second)], second's clock shifted by T1",
                  f"{wrong[True]} wrong of {n} pairs", wrong[True]),
            Claim("... if second's clock restarts at 0", f"{wrong[False]} wrong of {n} pairs", wrong[False], "fails")]


def check_theorem_2():
    w = toll()
    best, static = (solve(w.mdp, w.start, w.goals) for solve in (gds, static_best))
    return [Claim("Theorem 2: a dynamic MDP may have no optimal static policy",
                  f"world toll: waiting is worth {best.value:.3f}, the best static policy {static.value:.3f}",
                  int(not best.value > static.value + 1e-9))]


def check_theorem_3(rng, n):
    wrong = most = 0
    for i in range(n):
        m, _, _ = random_problem(rng, GAMMAS[i % 6], i % 2)
        _, V, rounds = policy_iteration(m)
        stop = np.zeros((m.T + 1, m.S), bool)
        stop[-1] = True
        wrong += abs(V - backward(m, stop)[0]).max() > 1e-9 or rounds > m.T + 1
        most = max(most, rounds - m.T)
    return [Claim("Theorem 3: dynamic policy iteration converges to the optimum, in at most T+1 rounds",
                  f"{wrong} of {n} differ from backward induction; at most T{most:+d} rounds", wrong)]


def check_late_shortcuts():
    """The printed algorithm is wrong as soon as T > t*: run at gammas where t* is small enough to run it."""
    refuted, cases, runs = 0, [], 0
    for gamma in (0.25, 0.5, 0.6, 0.75):
        for reading, T in (("child", least_firing_depth(gamma) + 1), ("parent", least_firing_depth(gamma) + 2)):
            m, start, goals = late_shortcut(gamma, T)
            optimum = -sum(gamma**t for t in range(least_firing_depth(gamma)))
            printed, exact = gds_literal(m, start, goals, reading=reading), gds(m, start, goals)
            refuted += printed.status == "infeasible" and abs(exact.value - optimum) < 1e-9
            runs += 1
            cases.append(f"{gamma}: T={T} ({reading})")
    depths = ", ".join(f"{least_firing_depth(g)} at {g}" for g in (0.25, 0.5, 0.6, 0.9, 0.99))
    return [Claim("For every gamma in (0,1) the printed algorithm is wrong from T = t*+1 (child), t*+2 (parent) on, so "
                  "gamma near 1 only delays it",
                  f"proof in late_shortcut; calls a solvable problem infeasible at gamma {'; '.join(cases)}; "
                  f"t* = {depths}", runs - refuted)]


def check_zero_rewards():
    m, start, goals = corridor(2, 3, 0.9, 0.0)
    result, exact = gds_literal(m, start, goals, reading="child"), brute_force(m, start, goals)
    return [Claim("The printed algorithm, child reading, solves pure reachability (all rewards 0)",
                  f"a corridor of 2 steps, T = 3: says {result.status}, truth is {exact.status}: eps = 0, so a prefix "
                  "is pruned by its own record", int(not same(result, exact)), "fails")]


def check_shift():
    """Rewards +1 in one step or +.9, +.9 in two, gamma = .9; then the same minus r_max = 1, which MDP accepts."""
    raw = {1: 1.0, 2: 0.9 + 0.9 * 0.9}
    r = np.full((2, 3, 2), -1.0)  # 0 -> goal 2 by action 0, 0 -> 1 by action 1, 1 -> 2
    r[0, 0] = [0.0, -0.1]
    r[1, 1] = -0.1
    shifted = gds(MDP.deterministic([[2, 1], [2, 2], [2, 2]], r, 0.9), 0, {2})
    return [Claim("Positive rewards: subtracting r_max is without loss of generality",
                  f"raw: {raw[1]:.2f} in 1 step, {raw[2]:.2f} in 2; shifted by -1: {shifted.length} step is best",
                  int(shifted.length != max(raw, key=raw.get)), "fails")]


def check_sat(rng, n):
    wrong = satisfiable = 0
    for _ in range(n):
        variables = 4
        clauses = [(rng.choice(variables, 3, replace=False) + 1) * rng.choice([-1, 1], 3)
                   for _ in range(int(rng.integers(8, 32)))]
        clauses = [clause.tolist() for clause in clauses]
        truth = any(all(any((v > 0) == values[abs(v) - 1] for v in clause) for clause in clauses)
                    for values in itertools.product([False, True], repeat=variables))
        wrong += (gds(*sat_gadget(clauses, variables), "cover").status == "optimal") != truth
        satisfiable += truth
    return [Claim("COVER is NP-hard with T = 2, A = 2, zero rewards: a 3-SAT formula and its MDP agree",
                  f"{wrong} wrong of {n} formulas against the truth table ({satisfiable} satisfiable)", wrong)]


def check_infinity(rng, n):
    """T = infinity, seen through finite horizons. Both verdicts are proofs; the runs show them at work.

    Fails: if waiting is free and crossing costs 1, every horizon T is best used up (-gamma^(T-1)), so no policy
    attains the supremum 0; at gamma = 1 crossing at once is optimal, but the search pops all waiting prefixes first.
    Holds if gamma = 1 and r <= -c < 0: a prefix longer than |V*|/c is worth less than V*, so it is never popped.
    """
    values, pops = [], []
    horizons = (5, 10, 20, 40)
    for T in horizons:
        values.append(gds(*corridor(1, T, 0.9, 1.0)))
        pops.append(gds(*corridor(1, T, 1, 1.0), heuristic=False).pops)
    keeps_waiting = all(v.length == T and abs(v.value + 0.9 ** (T - 1)) < 1e-9 for v, T in zip(values, horizons))
    keeps_popping = all(p > T for p, T in zip(pops, horizons))
    changed = cases = 0
    while cases < n:
        m, start, goals = random_problem(rng, 1, cases % 2)
        m.r, m.T = rng.choice([-1.0, -0.5], size=(8, m.S, m.A)), 8
        short = gds(m.until(4), start, goals, heuristic=False)
        if short.status == "optimal" and -short.value / 0.5 <= 4:
            cases += 1
            long = gds(m, start, goals, heuristic=False)
            changed += not same(short, long) or short.pops != long.pops
    return [Claim("Theorem 4 extends to T = infinity",
                  f"free waiting, crossing costs 1, gamma .9: T = 5, 10, 20, 40 give {values[0].value:.3f} ... "
                  f"{values[-1].value:.3f}, never attained; gamma 1: {', '.join(map(str, pops))} pops, no end",
                  int(keeps_waiting and keeps_popping), "fails"),
            Claim("... it does if gamma = 1, r <= -c < 0 and some policy is feasible",
                  f"T beyond |V*|/c changed value or pops in {changed} of {n} problems", changed)]


def verify(seed=0, n=3000):
    """Every claim put to the test: a list of Claims."""
    rng = np.random.default_rng(seed)
    few = max(1, n // 30)
    claims = check_theorem_1(rng, 5 * few) + check_theorem_2() + check_theorem_3(rng, few)
    c = sweep(rng, n)
    for theorem, mode in ((4, "reach"), (5, "cover")):
        claims.append(Claim(
            f"Theorem {theorem}: GDS without pruning returns the optimum, {mode.upper()}",
            f"{c[mode, 'wrong']} wrong against brute force on {c[mode, 'deterministic']} deterministic and "
            f"{c[mode, 'stochastic']} stochastic problems ({c[mode, 'solvable']} solvable)", c[mode, "wrong"]))
    claims += [
        Claim("Every returned policy has the value and the goal set that it should", f"{c['replay wrong']} wrong when "
              "replayed", c["replay wrong"]),
        Claim("REACH by backward induction per length gives the same", f"{c['dp wrong']} wrong", c["dp wrong"]),
        Claim("On deterministic P this is Dijkstra on (time, state): at most T*S+1 pops",
              f"{c['too many pops']} runs popped more", c["too many pops"]),
        Claim("The bound is admissible, and exact for REACH", f"{c['bound too low']} too low, "
              f"{c['reach bound not tight']} not tight; pops {c['pops without']:,} -> {c['pops with']:,}",
              c["bound too low"] + c["reach bound not tight"]),
    ]
    for reading in PRINTED:
        wrong = {g: c[reading, "wrong", g] for g in GAMMAS}
        claims.append(Claim(
            f"Theorems 4 and 5 with the printed pruning, {reading} reading",
            f"wrong of {sum(c[reading, 'runs', g] for g in GAMMAS)} runs: "
            + ", ".join(f"{w} at gamma {g}" for g, w in wrong.items()),
            sum(wrong.values()) + _wrong_on_counterexample(reading), "fails"))
    claims += [
        Claim("It never prunes a prefix shorter than t*, where gamma^t* <= (1-gamma)/(2-gamma)",
              f"{c['pruned too early']} times in the same runs; fired at gamma .25: "
              f"{c['parent', 'fired', 0.25]}, .5: {c['parent', 'fired', 0.5]}, .9: {c['parent', 'fired', 0.9]}",
              c["pruned too early"]),
        Claim("So it is right if T <= t*", f"{c['wrong at short horizon']} wrong of {c['short horizon']} such runs",
              c["wrong at short horizon"])]
    claims += check_late_shortcuts() + check_zero_rewards()
    for reading, what in zip(SOUND, ("Repaired pruning: records per (t, goal set), eps = r_max sum_{t<=i<T} gamma^i",
                                     "Our rule for different lengths: a shorter prefix prunes a longer one")):
        wrong = sum(c[reading, "wrong", g] for g in GAMMAS)
        fired = sum(c[reading, "fired", g] for g in GAMMAS)
        claims.append(Claim(what, f"{wrong} wrong of {n}; fired {fired:,} times, {c[reading, 'pops']:,} pops", wrong))
    dear = gds(MDP.deterministic([[0]], [[[-1.0]]], 1), 0, {0})  # the goal is all there is, and each step costs 1
    claims += check_shift()
    claims += [
        Claim("The empty policy may count as a solution",
              f"start in the goal: the best policy of length >= 1 is worth < 0 in {c['empty is wrong']} of "
              f"{c['starts in the goal']} problems; the empty one would answer 0",
              c["empty is wrong"] + (dear.value < 0), "fails"),
        Claim("REACH needs no history-dependent policies", f"history helps in {c['reach', 'history helps']} of "
              f"{c['reach', 'history runs']} problems",
              c["reach", "history helps"])]
    m, start, goals = merging()
    markov, history = gds(m, start, goals, "cover"), brute_force(m, start, goals, "cover", history=True)
    helps = c["cover", "history helps"]
    claims.append(Claim("COVER needs no history-dependent policies",
                        f"merging branches: S -> A rules {markov.status}, with history {history.status} (value "
                        f"{history.value:.0f}); it helps in {helps} of {c['cover', 'history runs']} random problems",
                        helps + (not same(markov, history)), "fails"))
    return claims + check_sat(rng, few) + check_infinity(rng, few)


def _wrong_on_counterexample(reading):
    m, start, goals = late_shortcut(0.25, 3)
    return not same(gds_literal(m, start, goals, reading=reading), brute_force(m, start, goals))


def print_counterexamples(out=print):
    """The smallest problems on which the printed pruning is wrong, pop by pop; equal pops in a row are counted."""
    for name, gamma, T, readings in (("CE1", 0.25, 2, ["child"]), ("CE2", 0.25, 3, PRINTED), ("CE3", 0.5, 4, PRINTED)):
        m, start, goals = late_shortcut(gamma, T)
        exact = brute_force(m, start, goals)
        out(f"\n{name}: gamma = {gamma}, T = {T}, start 0, goal {T}; successors of actions 0, 1: "
            + ", ".join(f"{s}:{m.next[s, :, 0].tolist()}" for s in range(m.S)))
        costs = sorted({(int(t), int(s)) for t, s, _ in np.argwhere(m.r < 0)})
        out("  cost 1: " + ", ".join(f"t={t} in state {s}{' (action 1)' if s == 0 else ''}" for t, s in costs))
        for reading in readings:
            pops = []
            result = gds_literal(m, start, goals, reading=reading, trace=lambda *pop, pops=pops: pops.append(pop))
            out(f"  {reading} reading: {result.status}. The optimum is {exact.value:g} in {exact.length} steps.")
        out(f"  the pops of the {readings[-1]} reading:")
        for (t, G, v, what), run in itertools.groupby(pops):
            times = len([*run])
            out(f"    t={t} G={G} v={v:g}: {what}{f'  (x{times})' if times > 1 else ''}")


def print_table(claims, out=print):
    widths = (46, 60, 7)
    rows = [("claim", "evidence", "verdict"), tuple("-" * width for width in widths)]
    for c in claims:
        rows.append((c.text, c.evidence, c.verdict))
    for cells in rows:
        columns = [textwrap.wrap(text, width) for text, width in zip(cells, widths)]
        for parts in itertools.zip_longest(*columns, fillvalue=""):
            out("  ".join(part.ljust(width) for part, width in zip(parts, widths)).rstrip())


def main(argv=None):
    """The command line. Returns the exit status: 1 if a claim came out otherwise than it is marked."""
    def positive(text):
        if not text.isdecimal() or int(text) == 0:
            raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text!r}")
        return int(text)

    def natural(text):
        if not text.isdecimal():
            raise argparse.ArgumentTypeError(f"expected an integer >= 0, got {text!r}")
        return int(text)

    parser = argparse.ArgumentParser(description="General Dijkstra Search: without --world, put every claim to the "
                                                 "test; with it, solve a gridworld and show the plan.")
    parser.add_argument("--world", choices=[*WORLDS], help="the gridworld to solve and show")
    parser.add_argument("--svg", metavar="FILE", help="also draw the world as one self-contained picture")
    parser.add_argument("--seed", type=natural, default=0, help="of the random problems (default 0)")
    parser.add_argument("--n", type=positive, default=3000, help="how many random problems (default 3000)")
    args = parser.parse_args(argv)
    if args.svg and not args.world:
        parser.error(f"--svg: needs --world, one of {', '.join(WORLDS)}")
    if args.world:
        world = WORLDS[args.world]()
        show(world)
        if args.svg:
            try:
                with open(args.svg, "w", encoding="utf-8") as file:
                    file.write(svg(world))
            except OSError as error:
                parser.error(f"--svg: cannot write {args.svg}: {error.strerror}")
        return 0
    claims = verify(args.seed, args.n)
    print_counterexamples()
    print()
    print_table(claims)
    surprises = [claim for claim in claims if claim.verdict != claim.expected]
    for claim in surprises:
        print(f"\nUNEXPECTED: {claim.verdict}, marked {claim.expected}: {claim.text}")
    print(f"\n{len(claims) - len(surprises)} of {len(claims)} verdicts as expected (seed {args.seed}, n {args.n})")
    return 1 if surprises else 0


if __name__ == "__main__":
    sys.exit(main())
