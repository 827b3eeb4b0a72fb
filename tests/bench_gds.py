"""Paired benchmark on one deterministic gridworld with costs that change in time: gds against networkx's Dijkstra.

    python tests/bench_gds.py                        60 x 60 cells, T = 240: 864,000 (time, state) pairs (4 GB, minutes)
    python tests/bench_gds.py --size 30 --T 120      108,000 pairs (seconds)

gds is timed with everything it does: checking and building the MDP, the bound, the search. networkx is timed on the
explicit time-expanded graph, without the time to build it, which is reported apart. Both must return the same value.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import networkx as nx
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from gds import MDP, MOVES, STAY, STEP, gds


def problem(size, T, seed):
    """(next_state (S,A), r (T,S,A)): moves on a size x size grid; 30 % of the landings cost up to 2 more, at random."""
    here, rng = np.arange(size * size), np.random.default_rng(seed)
    i, j = np.divmod(here, size)
    next_state = np.stack([np.clip(i + di, 0, size - 1) * size + np.clip(j + dj, 0, size - 1)
                           for di, dj in MOVES.values()], 1)
    extra = rng.random((T, size * size)) * 2 * (rng.random((T, size * size)) < 0.3)
    return next_state, -(np.array([STAY] + [STEP] * 4) + extra[:, next_state])


def time_expanded(next_state, r, gamma, goal):
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=60, help="cells per side (default 60)")
    parser.add_argument("--T", type=int, default=240, help="horizon (default 240)")
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=5, help="how often both are timed, in turn (default 5)")
    args = parser.parse_args()
    next_state, r = problem(args.size, args.T, args.seed)
    goal = args.size**2 - 1
    began = time.perf_counter()
    graph = time_expanded(next_state, r, args.gamma, goal)
    print(f"graph: {graph.number_of_nodes():,} nodes, {graph.number_of_edges():,} edges, built in "
          f"{time.perf_counter() - began:.1f} s", flush=True)
    ours, theirs = [], []
    for _ in range(args.pairs):
        began = time.perf_counter()
        result = gds(MDP.deterministic(next_state, r, args.gamma), 0, {goal})
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
          f"({min(ratios):.0f} to {max(ratios):.0f} over {args.pairs} pairs)")


if __name__ == "__main__":
    main()
