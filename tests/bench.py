"""
What a training step and generation cost. Measured side by side on the same batches:

  - a DLR step (forward and backward, likelihood) for N = 1, 4, 8 candidates, in SFT steps. The
    arithmetic: an SFT step is a forward of 1 and a backward of 2, so at half depth DLR is
    0.5 + 1 below the codes, twice 0.5 + 1 above, and 0.5 for each candidate: (4.5 + N / 2) / 3.
    FLOPs, counted, say the same with the head, which stands above the codes as a whole;
  - greedy generation, codes off and on, beside transformers' generate with the same weights and
    prompts, batched by length as eval.py does it.

    python tests/bench.py                                  # the embedded model and task
    python tests/bench.py --shape smollm2 --batches 3 --batch_size 4 --prompts 16 --new_tokens 32

Time is CPU time of one thread, or a GPU's wall time. A GPU also tells the peak memory.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from data.plumbing import BASE, precision
from data.tokens import collate, encode_rows, load_encoding, load_rows
from dlr import GPT, GPTConfig
from eval import by_length

SMOLLM2 = dict(vocab_size=49152, block_size=512, n_layer=30, n_head=9, n_kv_head=3, n_embd=576,
               ffn_dim=1536)


def setting(args):
    """(model, training items, prompts) of the task; the embedded model or a random SmolLM2."""
    enc = load_encoding("wordproblems")
    n = (args.batches + 1) * args.batch_size
    items, _ = encode_rows(load_rows("wordproblems", "train", n), enc, 512)
    test, _ = encode_rows(load_rows("wordproblems", "test", args.prompts), enc, 512)
    model = GPT.from_checkpoint(BASE) if args.shape == "base" else GPT(GPTConfig(**SMOLLM2))
    torch.nn.init.normal_(model.codebook.weight, std=0.1)  # codes that do something
    return model, items, [ids[:n_prompt] for ids, n_prompt in test]


def clock(device):
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def paired(seconds, base):
    """The ratios to `base`, batch by batch: [median, lower quartile, upper quartile]."""
    low, median, high = statistics.quantiles([a / b for a, b in zip(seconds, base)], n=4)
    return [median, low, high]


def steps(model, items, args, device):
    """One dict for each kind of step."""
    def dlr(N):
        return lambda idx, targets: model.dlr_loss(idx, targets, N)[0]

    kinds = {"sft": lambda idx, targets: model(idx, targets, codes="off")[1]}
    kinds |= {f"dlr N={N}": dlr(N) for N in args.rollouts}
    bound = {"sft": 1.0} | {f"dlr N={N}": (4.5 + N / 2) / 3 for N in args.rollouts}
    seconds, peak, flops = {kind: [] for kind in kinds}, dict.fromkeys(kinds), {}
    for i in range(args.batches + 1):  # the first warms up, and its FLOPs are counted
        batch = items[i * args.batch_size : (i + 1) * args.batch_size]
        idx, targets = (t.to(device) for t in collate(batch))
        for kind, loss in kinds.items():
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            counter = FlopCounterMode(display=False) if i == 0 else contextlib.nullcontext()
            start = clock(device)
            with counter:
                with precision("auto", device):
                    value = loss(idx, targets)
                value.backward()
            if i == 0:
                flops[kind] = counter.get_total_flops()
            else:
                seconds[kind].append(clock(device) - start)
            del value
            model.zero_grad(set_to_none=True)
            if device == "cuda":
                peak[kind] = max(peak[kind] or 0, torch.cuda.max_memory_allocated() / 1e6)
    return [{"case": kind, "seconds": statistics.median(seconds[kind]), "bound_x": bound[kind],
             "flops_x": flops[kind] / flops["sft"],
             "time_x": paired(seconds[kind], seconds["sft"]), "peak_mb": peak[kind],
             "peak_x": peak[kind] and peak[kind] / peak["sft"]} for kind in kinds]


def transformers_generate(model, new, device):
    """Greedy generation by transformers with the same weights: prompts -> new ids, as ours."""
    from transformers import AutoModelForCausalLM

    from data.huggingface import save

    with tempfile.TemporaryDirectory() as folder:
        save(model, folder)
        llama = AutoModelForCausalLM.from_pretrained(folder).to(device).eval()

    def generate(prompts):
        P = max(map(len, prompts))  # padded on the left
        idx = torch.tensor([[0] * (P - len(p)) + p for p in prompts], device=device)
        real = torch.tensor([[0] * (P - len(p)) + [1] * len(p) for p in prompts], device=device)
        out = llama.generate(idx, attention_mask=real, max_new_tokens=new, min_new_tokens=new,
                             do_sample=False, eos_token_id=None, pad_token_id=0)
        return out[:, P:].tolist()

    return generate


def generation(model, prompts, args, device):
    """One dict for each generator."""
    new = args.new_tokens
    kinds = {"transformers": transformers_generate(model, new, device),
             "codes off": lambda batch: model.generate(batch, new, codes="off"),
             "codes on": lambda batch: model.generate(batch, new)}
    seconds, texts = {kind: [] for kind in kinds}, {kind: [] for kind in kinds}
    batches = by_length([len(p) for p in prompts], args.prompt_batch)
    for round in range(args.repeats + 1):  # the first warms up
        for batch in batches if round > 0 else batches[:1]:
            for kind, generate in kinds.items():
                start = clock(device)
                with precision("auto", device):
                    out = generate([prompts[i] for i in batch])
                if round > 0:
                    seconds[kind].append(clock(device) - start)
                    texts[kind] += out
    return [{"case": kind, "tokens_per_second": len(texts[kind]) * new / sum(seconds[kind]),
             "time_x": paired(seconds[kind], seconds["transformers"]),
             "same_rows": sum(a == b for a, b in zip(texts[kind], texts["transformers"])),
             "rows": len(texts[kind])} for kind in kinds]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("base", "smollm2"), default="base")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rollouts", type=int, nargs="*", default=[1, 4, 8])
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--prompt_batch", type=int, default=64)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="of the generation")
    parser.add_argument("--json", metavar="FILE", help="also write all numbers there")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "one CPU thread"
    model, items, prompts = setting(args)
    model.to(device)
    found = {"args": vars(args), "torch": torch.__version__, "device": name}
    print(f"{args.shape} on {name}, torch {torch.__version__}")
    found["steps"] = steps(model.train(), items, args, device)
    for s in found["steps"]:
        memory = f", peak {s['peak_mb']:.0f} MB, {s['peak_x']:.2f} x" if s["peak_mb"] else ""
        print("{:14}{:8.1f} ms  {:.2f} x sft ({:.2f}-{:.2f})".format(
            s["case"], 1000 * s["seconds"], *s["time_x"])
            + f", bound {s['bound_x']:.2f}, FLOPs {s['flops_x']:.2f}{memory}", flush=True)
    if prompts:
        found["generation"] = generation(model.eval(), prompts, args, device)
    for s in found.get("generation", []):
        print("{:14}{:8.0f} tokens/s  {:.2f} x transformers' time ({:.2f}-{:.2f})".format(
            s["case"], s["tokens_per_second"], *s["time_x"])
            + f"  {s['same_rows']} of {s['rows']} rows the same")
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
