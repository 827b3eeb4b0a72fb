"""
The runs behind the README's "What do the codes do?": trains those that runs/case/ lacks, analyzes each on test
problems, keeps the analysis in case_NAME.json beside this file, and prints the table.

    python results/case_studies.py             # one hour on one CPU core
    python results/case_studies.py --table     # only the table, from the files that are kept
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ARITHMETIC = "--data arithmetic --batch_size 32 --chunk 1"
STUDIES = {  # name: (flags of train.py, problems analyzed, kind of label shown)
    "words-dlr": ("", 200, "operand"),
    "words-frozen": ("--method frozen --code_lr 1e-1", 200, "operand"),
    "arith-dlr": (f"{ARITHMETIC} --rows 100000 --epochs 1 --lr 2e-3", 500, "subtask"),
    "arith-frozen": (f"{ARITHMETIC} --epochs 1 --method frozen --code_lr 1e-1", 500, "subtask"),
}
ARMS = {"off": "no codes", "mean": "the mean vector everywhere", "directions": "random directions, same norms",
        "random": "random codes", "shuffled": "own codes, shuffled", "position": "other problems' codes, same place",
        "untrained": "an untrained router"}


def python(*argv):
    subprocess.run([sys.executable, *argv], cwd=HERE.parent, check=True)


def table():
    found = {name: json.loads((HERE / f"case_{name}.json").read_text()) for name in STUDIES}

    def line(name, cell):
        print(f"| {name} | " + " | ".join(cell(a, STUDIES[study][2]) for study, a in found.items()) + " |")

    def told(a, kind):
        trained, bits = a["routing"]["trained"][kind], {r: a["routing"][r][kind]["cmi_bits"] for r in a["routing"]}
        left = trained["entropy_bits"] - trained["position"]["mi_bits"]
        return (f"{kind}: {bits['trained']['excess']:.2f} of {left:.2f}; {bits['untrained']['excess']:.2f} "
                f"({bits['untrained']['low']:.2f}-{bits['untrained']['high']:.2f}); "
                f"{bits['random']['excess']:.2f}".replace("-0.00", "0.00"))

    def change(arm):
        return lambda a, _: "{:+.4f} [{:+.4f}, {:+.4f}]".format(*a["arms"][arm]["nats_minus_on"])

    def single(a, _):
        tested = [c["ablation"] for c in a["codes"] if c["ablation"]]
        return f"{sum(t['nats_minus_on'][1] > 0 for t in tested)} of {len(tested)}"

    print("| | " + " | ".join(found) + " |\n" + "|---" * (len(found) + 1) + "|")
    line("codes in use, perplexity", lambda a, _: f"{a['codebook']['used']} of {len(a['codes'])}, "
                                                  f"{a['codebook']['perplexity']:.1f}")
    line("bits about a label at the same position: trained router; 8 untrained ones; random codes", told)
    line("accuracy on, off", lambda a, _: f"{a['arms']['on']['strict']:.1%}, {a['arms']['off']['strict']:.1%}")
    for arm in ("random", "shuffled"):
        line(f"accuracy, points: {ARMS[arm]}, minus on", lambda a, _, arm=arm: "{:+.1f} [{:+.1f}, {:+.1f}]".format(
            *(100 * x for x in a["arms"][arm]["strict_minus_on"])))
    line("nats on", lambda a, _: f"{a['arms']['on']['nats']:.4f}")
    for arm, what in ARMS.items():
        line(f"{what}: nats minus on", change(arm))
    line("codes whose replacement costs likelihood", single)
    line("codes whose replacement changes accuracy (Holm)", lambda a, _: str(sum(
        c["ablation"]["p_holm"] < 0.05 for c in a["codes"] if c["ablation"])))
    line("sham: replacing what never fires",
         lambda a, _: "changes nothing" if a["sham"]["changes_nothing"] else "changes something")


if __name__ == "__main__":
    if sys.argv[1:] != ["--table"]:
        for name, (flags, problems, _) in STUDIES.items():
            run = Path("runs/case", name)
            if not (HERE.parent / run / "ckpt.pt").exists():
                python("train.py", "--no-baseline", "--eval_rows", "-1", "--out", str(run), *flags.split())
            if not (HERE.parent / run / "analysis.json").exists():
                python("eval.py", "--analyze", str(run), "--rows", str(problems))
            shutil.copy(HERE.parent / run / "analysis.json", HERE / f"case_{name}.json")
    table()
