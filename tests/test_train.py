"""train.py end to end: the real script with tiny sizes, its checkpoints, its errors, two processes against one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from data.tokens import load_encoding
from data.wordproblems import generate
from dlr import GPT, load_checkpoint
from eval import evaluate

ROOT = Path(__file__).parents[1]
SMALL = ["--init_from", "scratch", "--n_layer", "2", "--n_embd", "32", "--n_codes", "5", "--rows", "24", "--epochs",
         "2", "--n_rollouts", "2", "--save_every", "2", "--eval_rows", "-1", "--device", "cpu", "--no-baseline"]


def metrics(run):
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def same_state(a, b):
    a, b = load_checkpoint(Path(a) / "ckpt.pt"), load_checkpoint(Path(b) / "ckpt.pt")
    assert a["step"] == b["step"] and a["model"].keys() == b["model"].keys()
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])
    for i, state in a["optimizer"]["state"].items():
        assert all(torch.equal(v, b["optimizer"]["state"][i][k]) for k, v in state.items())
    assert torch.equal(a["usage"], b["usage"])


@pytest.mark.parametrize("select", ["likelihood", "advantage"])
@pytest.mark.parametrize("how", ["crash", "ctrl-c"])
def test_resume_gives_the_same_bits(tmp_path, monkeypatch, how, select):
    """Broken if weights, optimizer, random state, data order or the prior's average were lost in an interruption."""
    flags = SMALL + ["--select", select]
    train.main(flags + ["--out", str(tmp_path / "whole")])
    steps, real = [], torch.optim.AdamW.step

    def step(self, *a, **k):
        steps.append(1)
        if len(steps) == 4 and how == "crash":
            raise RuntimeError("power cut")
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *a, **k)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(SystemExit if how == "ctrl-c" else RuntimeError) as stop:
        train.main(flags + ["--out", str(tmp_path / "cut")])
    if how == "ctrl-c":
        assert stop.value.code == 130 and load_checkpoint(tmp_path / "cut" / "ckpt.pt")["step"] == 4
    train.main(["--resume", "--out", str(tmp_path / "cut")])
    same_state(tmp_path / "whole", tmp_path / "cut")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")
    assert [m["step"] for m in metrics(tmp_path / "cut")] == list(range(1, 7))


def test_the_main_job(tmp_path, capsys):
    """Broken if the default job, embedded base model to final table, did not run or left something out."""
    out = tmp_path / "run"
    train.main(["--rows", "16", "--epochs", "1", "--eval_rows", "6", "--device", "cpu", "--out", str(out)])
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    arms = [tuple(words[:2]) for words in lines if len(words) > 3 and words[0] in ("dlr", "sft") and "%" in words[-1]]
    assert arms[:5] == [("dlr", "on"), ("dlr", "off"), ("dlr", "random"), ("dlr", "shuffled"), ("sft", "off")]
    assert "points of strict accuracy" in text and "device: cpu (--device)" in text
    for folder in (out, out / "sft"):
        assert {p.name for p in folder.iterdir()} >= {"config.json", "metrics.jsonl", "ckpt.pt", "summary.json",
                                                       "answers.jsonl"}
        assert not list(folder.glob("*.tmp"))
    assert len(metrics(out)) == len(metrics(out / "sft")) == 2, "sft must have the same budget of steps"
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 6 and answers[0]["on"]["text"] and answers[0]["question"]


def test_the_base_model_can_do_what_it_was_pretrained_for():
    """Broken if the committed base checkpoint were not the one that the README's command makes."""
    model, enc = GPT.from_checkpoint(train.BASE), load_encoding("wordproblems")
    rows = [row | {"final": str(row["final"])} for row in generate(60, 5, "test", ops=(1, 2))]
    summary, _ = evaluate(model, enc, rows, ("off",), max_new_tokens=100)
    assert summary["arms"]["off"]["strict"] > 0.85  # 98 % and 87 % of 200 problems each
    assert train.BASE.stat().st_size < 4_000_000


def test_sft_leaves_codes_alone_and_dlr_gives_them_their_own_rate(tmp_path):
    """Broken if SFT touched codebook or router, or if one learning rate served both LM and codes."""
    flags = [f for f in SMALL if f != "--no-baseline"]
    train.main(flags + ["--out", str(tmp_path / "dlr"), "--lr", "1e-3", "--code_lr", "2e-2", "--warmup", "0.4"])
    dlr, sft = load_checkpoint(tmp_path / "dlr" / "ckpt.pt"), load_checkpoint(tmp_path / "dlr" / "sft" / "ckpt.pt")
    assert [g["peak"] for g in dlr["optimizer"]["param_groups"]] == [1e-3, 1e-3, 2e-2]
    assert [g["weight_decay"] for g in dlr["optimizer"]["param_groups"]] == [0.01, 0.0, 0.0]
    assert sft["model"]["codebook.weight"].abs().sum() == 0 and dlr["model"]["codebook.weight"].abs().sum() > 0
    rates = [m["lr"] / 1e-3 for m in metrics(tmp_path / "dlr")]
    assert rates[0] == pytest.approx(1 / 2.4) and rates[1] == pytest.approx(2 / 2.4)
    assert rates[2] <= 1 and rates[2:] == sorted(rates[2:], reverse=True) and 0 < rates[-1] < 0.3


def same_training(one, other):
    """Metrics and weights of two runs that should differ by rounding alone."""
    a, b = metrics(one), metrics(other)
    assert len(a) == len(b) == 6
    for x, y in zip(a, b):
        assert x.keys() == y.keys()
        for name in x.keys() - {"policy", "usage"}:
            assert x[name] == pytest.approx(y[name], rel=0.02 if "grad" in name else 1e-3, abs=1e-5), name
        assert x.get("policy", 0) == pytest.approx(y.get("policy", 0), abs=1e-4)
        assert x.get("usage") == pytest.approx(y.get("usage"), abs=0.002)
    a, b = (load_checkpoint(Path(run) / "ckpt.pt")["model"] for run in (one, other))
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-4, rtol=1e-3, msg=name)


def torchrun(*argv):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*command, str(ROOT / "train.py"), *argv], timeout=200, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("method", ["sft", "dlr"])
def test_micro_batches_add_up_to_the_batch(tmp_path, method):
    """Broken if accumulated micro-batches gave other losses, search and prior included, than the batch at once."""
    flags = [*SMALL, "--method", method]
    train.main([*flags, "--out", str(tmp_path / "one")])
    train.main([*flags, "--out", str(tmp_path / "four"), "--grad_accum", "4"])
    same_training(tmp_path / "one", tmp_path / "four")


@pytest.mark.parametrize("method", ["sft", "dlr --grad_accum 2", "frozen --n_codes 1 --n_rollouts 0", "tokenassorted"])
def test_two_processes_train_like_one(tmp_path, method):
    """Broken if torchrun DDP gave other losses, rollouts, prior or metrics than one process with the same batch."""
    flags = [*SMALL, "--method", *method.split()]
    train.main([*flags, "--out", str(tmp_path / "one")])
    torchrun(*flags, "--out", str(tmp_path / "two"))
    same_training(tmp_path / "one", tmp_path / "two")


def test_every_row_of_every_run_draws_rollouts_of_its_own(tmp_path, monkeypatch):
    """Broken if two runs with different seeds, or two rows of one, had the same noise (CPU generators read 32 bits)."""
    real, draws = GPT.dlr_loss, []

    def loss(self, *a, seeds, **k):
        draws.extend(torch.rand(4, generator=torch.Generator().manual_seed(seed)) for seed in seeds)
        return real(self, *a, seeds=seeds, **k)

    monkeypatch.setattr(GPT, "dlr_loss", loss)
    for seed in ("0", "1", "2"):
        train.main([*SMALL, "--seed", seed, "--out", str(tmp_path / seed)])
    assert len(draws) == 3 * 48 and len(torch.stack(draws).unique(dim=0)) == len(draws)


def test_a_run_goes_on_with_another_number_of_processes(tmp_path, monkeypatch):
    """Broken if what a step trains on, or its rollouts, depended on how many processes share it."""
    train.main([*SMALL, "--out", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        real, steps = torch.optim.AdamW.step, []
        patch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: (
            steps.append(1), os.kill(os.getpid(), signal.SIGINT) if len(steps) == 3 else None, real(self, *a, **k))[-1])
        with pytest.raises(SystemExit):
            train.main([*SMALL, "--out", str(tmp_path / "cut")])
    assert load_checkpoint(tmp_path / "cut" / "ckpt.pt")["step"] == 3
    torchrun("--resume", "--out", str(tmp_path / "cut"))
    same_training(tmp_path / "whole", tmp_path / "cut")


def test_a_checkpoint_keeps_its_tokenizer_and_its_codes(tmp_path, capsys):
    """Broken if training on from a checkpoint silently changed its tokenizer or how its codes are laid out."""
    train.main([*SMALL, "--chunk", "2", "--out", str(tmp_path / "a")])
    start = [*SMALL[2:], "--init_from", str(tmp_path / "a" / "ckpt.pt")]
    with pytest.raises(SystemExit):
        train.main([*start, "--out", str(tmp_path / "b")])
    assert "ckpt.pt holds trained codes with {'chunk': 2}" in capsys.readouterr().err
    start += ["--chunk", "2"]
    train.main([*start, "--out", str(tmp_path / "b")])
    saved = load_checkpoint(tmp_path / "a" / "ckpt.pt")
    torch.save({**saved, "tokenizer": str(tmp_path / "gone")}, tmp_path / "other.pt")
    with pytest.raises(SystemExit):
        train.main([*start, "--init_from", str(tmp_path / "other.pt"), "--out", str(tmp_path / "c")])
    assert "gone" in capsys.readouterr().err


def test_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path, capsys, monkeypatch):
    """Broken if a NaN loss went on training or overwrote the last good checkpoint."""
    real, calls = GPT.dlr_loss, []

    def loss(self, *a, **k):
        calls.append(1)
        value, terms = real(self, *a, **k)
        return value * (float("nan") if len(calls) == 4 else 1.0), terms

    monkeypatch.setattr(GPT, "dlr_loss", loss)
    with pytest.raises(SystemExit):
        train.main([*SMALL, "--out", str(tmp_path / "run")])
    assert "step 3" in capsys.readouterr().err
    saved = load_checkpoint(tmp_path / "run" / "ckpt.pt")
    assert saved["step"] == 2 and all(v.isfinite().all() for v in saved["model"].values())


def test_every_logged_metric_and_flag_is_explained(tmp_path, capsys):
    """Broken if a metric had no line in the README or a flag had no help."""
    train.main([*SMALL, "--out", str(tmp_path / "run")])
    readme = (ROOT / "README.md").read_text()
    for name in metrics(tmp_path / "run")[-1]:
        assert f"`{name}`" in readme, f"README does not explain the metric {name}"
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in train.Config.__dataclass_fields__)
