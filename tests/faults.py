"""
Kill training (SIGKILL) again and again, resume it each time, and compare with a run that nothing
disturbed: weights, optimizer, metrics and the evaluation, bit for bit.

    python tests/faults.py --kills 20      # random moments, then around every file put in place

Every run is a process of its own, forked from a server that has imported torch once.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from conftest import small_run

import train
from dlr import load_checkpoint

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["torch._dynamo", "train"])  # the optimizer imports the first
FILES = ["config.json", "metrics.jsonl", *["ckpt.pt"] * 4, "answers.jsonl", "summary.json"]
HALF, WHOLE, PLACED = "half written", "written, not in place", "in place"


def run(argv, die=None):
    """The process: train.py with these flags. die (n, how): killed around the n-th file it puts."""
    torch.set_num_threads(1)
    calls, replace = itertools.count(1), os.replace

    def lethal(source, target):
        now = die is not None and next(calls) == die[0]
        if now and die[1] == HALF:
            os.truncate(source, os.path.getsize(source) // 2)
        if not now or die[1] == PLACED:
            replace(source, target)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = lethal
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    train.main(argv)


def start(*args):
    process = FORK.Process(target=run, args=args, daemon=True)
    process.start()
    return process


def finish(process):
    """Its exit code; -9 is a kill."""
    process.join(300)
    return process.exitcode


def steps(out):
    """The lines of metrics.jsonl, without the seconds."""
    lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def again(out, argv):
    """The flags that bring a killed run to its end."""
    return ["--resume", "--out", str(out)] if (Path(out) / "config.json").exists() else argv


def assert_same(a, b):
    """Two finished runs, bit for bit, and no file left over."""
    x, y = load_checkpoint(a / "ckpt.pt"), load_checkpoint(b / "ckpt.pt")
    assert x["step"] == y["step"] and steps(a) == steps(b)
    for name, tensor in x["model"].items():
        assert torch.equal(tensor, y["model"][name]), name
    for i, state in x["optimizer"]["state"].items():
        assert all(torch.equal(v, y["optimizer"]["state"][i][k]) for k, v in state.items())
    names = {path.name for path in a.iterdir()}
    assert names == {path.name for path in b.iterdir()} and names <= set(FILES)
    assert (a / "answers.jsonl").read_bytes() == (b / "answers.jsonl").read_bytes()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="random moments (default 20)")
    kills = parser.parse_args().kills
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        argv = small_run(folder)
        for name in ("warm-up", "whole"):
            begin = time.time()
            assert finish(start([*argv, "--out", str(folder / name)])) == 0
        whole = time.time() - begin
        moments = [random.Random(i).uniform(0, whole) for i in range(kills)]
        moments += itertools.product(range(1, len(FILES) + 1), (HALF, WHOLE, PLACED))
        for i, moment in enumerate(moments):
            out = folder / f"run-{i}"
            flags = [*argv, "--out", str(out)]
            if isinstance(moment, tuple):
                said = f"{FILES[moment[0] - 1]} {moment[1]}"
                assert finish(start(flags, moment)) == -signal.SIGKILL
            else:
                process, said = start(flags), f"after {moment:.2f} s"
                time.sleep(moment)
                process.kill()
                finish(process)
            assert finish(start(again(out, flags))) == 0
            assert_same(folder / "whole", out)
            print(f"kill {i + 1}, {said}: resumed, the same bits", flush=True)


if __name__ == "__main__":
    import faults  # so that the forked processes find `run` under the module's name

    faults.main()
