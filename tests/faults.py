"""
Kill training (SIGKILL) again and again, resume it each time, and compare with a run that nothing disturbed: weights,
optimizer, random state, metrics and answers, bit for bit.

    python tests/faults.py --kills 20 --seed 0     # 20 random moments, then around every file that is put in place

Every run is a process of its own, forked from a server that has imported torch once.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch

import train
from dlr import load_checkpoint

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["torch._dynamo", "train"])  # what the optimizer imports; ours, if started from the root
FLAGS = ["--init_from", "scratch", "--n_layer", "2", "--n_embd", "32", "--n_codes", "5", "--n_rollouts", "2",
         "--epochs", "3", "--save_every", "3", "--no-generate", "--device", "cpu", "--no-baseline"]  # 12 steps
FILES = ["config.json", "metrics.jsonl", *["ckpt.pt"] * 4, "answers.jsonl", "summary.json"]  # as they are put in place
HALF, WHOLE, PLACED = "half of it written", "written, not in place", "in place"


def flags(folder):
    """For 12 quick steps: FLAGS with 32 short rows, written to a folder."""
    for split, n in (("train", 32), ("test", 4)):
        rows = [{"question": f"{i} + {3 * i}?", "answer": f"{'so ' * (i % 4)}#### {4 * i}"} for i in range(n)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [*FLAGS, "--data", str(folder)]


def run(argv, stderr=os.devnull, env=None, die=None):
    """The process: train.py with these flags. die (n, how): it kills itself around the n-th file put in place."""
    os.environ.update(env or {})
    for stream, to in ((1, os.devnull), (2, stderr)):
        os.dup2(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    torch.set_num_threads(1)
    calls, replace = itertools.count(1), os.replace

    def lethal(source, target):
        now = die and next(calls) == die[0]
        if now and die[1] == HALF:
            os.truncate(source, os.path.getsize(source) // 2)
        if not now or die[1] == PLACED:
            replace(source, target)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = lethal
    code = 0
    try:
        train.main(argv)
    except SystemExit as e:
        code = e.code
    sys.stderr.flush()
    os._exit(code or 0)  # with several processes, gloo's threads would disturb a regular exit


def start(*args, **kw):
    process = FORK.Process(target=run, args=args, kwargs=kw, daemon=True)
    process.start()
    return process


def start_two(argv, **kw):
    """Two processes as torchrun starts them."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(s.getsockname()[1]), "WORLD_SIZE": "2"}
    return [start(argv, env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **kw) for rank in range(2)]


def finish(*processes):
    """Their exit codes; -9 is a kill."""
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


def steps(out):
    """The lines of metrics.jsonl, without the seconds."""
    lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def wait_for_step(out, n):
    """Until metrics.jsonl has n lines."""
    path, end = Path(out) / "metrics.jsonl", time.time() + 300
    while time.time() < end and (path.read_bytes().count(b"\n") if path.exists() else 0) < n:
        time.sleep(0.005)
    assert time.time() < end


def again(out, argv):
    """The flags that bring a killed run to its end."""
    return ["--resume", "--out", str(out)] if (Path(out) / "config.json").exists() else argv


def assert_same(a, b):
    """Two finished runs, bit for bit, and nothing left over."""
    a, b = Path(a), Path(b)
    x, y = load_checkpoint(a / "ckpt.pt"), load_checkpoint(b / "ckpt.pt")
    for part in (lambda s: s["model"], lambda s: {(i, k): v for i, state in s["optimizer"]["state"].items()
                                                  for k, v in state.items()}, lambda s: {"usage": s["usage"]}):
        assert part(x).keys() == part(y).keys()
        assert all(torch.equal(part(x)[k], part(y)[k]) for k in part(x))
    assert x["step"] == y["step"] and torch.equal(x["usage"], y["usage"])
    assert steps(a) == steps(b)
    assert (a / "answers.jsonl").read_bytes() == (b / "answers.jsonl").read_bytes()
    assert {p.name for p in a.iterdir()} == {p.name for p in b.iterdir()} == set(FILES)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="random moments (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder, begin = Path(folder), time.time()
        base = flags(folder)
        assert finish(start([*base, "--out", str(folder / "warm-up")])) == [0]
        start_time = time.time()
        assert finish(start([*base, "--out", str(folder / "whole")])) == [0]
        whole = time.time() - start_time
        print(f"undisturbed: {whole:.2f} s", flush=True)
        moments = [random.Random(args.seed * 1000 + i).uniform(0, whole) for i in range(args.kills)]
        moments += [(n, how) for n in range(1, len(FILES) + 1) for how in (HALF, WHOLE, PLACED)]
        for i, moment in enumerate(moments):
            out = folder / f"run-{i}"
            argv = [*base, "--out", str(out)]
            if isinstance(moment, tuple):
                process, said = start(argv, die=moment), f"{FILES[moment[0] - 1]} {moment[1]}"
            else:
                process, said = start(argv), f"after {moment:.2f} s"
                time.sleep(moment)
                process.kill()
            code, = finish(process)
            done = len(steps(out)) if (out / "metrics.jsonl").exists() else 0
            saved = load_checkpoint(out / "ckpt.pt")["step"] if (out / "ckpt.pt").exists() else "none"
            left = sorted(p.name for p in out.glob("*.tmp"))
            assert code == -signal.SIGKILL or not isinstance(moment, tuple), code
            assert finish(start(again(out, argv))) == [0]
            assert_same(folder / "whole", out)
            print(f"kill {i + 1:2}, {said}: {'finished before' if code == 0 else f'at step {done}'}, checkpoint {saved}"
                  f"{', left ' + left[0] if left else ''}; resumed, the same bits", flush=True)
        print(f"{len(moments)} kills, all resumed to the same bits, {time.time() - begin:.0f} s")


if __name__ == "__main__":
    import faults  # so that the forked processes find the functions under the module's name

    faults.main()
