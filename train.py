"""
Train: `python train.py` post-trains the embedded base model with DLR on word problems, then trains
plain SFT under the same budget, and prints both beside each other.

    python train.py                                  # the main job, about 6 minutes on 2 CPU cores
    python train.py --tiny                           # the same in half a minute: see all of it work
    python train.py --method sft --lr 5e-4           # plain fine-tuning alone; see --help for the controls
    python train.py --data gsm8k --init_from data/smollm2        # a real model, real GSM8K (README)
    python train.py --method pretrain --out runs/base            # make the base checkpoint again
    python train.py --resume --out runs/NAME         # go on after an interruption, to the same bits
    torchrun --nproc_per_node=2 train.py             # each process takes its share of every batch

A run's folder holds config.json (the flags), metrics.jsonl (a line for each step), ckpt.pt (weights,
optimizer, step), and from the evaluation summary.json and answers.jsonl.
"""

import argparse
import dataclasses
import json
import math
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from data.plumbing import find_device, load_checkpoint, precision, write, write_records, write_text
from data.qa import PUBLISHED
from data.tokens import collate, encode_rows, load_encoding, load_rows
from dlr import GPT, GPTConfig
from eval import ARMS, bootstrap, check_golds, evaluate, load_run, table

DATASETS = ("wordproblems", "arithmetic", "gsm8k", *PUBLISHED)
BASE = Path(__file__).parent / "data" / "wordproblems_base.pt"
BASE_SHAPE = dict(n_layer=4, n_head=4, n_kv_head=2, n_embd=128)  # of what is trained from scratch
METHODS = {  # what each method is, as flags; the first four route and steer
    "dlr": {},
    "static": {"n_codes": 1, "select": "greedy"},  # one learned vector, nothing to route
    "random_router": {"select": "greedy", "alpha_reg": 0.0},  # its router never learns
    "frozen": {},  # only codes and router learn
    "sft": {},
    "pretrain": {},
}
CODED = ("dlr", "static", "random_router", "frozen")
WARMUP, CLIP, WEIGHT_DECAY = 0.05, 1.0, 0.01  # fraction of the steps; gradient norm; AdamW


def parse(argv):
    """The flags, checked. With --resume those that the run was started with."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, usage="python train.py [flags]",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)

    def flag(name, default, help, choices=None):
        kind = {"action": argparse.BooleanOptionalAction} if type(default) is bool else {"type": type(default)}
        parser.add_argument(f"--{name}", default=default, choices=choices, help=f"{help} (default: {default})", **kind)

    flag("method", "dlr", "dlr; its controls static (one code), random_router (it never learns), frozen "
         "(only codes and router learn), sft; pretrain", choices=[*METHODS])
    flag("data", "wordproblems", f"one of {', '.join(DATASETS)}, or a folder with train.jsonl, test.jsonl")
    flag("init_from", "base", "base (the embedded checkpoint), scratch, a .pt checkpoint, or a Hugging Face folder")
    flag("out", "", "folder of the run; empty: runs/METHOD-DATE-TIME")
    flag("resume", False, "go on with the run in --out, under its own flags")
    flag("tiny", False, "a short version: few rows, steps and test problems")
    flag("baseline", True, "after dlr, also train sft under the same budget and print it beside")
    flag("seed", 0, "of everything random: order, search, router init")
    flag("device", "auto", "where to run", choices=["auto", "cpu", "cuda", "mps"])
    flag("dtype", "auto", "of matrix products, weights stay float32; auto: bfloat16 on a GPU that has it",
         choices=["auto", "float32", "bfloat16"])
    # budget
    flag("rows", 0, "training rows; 0 = all of the split")
    flag("epochs", 3.0, "passes over the rows")
    flag("batch_size", 8, "rows per optimizer step")
    flag("grad_accum", 1, "micro-batches that a batch is cut into, to save memory")
    flag("lr", 1e-3, "peak learning rate of the language model")
    flag("code_lr", 1e-2, "peak learning rate of codebook and router")
    # Dynamic Latent Routing
    flag("n_codes", 32, "C, codes in the codebook")
    flag("chunk", 4, "K, tokens per chunk")
    flag("steer_layer", -1, "l*, blocks below the steering; -1 = half of them")
    flag("steer_scale", 0.5, "alpha, scale of the added code vector")
    flag("route_norm", True, "the router reads the RMS-normalised state; the paper: --no-route_norm")
    flag("router_std", 0.1, "std of the router's initial weights; the paper: 0.01")
    flag("select", "likelihood", "which candidate wins; greedy: no search", choices=["likelihood", "joint", "greedy"])
    flag("n_rollouts", 4, "N, candidates per row and step")
    flag("temperature", 1.0, "of the distribution that candidates are drawn from")
    flag("alpha_policy", 0.1, "weight of the policy term")
    flag("alpha_reg", 0.1, "weight of the regularizer")
    # evaluation and checkpoints
    flag("block_size", 512, "longest sequence in tokens; longer rows are left out (.pt checkpoints keep their own)")
    flag("eval_split", "test", "split that is evaluated at the end")
    flag("eval_rows", 0, "problems evaluated at the end; 0 = all of the split, -1 = no evaluation")
    flag("max_new_tokens", 320, "longest answer generated, in tokens")
    flag("generate", True, "generate and grade answers; --no-generate: likelihood only, fast")
    flag("save_every", 200, "steps between checkpoints")

    args = parser.parse_args(argv)
    given = {a.split("=")[0].removeprefix("--").removeprefix("no-") for a in argv if a.startswith("--")}
    if args.resume:
        path = Path(args.out) / "config.json"
        if given != {"resume", "out"} or not path.is_file():
            raise ValueError(f"--resume takes --out RUN, a folder made by train.py, and no other flag; got {argv}")
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved.keys() != vars(args).keys():
            raise ValueError(f"--resume: {path} has not this version's flags; they differ in "
                             f"{sorted(saved.keys() ^ vars(args).keys())}")
        return argparse.Namespace(**{**saved, "resume": True, "out": args.out})

    for name, least in {"rows": 0, "batch_size": 1, "grad_accum": 1, "n_rollouts": 1, "eval_rows": -1,
                        "max_new_tokens": 1, "save_every": 1, "block_size": 1, "steer_layer": -1}.items():
        if getattr(args, name) < least:
            raise ValueError(f"--{name} must be >= {least}, got {getattr(args, name)}")
    for name in ("epochs", "lr", "code_lr"):
        if not 0 < getattr(args, name) < math.inf:
            raise ValueError(f"--{name} must be > 0 and finite, got {getattr(args, name)}")
    for name in ("temperature", "alpha_policy", "alpha_reg"):
        if not 0 <= getattr(args, name) < math.inf:
            raise ValueError(f"--{name} must be >= 0 and finite, got {getattr(args, name)}")
    for name, value in METHODS[args.method].items():
        if name in given and getattr(args, name) != value:
            raise ValueError(f"--method {args.method} has --{name} {value}, got {getattr(args, name)}")
        setattr(args, name, value)
    if "alpha_policy" in given and args.alpha_policy > 0 and (args.select == "greedy" or args.n_codes == 1):
        raise ValueError("--alpha_policy must be 0 with --select greedy or --n_codes 1: the policy term is always zero")
    for name, small in {"rows": 160, "epochs": 2.0, "eval_rows": 100}.items():
        if args.tiny and name not in given:
            setattr(args, name, small)
    # A run can be used from any folder: paths are kept absolute.
    if args.data not in DATASETS:
        args.data = str(Path(args.data).resolve())
    if args.init_from not in ("base", "scratch"):
        args.init_from = str(Path(args.init_from).resolve())
    args.out = args.out or f"runs/{args.method}-{time.strftime('%Y%m%d-%H%M%S')}"
    return args


def starting_model(args):
    """(model, encoding) before any training, with the codes' settings of the flags."""
    codes = {"n_codes": args.n_codes, "chunk": args.chunk, "steer_scale": args.steer_scale,
             "route_norm": args.route_norm, "router_std": args.router_std,
             "steer_layer": None if args.steer_layer == -1 else args.steer_layer}
    path = BASE if args.init_from == "base" else Path(args.init_from)
    if args.init_from == "scratch" or args.method == "pretrain":
        enc = load_encoding("wordproblems")
        return GPT(GPTConfig(vocab_size=enc.n_vocab, block_size=args.block_size, **BASE_SHAPE, **codes)), enc
    if path.is_dir():
        enc = load_encoding(str(path))
        return GPT.from_pretrained(path, block_size=args.block_size, **codes), enc
    saved = load_checkpoint(path)
    beside = path.parent / "tokenizer.json"
    enc = load_encoding(str(beside) if beside.exists() else saved.get("tokenizer", "wordproblems"))
    return GPT.from_checkpoint(saved, **codes), enc


def learning_rate(step, steps):
    """The fraction of the peak rate at step 0..steps-1: linear warm-up, then a cosine to 0."""
    warmup = WARMUP * steps
    if step + 1 <= warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step + 1 - warmup) / (steps - warmup + 1)))


def train(args):
    """One run from start to end: leaves its folder with the last checkpoint. Returns (model, encoding)."""
    # Where to run.
    out = Path(args.out)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device, why = find_device(args.device)
    if world > 1 and not dist.is_initialized():  # started by torchrun
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    autocast = precision(args.dtype, device)
    say = tqdm.write if rank == 0 else lambda text: None
    say(f"device: {device} ({why}), {'bfloat16 autocast' if isinstance(autocast, torch.autocast) else 'float32'}")
    parts = args.grad_accum * world  # each batch is cut into this many
    if args.batch_size % parts:
        raise ValueError(f"--batch_size must be a multiple of --grad_accum times the number of processes, "
                         f"got {args.batch_size}, {args.grad_accum} and {world}")

    # The model, from the start or where the run was left.
    torch.manual_seed(args.seed)
    saved = load_checkpoint(out / "ckpt.pt") if args.resume and (out / "ckpt.pt").exists() else None
    model, enc = load_run(out)[:2] if saved else starting_model(args)
    if enc.n_vocab > model.config.vocab_size:
        raise ValueError(f"--init_from {args.init_from}: its tokenizer has {enc.n_vocab} tokens, "
                         f"the model {model.config.vocab_size}")

    # The data: text becomes tokens once, here.
    split = "pretrain" if args.method == "pretrain" else "train"
    rows = load_rows(args.data, split, args.rows or None, at_most=args.tiny)
    items, left_out = encode_rows(rows, enc, model.config.block_size)  # [(ids, n_prompt)]
    if args.method == "pretrain":  # two problems a row, so that longer rows meet no unseen position
        items = [(a + b, 1) for (a, _), (b, _) in zip(items[::2], items[1::2])]  # and all is labelled
        items = [(ids, n) for ids, n in items if len(ids) - 1 <= model.config.block_size]
    steps = math.ceil(args.epochs * len(items) / args.batch_size)
    say(f"{args.method} on {args.data}: {len(items)} rows ({left_out} longer than {model.config.block_size} tokens "
        f"left out), {steps} steps of {args.batch_size}, {sum(p.numel() for p in model.parameters()):,} parameters")

    def item(i):
        """The i-th item of the run: every epoch has its own order, which follows from seed and epoch."""
        epoch, position = divmod(i, len(items))
        generator = torch.Generator().manual_seed(args.seed * 100_003 + epoch)
        return items[torch.randperm(len(items), generator=generator)[position]]

    # What learns, and the optimizer. Codes learn much faster than the language model, without decay.
    model.to(device).train()
    learns = {"codes": args.method in CODED, "lm": args.method != "frozen"}
    lm, codes = [], []
    for name, p in model.named_parameters():
        is_code = name.startswith(("codebook.", "router."))
        p.requires_grad_(learns["codes" if is_code else "lm"])
        if name == "router.weight" and (args.method in ("static", "random_router") or args.n_codes == 1):
            p.requires_grad_(False)
        if p.requires_grad:
            (codes if is_code else lm).append(p)
    groups = [{"params": [p for p in lm if p.dim() >= 2], "peak": args.lr, "weight_decay": WEIGHT_DECAY},
              {"params": [p for p in lm if p.dim() < 2], "peak": args.lr, "weight_decay": 0.0},
              {"params": codes, "peak": args.code_lr, "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=device == "cuda")
    step, seconds = 0, 0.0
    if saved:
        optimizer.load_state_dict(saved["optimizer"])
        step, seconds = saved["step"], saved["seconds"]
        say(f"resumed {out} at step {step}")

    # The run's folder.
    if rank == 0:
        if not args.resume and (out / "config.json").exists():
            raise ValueError(f"--out {out} already holds a run; go on with --resume or choose another folder")
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "config.json", json.dumps(vars(args), indent=1))
        if Path(enc.name, "tokenizer.json").exists():  # a Hugging Face model's tokenizer comes along
            shutil.copyfile(Path(enc.name, "tokenizer.json"), out / "tokenizer.json")
        lines = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
        write_text(out / "metrics.jsonl", "".join(line + "\n" for line in lines[:step]))  # later steps come again
        log = open(out / "metrics.jsonl", "a", encoding="utf-8")

    interrupted = []  # Ctrl-C ends the step, saves and leaves; a second one leaves at once
    if world == 1:
        signal.signal(signal.SIGINT, lambda *_: sys.exit(130) if interrupted else interrupted.append(True))
    bar = tqdm(total=steps, initial=step, desc=args.method, disable=rank > 0 or None, dynamic_ncols=True)
    while step < steps and not interrupted:
        start = time.time()
        # learning rate
        rate = learning_rate(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate

        # loss and gradient: this process's micro-batches, each weighted by its share of the labels
        batch = [item(i) for i in range(step * args.batch_size, (step + 1) * args.batch_size)]
        n_labels = sum(len(ids) - n_prompt for ids, n_prompt in batch)
        torch.manual_seed((args.seed * 1_000_003 + step) * world + rank)  # so that a resumed run draws the same
        metrics = {}
        for part in range(rank, parts, world):
            idx, targets = (t.to(device) for t in collate(batch[part::parts]))
            share = (targets >= 0).sum() / n_labels
            with autocast:
                if args.method in CODED:
                    loss, terms = model.dlr_loss(idx, targets, args.n_rollouts, args.temperature, args.select,
                                                 args.alpha_policy, args.alpha_reg)
                else:
                    loss, terms = model(idx, targets, codes="off")[1], {}
            (loss * share).backward()
            for name, value in {"loss": loss.detach(), **terms}.items():
                metrics[name] = metrics.get(name, 0) + value * (1 if name == "usage" else share)
        if world > 1:  # the gradients of all processes add up to the batch's
            for p in lm + codes:
                dist.all_reduce(p.grad)
            dist.all_reduce(model.bigram)
            model.bigram /= world

        # clip and step
        usage = metrics.pop("usage", None)  # (C,)
        metrics = {name: value.item() for name, value in metrics.items()}
        for name, params in {"grad_norm": lm, "code_grad_norm": codes}.items():
            if params:
                metrics[name] = torch.nn.utils.clip_grad_norm_(params, CLIP).item()
        if not all(map(math.isfinite, metrics.values())):
            raise FloatingPointError(f"step {step}: loss or gradient is not finite ({metrics}); the last checkpoint "
                                     f"in {out} is kept; a lower --lr or --code_lr may help")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        seconds += time.time() - start

        # log, show, save
        if usage is not None:
            p = usage / usage.sum()
            metrics["active"] = (p > 0).float().mean().item()  # share of the codes that this batch used
            metrics["perplexity"] = torch.special.entr(p).sum().exp().item()
            metrics["usage"] = [round(share, 4) for share in p.tolist()]
        if rank == 0:
            log.write(json.dumps({"step": step, **metrics, "lr": args.lr * rate, "seconds": round(seconds, 3)}) + "\n")
            log.flush()
            shown = [name for name in ("loss", "info_gain", "active", "perplexity") if name in metrics]
            bar.set_postfix({name: f"{metrics[name]:.3f}" for name in shown})
            if step % args.save_every == 0 or step == steps or interrupted:
                state = {"config": dataclasses.asdict(model.config), "model": model.state_dict(),
                         "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds,
                         "tokenizer": enc.name, "train": vars(args)}
                write(out / "ckpt.pt", lambda tmp, state=state: torch.save(state, tmp))
        bar.update()
    bar.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupted:
        say(f"interrupted at step {step}; go on with: python train.py --resume --out {args.out}")
        sys.exit(130)
    return model, enc


def run(args):
    """Train, then evaluate: (summary, records), or None where nothing is evaluated. Files say what is done."""
    out = Path(args.out)
    held_out = []
    if args.eval_rows >= 0:  # read before training: what is wrong with it is found now
        held_out = load_rows(args.data, args.eval_split, args.eval_rows or None, at_most=args.tiny)
        if args.generate:
            check_golds(held_out)
    model, enc = train(args)  # its optimizer is gone by now: the evaluation has the memory
    if int(os.environ.get("RANK", 0)) > 0:
        return None
    if args.method == "pretrain":  # a base checkpoint is the plain language model in bfloat16
        plain = {name: w.bfloat16() for name, w in model.state_dict().items()
                 if not name.startswith(("codebook.", "router.", "bigram", "lm_head."))}
        base = {"config": dataclasses.asdict(model.config), "model": plain}
        write(out / "base.pt", lambda tmp: torch.save(base, tmp))
    if not held_out:
        return None
    arms = ARMS if args.method in CODED else ("off",)
    with precision(args.dtype, model.cos.device.type):
        summary, records = evaluate(model, enc, held_out, arms, args.generate, args.max_new_tokens, seed=args.seed)
    seconds = json.loads((out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])["seconds"]
    summary |= {"method": args.method, "split": args.eval_split, "train_seconds": seconds}
    write_records(out / "answers.jsonl", records)
    write_text(out / "summary.json", json.dumps(summary, indent=1))
    return summary, records


def main(argv=None):
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        runs = {args.method: run(args)}
        if args.method == "dlr" and args.baseline:  # the same rows, steps and rates, without codes
            sft = argparse.Namespace(**{**vars(args), "method": "sft", "out": f"{args.out}/sft"})
            sft.resume = args.resume and Path(sft.out, "config.json").exists()
            runs["sft"] = run(sft)
    except (ValueError, OSError, FloatingPointError, ImportError) as e:
        print(f"train.py: error: {e}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as e:
        if not isinstance(e, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(e):
            raise
        print(f"train.py: error: out of memory ({str(e)[:200]}). A step needs less with a larger --grad_accum or a "
              f"smaller --block_size; if training is done, `python eval.py RUN --batch_size 16`", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # during the evaluation: training is saved, --resume evaluates again
        sys.exit(130)
    runs = {name: result for name, result in runs.items() if result}
    if not runs:
        return
    print(table({name: summary for name, (summary, _) in runs.items()}))
    if len(runs) == 2:
        (_, dlr), (_, sft) = runs.values()
        tokens = [r["tokens"] for r in dlr]
        nats = bootstrap([r["on"]["nll"] / r["tokens"] for r in dlr],
                         [r["off"]["nll"] / r["tokens"] for r in sft], tokens)
        print("dlr on - sft: {:+.4f} nats per answer token, 95 % interval [{:+.4f}, {:+.4f}]".format(*nats))
        if args.generate:
            points = bootstrap([100 * r["on"]["strict"] for r in dlr], [100 * r["off"]["strict"] for r in sft])
            print("dlr on - sft: {:+.1f} points of strict accuracy, 95 % interval [{:+.1f}, {:+.1f}]".format(*points))
    print(f"everything is in {args.out}")


if __name__ == "__main__":
    main()
    if dist.is_initialized():
        dist.destroy_process_group()
