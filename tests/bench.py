"""
What a training step and generation cost. One run measures, on the same batches, one after the other, as medians:

  - an SFT step; a DLR step (--select advantage and likelihood) for N = 1, 4, 8, 16; the same DLR step done the obvious
    way (N + 2 whole forward passes, all logits, rows padded to the context), N = 8: forward and backward each;
  - generation with codes on and off, and that of transformers on the same weights: 64 ragged prompts, greedy.

    python tests/bench.py                                      # the embedded model and task
    python tests/bench.py --shape smollm2 --batches 2 --batch_size 4 --data data/gsm8k
    python tests/bench.py --shape qwen3-4b --data data/gsm8k   # memory alone, by arithmetic: nothing is run

Other shapes have random weights and random tokens, with the lengths of GSM8K's training rows, counted in the pieces
into which SmolLM2's tokenizer cuts them (a few % fewer than tokens). Time is CPU time of one thread, or a GPU's wall
time. FLOPs are those of matrix products. The peak is of live tensors in a step, with weights, gradients and
AdamW's averages.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import weakref
from pathlib import Path

import regex
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from data.tokens import PROMPT, SMOLLM2_PATTERN, collate, encode_rows, end_token, load_encoding, load_rows
from dlr import GPT, GPTConfig, code_logp, real_chunks
from train import BASE

SHAPES = {
    "smollm2": dict(vocab_size=49152, n_layer=30, n_head=9, n_kv_head=3, n_embd=576, ffn_dim=1536),
    "qwen3": dict(vocab_size=151936, n_layer=28, n_head=16, n_kv_head=8, n_embd=1024, ffn_dim=3072, head_dim=128,
                  qk_norm=True),
    "qwen3-4b": dict(vocab_size=151936, n_layer=36, n_head=32, n_kv_head=8, n_embd=2560, ffn_dim=9728, head_dim=128,
                     qk_norm=True),
}
BLOCK = 512
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # bfloat16, dense


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of all tensors alive that were made inside, on any device; `peak` is their maximum."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in self.known | {0}:
                storage = t.untyped_storage()
                self.known.add(storage.data_ptr())
                self.live += storage.nbytes()
                weakref.finalize(storage, self.freed, storage.data_ptr(), storage.nbytes())
        self.peak = max(self.peak, self.live)
        return out

    def freed(self, address, size):
        self.live -= size
        self.known.discard(address)


def obvious(model, idx, targets, n_rollouts, alpha_policy=0.1, alpha_reg=0.1):
    """The paper's loss as a plain loop: every pass whole, every row padded to the context, every logit computed."""
    short, K = model.config.block_size - idx.size(1), model.config.chunk
    idx, targets = F.pad(idx, (0, short)), F.pad(targets, (0, short), value=-1)

    def logp(logits):
        taken = logits.float().log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        return taken * (targets >= 0)

    h = model.lower(idx)
    z = model.router_logits(h[:, ::K])
    plain = logp(model.lm_head(model.upper(h)))
    with torch.no_grad():
        codes = torch.distributions.Categorical(logits=z).sample((n_rollouts,))
        best = torch.stack([logp(model(idx, codes=c)[0]).sum(-1) for c in codes]).argmax(0)
        a = codes[best, torch.arange(len(best), device=best.device)]
    steered = logp(model(idx, codes=a)[0])
    real, n = real_chunks(targets, K), (targets >= 0).sum()
    policy = -(code_logp(z, a) * real).sum() / real.sum()
    gain = (steered - plain.detach()).sum() / n
    return -plain.sum() / n - gain + alpha_policy * policy + alpha_reg * model.prior_kl(z.softmax(-1), real)


def setting(args):
    """(model, training items, prompts): the embedded ones, or a shape's random weights under GSM8K's lengths."""
    codes = {} if args.steer_layer is None else {"steer_layer": args.steer_layer}
    n = (args.batches + 1) * args.batch_size
    if args.shape == "tiny":
        enc = load_encoding("wordproblems")
        items, _ = encode_rows(load_rows("wordproblems", "train", n), enc, BLOCK)
        held_out, _ = encode_rows(load_rows("wordproblems", "test", args.prompts or 1), enc, BLOCK)
        return GPT.from_checkpoint(BASE, **codes), items, [ids[:n_prompt] for ids, n_prompt in held_out][: args.prompts]
    rows, items = load_rows(str(args.data), "train"), []
    config = GPTConfig(block_size=BLOCK, **SHAPES[args.shape], **codes)
    g, count = torch.Generator().manual_seed(0), lambda text: len(regex.findall(SMOLLM2_PATTERN, text))
    for r in torch.randperm(len(rows), generator=g).tolist():
        n_prompt, n_answer = count(PROMPT.format(question=rows[r]["question"])), count(" " + rows[r]["answer"]) + 1
        if n_prompt + n_answer - 1 <= BLOCK:
            items.append((torch.randint(config.vocab_size, (n_prompt + n_answer,), generator=g).tolist(), n_prompt))
        if len(items) == n + args.prompts:
            break
    with torch.device("meta" if args.shape == "qwen3-4b" else "cpu"):
        model = GPT(config)
    return model, items[:n], [ids[:n_prompt] for ids, n_prompt in items[n:]]


def clock(device):
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def paired(seconds, name, base):
    """Median of the ratios to `base`, batch by batch, and their quartiles."""
    ratios = sorted(a / b for a, b in zip(seconds[name], seconds[base]))
    return [statistics.median(ratios), ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]]


def steps(model, items, args, device, autocast):
    """One dict for each kind of step: time, FLOPs and peak bytes, and their ratios to the SFT step's."""
    tried = {"sft": lambda idx, targets: model(idx, targets, codes="off")[1]}
    for n in args.rollouts:
        for select in ("advantage", "likelihood"):
            tried[f"dlr {select} N={n}"] = lambda idx, targets, n=n, select=select: model.dlr_loss(
                idx, targets, n, select=select)[0]
    if args.obvious:
        tried["dlr the obvious way N=8"] = lambda idx, targets: obvious(model, idx, targets, 8)
    seconds, flops, peak, tokens = {name: [] for name in tried}, {}, {}, []
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    for i in range(args.batches + 1):
        idx, targets = (t.to(device) for t in collate(items[i * args.batch_size : (i + 1) * args.batch_size]))
        if i > 0:
            tokens.append(sum(len(ids) - 1 for ids, _ in items[i * args.batch_size : (i + 1) * args.batch_size]))
        for name, loss in tried.items():
            if i == 0:  # the first batch warms up, and is measured
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                with LiveBytes() as live, FlopCounterMode(display=False) as counter:
                    with autocast():
                        value = loss(idx, targets)
                    value.backward()
                    del value
                peak[name] = torch.cuda.max_memory_allocated() if device == "cuda" else weights + live.peak
                peak[name] += 2 * weights  # what AdamW keeps
                flops[name] = counter.get_total_flops()
            else:
                start = clock(device)
                with autocast():
                    value = loss(idx, targets)
                value.backward()
                seconds[name].append(clock(device) - start)
                del value
            model.zero_grad(set_to_none=True)
        print(f"batch {i} of {args.batches} done", file=sys.stderr, flush=True)
    lines = []
    for name in tried:
        line = {"case": name, "ms": 1000 * statistics.median(seconds[name]), "time_x": paired(seconds, name, "sft"),
                "tokens_per_second": statistics.median(n / s for n, s in zip(tokens, seconds[name])),
                "flops": flops[name], "flops_x": flops[name] / flops["sft"], "seconds": seconds[name],
                "peak_mb": peak[name] / 1e6, "peak_x": peak[name] / peak["sft"]}
        for kind, most in PEAK_FLOPS.items() if device == "cuda" else ():
            if kind in torch.cuda.get_device_name():
                line["mfu"] = flops[name] / line["ms"] * 1000 / most
        lines.append(line)
    return lines


def generation(model, prompts, args, device, autocast):
    """One dict for each generator: seconds, tokens a second, and how much faster than transformers' generate."""
    B, P, new = len(prompts), max(map(len, prompts)), args.new_tokens
    torch.nn.init.normal_(model.codebook.weight, std=0.1)  # codes that do something
    tried = {}
    try:
        from transformers import AutoModelForCausalLM
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            hf = AutoModelForCausalLM.from_pretrained(folder).to(device).eval()
    except ImportError:
        print("transformers is not installed: it is left out", file=sys.stderr)
    else:
        idx = torch.tensor([[0] * (P - len(p)) + p for p in prompts], device=device)
        seen = torch.tensor([[0] * (P - len(p)) + [1] * len(p) for p in prompts], device=device)

        def transformers(stop):
            out = hf.generate(input_ids=idx, attention_mask=seen, max_new_tokens=new, do_sample=False,
                              eos_token_id=stop, pad_token_id=0)[:, P:].tolist()
            return [row[: row.index(stop)] if stop in row else row for row in out]

        tried["transformers"] = transformers
    tried |= {"codes off": lambda stop: model.generate(prompts, new, codes="off", stop=stop),
              "codes on": lambda stop: model.generate(prompts, new, stop=stop)}
    lines, base = [], next(iter(tried))
    for stop in (None, end_token(load_encoding("wordproblems"))) if args.shape == "tiny" else (None,):
        seconds, made = {name: [] for name in tried}, {}
        for i in range(args.repeats):
            for name, run in tried.items():
                start = clock(device)
                with autocast():
                    out = run(stop)
                seconds[name].append(clock(device) - start)
                made[name] = out
            print(f"generation {i + 1} of {args.repeats} done", file=sys.stderr, flush=True)
        for name in tried:
            n_new, median = sum(map(len, made[name])), statistics.median(seconds[name])
            same = sum(a == b for a, b in zip(made[name], made[base]))
            lines.append({"case": name + (", with end tokens" if stop else ""), "prompts": B, "new_tokens": n_new,
                          "seconds": seconds[name], "tokens_per_second": n_new / median, "rows_as_first": same,
                          "time_x": paired(seconds, name, base), "time_x_off": paired(seconds, name, "codes off")})
    return lines


def arithmetic(model, items, args):
    """
    GB of a DLR step of a model on the meta device, all rows as long as the longest: weights, gradients and AdamW in
    float32, bfloat16 copies of the weights, activations counted in float32 (bfloat16 needs about half), the head.
    """
    cfg, n = model.config, sum(p.numel() for p in model.parameters())
    T, labels = max(len(ids) - 1 for ids, _ in items), sum(len(ids) - k for ids, k in items) / len(items)
    B, out = args.batch_size, {}
    for flag in (False, True):
        model.checkpointing, kept = flag, {}  # storage -> bytes

        def pack(t, kept=kept):
            kept[t.untyped_storage()._cdata] = 0 if isinstance(t, torch.nn.Parameter) else t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            h = model.lower(torch.zeros(B, T, dtype=torch.long, device="meta"))
            _ = model.upper(torch.cat([h, h]))
        out["checkpointed" if flag else "plain"] = sum(kept.values())
    one = out["plain"] / (cfg.n_layer * 1.5) * 2  # a block of 2B rows: what recomputing it needs at a time
    head = (2 * B * labels * 4 + 1024 * 12) * cfg.vocab_size  # log-softmax; 1024 logits, gradients
    return {"parameters": n, "rows": B, "longest_row": T, "weights_gb": 4 * n / 1e9, "gradients_gb": 4 * n / 1e9,
            "adam_gb": 8 * n / 1e9, "bfloat16_copies_gb": 2 * n / 1e9, "head_gb": head / 1e9,
            "activations_gb": out["plain"] / 1e9, "activations_checkpointed_gb": (out["checkpointed"] + one) / 1e9,
            "total_gb": (18 * n + head + out["plain"]) / 1e9,
            "total_checkpointed_gb": (18 * n + head + out["checkpointed"] + one) / 1e9}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("tiny", *SHAPES), default="tiny")
    parser.add_argument("--data", default="gsm8k", help="gsm8k (see data/gsm8k.py) or a folder with train.jsonl")
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rollouts", type=int, nargs="*", default=[1, 4, 8, 16])
    parser.add_argument("--obvious", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--steer_layer", type=int, help="blocks below the steering, by default half")
    parser.add_argument("--prompts", type=int, default=64, help="rows of the batch that is generated; 0: none")
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5, help="of the generation")
    parser.add_argument("--out", help="also write everything as JSON there")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, items, prompts = setting(args)
    if args.shape == "qwen3-4b":
        found = {"memory, not run": arithmetic(model, items, args)}
        for name, value in found["memory, not run"].items():
            print(f"{name:28} {value:16,.1f}")
    else:
        autocast = lambda: torch.autocast(device, torch.bfloat16, enabled=device == "cuda")  # noqa: E731
        model.to(device)
        found = {"steps": steps(model.train(), items, args, device, autocast)} if args.batches else {}
        for s in found.get("steps", []):
            x, low, high = s["time_x"]
            print(f"{s['case']:24}{s['ms']:7.0f} ms {x:6.2f} x sft ({low:.2f}-{high:.2f})  FLOPs {s['flops_x']:6.2f} x"
                  f"  peak {s['peak_mb']:7.1f} MB {s['peak_x']:5.2f} x {s['tokens_per_second']:8.0f} tokens/s"
                  + (f"  MFU {s['mfu']:.1%}" if "mfu" in s else ""))
        if prompts:
            found["generation"] = generation(model.eval(), prompts, args, device, autocast)
            for s in found["generation"]:
                print(f"{s['case']:32}{s['tokens_per_second']:7.0f} tokens/s  {1 / s['time_x'][0]:.2f} x the first, "
                      f"{100 * s['time_x_off'][0] - 100:+.1f} % time to codes off; {s['rows_as_first']} rows as there")
    if args.out:
        found = {"args": vars(args), "torch": torch.__version__, "device": device, **found}
        Path(args.out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
