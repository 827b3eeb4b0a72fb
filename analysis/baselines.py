"""
The paper's two token-level baselines. They are data: model and loss are those of plain fine-tuning.

    python analysis/baselines.py pause --rows 1000 --seed 0 --out runs/pause-0
    python analysis/baselines.py tokenassorted --rows 1000 --seed 0 --out runs/tokenassorted-0

All flags of train.py's plain fine-tuning hold here, too, but --resume. The run's folder holds the same
files, so eval.py and `analysis/runs.py --compare` read it.

pause (Goyal et al. 2024, arXiv 2310.02226): N_PAUSE copies of a new token stand between prompt and
answer, in training and at inference; they are never labels.

tokenassorted (Token Assorted, Su et al. 2025, arXiv 2502.03275): a VQ-VAE learns to say VQ_CHUNK answer
tokens in one discrete code. In training, the first chunks of a solution (a random number of them, maybe
0, anew each time) are replaced by their codes: prompt <abs> z z .. </abs> rest. The codes are labels
like any token. At inference the model gets the plain prompt and may answer in codes itself; they have
no text, so nothing of them is graded.
"""

import dataclasses
import json
import math
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import trange

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import train
from data import plumbing
from data.tokens import collate, encode_rows, load_rows
from eval import check_golds, evaluate, table

N_PAUSE = 8
VQ_CHUNK = 16  # answer tokens that a code stands for
VQ_CODES = 1024
VQ_WIDTH = 256  # bottleneck
VQ_BETA = 0.25  # weight of the commitment loss


def add_tokens(model, n):
    """Grow the vocabulary by n tokens, each starting as the mean token; returns the first new id."""
    first = model.config.vocab_size
    tied = model.lm_head.weight is model.embed_tokens.weight
    for layer in (model.embed_tokens,) if tied else (model.embed_tokens, model.lm_head):
        mean = layer.weight.mean(0, keepdim=True)
        layer.weight = nn.Parameter(torch.cat([layer.weight, mean.expand(n, -1)]).detach())
    if tied:
        model.lm_head.weight = model.embed_tokens.weight
    model.config.vocab_size = model.embed_tokens.num_embeddings = model.lm_head.out_features = first + n
    return first


def vqvae_codes(embedding, answers, steps=500, batch_size=256, lr=1e-3):
    """
    The code of every full chunk of every answer, by a VQ-VAE trained here on frozen token embeddings.

    embedding (V, H); answers: lists of token ids. Linear encoder and decoder, straight-through gradient,
    loss = MSE + VQ_BETA * commitment + codebook. Codes start at encoded chunks, else most would never be
    used. Returns one list of codes 0 .. VQ_CODES - 1 for each answer, len(answer) // VQ_CHUNK long.
    """
    counts = [len(ids) // VQ_CHUNK for ids in answers]
    chunks = [ids[i * VQ_CHUNK : (i + 1) * VQ_CHUNK] for ids, n in zip(answers, counts) for i in range(n)]
    if not chunks:
        raise ValueError(f"tokenassorted needs answers of at least {VQ_CHUNK} tokens; this data has none")
    chunks = torch.tensor(chunks)  # (n, L)
    embedding = embedding.detach().float() / embedding.detach().float().std()
    size = VQ_CHUNK * embedding.size(1)
    encoder, decoder = nn.Linear(size, VQ_WIDTH), nn.Linear(VQ_WIDTH, size)

    def read(rows):  # (b, L) -> (b, L H)
        return F.embedding(rows, embedding).flatten(1)

    with torch.no_grad():
        start = encoder(read(chunks[torch.randint(len(chunks), (VQ_CODES,))]))
    codebook = nn.Parameter(start + 0.01 * start.std() * torch.randn_like(start))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), codebook], lr=lr)
    for _ in range(steps):
        x = read(chunks[torch.randint(len(chunks), (batch_size,))])
        z = encoder(x)
        code = codebook[torch.cdist(z.detach(), codebook.detach()).argmin(1)]
        back = decoder(z + (code - z).detach())
        loss = F.mse_loss(back, x) + VQ_BETA * F.mse_loss(z, code.detach()) + F.mse_loss(code, z.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        codes = [torch.cdist(encoder(read(part)), codebook).argmin(1) for part in chunks.split(1024)]
    codes = iter(torch.cat(codes).tolist())
    return [[next(codes) for _ in range(n)] for n in counts]


def solution_chunks(enc, answer):
    """How many full chunks of `answer` (token ids) may be replaced: those before its "####"."""
    n = len(answer) // VQ_CHUNK
    while n and "####" not in enc.decode(answer[n * VQ_CHUNK :]):
        n -= 1
    return n


def assort(item, codes, first_new, rng):
    """
    item (ids, n_prompt) with the first j chunks of its answer, j uniform in 0 .. len(codes), said in codes
    between <abs> = first_new and </abs> = first_new + 1; code c is token first_new + 2 + c.
    """
    ids, n_prompt = item
    j = rng.randint(0, len(codes))
    if j == 0:
        return item
    said = [first_new, *(first_new + 2 + c for c in codes[:j]), first_new + 1]
    return ids[:n_prompt] + said + ids[n_prompt + j * VQ_CHUNK :], n_prompt


def run(args):
    """train.py's loop for plain fine-tuning, shortened: no resume, one process, whole batches."""
    out = Path(args.out)
    device, why = plumbing.find_device(args.device)
    autocast = plumbing.precision(args.dtype, device)
    torch.manual_seed(args.seed)
    if args.init_from == "scratch" or args.grad_accum > 1:
        raise ValueError("these baselines start from a trained model, and know no --grad_accum")
    model, enc = plumbing.open_model(args.init_from, args.block_size)
    rows = load_rows(args.data, "train", args.rows or None, at_most=args.tiny)
    items, left_out = encode_rows(rows, enc, model.config.block_size - N_PAUSE * (args.method == "pause"))
    held_out = []
    if args.eval_rows >= 0:
        held_out = load_rows(args.data, args.eval_split, args.eval_rows or None, at_most=args.tiny)
        check_golds(held_out if args.generate else [])
    steps = math.ceil(args.epochs * len(items) / args.batch_size)
    print(f"{args.method} on {args.data}: {len(items)} rows ({left_out} too long), {steps} steps, {device} ({why})")

    log = plumbing.open_folder(out, args, enc.name, 0)

    suffix, codes = [], None
    if args.method == "pause":
        suffix = [add_tokens(model, 1)] * N_PAUSE
        items = [(ids[:n] + suffix + ids[n:], n + N_PAUSE) for ids, n in items]
    else:
        codes = vqvae_codes(model.embed_tokens.weight, [ids[n:] for ids, n in items])
        codes = [own[: solution_chunks(enc, ids[n:])] for own, (ids, n) in zip(codes, items)]
        first_new = add_tokens(model, 2 + VQ_CODES)

    def item(i):
        """The i-th item of the run: train.py's order; what is said in codes follows from seed and i."""
        row = train.row_of(i, len(items), args.seed)
        if codes is None:
            return items[row]
        return assort(items[row], codes[row], first_new, random.Random(args.seed * 1_000_003 + i))

    model.to(device).train()
    lm = [p for name, p in model.named_parameters() if not name.startswith(("codebook.", "router."))]
    groups = [{"params": [p for p in lm if p.dim() >= 2], "weight_decay": train.WEIGHT_DECAY},
              {"params": [p for p in lm if p.dim() < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95))
    seconds = 0.0
    for step in trange(steps, desc=args.method, disable=None):
        start = time.time()
        lr = args.lr * train.learning_rate(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        batch = [item(i) for i in range(step * args.batch_size, (step + 1) * args.batch_size)]
        idx, targets = (t.to(device) for t in collate(batch))
        with autocast:
            loss = model(idx, targets, codes="off")[1]
        if not torch.isfinite(loss):
            raise FloatingPointError(f"step {step}: the loss is {loss}; a lower --lr may help")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm, train.CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds += time.time() - start
        line = {"step": step + 1, "loss": loss.item(), "lr": lr, "seconds": round(seconds, 3)}
        log.write(json.dumps(line) + "\n")
    log.close()

    state = {"config": dataclasses.asdict(model.config), "model": model.state_dict(), "step": steps,
             "tokenizer": enc.name, "suffix": suffix, "train": vars(args)}
    plumbing.write_checkpoint(out / "ckpt.pt", state)
    if held_out:
        with autocast:
            summary, records = evaluate(model, enc, held_out, ("off",), args.generate, args.max_new_tokens,
                                        seed=args.seed, suffix=suffix)
        summary |= {"method": args.method, "split": args.eval_split, "train_seconds": seconds}
        plumbing.write_records(out / "answers.jsonl", records)
        plumbing.write_text(out / "summary.json", json.dumps(summary, indent=1))
        print(table({args.method: summary}))


def main(argv=None):
    method, *flags = sys.argv[1:] if argv is None else argv or [""]
    plumbing.safe_output()
    with plumbing.one_line_errors("baselines.py"):
        if method not in ("pause", "tokenassorted") or {"--resume", "--method"} & {*flags}:
            raise ValueError(f"pause or tokenassorted comes first, then flags of train.py without --method "
                             f"and --resume; got {' '.join([method, *flags])!r}")
        args = train.parse(["--method", "sft", *flags])
        args.method, args.out = method, args.out.replace("runs/sft-", f"runs/{method}-")
        with plumbing.alone_in(args.out):
            run(args)


if __name__ == "__main__":
    if not sys.argv[1:] or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    main()
