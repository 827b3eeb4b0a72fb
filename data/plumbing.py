"""
Plumbing that train.py and eval.py share, nothing of the method: the device, files that are whole or
absent, checkpoints, and models filled with weights.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
from array import array
from pathlib import Path

import torch

from data.files import read_json
from data.tokens import find_rest, load_encoding
from dlr import GPT, GPTConfig, build, load_checkpoint

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

BASE = Path(__file__).parent / "wordproblems_base.pt"
BASE_SHAPE = {"n_layer": 4, "n_head": 4, "n_kv_head": 2, "n_embd": 128}


def open_model(source, block_size=None, **overrides):
    """
    (GPT, its tokenizer). source: "base", the embedded model; "scratch", one of its shape, untrained;
    a Hugging Face folder; a run's folder; or a checkpoint, its path or load_checkpoint's dict.
    block_size may shorten a Hugging Face model's long context; a checkpoint keeps its own. overrides:
    see build.
    """
    if source == "scratch":
        enc = load_encoding("wordproblems")
        return GPT(GPTConfig(enc.n_vocab, block_size, **BASE_SHAPE, **overrides)), enc
    source = BASE if source == "base" else source
    if not isinstance(source, dict) and Path(source, "ckpt.pt").is_file():  # a run's folder
        source = Path(source, "ckpt.pt")
    if not isinstance(source, dict) and Path(source).is_dir():
        enc = load_encoding(source)
        model = GPT.from_pretrained(source, block_size=block_size, **overrides)
    else:
        saved = source if isinstance(source, dict) else load_checkpoint(source)
        beside = Path(saved["path"]).parent / "tokenizer.json"  # train.py put it there
        enc = load_encoding(beside if beside.exists() else saved.get("tokenizer", "wordproblems"))
        model = build(saved["config"], saved["model"], saved["path"], **overrides)
        source = saved["path"]
    if enc.n_vocab > model.config.vocab_size:
        raise ValueError(f"{source}: its tokenizer has {enc.n_vocab} tokens, the model {model.config.vocab_size}")
    return model, enc


def fingerprint(items):
    """A sha256 of tokenised rows, (ids, n_prompt) each, and of their order."""
    digest = hashlib.sha256()
    for ids, n_prompt in items:
        digest.update(array("q", [len(ids), n_prompt, *ids]))
    return digest.hexdigest()


def find_code(run, wanted):
    """The number that --code means: "1" or "code 1", or "best", the one that RUN/summary.json says was chosen."""
    summary = run / "summary.json"
    if wanted == "best":
        wanted = read_json(summary).get("chosen", "") if summary.exists() else ""
        if not wanted:
            raise ValueError(f"--code best: {summary} names no code that was chosen on val; give one, --code N")
    number = wanted.removeprefix("code ")
    if not (number.isascii() and number.isdecimal()):
        raise ValueError(f"--code must be best or the number of a code, got {wanted!r}")
    return int(number)


def check_same_start(out, then, now):
    """ValueError if a run would go on with other rows or steps than those that it was started on."""
    if then != now:
        was, there_is = (f"{x['rows']} rows, {x['steps']} steps (sha256 {x['sha256'][:12]})" for x in (then, now))
        raise ValueError(f"--resume: the training data are not those that {out} was started on: {was} then, "
                         f"{there_is} now; put them back, or start a new run")


def write_checkpoint(path, state):
    write(path, lambda tmp: torch.save(state, tmp))


def save_base(model, path):
    """The plain language model in bfloat16, without codes: half the bytes."""
    code_or_head = ("codebook.", "router.", "bigram", "lm_head.")
    plain = {name: w.bfloat16() for name, w in model.state_dict().items() if not name.startswith(code_or_head)}
    base = {"config": dataclasses.asdict(model.config), "model": plain}
    write_checkpoint(path, base)


def find_device(wanted):
    """(device, why) for --device; ValueError if the one wanted is not there."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    there = [name for name in found if found[name]]
    if wanted == "auto":
        return there[0], "no GPU was found" if there[0] == "cpu" else f"a {there[0]} GPU was found"
    if wanted not in there:
        raise ValueError(f"--device {wanted} is not there; this machine has {', '.join(there)}")
    return wanted, "--device"


def spare_threads(model, device):
    """
    One CPU thread for a small model: a second one gains it nothing, and halves its speed where another
    process is busy. OMP_NUM_THREADS, if set, is obeyed.
    """
    if device == "cpu" and "OMP_NUM_THREADS" not in os.environ and sum(p.numel() for p in model.parameters()) < 10**7:
        torch.set_num_threads(1)


def precision(dtype, device):
    """The context for --dtype: bfloat16 autocast, or nothing; auto = bfloat16 where a GPU has it."""
    if dtype == "auto":
        has_bfloat16 = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bfloat16" if has_bfloat16 else "float32"
    return torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()


def processes():
    """(rank, world): this is process `rank` of `world`, as torchrun says; without it 0 of 1."""
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise ValueError(f"the environment has RANK={rank}, but WORLD_SIZE={world} (1 if it is not set): torchrun "
                         "sets both; unset them for a run of one process")
    return int(rank), int(world)


def safe_output():
    """
    From now on printing ends no run: a terminal may lack a character, a notebook's output has no
    encoding to set, a closed or missing one gets nothing.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif name == "stdout" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what kill and batch systems send


def note_signals(noted):
    """From now on Ctrl-C and SIGTERM are added to the list `noted`; a second one leaves at once."""
    def note(number, frame):
        if noted:
            sys.exit(130)
        noted.append(number)

    if threading.current_thread() is threading.main_thread():  # Python allows it in no other
        for number in SIGNALS:
            signal.signal(number, note)


@contextlib.contextmanager
def signals_restored():
    """Afterwards Ctrl-C and SIGTERM do what they did before."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)


@contextlib.contextmanager
def alone_in(out):
    """
    A run's folder, made if it is missing, for this process alone: two would mix their files. The lock
    is on the folder itself and the system's, so that it ends with the process, however that ends.
    """
    rank, _ = processes()
    if rank > 0 or fcntl is None:  # torchrun's first process holds it for all
        yield
        return
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"--out {out}: another process is at work in this folder") from None
        except OSError:
            pass  # a network file system without locks
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                out.rmdir()  # only if nothing was written
    finally:
        os.close(folder)


@contextlib.contextmanager
def one_line_errors(program):
    """What a user can mend is one line and exit status 2; all else keeps its traceback."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError, ImportError) as e:
        sys.exit(fail(program, str(e)))
    except (MemoryError, RuntimeError) as e:
        if not isinstance(e, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(e):
            raise  # on a CPU torch runs out of memory with a plain RuntimeError
        sys.exit(fail(program, f"out of memory ({str(e)[:200]}). Training needs less with a larger --grad_accum or a "
                               f"smaller --block_size; a trained run, `python eval.py RUN --batch_size 16`"))
    except KeyboardInterrupt:
        sys.exit(130)


def fail(program, text):
    print(f"{program}: error: {text}", file=sys.stderr)
    return 2


def open_folder(out, flags, tokenizer, step):
    """
    A run's folder: the flags (a Namespace) in config.json, what a Hugging Face model's folder says beside
    its weights (find_rest), and metrics.jsonl without what comes after `step`, which is returned open, to
    append to.
    """
    if not flags.resume and (out / "config.json").exists():
        raise ValueError(f"--out {out} already holds a run; go on with --resume or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "config.json", json.dumps(vars(flags), indent=1))
    for name, path in find_rest(tokenizer).items():
        if not (out / name).exists():
            write(out / name, lambda tmp, path=path: shutil.copyfile(path, tmp))
    metrics = out / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    write_text(metrics, "".join(line + "\n" for line in lines[:step]))
    return open(metrics, "a", encoding="utf-8", buffering=1)  # each line is written at once


def write(path, save):
    """Write a file so that it is either whole or absent: save(temporary path), then rename."""
    tmp = path.with_name(path.name + ".tmp")
    try:
        save(tmp)
        os.replace(tmp, path)
    except (OSError, RuntimeError) as e:  # torch.save says RuntimeError when the disk is full
        raise OSError(f"cannot write {path}: {e}") from e
    finally:
        tmp.unlink(missing_ok=True)


def check_writable(path):
    """OSError now, before the work, where `write` would fail after it."""
    tmp = path.with_name(path.name + ".tmp")
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        tmp.touch()
        tmp.unlink()
    except OSError as e:
        raise OSError(f"cannot write {path}: {e}") from e


def write_text(path, text):
    write(path, lambda tmp: tmp.write_text(text, encoding="utf-8"))


def write_records(path, records):
    """One JSON object a line."""
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
