"""What gds.py's solver costs by size, in pops, CPU seconds and memory.

    python tests/bench_gds.py              measures (a minute of CPU time), writes analysis/results/bench_gds.jsonl
                                           anew and prints the Markdown table
    python tests/bench_gds.py --table      only prints the table of what is in that file
    python tests/bench_gds.py --networkx   60 x 60 cells, T = 240: gds and networkx in turn (4 GB, minutes);
                                           --size 30: 108,000 (time, state) pairs instead of 864,000 (seconds)

Each run has a process of its own: seconds are its CPU time, memory is what its peak adds to the built MDP. A run
stopped at its limit of pops is "capped": nothing is known about its answer. networkx's Dijkstra is timed on the
explicit time-expanded graph without the time to build it, gds with everything; both must return the same value.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import gds as G  # noqa: E402
from data.gridworlds import MOVES, STAY, STEP  # noqa: E402
from gds import MDP  # noqa: E402

FILE = ROOT / "analysis" / "results" / "bench_gds.jsonl"
SEEDS = 3


def grid_arrays(size, T, seed):
    """(next_state (S,A), r (T,S,A)): moves on a size x size grid; 30 % of the landings cost up to 2 more, at random."""
    here, rng = np.arange(size * size), np.random.default_rng(seed)
    i, j = np.divmod(here, size)
    moves = [np.clip(i + di, 0, size - 1) * size + np.clip(j + dj, 0, size - 1) for di, dj in MOVES.values()]
    next_state = np.stack(moves, 1)
    extra = rng.random((T, size * size)) * 2 * (rng.random((T, size * size)) < 0.3)
    return next_state, -(np.array([STAY] + [STEP] * 4) + extra[:, next_state])


def grid(size, seed):
    """REACH, deterministic: from one corner of the grid to the other, T = 3 size."""
    return MDP.deterministic(*grid_arrays(size, 3 * size, seed), 0.99), 0, {size * size - 1}


def slippery(size, seed):
    """REACH, stochastic: a move lands on its target or on either side of it; the goal is the right quarter."""
    next_state, r = grid_arrays(size, 5 * size // 2, seed)
    S = size * size
    P = np.zeros((S, len(MOVES), S))
    for s, a in np.ndindex(next_state.shape):
        target = next_state[s, a]
        for side in (1, 3) if a in (2, 4) else (2, 4):
            P[s, a, next_state[target, side]] += 0.1
        P[s, a, target] += 0.8
    return MDP(P, r, 0.97), 0, {s for s in range(S) if s % size >= size - size // 4}


def random_cover(S, seed):
    """COVER: four actions in five are sure, others lead to one of two states; goals: ends of a random plan."""
    rng, A, T, n = np.random.default_rng(seed), 3, 10, 3 if S < 100 else 4
    P = np.zeros((S, A, S))
    for s, a in np.ndindex(S, A):
        ends, p = rng.choice(S, 2, replace=False), rng.uniform(0.2, 0.8) if rng.random() < 0.2 else 1.0
        P[s, a, ends] = p, 1 - p
    mdp, ends = MDP(P, -rng.random((T, S, A)), 0.97), []
    while len(ends) < n:
        ends = list(G.follow(mdp, 0, rng.integers(A, size=(T, S)))[0][-1])
    return mdp, 0, set(rng.choice(ends, n, replace=False).tolist())


def scouts(k, seed):
    """COVER: chance puts the scout on one of k cells of a 5 x 5 grid, sure moves must bring it to each of k cells."""
    size, T, rng = 5, 10, np.random.default_rng(seed)
    next_state, r = grid_arrays(size, T, seed)
    S = size * size
    P = np.zeros((S + 1, len(MOVES), S + 1))  # state S is the start
    P[np.arange(S)[:, None], np.arange(len(MOVES)), next_state] = 1
    P[S, :, rng.choice(S, k, replace=False)] = 1 / k
    r = np.concatenate([r, np.full((T, 1, len(MOVES)), -STEP)], 1)
    return MDP(P, r, 0.97), S, set(rng.choice(S, k, replace=False).tolist())


def sat(n, seed):
    """COVER: the gadget of a random 3-SAT formula, n variables, 4.26 n clauses (satisfiable or not, by a toss)."""
    rng = np.random.default_rng(seed)
    clauses = [(rng.choice(n, 3, replace=False) + 1) * rng.choice([-1, 1], 3) for _ in range(round(4.26 * n))]
    return G.sat_gadget([clause.tolist() for clause in clauses], n)


FAMILIES = {  # name: (problem, mode, sizes, what the size is, limit on pops)
    "grid": (grid, "reach", (10, 20, 30, 60, 100), "cells a side", 100_000),
    "slippery grid": (slippery, "reach", (10, 20, 40), "cells a side", 500),
    "random": (random_cover, "cover", (16, 32, 64, 128, 256), "states", 5000),
    "scouts": (scouts, "cover", (1, 2, 3, 4, 5), "branches", 5000),
    "3-SAT": (sat, "cover", (6, 10, 14, 18, 22), "variables", 5000),
}


def measure(job):
    """One run: (T, S, pops or None if capped, CPU seconds, MB)."""
    family, size, seed, heuristic = job
    make, mode, _, _, limit = FAMILIES[family]
    if family == "slippery grid" and heuristic:
        limit = 10**6  # nothing is searched, see gds
    mdp, start, goals = make(size, seed)
    memory, began = peak_mb(), time.process_time()
    result = G.gds(mdp, start, goals, mode, heuristic, limit)
    seconds, memory = time.process_time() - began, peak_mb() - memory
    return mdp.T, mdp.S, None if result.status == "capped" else result.pops, round(seconds, 4), round(memory, 1)


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure_all():
    """Writes one row for each family, size and solver: lists over the seeds."""
    rows = []
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:  # a fresh process for each run
        for family, (_, _, sizes, _, _) in FAMILIES.items():
            for size in sizes:
                for heuristic in (False, True):
                    jobs = [(family, size, seed, heuristic) for seed in range(SEEDS)]
                    T, S, pops, seconds, mb = zip(*pool.map(measure, jobs, chunksize=1))
                    rows.append({"family": family, "size": size, "bound": heuristic, "T": T[0], "S": S[0],
                                 "pops": pops, "seconds": seconds, "mb": mb})
                    print(f"{family} {size} {'with' if heuristic else 'without'} the bound", file=sys.stderr)
    FILE.write_text("".join(json.dumps(row) + "\n" for row in rows))


def spread(values, form=",.0f"):
    """Median (least-greatest); None, a capped run, is greater than all."""
    values = sorted(values, key=lambda value: (value is None, value))
    low, middle, high = ("capped" if v is None else format(v, form) for v in
                         (values[0], values[len(values) // 2], values[-1]))
    return middle if low == high else f"{middle} ({low}–{high})"


def table():
    if not FILE.exists():
        sys.exit(f"bench_gds: {FILE} does not exist: run without --table first")
    print("| problem | S, T | without the bound: pops; s | with it (`gds`): pops; s | MB |\n" + "|---" * 5 + "|")
    rows = [json.loads(line) for line in FILE.read_text().splitlines()]
    for plain, bound in zip(rows[::2], rows[1::2]):
        _, mode, _, unit, _ = FAMILIES[bound["family"]]
        cells = [f"{spread(row['pops'])}; {spread(row['seconds'], '.2f')}" for row in (plain, bound)]
        print(f"| {mode.upper()}, {bound['family']}, {bound['size']} {unit} | {bound['S']:,}, {bound['T']} | "
              f"{cells[0]} | {cells[1]} | {spread(bound['mb'])} |")
    print("\ncapped at " + ", ".join(f"{limit:,} pops ({name})" for name, (*_, limit) in FAMILIES.items()))


def against_networkx(size, pairs=5, gamma=0.99):
    import networkx as nx
    next_state, r = grid_arrays(size, 4 * size, seed=0)
    T, S, _ = r.shape
    graph = nx.DiGraph()  # nodes t*S+s; -1 is the goal at any time >= 1
    for t in range(T):
        cost = (-r[t] * gamma**t).tolist()
        for s, a in np.ndindex(next_state.shape):
            edge = t * S + s, (t + 1) * S + int(next_state[s, a])
            known = graph.get_edge_data(*edge)  # bumping into the border and staying lead to the same node
            if known is None or cost[s][a] < known["weight"]:
                graph.add_edge(*edge, weight=cost[s][a])
        graph.add_edge((t + 2) * S - 1, -1, weight=0.0)
    ours, theirs = [], []
    for _ in range(pairs):
        began = time.perf_counter()
        result = G.gds(MDP.deterministic(next_state, r, gamma), 0, {S - 1})
        middle = time.perf_counter()
        cost = nx.dijkstra_path_length(graph, 0, -1)
        ours.append(middle - began)
        theirs.append(time.perf_counter() - middle)
        if abs(cost + result.value) > 1e-9:
            sys.exit(f"bench_gds: the values differ: gds {result.value}, networkx {-cost}")
    print(f"{graph.number_of_nodes():,} nodes, {graph.number_of_edges():,} edges; value {result.value:.6f} from both; "
          f"medians of {pairs}: gds {statistics.median(ours):.2f} s, networkx {statistics.median(theirs):.2f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", action="store_true", help=f"measure nothing, print the table of {FILE.name}")
    parser.add_argument("--networkx", action="store_true", help="compare one grid with networkx instead")
    parser.add_argument("--size", type=int, default=60, help="--networkx: cells per side, T = 4 size (default 60)")
    args = parser.parse_args()
    if args.networkx:
        return against_networkx(args.size)
    if not args.table:
        measure_all()
    table()


if __name__ == "__main__":
    main()
