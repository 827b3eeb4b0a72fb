"""
What a training step and generation cost. Measured side by side on the same batches:

  - a DLR step (forward and backward, likelihood) for N = 1, 4, 8 candidates, in SFT steps. The
    arithmetic: an SFT step is a forward of 1 and a backward of 2, so at half depth DLR is
    0.5 + 1 below the codes, twice 0.5 + 1 above, and 0.5 for each candidate: (4.5 + N / 2) / 3.
    FLOPs, counted, say the same with the head, which stands above the codes as a whole;
  - greedy generation, codes off and on, beside transformers' generate with the same weights and
    prompts, batched by length as eval.py does it.

    python tests/bench.py                   # the embedded model and task
    python tests/bench.py data/smollm2      # a Hugging Face folder's model, on GSM8K

Time is CPU time of one thread, or a GPU's wall time.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from data.plumbing import open_model, precision
from data.tokens import collate, encode_rows, load_rows
from eval import by_length

BATCHES, BATCH_SIZE = 20, 8  # of training
PROMPTS, PROMPT_BATCH, NEW_TOKENS, REPEATS = 256, 64, 64, 3
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def timed(run, *args):
    """(what run(*args) returns, seconds)"""
    clock = time.process_time
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        clock = time.perf_counter
    start = clock()
    with precision("auto", DEVICE):
        result = run(*args)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return result, clock() - start


def paired(seconds, base):
    """The ratios to `base`, batch by batch: "median (lower quartile-upper quartile)"."""
    low, median, high = statistics.quantiles([a / b for a, b in zip(seconds, base)], n=4)
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def steps(model, items):
    """Prints a line for each kind of step."""
    def step(N):
        def run(idx, targets):
            loss = model.dlr_loss(idx, targets, N)[0] if N else model(idx, targets, codes="off")[1]
            loss.backward()
        return run

    kinds, seconds, flops = {N: step(N) for N in (0, 1, 4, 8)}, {}, {}
    for i in range(0, len(items), BATCH_SIZE):  # the first warms up, and its FLOPs are counted
        idx, targets = (t.to(DEVICE) for t in collate(items[i : i + BATCH_SIZE]))
        for N, run in kinds.items():
            if i == 0:
                with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                    timed(run, idx, targets)  # torch 2.11 cannot count grouped queries in a GPU's fast kernels
                flops[N] = counter.get_total_flops()
            else:
                timed(run, idx, targets)  # a GPU's first step of a new length is slow
                _, took = timed(run, idx, targets)
                seconds.setdefault(N, []).append(took)
            model.zero_grad(set_to_none=True)
    for N in kinds:
        name, bound = (f"dlr N={N}", (4.5 + N / 2) / 3) if N else ("sft", 1)
        print(f"{name:14}{1000 * statistics.median(seconds[N]):8.1f} ms  "
              f"{paired(seconds[N], seconds[0])} x sft, bound {bound:.2f}, "
              f"FLOPs {flops[N] / flops[0]:.2f}", flush=True)


def transformers_generate(model):
    """Greedy generation by transformers with the same weights: prompts -> new ids, as ours."""
    from transformers import AutoModelForCausalLM

    from data.huggingface import save

    with tempfile.TemporaryDirectory() as folder:
        save(model, folder)
        llama = AutoModelForCausalLM.from_pretrained(folder).to(DEVICE).eval()

    def generate(prompts):
        P = max(map(len, prompts))  # padded on the left
        idx = torch.tensor([[0] * (P - len(p)) + p for p in prompts], device=DEVICE)
        real = torch.tensor([[0] * (P - len(p)) + [1] * len(p) for p in prompts], device=DEVICE)
        out = llama.generate(idx, attention_mask=real, max_new_tokens=NEW_TOKENS, do_sample=False,
                             min_new_tokens=NEW_TOKENS, eos_token_id=None, pad_token_id=0)
        return out[:, P:].tolist()

    return generate


def generation(model, prompts):
    """Prints a line for each generator."""
    kinds = {"transformers": transformers_generate(model),
             "codes off": lambda batch: model.generate(batch, NEW_TOKENS, codes="off"),
             "codes on": lambda batch: model.generate(batch, NEW_TOKENS)}
    seconds, texts = {kind: [] for kind in kinds}, {kind: [] for kind in kinds}
    batches = by_length([len(p) for p in prompts], PROMPT_BATCH)
    for batch in batches[:1] + batches * REPEATS:  # the first warms up
        for kind, generate in kinds.items():
            out, took = timed(generate, [prompts[i] for i in batch])
            seconds[kind].append(took)
            texts[kind] += out
    for kind in kinds:
        same = sum(a == b for a, b in zip(texts[kind], texts["transformers"]))
        print(f"{kind:14}{len(texts[kind]) * NEW_TOKENS / sum(seconds[kind]):8.0f} tokens/s  "
              f"{paired(seconds[kind][1:], seconds['transformers'][1:])} x transformers' time  "
              f"{same} of {len(texts[kind])} rows the same")


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"{torch.cuda.get_device_name() if DEVICE == 'cuda' else 'cpu'}, torch {torch.__version__}")
    source, data = (sys.argv[1], "gsm8k") if len(sys.argv) > 1 else ("base", "wordproblems")
    model, enc = open_model(source, 512)
    model.to(DEVICE)
    torch.nn.init.normal_(model.codebook.weight, std=0.1)  # codes that do something
    rows = load_rows(data, "train", (BATCHES + 1) * BATCH_SIZE)
    steps(model.train(), encode_rows(rows, enc, 512)[0])
    test, _ = encode_rows(load_rows(data, "test", PROMPTS), enc, 512)
    generation(model.eval(), [ids[:n_prompt] for ids, n_prompt in test])
