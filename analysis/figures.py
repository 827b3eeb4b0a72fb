"""
Two figures, drawn from analysis/results with matplotlib (pip install matplotlib):

    python analysis/figures.py rates         # analysis/rates.svg: where codes help, by the language model's rate
    python analysis/figures.py switch_cost   # analysis/switch_cost.svg: what a change of code should cost
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from analysis.modes import accuracy  # noqa: E402
from data import plumbing  # noqa: E402
from data.files import read_jsonl  # noqa: E402
from data.tokens import encode_rows, load_encoding, load_rows  # noqa: E402

BEST = 1e-3  # the rate that val chose; its runs are those of words1000
PAPER = 1e-5
SHOWN = {  # (label in runs.py, arm): how the figure calls it
    ("likelihood", "on"): "DLR, the router's codes",
    ("likelihood", "off"): "DLR's language model, codes off",
    ("static", "on"): "one learned vector",
    ("random_router", "on"): "codes of an untrained router",
}


def read(name):
    path = HERE / "results" / f"{name}.jsonl"
    return [line for _, line in read_jsonl(path)] if path.exists() else []


# --------------------------------------------------------------------------------------------------
# The learning rate.


def sweep():
    """{(method, arm, rate): {seed: (nats per answer token, accuracy in percent or None)}} of rates and words1000."""
    found = {}
    for line in read("rates") + [line | {"label": f"{line['label']}, {BEST}"} for line in read("words1000")]:
        method, _, rate = line["label"].rpartition(", ")
        for arm, nll in line["nll"].items():
            right = accuracy(line, arm) if "strict" in line else None
            found.setdefault((method, arm, float(rate)), {})[line["seed"]] = (sum(nll) / sum(line["tokens"]), right)
    return found


def gains(found, method, arm, rate):
    """Nats of an arm minus SFT's at the same rate, one for each seed that both have."""
    mine, sft = found.get((method, arm, rate), {}), found["sft", "off", rate]
    return [mine[seed][0] - sft[seed][0] for seed in mine.keys() & sft.keys()]


def rates_table():
    """Markdown: for each rate SFT's nats, and every other arm's minus SFT's of the same seed, mean ± sd."""
    found = sweep()
    out = ["| LM rate | seeds | SFT, nats | " + " | ".join(f"{name}, minus SFT" for name in SHOWN.values())
           + " | accuracy %, SFT | DLR, on |", "|---" * (len(SHOWN) + 5) + "|"]
    for rate in sorted({rate for _, _, rate in found}):
        sft = found["sft", "off", rate]
        cells = [f"{rate:.0e}".replace("e-0", "e-"), str(len(sft)), spread([nats for nats, _ in sft.values()])]
        for method, arm in SHOWN:
            cells.append(spread(gains(found, method, arm, rate), "+.4f"))
        for run in (sft, found.get(("likelihood", "on", rate), {})):
            cells.append(spread([right for _, right in run.values() if right is not None], ".1f"))
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def spread(values, form=".4f"):
    if not values:
        return "not run"
    return f"{np.mean(values):{form}}" + (f" ± {np.std(values, ddof=1):{form[-3:]}}" if len(values) > 1 else "")


def draw_rates(plt):
    found = sweep()
    rates = sorted({rate for _, _, rate in found})
    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(7.2, 5.6), height_ratios=[3, 2])
    for (method, arm), name in SHOWN.items():
        means = [np.mean(gains(found, method, arm, rate) or [math.nan]) for rate in rates]
        above.plot(rates, means, marker="o", linestyle="--" if arm == "off" else "-", label=name)
    above.axhline(0, color="#888", linewidth=1)
    above.set_ylabel("nats minus SFT's\n(below 0: better than SFT)")
    above.legend(frameon=False)
    below.plot(rates, [np.mean([nats for nats, _ in found["sft", "off", rate].values()]) for rate in rates],
               "o-", color="#222")
    below.set_ylabel("SFT, nats per\nheld-out answer token")
    below.set_ylim(0)
    below.set_xlabel("learning rate of the language model")
    for axes in (above, below):
        axes.set_xscale("log")
        for rate, words in ((PAPER, "the paper's"), (BEST, "our best")):
            axes.axvline(rate, color="#e07b39", linewidth=1, linestyle=":")
            if axes is below:
                axes.annotate(words, (rate, 0), xytext=(3, 4), textcoords="offset points", color="#b0561b")
    return figure


# --------------------------------------------------------------------------------------------------
# The price of a change of code.


def worth_of_ways():
    """What naming the manner of every line is worth, in nats per answer token: at most ln 2 a line."""
    rows = load_rows("lines", "train", 500)
    items, _ = encode_rows(rows, load_encoding("wordproblems"), 512)
    lines = sum(len(row["ways"]) for row in rows)
    return lines * math.log(2) / sum(len(ids) - n_prompt for ids, n_prompt in items)


def by_cost():
    """{switch cost: (information, accuracy of the chosen code in percent, leak in nats a token)}, of seed 0."""
    worth, found = worth_of_ways(), {}
    names = {"path": 0.5, "one code a row": math.inf}
    for line in read("lines") + read("lines_why"):
        cost = names.get(line["label"])
        if line["label"].startswith("switch cost "):
            cost = float(line["label"].removeprefix("switch cost "))
        if line["seed"] == 0 and cost is not None:
            leak = line["info_gain"] - worth * line["study"]["handles"]["information"] if "info_gain" in line else None
            found[cost] = (line["study"]["handles"]["information"], accuracy(line, line["chosen"]), leak)
    return dict(sorted(found.items()))


def draw_switch_cost(plt):
    found = by_cost()
    places, names = range(len(found)), ["∞" if math.isinf(cost) else f"{cost:g}" for cost in found]
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.9))
    titles = ("of a line's manner\nthe code tells, %", "accuracy under the\nchosen code, %",
              "leaked from the answer,\nnats a token")
    for k, (one, title) in enumerate(zip(axes, titles)):
        values = [math.nan if row[k] is None else row[k] * (100 if k == 0 else 1) for row in found.values()]
        one.plot(places, values, "o-", color="#2f7ed8")
        one.set_title(title, fontsize=10)
        one.set_xticks(places, names)
        one.set_xlabel("switch cost, nats")
        if k < 2:
            one.set_ylim(0)
    return figure


def main(argv=None):
    plumbing.safe_output()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=("rates", "switch_cost"))
    args = parser.parse_args(argv)
    import matplotlib
    matplotlib.use("svg")
    # Text stays text, and the same numbers make the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "dlr", "axes.spines.top": False,
                                "axes.spines.right": False, "figure.facecolor": "#fbfbf9", "axes.facecolor": "#fbfbf9"})
    from matplotlib import pyplot as plt
    figure = {"rates": draw_rates, "switch_cost": draw_switch_cost}[args.figure](plt)
    figure.tight_layout()
    figure.savefig(HERE / f"{args.figure}.svg", metadata={"Date": None})
    print(json.dumps({str(cost): row for cost, row in by_cost().items()}) if args.figure == "switch_cost"
          else rates_table())


if __name__ == "__main__":
    with plumbing.one_line_errors("figures.py"):
        main()
