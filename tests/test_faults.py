"""Kills, Ctrl-C, full disks, memory, two runs in one folder, other versions: what is left, and how it goes on."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from faults import FILES, HALF, PLACED, WHOLE, again, assert_same, finish, flags, start, start_two, steps, wait_for_step

import train
from dlr import GPT, load_checkpoint

LONG = ["--epochs", "999"]  # a run that does not end by itself


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(flags, the folder of a run that nothing disturbed)"""
    folder = tmp_path_factory.mktemp("whole")
    argv = flags(folder)
    assert finish(start([*argv, "--out", str(folder / "run")])) == [0]
    return argv, folder / "run"


@pytest.mark.parametrize("moment", [
    (1, WHOLE), (1, PLACED), (3, HALF), (4, HALF), (4, WHOLE), (4, PLACED), (7, PLACED), (8, HALF)],
    ids=lambda moment: f"{FILES[moment[0] - 1]} {moment[1]}")
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, whole, moment):
    """Broken if a kill around a file's writing lost or changed anything (all moments: python tests/faults.py)."""
    argv = [*whole[0], "--out", str(tmp_path / "run")]
    assert finish(start(argv, die=moment)) == [-signal.SIGKILL]
    assert finish(start(again(tmp_path / "run", argv))) == [0]
    assert_same(whole[1], tmp_path / "run")


def test_a_line_cut_by_a_kill_is_written_again(tmp_path, whole):
    """Broken if a half line at the end of metrics.jsonl stayed, or broke the resumed run's metrics."""
    argv = [*whole[0], "--out", str(tmp_path / "run")]
    process = start(argv)
    wait_for_step(tmp_path / "run", 5)
    process.kill()
    process.join()
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    assert finish(start(["--resume", "--out", str(tmp_path / "run")])) == [0]
    assert_same(whole[1], tmp_path / "run")


def test_ctrl_c_saves_and_leaves(tmp_path, whole):
    """Broken if Ctrl-C lost the step at work, gave another exit status than 130, or could not be resumed from."""
    argv = [*whole[0], "--out", str(tmp_path / "run")]
    process = start(argv)
    wait_for_step(tmp_path / "run", 1)
    os.kill(process.pid, signal.SIGINT)
    assert finish(process) == [130]
    assert load_checkpoint(tmp_path / "run" / "ckpt.pt")["step"] == len(steps(tmp_path / "run")) < 12
    assert finish(start(["--resume", "--out", str(tmp_path / "run")])) == [0]
    assert_same(whole[1], tmp_path / "run")


def test_ctrl_c_stops_several_processes_after_the_same_step(tmp_path, whole):
    """Broken if one process told to stop left the others waiting, or under torchrun nothing was saved."""
    argv, out = [*whole[0], "--method", "sft", "--eval_rows", "-1", "--out", str(tmp_path / "run")], tmp_path / "run"
    processes = start_two(argv)
    wait_for_step(out, 1)
    os.kill(processes[1].pid, signal.SIGINT)  # torchrun tells all; one must do, since they are never told at once
    assert finish(*processes) == [130, 130]
    assert load_checkpoint(out / "ckpt.pt")["step"] == len(steps(out)) < 12
    assert finish(*start_two(["--resume", "--out", str(out)])) == [0, 0]
    assert [line["step"] for line in steps(out)] == list(range(1, 13))


def test_two_runs_in_one_folder(tmp_path, whole):
    """Broken if a second run, begun at the same moment or resumed beside the first, could overwrite its files."""
    out, said = tmp_path / "run", tmp_path / "stderr"
    argv = [*whole[0], *LONG, "--out", str(out)]
    both = [start(argv, stderr=str(said)) for _ in range(2)]
    wait_for_step(out, 1)
    while all(process.is_alive() for process in both):
        time.sleep(0.01)
    first, second = sorted(both, key=lambda process: not process.is_alive())
    assert finish(second) == [2]
    assert finish(start(["--resume", "--out", str(out)], stderr=str(said))) == [2]
    lines = [line for line in said.read_text().splitlines() if "error" in line]
    assert len(lines) == 2 and all(f"--out {out}: another run is at work" in line for line in lines)
    first.kill()
    assert finish(first) == [-signal.SIGKILL]
    assert finish(start(["--resume", "--out", str(out)], die=(2, WHOLE))) == [-signal.SIGKILL]  # the lock has gone


def at_step(monkeypatch, n, do):
    """Do something in the n-th step, before the optimizer moves."""
    calls, real = [], torch.optim.AdamW.step

    def step(self, *a, **k):
        calls.append(1)
        if len(calls) == n:
            do()
        return real(self, *a, **k)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)


def fails(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("train.py: error: ") and error.count("\n") == 1
    return error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full, where nothing can be written")
def test_disk_full(tmp_path, whole, monkeypatch, capsys):
    """Broken if a checkpoint that does not fit the disk cost the last good one, or the error did not name the file."""
    out = tmp_path / "run"
    at_step(monkeypatch, 4, lambda: (out / "ckpt.pt.tmp").symlink_to("/dev/full"))
    error = fails([*whole[0], "--out", str(out)], capsys)
    assert f"cannot write {out / 'ckpt.pt'}" in error
    assert load_checkpoint(out / "ckpt.pt")["step"] == 3 and not list(out.glob("*.tmp"))
    train.main(["--resume", "--out", str(out)])  # with space again
    assert load_checkpoint(out / "ckpt.pt")["step"] == 12


def test_a_folder_that_becomes_read_only(tmp_path, whole, monkeypatch, capsys):
    """Broken if losing the right to write cost the last good checkpoint, or the error did not name the file."""
    def replace(source, target):
        raise PermissionError(13, "Permission denied", str(source))

    out = tmp_path / "run"
    at_step(monkeypatch, 4, lambda: monkeypatch.setattr(os, "replace", replace))
    assert f"cannot write {out / 'ckpt.pt'}: [Errno 13]" in fails([*whole[0], "--out", str(out)], capsys)
    assert load_checkpoint(out / "ckpt.pt")["step"] == 3


def gpu_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize("how", [lambda: torch.empty(10**13), lambda: bytearray(10**15), gpu_memory],
                         ids=["torch", "python", "GPU"])
def test_out_of_memory_says_what_helps(how, tmp_path, whole, monkeypatch, capsys):
    """Broken if running out of memory were a traceback, or cost the last good checkpoint."""
    at_step(monkeypatch, 5, how)
    error = fails([*whole[0], "--out", str(tmp_path / "run")], capsys)
    assert "out of memory" in error and all(f in error for f in ("--grad_accum", "--n_rollouts", "--batch_size"))
    assert load_checkpoint(tmp_path / "run" / "ckpt.pt")["step"] == 3


def test_other_errors_are_not_taken_for_memory(tmp_path, whole, monkeypatch):
    """Broken if a bug were reported as a lack of memory."""
    def bug():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    at_step(monkeypatch, 2, bug)
    with pytest.raises(RuntimeError, match="illegal"):
        train.main([*whole[0], "--out", str(tmp_path / "run")])


def test_an_old_checkpoint_gives_the_outputs_it_always_gave():
    """Broken if this version computed something else from a checkpoint of an older one (numbers: as of its making)."""
    model = GPT.from_checkpoint(train.BASE)
    idx = torch.arange(0, 760, 19).view(2, 20)
    with torch.no_grad():
        logits, loss = model(idx[:, :-1], codes="off")[0], model(idx[:, :-1], idx[:, 1:], codes="off")[1]
    torch.testing.assert_close(logits[:, -1, :4], torch.tensor(
        [[-1.10416, -1.09966, -1.04100, -1.17045], [-5.83451, -5.72033, -5.64451, -5.70503]]), atol=1e-3, rtol=0)
    assert loss.item() == pytest.approx(11.82339, abs=1e-3)
