"""
Bad input, one table for every script: flags, data rows, checkpoints, Hugging Face folders, tokenizers, runs to resume.
Each case runs the real main(argv) and must end in one clear error and exit status 2, with nothing left behind.
"""

import json
import os
import pickle
import re
import shutil
import struct
import time
from pathlib import Path

import pytest
import torch

import eval as evaluation
import gds
import train
from data import arithmetic, gsm8k, wordproblems
from data.tokens import LAYOUTS, SMOLLM2_PATTERN, byte_alphabet
from dlr import GPT, GPTConfig

pytest.importorskip("safetensors")

SCRIPTS = {"train.py": train.main, "eval.py": evaluation.main, "gds.py": gds.main, "gsm8k.py": gsm8k.main,
           "wordproblems.py": wordproblems.main, "arithmetic.py": arithmetic.main}
SMALL = ["--init_from", "scratch", "--n_layer", "2", "--n_embd", "32", "--n_codes", "5", "--rows", "8", "--epochs", "1",
         "--n_rollouts", "2", "--eval_rows", "4", "--no-generate", "--device", "cpu", "--no-baseline"]
ROW = {"question": "What is 1 + 2?", "answer": "1 + 2 = 3\n#### 3"}


class Bomb:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder of good things, which each case spoils a copy of: a finished run, a model, data, a checkpoint."""
    d = tmp_path_factory.mktemp("good")
    train.main([*SMALL, "--out", str(d / "run")])
    torch.manual_seed(0)
    (d / "hf").mkdir()
    vocab = {char: i for i, char in enumerate(byte_alphabet())}
    spec = {"normalizer": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": LAYOUTS[SMOLLM2_PATTERN][1:]},
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
            "added_tokens": [{"content": "<|endoftext|>", "id": 256}]}
    (d / "hf" / "tokenizer.json").write_text(json.dumps(spec))
    GPT(GPTConfig(257, 256, 2, 2, 1, 32, n_codes=5)).save_pretrained(d / "hf")
    (d / "hf" / "codes.safetensors").unlink()
    (d / "data").mkdir()
    for split in ("train", "test"):
        (d / "data" / f"{split}.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(ROW) + "\n")
    (d / "used").mkdir()
    (d / "used" / "config.json").write_text("{}")
    return d


def t(*flags):  # train.py with these flags
    return lambda d: [*SMALL, "--out", str(d / "new"), *flags]


def data(text, *flags):  # train.py on such a train.jsonl
    def spoil(d):
        (d / "data" / "train.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
        return t("--data", str(d / "data"), "--rows", "0", "--eval_rows", "-1", *flags)(d)
    return spoil


def ckpt(change):  # train.py from a checkpoint, changed in place or replaced
    def spoil(d):
        path = d / "run" / "ckpt.pt"
        saved = torch.load(path, weights_only=True)
        new = change(saved)
        torch.save(saved if new is None else new, d / "x.pt", pickle_protocol=2)
        return t("--init_from", str(d / "x.pt"))(d)
    return spoil


def drop(mapping, key):
    del mapping[key]


def raw(content):  # train.py from a checkpoint with these bytes
    return lambda d: (d / "x.pt").write_bytes(content) and t("--init_from", str(d / "x.pt"))(d)


def hf(change):  # train.py from a Hugging Face folder with one fault
    return lambda d: (change(d / "hf"), t("--init_from", str(d / "hf"))(d))[1]


def config(**values):
    def change(d):
        path = d / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return hf(change)


def tensors(lie):  # the weights' file with another header: lie({name: {dtype, shape, data_offsets}}) or bytes
    def change(d):
        path = d / "model.safetensors"
        content = path.read_bytes()
        n = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + n])
        new = lie(header) or header
        new = new if isinstance(new, bytes) else json.dumps(new).encode()
        path.write_bytes(struct.pack("<Q", len(new)) + new + content[8 + n :])
    return hf(change)


def index(weight_map):
    def change(d):
        (d / "model.safetensors").rename(d.parent / "outside.safetensors")
        (d / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return hf(change)


def tokenizer(change):
    def spoil(d):
        path = d / "tokenizer.json"
        spec = json.loads(path.read_text())
        new = change(spec)
        path.write_text(new if isinstance(new, str) else json.dumps(spec))
    return hf(spoil)


def resume(change, *flags):
    return lambda d: (change(d / "run"), ["--resume", "--out", str(d / "run"), *flags])[1]


def unfinished(change):  # a run to resume with another checkpoint; change(saved) in place, or its replacement
    def spoil(run):
        (run / "summary.json").unlink()
        saved = torch.load(run / "ckpt.pt", weights_only=True)
        new = change(saved)
        torch.save(saved if new is None else new, run / "ckpt.pt")
    return resume(spoil)


def settings(**values):
    def change(run):
        (run / "summary.json").unlink()
        old = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps({k: v for k, v in (old | values).items() if v is not None}))
    return resume(change)


def first(header, key, value):
    next(v for k, v in header.items() if k != "__metadata__")[key] = value


CASES = [  # what is wrong, the script, words of the error, how to make it
    # flags
    ("unknown flag", "train.py", "--bogus", t("--bogus", "1")),
    ("abbreviated flag", "train.py", "--batch", t("--batch", "1")),
    ("unknown method", "train.py", "rl", t("--method", "rl")),
    ("lr: a word", "train.py", "--lr", t("--lr", "x")),
    ("lr: nan", "train.py", "--lr must be > 0 and finite, got nan", t("--lr", "nan")),
    ("lr: infinite", "train.py", "--lr must be > 0 and finite, got inf", t("--lr", "inf")),
    ("lr: negative", "train.py", "--lr", t("--lr", "-1")),
    ("epochs: 0", "train.py", "--epochs", t("--epochs", "0")),
    ("batch_size: 0", "train.py", "--batch_size", t("--batch_size", "0")),
    ("batch_size: a fraction", "train.py", "--batch_size", t("--batch_size", "2.5")),
    ("batch not a multiple", "train.py", "--grad_accum", t("--batch_size", "6", "--grad_accum", "4")),
    ("n_codes: 0", "train.py", "n_codes", t("--n_codes", "0")),
    ("n_codes: more than memory", "train.py", "out of memory", t("--n_codes", str(10**12))),
    ("chunk: 0", "train.py", "chunk", t("--chunk", "0")),
    ("steer_layer: beyond the last", "train.py", "steer_layer", t("--steer_layer", "99")),
    ("steer_scale: nan", "train.py", "steer_scale", t("--steer_scale", "nan")),
    ("heads do not divide", "train.py", "head_dim", t("--n_head", "5")),
    ("block_size: more than memory", "train.py", "out of memory", t("--block_size", str(10**13))),
    ("unknown selection", "train.py", "best", t("--select", "best")),
    ("selection without rollouts", "train.py", "--n_rollouts", t("--select", "likelihood", "--n_rollouts", "0")),
    ("warmup: 1", "train.py", "--warmup", t("--warmup", "1")),
    ("temperature: negative", "train.py", "--temperature", t("--temperature", "-1")),
    ("unknown device", "train.py", "tpu", t("--device", "tpu")),
    ("no such GPU", "train.py", "no CUDA GPU", t("--device", "cuda")),
    ("rows: negative", "train.py", "--rows", t("--rows", "-3")),
    ("a control with another setting", "train.py", "--method static has --n_codes 1", t("--method", "static")),
    ("one row to pretrain on", "train.py", "--block_size", t("--method", "pretrain", "--rows", "1")),
    # where to write
    ("out: a file", "train.py", "data/train.jsonl", lambda d: [*SMALL, "--out", str(d / "data" / "train.jsonl")]),
    ("out: in a file", "train.py", "train.jsonl/x", lambda d: [*SMALL, "--out", str(d / "data" / "train.jsonl" / "x")]),
    ("out: where nobody may write", "train.py", "/proc/run", lambda d: [*SMALL, "--out", "/proc/run"]),
    ("out: another run's", "train.py", "already holds a run", lambda d: [*SMALL, "--out", str(d / "used")]),
    # data
    ("data: unknown name", "train.py", "gsm9k", t("--data", "gsm9k")),
    ("data: no such split", "train.py", "tst", t("--eval_split", "tst")),
    ("data: more rows than there are", "train.py", "it has only 2", data(f"{json.dumps(ROW)}\n" * 2, "--rows", "99")),
    ("data: empty", "train.py", "train.jsonl has no rows", data("")),
    ("data: not JSON", "train.py", "train.jsonl, line 1", data("{no json}\n")),
    ("data: cut", "train.py", "train.jsonl, line 2", data(f"{json.dumps(ROW)}\n{json.dumps(ROW)[:-9]}")),
    ("data: a list", "train.py", "train.jsonl, line 2", data(f"{json.dumps(ROW)}\n[1, 2]\n")),
    ("data: no answer", "train.py", "train.jsonl, line 1", data('{"question": "Why?"}\n')),
    ("data: a number for text", "train.py", "train.jsonl, line 1", data('{"question": "Why?", "answer": 7}\n')),
    ("data: empty question", "train.py", "train.jsonl, line 1", data(json.dumps({**ROW, "question": " "}) + "\n")),
    ("data: no ####", "train.py", "train.jsonl, line 1", data(json.dumps({**ROW, "answer": "3"}) + "\n")),
    ("data: two ####", "train.py", "train.jsonl, line 1", data(json.dumps({**ROW, "answer": "#### 3 #### 4"}) + "\n")),
    ("data: nothing after ####", "train.py", "train.jsonl, line 1", data(json.dumps({**ROW, "answer": "3 ####"}))),
    ("data: a blank line", "train.py", "train.jsonl, line 2", data(f"{json.dumps(ROW)}\n\n{json.dumps(ROW)}\n")),
    ("data: binary", "train.py", "train.jsonl, line 1", data(b"\xff\xfe\x00\x01\n")),
    ("data: nested beyond reason", "train.py", "train.jsonl, line 1", data("[" * 100_000)),
    ("data: all rows too long", "train.py", "block_size", data(json.dumps({**ROW, "question": "Why? " * 900}) + "\n")),
    ("data: a gold answer that cannot be graded", "train.py", "gold answer", lambda d: (
        (d / "data" / "test.jsonl").write_text(json.dumps({**ROW, "answer": "#### three"}) + "\n"),
        t("--data", str(d / "data"), "--rows", "0", "--eval_rows", "0", "--generate")(d))[1]),
    ("data: a folder for a file", "train.py", "train.jsonl", lambda d: (
        (d / "data" / "train.jsonl").unlink(), (d / "data" / "train.jsonl").mkdir(),
        t("--data", str(d / "data"), "--eval_rows", "-1")(d))[2]),
    # checkpoints
    ("checkpoint: none", "train.py", "none.pt", t("--init_from", "none.pt")),
    ("checkpoint: empty", "train.py", "x.pt",
     lambda d: ((d / "x.pt").touch(), t("--init_from", str(d / "x.pt"))(d))[1]),
    ("checkpoint: text", "train.py", "x.pt: not a readable checkpoint", raw(b"hello")),
    ("checkpoint: cut", "train.py", "x.pt: not a readable checkpoint", raw(train.BASE.read_bytes()[:4000])),
    ("checkpoint: a pickle that runs code", "train.py", "x.pt: not a readable checkpoint", raw(pickle.dumps(Bomb()))),
    ("checkpoint: code in torch's own format", "train.py", "not a readable checkpoint", ckpt(lambda s: {"x": Bomb()})),
    ("checkpoint: another dict", "train.py", "x.pt: not a checkpoint of train.py", ckpt(lambda s: {"weights": 1})),
    ("checkpoint: a list", "train.py", "x.pt: not a checkpoint of train.py", ckpt(lambda s: [1, 2])),
    ("checkpoint: a config that is none", "train.py", "not a checkpoint of train.py",
     ckpt(lambda s: {**s, "config": 5})),
    ("checkpoint: weights that are none", "train.py", "not a checkpoint of train.py", ckpt(
        lambda s: {**s, "model": dict.fromkeys(s["model"], 1.0)})),
    ("checkpoint: a field from another version", "train.py", "x.pt: no GPT has this config.*n_experts", ckpt(
        lambda s: s["config"].update(n_experts=8))),
    ("checkpoint: a field missing", "train.py", "x.pt: no GPT has this config.*n_embd", ckpt(
        lambda s: drop(s["config"], "n_embd"))),
    ("checkpoint: a billion layers", "train.py", "1000000000 layers",
     ckpt(lambda s: s["config"].update(n_layer=10**9))),
    ("checkpoint: a tensor missing", "train.py", r"missing \['norm.weight'\]", ckpt(
        lambda s: drop(s["model"], "norm.weight"))),
    ("checkpoint: a tensor too many", "train.py", r"surplus \['x'\]", ckpt(
        lambda s: s["model"].update(x=torch.ones(1)))),
    ("checkpoint: a wrong shape", "train.py", r"norm.weight: expected \(32,\), got \(31,\)", ckpt(
        lambda s: s["model"].update({"norm.weight": torch.ones(31)}))),
    ("checkpoint: codes laid out otherwise", "train.py", "holds trained codes with {'chunk': 4}", lambda d: [
        *t("--init_from", str(d / "run" / "ckpt.pt"), "--chunk", "2")(d)]),
    ("checkpoint: its tokenizer is gone", "train.py", "gone", ckpt(lambda s: s.update(tokenizer="/gone"))),
    ("checkpoint: its tokenizer is no name", "train.py", "tokenizer 7", ckpt(lambda s: s.update(tokenizer=7))),
    # Hugging Face folders
    ("folder: no model", "train.py", "tokenizer.json", lambda d: t("--init_from", str(d / "data"))(d)),
    ("folder: no config", "train.py", "config.json", hf(lambda d: (d / "config.json").unlink())),
    ("folder: config cut", "train.py", "config.json: not JSON", hf(lambda d: (d / "config.json").write_text('{"a'))),
    ("folder: config nested beyond reason", "train.py", "config.json: not JSON", hf(
        lambda d: (d / "config.json").write_text("[" * 100_000))),
    ("folder: another architecture", "train.py", "model_type 'mamba'", config(model_type="mamba")),
    ("folder: a billion layers", "train.py", "1000000000 layers", config(num_hidden_layers=10**9)),
    ("folder: a trillion wide", "train.py", "expected .*1000000000000", config(hidden_size=10**12, head_dim=16)),
    ("folder: no heads", "train.py", "n_head", config(num_attention_heads=0, num_key_value_heads=0)),
    ("folder: theta is nan", "train.py", "rope_theta", config(rope_theta=float("nan"))),
    ("folder: fewer tokens than its tokenizer", "train.py", "tokenizer has 257 tokens, the model 200", hf(
        lambda d: GPT(GPTConfig(200, 256, 2, 2, 1, 32)).save_pretrained(d))),
    ("folder: no weights", "train.py", "model.safetensors", hf(lambda d: (d / "model.safetensors").unlink())),
    ("weights: empty", "train.py", "not a readable safetensors",
     hf(lambda d: (d / "model.safetensors").write_bytes(b""))),
    ("weights: a header of 2^60 bytes", "train.py", "not a readable safetensors", hf(
        lambda d: (d / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}"))),
    ("weights: a header of 99 MB in a small file", "train.py", "not a readable safetensors", hf(
        lambda d: (d / "model.safetensors").write_bytes(struct.pack("<Q", 99_000_000) + b"{}"))),
    ("weights: a header that is not JSON", "train.py", "not a readable safetensors", tensors(lambda h: b"{'a': 1}")),
    ("weights: a header nested beyond reason", "train.py", "not a readable safetensors",
     tensors(lambda h: b"[" * 99_999)),
    ("weights: beyond the end", "train.py", "not a readable safetensors", tensors(
        lambda h: first(h, "data_offsets", [0, 2**40]))),
    ("weights: overlapping", "train.py", "not a readable safetensors", tensors(
        lambda h: [first(h, "data_offsets", v["data_offsets"]) for v in [*h.values()][-1:]] and None)),
    ("weights: backwards", "train.py", "not a readable safetensors",
     tensors(lambda h: first(h, "data_offsets", [9, 1]))),
    ("weights: another size than the shape says", "train.py", "not a readable safetensors", tensors(
        lambda h: first(h, "shape", [3, 3]))),
    ("weights: a shape that overflows", "train.py", "not a readable safetensors", tensors(
        lambda h: first(h, "shape", [2**62, 2**62]))),
    ("weights: integers", "train.py", "expected .*got .'I32'", tensors(lambda h: first(h, "dtype", "I32"))),
    ("weights: an unknown type", "train.py", "not a readable safetensors", tensors(lambda h: first(h, "dtype", "F99"))),
    ("index: up and out", "train.py", "'../outside.safetensors'",
     index({"model.norm.weight": "../outside.safetensors"})),
    ("index: absolute", "train.py", "'/etc/passwd.safetensors'",
     index({"model.norm.weight": "/etc/passwd.safetensors"})),
    ("index: a list", "train.py", "weight_map", index(["a.safetensors"])),
    ("index: no such shard", "train.py", "b.safetensors", index({"model.norm.weight": "b.safetensors"})),
    # tokenizers
    ("tokenizer: not JSON", "train.py", "tokenizer.json is not a tokenizer", tokenizer(lambda s: "{")),
    ("tokenizer: nested beyond reason", "train.py", "tokenizer.json is not a tokenizer",
     tokenizer(lambda s: "[" * 99_999)),
    ("tokenizer: an endless number", "train.py", "tokenizer.json is not a tokenizer", tokenizer(lambda s: "9" * 5000)),
    ("tokenizer: a regex that never ends", "train.py", "only those of SmolLM2", tokenizer(lambda s: s.update(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}))),
    ("tokenizer: an id of four billion", "train.py", "each once", tokenizer(
        lambda s: s["added_tokens"][0].update(id=4_000_000_000))),
    ("tokenizer: no end token", "train.py", "added_tokens has no", tokenizer(lambda s: s.update(added_tokens=[]))),
    ("tokenizer: a merge out of nothing", "train.py", "the merge", tokenizer(
        lambda s: s["model"].update(merges=["a bc"]))),
    # runs to resume
    ("resume: which?", "train.py", "--out", lambda d: ["--resume"]),
    ("resume: no run", "train.py", "none", lambda d: ["--resume", "--out", str(d / "none")]),
    ("resume: with other flags", "train.py", "'lr'", resume(lambda run: None, "--lr", "1e-3")),
    ("resume: config not JSON", "train.py", "config.json: not JSON", resume(
        lambda run: (run / "config.json").write_text("{"))),
    ("resume: config a list", "train.py", "config.json: must hold", resume(
        lambda run: (run / "config.json").write_text("[1]"))),
    ("resume: a setting from another version", "train.py", r"unknown \['n_experts'\]", settings(n_experts=8)),
    ("resume: a setting missing", "train.py", r"lacks the settings \['chunk'\]", settings(chunk=None)),
    ("resume: a setting of a wrong type", "train.py", "config.json", settings(lr="fast")),
    ("resume: a setting out of range", "train.py", "--lr", settings(lr=-1.0)),
    ("resume: checkpoint cut", "train.py", "ckpt.pt: not a readable checkpoint", resume(
        lambda run: ((run / "summary.json").unlink(), os.truncate(run / "ckpt.pt", 5000)))),
    ("resume: a base model for a checkpoint", "train.py", "ckpt.pt: it lacks 'train'", unfinished(
        lambda s: {"config": s["config"], "model": s["model"]})),
    ("resume: another run's checkpoint", "train.py", r"settings differ from config.json in \['seed'\]", unfinished(
        lambda s: s["train"].update(seed=9))),
    ("resume: without the optimizer", "train.py", "lacks 'optimizer'", unfinished(lambda s: drop(s, "optimizer"))),
    ("resume: another optimizer's state", "train.py", "ckpt.pt: .*group", unfinished(
        lambda s: s["optimizer"]["param_groups"].pop() and None)),
    ("resume: another model's weights", "train.py", "ckpt.pt: .*norm.weight", unfinished(
        lambda s: s["model"].update({"norm.weight": torch.ones(31)}))),
    # eval.py
    ("eval: no run", "eval.py", "none", lambda d: [str(d / "none")]),
    ("eval: no run in the folder", "eval.py", "ckpt.pt", lambda d: [str(d / "data")]),
    ("eval: a base model", "eval.py", "without tokenizer and settings", lambda d: [str(train.BASE)]),
    ("eval: no such split", "eval.py", "tst", lambda d: [str(d / "run"), "--split", "tst"]),
    ("eval: no such arm", "eval.py", "half", lambda d: [str(d / "run"), "--arms", "half"]),
    ("eval: no such data", "eval.py", "gsm9k", lambda d: [str(d / "run"), "--data", "gsm9k"]),
    ("eval: rows negative", "eval.py", "--rows", lambda d: [str(d / "run"), "--rows", "-1"]),
    ("eval: batch_size 0", "eval.py", "--batch_size", lambda d: [str(d / "run"), "--batch_size", "0"]),
    ("eval: out is no .jsonl", "eval.py", "--out", lambda d: [str(d / "run"), "--out", str(d / "x.txt")]),
    ("eval: out in no folder", "eval.py", "--out", lambda d: [str(d / "run"), "--out", str(d / "no" / "x.jsonl")]),
    ("eval: two runs", "eval.py", "--compare", lambda d: [str(d / "run"), str(d / "run")]),
    ("compare: not finished", "eval.py", "summary.json", lambda d: (
        (d / "run" / "summary.json").unlink(), [str(d / "run"), "--compare", "--out", str(d / "table")])[1]),
    ("compare: not as train.py writes it", "eval.py", "not as train.py writes them", lambda d: (
        (d / "run" / "answers.jsonl").write_text("{}\n"), [str(d / "run"), "--compare", "--out", str(d / "table")])[1]),
    ("compare: nothing to compare with", "eval.py", "--reference", lambda d: [
        str(d / "run"), "--compare", "--out", str(d / "table")]),
    # the others
    ("gsm8k: no such folder", "gsm8k.py", "none", lambda d: ["--from", str(d / "none"), "--out", str(d / "new")]),
    ("gsm8k: other files", "gsm8k.py", "not the official file", lambda d: [
        "--from", str(d / "data"), "--out", str(d / "new")]),
    ("wordproblems: n 0", "wordproblems.py", "n", lambda d: ["--n", "0"]),
    ("wordproblems: ops reversed", "wordproblems.py", "ops", lambda d: ["--ops", "4", "2"]),
    ("arithmetic: no digits", "arithmetic.py", "digits", lambda d: ["--digits", "0"]),
    ("gds: no such world", "gds.py", "atlantis", lambda d: ["--world", "atlantis"]),
    ("gds: n 0", "gds.py", "--n", lambda d: ["--n", "0"]),
    ("gds: a picture of nothing", "gds.py", "--svg", lambda d: ["--svg", str(d / "x.svg")]),
]


def files(d):
    return {str(p.relative_to(d)): p.read_bytes() if p.is_file() else None for p in sorted(d.rglob("*"))}


@pytest.mark.parametrize("what, script, words, make", CASES, ids=[case[0] for case in CASES])
def test_bad_input_is_one_clear_error_and_leaves_nothing(what, script, words, make, good, tmp_path, monkeypatch, capfd):
    """Broken if it were ignored, crashed, took long, ran code, was not named in the error, or left something behind."""
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr("sys.argv", [script])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    argv = make(tmp_path)
    before, start = files(tmp_path), time.process_time()
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        SCRIPTS[script](argv)
    seconds, error = time.process_time() - start, capfd.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in error
    own = error[error.index(f"{script}: error: "):]  # after argparse's usage
    assert error.count("error: ") == 1 and len(own) < 2500 and (own == error or error.startswith("usage: "))
    assert re.search(words, own), own
    assert files(tmp_path) == before
    assert seconds < 5


def test_the_good_things_are_good(good, tmp_path):
    """Broken if the cases above failed for another reason than the one that they are about."""
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    for name, flags in {"data": [], "hf": ["--init_from", str(tmp_path / "hf")],
                        "ckpt": ["--init_from", str(tmp_path / "run" / "ckpt.pt")]}.items():
        train.main([*SMALL, *flags, "--data", str(tmp_path / "data"), "--rows", "2", "--eval_rows", "-1",
                    "--out", str(tmp_path / "new" / name)])
        assert Path(tmp_path / "new" / name / "ckpt.pt").exists()
    (tmp_path / "run" / "summary.json").unlink()
    train.main(["--resume", "--out", str(tmp_path / "run")])
    assert (tmp_path / "run" / "summary.json").exists()
