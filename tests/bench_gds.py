"""What gds.py's solver costs by size, in pops, CPU seconds and memory.

    python tests/bench_gds.py              measures (a minute of CPU time), writes
                                           analysis/results/bench_gds.jsonl anew and prints the table
    python tests/bench_gds.py --table      only prints the Markdown table of what is in that file

Each run has a process of its own: seconds are its CPU time, memory is what its peak adds to the built
MDP. A run stopped at its limit of pops is "capped": nothing is known about its answer. REACH with the
bound has no heap to pop from; its count is that of the choices that are read off (gds.reach_dp).
"""

import argparse
import itertools
import json
import multiprocessing
import resource
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import gds as G  # noqa: E402
from gds import MDP, MOVES, STAY, STEP  # noqa: E402

FILE = ROOT / "analysis" / "results" / "bench_gds.jsonl"
SEEDS = 3


def grid_arrays(size, T, seed):
    """(next_state (S,A), r (T,S,A)): moves on a grid; 30 % of the landings cost up to 2 more."""
    here, rng = np.arange(size * size), np.random.default_rng(seed)
    i, j = np.divmod(here, size)
    inside = [np.clip((i + di, j + dj), 0, size - 1) for di, dj in MOVES.values()]
    next_state = np.stack([row * size + column for row, column in inside], 1)
    extra = rng.random((T, size * size)) * 2 * (rng.random((T, size * size)) < 0.3)
    return next_state, -(np.array([STAY] + [STEP] * 4) + extra[:, next_state])


def grid(size, seed):
    """REACH, deterministic: from one corner of the grid to the other, T = 3 size."""
    return MDP.deterministic(*grid_arrays(size, 3 * size, seed), 0.99), 0, {size * size - 1}


def slippery(size, seed):
    """REACH, stochastic: a move lands on its target or beside it; the goal is the right quarter."""
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
    """COVER: one action in five leads to one of two states; goals: ends of a random plan."""
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
    """COVER: from one of k cells of a 5 x 5 grid, by chance, sure moves must reach each of k cells."""
    size, T, rng = 5, 10, np.random.default_rng(seed)
    next_state, r = grid_arrays(size, T, seed)
    S = size * size
    P = np.zeros((S + 1, len(MOVES), S + 1))  # state S is the start
    P[np.arange(S)[:, None], np.arange(len(MOVES)), next_state] = 1
    P[S, :, rng.choice(S, k, replace=False)] = 1 / k
    r = np.concatenate([r, np.full((T, 1, len(MOVES)), -STEP)], 1)
    return MDP(P, r, 0.97), S, set(rng.choice(S, k, replace=False).tolist())


def sat(n, seed):
    """COVER: the gadget of a random 3-SAT formula, n variables, 4.26 n clauses."""
    rng = np.random.default_rng(seed)
    clauses = [(rng.choice(n, 3, replace=False) + 1) * rng.choice([-1, 1], 3)
               for _ in range(round(4.26 * n))]
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
    pops = None if result.status == "capped" else result.pops
    return mdp.T, mdp.S, pops, round(seconds, 4), round(memory, 1)


def peak_mb():
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure_all():
    """Writes one row for each family, size and solver: lists over the seeds."""
    rows = []
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for family, (_, _, sizes, _, _) in FAMILIES.items():
            for size, heuristic in itertools.product(sizes, (False, True)):
                jobs = [(family, size, seed, heuristic) for seed in range(SEEDS)]
                T, S, pops, seconds, mb = zip(*pool.map(measure, jobs, chunksize=1))
                rows.append({"family": family, "size": size, "bound": heuristic, "T": T[0],
                             "S": S[0], "pops": pops, "seconds": seconds, "mb": mb})
                print(f"{family} {size}, bound: {heuristic}", file=sys.stderr)
    FILE.write_text("".join(json.dumps(row) + "\n" for row in rows))


def spread(values, form=",.0f"):
    """Median (least-greatest); None, a capped run, is greater than all."""
    values = sorted(values, key=lambda value: (value is None, value))
    low, middle, high = ("capped" if v is None else format(v, form) for v in
                         (values[0], values[len(values) // 2], values[-1]))
    return middle if low == high else f"{middle} ({low}–{high})"


def table():
    print("| problem | S, T | without the bound: pops; s | with it (`gds`): pops; s | MB |")
    print("|---" * 5 + "|")
    rows = [json.loads(line) for line in FILE.read_text().splitlines()]
    for plain, bound in zip(rows[::2], rows[1::2]):
        _, mode, _, unit, _ = FAMILIES[bound["family"]]
        cells = [f"{spread(row['pops'])}; {spread(row['seconds'], '.2f')}" for row in (plain, bound)]
        print(f"| {mode.upper()}, {bound['family']}, {bound['size']} {unit} "
              f"| {bound['S']:,}, {bound['T']} | {cells[0]} | {cells[1]} | {spread(bound['mb'])} |")
    limits = [f"{limit:,} pops ({name})" for name, (*_, limit) in FAMILIES.items()]
    print("\ncapped at " + ", ".join(limits))
    print("REACH with the bound pops nothing: its number is that of the choices read off")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", action="store_true", help=f"only print what is in {FILE.name}")
    if not parser.parse_args().table:
        measure_all()
    table()
