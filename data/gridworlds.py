"""
Six gridworlds in which rewards change with time. `python gds.py --world NAME` solves one and shows
the plan.
"""

from typing import NamedTuple

import numpy as np

from gds import MDP, follow, gds, policy_value, static_best

MOVES = {"stay": (0, 0), "north": (-1, 0), "east": (0, 1), "south": (1, 0), "west": (0, -1)}
STEP, STAY = 0.10, 0.05  # what a move and a wait cost, besides the costs that come and go


class World(NamedTuple):
    """A gridworld. rows: the map; cells: state -> (row, column); extra (T+1,S): cost of landing at t."""

    story: str
    rows: list
    cells: list
    extra: np.ndarray
    problem: tuple  # (mdp, start, goals, mode)


def grid(story, rows, T, extra, gamma=0.97, land=None, mode="reach"):
    """A World from a map: start 's', goals 'g', '#' cannot be entered. Blocked moves go nowhere.

    r_t(s,a) = -(STEP or STAY) - E extra(t+1, i, j, letter), where (i, j) is the cell landed on.
    land(i, j, target): the equally likely landings of a move from (i, j), instead of its target.
    """
    cells = [(i, j) for i, row in enumerate(rows) for j, letter in enumerate(row) if letter != "#"]
    letters = [rows[i][j] for i, j in cells]
    P = np.zeros((len(cells), len(MOVES), len(cells)))
    for s, (i, j) in enumerate(cells):
        for a, (di, dj) in enumerate(MOVES.values()):
            target = (i + di, j + dj) if (i + di, j + dj) in cells else (i, j)
            landings = land(i, j, target) if land else [target]
            for cell in landings:
                P[s, a, cells.index(cell)] += 1 / len(landings)
    costs = np.array([[extra(t, i, j, c) for (i, j), c in zip(cells, letters)] for t in range(T + 1)])
    own = np.array([STAY] + [STEP] * 4)  # (A,)
    r = -own - np.einsum("sax,tx->tsa", P, costs[1:])
    goals = {s for s, letter in enumerate(letters) if letter == "g"}
    return World(story, rows, cells, costs, (MDP(P, r, gamma), letters.index("s"), goals, mode))


def toll():
    return grid("The toll on the middle cell is 1 until t = 2, then nothing: wait for it.",
                ["sBg"], 6, lambda t, i, j, c: 1.0 * (c == "B" and t <= 2), gamma=0.95)


def bridge():
    price = [2] * 5 + [1] * 3 + [0] * 7
    return grid("The bridge's toll falls from 2 to 1 at t = 5 and to 0 at t = 8; the ford costs 0.5 a cell.",
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

    return grid("A guard walks clockwise round the wall (2 in his cell, 0.5 beside): let him pass, follow.",
                ["#.....#",
                 "#.###.#",
                 "s.###.g",
                 "#.###.#",
                 "#.....#"], 14, watched)


def doors():
    every = {"A": 4, "B": 5}
    return grid("Door A stands open when t is a multiple of 4, door B of 5; forcing a shut door costs 0.9.",
                ["s.#..#..",
                 "..A..B.g",
                 "..#..#.."], 12, lambda t, i, j, c: 0.9 * (c in every and t % every.get(c, 1) > 0))


def river():
    def drift(i, j, target):  # from the water the current may carry one cell further east
        in_water = i in (1, 2) and target != (3, 0)
        return [target, (target[0], min(target[1] + 1, 4))] if in_water else [target]

    return grid("The current carries the boat 0 or 1 cells east, by chance; the river is in flood (0.8) "
                "until t = 2. Every branch must be at the dock at the same time.",
                ["....g",
                 "~~~~~",
                 "~~~~~",
                 "s####"], 10, lambda t, i, j, c: (0.8 if t <= 2 else 0.1) * (c == "~"), land=drift)


def scouts():
    return grid("A coin sends the scout left or right; both outposts must be covered. Branches that "
                "meet in the neck share their action, so one of them has to wait.",
                ["g...g",
                 "##.##",
                 "##.##",
                 ".....",
                 "##s##"], 10, lambda t, i, j, c: 0, mode="cover",
                land=lambda i, j, target: [(3, 1), (3, 3)] if (i, j) == (4, 2) else [target])


WORLDS = {make.__name__: make for make in (toll, bridge, guard, doors, river, scouts)}


def show(world):
    """Solves a world and prints the plan, a frame for each time."""
    mdp, start, goals, mode = world.problem
    best = gds(*world.problem)
    print(world.story)
    for name, found in (("GDS", best), ("best static", static_best(*world.problem))):
        answer = f"value {found.value:.3f} in {found.length} steps" if found.policy else "no such policy"
        print(f"{name + ':':12} {answer}")
    print("@ agent  g goal  # wall  1-9 extra cost of landing there now, in tenths  X 1 or more")
    for t, dist in enumerate(follow(mdp, start, best.policy)[0]):
        paid = abs(policy_value(mdp, start, best.policy[:t]))
        rule = best.policy[t] if t < best.length else {}
        print(f"\nt = {t}, paid {paid:.2f}. {', '.join(list(MOVES)[a] for a in rule.values()) or 'Arrived'}")
        picture = [list(row.translate(str.maketrans("sABF~", "....."))) for row in world.rows]
        for s, (i, j) in enumerate(world.cells):
            if s in dist:
                picture[i][j] = "@"
            elif s not in goals and world.extra[t, s] > 0:
                picture[i][j] = "X" if world.extra[t, s] >= 1 else f"{10 * world.extra[t, s]:.0f}"
        print("\n".join("".join(row) for row in picture))
