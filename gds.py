"""General Dijkstra Search (GDS): the theorem, where the printed algorithm fails, and the repair.

    python gds.py                  shows a plan, the counterexample, and tests every claim
    python gds.py --world bridge   solves one of six gridworlds and shows the plan

Source: Yu, Su, Abdullah, "Dynamic Latent Routing", arXiv 2605.14323 (2026). Needs numpy only.
The terms, in the paper's letters:

    dynamic MDP   S states, A actions, P(s'|s,a) fixed in time, a discount gamma in [0,1], and
                  rewards r_t(s,a) <= 0 that change with time t = 0..T-1; r_max = max |r_t(s,a)|
    policy        of length L <= T: decision rules pi_0..pi_{L-1}, each a map S -> A
    static        a policy whose rules are all the same
    value         V = E sum_{i<L} gamma^i r_i(s_i, pi_i(s_i)), over the policy's own length only
    branch        a path that chance may take while the policy is followed
    support       G, the states in which one may be after the policy (the paper: its goal set)
    REACH G*      G is a subset of the goals G*: every branch ends in a goal
    COVER G*      G is a superset of G*: every goal is the end of some branch
    feasible      a policy of length 1..T that reaches (or covers) G*; the empty one does not count
    optimal       of the greatest V among the feasible policies

The paper's five theorems:

    1   V(first, then second) = V(first) + gamma^T1 E V(second from t = T1 on), T1 first's length
    2   a dynamic MDP may have no optimal static policy
    3   where nothing must be reached, dynamic policy iteration converges to the optimum
    4   REACH: GDS, which is Dijkstra's algorithm on policies, returns the optimum (`gds_plain`)
    5   COVER: so does GDS there

Section 3 is GDS, Section 6 tests the theorems. The paper also prunes prefixes that look worse than
a recorded one; its records carry no time, and that loses the optimum (`gds_literal`,
`late_shortcut`). Among prefixes of one length it can be made sound. Sections 7-8 are the same, fast:
in REACH backward induction suffices, COVER is NP-hard and takes A*. `gds` is the function to use.
"""

import argparse
import functools
import heapq
import itertools
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# ---- 1. The problem ------------------------------------------------------------------------------


class MDP:
    """A dynamic MDP: P (S,A,S) with P[s,a,s'], r (T,S,A) with r[t,s,a] <= 0, gamma in [0,1].

    Rewards that do not change may be given as r (S,A) and T, for how many steps they are repeated.
    Every P > 0, however small, is an edge. The rows of P may miss the sum 1 by 1e-5, as they do in
    float32; they are divided by their sum. P is not kept, only its edges, padded to the greatest
    number K of successors that a pair (s,a) has:

        next (S,A,K)       the states s' to which the edges lead
        prob (S,A,K)       their probabilities, 0 where padded
        successors[s][a]   the same edges as a list [(s', p), ...]

    `deterministic` and `from_successors` are two other ways to give P. All raise ValueError, naming
    the argument, its value and what is allowed.
    """

    def __init__(self, P, r, gamma, *, T=None):
        P = _numbers("P", P)
        if P.ndim != 3 or P.shape[0] != P.shape[2] or P.size == 0:
            raise ValueError(f"P: expected shape (S,A,S) with S, A >= 1, got {P.shape}")
        if P.min() < 0:
            raise ValueError(f"P: probabilities must be >= 0, got {P.min():g}")
        S, A, _ = P.shape
        K = int(np.count_nonzero(P, axis=-1).max())
        # State by state, edges first: a second array of P's size may not fit into memory.
        next_states = np.empty((S, A, K), int)
        for s in range(S):
            next_states[s] = np.argsort(P[s] == 0, axis=-1, kind="stable")[:, :K]
        self._set(next_states, np.take_along_axis(P, next_states, -1), r, gamma, T)

    @classmethod
    def deterministic(cls, next_state, r, gamma, *, T=None):
        """The MDP in which action a leads from s to next_state[s,a] surely: (S,A) integers, no P."""
        states = np.asarray(next_state)
        if states.ndim != 2 or states.size == 0 or states.dtype.kind not in "iu":
            raise ValueError("next_state: expected integers of shape (S,A), "
                             f"got {states.dtype} {states.shape}")
        if states.min() < 0 or states.max() >= len(states):
            raise ValueError(f"next_state: states are 0..{len(states) - 1}, "
                             f"got {states.min()}..{states.max()}")
        mdp = cls.__new__(cls)
        mdp._set(states[..., None], np.ones((*states.shape, 1)), r, gamma, T)
        return mdp

    @classmethod
    def from_successors(cls, P, r, gamma, *, T=None):
        """The MDP of P[s][a] = [(p, s', ...), ...], which is gymnasium's env.unwrapped.P.

        P and P[s] are lists, or dicts with the keys 0, 1, ... Probabilities of the same s' are added.
        What follows s' (in gymnasium the reward and the end of the episode) is ignored: rewards are
        in r. No (S,A,S) array is made.
        """
        S, A, edges = _read_successors(P)
        K = max(1, *map(len, edges))
        next_states = [[*row, *[0] * (K - len(row))] for row in edges]
        prob = [[*row.values(), *[0.0] * (K - len(row))] for row in edges]
        mdp = cls.__new__(cls)
        mdp._set(np.reshape(next_states, (S, A, K)), np.reshape(prob, (S, A, K)), r, gamma, T)
        return mdp

    def _set(self, next_states, prob, r, gamma, T):
        """Checks the rest and keeps it. next_states, prob: (S,A,K), see the class."""
        self.S, self.A, self.K = prob.shape
        total = prob.sum(-1)  # (S,A)
        s, a = np.unravel_index(abs(total - 1).argmax(), total.shape)
        if abs(total[s, a] - 1) > 1e-5:
            raise ValueError(f"P: every row must sum to 1, P[{s},{a}] sums to {total[s, a]:g}")
        self.r = _rewards(r, self.S, self.A, T)
        is_number = isinstance(gamma, (int, float, np.integer, np.floating))
        if not is_number or isinstance(gamma, bool) or not 0 <= gamma <= 1:
            raise ValueError(f"gamma: expected a number in [0,1], got {gamma!r}")
        self.next, self.prob = next_states, prob / total[..., None]
        self.gamma, self.T = float(gamma), len(self.r)
        self.successors = []
        for states, probs in zip(self.next.tolist(), self.prob.tolist()):  # (A,K) each
            edges = [[(s2, p) for s2, p in zip(*row) if p > 0] for row in zip(states, probs)]
            self.successors.append(edges)


@dataclass(frozen=True)
class Result:
    """What a solver answers.

    value    V of the policy; -inf if infeasible, nan if capped
    length   L, the number of its rules
    policy   the rules, each a dict {state: action} on the states that it can meet (the support)
    pops     entries taken from the heap. `reach_dp`, and so `gds` in REACH with its heuristic, has no
             heap: there it is the number of choices of an action that were read off, and 1 for the end
    status   "optimal"; "infeasible": no policy is feasible; "capped": max_pops came first, no answer.
             An unsound `gds_literal` only gives its own opinion
    fired    how many prefixes were pruned (`gds_literal`)
    reason   why there is no policy, in words (`gds`, `reach_dp`, `static_best`); "" if there is one
    """

    value: float
    length: int
    policy: list
    pops: int
    status: str
    fired: int = 0
    reason: str = ""


def _failed(status, pops, fired=0, reason=""):
    value = -np.inf if status == "infeasible" else np.nan
    return Result(value, 0, [], pops, status, fired, reason)


# ---- 2. Following a policy -----------------------------------------------------------------------


def feasible(mode, support, goals):
    """REACH: the support is a subset of the goals. COVER: a superset."""
    return support <= goals if mode == "reach" else support >= goals


def step(mdp, dist, rule, t):
    """A rule at time t, applied to dist {state: probability}: (the next dist, the expected reward)."""
    after, reward = {}, 0.0
    for s, p in dist.items():
        reward += p * mdp.r.item(t, s, rule[s])
        # s2 becomes a key even if p * q underflows to 0: a branch may end there.
        for s2, q in mdp.successors[s][rule[s]]:
            after[s2] = after.get(s2, 0.0) + p * q
    return after, reward


def follow(mdp, start, policy, clock=0):
    """Runs a policy: (its distributions {state: probability} at times 0..L, its value V).

    The keys are the exact supports. A rule is a dict or an array over states, with an action for every
    state that it can meet, else ValueError. clock: the t at which the first reward is read.
    """
    if clock + len(policy) > mdp.T:
        raise ValueError(f"policy: {len(policy)} rules from time {clock} overrun T = {mdp.T}")
    dists, value = [{_index("start", start, mdp.S): 1.0}], 0.0
    for i, rule in enumerate(policy):
        name, met = f"policy: rule {i}", [*dists[-1]]
        try:
            rule = {s: _index(f"{name} in state {s}", rule[s], mdp.A, "an action") for s in met}
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{name} must have an action for all states it meets, {met}") from None
        after, reward = step(mdp, dists[-1], rule, clock + i)
        value += mdp.gamma**i * reward
        dists.append(after)
    return dists, value


def policy_value(mdp, start, policy, clock=0):
    """V = sum_i gamma^i E r_{clock+i}(s_i, pi_i(s_i)); 0 for the empty policy."""
    return follow(mdp, start, policy, clock)[1]


def concatenate(first, second):
    """The policy that follows first, then second: see Theorem 1 and `check_theorem_1`."""
    return [*first, *second]


# ---- 3. Algorithm 1: plain, with the printed pruning, repaired -----------------------------------


def rules_on(mdp, support):
    """The A^n rules {state: action} on a support of n states. Elsewhere a rule changes nothing."""
    for actions in itertools.product(range(mdp.A), repeat=len(support)):
        yield dict(zip(support, actions))


def gds_plain(mdp, start, goals, mode="reach"):
    """General Dijkstra Search without pruning: Algorithm 1 (REACH), 2 (COVER). For small problems.

    A heap holds prefixes, the beginnings of policies. Pop the prefix of greatest value. If it is
    feasible, return it. If it has length T, drop it. Otherwise append every rule, and push the
    prefixes that are one step longer.

    Theorems 4 (REACH) and 5 (COVER): the first feasible prefix that is popped is optimal. Proof: the
    policies popped before were not feasible. Every other policy is in the heap, or extends a prefix
    that is. Rewards are <= 0, so it is worth no more than that prefix, and the prefix is worth no more
    than the popped one, which was the greatest.
    """
    start, goals = _check(mdp, start, goals, mode)
    pops, tick = 0, itertools.count()
    # Entries: (-V, tick, distribution, rules). Of equal values, the older one is popped first.
    heap = [(0.0, next(tick), {start: 1.0}, [])]
    while heap:
        cost, _, dist, prefix = heapq.heappop(heap)
        pops += 1
        v, t = 0.0 - cost, len(prefix)  # -cost might be -0.0, printed as -0
        if t >= 1 and feasible(mode, dist.keys(), goals):
            return Result(v, t, prefix, pops, "optimal")
        if t == mdp.T:
            continue
        for rule in rules_on(mdp, dist):
            after, reward = step(mdp, dist, rule, t)
            longer = v + mdp.gamma**t * reward
            heapq.heappush(heap, (-longer, next(tick), after, [*prefix, rule]))
    return _failed("infeasible", pops)


def printed_eps(mdp):
    """[eps_t for t < T] as printed: r_max/(1-gamma) sum_{i>=t} gamma^i = r_max gamma^t/(1-gamma)^2."""
    r_max = -mdp.r.min()
    if r_max == 0 or mdp.gamma == 1:
        return [np.inf if r_max > 0 else 0.0] * mdp.T
    return [r_max * mdp.gamma**t / (1 - mdp.gamma) ** 2 for t in range(mdp.T)]


def repaired_eps(mdp):
    """[eps_t for t < T] repaired: r_max sum_{t<=i<T} gamma^i, the most that the rest can cost."""
    r_max = -mdp.r.min()
    return [r_max * sum(mdp.gamma**i for i in range(t, mdp.T)) for t in range(mdp.T)]


def gds_literal(mdp, start, goals, mode="reach", reading="parent", max_pops=10**6,
                trace=None, why=None):
    """`gds_plain` with the pruning as printed, which is unsound, or repaired.

    A popped prefix of length t, support G and value v that is not feasible is pruned, that is not
    extended, where there is a record (G', v') with

        G' a subset of G (COVER: a superset)   and   v <= v' - eps_t.

    The idea: the recorded prefix can be completed in the same way, and eps_t is the most that a
    completion can cost from t on, so the pruned one cannot become better.

    As printed, eps_t is `printed_eps`, and whenever a prefix is extended, each child whose support has
    not been popped leaves a record of its value v' and its support G' (reading "child"; by the letter
    of the paper G' is the parent's support: reading "parent"). Unsound, since a record holds at any
    time: one that comes too late for the goal may prune the only prefix that is in time
    (`late_shortcut`); to complete one that comes early may cost more than eps_t, in steps that have
    since become free.

    Repaired, ours, sound (reading "repaired"):
    - a record carries its t and prunes only prefixes of this length;
    - a prefix leaves its own (t, G, v), when it is extended: so it never meets its own record;
    - eps_t is `repaired_eps`. The printed one is never smaller, so safe, too, but prunes less.
    Proof: suppose that the pruned prefix begins an optimal policy. Append the rest of its rules to the
    recorded prefix (in COVER, extend them arbitrarily to the extra states). In REACH the rest starts
    from fewer states, so it ends in no others; in COVER from more, so it still ends in all the goals.
    The new policy is feasible, too, and worth >= v' - eps_t >= v >= the optimum. Its prefix of length
    t+1 was pushed when the recorded one was extended. If a longer prefix of it is pruned in turn,
    repeat the argument: fewer steps are left. So the heap always holds a prefix of some optimal policy,
    and the proof of `gds_plain` applies.

    Where eps is 0 (gamma = 0, or no cost at all) the printed pruning fails already since a prefix may
    be pruned by the record of its own birth ("child"), or by one of its parent's support ("parent").

    reading "none": nothing is pruned. max_pops also caps the prefixes that wait in the heap.
    trace: a list, to which (t, G, v, what) of every pop is appended; what is "expand", "return",
    "drop, t = T" or "PRUNE". why: a list, to which the (G', v', eps_t) of every "PRUNE" is appended.
    """
    start, goals = _check(mdp, start, goals, mode, max_pops, trace)
    if reading not in ("parent", "child", "repaired", "none"):
        raise ValueError(f"reading: expected one of parent, child, repaired, none, got {reading!r}")
    eps = repaired_eps(mdp) if reading == "repaired" else printed_eps(mdp)
    records = {}  # (t, support G') -> the greatest v'; the printed records have t = None
    popped = set()  # supports

    def record(t, G, v):
        records[t, G] = max(v, records.get((t, G), -np.inf))

    def record_that_prunes(t, G, v):
        for (t2, G2), v2 in records.items():
            comparable = G2 <= G if mode == "reach" else G2 >= G
            if t2 in (None, t) and comparable and v <= v2 - eps[t]:
                return G2, v2, eps[t]
        return None

    pops, pruned, tick = 0, 0, itertools.count()
    heap = [(0.0, next(tick), {start: 1.0}, [])]  # as in gds_plain
    while heap:
        if pops == max_pops:
            return _failed("capped", pops, pruned)
        cost, _, dist, prefix = heapq.heappop(heap)
        pops += 1
        v, t, G = 0.0 - cost, len(prefix), frozenset(dist)
        popped.add(G)
        found = None
        if t >= 1 and feasible(mode, G, goals):
            what = "return"
        elif t == mdp.T:
            what = "drop, t = T"
        else:
            found = record_that_prunes(t, G, v)
            what = "PRUNE" if found else "expand"
        if trace is not None:
            trace.append((t, sorted(G), v, what))
        pruned += what == "PRUNE"
        if found and why is not None:
            why.append(found)
        if what == "return":
            return Result(v, t, prefix, pops, "optimal", pruned)
        if what != "expand":
            continue
        if len(heap) + mdp.A ** len(G) > max_pops:
            return _failed("capped", pops, pruned)
        if reading == "repaired":
            record(t, G, v)
        for rule in rules_on(mdp, dist):
            after, reward = step(mdp, dist, rule, t)
            longer, G2 = v + mdp.gamma**t * reward, frozenset(after)
            if reading in ("parent", "child") and G2 not in popped:
                record(None, G if reading == "parent" else G2, longer)
            heapq.heappush(heap, (-longer, next(tick), after, [*prefix, rule]))
    return _failed("infeasible", pops, pruned)


def least_firing_depth(gamma):
    """t*, the least t >= 1 with gamma^t <= (1-gamma)/(2-gamma): if r_max > 0, nothing shorter is pruned.

    Proof: pruning needs v <= v' - eps_t, where v' <= 0, v >= -r_max (1-gamma^t)/(1-gamma) and
    eps_t = r_max gamma^t/(1-gamma)^2. Hence the printed algorithm is right for T <= t*.
    """
    if gamma == 1:
        return np.inf
    small = (1 - gamma) / (2 - gamma)
    t = max(1, int(np.log(small) / np.log(gamma)) - 1) if gamma > 0 else 1  # -1: logs are rounded
    while gamma**t > small:
        t += 1
    return t


# ---- 4. The counterexample -----------------------------------------------------------------------


def late_shortcut(gamma, T):
    """The counterexample to the printed pruning for 0 < gamma < 1: (mdp, start, goals).

    A corridor 0 -> 1 -> ... -> T, just as long as the horizon; in 0, action 0 waits. Leaving at once
    costs 1 a step for t* steps (`least_firing_depth`); leaving later is free, but too late. The late
    prefix, popped first, comes to state t* a step later with value 0, and its record prunes the only
    prefix that is in time. T must be >= t*+1 (child reading) or t*+2 (parent reading).
    """
    next_state = [[0, 1], *([min(s + 1, T)] * 2 for s in range(1, T + 1))]
    r = np.zeros((T, T + 1, 2))
    for t in range(least_firing_depth(gamma)):
        r[t, t] = -1
    r[0, 0, 0] = 0
    return MDP.deterministic(next_state, r, gamma), 0, {T}


def print_counterexample(T, reading):
    """The late_shortcut at gamma = .25, where t* = 1, pop by pop."""
    mdp, start, goals = late_shortcut(0.25, T)
    edges = "; ".join(f"{s} -> {mdp.next[s, 0, 0]}" for s in range(1, mdp.S))
    print(f"\nCounterexample to the printed pruning, {reading} reading: gamma = {mdp.gamma}, T = {T}, "
          f"start 0, goal {T}.\n0 -> 0 (wait) or 1 (go); {edges}. All is free, except that going at "
          "t = 0 costs 1.\nEvery pop: a prefix of length t, support G and value v.")
    trace, why = [], []
    printed = gds_literal(mdp, start, goals, reading=reading, trace=trace, why=why)
    records = iter(why)
    for t, G, v, what in trace:
        if what == "PRUNE":
            G2, v2, eps = next(records)
            what = f"PRUNE: {v:g} <= {v2:g} - {eps:.3f}, by {set(G2)} with value {v2:g}"
        print(f"  t={t} G={set(G)} v={v:g}: {what}")
    repaired = gds_literal(mdp, start, goals, reading="repaired")
    print(f"  answer: {printed.status}. The optimum is {brute_force(mdp, start, goals).value:g}.\n"
          "  The record is of {1} at t = 2, too late for the goal; but records carry no time.\n"
          f"  Without pruning: {gds_plain(mdp, start, goals).value:g}. Repaired: {repaired.value:g}.")


# ---- 5. What the claims are compared with --------------------------------------------------------


def brute_force(mdp, start, goals, mode="reach", history=False, limit=5 * 10**5):
    """The optimum by trying every policy on its support, if no length has more than limit of them.

    history=True: a rule may depend on the whole path, so branches that merge may act differently.
    """
    start, goals = _check(mdp, start, goals, mode)
    best = _failed("infeasible", 0)
    every = [({(start,): 1.0}, 0.0, [])]  # every policy of length t: its {path: p}, value, rules
    for t in range(mdp.T):
        if sum(max(len(dist), mdp.A ** len(dist)) for dist, _, _ in every) > limit:
            raise ValueError(f"brute_force: more than {limit} policies or paths of length {t + 1}, "
                             "use gds")
        longer = []
        for dist, value, policy in every:
            met = [path if history else path[-1] for path in dist]
            for actions in itertools.product(range(mdp.A), repeat=len(dist)):
                after, v = {}, value
                for (path, p), a in zip(dist.items(), actions):
                    v += mdp.gamma**t * p * mdp.r.item(t, path[-1], a)
                    for s2, q in mdp.successors[path[-1]][a]:
                        path2 = (*path, s2) if history else (s2,)
                        after[path2] = after.get(path2, 0.0) + p * q
                rules = [*policy, dict(zip(met, actions))]
                if t + 1 < mdp.T:
                    longer.append((after, v, rules))
                if v > best.value and feasible(mode, {path[-1] for path in after}, goals):
                    best = Result(v, t + 1, rules, 0, "optimal")
        every = longer
    return best


def policy_iteration(mdp):
    """The best T rules when nothing must be reached: evaluate all, improve all, until none changes.

    Returns (policy (T,S) actions, values (T+1,S), rounds). Theorem 3: this converges to the optimum.
    It takes at most T+1 rounds, since after n of them the last n rules are optimal.
    """
    policy, everywhere = np.zeros((mdp.T, mdp.S), int), np.arange(mdp.S)
    for rounds in itertools.count(1):
        V, better = np.zeros((mdp.T + 1, mdp.S)), policy.copy()
        for t in reversed(range(mdp.T)):
            Q = mdp.r[t] + mdp.gamma * (mdp.prob * V[t + 1][mdp.next]).sum(-1)  # (S,A)
            V[t] = Q[everywhere, policy[t]]
            gain = Q.max(-1) > V[t] + 1e-12  # a tie, or a rounding error, is no reason to change
            better[t] = np.where(gain, Q.argmax(-1), policy[t])
        if (better == policy).all():
            return policy, V, rounds
        policy = better


# ---- 6. The table: its problems (mdp, start, goals), then one check for each claim ---------------


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
    """A problem that brute_force can solve: 2-4 states, 2 actions, T = 2-4, ties, p = 1e-15.

    Half are corridors (successors s and s+1, from 0 to the last state) with few costs, where being late
    matters; the others have any successors, start and goals (no goal, or all states, too).
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


def random_cases(seed, n):
    """n pairs (problem, its optimum by brute force): all gammas, deterministic or not, both modes."""
    rng, cases = np.random.default_rng(seed), []
    for i in range(n):
        gamma, mode = (0, 0.25, 0.5, 0.9, 0.99, 1)[i % 6], ("reach", "cover")[i // 12 % 2]
        problem = (*random_problem(rng, gamma, deterministic=i // 6 % 2 == 0), mode)
        cases.append((problem, brute_force(*problem)))
    return cases


def same(a, b):
    """Two results agree: same status, and values equal to 1e-9."""
    return a.status == b.status and (a.value == b.value or abs(a.value - b.value) < 1e-9)


class Claim(NamedTuple):
    """A row of the table.

    wrong: how often the claim was contradicted; it holds if never. expected: do we expect it to hold?
    control: not a claim, but a wrong variant of one, on which the check has to find mistakes.
    """

    text: str
    evidence: str
    wrong: int
    expected: bool = True
    control: bool = False


def check_theorem_1(cases, restarts):
    """Random policies, cut after T1 steps. restarts: the second part reads r_0, r_1.. and not r_T1.."""
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
    if restarts:
        return Claim("for Theorem 1: if second's clock restarts at 0, the equation must break",
                     f"it fails on {wrong} of {len(cases) + 1} pairs", wrong,
                     expected=False, control=True)
    return Claim("Theorem 1: V(first+second) = V(first) + gamma^T1 E[V(second)], if second's clock "
                 "goes on from T1", f"{wrong} wrong of {len(cases) + 1} pairs", wrong)


def check_theorem_2():
    best, static = gds(*toll().problem), static_best(*toll().problem)
    return Claim("Theorem 2: a dynamic MDP may have no optimal static policy",
                 f"in the toll world waiting is worth {best.value:.3f}, the best static policy "
                 f"{static.value:.3f}",
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
        right = same(gds_plain(*problem), optimum)
        for heuristic in (False, True):
            found = gds(*problem, heuristic)
            right &= same(found, optimum)
            if found.status == "optimal":
                dists, value = follow(mdp, start, found.policy)
                right &= abs(value - found.value) < 1e-9 and feasible(mode, set(dists[-1]), goals)
        wrong += not right
    return Claim(f"Theorem {theorem}: GDS without the printed pruning returns the optimum, "
                 f"{mode.upper()}",
                 f"{wrong} wrong of {len(cases)} against brute force: `gds_plain`, and `gds` with and "
                 "without its bound; the policies were replayed", wrong)


def check_printed(cases, reading):
    # Where eps is 0, a tie is enough to prune, see `gds_literal`: left out.
    fair = [case for case in cases if case[0][0].r.any() and case[0][0].gamma > 0]
    wrong, built = Counter(), 0
    for problem, optimum in fair:
        wrong[problem[0].gamma] += not same(gds_literal(*problem, reading), optimum)
    for gamma in (0.25, 0.5, 0.75):
        problem = late_shortcut(gamma, least_firing_depth(gamma) + 2)
        built += not same(gds_literal(*problem, reading=reading), gds(*problem))
    counts = ", ".join(f"{count} at {gamma:g}" for gamma, count in sorted(wrong.items()))
    return Claim(f"Theorems 4 and 5 with the printed pruning, {reading} reading",
                 f"wrong answers by gamma, of {len(fair)} random problems: {counts};\n       (eps is 0 "
                 f"in {len(cases) - len(fair)} others, as gamma = 0 or nothing costs); and on {built} of 3 "
                 "late\n       shortcuts (gamma .25, .5, .75; no chance, one goal: REACH is COVER there)",
                 wrong.total() + built, expected=False)


def check_firing_depth(cases):
    early = wrong = 0
    for problem, optimum in cases:
        mdp, depth = problem[0], least_firing_depth(problem[0].gamma)
        if not mdp.r.any():  # eps is 0, as above
            continue
        for reading in ("parent", "child"):
            trace = []
            result = gds_literal(*problem, reading, trace=trace)
            early += any(what == "PRUNE" and t < depth for t, _, _, what in trace)
            wrong += mdp.T <= depth and not same(result, optimum)
    gammas = (0.25, 0.5, 0.75, 0.9, 0.99)
    depths = ", ".join(f"{least_firing_depth(gamma)} at {gamma}" for gamma in gammas)
    return Claim("The printed pruning prunes no prefix shorter than t*, gamma^t* <= "
                 "(1-gamma)/(2-gamma): right for T <= t*",
                 f"{early} pruned earlier, {wrong} wrong with T <= t*; t* is {depths}", early + wrong)


def check_repaired(cases):
    wrong = pruned = 0
    for problem, optimum in cases:
        repaired = gds_literal(*problem, "repaired")
        pruned += repaired.fired
        wrong += not same(repaired, optimum)
    return Claim("Repaired pruning: records per (t, support), eps = r_max sum_{t<=i<T} gamma^i",
                 f"{wrong} wrong of {len(cases)}; {pruned:,} prefixes were pruned", wrong)


def check_shift():
    """0 -> goal 2 for +1, or 0 -> 1 -> 2 for +.9 each, gamma .9; then the same less 1, the greatest r."""
    r = np.full((2, 3, 2), -1.0)
    r[0, 0], r[1, 1] = [0.0, -0.1], -0.1
    mdp = MDP.deterministic([[2, 1], [2, 2], [2, 2]], r, 0.9)
    shifted = gds(mdp, 0, {2})
    one, two = policy_value(mdp, 0, [[0] * 3]) + 1, policy_value(mdp, 0, [[1] * 3] * 2) + 1 + mdp.gamma
    return Claim("Positive rewards: subtracting r_max is without loss of generality",
                 f"raw: {one:g} in 1 step, {two:g} in 2; shifted by -1: {shifted.length} step is best",
                 shifted.length != 1 + (two > one), expected=False)


def check_empty_policy():
    dear = gds(MDP.deterministic([[0]], [[[-1.0]]], 1), 0, {0})
    return Claim("Counting the empty policy as a solution changes no answer",
                 f"start in the goal, each step costs 1: one step is worth {dear.value:g}, none 0",
                 dear.value < 0, expected=False)


def check_history(cases, mode):
    # Without chance there is one path only, and nothing to remember.
    cases = [(problem, optimum) for problem, optimum in cases
             if problem[-1] == mode and problem[0].K == 2 and problem[0].T <= 3]
    if mode == "cover":
        problem = (*merging(), mode)
        cases.append((problem, brute_force(*problem)))
    helps = sum(not same(brute_force(*problem, history=True), optimum) for problem, optimum in cases)
    return Claim(f"{mode.upper()} needs no history-dependent policies",
                 f"history helps in {helps} of {len(cases)} problems with chance", helps,
                 expected=mode == "reach")


def check_sat(formulas):
    """A clause on all 3 variables excludes one assignment: satisfiable unless all 8 clauses occur."""
    rng, every = np.random.default_rng(0), list(itertools.product([1, -1], [2, -2], [3, -3]))
    wrong = satisfiable = 0
    for _ in range(formulas):
        clauses = [every[i] for i in rng.integers(8, size=20)]
        truth = len(set(clauses)) < 8
        satisfiable += truth
        wrong += (gds(*sat_gadget(clauses, 3), "cover").status == "optimal") != truth
    return Claim("COVER is NP-hard with T = 2, A = 2, zero rewards: a 3-SAT formula and its MDP agree",
                 f"{wrong} wrong of {formulas} formulas ({satisfiable} satisfiable)", wrong)


def print_table(seed, n):
    """Puts every claim to the test on n random problems. True if each comes out as it is marked."""
    cases = random_cases(seed, n)
    claims = [
        check_theorem_1(cases, restarts=False), check_theorem_1(cases, restarts=True),
        check_theorem_2(), check_theorem_3(cases),
        check_theorems_4_and_5(cases, 4, "reach"), check_theorems_4_and_5(cases, 5, "cover"),
        check_printed(cases, "parent"), check_printed(cases, "child"),
        check_firing_depth(cases), check_repaired(cases),
        check_shift(), check_empty_policy(),
        check_history(cases, "reach"), check_history(cases, "cover"),
        check_sat(formulas=max(10, n // 30)),
    ]
    surprises = []
    for claim in claims:
        verdict = "fails" if claim.wrong else "holds"
        if claim.expected != (verdict == "holds"):
            surprises.append(claim.text)
        if claim.control:
            verdict = "control"
        print(f"\n{verdict}  {claim.text}\n       {claim.evidence}")
    for text in surprises:
        print(f"\nUNEXPECTED: {text}")
    print(f"\n{len(claims) - len(surprises)} of {len(claims)} verdicts as expected (seed {seed}, n {n})")
    return not surprises


# ---- 7. The same, fast: bounds by backward induction ---------------------------------------------


def backward(mdp, stop):
    """Best values if a branch may end where stop (L+1,S) says so: V (L+1,S) and regret (L,S,A).

    V_t(s) = max(0 if stop[t,s], max_a Q_t(s,a)),  Q_t(s,a) = r_t(s,a) + gamma E V_{t+1}(s'),
    regret_t(s,a) = V_t(s) - Q_t(s,a): how much worse a is than the best option (stopping may be one).
    Where no end is possible V = -inf; an action with one such successor, however unlikely, has
    Q = -inf and regret inf. O(L S A K) time.
    A policy whose branches end where they may is worth V_0(start) - E sum_i gamma^i regret_i(s_i,a_i),
    the best from the start minus its regrets: add up r_i = V_i - gamma E V_{i+1} - regret_i.
    """
    edge = mdp.prob > 0  # (S,A,K)
    V = np.where(stop, 0.0, -np.inf)
    regret = np.full((len(stop) - 1, mdp.S, mdp.A), np.inf)
    for t in reversed(range(len(regret))):
        ahead = np.where(edge, V[t + 1][mdp.next], 0)  # (S,A,K)
        Q = mdp.r[t] + _scale(mdp.gamma, (mdp.prob * ahead).sum(-1))  # (S,A)
        V[t] = np.maximum(V[t], Q.max(-1))
        np.subtract(V[t][:, None], Q, out=regret[t], where=Q > -np.inf)
    return V, regret


def _scale(weight, x):
    """weight * x, where infinity, which means impossible, stays infinite even if the weight is 0."""
    finite = np.isfinite(x)
    return np.where(finite, weight * np.where(finite, x, 0), x)


class Relaxation(NamedTuple):
    """The problem made easier: each branch may end for itself, at any t in lengths. See `relax`."""

    lengths: range
    root: float  # V_0(start), the best possible from the start
    regret: np.ndarray  # (L,S,A), L the greatest length; inf where no end is possible
    miss: np.ndarray | None = None  # (L+1,S,N) for N goals, only in COVER


def split_lengths(mdp):
    """The lengths 1..T as ranges; backward induction runs once for each range.

    All branches must end at one t, so with chance each length is a range of its own. A deterministic
    P has one branch only: one range does.
    """
    if mdp.K == 1:
        return [range(1, mdp.T + 1)]
    return [range(L, L + 1) for L in range(1, mdp.T + 1)]


def relax(mdp, start, goals, mode, lengths):
    """Backward induction for the easier problem, in which every branch may end for itself.

    REACH: a branch may end in any goal. That is the problem itself, as each branch must do only that;
    and branches that meet have the same best action, so no history helps. The bound is exact.
    COVER: a branch may end anywhere, and none must end in a goal. So `upper_bound` takes off what this
    forgets, miss_t(s,g): what it costs at least, from s at t, that some branch ends in g. That is the
    least sum of gamma^i regret_i on a path to g, each weighted by the probability of the path so far
    (the other branches may do their best); inf if there is no path.
    """
    L = lengths[-1]
    stop = np.zeros((L + 1, mdp.S), bool)
    stop[lengths[0]:, list(goals) if mode == "reach" else slice(None)] = True
    V, regret = backward(mdp, stop)
    if mode == "reach" or not goals:
        return Relaxation(lengths, V.item(0, start), regret)
    edge = (mdp.prob > 0)[..., None]  # (S,A,K,1)
    miss = np.full((L + 1, mdp.S, len(goals)), np.inf)
    miss[lengths[0]:, sorted(goals), range(len(goals))] = 0
    for t in reversed(range(L)):
        onward = np.where(edge, miss[t + 1][mdp.next], 0)  # (S,A,K,N)
        onward = np.where(edge, mdp.prob[..., None] * onward, np.inf).min(2)  # (S,A,N)
        going = _scale(mdp.gamma**t, regret[t])[..., None] + onward  # (S,A,N)
        miss[t] = np.minimum(miss[t], going.min(1))
    return Relaxation(lengths, V.item(0, start), regret, miss)


def reach_dp(mdp, start, goals):
    """The optimal REACH policy by backward induction for each length, without search.

    O(T^2 S A K) time, deterministic O(T S A). O(S A (T + K)) memory: only the best length is kept.
    """
    start, goals = _check(mdp, start, goals)
    every = (relax(mdp, start, goals, "reach", lengths) for lengths in split_lengths(mdp))
    best = max(every, key=lambda relaxation: relaxation.root)
    if best.root == -np.inf:
        return _failed("infeasible", 0, reason=why_infeasible(mdp, start, goals, "reach"))
    dist, policy = {start: 1.0}, []
    while len(policy) not in best.lengths or not feasible("reach", dist.keys(), goals):
        t = len(policy)
        rule = {s: int(best.regret[t, s].argmin()) for s in dist}
        dist, _ = step(mdp, dist, rule, t)
        policy.append(rule)
    choices = sum(len(rule) for rule in policy)
    return Result(best.root, len(policy), policy, choices + 1, "optimal")


# ---- 8. The same, fast: the search ---------------------------------------------------------------


def gds(mdp, start, goals, mode="reach", heuristic=True, max_pops=10**6, trace=None):
    """The optimal policy from state start that reaches or covers the set goals, as a `Result`.

    The answer is `gds_plain`'s. What makes it fast, in place of the printed, unsound pruning:
    - the n states of a support choose one after another, so a pop appends at most A entries, not A^n
      rules. Rewards add up over the states and never raise a prefix, and as the order of the states
      is fixed, each rule is built once;
    - of prefixes with the same t and distribution, so with the same future, only the best is kept.
      With a deterministic P this is Dijkstra's algorithm on (t, state): at most T*S+1 pops;
    - heuristic=True: A*. The order is that of `upper_bound`, not of the value. In REACH that bound is
      exact, so nothing is left to search: `reach_dp` reads the policy off. max_pops, which has no
      pops to count then, is held against the choices that make up the policy.

    trace: a list, to which (t, states, v, what) of every pop is appended: states are those of the
    support without an action at t, v the value so far. what is "expand": the first state tries every
    action; "expand, go on": so, too, but others have chosen already; "return"; "drop, t = T"; or
    "drop, t = L": with chance and the heuristic, each length L has its own tree. What `reach_dp` does
    is listed step by step, as "read off".

    Distributions count as equal if the supports are and probabilities agree to 12 decimals. Taking
    one for another costs at most 1e-12 T S r_max, and may happen at each of T S choices in a row, so V
    is exact up to 1e-12 (T S)^2 r_max. COVER is NP-hard (`sat_gadget`): expect "capped" on large
    stochastic problems. Memory: REACH O(S A (T + K)), COVER of N goals O(S (TA + TN + AKN)) and heap.
    """
    start, goals = _check(mdp, start, goals, mode, max_pops, trace)
    if mode == "cover" or not heuristic:
        return _search(mdp, start, goals, mode, heuristic, max_pops, trace)
    best = reach_dp(mdp, start, goals)
    if best.pops > max_pops:
        reason = f"the policy takes {best.pops} choices, counting its end, but max_pops = {max_pops}"
        return _failed("capped", max_pops, reason=reason)
    if trace is not None and best.status == "optimal":
        for t, dist in enumerate(follow(mdp, start, best.policy)[0]):
            so_far = policy_value(mdp, start, best.policy[:t])
            trace.append((t, sorted(dist), so_far, "read off" if t < best.length else "return"))
    return best


def static_best(mdp, start, goals, mode="reach", max_pops=10**6):
    """The best static policy, by the same search. By Theorem 2 it may be worth less than gds's."""
    start, goals = _check(mdp, start, goals, mode, max_pops)
    return _search(mdp, start, goals, mode, True, max_pops, None, static=True)


class Entry(NamedTuple):
    """What waits in the heap: a prefix of t rules, and the part of the next rule that is chosen."""

    value: float
    relaxed_value: float  # of its best completion if branches may end for themselves: root - regrets
    t: int
    todo: tuple  # ((state, probability), ...) at time t: the support's states without an action
    done: tuple  # the same at time t+1: where the others have moved
    choices: tuple | None  # linked list, newest first: (t, state, action, older choices)
    future: tuple | None  # what it can still do: (t, todo, done) with rounded probabilities


def upper_bound(relaxation, entry):
    """No completion of the entry is worth more. (If heuristic=False, this is just the entry's value.)

    In COVER some branch must go to goal g; from s, of probability p, it loses p miss_t(s,g). Any state
    will do, so the cheapest counts; every goal must be covered, so the dearest goal counts.
    """
    if relaxation.miss is None:
        return entry.relaxed_value
    times = [entry.t] * len(entry.todo) + [entry.t + 1] * len(entry.done)
    states, probs = zip(*entry.todo, *entry.done)
    loss = np.array(probs)[:, None] * relaxation.miss[times, states]  # (states,N)
    return entry.relaxed_value - loss.min(0).max().item()


def _search(mdp, start, goals, mode, heuristic, max_pops, trace, static=False):
    """Best-first search. static: a state takes the same action whenever it is met."""

    @functools.lru_cache(maxsize=8)  # all T of them would take O(T^2 S A) memory
    def relaxation_for(lengths):
        if heuristic:
            return relax(mdp, start, goals, mode, lengths)
        return Relaxation(lengths, 0.0, -mdp.r)  # root - regrets is then the value itself

    tick = itertools.count()  # ties go to the longer prefix, then to the older one
    heap = []  # (-upper bound, -t, tick, lengths, Entry)
    best_value = {}  # (last length, future) -> the best value of a prefix with that future

    def push(entry, lengths):
        bound = upper_bound(relaxation_for(lengths), entry)
        if bound > -np.inf:
            heapq.heappush(heap, (-bound, -entry.t, next(tick), lengths, entry))

    # Each range of lengths has its own tree, which grows from the empty prefix; all share the heap.
    for lengths in split_lengths(mdp) if heuristic else [range(1, mdp.T + 1)]:
        push(Entry(0.0, relaxation_for(lengths).root, 0, ((start, 1.0),), (), None, None), lengths)
    pops = 0
    while heap:
        _, _, _, lengths, entry = heapq.heappop(heap)
        if entry.future and entry.value < best_value[lengths[-1], entry.future]:
            continue  # a better prefix with the same future came later
        if pops == max_pops:
            return _failed("capped", pops, reason=f"max_pops = {max_pops} came first")
        pops += 1
        states = {s for s, _ in entry.todo}
        if entry.done:
            what = "expand, go on"
        elif entry.t in lengths and feasible(mode, states, goals):
            what = "return"
        elif entry.t == lengths[-1]:
            what = "drop, t = T" if entry.t == mdp.T else "drop, t = L"
        else:
            what = "expand"
        if trace is not None:
            trace.append((entry.t, sorted(states), entry.value, what))
        if what == "return":
            policy = [{} for _ in range(entry.t)]
            for t, s, a in _choices(entry):
                policy[t][s] = a
            return Result(entry.value, entry.t, policy, pops, "optimal")
        if what.startswith("drop"):
            continue
        for child in _children(mdp, relaxation_for(lengths), entry, static):
            key = lengths[-1], child.future
            if child.value > best_value.get(key, -np.inf):
                best_value[key] = child.value
                push(child, lengths)
    kind = "static policy" if static else "policy"
    return _failed("infeasible", pops, reason=why_infeasible(mdp, start, goals, mode, kind))


def _children(mdp, relaxation, entry, static):
    """The entries in which the first state that has no action has chosen one."""
    t, (s, p), rest = entry.t, entry.todo[0], entry.todo[1:]
    weight = mdp.gamma**t * p
    fixed = {s2: a for _, s2, a in _choices(entry)} if static else {}
    waiting = tuple([(s2, round(q * 1e12)) for s2, q in rest])
    for a in [fixed[s]] if s in fixed else range(mdp.A):
        if relaxation.regret.item(t, s, a) == np.inf:
            continue
        moved = dict(entry.done)
        for s2, q in mdp.successors[s][a]:
            moved[s2] = moved.get(s2, 0.0) + (p * q or 5e-324)  # an underflow is still an end
        moved = tuple(sorted(moved.items()))
        moving = tuple([(s2, round(q * 1e12)) for s2, q in moved])
        future = (t, waiting, moving, frozenset({**fixed, s: a}.items()) if static else None)
        value = entry.value + weight * mdp.r.item(t, s, a)
        relaxed_value = entry.relaxed_value - weight * relaxation.regret.item(t, s, a)
        choices = (t, s, a, entry.choices)
        where = (t, rest, moved) if rest else (t + 1, moved, ())  # t, todo, done
        yield Entry(value, relaxed_value, *where, choices, future)


def _choices(entry):
    """The choices (t, state, action) of an entry, newest first."""
    choices = entry.choices
    while choices is not None:
        t, s, a, choices = choices
        yield t, s, a


def why_infeasible(mdp, start, goals, mode, kind="policy"):
    """A sentence for `Result.reason`. kind: what there is none of, "policy" or "static policy"."""
    if not goals:
        return "goals is empty, and no policy ends in a goal"
    # The least time t >= 1 at which chance and actions can lead to a state, if they can.
    first, frontier = {}, {start}
    for t in itertools.count(1):
        nearby = {s2 for s in frontier for edges in mdp.successors[s] for s2, _ in edges}
        frontier = nearby - first.keys()
        if not frontier:
            break
        first.update(dict.fromkeys(frontier, t))
    # REACH needs one of the goals at least, so the nearest; COVER needs all, so the farthest.
    choose = min if mode == "reach" else max
    goal = choose(sorted(goals), key=lambda g: first.get(g, np.inf))
    if goal not in first:
        return f"no path leads from state {start} to {'a goal' if mode == 'reach' else f'goal {goal}'}"
    if first[goal] > mdp.T:
        return f"the shortest path to goal {goal} takes {first[goal]} steps, but T = {mdp.T}"
    if mode == "reach":
        return (f"luck may lead to a goal, but no {kind} is sure to end in one, with all its branches "
                f"in goals at the same time t <= {mdp.T}")
    return (f"each goal can be reached, but no {kind} has a branch in each of them at the same time "
            f"t <= {mdp.T}")


# ---- 9. Six gridworlds in which rewards change with time -----------------------------------------

MOVES = {"stay": (0, 0), "north": (-1, 0), "east": (0, 1), "south": (1, 0), "west": (0, -1)}
STEP, STAY = 0.10, 0.05  # what a move and a wait cost, besides the costs that come and go


class World(NamedTuple):
    """A gridworld: see `grid`."""

    story: str
    rows: list  # the map, a list of strings
    cells: list  # (row, column) of each state
    extra: np.ndarray  # (T+1,S), what landing in a state at time t costs
    problem: tuple  # (mdp, start, goals, mode)


def grid(story, rows, T, extra, gamma=0.97, land=None, mode="reach"):
    """A World from a map: a list of strings, or one string of lines (blanks around them are dropped).

    's' is the start, 'g' a goal, '#' a wall; other letters are cells to which extra may give a price.
    A move into a wall or off the map goes nowhere. The actions are MOVES.
    extra(t, i, j, letter): what landing on the cell in row i and column j at time t costs, so
        r_t(s,a) = -(STEP or STAY) - E extra(t+1, i, j, letter).
    land(i, j, target): the equally likely landings of a move from (i, j), instead of its target.
    """
    if isinstance(rows, str):
        rows = [line.strip() for line in rows.strip().splitlines()]
    if not isinstance(rows, (list, tuple)) or not all(isinstance(row, str) for row in rows):
        raise ValueError(f"rows: expected a list of strings or one string of lines, got {rows!r:.80}")
    if len({len(row) for row in rows}) != 1:
        lengths = [len(row) for row in rows]
        raise ValueError(f"rows: expected lines of one length, got {lengths} in {rows}")
    starts = "".join(rows).count("s")
    if starts != 1:
        raise ValueError(f"rows: expected one start 's', got {starts} in {rows}")
    _at_least_1("T", T)
    cells = [(i, j) for i, row in enumerate(rows) for j, letter in enumerate(row) if letter != "#"]
    state_of = {cell: s for s, cell in enumerate(cells)}
    letters = [rows[i][j] for i, j in cells]
    costs = np.array([[extra(t, i, j, c) for (i, j), c in zip(cells, letters)] for t in range(T + 1)])
    P, r = [], np.zeros((T, len(cells), len(MOVES)))
    for s, (i, j) in enumerate(cells):
        P.append([])
        for a, (di, dj) in enumerate(MOVES.values()):
            target = (i + di, j + dj) if (i + di, j + dj) in state_of else (i, j)
            landings = land(i, j, target) if land else [target]
            if not landings or not all(cell in state_of for cell in landings):
                raise ValueError(f"land: expected cells of the map that are no walls, got {landings}")
            states = [state_of[cell] for cell in landings]
            P[s].append([(1 / len(states), s2) for s2 in states])
            r[:, s, a] = -(STEP if a else STAY) - costs[1:, states].mean(1)
    goals = {s for s, letter in enumerate(letters) if letter == "g"}
    problem = (MDP.from_successors(P, r, gamma), letters.index("s"), goals, mode)
    return World(story, list(rows), cells, costs, problem)


def toll():
    return grid("The toll on the middle cell is 1 until t = 2, then nothing: wait for it.",
                ["sBg"], 6, lambda t, i, j, c: 1.0 * (c == "B" and t <= 2), gamma=0.95)


def bridge():
    price = [2] * 5 + [1] * 3 + [0] * 7
    return grid("The bridge's toll falls from 2 to 1 at t = 5 and to 0 at t = 8.\n"
                "The ford costs 0.5 a cell.",
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

    return grid("A guard walks clockwise round the wall (2 in his cell, 0.5 beside).\n"
                "Let him pass, and follow.",
                ["#.....#",
                 "#.###.#",
                 "s.###.g",
                 "#.###.#",
                 "#.....#"], 14, watched)


def doors():
    every = {"A": 4, "B": 5}
    return grid("Door A stands open when t is a multiple of 4, door B of 5.\n"
                "Forcing a shut door costs 0.9.",
                ["s.#..#..",
                 "..A..B.g",
                 "..#..#.."], 12, lambda t, i, j, c: 0.9 * (c in every and t % every.get(c, 1) > 0))


def river():
    def drift(i, j, target):  # from the water the current may carry one cell further east
        in_water = i in (1, 2) and target != (3, 0)
        return [target, (target[0], min(target[1] + 1, 4))] if in_water else [target]

    return grid("The current carries the boat 0 or 1 cells east, by chance. The river is in flood\n"
                "(0.8) until t = 2. Every branch must be at the dock at the same time.",
                ["....g",
                 "~~~~~",
                 "~~~~~",
                 "s####"], 10, lambda t, i, j, c: (0.8 if t <= 2 else 0.1) * (c == "~"), land=drift)


def scouts():
    return grid("A coin sends the scout left or right, and both outposts must be covered.\n"
                "Branches that meet in the neck share their action, so one of them has to wait.",
                ["g...g",
                 "##.##",
                 "##.##",
                 ".....",
                 "##s##"], 10, lambda t, i, j, c: 0, mode="cover",
                land=lambda i, j, target: [(3, 1), (3, 3)] if (i, j) == (4, 2) else [target])


WORLDS = {make.__name__: make for make in (toll, bridge, guard, doors, river, scouts)}


def show(world):
    """Solves a world and prints the plan, a frame for each time.

    The frame of time t has the agents (the states in which chance may have put the agent), their
    actions at t, and what landing on a cell by these, so at t+1, costs.
    """
    mdp, start, goals, mode = world.problem
    best = gds(*world.problem)
    print(world.story)
    for name, found in (("GDS", best), ("best static", static_best(*world.problem))):
        answer = f"value {found.value:.3f} in {found.length} steps"
        if found.status != "optimal":
            answer = f"{found.status}: {found.reason}"
        print(f"{name + ':':12} {answer}")
    print("@ agent, its action beside the row (of several, from left to right)  g goal  # wall\n"
          "1-9 what landing there at t + 1 costs besides the step, in tenths  X 1 or more")
    for t, dist in enumerate(follow(mdp, start, best.policy)[0]):
        paid = abs(policy_value(mdp, start, best.policy[:t]))
        has_arrived = best.status == "optimal" and t == best.length
        print(f"\nt = {t}, paid {paid:.2f}" + (". Arrived" if has_arrived else ""))
        rule = best.policy[t] if t < best.length else {}
        print(_frame(world, dist, rule, [0] * mdp.S if has_arrived else world.extra[t + 1]))


def _frame(world, agents, rule, costs):
    """The map with the agents and the costs (S,), and beside each row the actions of its agents."""
    picture = [[letter if letter in "g#" else "." for letter in row] for row in world.rows]
    actions = [[] for _ in world.rows]
    for s, (i, j) in enumerate(world.cells):
        if s in agents:
            picture[i][j] = "@"
            if s in rule:
                actions[i].append(list(MOVES)[rule[s]])
        elif picture[i][j] == "." and costs[s] > 0:
            tenths = min(max(round(10 * costs[s]), 1), 9)
            picture[i][j] = "X" if costs[s] >= 1 else str(tenths)
    lines = [f"{''.join(row)}   {', '.join(beside)}" for row, beside in zip(picture, actions)]
    return "\n".join(line.rstrip() for line in lines)


# ---- 10. Checks of arguments ---------------------------------------------------------------------


def _numbers(name, x):
    try:
        x = np.asarray(x, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected an array of numbers, got {x!r:.80}") from None
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: expected finite numbers, got {x[~np.isfinite(x)][0]}")
    return x


def _read_successors(P):
    """S, A and, for each (s,a), a dict {s': p} of what P[s][a] = [(p, s', ...), ...] says."""
    name, listed = "P", {}  # (s,a): [(p, s'), ...]
    try:
        S, A = len(P), len(P[0])
        for s, a in np.ndindex(S, A):
            name = f"P[{s}][{a}]"
            listed[s, a] = [(p + 0.0, s2) for p, s2, *_ in P[s][a]]
    except (KeyError, IndexError, TypeError, ValueError):
        raise ValueError(f"{name}: expected lists, or dicts with the keys 0, 1, ..., so that "
                         f"P[s][a] = [(p, s', ...), ...], got {P!r:.80}") from None
    for s in range(S):
        if len(P[s]) != A or A == 0:
            raise ValueError(f"P[{s}]: expected as many actions as in P[0], and at least 1, "
                             f"got {len(P[s])} and in P[0] {A}")
    edges = []
    for (s, a), outcomes in listed.items():
        name, row = f"P[{s}][{a}]", {}
        for p, s2 in outcomes:
            if not 0 <= p < np.inf:
                raise ValueError(f"{name}: probabilities must be >= 0, got {p}")
            s2 = _index(name, s2, S)
            if p > 0:
                row[s2] = row.get(s2, 0.0) + p
        edges.append(dict(sorted(row.items())))
    return S, A, edges


def _rewards(r, S, A, T):
    """r, checked, as (T,S,A). One of shape (S,A) is repeated without a copy."""
    r = _numbers("r", r)
    if T is not None:
        _at_least_1("T", T)
    if r.shape == (S, A):
        if T is None:
            raise ValueError(f"r: its shape (S,A) = {r.shape} needs T=..., the number of steps to "
                             "repeat it for")
        r = np.broadcast_to(r, (T, S, A))
    if r.ndim != 3 or r.shape[1:] != (S, A) or len(r) == 0:
        raise ValueError(f"r: expected shape (T,{S},{A}) with T >= 1, or ({S},{A}) and T=..., "
                         f"got {r.shape}")
    if T not in (None, len(r)):
        raise ValueError(f"T: expected {len(r)}, the steps of r, whose shape is {r.shape}, got {T}")
    if r.max() > 0:
        raise ValueError(f"r: rewards must be <= 0, got {r.max():g}; give costs instead, a reward < 0 "
                         "for each step, and as goals what is worth reaching; subtracting the maximum "
                         "is no way out, since it shifts policies of different lengths differently")
    return r


def _at_least_1(name, x):
    if isinstance(x, bool) or not isinstance(x, (int, np.integer)) or x < 1:
        raise ValueError(f"{name}: expected an integer >= 1, got {x!r}")


def _index(name, i, n, what="a state"):
    """i as an int in 0..n-1. A boolean is none: goals [False, True] would silently mean {0, 1}."""
    if isinstance(i, bool) or not isinstance(i, (int, np.integer)) or not 0 <= i < n:
        raise ValueError(f"{name}: expected {what} 0..{n - 1}, got {i!r}")
    return int(i)


def _check(mdp, start, goals, mode="reach", max_pops=1, trace=None):
    """The arguments that all solvers share: start as an int and the goals as a frozenset."""
    try:
        goals = list(goals)
    except TypeError:
        raise ValueError(f"goals: expected a collection of states, got {goals!r}") from None
    if mode not in ("reach", "cover"):
        raise ValueError(f"mode: expected one of reach, cover, got {mode!r}")
    _at_least_1("max_pops", max_pops)
    if trace is not None and not isinstance(trace, list):
        raise ValueError(f"trace: expected a list to append to, or None, got {trace!r}")
    return _index("start", start, mdp.S), frozenset(_index("goals", g, mdp.S) for g in goals)


# ---- 11. The command line ------------------------------------------------------------------------


def main(argv=None):
    """The command line. Returns the exit status: 1 if a claim came out otherwise than it is marked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--world", choices=list(WORLDS), help="solve this gridworld and show the plan")
    parser.add_argument("--seed", type=int, default=0, help="of the random problems (default 0)")
    parser.add_argument("--n", type=int, default=3000, help="how many random problems (default 3000)")
    args = parser.parse_args(argv)
    if args.n < 24 or args.seed < 0:  # 24: each gamma, with and without chance, in both modes
        parser.error(f"expected --n >= 24 and --seed >= 0, got --n {args.n} --seed {args.seed}")
    if args.world:
        show(WORLDS[args.world]())
        return 0
    print("A gridworld whose costs change with time, solved by GDS (--world shows more of them).\n")
    show(toll())
    print_counterexample(2, "child")
    print_counterexample(3, "parent")
    return 0 if print_table(args.seed, args.n) else 1


if __name__ == "__main__":
    raise SystemExit(main())
