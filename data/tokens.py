"""
How text becomes supervised tokens, for every task: tokenizers, the prompt format, batches and rows.

The supervised tokens are exactly the answer and the end token. Prompt and answer are tokenised
apart, so that no token spans the border. A row too long for the context is counted and left out,
never truncated. GSM8K's 7,473 training rows take 0.7 s with SmolLM2's tokenizer on one CPU core:
nothing is worth caching on disk.
"""

import base64
import functools
import os
import random
import unicodedata

import regex  # comes with tiktoken
import tiktoken
import torch

from data import arithmetic, modes, qa, wordproblems
from data.files import read_json, read_jsonl, text_field, to_row

DATA_DIR = os.path.dirname(os.path.abspath(__file__))
PROMPT = "Question: {question}\nAnswer:"  # one space, then the answer
END = "<|endoftext|>"
LLAMA3_BEGIN, LLAMA3_END = "<|begin_of_text|>", "<|end_of_text|>"

# --------------------------------------------------------------------------------------------------
# Tokenizers. All are byte-level BPE: a pattern cuts the text into pieces, merges make their tokens.

# SmolLM2 cuts as GPT-2 does, after setting every digit apart. Llama-3 keeps three digits together.
SMOLLM2_PATTERN = r"'(?:[sdmt]|ll|ve|re)|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
QWEN3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_PATTERN = QWEN3_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def _split_by(pattern):
    return [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ]


# How tokenizer.json says the same: its normalizer, then its pre-tokenizers (without trim_offsets,
# which moves no token).
LAYOUTS = {
    SMOLLM2_PATTERN: [
        None,
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    ],
    QWEN3_PATTERN: [{"type": "NFC"}, *_split_by(QWEN3_PATTERN)],
    LLAMA3_PATTERN: [None, *_split_by(LLAMA3_PATTERN)],
}


def load_encoding(name):
    """
    The tokenizer of a task or a model, for `encode`, `begin_token` and `end_token`.

    name: "wordproblems", the small BPE stored in the repository; or the path of a tokenizer.json of
    SmolLM2, Qwen3 or Llama-3, or of the folder with it.
    """
    name = str(name)
    if name == "wordproblems":
        with open(wordproblems.BPE_FILE, encoding="utf-8") as f:
            lines = [line.split() for line in f]
        ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        pattern, special = wordproblems.BPE_PATTERN, {END: len(ranks)}
    else:
        path = os.path.join(name, "tokenizer.json") if os.path.isdir(name) else name
        if not os.path.isfile(path):
            raise FileNotFoundError(f"tokenizer {name!r}: neither 'wordproblems' nor a tokenizer.json")
        spec = read_json(path)
        try:
            pattern, ranks, special = _read_tokenizer(spec)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            family = "not a tokenizer of SmolLM2, Qwen3 or Llama-3"
            raise ValueError(f"{path}: {family}: {error}") from None
    return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def _read_tokenizer(spec):
    """
    (pattern, {bytes: id}, {special token: id}) of a parsed tokenizer.json.

    It lists merges, and the `tokenizers` library applies the first in the list that fits. tiktoken
    merges the two neighbours that make the token of the smallest id. Both do the same where the
    list is in the order of the ids.
    """
    splitters = spec["pre_tokenizer"].get("pretokenizers", [])
    found = [spec["normalizer"]]
    for splitter in splitters:
        found.append({key: value for key, value in splitter.items() if key != "trim_offsets"})
    patterns = [pattern for pattern, layout in LAYOUTS.items() if layout == found]
    if not patterns:
        raise ValueError(f"its normalizer and pre_tokenizer are others, {str(found)[:500]}")
    pattern = patterns[0]
    llama3 = pattern == LLAMA3_PATTERN

    special = {token["content"]: token["id"] for token in spec["added_tokens"]}
    for token in (LLAMA3_BEGIN, LLAMA3_END) if llama3 else (END,):
        if token not in special:
            raise ValueError(f"added_tokens has no {token}")
    vocab = {token: i for token, i in spec["model"]["vocab"].items() if token not in special}
    ids = sorted([*vocab.values(), *special.values()])
    if ids != list(range(len(ids))):
        raise ValueError(f"the ids of vocab and added_tokens are not 0 to {len(ids) - 1}, each once")

    merges = spec["model"]["merges"]  # "left right" or ["left", "right"]
    made = [vocab["".join(m.split(" ") if isinstance(m, str) else m)] for m in merges]
    if llama3:  # all pairs that make a token; and a piece that is a token is taken whole
        right = made == sorted(made) and spec["model"].get("ignore_merges")
    else:  # one merge for each token of more than one byte
        right = made == sorted(i for token, i in vocab.items() if len(token) > 1)
    if not right:
        raise ValueError("its merges are not those of its tokens in the order of their ids")
    byte = {char: b for b, char in enumerate(byte_alphabet())}
    return pattern, {bytes(byte[char] for char in token): i for token, i in vocab.items()}, special


def byte_alphabet():
    """The characters that spell bytes 0-255 in a tokenizer.json; printable ones are themselves."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = iter(range(0x100, 0x200))
    return [chr(b if b in printable else next(rest)) for b in range(256)]


def begin_token(enc):
    """The id of the token before every prompt (Llama-3's <|begin_of_text|>), or None."""
    return enc.encode_single_token(LLAMA3_BEGIN) if enc._pat_str == LLAMA3_PATTERN else None


def end_token(enc):
    """The id of the token after every answer: <|endoftext|>, Llama-3's <|end_of_text|>."""
    return enc.encode_single_token(LLAMA3_END if enc._pat_str == LLAMA3_PATTERN else END)


@functools.cache
def _missing_bytes(enc):
    return frozenset(range(256)) - {token[0] for token in enc.token_byte_values() if len(token) == 1}


def encode(enc, text):
    """
    The token ids of `text`, in which special tokens count as plain text.

    SmolLM2's vocabulary lacks 21 bytes, on which tiktoken panics. They are dropped after the text
    is cut into pieces and before the merges, which is what the `tokenizers` library does.
    """
    if enc._pat_str == QWEN3_PATTERN:
        text = unicodedata.normalize("NFC", text)
    missing = _missing_bytes(enc)
    if missing.isdisjoint(text.encode("utf-8", "replace")):
        return enc.encode_ordinary(text)
    ids = []
    for piece in regex.findall(enc._pat_str, text):
        piece = bytes(b for b in piece.encode("utf-8", "replace") if b not in missing)
        if piece:
            ids += enc._encode_single_piece(piece)
    return ids


# --------------------------------------------------------------------------------------------------
# From rows to batches.


def encode_row(row, enc):
    """(ids, n_prompt): prompt + answer + end token; the first n_prompt ids are not supervised."""
    begin = begin_token(enc)
    prompt = encode(enc, PROMPT.format(question=row["question"]))
    if begin is not None:
        prompt = [begin, *prompt]
    return prompt + encode(enc, " " + row["answer"]) + [end_token(enc)], len(prompt)


def encode_rows(rows, enc, block_size):
    """
    Every row tokenised: (list of (ids, n_prompt), number of rows left out, for the caller to say).

    The model sees ids[:-1], so a row is left out when len(ids) - 1 > block_size.
    """
    items = [encode_row(row, enc) for row in rows]
    fitting = [item for item in items if len(item[0]) - 1 <= block_size]
    if not fitting:
        shortest = min(len(ids) for ids, _ in items) - 1
        raise ValueError(f"none of the {len(rows)} rows fits block_size={block_size}: "
                         f"the shortest needs {shortest}")
    return fitting, len(items) - len(fitting)


def collate(items, pad=0):
    """
    A batch from (ids, n_prompt) items, right-padded to the longest: idx (B, T), targets (B, T).

    targets[b, t] is the token after idx[b, t], or -1 where nothing is supervised: inside the prompt
    and in the padding.
    """
    B, T = len(items), max(len(ids) for ids, _ in items) - 1
    idx = torch.full((B, T), pad, dtype=torch.long)
    targets = torch.full((B, T), -1, dtype=torch.long)
    for b, (ids, n_prompt) in enumerate(items):
        ids = torch.tensor(ids)
        idx[b, : len(ids) - 1] = ids[:-1]
        # The prompt's last token predicts the answer's first.
        targets[b, n_prompt - 1 : len(ids) - 1] = ids[n_prompt:]
    return idx, targets


# --------------------------------------------------------------------------------------------------
# Rows of every task.

WORDPROBLEMS_SIZES = dict(pretrain=1000, train=2000, val=500, test=1000,
                          test_templates=500, test_numbers=500)
ARITHMETIC_SIZES = dict(train=20_000, val=500, test=1000)
DATASETS = ("wordproblems", *modes.MODES, *modes.LINES, "arithmetic", "gsm8k", *qa.PUBLISHED)
GSM8K_VAL = 500  # rows carved off the official train file


def load_rows(data, split, n=None, seed=0, at_most=False):
    """
    The rows of a split: dicts with question, answer and final, the gold string after "####".

    Args:
        data: "wordproblems" or "arithmetic", generated here, whose rows also have ops and more;
            a name of modes.MODES or LINES, word problems answered in several ways;
            "gsm8k", made by data/gsm8k.py, with 500 rows of the official train file as val;
            a name of qa.PUBLISHED such as "scienceqa", its published files in data/scienceqa/;
            or a folder with {split}.jsonl.
        split: train, val or test; wordproblems.SPLITS for the word problems.
        n: how many rows; by default all, or for what is generated the sizes above.
        seed: of what is generated, or of which n rows of a file are drawn.
        at_most: where a file has fewer than n rows, take them all; otherwise that is an error.

    Rows of files also have "where" they come from, "FILE:LINE", for errors about them.
    """
    if n is not None and n < 1:
        raise ValueError(f"n={n} rows of {data}/{split}: it must be at least 1")
    if data == "wordproblems":
        rows = wordproblems.generate(n or WORDPROBLEMS_SIZES.get(split, 1), seed, split)
        return [row | {"final": str(row["final"])} for row in rows]
    if data in (*modes.MODES, *modes.LINES):
        return modes.load(data, load_rows("wordproblems", split, n, seed), split, seed)
    if data == "arithmetic":
        return arithmetic.generate(n or ARITHMETIC_SIZES.get(split, 1), seed, split)
    if data in qa.PUBLISHED:
        rows = qa.load(data, os.path.join(DATA_DIR, data), split)
    elif data == "gsm8k":
        rows = _gsm8k(split)
    else:
        path = os.path.join(data, f"{split}.jsonl")
        rows = _read_rows(path, "data is a name (see --help) or a folder with this file")

    if n is None or (at_most and n >= len(rows)):
        return rows
    if n > len(rows):
        raise ValueError(f"n={n} rows of {data}/{split}: it has only {len(rows)}")
    return random.Random(seed).sample(rows, n)


def _gsm8k(split):
    if split not in ("train", "val", "test"):
        raise ValueError(f"split {split!r} of gsm8k is none of train, val, test")
    file = "test.jsonl" if split == "test" else "train.jsonl"
    rows = _read_rows(os.path.join(DATA_DIR, "gsm8k", file), "run `python data/gsm8k.py` to get it")
    if split == "test":
        return rows
    random.Random(0).shuffle(rows)
    return rows[-GSM8K_VAL:] if split == "val" else rows[:-GSM8K_VAL]


def _read_rows(path, hint):
    """The rows of a jsonl file, one {"question": "...", "answer": "... #### final"} a line."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist: {hint}")
    rows = [to_row(_row, item, where) for where, item in read_jsonl(path)]
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def _row(item):
    question, answer = text_field(item, "question"), text_field(item, "answer")
    _, *finals = answer.split("####")
    if len(finals) != 1 or not finals[0].strip():
        raise ValueError(f"'answer' must end in one '####' and the final answer, got {answer[-60:]!r}")
    way = {"way": item["way"]} if "way" in item else {}  # for the analysis, data/modes.py
    return {"question": question, "answer": answer, "final": finals[0].strip(), **way}
