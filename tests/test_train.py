"""train.py end to end: the real script with tiny sizes, its methods, files and processes."""

import argparse
import gc
import io
import json
import math
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import hugging_face_folder, small_run
from faults import steps

import eval as evaluation
import train
from data.plumbing import BASE
from data.tokens import encode_rows, load_encoding, load_rows
from data.wordproblems import generate
from dlr import GPT, SWITCH_COST, load_checkpoint

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Flags for 12 quick steps without evaluation."""
    return [*small_run(tmp_path_factory.mktemp("small")), "--eval_rows", "-1"]


def weights(run):
    return load_checkpoint(run / "ckpt.pt")["model"]


def same_training(one, other):
    """Metrics and weights of two runs that differ by rounding alone; the prior goes by parts."""
    a, b = steps(one), steps(other)
    assert len(a) == len(b) == 12
    for x, y in zip(a, b):
        assert x.keys() == y.keys()
        for name in x.keys() - {"usage", "regularizer"}:
            assert x[name] == pytest.approx(y[name], rel=2e-3, abs=1e-5), name
        assert x.get("usage") == pytest.approx(y.get("usage"), abs=0.002)
    for name, tensor in weights(one).items():
        if name != "bigram":
            torch.testing.assert_close(tensor, weights(other)[name], atol=2e-4, rtol=1e-3, msg=name)


# ---- the job -------------------------------------------------------------------------------------


def test_the_main_job(tmp_path, capsys):
    """Broken if the default job, embedded base model to final table, left something out."""
    out = tmp_path / "run"
    train.main(["--rows", "16", "--epochs", "1", "--eval_rows", "6", "--device", "cpu", "--out", str(out)])
    text = capsys.readouterr().out
    arms = [line[:24].split() for line in text.partition("nats/token")[2].partition("nats/token:")[0].splitlines()[1:]]
    assert arms == [["dlr", "on"], ["dlr", "off"], ["dlr", "random"], ["dlr", "shuffled"], ["sft", "off"],
                    ["sft", "2.17", "epochs", "off"]], "N = 4 at half depth: a step costs (4.5 + 4 / 2) / 3 of SFT"
    for name in ("sft", "sft 2.17 epochs"):
        assert f"dlr on - {name}: " in text and f"{name} " in text.partition("seconds of training: ")[2]
    assert "device: cpu (--device), float32" in text
    for folder, budget in ((out, 2), (out / "sft", 2), (out / "sft-compute", math.ceil(2.17 * 16 / 8))):
        assert {path.name for path in folder.iterdir()} - {"sft", "sft-compute"} == {
            "config.json", "metrics.jsonl", "ckpt.pt", "summary.json", "answers.jsonl"}
        assert len(steps(folder)) == budget
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 6 and answers[0]["on"]["text"] and answers[0]["question"]


def test_the_base_model_can_do_what_it_was_pretrained_for():
    """Broken if the committed base checkpoint were not the one that the README's command makes."""
    model, enc = GPT.from_checkpoint(BASE), load_encoding("wordproblems")
    rows = [r | {"final": str(r["final"])} for r in generate(60, 5, "test", ops=(1, 2))]
    summary, _ = evaluation.evaluate(model, enc, rows, ("off",), max_new_tokens=100)
    assert summary["arms"]["off"]["strict"] > 0.85
    assert BASE.stat().st_size < 4_000_000


def test_pretraining_makes_a_base_checkpoint(tmp_path):
    """Broken if base.pt were not the trained LM, in bfloat16 and without codes."""
    train.main(["--method", "pretrain", "--rows", "16", "--epochs", "1", "--eval_rows", "-1",
                "--device", "cpu", "--out", str(tmp_path)])
    base = load_checkpoint(tmp_path / "base.pt")
    assert base["config"]["n_embd"] == 128 and len(steps(tmp_path)) == 1
    assert not [name for name in base["model"] if name.startswith(("codebook", "router", "bigram"))]
    for name, tensor in base["model"].items():
        assert torch.equal(tensor, weights(tmp_path)[name].bfloat16()), name
    assert GPT.from_checkpoint(tmp_path / "base.pt", n_codes=3).config.n_codes == 3


def test_training_lowers_the_loss_and_makes_codes_that_matter(tmp_path, small):
    """Broken if the flags, the optimizer or the loop kept DLR from learning."""
    train.main([*small, "--epochs", "20", "--lr", "3e-3", "--out", str(tmp_path)])
    log = steps(tmp_path)
    assert log[-1]["loss"] < 0.5 * log[0]["loss"] and log[0]["info_gain"] == 0
    assert sum(line["info_gain"] for line in log[-20:]) > 0
    assert set(log[0]) == {"step", "loss", "generalist", "info_gain", "policy", "regularizer",
                           "grad_norm", "code_grad_norm", "active", "perplexity", "usage", "lr"}


def test_the_path_search_works_out_of_the_box(tmp_path, small, capsys):
    """Broken if --select path kept the paper's code rate and prior, hid that, or overruled what was given."""
    args = train.parse(["--select", "path"])
    assert (args.code_lr, args.alpha_reg, args.switch_cost) == (1e-1, 0.0, SWITCH_COST)
    args = train.parse(["--select", "path", "--code_lr", "1e-2", "--alpha_reg", "0.1", "--switch_cost", "inf"])
    assert (args.code_lr, args.alpha_reg, args.switch_cost) == (1e-2, 0.1, math.inf)
    assert train.parse([]).alpha_reg == 0.1
    train.main([*small, "--select", "path", "--n_codes", "2", "--switch_cost", "0.3", "--out", str(tmp_path)])
    assert "--switch_cost 0.3 --code_lr 0.1 --alpha_reg 0 --steer_layer 1\n" in capsys.readouterr().out
    assert any(line["info_gain"] != 0 for line in steps(tmp_path)), "the path steers"


def test_the_price_of_a_change_rises_in_the_second_half():
    """Broken if codes had to pay more while they part, or the price ended elsewhere than at three times."""
    prices = [train.price_of_change(0.5, step, 8) for step in range(8)]
    assert prices == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.75, 1.0, 1.25, 1.5])
    assert train.price_of_change(math.inf, 0, 8) == train.price_of_change(math.inf, 7, 8) == math.inf
    assert train.price_of_change(0.0, 7, 8) == 0 and train.price_of_change(1.0, 0, 1) == 3


def test_a_run_on_lines_says_how_far_its_codes_are_handles(tmp_path, capsys):
    """Broken if --data lines ended without the plans that its codes were to follow, or forced no code."""
    train.main(["--data", "lines", "--select", "path", "--n_codes", "2", "--rows", "16", "--epochs", "1", "--eval_rows",
                "6", "--max_new_tokens", "90", "--device", "cpu", "--no-baseline", "--out", str(tmp_path / "run")])
    text = capsys.readouterr().out
    assert re.search(r"the code tells \d+% of the manner; \d+% of the answers are as planned", text)
    assert all(f"dlr {arm} " in text for arm in ("on", "off", "code 0", "code 1"))
    assert load_checkpoint(tmp_path / "run" / "ckpt.pt")["config"]["steer_layer"] == 3, "three quarters of 4"
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["handles"]
    assert found["answers"] == 6 and set(found["lines"]) == {"0", "1"}


# ---- what a step trains on, and what learns ------------------------------------------------------


def test_without_a_terminal_ten_lines_say_how_training_goes(tmp_path, small, capsys):
    """Broken if nohup or tee showed nothing, or numbers that cannot be compared with SFT's."""
    train.main([*small, "--method", "dlr", "--no-baseline", "--out", str(tmp_path)])
    said = r"dlr (\d+)/(\d+): nats (\S+), with codes (\S+), \d+% of codes used, \d+ s"
    lines = re.findall(said, capsys.readouterr().out)
    log = steps(tmp_path)
    assert 1 <= len(lines) <= 10 and lines[-1][:2] == (str(len(log)), str(len(log)))
    last = log[-1]
    assert lines[-1][2:] == (f"{last['generalist']:.3f}", f"{last['generalist'] - last['info_gain']:.3f}")


def test_a_step_costs_what_its_passes_cost():
    """Broken if the SFT of equal compute got another budget than counting forward passes says."""
    def cost(select, n, steer_layer):
        return train.cost_of_step(argparse.Namespace(select=select, n_rollouts=n),
                                  {"n_codes": n, "n_layer": 4, "steer_layer": steer_layer})
    # in forward passes of the whole model: lower + its gradient, two upper + theirs, the candidates' upper
    assert cost("likelihood", 8, 2) == pytest.approx((0.5 * 3 + 2 * 0.5 * 3 + 8 * 0.5) / 3)
    assert cost("path", 2, 3) == pytest.approx((0.75 * 3 + 2 * 0.25 * 3 + 2 * 0.25) / 3) == pytest.approx(4.25 / 3)
    assert cost("greedy", 8, 0) == pytest.approx(2), "two passes with gradient and nothing else"


def test_every_epoch_shows_every_row_once_in_another_order(tmp_path, small, monkeypatch):
    """Broken if rows were lost or repeated, prompts labelled, or epochs had all the same order."""
    shown, real = [], train.collate

    def collate(items):
        shown.extend((tuple(ids), n_prompt) for ids, n_prompt in items)
        return real(items)

    monkeypatch.setattr(train, "collate", collate)
    train.main([*small, "--method", "sft", "--out", str(tmp_path / "run")])
    rows = load_rows(small[3], "train")
    expected = [(tuple(ids), n) for ids, n in encode_rows(rows, load_encoding("wordproblems"), 128)[0]]
    epochs = [shown[i : i + 32] for i in (0, 32, 64)]
    assert all(sorted(epoch) == sorted(expected) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_of_rows_is_made_once_an_epoch(monkeypatch):
    """Broken if the order changed, so that old runs could not be repeated, or each row made it anew."""
    def every_time(i, n_rows, seed):  # as it was first written
        epoch, position = divmod(i, n_rows)
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
        return int(torch.randperm(n_rows, generator=generator)[position])

    for n_rows, seed in ((1, 0), (7, 0), (7, 3), (50, 2**31 - 1)):
        expected = [every_time(i, n_rows, seed) for i in range(120)]
        assert [train.row_of(i, n_rows, seed) for i in range(120)] == expected
        assert train.row_of(5, n_rows, seed) == expected[5], "a resumed run starts anywhere"
    made, randperm = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda n, **more: made.append(n) or randperm(n, **more))
    assert sorted(train.row_of(i, 1000, 9) for i in range(1000)) == list(range(1000)) and made == [1000]


def test_the_learning_rate_warms_up_and_decays():
    """Broken if the schedule jumped, went below zero or ended before the last step."""
    rates = [train.learning_rate(step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[4:] == sorted(rates[4:], reverse=True) and 0 < rates[-1] < 0.001
    assert rates[52] == pytest.approx(0.5, abs=0.01), "a cosine"
    assert train.learning_rate(0, 1) > 0


@pytest.mark.parametrize("method, learns", [
    ("sft", {"lm"}), ("dlr", {"lm", "codebook", "router"}), ("static", {"lm", "codebook"}),
    ("frozen", {"codebook", "router"}), ("random_router", {"lm", "codebook"})])
def test_each_method_trains_what_it_says(tmp_path, small, method, learns):
    """Broken if a control were not one: a frozen LM that moves, a random router that learns."""
    n_codes = 1 if method == "static" else 5
    train.main([*small, "--method", method, "--n_codes", str(n_codes), "--lr", "1e-3", "--code_lr", "2e-2",
                "--out", str(tmp_path)])
    after = load_checkpoint(tmp_path / "ckpt.pt")
    torch.manual_seed(0)  # as train.py does before it makes the router
    before = GPT.from_checkpoint(small[1], n_codes=n_codes).state_dict()
    moved = {"lm": set(), "codebook": set(), "router": set()}
    for name in before.keys() - {"bigram"}:
        part = name.split(".")[0] if name.startswith(("codebook", "router")) else "lm"
        moved[part].add(not torch.equal(before[name], after["model"][name]))
    assert moved == {part: {part in learns} for part in moved}, "all of a part, or nothing of it"
    groups = {(g["peak"], g["weight_decay"]) for g in after["optimizer"]["param_groups"]}
    lm, codes = {(1e-3, 0.01), (1e-3, 0.0)}, {(2e-2, 0.0)}
    assert groups == (lm if "lm" in learns else set()) | (codes if method != "sft" else set())


@pytest.mark.parametrize("method, how", [("sft", "cut"), ("random_router", "cut"), ("sft", "shared")])
def test_a_batch_cut_or_shared_among_processes_trains_the_same(tmp_path, small, method, how):
    """Broken if micro-batches were not weighted by their labels, or torchrun's gradients not added."""
    flags = [*small, "--method", method, "--out"]
    train.main([*flags, str(tmp_path / "one")])
    other = [*flags, str(tmp_path / "other")]
    if how == "cut":
        train.main([*other, "--grad_accum", "4"])
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command = [*torchrun, str(ROOT / "train.py"), *other]
        subprocess.run(command, timeout=200, check=True, capture_output=True)
    same_training(tmp_path / "one", tmp_path / "other")


def test_processes_share_one_folder(monkeypatch, capsys):
    """Broken if each of torchrun's processes made up a folder of its own, named after its own second."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="2"):
        train.main(["--tiny"])
    assert "torchrun: give --out RUN" in capsys.readouterr().err


def test_bfloat16_is_close_to_float32(tmp_path, small):
    """Broken if --dtype bfloat16 changed more than rounding, did nothing or rounded weights."""
    losses = {}
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        train.main([*small, "--dtype", dtype, "--method", "sft", "--out", str(out)])
        losses[dtype] = [line["loss"] for line in steps(out)]
        assert all(tensor.dtype == torch.float32 for tensor in weights(out).values())
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.01)
    assert losses["bfloat16"] != losses["float32"]


# ---- what a run leaves behind --------------------------------------------------------------------


def test_the_final_evaluation_does_not_hold_the_optimizer(tmp_path, small, monkeypatch):
    """Broken if AdamW's averages, twice the weights, took memory while answers are generated."""
    def optimizers():
        gc.collect()
        return sum(type(x) is torch.optim.AdamW for x in gc.get_objects())

    def evaluate(*args, **more):
        seen.append(optimizers())
        return real(*args, **more)

    before, seen, real = optimizers(), [], train.evaluate
    monkeypatch.setattr(train, "evaluate", evaluate)
    train.main([*small[:-1], "4", "--out", str(tmp_path)])
    (tmp_path / "summary.json").unlink()
    train.main(["--resume", "--out", str(tmp_path)])  # from a checkpoint with the optimizer
    assert seen == [before, before]
    train.main(["--resume", "--out", str(tmp_path)])
    assert len(seen) == 2, "what is evaluated is not evaluated again"


def test_tiny_takes_what_is_there(tmp_path, small):
    """Broken if --tiny, which wants 160 and 100 rows, failed on a folder of 30 and 10."""
    for split, n in (("train", 30), ("test", 10)):
        rows = [json.dumps({"question": f"{i}?", "answer": f"#### {i}"}) + "\n" for i in range(n)]
        (tmp_path / f"{split}.jsonl").write_text("".join(rows))
    for rows in (["--eval_rows", "0"], []):
        run = tmp_path / f"run{len(rows)}"
        train.main([*small[:-2], *rows, "--tiny", "--data", str(tmp_path), "--out", str(run)])
        assert len(steps(run)) == 8  # two epochs of 30 rows, in eights
        assert len((run / "answers.jsonl").read_text().splitlines()) == 10


def test_a_run_can_be_used_from_anywhere(tmp_path, small, monkeypatch, capsys):
    """Broken if a moved run needed old paths or its base's folder, or eval.py left no records in it."""
    pytest.importorskip("safetensors")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    hugging_face_folder(tmp_path / "hf")
    shutil.copytree(small[3], tmp_path / "rows")
    flags = ["--init_from", "hf", "--data", "rows", *small[4:-1], "4"]
    train.main([*flags, "--out", "run"])
    shutil.move("run", "there/moved")
    run = tmp_path / "there" / "moved"
    assert (run / "tokenizer.json").read_bytes() == Path("hf/tokenizer.json").read_bytes()
    before, answers = weights(run), (run / "answers.jsonl").read_bytes()

    monkeypatch.chdir(tmp_path / "there")
    shutil.rmtree(tmp_path / "hf")
    capsys.readouterr()
    evaluation.main(["moved", "--max_new_tokens", "4", "--device", "cpu"])
    said = capsys.readouterr().out
    assert "4 problems of " in said and "/test (0 too long for the context)" in said
    arms = [line.split()[1] for line in said.splitlines() if line.lstrip().startswith("dlr ")]
    assert arms == ["on", "off", "random", "shuffled"]
    records = [json.loads(line) for line in (run / "eval-rows-test.jsonl").read_text().splitlines()]
    assert len(records) == 4 and records[0]["off"]["strict"] in (True, False)
    assert json.loads((run / "eval-rows-test.json").read_text())["rows"] == 4
    evaluation.main(["moved", "--ask", "What is 1 + 2?", "--max_new_tokens", "4"])
    assert "answer with codes on" in capsys.readouterr().out
    train.main(["--resume", "--out", "moved"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(run).items())
    assert (run / "answers.jsonl").read_bytes() == answers
    train.main([*flags[2:], "--data", str(tmp_path / "rows"), "--init_from", "moved/ckpt.pt",
                "--out", "next"])  # trained on from the run, with its tokenizer
    assert Path("next/tokenizer.json").exists()


def test_a_run_is_trained_on_from_its_folder(tmp_path, small):
    """Broken if --init_from RUN, which eval.py understands, were no model, or another than its ckpt.pt."""
    train.main([*small, "--epochs", "1", "--out", str(tmp_path / "first")])
    for source in ("first", "first/ckpt.pt"):
        out = str(tmp_path / f"next-{len(source)}")
        train.main(["--init_from", str(tmp_path / source), *small[2:], "--epochs", "1", "--out", out])
    assert steps(tmp_path / "next-5") == steps(tmp_path / "next-13")
    assert steps(tmp_path / "next-5")[0]["loss"] != steps(tmp_path / "first")[0]["loss"]


@pytest.mark.parametrize("rank, world", [("1", None), ("2", "2"), ("one", "2")])
def test_a_leftover_rank_is_an_error(tmp_path, small, monkeypatch, capsys, rank, world):
    """Broken if a process took itself for torchrun's second one: nothing trained, and not a word."""
    monkeypatch.setenv("RANK", rank)
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(SystemExit) as stop:
        train.main([*small, "--out", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert f"RANK={rank}, but WORLD_SIZE={world or 1} " in error
    assert not (tmp_path / "run").exists()


class Notebook:
    """What a notebook puts in the place of a terminal: it can be written to, and little more."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [Notebook, closed, lambda: None])
def test_no_terminal_is_needed(tmp_path, small, monkeypatch, stream):
    """Broken if a replaced, closed or missing stdout or stderr ended a run or left half of a folder."""
    out = tmp_path / "run"
    terminal = {name: stream() for name in ("stdout", "stderr")}
    for script, *argv in (["train.py", *small[:-1], "4", "--out", str(out)],
                          ["train.py", "--resume", "--out", str(out)],
                          ["eval.py", str(out), "--no-generate", "--device", "cpu"],
                          ["train.py", "--no-such-flag"]):
        for name, replaced in terminal.items():
            monkeypatch.setattr(sys, name, replaced)
        monkeypatch.setattr(sys, "argv", [script, *argv])
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")  # as %run does
        except SystemExit as stop:
            assert stop.code == 2 and argv == ["--no-such-flag"]
    assert json.loads((out / "summary.json").read_text())["rows"] == 4
    assert json.loads((out / f"eval-{Path(small[3]).name}-test.json").read_text())["rows"] == 4
    if stream is Notebook:
        assert "dlr on" in terminal["stdout"].text and "no-such-flag" in terminal["stderr"].text


def test_a_run_outlives_closed_descriptors(tmp_path, small):
    """Broken if `train.py >&- 2>&-`, as a service starts it, failed or printed into a file of the run."""
    command = shlex.join([sys.executable, str(ROOT / "train.py"), *small, "--epochs", "1", "--out", str(tmp_path)])
    subprocess.run(["sh", "-c", f"{command} >&- 2>&-"], timeout=200, check=True)
    assert len(steps(tmp_path)) == 4 and len(weights(tmp_path)) > 10


def test_a_thread_can_train(tmp_path, small):
    """Broken if a run outside of the main thread, where no signal can be caught, left half of a folder."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(train.main, [*small, "--epochs", "1", "--out", str(tmp_path)]).result()
    assert len(steps(tmp_path)) == 4 and (tmp_path / "ckpt.pt").exists()


def test_a_locale_without_utf8_changes_nothing(tmp_path):
    """Broken if an ASCII terminal ended a run or an answer, or files had another encoding."""
    flags = small_run(tmp_path)
    for split, n in (("train", 9), ("test", 3)):
        row = '{"question": "Žofie?", "answer": "čtyři \u2212 #### 4"}\n'
        (tmp_path / f"{split}.jsonl").write_text(row * n, encoding="utf-8")
    generated = [*[f for f in flags if not f.startswith("--no-")], "--max_new_tokens", "8"]
    code = f"""if True:
        import runpy, sys
        from data.wordproblems import train_bpe
        _, out, question = sys.argv
        train_bpe(out + ".bpe", n=2, vocab=257)
        for argv in (["train.py", *{generated!a}, "--tiny", "--out", out],
                     ["train.py", "--resume", "--out", out],
                     ["eval.py", out, "--max_new_tokens", "8"],
                     ["eval.py", out, "--max_new_tokens", "8", "--ask", question]):
            sys.argv = argv
            runpy.run_path(argv[0], run_name="__main__")"""
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii",
           "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-X", "warn_default_encoding", "-c", code, str(tmp_path / "běh"),
               "Žofie? \u2212 \u4e2d"]
    done = subprocess.run(command, cwd=ROOT, env=env, timeout=200, capture_output=True)
    errors = done.stderr.decode()
    assert done.returncode == 0, errors[-2000:]
    ours = [line for line in errors.splitlines() if "EncodingWarning" in line and "site-packages" not in line]
    assert not ours, "a file opened in the locale's encoding, which on Windows is another one"
    assert b"answer with codes off" in done.stdout
    written = list((tmp_path / "běh").rglob("*.json*"))
    assert len(written) >= 10 and all(path.read_text(encoding="utf-8") for path in written)
    answer = (tmp_path / "běh" / "answers.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert json.loads(answer)["question"] == "Žofie?"


def test_a_checkpoint_opens_in_a_project_with_a_data_package_of_its_own(tmp_path):
    """Broken if dlr.py alone, or beside a `data` that is not ours, could not open a run."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("")
    shutil.copyfile(ROOT / "dlr.py", tmp_path / "dlr.py")
    code = f"import data; from dlr import GPT; print(GPT.from_checkpoint({str(BASE)!r}, n_codes=3).config.n_codes)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.returncode) == ("3\n", 0), done.stderr
