"""Kills, Ctrl-C, full disks, too little memory: what is left, and how a run goes on."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import small_run
from faults import FILES, HALF, PLACED, WHOLE, again, assert_same, finish, start, steps

import train
from dlr import GPT, load_checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(flags, the folder of a run that nothing disturbed)"""
    folder = tmp_path_factory.mktemp("whole")
    argv = small_run(folder)
    train.main([*argv, "--out", str(folder / "run")])
    assert len(steps(folder / "run")) == 12
    assert sorted(path.name for path in (folder / "run").iterdir()) == sorted(set(FILES))
    return argv, folder / "run"


def at_step(monkeypatch, n, do):
    """Do something in the n-th step, before the optimizer moves."""
    calls, real = [], torch.optim.AdamW.step

    def step(self, *a, **k):
        calls.append(1)
        if len(calls) == n:
            do()
        return real(self, *a, **k)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)


@pytest.mark.parametrize("moment", [(1, WHOLE), (4, HALF), (5, PLACED), (8, HALF)],
                         ids=lambda moment: f"{FILES[moment[0] - 1]} {moment[1]}")
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, whole, moment):
    """Broken if a kill around a file lost anything (all moments: python tests/faults.py)."""
    argv = [*whole[0], "--out", str(tmp_path / "run")]
    assert finish(start(argv, moment)) == -signal.SIGKILL
    assert finish(start(again(tmp_path / "run", argv))) == 0
    assert_same(whole[1], tmp_path / "run")


@pytest.mark.parametrize("how", ["crash", "Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, whole, monkeypatch, capsys, how):
    """Broken if a crash cost more than the steps since the checkpoint, a signal any, or hid a bug."""
    out, kept = tmp_path / "run", 3 if how == "crash" else 5
    number = signal.SIGINT if how == "Ctrl-C" else signal.SIGTERM
    interrupt = bug if how == "crash" else lambda: os.kill(os.getpid(), number)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        at_step(patch, 5, interrupt)
        with pytest.raises(RuntimeError if how == "crash" else SystemExit) as stop:
            train.main([*whole[0], "--out", str(out)])
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    if how != "crash":
        assert stop.value.code == 130 and f"--resume --out {out}" in capsys.readouterr().out
    assert load_checkpoint(out / "ckpt.pt")["step"] == kept
    (out / "metrics.jsonl").open("a").write('{"step": 6, "lo')  # a line cut by a kill
    calls, real = [], train.collate
    monkeypatch.setattr(train, "collate", lambda items: calls.append(1) or real(items))
    for _ in range(2):  # the second time it is finished: nothing is trained again
        train.main(["--resume", "--out", str(out)])
        assert len(calls) == 12 - kept
        assert_same(whole[1], out)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
def test_a_living_run_is_left_alone(tmp_path, whole, monkeypatch):
    """Broken if a second start or --resume in a run's folder harmed the run, or went on beside it."""
    out, ends = tmp_path / "run", []

    def beside():
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        for argv in (["--resume", "--out", str(out)], [*whole[0], "--seed", "1", "--out", str(out)]):
            done = subprocess.run([sys.executable, train.__file__, *argv], capture_output=True, text=True)
            ends.append((done.returncode, done.stderr))
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    with monkeypatch.context() as patch:
        at_step(patch, 5, beside)
        train.main([*whole[0], "--out", str(out)])
    assert ends == [(2, f"train.py: error: --out {out}: another process is at work in this folder\n")] * 2
    assert_same(whole[1], out)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
def test_of_two_that_start_together_one_runs(tmp_path, whole):
    """Broken if the folder could hold one run's flags and the other's weights."""
    out = tmp_path / "run"
    runs = [start([*whole[0], "--seed", str(seed), "--out", str(out)]) for seed in (0, 1)]
    codes = [finish(run) for run in runs]
    assert sorted(codes) == [0, 2]
    seed = json.loads((out / "config.json").read_text())["seed"]
    assert seed == codes.index(0) == load_checkpoint(out / "ckpt.pt")["train"]["seed"]
    if seed == 0:
        assert_same(whole[1], out)


def test_what_cannot_start_leaves_no_folder(tmp_path, whole):
    """Broken if a folder that was made for its lock stayed behind, empty."""
    with pytest.raises(SystemExit):
        train.main([*whole[0], "--rows", "33", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def other_rows(change):
    """Rewrite a folder's train.jsonl: change(lines) -> lines."""
    def spoil(folder):
        path = folder / "train.jsonl"
        path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    return spoil


@pytest.mark.parametrize("spoil, now", [
    (other_rows(lambda lines: lines[:9]), "9 rows, 4 steps"),  # fewer steps than were trained
    (other_rows(lambda lines: lines * 2), "64 rows, 24 steps"),
    (other_rows(lambda lines: lines[::-1]), "32 rows, 12 steps"),
    (other_rows(lambda lines: [lines[0].replace("#### 0", "#### 1"), *lines[1:]]), "32 rows, 12 steps")],
    ids=["shrunk", "grown", "reordered", "changed"])
def test_a_run_goes_on_only_with_the_rows_it_was_started_on(tmp_path, monkeypatch, capsys, spoil, now):
    """Broken if a resumed run trained on other rows, for ever or with the rate climbing back."""
    argv, out = small_run(tmp_path), tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(SystemExit):
            train.main([*argv, "--out", str(out)])
    saved = (out / "ckpt.pt").read_bytes()
    spoil(tmp_path)
    monkeypatch.setattr(GPT, "dlr_loss", lambda *args: pytest.fail("training went on"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train.main(["--resume", "--out", str(out)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert re.search(rf"not those that .* was started on: 32 rows, 12 steps .* then, {now} .* now", error), error
    assert (out / "ckpt.pt").read_bytes() == saved


def test_a_baseline_on_other_problems_is_not_compared(tmp_path, capsys):
    """Broken if dlr and sft were paired by problem although the test split had changed between them."""
    argv = [*small_run(tmp_path), "--rows", "8", "--epochs", "1", "--baseline", "--out", str(tmp_path / "run")]
    train.main(argv)
    (tmp_path / "run" / "sft" / "summary.json").unlink()
    lines = (tmp_path / "test.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "test.jsonl").write_text("".join(lines[:3]))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train.main(["--resume", "--out", str(tmp_path / "run")])
    said = capsys.readouterr()
    assert stop.value.code == 2 and "different problems" in said.err and said.err.count("\n") == 1
    assert "sft off" in said.out and "dlr on - sft" not in said.out


@pytest.mark.parametrize("step", [12, 13])
def test_a_checkpoint_at_its_end_never_trains_on(tmp_path, whole, monkeypatch, step):
    """Broken if the loop ended at one step alone and missed it, as for runs that name no rows."""
    argv, out = [*whole[0], "--out", str(tmp_path / "run")], tmp_path / "run"
    train.main([*argv, "--eval_rows", "-1"])
    saved = torch.load(out / "ckpt.pt", weights_only=True)
    del saved["started_on"]
    torch.save({**saved, "step": step}, out / "ckpt.pt")
    monkeypatch.setattr(GPT, "dlr_loss", lambda *args: pytest.fail("training went on"))
    train.main(["--resume", "--out", str(out)])
    assert load_checkpoint(out / "ckpt.pt")["step"] == step


def test_ctrl_c_in_the_baseline_names_the_whole_run(tmp_path, monkeypatch, capsys):
    """Broken if going on as told trained the sft half alone, without the comparison."""
    small = [*small_run(tmp_path), "--rows", "8", "--epochs", "2", "--baseline", "--no-generate"]
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(SystemExit):
            train.main([*small, "--out", str(tmp_path / "run")])
    told = capsys.readouterr().out.split("go on with: python train.py ")[1].split()
    train.main(told)
    assert "dlr on - sft" in capsys.readouterr().out


def bug():
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def gpu(patch, out):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def nan(*args, real=GPT.dlr_loss):
    loss, terms = real(*args)
    return loss * math.nan, terms


MEMORY = "out of memory .*--grad_accum.*--batch_size"
LINUX = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")


@pytest.mark.parametrize("how, n, words", [
    (gpu, 5, MEMORY), (lambda patch, out: torch.empty(10**13), 5, MEMORY),
    (lambda patch, out: patch.setattr(GPT, "dlr_loss", nan), 4, "step 4: loss or gradient is not finite"),
    pytest.param(lambda patch, out: (out / "ckpt.pt.tmp").symlink_to("/dev/full"), 6,
                 "cannot write .*run/ckpt.pt", marks=LINUX)])
def test_a_failure_is_one_line_and_costs_no_checkpoint(tmp_path, whole, monkeypatch, capsys, how, n, words):
    """Broken if it were a traceback, did not say what helps, or spoilt the last checkpoint."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, n, lambda: how(patch, out))
        with pytest.raises(SystemExit) as stop:
            train.main([*whole[0], "--out", str(out)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and ".py: error: " in error and error.count("\n") == 1, error
    assert re.search(words, error), error
    saved = load_checkpoint(out / "ckpt.pt")
    assert saved["step"] == 3 and all(v.isfinite().all() for v in saved["model"].values())
    assert not list(out.glob("*.tmp"))
    train.main(["--resume", "--out", str(out)])  # with memory and space again
    assert_same(whole[1], out)
