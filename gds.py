"""General Dijkstra Search (GDS): what it says, where the printed algorithm fails, and the repair.

    python gds.py                  put every claim to the test and print the table of verdicts
    python gds.py --world bridge   solve one gridworld and watch the plan

Source: Yu, Su, Abdullah, "Dynamic Latent Routing", arXiv 2605.14323 (2026). In the paper's letters:

    dynamic MDP   S states, A actions, P(s'|s,a) fixed in time, discount gamma in [0,1],
                  rewards r_t(s,a) <= 0 that change with time t = 0..T-1
    policy        of length L <= T: decision rules pi_0..pi_{L-1}, each a map S -> A
    value         V = E sum_{i<L} gamma^i r_i(s_i, pi_i(s_i)), over the policy's own length only
    goal set      G = support of s_L, where the policy may end (the goals themselves are G*)
    REACH G*      G is a subset of G*: every branch of chance ends in a goal
    COVER G*      G is a superset of G*: every goal is the end of some branch
    optimal       the greatest V among the feasible policies of length 1..T (the empty one is none)

GDS is Dijkstra's algorithm on policies: pop the prefix of greatest V; if it is feasible it is optimal,
because rewards <= 0 only lower an extension; otherwise append every rule. `gds` is the version to use;
`gds_literal` is the printed one, whose pruning is unsound (`late_shortcut`). Needs numpy only.
"""

import argparse
import functools
import heapq
import itertools
import math
import sys
from collections import Counter
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

TINY = 5e-324  # the least positive float, where 0 would make 0 * inf = nan

# ---- The problem ---------------------------------------------------------------------------------


class MDP:
    """A dynamic MDP: P (S,A,S) with P[s,a,s'], r (T,S,A) with r[t,s,a] <= 0, gamma in [0,1].

    Every P > 0, however small, is an edge. The rows of P may miss the sum 1 by 1e-5, as they do in
    float32; they are divided by their sum. Kept as lists of successors, padded to the longest, K:
    next (S,A,K) states, prob (S,A,K), 0 where padded; and successors[s][a] = [(s', p), ...].
    Raises ValueError, naming the argument, for anything else.
    """

    def __init__(self, P, r, gamma):
        P = _numbers("P", P)
        if P.ndim != 3 or P.shape[0] != P.shape[2] or P.size == 0:
            raise ValueError(f"P: expected shape (S,A,S) with S, A >= 1, got {P.shape}")
        if P.min() < 0:
            raise ValueError(f"P: probabilities must be >= 0, got {P.min():g}")
        total = P.sum(-1)  # (S,A)
        s, a = np.unravel_index(abs(total - 1).argmax(), total.shape)
        if abs(total[s, a] - 1) > 1e-5:
            raise ValueError(f"P: every row must sum to 1, P[{s},{a}] sums to {total[s, a]:g}")
        K = int(np.count_nonzero(P, axis=-1).max())
        next_states = np.empty((*total.shape, K), int)
        for s in range(len(P)):  # state by state: a second array of P's size may be too much
            next_states[s] = np.argsort(P[s] == 0, axis=-1, kind="stable")[:, :K]  # edges come first
        self._set(next_states, np.take_along_axis(P, next_states, -1) / total[..., None], r, gamma)

    @classmethod
    def deterministic(cls, next_state, r, gamma):
        """The MDP in which action a leads from s to next_state[s,a] surely: (S,A) integers, no P."""
        states = np.asarray(next_state)
        if states.ndim != 2 or states.size == 0 or states.dtype.kind not in "iu":
            raise ValueError(f"next_state: expected integers (S,A), got {states.dtype} {states.shape}")
        if states.min() < 0 or states.max() >= len(states):
            raise ValueError(f"next_state: states are 0..{len(states) - 1}, got {states.min()}..{states.max()}")
        mdp = cls.__new__(cls)
        mdp._set(states[..., None], np.ones((*states.shape, 1)), r, gamma)
        return mdp

    def _set(self, next_states, prob, r, gamma):
        self.S, self.A, self.K = prob.shape
        r = _numbers("r", r)
        if r.ndim != 3 or r.shape[1:] != (self.S, self.A) or len(r) == 0:
            raise ValueError(f"r: expected shape (T,{self.S},{self.A}) with T >= 1, got {r.shape}")
        if r.max() > 0:
            raise ValueError(f"r: rewards must be <= 0, got {r.max():g}, or a longer policy may be better "
                             "than the first one found; subtracting the maximum is no way out, since it "
                             "shifts policies of different lengths differently")
        if not isinstance(gamma, (int, float, np.number)) or not 0 <= gamma <= 1:
            raise ValueError(f"gamma: expected a number in [0,1], got {gamma!r}")
        self.next, self.prob, self.r, self.gamma, self.T = next_states, prob, r, float(gamma), len(r)
        self.successors = []
        for states, odds in zip(next_states.tolist(), prob.tolist()):  # (A,K) each
            edges = [[(s2, p) for s2, p in zip(*row) if p > 0] for row in zip(states, odds)]
            self.successors.append(edges)


@dataclass(frozen=True)
class Result:
    """The best policy: value V, length L, and L rules {state: action} on the support.

    status "optimal", "infeasible" (no policy exists, value -inf) or "capped" (max_pops came first,
    nothing is known, value nan). pops: prefixes taken from the heap. fired: prefixes pruned.
    """

    value: float
    length: int
    policy: list
    pops: int
    status: str
    fired: int = 0


def _failed(status, pops, fired=0):
    return Result(-np.inf if status == "infeasible" else np.nan, 0, [], pops, status, fired)


def _numbers(name, x):
    try:
        x = np.asarray(x, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected an array of numbers, got {x!r:.80}") from None
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: expected finite numbers, got {x[~np.isfinite(x)][0]}")
    return x


def _index(name, i, n, what="a state"):
    """i as an int in 0..n-1. A boolean is none: goals [False, True] would silently mean {0, 1}."""
    is_boolean = isinstance(i, (bool, np.bool_))
    if is_boolean or not isinstance(i, (int, np.integer)) or not 0 <= i < n:
        hint = " (of a boolean mask, pass np.flatnonzero(mask))" if is_boolean else ""
        raise ValueError(f"{name}: expected {what} 0..{n - 1}, got {i!r}{hint}")
    return int(i)


def _check(mdp, start, goals, mode="reach", max_pops=1):
    """The arguments that all solvers share: start as an int and the goals as a frozenset."""
    try:
        goals = list(goals)
    except TypeError:
        raise ValueError(f"goals: expected a collection of states, got {goals!r}") from None
    if mode not in ("reach", "cover"):
        raise ValueError(f"mode: expected one of reach, cover, got {mode!r}")
    if isinstance(max_pops, bool) or not isinstance(max_pops, (int, np.integer)) or max_pops < 1:
        raise ValueError(f"max_pops: expected an integer >= 1, got {max_pops!r}")
    return _index("start", start, mdp.S), frozenset(_index("goals", g, mdp.S) for g in goals)


# ---- Following a policy --------------------------------------------------------------------------


def feasible(mode, support, goals):
    """REACH: the support is a subset of the goals. COVER: a superset."""
    return support <= goals if mode == "reach" else support >= goals


def step(mdp, dist, rule, t):
    """A rule at time t, applied to dist {state: probability}: (the next dist, the expected reward)."""
    after, reward = {}, 0.0
    for s, p in dist.items():
        reward += p * mdp.r.item(t, s, rule[s])
        for s2, q in mdp.successors[s][rule[s]]:
            after[s2] = after.get(s2, 0.0) + p * q  # also if p * q underflows to 0: s2 is an end
    return after, reward


def follow(mdp, start, policy, clock=0):
    """Runs a policy: (its distributions {state: probability} at times 0..L, its value V).

    The keys are the exact supports. A rule is a dict or an array over states, with an action for every
    state that it can meet, else ValueError. clock: the time at which the first reward is read.
    """
    if clock + len(policy) > mdp.T:
        raise ValueError(f"policy: {len(policy)} rules from time {clock} overrun T = {mdp.T}")
    dists, value = [{_index("start", start, mdp.S): 1.0}], 0.0
    for i, rule in enumerate(policy):
        actions = {}
        for s in dists[-1]:
            try:
                action = rule[s]
            except (KeyError, IndexError, TypeError):
                raise ValueError(f"policy: rule {i} has no action for state {s}, which it meets") from None
            actions[s] = _index(f"policy: rule {i} in state {s}", action, mdp.A, "an action")
        after, reward = step(mdp, dists[-1], actions, clock + i)
        value += mdp.gamma**i * reward
        dists.append(after)
    return dists, value


def policy_value(mdp, start, policy, clock=0):
    """V = sum_i gamma^i E r_{clock+i}(s_i, pi_i(s_i)); 0 for the empty policy."""
    return follow(mdp, start, policy, clock)[1]


def concatenate(first, second):
    """The policy that follows first, then second.

    Theorem 1: V(first+second) = V(first) + gamma^T1 E[V(second from s_T1)], T1 = len(first), if
    second's rewards are read from clock T1 on; it fails if they are read from 0 on.
    """
    return [*first, *second]


def brute_force(mdp, start, goals, mode="reach", history=False, limit=2 * 10**6):
    """The optimum by trying every policy on its support. ValueError if they may be more than limit.

    history=True: a rule may depend on the whole path, so that branches which merge may act differently.
    """
    start, goals = _check(mdp, start, goals, mode)
    states, policies = {start}, 1
    for t in range(mdp.T):
        policies *= mdp.A ** (mdp.K**t if history else len(states))  # at most K^t paths of t steps
        states = {s2 for s in states for row in mdp.successors[s] for s2, _ in row}
        if policies > limit:
            raise ValueError(f"brute_force: this would not finish: its first {t + 1} of "
                             f"T = {mdp.T} steps have too many policies, the limit is {limit}. Use gds")
    best = _failed("infeasible", 0)

    def extend(dist, value, policy):  # dist {path: probability}; without history a path is (state,)
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
                    longer = (*path, s2) if history else (s2,)
                    after[longer] = after.get(longer, 0.0) + p * q
            met = dist if history else [path[-1] for path in dist]
            extend(after, v, [*policy, dict(zip(met, actions))])

    extend({(start,): 1.0}, 0.0, [])
    return best


# ---- The printed algorithm and its counterexample ------------------------------------------------


def gds_literal(mdp, start, goals, mode="reach", reading="parent", max_pops=10**6, trace=None):
    """Algorithm 1 (REACH) and 2 (COVER) as printed, with their pruning, which is unsound.

    Pop the prefix of greatest value. Feasible: return it. Length T: drop it. Prune it if some record
    (G', v') has G' a subset of its goal set G (COVER: superset) and v <= v' - eps_t, where
    eps_t = r_max/(1-gamma) sum_{i>=t} gamma^i. Otherwise append every rule, and record each child's
    value, unless its goal set was popped before, under
      the parent's goal set (reading "parent", as printed) or its own ("child", probably meant).
    A record carries no time: a prefix that is too late may prune the only one that is in time, as in
    `late_shortcut`. And where eps is 0, a prefix may be pruned by its own record.

    reading "repaired", ours, is sound: prefixes are recorded when expanded, prune only prefixes of the
    same length t, and eps_t = r_max sum_{t<=i<T} gamma^i. Proof: let sigma complete the pruned prefix.
    Run after the recorded one, it ends within the same ends (G' is a subset of G), so it is feasible,
    and it is worth >= v' - eps_t >= v >= the pruned completion. If that is pruned in turn, repeat:
    fewer steps are left each time.

    Rules that agree on the support have one future: one of each is appended. max_pops also caps the
    prefixes waiting. trace(t, G, v, what) sees every pop.
    """
    start, goals = _check(mdp, start, goals, mode, max_pops)
    if reading not in ("parent", "child", "repaired"):
        raise ValueError(f"reading: expected one of parent, child, repaired, got {reading!r}")
    g, T, r_max = mdp.gamma, mdp.T, -mdp.r.min()
    if reading == "repaired":
        eps = [r_max * sum(g**i for i in range(t, T)) for t in range(T)]
    elif g == 1:
        eps = [np.inf if r_max > 0 else 0.0] * T
    else:
        eps = [r_max * g**t / (1 - g) ** 2 for t in range(T)]
    records = {}  # (time, goal set) -> greatest value; time is None in the printed readings
    popped = set()  # goal sets

    def record(time, G, v):
        records[time, G] = max(v, records.get((time, G), -np.inf))

    def pruned(t, G, v):
        for (time, G2), v2 in records.items():
            comparable = G2 <= G if mode == "reach" else G2 >= G
            if comparable and time in (None, t) and v <= v2 - eps[t]:
                return True
        return False

    tick = itertools.count()  # ties: first come, first served
    heap = [(0.0, next(tick), {start: 1.0}, [])]  # (-v, tick, distribution, rules)
    pops = fired = 0
    while heap:
        if pops == max_pops:
            return _failed("capped", pops, fired)
        cost, _, dist, policy = heapq.heappop(heap)
        v, t, G = 0.0 - cost, len(policy), frozenset(dist)
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
        if reading == "repaired":
            record(t, G, v)
        for actions in itertools.product(range(mdp.A), repeat=len(dist)):
            rule = dict(zip(dist, actions))
            after, reward = step(mdp, dist, rule, t)
            v2, G2 = v + g**t * reward, frozenset(after)
            if reading != "repaired" and G2 not in popped:
                record(None, G if reading == "parent" else G2, v2)
            heapq.heappush(heap, (-v2, next(tick), after, [*policy, rule]))
    return _failed("infeasible", pops, fired)


def least_firing_depth(gamma):
    """t*: the printed rule prunes no prefix shorter than the least t with gamma^t <= (1-gamma)/(2-gamma).

    Proof: it prunes v <= v' - eps_t, where v' <= 0, v >= -r_max (1-gamma^t)/(1-gamma) and
    eps_t = r_max gamma^t/(1-gamma)^2 (r_max > 0). Hence the printed algorithm is right for T <= t*.
    """
    if gamma == 0 or gamma == 1:
        return 1 if gamma == 0 else math.inf
    enough = (1 - gamma) / (2 - gamma)
    t = math.ceil(math.log(enough) / math.log(gamma))
    while gamma**t > enough:  # both corrections: the logarithms are rounded
        t += 1
    while gamma ** (t - 1) <= enough:
        t -= 1
    return t


def late_shortcut(gamma, T):
    """The counterexample to the printed pruning for any 0 < gamma < 1 and T > t*: (mdp, start, goals).

    A corridor 0 -> 1 -> ... -> T, just as long as the horizon; in 0, action 0 waits. Leaving at once
    costs 1 a step for t* steps; leaving later is free, but too late. So the optimum leaves at once.
    The late prefix, popped first, comes to state t* a step later with value 0, and its record prunes
    the only prefix that is in time. Child reading: from T = t*+1 on; parent reading: from T = t*+2 on.
    """
    onward = np.minimum(np.arange(1, T + 2), T)  # (S,), S = T+1
    next_state = np.stack([onward, onward], 1)  # (S,A)
    next_state[0, 0] = 0
    r = np.zeros((T, T + 1, 2))
    for t in range(least_firing_depth(gamma)):
        r[t, t] = -1
    r[0, 0, 0] = 0
    return MDP.deterministic(next_state, r, gamma), 0, {T}


# ---- Backward induction: exact for REACH, a bound for both modes ---------------------------------


def policy_iteration(mdp):
    """The best T rules when nothing must be reached: evaluate all, improve all, until none changes.

    Returns (policy (T,S) actions, values (T+1,S), rounds). Theorem 3: this converges to the optimum,
    in at most T+1 rounds, since after n of them the last n rules are optimal.
    """
    policy, rounds = np.zeros((mdp.T, mdp.S), int), 0
    everywhere = np.arange(mdp.S)
    while True:
        rounds += 1
        V, better = np.zeros((mdp.T + 1, mdp.S)), policy.copy()
        for t in reversed(range(mdp.T)):
            Q = mdp.r[t] + mdp.gamma * (mdp.prob * V[t + 1][mdp.next]).sum(-1)  # (S,A)
            V[t] = Q[everywhere, policy[t]]
            gain = Q.max(-1) > V[t] + 1e-12  # a tie, or a rounding error, is no reason to change
            better[t] = np.where(gain, Q.argmax(-1), policy[t])
        if (better == policy).all():
            return policy, V, rounds
        policy = better


def backward(mdp, stop):
    """Best values if a branch may end where stop (L+1,S) says so: V (L+1,S) and regret (L,S,A).

    V_t(s) = max(0 if stop[t,s], max_a Q_t(s,a)),  Q_t(s,a) = r_t(s,a) + gamma E V_{t+1}(s'),
    regret_t(s,a) = V_t(s) - Q_t(s,a): what action a loses, exactly 0 if it is best.
    Where no end is possible V = -inf; an action with one such successor, however unlikely, has
    Q = -inf and regret inf. O(L S A K) time.
    """
    gamma = max(mdp.gamma, TINY)  # keeps gamma * -inf at -inf
    edge = mdp.prob > 0  # (S,A,K)
    V = np.where(stop, 0.0, -np.inf)
    regret = np.full((len(stop) - 1, mdp.S, mdp.A), np.inf)
    for t in reversed(range(len(regret))):
        ahead = np.where(edge, V[t + 1][mdp.next], 0)  # (S,A,K)
        Q = mdp.r[t] + gamma * (mdp.prob * ahead).sum(-1)  # (S,A)
        V[t] = np.maximum(V[t], Q.max(-1))
        np.subtract(V[t][:, None], Q, out=regret[t], where=Q > -np.inf)
    return V, regret


class Bound(NamedTuple):
    """An upper bound on the value of every completion of a prefix to one of the lengths."""

    lengths: range
    root: float  # of the empty prefix
    regret: np.ndarray  # (L,S,A), L the greatest length; inf where no end is possible
    miss: np.ndarray | None = None  # (L+1,S,G), in COVER


def shared_lengths(mdp):
    """The lengths that one bound can serve. In general one: all branches must end at the same time.

    A deterministic P has a single branch, so one bound serves all lengths.
    """
    if mdp.K == 1:
        return [range(1, mdp.T + 1)]
    return [range(L, L + 1) for L in range(1, mdp.T + 1)]


def backward_bound(mdp, start, goals, mode, lengths):
    """bound(prefix) = V_0(start) - sum of gamma^t p regret_t(s,a) over its steps and branches.

    V and regret come from backward induction where each branch may end for itself: in REACH in a goal,
    and then the bound is exact; in COVER anywhere, which is too optimistic. But some branch must end in
    each goal g, and that branch alone will lose gamma^t p miss_t(s,g): the least sum of regrets on a
    path from (t,s) to g, each weighted by the odds of the path so far (inf if there is no path). So
    COVER subtracts the greatest such loss over the goals, of the least over the branches: see _priority.
    """
    if mode == "reach":
        ends = list(goals)
    elif mdp.K == 1 and goals:
        ends = list(goals) if len(goals) == 1 else []  # a single branch ends in a single state
    else:
        ends = list(range(mdp.S))
    L = lengths[-1]
    stop = np.zeros((L + 1, mdp.S), bool)
    stop[lengths[0]:, ends] = True
    V, regret = backward(mdp, stop)
    if mode == "reach" or mdp.K == 1 or not goals:
        return Bound(lengths, V.item(0, start), regret)
    gamma = max(mdp.gamma, TINY)
    edge = (mdp.prob > 0)[..., None]  # (S,A,K,1)
    miss = np.full((L + 1, mdp.S, len(goals)), np.inf)
    miss[L, sorted(goals), range(len(goals))] = 0
    for t in reversed(range(L)):
        onward = np.where(edge, miss[t + 1][mdp.next], 0)  # (S,A,K,G)
        onward = np.where(edge, mdp.prob[..., None] * onward, np.inf).min(2)  # (S,A,G)
        miss[t] = (regret[t][..., None] + gamma * onward).min(1)
    miss *= np.maximum(gamma ** np.arange(L + 1), TINY)[:, None, None]
    return Bound(lengths, V.item(0, start), regret, miss)


def reach_dp(mdp, start, goals):
    """The optimal REACH policy by backward induction for each length, without search.

    O(T^2 S A K) time, deterministic O(T S A K); O(T S A) memory, since only the best length is kept.
    It also proves that REACH needs no history: the branches' choices do not constrain each other.
    """
    start, goals = _check(mdp, start, goals)
    bounds = (backward_bound(mdp, start, goals, "reach", lengths) for lengths in shared_lengths(mdp))
    best = max(bounds, key=lambda bound: bound.root)
    if best.root == -np.inf:
        return _failed("infeasible", 0)
    dist, policy = {start: 1.0}, []
    while len(policy) not in best.lengths or not feasible("reach", dist.keys(), goals):
        t = len(policy)
        rule = {s: int(best.regret[t, s].argmin()) for s in dist}
        dist, _ = step(mdp, dist, rule, t)
        policy.append(rule)
    return Result(best.root, len(policy), policy, 0, "optimal")


# ---- The search ----------------------------------------------------------------------------------


class Entry(NamedTuple):
    """What waits in the heap: a prefix of t rules, and the part of the next rule that is chosen."""

    value: float
    bound: float  # root - regrets so far
    t: int
    todo: tuple  # ((state, probability), ...) at time t: the branches without an action
    done: tuple  # the same at time t+1: where the other branches have moved
    choices: tuple | None  # linked list, newest first: (t, state, action, older choices)
    future: tuple | None  # equal for entries with the same future


def gds(mdp, start, goals, mode="reach", heuristic=True, max_pops=10**6, static=False):
    """The optimal policy from state start that reaches or covers the set goals. Exact.

    Theorems 4 (REACH) and 5 (COVER), without the printed pruning, which is unsound. Instead:
    - rules on the support only: rules that differ elsewhere have the same future;
    - branches choose one after another, so a pop appends at most A entries, not A^n rules;
    - of prefixes with the same time and distribution, so with the same future, only the best is kept.
      With a deterministic P this is Dijkstra's algorithm on (time, state): at most T*S+1 pops;
    - heuristic=True: A*, ordered by `backward_bound` instead of the value. Each of `shared_lengths`
      has its own bound; the most promising entry of any is next. For REACH the bound is exact: only
      the prefixes of one best policy would be popped, so they are read off (`reach_dp`) and counted.
    Distributions count as equal if the supports are and probabilities agree to 12 digits, so V is exact
    up to 1e-12 * T * S * max|r|. Memory: REACH O(T S A), COVER O(T S (A+G)) and the heap. COVER is
    NP-hard (`sat_gadget`): expect "capped" on large stochastic problems. static: see static_best.
    """
    start, goals = _check(mdp, start, goals, mode, max_pops)
    if mode == "reach" and heuristic and not static:
        best = reach_dp(mdp, start, goals)
        pops = sum(len(rule) for rule in best.policy) + (best.status == "optimal")
        return replace(best, pops=pops) if pops <= max_pops else _failed("capped", max_pops)

    @functools.lru_cache(maxsize=8)  # all T of them would take O(T^2 S A) memory
    def bound_of(lengths):
        if heuristic:
            return backward_bound(mdp, start, goals, mode, lengths)
        return Bound(lengths, 0.0, -mdp.r)  # 0 on what is still to come: bound(prefix) = value

    tick = itertools.count()  # ties go to the longer prefix, then to the older one
    heap = []  # (-priority, -t, tick, lengths, Entry)
    best_value = {}  # (last length, future) -> the best value of a prefix with that future

    def push(entry, lengths, bound):
        priority = _priority(bound, entry)
        if priority > -np.inf:
            heapq.heappush(heap, (-priority, -entry.t, next(tick), lengths, entry))

    for lengths in shared_lengths(mdp) if heuristic else [range(1, mdp.T + 1)]:
        bound = bound_of(lengths)
        push(Entry(0.0, bound.root, 0, ((start, 1.0),), (), None, None), lengths, bound)
    pops = 0
    while heap:
        _, _, _, lengths, entry = heapq.heappop(heap)
        if entry.future and entry.value < best_value[lengths[-1], entry.future]:
            continue  # a better prefix with the same future came later
        if pops == max_pops:
            return _failed("capped", pops)
        pops += 1
        ends = {s for s, _ in entry.todo}
        if entry.t in lengths and not entry.done and feasible(mode, ends, goals):
            policy = [{} for _ in range(entry.t)]
            for t, s, a in _choices(entry):
                policy[t][s] = a
            return Result(entry.value, entry.t, policy, pops, "optimal")
        if entry.t == lengths[-1]:
            continue
        bound = bound_of(lengths)
        for child in _children(mdp, bound, entry, static):
            key = lengths[-1], child.future
            if child.value > best_value.get(key, -np.inf):
                best_value[key] = child.value
                push(child, lengths, bound)
    return _failed("infeasible", pops)


def static_best(mdp, start, goals, mode="reach", max_pops=10**6):
    """The best static policy: one rule S -> A for all times (length 1..T). The same search.

    Theorem 2: some dynamic MDP has no optimal static policy, so this may be worse than gds.
    """
    return gds(mdp, start, goals, mode, max_pops=max_pops, static=True)


def _children(mdp, bound, entry, static):
    """The entries in which the first branch that has no action has chosen one."""
    t, (s, p), rest = entry.t, entry.todo[0], entry.todo[1:]
    weight = mdp.gamma**t * p
    fixed = {s2: a for _, s2, a in _choices(entry)} if static else {}
    waiting = tuple([(s2, round(q * 1e12)) for s2, q in rest])
    for a in [fixed[s]] if s in fixed else range(mdp.A):
        if bound.regret.item(t, s, a) == np.inf:
            continue
        moved = dict(entry.done)
        for s2, q in mdp.successors[s][a]:
            moved[s2] = moved.get(s2, 0.0) + (p * q or TINY)  # an underflow is still an end
        moved = tuple(sorted(moved.items()))
        moving = tuple([(s2, round(q * 1e12)) for s2, q in moved])
        future = (t, waiting, moving, frozenset({**fixed, s: a}.items()) if static else None)
        value = entry.value + weight * mdp.r.item(t, s, a)
        left = entry.bound - weight * bound.regret.item(t, s, a)
        choices = (t, s, a, entry.choices)
        if rest:
            yield Entry(value, left, t, rest, moved, choices, future)
        else:
            yield Entry(value, left, t + 1, moved, (), choices, future)


def _priority(bound, entry):
    """The entry's bound, in COVER less what must be lost on the way to the goals (backward_bound)."""
    if bound.miss is None:
        return entry.bound
    times = [entry.t] * len(entry.todo) + [entry.t + 1] * len(entry.done)
    states, odds = zip(*entry.todo, *entry.done)
    loss = np.array(odds)[:, None] * bound.miss[times, states]  # (branches,G)
    return entry.bound - loss.min(0).max().item()


def _choices(entry):
    """The choices (t, state, action) of an entry, newest first."""
    choices = entry.choices
    while choices is not None:
        t, s, a, choices = choices
        yield t, s, a


# ---- Problems for the table: (mdp, start, goals) -------------------------------------------------


def merging():
    """COVER {4,5}: 0 -> 1 or 2 by chance, both -> 3, and 3 -> 4 (action 0) or 5 (action 1)."""
    P = np.zeros((6, 2, 6))
    P[0, :, [1, 2]] = 0.5
    P[[1, 2], :, 3] = P[3, 0, 4] = P[3, 1, 5] = P[4, :, 4] = P[5, :, 5] = 1
    return MDP(P, np.zeros((3, 6, 2)), 0.9), 0, {4, 5}


def sat_gadget(clauses, n):
    """COVER is NP-hard even with T = 2, A = 2 and zero rewards: the problem of a formula in CNF.

    clauses: lists of literals +v or -v, v = 1..n. State 0 goes to every variable by chance. The action
    in a variable is its truth value, and goes by chance to the clauses that it makes true (or to a dead
    end). All clauses can be covered iff one assignment makes them all true.
    """
    first, dead = n + 1, n + 1 + len(clauses)  # states: 0, variables 1..n, clauses, dead end
    P = np.zeros((dead + 1, 2, dead + 1))
    P[0, :, 1:first] = 1 / n
    for v in range(1, n + 1):
        for truth, literal in ((0, -v), (1, v)):
            true = [first + c for c, clause in enumerate(clauses) if literal in clause] or [dead]
            P[v, truth, true] = 1 / len(true)
    for s in range(first, dead + 1):
        P[s, :, s] = 1
    return MDP(P, np.zeros((2, dead + 1, 2)), 1.0), 0, set(range(first, dead))


def random_problem(rng, gamma, deterministic):
    """A problem that brute_force can solve: 2-4 states, 2 actions, T = 2-4, ties, odds of 1e-15.

    Half are corridors (successors s and s+1, from 0 to the last state) with few costs, where being late
    matters; the others have any successors, start and goals, also none or all.
    """
    S, A = int(rng.integers(2, 5)), 2
    T = int(rng.integers(2, 5 if deterministic or S < 4 else 4))
    is_corridor = rng.random() < 0.5
    P = np.zeros((S, A, S))
    for s, a in np.ndindex(S, A):
        near = [s, min(s + 1, S - 1)] if is_corridor else range(S)
        first, second = rng.choice(near, 2)
        p = 1.0 if deterministic else rng.choice([1.0, 0.5, 0.3, 1e-15])
        P[s, a, first] += p
        P[s, a, second] += 1 - p
    if is_corridor:
        return MDP(P, -1.0 * (rng.random((T, S, A)) < 0.15), gamma), 0, {S - 1}
    r = -rng.choice([0, 0, 0.5, 1, rng.random()], size=(T, S, A))
    goals = np.flatnonzero(rng.random(S) < 0.5)
    return MDP(P, r, gamma), int(rng.integers(S)), set(goals.tolist())


# ---- The table: one check for each claim ---------------------------------------------------------

GAMMAS = (0, 0.25, 0.5, 0.9, 0.99, 1)


class Claim(NamedTuple):
    """A row of the table. wrong: how often it was contradicted; it holds if never."""

    text: str
    evidence: str
    wrong: int
    holds: bool = True  # what we expect


def random_cases(seed, n):
    """n pairs (problem, its optimum by brute force): all gammas, deterministic or not, both modes."""
    rng, cases = np.random.default_rng(seed), []
    for i in range(n):
        mdp, start, goals = random_problem(rng, GAMMAS[i % 6], deterministic=i // 6 % 2 == 0)
        problem = (mdp, start, goals, ("reach", "cover")[i // 12 % 2])
        cases.append((problem, brute_force(*problem)))
    return cases


def same(a, b):
    """Two results agree: same status, and values equal to 1e-9."""
    return a.status == b.status and (a.value == b.value or abs(a.value - b.value) < 1e-9)


def check_theorem_1(cases, restarts):
    rng, wrong = np.random.default_rng(0), 0
    free_then_dear = MDP.deterministic([[0]], [[[0.0]], [[-1.0]]], 1)
    for mdp, start, *_ in [(free_then_dear, 0), *(problem for problem, _ in cases)]:
        T1 = int(rng.integers(1, mdp.T))
        rules = rng.integers(mdp.A, size=(mdp.T, mdp.S))
        dists, parts = follow(mdp, start, rules[:T1])
        for s, p in dists[-1].items():
            parts += mdp.gamma**T1 * p * policy_value(mdp, s, rules[T1:], 0 if restarts else T1)
        whole = policy_value(mdp, start, concatenate(rules[:T1], rules[T1:]))
        wrong += abs(parts - whole) > 1e-9
    clock = "restarts at 0" if restarts else "goes on from T1"
    return Claim(f"Theorem 1: V(first+second) = V(first) + gamma^T1 E[V(second)] if second's clock {clock}",
                 f"{wrong} wrong of {len(cases) + 1} pairs", wrong, holds=not restarts)


def check_theorem_2():
    """A corridor 0, 1, 2 to the goal 2: stay (.05) or go on (.1); being in 1 costs 1 more until t = 2."""
    r = np.full((6, 3, 2), [-0.05, -0.1])
    r[:2, 0, 1] -= 1  # r_t is paid on landing, at t+1
    r[:2, 1, 0] -= 1
    mdp = MDP.deterministic([[0, 1], [1, 2], [2, 2]], r, 0.95)
    best, static = gds(mdp, 0, {2}), static_best(mdp, 0, {2})
    return Claim("Theorem 2: a dynamic MDP may have no optimal static policy",
                 f"a toll: waiting is worth {best.value:.3f}, the best static policy {static.value:.3f}",
                 best.value <= static.value + 1e-9)


def check_theorem_3(cases):
    wrong = 0
    for (mdp, *_), _ in cases:
        _, V, rounds = policy_iteration(mdp)
        stop = np.zeros(V.shape, bool)
        stop[-1] = True  # nothing must be reached, but all T steps are taken
        wrong += abs(V - backward(mdp, stop)[0]).max() > 1e-9 or rounds > mdp.T + 1
    return Claim("Theorem 3: dynamic policy iteration converges to the optimum, in at most T+1 rounds",
                 f"{wrong} wrong of {len(cases)} against backward induction", wrong)


def check_theorems_4_and_5(cases, theorem, mode):
    cases = [(problem, optimum) for problem, optimum in cases if problem[-1] == mode]
    wrong = 0
    for problem, optimum in cases:
        mdp, start, goals, _ = problem
        for heuristic in (False, True):
            found = gds(*problem, heuristic)
            right = same(found, optimum)
            if found.status == "optimal":
                dists, value = follow(mdp, start, found.policy)
                right &= abs(value - found.value) < 1e-9 and feasible(mode, set(dists[-1]), goals)
            wrong += not right
    return Claim(f"Theorem {theorem}: GDS without pruning returns the optimum, {mode.upper()}",
                 f"{wrong} wrong against brute force on {len(cases)} problems, with and without the bound; "
                 "policies replayed", wrong)


def check_printed(cases, reading):
    late = [late_shortcut(gamma, least_firing_depth(gamma) + 2) for gamma in (0.25, 0.5, 0.75)]
    cases = [*cases, *(((*problem, "reach"), gds(*problem)) for problem in late)]
    # With no cost at all, eps is 0 and a prefix is pruned by its own record: such problems are left out.
    cases = [(problem, optimum) for problem, optimum in cases if problem[0].r.any()]
    wrong = Counter()
    for problem, optimum in cases:
        wrong[problem[0].gamma] += not same(gds_literal(*problem, reading), optimum)
    counts = ", ".join(f"{count} at {gamma:g}" for gamma, count in sorted(wrong.items()))
    return Claim(f"Theorems 4 and 5 with the printed pruning, {reading} reading",
                 f"wrong answers by gamma, of {len(cases)}: {counts}", wrong.total(), holds=False)


def check_firing_depth(cases):
    early = wrong = 0
    for problem, optimum in cases:
        mdp, depth = problem[0], least_firing_depth(problem[0].gamma)
        for reading in ("parent", "child"):
            pruned = [depth]  # and the lengths of the prefixes pruned
            result = gds_literal(*problem, reading, trace=lambda t, G, v, what, pruned=pruned: (
                pruned.append(t) if what == "PRUNE" else None))
            if mdp.r.any():
                early += min(pruned) < depth
                wrong += mdp.T <= depth and not same(result, optimum)
    depths = ", ".join(f"{least_firing_depth(gamma)} at {gamma}" for gamma in (0.25, 0.5, 0.75, 0.9, 0.99))
    return Claim("It prunes no prefix shorter than t*, gamma^t* <= (1-gamma)/(2-gamma): right for T <= t*",
                 f"{early} pruned earlier, {wrong} wrong with T <= t*; t* is {depths}", early + wrong)


def check_repaired(cases):
    wrong = fired = 0
    for problem, optimum in cases:
        repaired = gds_literal(*problem, "repaired")
        fired += repaired.fired
        wrong += not same(repaired, optimum)
    return Claim("Repaired pruning: records per (t, goal set), eps = r_max sum_{t<=i<T} gamma^i",
                 f"{wrong} wrong of {len(cases)}; fired {fired:,} times", wrong)


def check_shift():
    """0 -> goal 2 for +1, or 0 -> 1 -> 2 for +.9 each, gamma .9; then the same less r_max = 1."""
    raw = {1: 1.0, 2: 0.9 + 0.9 * 0.9}  # length: value
    r = np.full((2, 3, 2), -1.0)
    r[0, 0] = [0.0, -0.1]
    r[1, 1] = -0.1
    shifted = gds(MDP.deterministic([[2, 1], [2, 2], [2, 2]], r, 0.9), 0, {2})
    return Claim("Positive rewards: subtracting r_max is without loss of generality",
                 f"raw: 1 in 1 step, {raw[2]:.2f} in 2; shifted by -1: {shifted.length} step is best",
                 shifted.length != max(raw, key=raw.get), holds=False)


def check_empty_policy():
    dear = gds(MDP.deterministic([[0]], [[[-1.0]]], 1), 0, {0})
    return Claim("The empty policy may count as a solution",
                 f"start in the goal, each step costs 1: one step is worth {dear.value:g}, none 0",
                 dear.value < 0, holds=False)


def check_history(cases, mode):
    cases = [(p, optimum) for p, optimum in cases if p[-1] == mode and p[0].K ** p[0].T <= 8]
    if mode == "cover":
        problem = (*merging(), mode)
        cases.append((problem, brute_force(*problem)))
    helps = 0
    for problem, optimum in cases:
        helps += not same(brute_force(*problem, history=True), optimum)
    return Claim(f"{mode.upper()} needs no history-dependent policies",
                 f"history helps in {helps} of {len(cases)} problems", helps, holds=mode == "reach")


def check_sat(formulas):
    """A clause on all of 3 variables excludes one assignment: satisfiable unless all 8 clauses occur."""
    rng, every = np.random.default_rng(0), list(itertools.product([1, -1], [2, -2], [3, -3]))
    wrong = satisfiable = 0
    for _ in range(formulas):
        clauses = [every[i] for i in rng.integers(8, size=20)]
        truth = len(set(clauses)) < 8
        satisfiable += truth
        wrong += (gds(*sat_gadget(clauses, 3), "cover").status == "optimal") != truth
    return Claim("COVER is NP-hard with T = 2, A = 2, zero rewards: a 3-SAT formula and its MDP agree",
                 f"{wrong} wrong of {formulas} formulas ({satisfiable} satisfiable)", wrong)


def print_table(claims):
    for claim in claims:
        print(f"\n{'fails' if claim.wrong else 'holds'}  {claim.text}\n       {claim.evidence}")


def print_counterexample(gamma, T, reading):
    """A late_shortcut, pop by pop."""
    mdp, start, goals = late_shortcut(gamma, T)
    edges = ", ".join(f"{s}:{mdp.next[s, :, 0].tolist()}" for s in range(mdp.S))
    print(f"\nCounterexample, {reading} reading: gamma = {gamma}, T = {T}, start 0, goal {T}, successors of "
          f"actions 0, 1: {edges}.\nOnly action 1 in state 0 at t = 0 costs something, 1.")
    result = gds_literal(mdp, start, goals, reading=reading, trace=lambda t, G, v, what: print(
        f"  t={t} G={G} v={v:g}: {what}"))
    print(f"  answer: {result.status}. The optimum is {brute_force(mdp, start, goals).value:g}.")


# ---- The command line; the gridworlds that --world shows are in data/gridworlds.py ---------------


def main(argv=None):
    """The command line. Returns the exit status: 1 if a claim came out otherwise than it is marked."""
    parser = argparse.ArgumentParser(description="Put every claim to the test, or show a gridworld's plan.")
    parser.add_argument("--world", help="solve and show one: toll, bridge, guard, doors, river, scouts")
    parser.add_argument("--seed", type=int, default=0, help="of the random problems (default 0)")
    parser.add_argument("--n", type=int, default=3000, help="how many random problems (default 3000)")
    args = parser.parse_args(argv)
    if args.n < 1 or args.seed < 0:
        parser.error(f"expected --n >= 1 and --seed >= 0, got --n {args.n} --seed {args.seed}")
    if args.world:
        from data.gridworlds import WORLDS, show
        if args.world not in WORLDS:
            parser.error(f"--world: expected one of {', '.join(WORLDS)}, got {args.world!r}")
        show(WORLDS[args.world]())
        return 0
    print_counterexample(0.25, 2, "child")
    print_counterexample(0.25, 3, "parent")
    cases = random_cases(args.seed, args.n)
    claims = [
        check_theorem_1(cases, restarts=False), check_theorem_1(cases, restarts=True),
        check_theorem_2(), check_theorem_3(cases),
        check_theorems_4_and_5(cases, 4, "reach"), check_theorems_4_and_5(cases, 5, "cover"),
        check_printed(cases, "parent"), check_printed(cases, "child"),
        check_firing_depth(cases), check_repaired(cases),
        check_shift(), check_empty_policy(),
        check_history(cases, "reach"), check_history(cases, "cover"),
        check_sat(formulas=max(1, args.n // 30)),
    ]
    print_table(claims)
    surprises = [claim.text for claim in claims if claim.holds == bool(claim.wrong)]
    for text in surprises:
        print(f"\nUNEXPECTED: {text}")
    right = len(claims) - len(surprises)
    print(f"\n{right} of {len(claims)} verdicts as expected (seed {args.seed}, n {args.n})")
    return 1 if surprises else 0


if __name__ == "__main__":
    sys.exit(main())
