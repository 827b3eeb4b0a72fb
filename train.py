"""
Train: `python train.py` post-trains the embedded base model with DLR on word problems, then with plain
SFT, once for as many steps and once with as much compute, and prints the three beside each other.

    python train.py                                  # the main job, about 6 minutes on 2 CPU cores
    python train.py --tiny                           # the same in two minutes: see all of it work
    python train.py --data gsm8k --init_from data/smollm2        # a real model, real GSM8K (README)
    python train.py --resume --out runs/NAME         # go on after an interruption, to the same bits

A run's folder holds config.json (the flags), metrics.jsonl (a line a step), ckpt.pt, summary.json and
answers.jsonl (the evaluation); those of SFT lie in its folders sft and sft-compute.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from data import plumbing
from data.files import read_json, read_jsonl
from data.handles import describe, follow_plans
from data.modes import LINES, MODES
from data.tokens import DATASETS, collate, encode_rows, load_rows
from dlr import SWITCH_COST, load_checkpoint
from eval import ARMS, CAPTION, MAX_EACH, bootstrap, check_golds, choosing_rows, evaluate, table

CODED = ("dlr", "static", "random_router", "frozen")  # these route and steer
METHODS = (*CODED, "sft", "pretrain")
LARGEST = 2**31  # of a flag's number: integers end near there, and float32 from 1e38 on
FIXED = {"static": {"n_codes": 1, "select": "greedy"},  # one learned vector, nothing to route
         "random_router": {"select": "greedy", "alpha_reg": 0.0}}  # its router never learns
# A path's codes must come apart early, so they learn fast; and they last, which the regularizer would punish.
PATH = {"code_lr": 1e-1, "alpha_reg": 0.0}
WARMUP, CLIP, WEIGHT_DECAY = 0.05, 1.0, 0.01  # WARMUP: fraction of the steps
RISE = 3.0  # the price of a change of code at the end, in --switch_cost


def parse(argv):
    """The flags, checked. With --resume those that the run was started with."""
    parser = argparse.ArgumentParser(description=__doc__, usage="python train.py [flags]", allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)

    def flag(name, default, help, choices=None):
        kind = {"type": type(default), "choices": choices}
        if type(default) is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(f"--{name}", default=default, help=f"{help} (default: {default})", **kind)

    flag("method", "dlr", "dlr; controls: static (one code), random_router (untrained router), frozen "
         "(untrained LM), sft (no codes); pretrain: a base model", choices=METHODS)
    flag("data", "wordproblems", f"one of {', '.join(DATASETS)}, or a folder of train.jsonl, val.jsonl, test.jsonl")
    flag("init_from", "base", "base (embedded), scratch, a run's folder, a .pt checkpoint, or a Hugging Face folder")
    flag("out", "", "folder of the run; empty: runs/METHOD-DATE-TIME")
    flag("resume", False, "go on with the run in --out, under its own flags")
    flag("tiny", False, "a short version: few rows, steps and test problems")
    flag("baseline", True, "after dlr, also train sft, once for as many steps and once with as much compute, "
         "and print them beside (with --data lines only the first)")
    flag("seed", 0, "of the order of rows, the search and the router's start; the rows are always the same")
    flag("device", "auto", "where to run", choices=["auto", "cpu", "cuda", "mps"])
    flag("dtype", "auto", "of matrix products; auto: bfloat16 on a GPU", ["auto", "float32", "bfloat16"])
    # budget
    flag("rows", 0, "training rows; 0 = all of the split (word problems: 500 unless given)")
    flag("epochs", 3.0, "passes over the rows")
    flag("batch_size", 8, "rows per optimizer step")
    flag("grad_accum", 1, "micro-batches that a batch is cut into, to save memory")
    flag("lr", 1e-3, "peak learning rate of the language model")
    flag("code_lr", 1e-2, "peak learning rate of codebook and router")
    # Dynamic Latent Routing
    flag("n_codes", 32, "C, codes in the codebook")
    flag("chunk", 4, "K, tokens per chunk")
    flag("steer_layer", -1, "l*, blocks below the steering; -1 = half of them, with --select path three quarters")
    flag("steer_scale", 0.5, "alpha, scale of the added code vector")
    flag("route_norm", True, "the router reads the RMS-normalised state; the paper: --no-route_norm")
    flag("router_std", 0.1, "std of the router's initial weights; the paper: 0.01")
    flag("select", "likelihood", "the search: likelihood (the paper's), the best of N sequences; path: the best codes, "
         "chunk by chunk (then --code_lr 1e-1 --alpha_reg 0 unless given); greedy: none",
         ["likelihood", "path", "greedy"])
    flag("switch_cost", SWITCH_COST, "of --select path: nats that a change of code must bring, rising to 3 "
         "times that in the second half; inf: one code a row")
    flag("n_rollouts", 4, "N, candidates per row and step of --select likelihood")
    flag("temperature", 1.0, "of the distribution that candidates are drawn from")
    flag("alpha_policy", 0.1, "weight of the policy term")
    flag("alpha_reg", 0.1, "weight of the regularizer")
    # evaluation and checkpoints
    flag("block_size", 512, "longest sequence, longer rows are left out (a .pt checkpoint keeps its own)")
    flag("eval_split", "test", "split that is evaluated at the end")
    flag("eval_rows", 0, "problems evaluated at the end; 0 = all of the split (word problems: 300 unless given), "
         "-1 = none")
    flag("max_new_tokens", 320, "longest answer generated, in tokens")
    flag("generate", True, "generate and grade answers; --no-generate: likelihood only, fast")
    flag("save_every", 200, "steps between checkpoints")

    args = parser.parse_args(argv)
    given = {a.split("=")[0].removeprefix("--").removeprefix("no-") for a in argv if a.startswith("--")}
    if args.resume:
        path = Path(args.out) / "config.json"
        if given != {"resume", "out"} or not path.is_file():
            raise ValueError(f"--resume takes --out RUN, made by train.py, and no other flag; got {argv}")
        saved = read_json(path)
        if saved.keys() != vars(args).keys():
            differ = sorted(saved.keys() ^ vars(args).keys())
            raise ValueError(f"--resume: {path} was written by another version, with other flags: {differ}")
        return argparse.Namespace(**{**saved, "resume": True, "out": args.out})

    positive = ("epochs", "batch_size", "grad_accum", "lr", "code_lr", "n_rollouts", "block_size",
                "max_new_tokens", "save_every")
    for name in positive + ("rows", "temperature", "alpha_policy", "alpha_reg"):
        value, low = getattr(args, name), "> 0" if name in positive else ">= 0"
        if not 0 <= value < LARGEST or (value == 0 and low == "> 0"):
            raise ValueError(f"--{name} must be finite and {low}, got {value} (it must be below 2^31)")
    if not 0 <= args.seed < 2**31 or args.eval_rows < -1 or not args.switch_cost >= 0:
        raise ValueError("--seed must be in 0..2^31-1, --eval_rows >= -1, --switch_cost >= 0, "
                         f"got {args.seed}, {args.eval_rows}, {args.switch_cost}")
    for name, value in FIXED.get(args.method, {}).items():
        if name in given and getattr(args, name) != value:
            raise ValueError(f"--method {args.method} has --{name} {value}, got {getattr(args, name)}")
        setattr(args, name, value)
    if args.select == "path":
        for name in PATH.keys() - given:
            setattr(args, name, PATH[name])
    if (args.select == "greedy" or args.n_codes == 1) and "alpha_policy" in given and args.alpha_policy > 0:
        raise ValueError("--alpha_policy > 0 teaches nothing with --select greedy or --n_codes 1")
    # Generated data have no end; so many take minutes.
    short = {"eval_rows": 300} if args.data in {"wordproblems", *MODES, *LINES} else {}
    if args.data == "wordproblems":
        short["rows"] = 500
    if args.tiny:
        short = {"rows": 160, "epochs": 2.0, "eval_rows": 100}
    for name in short.keys() - given:
        setattr(args, name, short[name])
    # A run can be used from any folder: paths are kept absolute.
    if args.data not in DATASETS:
        args.data = str(Path(args.data).resolve())
    if args.init_from not in ("base", "scratch"):
        args.init_from = str(Path(args.init_from).resolve())
    if plumbing.processes()[1] > 1 and not args.out:
        raise ValueError("torchrun: give --out RUN, so that all processes have the same")
    args.out = args.out or f"runs/{args.method}-{time.strftime('%Y%m%d-%H%M%S')}"
    return args


def cost_of_step(args, config):
    """
    What a step of DLR costs, in steps of SFT: a pass with gradient costs as much as three without. The lower half
    runs once, with gradient; the upper one twice with gradient, codes off and on, and once without for every candidate.
    """
    tried = {"likelihood": args.n_rollouts, "path": config["n_codes"], "greedy": 0}[args.select]
    lower = config["steer_layer"] / config["n_layer"]
    return (3 * lower + (2 * 3 + tried) * (1 - lower)) / 3


def learning_rate(step, steps):
    """The fraction of the peak rate at step 0..steps-1: linear warm-up, then a cosine towards 0."""
    warmup = WARMUP * steps
    if step + 1 <= warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step + 1 - warmup) / (steps - warmup + 1)))


def price_of_change(switch_cost, step, steps):
    """
    What a change of code costs at step 0..steps-1: switch_cost in the first half, then rising linearly to RISE
    times that. A low price lets codes come apart. Once they have, each tells so much of a hidden choice that a
    change pays a high price; what does not are hints at the answer's words, and a model that has learned with
    hints is worse without.
    """
    late = max(0.0, 2 * (step + 1) / steps - 1)
    return switch_cost * (1 + (RISE - 1) * late)


def row_of(i, n_rows, seed):
    """Which row is the i-th of a run."""
    epoch, position = divmod(i, n_rows)
    return int(order_of(epoch, n_rows, seed)[position])


@functools.lru_cache(maxsize=1)  # made once an epoch: with millions of rows it takes as long as a step
def order_of(epoch, n_rows, seed):
    """The order of the rows in an epoch: every epoch has its own, which follows from seed and epoch."""
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    return torch.randperm(n_rows, generator=generator)


def train(args):
    """One run from start to end, its checkpoint in args.out. Returns (model, encoding, seconds)."""
    # Where to run.
    out = Path(args.out)
    rank, world = plumbing.processes()
    device, why = plumbing.find_device(args.device)
    if world > 1 and not dist.is_initialized():  # started by torchrun
        dist.init_process_group(timeout=timedelta(days=1))  # others wait while process 0 evaluates
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    autocast = plumbing.precision(args.dtype, device)
    say = tqdm.write if rank == 0 else lambda text: None
    say(f"device: {device} ({why}), {'bfloat16' if isinstance(autocast, torch.autocast) else 'float32'}")
    parts = args.grad_accum * world  # each batch is cut into this many
    if args.batch_size % parts:
        raise ValueError(f"--batch_size must be a multiple of --grad_accum times the processes, "
                         f"got {args.batch_size}, {args.grad_accum} and {world}")

    # The model, from the start or where the run was left.
    torch.manual_seed(args.seed)
    ckpt = out / "ckpt.pt"
    saved = load_checkpoint(ckpt) if args.resume and ckpt.exists() else None
    routing = {name: getattr(args, name) for name in
               ("n_codes", "chunk", "steer_layer", "steer_scale", "route_norm", "router_std")}
    routing["steer_layer"] = None if args.steer_layer == -1 else args.steer_layer  # None: half
    source = "scratch" if args.method == "pretrain" else args.init_from
    model, enc = plumbing.open_model(saved or source, args.block_size, **routing)
    if args.select == "path" and args.steer_layer == -1 and not model.codebook.weight.any():
        # Nearer to the words a code means the same in every context (README): at half depth it may
        # say "worked" in an answer's first line where it says "terse" in all others.
        model.config.steer_layer = 3 * model.config.n_layer // 4

    # The data: text becomes tokens once, here.
    split = "pretrain" if args.method == "pretrain" else "train"
    rows = load_rows(args.data, split, args.rows or None, at_most=args.tiny)
    items, left_out = encode_rows(rows, enc, model.config.block_size)  # [(ids, n_prompt)]
    if args.method == "pretrain":  # two problems a row, to train later positions, too; all is labelled
        pairs = [(a + b, 1) for (a, _), (b, _) in zip(items[::2], items[1::2])]
        items = [(ids, n) for ids, n in pairs if len(ids) - 1 <= model.config.block_size]
    steps = math.ceil(args.epochs * len(items) / args.batch_size)
    if steps == 0:
        raise ValueError(f"no two of the {len(rows)} rows fit the context together")
    # The order of rows and the learning rate follow from these: a run goes on with what it was started on.
    started_on = {"rows": len(items), "steps": steps, "sha256": plumbing.fingerprint(items)}
    if saved:
        plumbing.check_same_start(out, saved.get("started_on", started_on), started_on)
    say(f"{args.method} on {args.data}: {len(items)} rows ({left_out} longer than the context left out), "
        f"{steps} steps of {args.batch_size}, {sum(p.numel() for p in model.parameters()):,} parameters")

    if args.method == "dlr" and args.select == "path":
        say(f"--select path: --switch_cost {args.switch_cost:g} --code_lr {args.code_lr:g} "
            f"--alpha_reg {args.alpha_reg:g} --steer_layer {model.config.steer_layer}")
    if args.method == "dlr" and args.n_codes == 2 and args.alpha_reg > 0:
        say("--n_codes 2: the regularizer wants code 0 everywhere; --alpha_reg 0 goes without it")

    plumbing.spare_threads(model, device)

    # What learns, and the optimizer. Codes learn much faster than the language model, without decay.
    model.to(device).train()
    lm, codes = [], []
    for name, p in model.named_parameters():
        is_code = name.startswith(("codebook.", "router."))
        learns = (args.method in CODED) if is_code else (args.method != "frozen")
        if name == "router.weight" and (args.method == "random_router" or args.n_codes == 1):
            learns = False
        p.requires_grad_(learns)
        if learns:
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

    if rank == 0:
        log = plumbing.open_folder(out, args, enc.name, step)  # metrics.jsonl, cut back to `step`
    interrupted = []  # Ctrl-C or SIGTERM ends the step, saves and leaves; a second one leaves at once
    if world == 1:
        plumbing.note_signals(interrupted)
    last = step >= steps  # of the budget, or as the user has interrupted
    bar = tqdm(total=steps, initial=step, desc=args.method, disable=rank > 0 or None, dynamic_ncols=True)
    while not last:
        start = time.time()
        # learning rate, and the price of a change of code (--select path)
        rate = learning_rate(step, steps)
        switch_cost = price_of_change(args.switch_cost, step, steps)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate

        # loss and gradient: this process's micro-batches, each weighted by its share of the labels
        first = step * args.batch_size
        batch = [items[row_of(first + j, len(items), args.seed)] for j in range(args.batch_size)]
        n_labels = sum(len(ids) - n_prompt for ids, n_prompt in batch)
        torch.manual_seed((args.seed * 1_000_003 + step) * world + rank)  # the search's noise, after a resume, too
        metrics = {}
        for part in range(rank, parts, world):
            idx, targets = (t.to(device) for t in collate(batch[part::parts]))
            share = (targets >= 0).sum() / n_labels
            with autocast:
                if args.method in CODED:
                    loss, terms = model.dlr_loss(idx, targets, args.n_rollouts, args.temperature,
                                                 args.select, args.alpha_policy, args.alpha_reg, switch_cost)
                else:
                    loss, terms = model(idx, targets, codes="off")[1], {}
            (loss * share).backward()
            for name, value in {"loss": loss.detach(), **terms}.items():
                metrics[name] = metrics.get(name, 0) + value * (1 if name == "usage" else share)
        if world > 1:  # the shares of all processes add up to the batch
            for p in lm + codes:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            for tensor in [p.grad for p in lm + codes] + [*metrics.values(), model.bigram]:
                dist.all_reduce(tensor)
            model.bigram /= world

        # clip and step
        usage = metrics.pop("usage", None)  # (C,)
        metrics = {name: value.item() for name, value in metrics.items()}
        for name, params in {"grad_norm": lm, "code_grad_norm": codes}.items():
            if params:
                metrics[name] = torch.nn.utils.clip_grad_norm_(params, CLIP).item()
        if not all(map(math.isfinite, metrics.values())):
            raise FloatingPointError(f"step {step}: loss or gradient is not finite ({metrics}); a new run with a "
                                     f"lower --lr or --code_lr may help; {out} is kept as last saved")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        seconds += time.time() - start
        last = step >= steps or bool(interrupted)

        # log, show, save
        if usage is not None:
            freq = usage / usage.sum()
            metrics["active"] = (freq > 0).float().mean().item()  # share of the codes that this batch used
            metrics["perplexity"] = torch.special.entr(freq).sum().exp().item()
            metrics["usage"] = [round(f, 4) for f in freq.tolist()]
        if rank == 0:
            line = {"step": step, **metrics, "lr": args.lr * rate, "seconds": round(seconds, 3)}
            log.write(json.dumps(line) + "\n")
            # What can be compared between methods: nats per answer token, without codes and with the search's.
            shown = f"nats {metrics.get('generalist', metrics['loss']):.3f}"
            if "info_gain" in metrics:
                shown += f", with codes {metrics['generalist'] - metrics['info_gain']:.3f}"
                shown += f", {metrics['active']:.0%} of codes used"
            bar.set_postfix_str(shown)
            if bar.disable and 10 * step // steps > 10 * (step - 1) // steps:  # no terminal: ten lines instead
                say(f"{args.method} {step}/{steps}: {shown}, {seconds:.0f} s")
            if step % args.save_every == 0 or last:
                plumbing.write_checkpoint(ckpt, {
                    "config": dataclasses.asdict(model.config), "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds,
                    "started_on": started_on, "tokenizer": enc.name, "train": vars(args)})
        bar.update()
    bar.close()
    if interrupted:
        raise KeyboardInterrupt
    return model, enc, round(seconds, 3)


def run(args):
    """Train, then evaluate: (summary, records), or None where nothing is evaluated."""
    out = Path(args.out)
    if args.resume and (out / "summary.json").exists():  # the last file written: all is done
        return read_json(out / "summary.json"), [item for _, item in read_jsonl(out / "answers.jsonl")]
    held_out, val, arms = [], [], ARMS if args.method in CODED else ("off",)
    handles = args.method == "dlr" and args.select == "path"  # its codes are meant to be forced
    if args.eval_rows >= 0:  # read before training: what is wrong with it is found now
        held_out = load_rows(args.data, args.eval_split, args.eval_rows or None, at_most=args.tiny)
        if handles and args.n_codes <= MAX_EACH:
            arms, val = ("on", "off", "each"), choosing_rows(args.data, len(held_out))
        if args.generate:
            check_golds(held_out + val)
    with plumbing.signals_restored():  # train notes Ctrl-C
        model, enc, seconds = train(args)  # the optimizer's memory is free again after it
    if plumbing.processes()[0] > 0:
        return None
    if args.method == "pretrain":  # a base checkpoint is the plain language model in bfloat16
        plumbing.save_base(model, out / "base.pt")
    if not held_out:
        return None
    model.eval()
    with plumbing.precision(args.dtype, model.cos.device.type):
        summary, records = evaluate(model, enc, held_out, arms, args.generate, args.max_new_tokens,
                                    seed=args.seed, choose_on=val)
        if handles and args.generate and args.data in LINES:
            summary["handles"] = follow_plans(model, enc, held_out, args.max_new_tokens, seed=args.seed)
    summary |= {"method": args.method, "split": args.eval_split, "train_seconds": seconds}
    plumbing.write_records(out / "answers.jsonl", records)
    plumbing.write_text(out / "summary.json", json.dumps(summary, indent=1))
    return summary, records


def compare(dlr, name, sft, generated):
    """Print how the codes, under the code chosen on val if there is one, differ from an SFT run, problem by problem."""
    (summary, dlr), (_, sft) = dlr, sft
    if [r["question"] for r in dlr] != [r["question"] for r in sft]:
        sys.exit(plumbing.fail("train.py", f"dlr and {name} answered different problems: the data have changed"))
    arm = summary.get("chosen", "on")
    tokens = [r["tokens"] for r in dlr]
    a, b = [r[arm]["nll"] / r["tokens"] for r in dlr], [r["off"]["nll"] / r["tokens"] for r in sft]
    line = "dlr {} - {}: {:+.4f} nats per answer token [{:+.4f}, {:+.4f}]".format(arm, name, *bootstrap(a, b, tokens))
    if generated:
        a, b = [100 * r[arm]["strict"] for r in dlr], [100 * r["off"]["strict"] for r in sft]
        line += ", {:+.1f} points [{:+.1f}, {:+.1f}]".format(*bootstrap(a, b))
    print(line)


def main(argv=None):
    plumbing.safe_output()
    with plumbing.one_line_errors("train.py"):
        args = parse(sys.argv[1:] if argv is None else argv)
        try:
            with plumbing.alone_in(args.out):
                runs = {args.method: run(args)}
                if args.method == "dlr" and args.baseline:  # the same rows and rates, without codes
                    sft = vars(args) | {"method": "sft", "out": f"{args.out}/sft"}
                    runs["sft"] = run(argparse.Namespace(**sft))
                    if args.data not in LINES:  # where accuracy is the question, not control
                        config = load_checkpoint(Path(args.out, "ckpt.pt"))["config"]
                        epochs = float(f"{args.epochs * cost_of_step(args, config):.3g}")
                        sft |= {"epochs": epochs, "out": f"{args.out}/sft-compute"}
                        runs[f"sft {epochs:g} epochs"] = run(argparse.Namespace(**sft))
        except KeyboardInterrupt:
            if (Path(args.out) / "config.json").exists():
                print(f"interrupted; go on with: python train.py --resume --out {args.out}")
            raise  # exit status 130
    if plumbing.processes()[0] > 0:
        return
    runs = {name: result for name, result in runs.items() if result}
    if runs:
        print(table({name: summary for name, (summary, _) in runs.items()}), CAPTION, sep="\n")
    for summary, _ in runs.values():
        if "handles" in summary:
            print(describe(summary["handles"]))
    if runs and args.method == "dlr":
        seconds = {name: summary["train_seconds"] for name, (summary, _) in runs.items()}
        print("seconds of training: " + ", ".join(f"{name} {s:.0f}" for name, s in seconds.items()))
    for name in [*runs][1:]:
        compare(runs[args.method], name, runs[name], args.generate)
    print(f"everything is in {args.out}")


if __name__ == "__main__":
    main()
    if dist.is_initialized():
        dist.destroy_process_group()
