"""
How far codes are handles on data in which every line of an answer has a manner of its own (data/modes.py,
LINES): answers are generated under codes that switch at random, and each line's manner is compared with
the code under which its first token was predicted.
"""

import math
from collections import Counter

import numpy as np
import torch

from data.modes import manner_of
from data.tokens import encode_row, end_tokens

P_SWITCH = 0.15  # per chunk: a code lasts six or seven chunks, a worked line about eight


def information(table):
    """
    Which fraction of the manner's entropy the code tells: I(code; manner) / H(manner), 0 if there is one
    manner only. table (codes, manners): how often each code came with each manner.
    """
    p = np.asarray(table, float) / np.sum(table)  # (codes, manners)

    def entropy(q):
        q = q[q > 0]
        return -(q * np.log2(q)).sum()

    h = entropy(p.sum(0))
    return float((h + entropy(p.sum(1)) - entropy(p)) / h) if h > 0 else 0.0


def random_plan(n_chunks, n_codes, seed):
    """Codes (n_chunks,) that begin with any and then change, with probability P_SWITCH, to any of the others."""
    rng = np.random.default_rng(seed)
    switches = rng.random(n_chunks) < P_SWITCH
    jumps = np.where(switches, rng.integers(1, max(n_codes, 2), n_chunks), 0)
    jumps[0] = rng.integers(n_codes)
    return torch.as_tensor(jumps.cumsum() % n_codes)


def first_tokens(texts):
    """
    The lines before "####" of an answer that is given in tokens (their texts): [(line, the number of its first
    token)]. A token may hold the end of one line and the begin of the next.
    """
    owner = [i for i, text in enumerate(texts) for _ in text]  # which token each character is from
    answer, at, lines = "".join(texts).partition("####")[0], 0, []
    for line in answer.split("\n"):
        start = at + len(line) - len(line.lstrip())
        if line.strip():
            lines.append((line.strip(), owner[start]))
        at += len(line) + 1
    return lines


@torch.no_grad()
def follow_plans(model, enc, rows, max_new_tokens=320, temperature=0.0, seed=0):
    """
    Answers to rows under random plans, a dict:

    "information": I(code; manner) / H(manner) over all lines, the code being that of the chunk whose last
        token read predicts the line's first token; "lines": {code: {manner: how many}};
    "as planned": the fraction of answers in which every line has the manner that its code means, which is
        the one most frequent under it; 0 if all codes mean the same. "answers": how many there are.
    """
    K, block = model.config.chunk, model.config.block_size
    items = [encode_row(row, enc) for row in rows]
    prompts = [ids[:n_prompt] for ids, n_prompt in items if n_prompt <= block]
    n_chunks = math.ceil(min(max(map(len, prompts)) + max_new_tokens, block) / K)
    plans = torch.stack([random_plan(n_chunks, model.config.n_codes, [seed, i]) for i in range(len(prompts))])
    answers = model.generate(prompts, max_new_tokens, plans.to(model.cos.device), end_tokens(enc), temperature)

    told = []  # of each answer [(code, manner)], one for each line
    for prompt, plan, new in zip(prompts, plans.tolist(), answers):
        texts = [enc.decode([token]) if token < enc.n_vocab else "" for token in new]
        lines = [(plan[(len(prompt) + at - 1) // K], manner_of(line)) for line, at in first_tokens(texts)]
        told.append(lines)
    counts = {code: Counter() for code in range(model.config.n_codes)}
    for code, manner in (pair for lines in told for pair in lines):
        counts[code][manner] += 1
    means = {code: row.most_common(1)[0][0] for code, row in counts.items() if row}
    apart = len(set(means.values())) > 1
    planned = [apart and bool(lines) and all(means[code] == manner for code, manner in lines) for lines in told]
    manners = sorted({manner for row in counts.values() for manner in row})
    table = [[row[manner] for manner in manners] for row in counts.values()]
    return {"information": information(table) if manners else 0.0, "as planned": sum(planned) / len(told),
            "answers": len(told), "lines": {code: dict(row) for code, row in counts.items()}}


def describe(found):
    """What follow_plans found, as text."""
    lines = [f"codes forced by a plan that switches at random, {found['answers']} answers; "
             "manner of the lines under each code:"]
    for code, row in found["lines"].items():
        lines.append(f"    code {code}: " + ", ".join(f"{n} {manner}" for manner, n in row.items()))
    return "\n".join([*lines, f"    the code tells {found['information']:.0%} of the manner; "
                              f"{found['as planned']:.0%} of the answers are as planned, line by line"])
