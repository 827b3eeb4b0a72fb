"""What gds.py's solvers cost by size, in pops, CPU seconds and memory.

    python tests/bench_gds.py                        measures (2 minutes of CPU time), appends every run to
                                                     results/bench_gds.jsonl, prints the Markdown tables
    python tests/bench_gds.py --table                only prints the tables of what is in that file
    python tests/bench_gds.py --networkx             60 x 60 cells, T = 240: gds and networkx in turn (4 GB, minutes)
    python tests/bench_gds.py --networkx --size 30   108,000 (time, state) pairs instead of 864,000 (seconds)

Tables: each run in a process of its own; seconds are its CPU time and memory is what its peak adds, with the MDP
already built. A run that is stopped at its limit of pops is "capped": nothing is known about its answer.

--networkx: gds is timed with everything it does: checking and building the MDP, the bound, the search. networkx's
Dijkstra is timed on the explicit time-expanded graph, without the time to build it, which is reported apart. Both must
return the same value.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import gds as G  # noqa: E402
from gds import MDP, MOVES, STAY, STEP  # noqa: E402

FILE = ROOT / "results" / "bench_gds.jsonl"


# ---------------------------------------------------------------------------------------------------------------------
# Problems by size: (mdp, start, goals)


def grid_arrays(size, T, seed):
    """(next_state (S,A), r (T,S,A)): moves on a size x size grid; 30 % of the landings cost up to 2 more, at random."""
    here, rng = np.arange(size * size), np.random.default_rng(seed)
    i, j = np.divmod(here, size)
    next_state = np.stack([np.clip(i + di, 0, size - 1) * size + np.clip(j + dj, 0, size - 1)
                           for di, dj in MOVES.values()], 1)
    extra = rng.random((T, size * size)) * 2 * (rng.random((T, size * size)) < 0.3)
    return next_state, -(np.array([STAY] + [STEP] * 4) + extra[:, next_state])


def grid(size, seed):
    """REACH, deterministic: from one corner of the grid to the other, T = 3 size."""
    return MDP.deterministic(*grid_arrays(size, 3 * size, seed), 0.99), 0, {size * size - 1}


def random_cover(S, seed):
    """COVER: four actions in five are sure, others lead to one of two states; goals: ends of a random plan."""
    rng, A, T, n = np.random.default_rng(seed), 3, 10, 3 if S < 100 else 4
    P = np.zeros((S, A, S))
    for s, a in np.ndindex(S, A):
        ends, p = rng.choice(S, 2, replace=False), rng.uniform(0.2, 0.8) if rng.random() < 0.2 else 1.0
        P[s, a, ends] = p, 1 - p
    m, ends = MDP(P, -rng.random((T, S, A)), 0.97), []
    while len(ends) < n:
        ends = [*G.occupancy(m, 0, rng.integers(A, size=(T, S)))[-1]]
    return m, 0, set(rng.choice(ends, n, replace=False).tolist())


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
    return G.sat_gadget([((rng.choice(n, 3, replace=False) + 1) * rng.choice([-1, 1], 3)).tolist()
                         for _ in range(round(4.26 * n))], n)


# ---------------------------------------------------------------------------------------------------------------------
# The measurement

SOLVERS = {  # name: solve(mdp, start, goals, mode, limit on pops)
    "bound": lambda m, s, g, mode, cap: G.gds(m, s, g, mode, max_pops=cap),  # and de-duplication, i.e. gds as it is
    "no bound": lambda m, s, g, mode, cap: G.gds(m, s, g, mode, heuristic=False, max_pops=cap),
    "bound, no de-duplication": lambda m, s, g, mode, cap: G._search(
        m, s, g, mode, G.backward_bound(m, s, g, mode), cap, dedupe=False),
    "neither": lambda m, s, g, mode, cap: G._search(m, s, g, mode, G.no_bound(m), cap, dedupe=False),
    "repaired pruning": lambda m, s, g, mode, cap: G.gds_literal(m, s, g, mode, "repaired", cap),
}
COVER_SOLVERS = ("neither", "no bound", "repaired pruning", "bound, no de-duplication", "bound")
FAMILIES = {  # name: (problem, mode, sizes, what the size is, solvers, limit on pops)
    "grid": (grid, "reach", (10, 20, 30, 60, 100), "cells a side", ("no bound", "bound"), 100_000),
    "random": (random_cover, "cover", (16, 32, 64, 128, 256), "states", COVER_SOLVERS, 5000),
    "scouts": (scouts, "cover", (1, 2, 3, 4, 5), "branches", COVER_SOLVERS, 5000),
    "3-SAT": (sat, "cover", (6, 10, 14, 18, 22), "variables", COVER_SOLVERS, 5000),
}


def measure(job):
    """One run, as a dict for results/bench_gds.jsonl."""
    family, size, seed, solver = job
    make, mode, _, _, _, cap = FAMILIES[family]
    m, start, goals = make(size, seed)
    memory, began = peak_mb(), time.process_time()
    result = SOLVERS[solver](m, start, goals, mode, cap)
    seconds, memory = time.process_time() - began, peak_mb() - memory
    return {"family": family, "size": size, "seed": seed, "solver": solver, "mode": mode, "cap": cap, "S": m.S,
            "A": m.A, "T": m.T, "goals": len(goals), "status": result.status, "length": result.length,
            "value": result.value if result.status == "optimal" else None, "pops": result.pops,
            "seconds": round(seconds, 4), "mb": round(memory, 1), "python": platform.python_version(),
            "numpy": np.__version__, "machine": platform.machine(), "date": time.strftime("%Y-%m-%d")}


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure_all(seeds):
    jobs = [(family, size, seed, solver) for family, (_, _, sizes, _, solvers, _) in FAMILIES.items() for size in sizes
            for seed in range(seeds) for solver in solvers]
    # a fresh fork for each run, one at a time: its peak memory is its own
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool, open(FILE, "a", buffering=1) as file:
        for i, row in enumerate(pool.imap(measure, jobs, chunksize=1)):
            file.write(json.dumps(row) + "\n")
            print(f"\r{i + 1} of {len(jobs)} runs", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------------
# The tables


def spread(values, form=",.0f"):
    """Median (least-greatest)."""
    low, middle, high = (format(f(values), form) for f in (min, statistics.median, max))
    return middle if low == high else f"{middle} ({low}–{high})"


def pops(rows):
    capped = sum(row["status"] == "capped" for row in rows)
    if capped == len(rows):
        return "capped"
    return spread([row["pops"] for row in rows]) + (f", {capped} of {len(rows)} capped" if capped else "")


def tables():
    """The Markdown tables of the latest run of each (family, size, seed, solver) in the file."""
    if not FILE.exists():
        sys.exit(f"bench_gds: {FILE} does not exist: run without --table first")
    latest = {}
    for line in FILE.read_text().splitlines():
        row = json.loads(line)
        latest.setdefault((row["family"], row["size"], row["solver"]), {})[row["seed"]] = row
    groups = {key: [*by_seed.values()] for key, by_seed in latest.items()}
    grids = [(size, solver, rows) for (family, size, solver), rows in groups.items() if family == "grid"]
    print("| grid | T | (time, state) pairs | | pops | CPU seconds | peak memory, MB |\n|---|---|---|---|---|---|---|")
    for size, solver, rows in grids:
        one = rows[0]
        print(f"| {size} x {size} | {one['T']} | {one['T'] * one['S']:,} | {solver} | {pops(rows)} | "
              f"{spread([row['seconds'] for row in rows], '.2f')} | {spread([row['mb'] for row in rows])} |")
    print(f"\ncapped: {FAMILIES['grid'][5]:,} pops\n\n| COVER | S | T | goals | " + " | ".join(
        f"{name}{' (`gds`)' if name == 'bound' else ''}" for name in COVER_SOLVERS) + " |\n" + "|---" * 9 + "|")
    for family, size in dict.fromkeys((family, size) for family, size, _ in groups if family != "grid"):
        one = groups[family, size, "bound"][0]
        cells = [f"{pops(rows)}; {statistics.median(row['seconds'] for row in rows):.2f} s"
                 for rows in (groups[family, size, solver] for solver in COVER_SOLVERS)]
        print(f"| {family}, {size} {FAMILIES[family][3]} | {one['S']} | {one['T']} | {one['goals']} | "
              + " | ".join(cells) + " |")
    print(f"\ncapped: {FAMILIES['random'][5]:,} pops (repaired pruning: popped, or waiting)")


# ---------------------------------------------------------------------------------------------------------------------
# gds against networkx


def time_expanded(nx, next_state, r, gamma, goal):
    """The graph of all (time, state) nodes t*S+s; -1 is the goal at any time >= 1."""
    T, S, _ = r.shape
    graph = nx.DiGraph()
    for t in range(T):
        cost = (-r[t] * gamma**t).tolist()
        for s, row in enumerate(next_state.tolist()):
            for a, s2 in enumerate(row):  # bumping into the border and staying lead to the same node
                known = graph.get_edge_data(t * S + s, (t + 1) * S + s2)
                if known is None or cost[s][a] < known["weight"]:
                    graph.add_edge(t * S + s, (t + 1) * S + s2, weight=cost[s][a])
        graph.add_edge((t + 1) * S + goal, -1, weight=0.0)
    return graph


def against_networkx(size, gamma, seed, pairs):
    import networkx as nx
    next_state, r = grid_arrays(size, 4 * size, seed)
    goal = size**2 - 1
    began = time.perf_counter()
    graph = time_expanded(nx, next_state, r, gamma, goal)
    print(f"graph: {graph.number_of_nodes():,} nodes, {graph.number_of_edges():,} edges, built in "
          f"{time.perf_counter() - began:.1f} s", flush=True)
    ours, theirs = [], []
    for _ in range(pairs):
        began = time.perf_counter()
        result = G.gds(MDP.deterministic(next_state, r, gamma), 0, {goal})
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        cost = nx.dijkstra_path_length(graph, 0, -1)
        theirs.append(time.perf_counter() - began)
        if abs(cost + result.value) > 1e-9:
            sys.exit(f"bench_gds: the values differ: gds {result.value}, networkx {-cost}")
        print(f"gds {ours[-1]:.2f} s ({result.pops:,} pops), networkx {theirs[-1]:.2f} s", flush=True)
    ratios = [b / a for a, b in zip(ours, theirs)]
    print(f"value {result.value:.6f} from both; medians: gds {statistics.median(ours):.2f} s, networkx "
          f"{statistics.median(theirs):.2f} s; ratio {statistics.median(ratios):.0f} "
          f"({min(ratios):.0f} to {max(ratios):.0f} over {pairs} pairs)")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many random problems of each size (default 3)")
    parser.add_argument("--table", action="store_true", help=f"measure nothing, print the tables of {FILE.name}")
    parser.add_argument("--networkx", action="store_true", help="compare one grid with networkx instead")
    parser.add_argument("--size", type=int, default=60, help="--networkx: cells per side, T = 4 size (default 60)")
    parser.add_argument("--gamma", type=float, default=0.99, help="--networkx: the discount (default 0.99)")
    parser.add_argument("--seed", type=int, default=0, help="--networkx: of the costs (default 0)")
    parser.add_argument("--pairs", type=int, default=5, help="--networkx: how often both are timed (default 5)")
    args = parser.parse_args()
    if args.networkx:
        return against_networkx(args.size, args.gamma, args.seed, args.pairs)
    if not args.table:
        measure_all(args.seeds)
    tables()


if __name__ == "__main__":
    main()
