"""
Train: `python train.py` post-trains the embedded base model with DLR on word problems, trains plain SFT under the same
budget, and prints both beside each other with the codes on, off and random.

    python train.py                                # the main job: DLR, then SFT, at most 10 minutes on 2 CPU cores
    python train.py --tiny                         # the same in a minute, to see that everything works
    python train.py --select likelihood            # the paper's selection
    python train.py --method sft --lr 5e-4         # plain fine-tuning; and static, frozen, random_router, pause, ...
    python train.py --data gsm8k --init_from data/smollm2          # a real model on real GSM8K (see the README)
    python train.py --method pretrain --out runs/base              # make the base checkpoint again
    python train.py --resume --out runs/NAME       # go on after an interruption, to the same bits
    torchrun --nproc_per_node=8 train.py           # data parallel

A run's folder holds metrics.jsonl (a line for each step), ckpt.pt (config, weights, optimizer, step),
summary.json and answers.jsonl (the evaluation).
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import os
import random
import re
import signal
import sys
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data.baselines import N_PAUSE, VQ_CHUNK, VQ_CODES, assort, solution_chunks, vqvae_codes
from data.tokens import collate, encode_rows, load_encoding, load_rows
from dlr import GPT, GPTConfig, load_checkpoint, pair_sum, read_json, real_chunks
from eval import ARMS, bootstrap, evaluate, grade, precision, table, write

BASE = Path(__file__).parent / "data" / "wordproblems_base.pt"
CODED = ("dlr", "static", "frozen", "random_router")  # the methods that route and steer
FIXED = {"static": dict(n_codes=1, n_rollouts=0, select="advantage", alpha_policy=0.0, alpha_reg=0.0),
         "random_router": dict(n_rollouts=0, select="advantage", alpha_policy=0.0, alpha_reg=0.0)}


def flag(default, help, choices=None):
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass
class Config:
    method: str = flag("dlr", "dlr; its controls sft, static (one code), frozen (only codes and router learn), "
                       "random_router (it never learns); the baselines pause, tokenassorted; pretrain",
                       ("pretrain", "sft", *CODED, "pause", "tokenassorted"))
    data: str = flag("wordproblems", "wordproblems, arithmetic, gsm8k, scienceqa, strategyqa, commonsenseqa, "
                     "or a folder with {train,val,test}.jsonl")
    init_from: str = flag("base", "base (the embedded checkpoint), scratch, a .pt checkpoint, or a Hugging Face folder")
    out: str = flag("", "folder of the run; default runs/METHOD-DATE-TIME")
    resume: bool = flag(False, "continue the run in --out with that run's own settings")
    tiny: bool = flag(False, "a one-minute version: few rows, few steps, few test problems")
    baseline: bool = flag(True, "after dlr, also train sft under the same budget and print it beside")
    seed: int = flag(0, "seed of everything random: order, search, router init")
    device: str = flag("auto", "where to run", ("auto", "cpu", "cuda", "mps"))
    dtype: str = flag("auto", "of matrix products, weights stay float32; auto: bfloat16 on a GPU that has it",
                      ("auto", "float32", "bfloat16"))
    compile: bool = flag(False, "torch.compile the model")
    checkpointing: bool = flag(False, "recompute each block in the backward pass: less memory, a third more compute")
    # budget
    rows: int = flag(0, "training rows; 0 = all of the split")
    epochs: float = flag(3.0, "passes over the rows")
    batch_size: int = flag(8, "rows per optimizer step, over all processes and micro-steps")
    length_buckets: bool = flag(False, "rows of similar length in a batch: shuffled, then sorted within 16 batches")
    grad_accum: int = flag(1, "micro-steps per optimizer step")
    # optimizer
    lr: float = flag(1e-3, "peak learning rate of the language model")
    code_lr: float = flag(1e-2, "peak learning rate of codebook and router")
    warmup: float = flag(0.05, "fraction of the steps in which the rates rise; they then fall along a cosine to 0")
    weight_decay: float = flag(0.01, "AdamW decay of the language model's matrices")
    clip: float = flag(1.0, "gradient norm limit, of the language model and of the codes each")
    # model
    n_codes: int = flag(32, "C, codes in the codebook; 1 = one static vector")
    chunk: int = flag(4, "K, tokens per chunk")
    steer_layer: int = flag(-1, "l*, blocks below the steering; -1 = half of them")
    steer_scale: float = flag(0.5, "alpha, scale of the added code vector")
    route_norm: bool = flag(True, "the router reads the RMS-normalised state, not the raw one")
    router_std: float = flag(0.1, "std of the router's initial weights")
    # DLR
    select: str = flag("advantage", "how rollouts teach; the paper: likelihood", ("likelihood", "joint", "advantage"))
    n_rollouts: int = flag(4, "N, code sequences tried per row and step; 0 (advantage only): no search")
    temperature: float = flag(1.0, "tau, of the sampled rollouts")
    alpha_policy: float = flag(0.1, "weight of the policy term")
    alpha_reg: float = flag(0.1, "weight of the bi-Zipf regularizer")
    # pretraining from scratch
    n_layer: int = flag(4, "blocks (pretrain or scratch)")
    n_head: int = flag(4, "query heads (pretrain or scratch)")
    n_kv_head: int = flag(2, "key/value heads (pretrain or scratch)")
    n_embd: int = flag(128, "width of the residual stream (pretrain or scratch)")
    block_size: int = flag(512, "longest sequence in tokens, longer rows are left out (not for .pt checkpoints)")
    # evaluation and checkpoints
    eval_split: str = flag("test", "split that is evaluated at the end")
    eval_rows: int = flag(0, "problems evaluated at the end; 0 = all of the split, -1 = no evaluation")
    max_new_tokens: int = flag(320, "longest answer generated, in tokens")
    generate: bool = flag(True, "generate and grade answers; --no-generate scores held-out likelihood only")
    save_every: int = flag(200, "steps between checkpoints")

    def __post_init__(self):
        def need(ok, name, allowed):
            if not ok:
                raise ValueError(f"--{name} must be {allowed}, got {getattr(self, name)}")

        for f in dataclasses.fields(self):
            choices = f.metadata["choices"]
            need(not choices or getattr(self, f.name) in choices, f.name, f"one of {choices}")
        for name in ("batch_size", "grad_accum", "save_every", "block_size", "max_new_tokens"):
            need(getattr(self, name) >= 1, name, ">= 1")
        for name in ("epochs", "lr", "code_lr", "clip"):
            need(0 < getattr(self, name) < math.inf, name, "> 0 and finite")
        need(self.n_rollouts >= (self.select != "advantage"), "n_rollouts", ">= 1, or 0 with --select advantage")
        for name in ("temperature", "alpha_policy", "alpha_reg", "weight_decay", "rows", "router_std"):
            need(0 <= getattr(self, name) < math.inf, name, ">= 0 and finite")
        need(0 <= self.warmup < 1, "warmup", "in [0, 1)")
        need(self.eval_rows >= -1, "eval_rows", ">= -1")


def parse(argv):
    """Flags generated from Config; an unknown flag or a wrong type is an error, never ignored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    for f in dataclasses.fields(Config):
        kind = {"action": argparse.BooleanOptionalAction} if f.type is bool else {"type": f.type}
        parser.add_argument(f"--{f.name}", default=f.default, help=f"{f.metadata['help']} (default: {f.default})",
                            choices=f.metadata["choices"], **kind)
    given = {a.split("=")[0].removeprefix("--").removeprefix("no-") for a in argv if a.startswith("--")}
    cfg = Config(**vars(parser.parse_args(argv)))
    if cfg.tiny:  # explicit flags win
        small = dict(rows=160, epochs=2.0, eval_rows=100)
        cfg = dataclasses.replace(cfg, **{k: v for k, v in small.items() if k not in given})
    if cfg.resume:
        if not cfg.out or given - {"resume", "out"}:
            raise ValueError(f"--resume takes --out RUN and nothing else (a run keeps its flags), got {sorted(given)}")
        path = Path(cfg.out) / "config.json"
        if not path.exists():
            raise ValueError(f"--resume: {path} not found; --out must name a folder made by train.py")
        saved, known = read_json(path), {f.name for f in dataclasses.fields(Config)}
        if saved.keys() != known:
            raise ValueError(f"--resume: {path} is not of this version of train.py: it lacks the settings "
                             f"{sorted(known - saved.keys())} and has the unknown {sorted(saved.keys() - known)}")
        try:
            return Config(**{**saved, "resume": True, "out": cfg.out})
        except TypeError as e:
            raise ValueError(f"--resume: {path} has a setting of a wrong type: {e}") from e
    fixed = FIXED.get(cfg.method, {})
    for name, value in fixed.items():
        if name in given and getattr(cfg, name) != value:
            raise ValueError(f"--method {cfg.method} has --{name} {value}, got {getattr(cfg, name)}")
    cfg = dataclasses.replace(cfg, **fixed)
    if not cfg.out:
        cfg.out = f"runs/{cfg.method}-{time.strftime('%Y%m%d-%H%M%S')}"
    return cfg


def make_model(cfg):
    """(model, encoding): the starting model, before any training, with the codes' settings of cfg."""
    codes = dict(n_codes=cfg.n_codes, chunk=cfg.chunk, steer_scale=cfg.steer_scale, route_norm=cfg.route_norm,
                 router_std=cfg.router_std, steer_layer=None if cfg.steer_layer == -1 else cfg.steer_layer)
    if cfg.init_from == "scratch" or cfg.method == "pretrain":
        enc = load_encoding("wordproblems")
        return GPT(GPTConfig(vocab_size=enc.n_vocab, block_size=cfg.block_size, n_layer=cfg.n_layer, n_head=cfg.n_head,
                             n_kv_head=cfg.n_kv_head, n_embd=cfg.n_embd, **codes)), enc
    path = BASE if cfg.init_from == "base" else Path(cfg.init_from)
    if path.is_dir():
        enc = load_encoding(cfg.init_from)  # before the weights: it fails fast on a folder that is no model
        model = GPT.from_pretrained(path, block_size=cfg.block_size, **codes)
    else:
        saved = load_checkpoint(path)
        model, enc = GPT.from_checkpoint(saved, **codes), load_encoding(saved.get("tokenizer", "wordproblems"))
    if enc.n_vocab > model.config.vocab_size:
        raise ValueError(f"--init_from {path}: its tokenizer has {enc.n_vocab} tokens, "
                         f"the model {model.config.vocab_size}")
    return model, enc


def by_length(order, items, window):
    """The row numbers `order` sorted by the length of their item within every `window` of them, so little is padded."""
    return [row for i in range(0, len(order), window)
            for row in sorted(order[i : i + window], key=lambda row: len(items[row][0]))]


@contextlib.contextmanager
def alone_in(folder):
    """No second run can enter the folder meanwhile; a lock that goes with the process, however it ends."""
    fd = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if fcntl:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as e:
        raise ValueError(f"--out {folder}: another run is at work in this folder") from e
    finally:
        if fcntl:
            os.close(fd)


def train(cfg, held):
    """
    One run from start to end; returns the evaluation's summary (None on other processes and without evaluation).
    `held`: the caller's ExitStack, which keeps the run's folder locked.
    """
    # Where to run.
    out = Path(cfg.out)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if cfg.resume and (out / "summary.json").exists():  # nothing left to do
        return json.loads((out / "summary.json").read_text()) if rank == 0 else None
    device, why = cfg.device, "--device"
    if cfg.device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        why = {"cuda": "a CUDA GPU was found", "mps": "an Apple GPU was found", "cpu": "no GPU was found"}[device]
    elif device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no CUDA GPU was found")
    if world > 1:  # started by torchrun
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(hours=2))
    autocast = functools.partial(precision, cfg.dtype, device)
    bf16 = not isinstance(autocast(), contextlib.nullcontext)
    say = tqdm.write if rank == 0 else lambda *_: None
    say(f"device: {device} ({why}), {'bfloat16 autocast' if bf16 else 'float32'}"
        + (f", {world} processes" if world > 1 else f", {torch.get_num_threads()} threads" if device == "cpu" else ""))
    if cfg.batch_size % (cfg.grad_accum * world):
        raise ValueError(f"--batch_size must be a multiple of --grad_accum times the number of processes, "
                         f"got {cfg.batch_size}, {cfg.grad_accum} and {world}")

    # Data: text becomes tokens once, here.
    torch.manual_seed(cfg.seed)
    model, enc = make_model(cfg)
    suffix = [model.add_tokens(1)] * N_PAUSE if cfg.method == "pause" else []  # ends every prompt, also at inference
    held_out = load_rows(cfg.data, cfg.eval_split, cfg.eval_rows or None) if cfg.eval_rows >= 0 else []
    for row in held_out if cfg.generate else []:
        grade("", row["final"])  # a gold answer that is no number is found now, not after training
    rows = load_rows(cfg.data, "pretrain" if cfg.method == "pretrain" else "train", cfg.rows or None)
    items, left_out = encode_rows(rows, enc, model.config.block_size, suffix)
    if cfg.method == "pretrain":  # two problems a row, so that later, longer rows meet no unseen position; all labelled
        items = [(a + b, 1) for (a, _), (b, _) in zip(items[::2], items[1::2])]
        items = [(ids, n) for ids, n in items if len(ids) - 1 <= model.config.block_size]
        left_out = len(rows) - 2 * len(items)
        if not items:
            raise ValueError(f"no two of the {len(rows)} rows fit --block_size {cfg.block_size} together")
    step, seconds, busy, said = 0, 0.0, 0.0, None  # busy: processor seconds; on a GPU the seconds that it was held
    if cfg.method == "tokenassorted":
        first_new, answers = model.add_tokens(2 + VQ_CODES), [ids[n_prompt:] for ids, n_prompt in items]
        counts = [solution_chunks(enc, ids) for ids in answers]
        if not any(counts):
            raise ValueError(f"--method tokenassorted: no answer of {cfg.data} has {VQ_CHUNK} tokens before its ####")
        if not (cfg.resume and (out / "ckpt.pt").exists()):
            say(f"VQ-VAE on {sum(counts)} chunks of {VQ_CHUNK} answer tokens")
            start, start_busy = time.time(), time.process_time()
            codes = vqvae_codes(model.embed_tokens.weight[:first_new], answers)
            said = [row[:n] for row, n in zip(codes, counts)]
            seconds, busy = time.time() - start, time.process_time() - start_busy
    steps = math.ceil(cfg.epochs * len(items) / cfg.batch_size)
    say(f"{cfg.method} on {cfg.data}: {len(items)} rows ({left_out} longer than {model.config.block_size} tokens left "
        f"out), {steps} steps of {cfg.batch_size} rows, {sum(p.numel() for p in model.parameters()):,} parameters")

    @functools.lru_cache(maxsize=2)
    def order(epoch):
        generator = torch.Generator().manual_seed(cfg.seed * 100_003 + epoch)
        shuffled = torch.randperm(len(items), generator=generator).tolist()
        return by_length(shuffled, items, 16 * cfg.batch_size) if cfg.length_buckets else shuffled

    def row_of(i):
        """Which row is the i-th of the run, counted over all epochs."""
        return order(i // len(items))[i % len(items)]

    def example(i):
        """The i-th item of the run: (ids, n_prompt)."""
        row = row_of(i)
        if cfg.method == "tokenassorted":
            return assort(items[row], said[row], first_new, random.Random(f"{cfg.seed} {i}"))
        return items[row]

    # Model and optimizer. Codebook and router learn much faster than the language model, and without decay.
    model.to(device).train()
    model.checkpointing = cfg.checkpointing
    is_code = lambda name: name.startswith(("codebook.", "router."))  # noqa: E731
    for name, p in model.named_parameters():
        p.requires_grad_(cfg.method in CODED if is_code(name) else cfg.method != "frozen")
    if cfg.method in FIXED or cfg.n_codes == 1:  # nothing to learn in routing to one code
        model.router.weight.requires_grad_(False)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    codes = [p for name, p in named if is_code(name)]
    lm = [p for name, p in named if not is_code(name)]
    groups = [{"params": [p for p in lm if p.dim() >= 2], "peak": cfg.lr, "weight_decay": cfg.weight_decay},
              {"params": [p for p in lm if p.dim() < 2], "peak": cfg.lr, "weight_decay": 0.0},
              {"params": codes, "peak": cfg.code_lr, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=(0.9, 0.95), fused=device == "cuda")

    # Resume, or begin.
    usage = torch.zeros(cfg.n_codes)  # running count of each code among the router's choices
    if rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        held.enter_context(alone_in(out))
        if not cfg.resume and (out / "config.json").exists():
            raise ValueError(f"--out {out} already holds a run; continue it with --resume or choose another folder")
    if cfg.resume and (out / "ckpt.pt").exists():
        saved = load_checkpoint(out / "ckpt.pt")
        try:
            mine, other = ({k: v for k, v in c.items() if k not in ("out", "resume")}
                           for c in (dataclasses.asdict(cfg), saved["train"]))
            if mine != other:
                differ = sorted(k for k in mine.keys() | other.keys() if mine.get(k) != other.get(k))
                raise ValueError(f"its settings differ from config.json in {differ}")
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            step, seconds, busy = saved["step"], saved["seconds"], saved["busy"]
            usage, said = saved["usage"], saved["said"]
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as e:
            reason = f"it lacks {e}" if isinstance(e, KeyError) else " ".join(str(e).split())[:500]
            raise ValueError(f"--resume: cannot go on from {out / 'ckpt.pt'}: {reason}") from e
        say(f"resumed {out} at step {step}")
    if rank == 0 and not cfg.resume:
        write(out / "config.json", lambda p: p.write_text(json.dumps(dataclasses.asdict(cfg), indent=1)))
    if rank == 0:  # drop the lines of steps that will be done again
        done = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
        done = [line for line in done if line.endswith("}") and json.loads(line)["step"] <= step]  # the last may be cut
        write(out / "metrics.jsonl", lambda p: p.write_text("".join(line + "\n" for line in done)))

    def save():
        state = {"config": dataclasses.asdict(model.config), "model": model.state_dict(), "tokenizer": enc.name,
                 "suffix": suffix, "train": dataclasses.asdict(cfg), "optimizer": optimizer.state_dict(),
                 "usage": usage, "said": said, "seconds": seconds, "busy": busy,
                 "step": step}  # rows and rollouts follow from seed and step, whatever the number of processes
        if rank == 0:
            write(out / "ckpt.pt", lambda p: torch.save(state, p))

    # Ctrl-C ends the step, saves and leaves; a second one leaves at once. torchrun passes it on to every process.
    stop = []
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130) if stop and world == 1 else stop.append(1))
    told = stop  # of several processes: whether any was told to stop, the same everywhere, since all must leave at once
    if cfg.compile:  # block by block: what is ragged and depends on the labels stays eager
        for layer in model.layers:
            layer.compile(dynamic=True)
    graded = model
    if world > 1:
        graded = DistributedDataParallel(graded)
    bar = tqdm(total=steps, initial=step, desc=cfg.method, disable=rank > 0 or None, dynamic_ncols=True)
    log = open(out / "metrics.jsonl", "a") if rank == 0 else None
    while step < steps and not told:
        start, start_busy = time.time(), time.process_time()
        # learning rate: linear warm-up, then a cosine to 0
        w = cfg.warmup * steps
        rate = (step + 1) / w if step + 1 <= w else 0.5 * (1 + math.cos(math.pi * (step + 1 - w) / (steps - w + 1)))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate

        # the step's rows, and this process's share of them in micro-steps
        first = step * cfg.batch_size
        batch = [example(i) for i in range(first, first + cfg.batch_size)]
        n_labels, metrics, used = sum(len(ids) - n_prompt for ids, n_prompt in batch), {}, torch.zeros(cfg.n_codes)
        parts, last = cfg.grad_accum * world, first + cfg.batch_size
        seeds = [random.Random(f"rollouts {cfg.seed} {i}").getrandbits(32) for i in range(first, last)]
        micro_batches = [([t.to(device) for t in collate(batch[part::parts])], seeds[part::parts])
                         for part in range(rank, parts, world)]
        whole = None
        if cfg.method in CODED and parts > 1:  # the prior is no sum over rows: a first pass through the lower half
            with torch.no_grad(), autocast():
                sums = [pair_sum(model.route(idx).softmax(-1), real_chunks(targets, cfg.chunk))
                        for (idx, targets), _ in micro_batches]
            sums = torch.cat([sum(bigram for bigram, _ in sums).flatten(), sum(pairs for _, pairs in sums)[None]])
            if world > 1:
                dist.all_reduce(sums)
            chunks = sum(math.ceil((len(ids) - 1) / cfg.chunk) for ids, _ in batch)
            whole = {"parts": parts, "labels": torch.tensor(n_labels), "chunks": torch.tensor(chunks),
                     "pairs": sums[-1], "bigram": (sums[:-1] / sums[-1].clamp(min=1)).view(cfg.n_codes, cfg.n_codes)}
        for micro, ((idx, targets), row_seeds) in enumerate(micro_batches):
            last_micro = micro == cfg.grad_accum - 1
            with contextlib.nullcontext() if last_micro or world == 1 else graded.no_sync():
                with autocast():
                    if cfg.method in CODED:
                        loss, terms = graded(idx, targets, codes="search", n_rollouts=cfg.n_rollouts,
                                             select=cfg.select, temperature=cfg.temperature, seeds=row_seeds,
                                             alpha_policy=cfg.alpha_policy, alpha_reg=cfg.alpha_reg, whole=whole)
                        used += terms.pop("usage").cpu()
                    else:  # a micro-batch counts by its labels, as in one large batch
                        loss, terms = graded(idx, targets, codes="off")[1] * (targets >= 0).sum() / n_labels, {}
                (loss * world).backward()  # DDP takes the mean of the processes' gradients
            for name, value in {"loss": loss.detach(), **terms}.items():
                metrics[name] = metrics.get(name, 0.0) + value.item()
        if world > 1:  # the metrics of the whole batch
            total = torch.tensor([*metrics.values(), len(stop), *used.tolist()], device=device)
            dist.all_reduce(total)
            *values, told = total[: len(metrics) + 1].tolist()
            metrics, used = dict(zip(metrics, values)), total[len(metrics) + 1 :].cpu()
        usage += used

        # update
        if lm:
            metrics["grad_norm"] = torch.nn.utils.clip_grad_norm_(lm, cfg.clip).item()
        if codes:
            metrics["code_grad_norm"] = torch.nn.utils.clip_grad_norm_(codes, cfg.clip).item()
        if not all(map(math.isfinite, metrics.values())):
            rows = [row_of(i) for i in range(first, first + cfg.batch_size)]
            raise FloatingPointError(f"step {step}: loss or gradient is not finite ({metrics}); rows {rows}; "
                                     f"the last checkpoint in {out} is kept; a lower --lr or --code_lr may help")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if whole and whole["pairs"] > 0:
            model.bigram.lerp_(whole["bigram"], 0.2)  # the prior's average, which a part alone cannot move
        step += 1
        seconds += time.time() - start
        busy += world * (time.process_time() - start_busy if device == "cpu" else time.time() - start)

        # log, show, save
        if cfg.method in CODED:
            p = usage / usage.sum()
            metrics["active"] = (p > 0.001).float().mean().item()
            metrics["perplexity"] = torch.special.entr(p).sum().exp().item()
            if step % max(1, steps // 50) == 0:
                metrics["usage"] = [round(share, 4) for share in p.tolist()]
            usage *= 0.98
        if rank == 0:
            log.write(json.dumps({"step": step, **metrics, "lr": cfg.lr * rate, "seconds": round(seconds, 3)}) + "\n")
            log.flush()
            shown = [k for k in ("loss", "info_gain", "active", "perplexity") if k in metrics]
            bar.set_postfix({k: f"{metrics[k]:.3f}" for k in shown})
        if step % cfg.save_every == 0 or step == steps or told:
            save()
        bar.update()
    bar.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if told:
        say(f"interrupted at step {step}; go on with: python train.py --resume --out {cfg.out}")
        sys.exit(130)
    if rank > 0:
        return None
    log.close()

    # A base checkpoint is the plain language model in bfloat16: half the bytes, no codes.
    if cfg.method == "pretrain":
        plain = {k: v.bfloat16() for k, v in model.state_dict().items()
                 if not k.startswith(("codebook.", "router.", "bigram", "lm_head."))}
        base = {"config": dataclasses.asdict(model.config), "model": plain}
        write(out / "base.pt", lambda p: torch.save(base, p))
        say(f"wrote {out / 'base.pt'}")
    if cfg.eval_rows == -1:
        return None
    arms = ARMS if cfg.method in CODED else ("off",)
    with autocast():
        summary, records = evaluate(model, enc, held_out, arms, cfg.generate, cfg.max_new_tokens, seed=cfg.seed,
                                    suffix=suffix)
    summary |= {"method": cfg.method, "split": cfg.eval_split, "steps": steps, "train_seconds": round(seconds, 1),
                "compute_seconds": round(busy, 1)}
    write(out / "answers.jsonl", lambda p: p.write_text("".join(json.dumps(r) + "\n" for r in records)))
    write(out / "summary.json", lambda p: p.write_text(json.dumps(summary, indent=1)))  # last: it says "finished"
    return summary


def main(argv=None):
    try:
        cfg = parse(sys.argv[1:] if argv is None else argv)
        with contextlib.ExitStack() as held:
            runs = {cfg.method: (train(cfg, held), cfg.out)}
            if cfg.method == "dlr" and cfg.baseline:  # the same rows, steps and rates, without codes
                sft = dataclasses.replace(cfg, method="sft", out=f"{cfg.out}/sft",
                                          resume=cfg.resume and Path(cfg.out, "sft", "config.json").exists())
                runs["sft"] = train(sft, held), sft.out
    except (ValueError, OSError, FloatingPointError, ImportError) as e:
        print(f"train.py: error: {e}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as e:
        if not isinstance(e, (MemoryError, torch.OutOfMemoryError)) and not re.search(
                "can.t allocate memory|not enough memory|out of memory|size calculation overflowed", str(e)):
            raise
        print(f"train.py: error: out of memory ({' '.join(str(e).split())[:200]}). What a step needs shrinks with a "
              f"larger --grad_accum, fewer --n_rollouts, a smaller --batch_size or --block_size", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # during the evaluation: training is saved, --resume evaluates again
        sys.exit(130)
    runs = {name: run for name, run in runs.items() if run[0]}
    if not runs:
        return
    print(table({name: summary for name, (summary, _) in runs.items()}))
    if len(runs) == 2:
        dlr, sft = ([json.loads(line) for line in Path(out, "answers.jsonl").read_text().splitlines()]
                    for _, out in runs.values())
        weights = [r["tokens"] for r in dlr]
        print("dlr on - sft: {:+.4f} nats per answer token, 95 % interval [{:+.4f}, {:+.4f}]".format(*bootstrap(
            [r["on"]["nll"] / r["tokens"] for r in dlr], [r["off"]["nll"] / r["tokens"] for r in sft], weights)))
        if cfg.generate:
            print("dlr on - sft: {:+.1f} points of strict accuracy, 95 % interval [{:+.1f}, {:+.1f}]".format(*(
                100 * x for x in bootstrap([r["on"]["strict"] for r in dlr], [r["off"]["strict"] for r in sft]))))
    print(f"everything is in {cfg.out}")


if __name__ == "__main__":
    main()
    # DDP keeps gloo's threads; one still at work while Python shuts down would abort the process.
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        sys.stdout.flush()
        os._exit(0)
