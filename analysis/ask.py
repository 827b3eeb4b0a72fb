"""
Ask a trained run one question: `python eval.py RUN --ask "Question text"` prints its greedy answer with the codes on,
each chunk behind its code, and with the codes off.
"""

import torch

from analysis.report import chunk_texts
from data.tokens import PROMPT, begin_token, encode, end_token


def ask(model, enc, question, max_new_tokens=320, suffix=(), colour=False):
    """
    The text to print. "[12]" before a chunk is its code; prompt and answer are one sequence, so a chunk may hold the
    end of the one and the start of the other. `colour`: each code in an ANSI colour of its own. ValueError if the
    question is empty or does not fit the context.
    """
    if not question.strip():
        raise ValueError("--ask: the question is empty")
    K, begin = model.config.chunk, begin_token(enc)
    prompt = ([] if begin is None else [begin]) + encode(enc, PROMPT.format(question=question.strip())) + list(suffix)
    device, was_training = model.embed_tokens.weight.device, model.training
    model.eval()
    on, off = (model.generate([prompt], max_new_tokens, codes=codes, stop=end_token(enc))[0] for codes in (None, "off"))
    ids = (prompt + on)[: model.config.block_size]  # the last token may lie just beyond it
    with torch.no_grad():
        p, codes = model.route(torch.tensor([ids], device=device))[0].softmax(-1).max(-1)
    model.train(was_training)
    text = lambda ids: enc.decode([t for t in ids if t < enc.n_vocab]).strip()  # noqa: E731  (added tokens have none)
    if not model.codebook.weight.any():
        return f"this run has no codes; its answer:\n{text(off)}"
    steered = []
    for code, chunk in zip(codes.tolist(), chunk_texts(enc, ids, K)):
        chunk = f"[{code}]{chunk}"
        steered.append(f"\033[38;5;{17 + (code * 73) % 214}m{chunk}\033[0m" if colour else chunk)
    same = "  (the same as with the codes on)" if on == off else ""
    return (f"codes on, [code] before each chunk of {K} tokens; {len(set(codes.tolist()))} codes used, "
            f"mean router probability {p.mean().item():.2f}:\n{''.join(steered)}\n\n"
            f"answer with codes on:\n{text(on)}\n\nanswer with codes off:{same}\n{text(off)}")
