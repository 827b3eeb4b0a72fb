"""
How text becomes supervised tokens, for every task: encodings, the prompt format, rows and batches.

The supervised tokens are exactly the answer and the end token. Prompt and answer are tokenised apart, so that no token
spans the border; a row too long for the context is counted and left out, never truncated. The 7,473 training rows of
GSM8K take 0.7 s with SmolLM2's tokenizer on one CPU core: nothing is worth caching on disk.
"""

import base64
import functools
import json
import os
import random

import regex  # comes with tiktoken
import tiktoken
import torch

from data import wordproblems

DATA_DIR = os.path.dirname(os.path.abspath(__file__))
PROMPT = "Question: {question}\nAnswer:"  # one space, then the answer
END = "<|endoftext|>"
# SmolLM2 cuts text as GPT-2 does, after setting every digit apart.
SMOLLM2_PATTERN = r"'(?:[sdmt]|ll|ve|re)|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"

WORDPROBLEMS_SIZES = dict(pretrain=1000, train=2000, val=500, test=1000, test_templates=500, test_numbers=500)
GSM8K_VAL = 500  # rows carved off the official train file


def load_encoding(name):
    """
    The tokenizer of a task or a model as a tiktoken.Encoding; enc.eot_token is the id of <|endoftext|>.

    name: "wordproblems", the small BPE stored in the repository, or a Hugging Face folder with a tokenizer.json
    (byte-level BPE that splits text as SmolLM2 does). Raises FileNotFoundError or ValueError naming the file.
    """
    if name == "wordproblems":
        with open(wordproblems.BPE_FILE) as f:
            ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, f)}
        pattern, special = wordproblems.BPE_PATTERN, {END: len(ranks)}
    else:
        path = os.path.join(name, "tokenizer.json")
        if not os.path.isfile(path):
            raise FileNotFoundError(f"tokenizer {name!r} is neither 'wordproblems' nor a folder with a tokenizer.json")
        try:
            with open(path, encoding="utf-8") as f:
                spec = json.load(f)
            special = {token["content"]: token["id"] for token in spec["added_tokens"]}
            vocab = {token: i for token, i in spec["model"]["vocab"].items() if token not in special}
            splitters = spec["pre_tokenizer"].get("pretokenizers", [spec["pre_tokenizer"]])
            splitters = [splitter["type"] for splitter in splitters]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a Hugging Face byte-level BPE tokenizer: {error!r}") from None
        if splitters != ["Digits", "ByteLevel"]:
            raise ValueError(
                f"{path}: pre_tokenizer {splitters} is not known, only ['Digits', 'ByteLevel'] (SmolLM2) is"
            )
        if END not in special:
            raise ValueError(f"{path}: added_tokens has no {END}")
        # Ids increase with the order of the merges, so they are the ranks that tiktoken needs.
        byte = {char: b for b, char in enumerate(byte_alphabet())}
        ranks = {bytes(byte[char] for char in token): i for token, i in vocab.items()}
        pattern = SMOLLM2_PATTERN
    return tiktoken.Encoding(str(name), pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def byte_alphabet():
    """The 256 characters that spell bytes 0-255 in GPT-2-style vocabularies: printable ones stand for themselves."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = iter(range(0x100, 0x200))
    return [chr(b if b in printable else next(rest)) for b in range(256)]


@functools.cache
def _missing_bytes(enc):
    return frozenset(range(256)) - {token[0] for token in enc.token_byte_values() if len(token) == 1}


def encode(enc, text):
    """
    The token ids of `text`, in which special tokens count as plain text.

    Bytes that the vocabulary lacks (21 in SmolLM2's: tiktoken panics on them) are dropped, after the text is cut into
    pieces and before the merges, which is what the `tokenizers` library does.
    """
    missing = _missing_bytes(enc)
    if missing.isdisjoint(text.encode("utf-8", "replace")):
        return enc.encode_ordinary(text)
    ids = []
    for piece in regex.findall(enc._pat_str, text):
        piece = bytes(b for b in piece.encode("utf-8", "replace") if b not in missing)
        ids += enc._encode_single_piece(piece) if piece else []
    return ids


def encode_row(row, enc):
    """(ids, n_prompt): prompt + answer + end token, of which the first n_prompt ids are the prompt, not supervised."""
    prompt = encode(enc, PROMPT.format(question=row["question"]))
    return prompt + encode(enc, " " + row["answer"]) + [enc.eot_token], len(prompt)


def encode_rows(rows, enc, block_size):
    """
    Tokenises every row once: (list of (ids, n_prompt), number of rows left out).

    The model sees ids[:-1], so a row is left out when len(ids) - 1 > block_size (tokens); the caller reports how many.
    Raises ValueError when there are no rows, or none that fits.
    """
    if not rows:
        raise ValueError("the data has no rows")
    items = [encode_row(row, enc) for row in rows]
    fitting = [item for item in items if len(item[0]) - 1 <= block_size]
    if not fitting:
        shortest = min(len(ids) for ids, _ in items) - 1
        raise ValueError(f"none of the {len(rows)} rows fits block_size={block_size}: the shortest needs {shortest}")
    return fitting, len(items) - len(fitting)


def collate(items, pad=0):
    """
    A batch from (ids, n_prompt) items, right-padded to the longest: idx (B, T) and targets (B, T), LongTensors.

    targets[b, t] is the token after idx[b, t], or -1 where nothing is supervised: inside the prompt and in the padding.
    """
    B, T = len(items), max(len(ids) for ids, _ in items) - 1
    idx = torch.full((B, T), pad, dtype=torch.long)
    targets = torch.full((B, T), -1, dtype=torch.long)
    for b, (ids, n_prompt) in enumerate(items):
        ids = torch.tensor(ids)
        idx[b, : len(ids) - 1] = ids[:-1]
        targets[b, n_prompt - 1 : len(ids) - 1] = ids[n_prompt:]  # the prompt's last token predicts the answer's first
    return idx, targets


def read_jsonl(path):
    """The rows (question, answer, final) of a jsonl file. Raises ValueError naming file and line of a bad one."""
    rows = []
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            try:
                row = json.loads(line)
                question, answer = row["question"].strip(), row["answer"].strip()
                _, final = answer.split("####")
            except (ValueError, KeyError, TypeError, AttributeError):
                question = final = ""
            if not question or not final.strip():
                raise ValueError(
                    f"{path}, line {number}: no JSON object with a question and an answer with one '#### n'"
                )
            rows.append({"question": question, "answer": answer, "final": final.strip()})
    return rows


def load_rows(data, split, n=None, seed=0):
    """
    The rows of a split as dicts with question, answer and final, the gold string after '####' (straight from the data).

    Args:
        data: "wordproblems" (generated here; rows also have n_ops, ops and template), "gsm8k" (made by data/gsm8k.py;
            val is 500 rows shuffled out of the official train file, train is the rest), or a folder with {split}.jsonl.
        split: train, val or test; wordproblems.SPLITS for the word problems.
        n: how many rows; all by default (WORDPROBLEMS_SIZES for the word problems).
        seed: of the word problems, or of which n rows of a file are drawn.

    Raises ValueError for an unknown split, a bad row, no rows or n out of range, FileNotFoundError for a missing file.
    """
    if n is not None and n < 1:
        raise ValueError(f"n={n} rows of {data}/{split}: it must be at least 1")
    if data == "wordproblems":
        rows = wordproblems.generate(n or WORDPROBLEMS_SIZES.get(split, 0), seed, split)
        return [row | {"final": str(row["final"])} for row in rows]
    folder, file = data, split
    if data == "gsm8k":
        if split not in ("train", "val", "test"):
            raise ValueError(f"split {split!r} of gsm8k is none of train, val, test")
        folder, file = os.path.join(DATA_DIR, "gsm8k"), "train" if split == "val" else split
    path = os.path.join(folder, f"{file}.jsonl")
    if not os.path.isfile(path):
        hint = "run `python data/gsm8k.py` to get it" if data == "gsm8k" else "data is wordproblems, gsm8k or a folder"
        raise FileNotFoundError(f"{path} does not exist: {hint}")
    rows = read_jsonl(path)
    if data == "gsm8k" and file == "train":
        random.Random(0).shuffle(rows)
        rows = rows[-GSM8K_VAL:] if split == "val" else rows[:-GSM8K_VAL]
    if not rows:
        raise ValueError(f"{path} has no rows")
    if n is not None and n > len(rows):
        raise ValueError(f"n={n} rows of {data}/{split}: it has only {len(rows)}")
    return rows if n is None else random.Random(seed).sample(rows, n)
