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
import unicodedata

import regex  # comes with tiktoken
import tiktoken
import torch

from data import arithmetic, qa, wordproblems

DATA_DIR = os.path.dirname(os.path.abspath(__file__))
PROMPT = "Question: {question}\nAnswer:"  # one space, then the answer
END = "<|endoftext|>"

# How the families cut text before the merges: SmolLM2 as GPT-2 does, after setting every digit apart.
SMOLLM2_PATTERN = r"'(?:[sdmt]|ll|ve|re)|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
QWEN3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_PATTERN = QWEN3_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
LLAMA3_BEGIN, LLAMA3_END = "<|begin_of_text|>", "<|end_of_text|>"


def _split_by(pattern):
    return [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ]


# The same as tokenizer.json says it: normalizer and pre-tokenizers (without trim_offsets, which moves no token).
LAYOUTS = {
    SMOLLM2_PATTERN: [
        None,
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    ],
    QWEN3_PATTERN: [{"type": "NFC"}, *_split_by(QWEN3_PATTERN)],
    LLAMA3_PATTERN: [None, *_split_by(LLAMA3_PATTERN)],
}

WORDPROBLEMS_SIZES = dict(pretrain=1000, train=2000, val=500, test=1000, test_templates=500, test_numbers=500)
MAX_TEXT = 200_000  # characters that tiktoken cuts itself: its regex panics at 1,000,000 spaces in a row
ARITHMETIC_SIZES = dict(train=20_000, val=500, test=1000)
GSM8K_VAL = 500  # rows carved off the official train file


def load_encoding(name):
    """
    The tokenizer of a task or a model as a tiktoken.Encoding, for `encode`, `begin_token` and `end_token`.

    name: "wordproblems", the small BPE stored in the repository, or a Hugging Face folder with the tokenizer.json of
    SmolLM2, Qwen3 or Llama-3 (byte-level BPE). Raises FileNotFoundError or ValueError naming the file.
    """
    if name == "wordproblems":
        with open(wordproblems.BPE_FILE) as f:
            ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, f)}
        pattern, special = wordproblems.BPE_PATTERN, {END: len(ranks)}
        return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    path = os.path.join(str(name), "tokenizer.json")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"tokenizer {name!r} is neither 'wordproblems' nor a folder with a tokenizer.json")
    try:
        with open(path, encoding="utf-8") as f:
            pattern, ranks, special = _read_tokenizer(json.load(f))
        return tiktoken.Encoding(str(name), pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = error if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{path} is not a tokenizer that can be read exactly: {str(reason)[:2000]}") from None


def _read_tokenizer(spec):
    """
    (pattern, {bytes: id}, {special token: id}) of a parsed tokenizer.json.

    tiktoken merges any two neighbours whose concatenation is a token, smallest id first, and takes a piece that is a
    token whole; the `tokenizers` library goes by the list of merges. Raises ValueError unless both always do the same.
    """
    splitters = spec["pre_tokenizer"] or {}
    splitters = splitters.get("pretokenizers", [splitters])
    found = [{key: value for key, value in splitter.items() if key != "trim_offsets"} for splitter in splitters]
    found.insert(0, spec.get("normalizer"))
    pattern = next((pattern for pattern, layout in LAYOUTS.items() if layout == found), None)
    if pattern is None:
        known = "\n".join(json.dumps(layout) for layout in LAYOUTS.values())
        raise ValueError(
            f"normalizer and pre_tokenizer are\n{json.dumps(found)[:500]}\n"
            f"but only those of SmolLM2, Qwen3 and Llama-3 are known:\n{known}"
        )
    model, special = spec["model"], {token["content"]: token["id"] for token in spec["added_tokens"]}
    no, flag = [None, "", False], [None, False, True]
    plain = dict(type=["BPE"], dropout=[None, 0], unk_token=[None], byte_fallback=no, ignore_merges=flag)
    for key, known in (plain | dict(continuing_subword_prefix=no, end_of_word_suffix=no)).items():
        if model.get(key) not in known:
            raise ValueError(f"model.{key} is {json.dumps(model.get(key))[:100]}, only {json.dumps(known)} is known")
    for token in (LLAMA3_BEGIN, LLAMA3_END) if pattern == LLAMA3_PATTERN else (END,):
        if token not in special:
            raise ValueError(f"added_tokens has no {token}")

    vocab = model["vocab"]
    ids = [*(vocab | special).values()]
    if any(type(i) is not int for i in ids) or sorted(ids) != list(range(len(ids))):
        raise ValueError(f"the ids of vocab and added_tokens are not 0 to {len(ids) - 1}, each once")
    byte = {char: b for b, char in enumerate(byte_alphabet())}
    for token, i in special.items():
        if not token or not token.isprintable() or vocab.get(token, i) != i or (token in vocab and token in byte):
            raise ValueError(f"the added token {token!r} ({i}) is unprintable, or an ordinary token in vocab, too")
    ranks = {token: i for token, i in vocab.items() if token not in special}
    for token in ranks:
        if not token or not byte.keys() >= set(token):
            raise ValueError(f"the token {token!r} is not spelled in the byte alphabet")

    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    parts, last = {}, 0
    for merge in merges:
        if len(merge) != 2 or not all(part in ranks for part in merge) or ranks.get("".join(merge), -1) < last:
            raise ValueError(f"the merge {merge} is not of two tokens into a third, in the order of its ids")
        token = "".join(merge)
        parts[token], last = merge, ranks[token]
    # Llama-3 lists every pair of tokens that makes a token, as tiktoken takes it; the others list one for each token.
    if not (model.get("ignore_merges") and len(set(merges)) == _count_pairs(ranks)):
        if len(merges) > len(parts):
            raise ValueError("several merges make the same token")
        for token in ranks:
            if len(token) > 1 and not (token in parts and _merges_last(token, ranks, parts)):
                raise ValueError(f"the token {token!r} does not come out of the merges as tiktoken would make it")
    return pattern, {bytes(byte[char] for char in token): i for token, i in ranks.items()}, special


def _count_pairs(ranks):
    """How many pairs of tokens make a token."""
    return sum(token[:i] in ranks and token[i:] in ranks for token in ranks for i in range(1, len(token)))


def _merges_last(token, ranks, parts):
    """Whether the two parts of `token`, side by side, are both complete before anything merges across their border."""
    left, right = parts[token]
    limit = ranks[token]
    while left in parts or right in parts:  # undo the last merge next to the border, then see what could have merged
        if left in parts and (right not in parts or ranks[left] > ranks[right]):
            too_late, rest, left = ranks[left], ranks[left], parts[left][1]
        else:
            too_late, rest, right = ranks[right], ranks[right] + 1, parts[right][0]
        if too_late >= limit or ranks.get(left + right, rest) < rest:
            return False
    return True


def byte_alphabet():
    """The 256 characters that spell bytes 0-255 in GPT-2-style vocabularies: printable ones stand for themselves."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = iter(range(0x100, 0x200))
    return [chr(b if b in printable else next(rest)) for b in range(256)]


def begin_token(enc):
    """The id of the token before every prompt (Llama-3's <|begin_of_text|>), or None."""
    return enc._special_tokens[LLAMA3_BEGIN] if enc._pat_str == LLAMA3_PATTERN else None


def end_token(enc):
    """The id of the token after every answer: <|endoftext|>, Llama-3's <|end_of_text|>."""
    return enc._special_tokens[LLAMA3_END if enc._pat_str == LLAMA3_PATTERN else END]


@functools.cache
def _missing_bytes(enc):
    return frozenset(range(256)) - {token[0] for token in enc.token_byte_values() if len(token) == 1}


def encode(enc, text):
    """
    The token ids of `text`, in which special tokens count as plain text.

    Bytes that the vocabulary lacks (21 in SmolLM2's: tiktoken panics on them) are dropped, after the text is cut into
    pieces and before the merges, which is what the `tokenizers` library does.
    """
    if enc._pat_str == QWEN3_PATTERN:
        text = unicodedata.normalize("NFC", text)
    missing = _missing_bytes(enc)
    if len(text) < MAX_TEXT and missing.isdisjoint(text.encode("utf-8", "replace")):
        return enc.encode_ordinary(text)
    ids = []
    for piece in regex.findall(enc._pat_str, text):
        piece = bytes(b for b in piece.encode("utf-8", "replace") if b not in missing)
        ids += enc._encode_single_piece(piece) if piece else []
    return ids


def encode_row(row, enc, suffix=()):
    """(ids, n_prompt): prompt + answer + end token, of which the first n_prompt ids are the prompt, not supervised."""
    begin = begin_token(enc)
    prompt = [] if begin is None else [begin]
    prompt += encode(enc, PROMPT.format(question=row["question"])) + list(suffix)
    return prompt + encode(enc, " " + row["answer"]) + [end_token(enc)], len(prompt)


def encode_rows(rows, enc, block_size, suffix=()):
    """
    Tokenises every row once: (list of (ids, n_prompt), number of rows left out). `suffix`: ids that end every prompt.

    The model sees ids[:-1], so a row is left out when len(ids) - 1 > block_size (tokens); the caller reports how many.
    Raises ValueError when there are no rows, or none that fits.
    """
    if not rows:
        raise ValueError("the data has no rows")
    items = [encode_row(row, enc, suffix) for row in rows]
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
    with open(path, "rb") as f:
        for number, line in enumerate(f, 1):
            try:
                row = json.loads(line.decode("utf-8"))
                question, answer = row["question"].strip(), row["answer"].strip()
                _, final = answer.split("####")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
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
        data: "wordproblems" or "arithmetic" (generated here; their rows also have ops and more), "gsm8k" (made by
            data/gsm8k.py; val is 500 rows shuffled out of the official train file, train is the rest), a name of
            qa.PUBLISHED such as "scienceqa" (its published files in data/scienceqa/), or a folder with {split}.jsonl.
        split: train, val or test; wordproblems.SPLITS for the word problems.
        n: how many rows; all by default (WORDPROBLEMS_SIZES and ARITHMETIC_SIZES for what is generated).
        seed: of what is generated, or of which n rows of a file are drawn.

    Raises ValueError for an unknown split, a bad row, no rows or n out of range, FileNotFoundError for a missing file.
    """
    if n is not None and n < 1:
        raise ValueError(f"n={n} rows of {data}/{split}: it must be at least 1")
    if data == "wordproblems":
        rows = wordproblems.generate(n or WORDPROBLEMS_SIZES.get(split, 0), seed, split)
        return [row | {"final": str(row["final"])} for row in rows]
    if data == "arithmetic":
        return arithmetic.generate(n or ARITHMETIC_SIZES.get(split, 1), seed, split)
    if data in qa.PUBLISHED:
        return draw(qa.load(data, os.path.join(DATA_DIR, data), split), n, seed, f"{data}/{split}")
    folder, file = data, split
    if data == "gsm8k":
        if split not in ("train", "val", "test"):
            raise ValueError(f"split {split!r} of gsm8k is none of train, val, test")
        folder, file = os.path.join(DATA_DIR, "gsm8k"), "train" if split == "val" else split
    path = os.path.join(folder, f"{file}.jsonl")
    if not os.path.isfile(path):
        hint = "run `python data/gsm8k.py` to get it" if data == "gsm8k" else "data is a name (see --help) or a folder"
        raise FileNotFoundError(f"{path} does not exist: {hint}")
    rows = read_jsonl(path)
    if data == "gsm8k" and file == "train":
        random.Random(0).shuffle(rows)
        rows = rows[-GSM8K_VAL:] if split == "val" else rows[:-GSM8K_VAL]
    if not rows:
        raise ValueError(f"{path} has no rows")
    return draw(rows, n, seed, f"{data}/{split}")


def draw(rows, n, seed, name):
    """n of the rows at random, all in their order for None. ValueError if there are fewer."""
    if n is not None and n > len(rows):
        raise ValueError(f"n={n} rows of {name}: it has only {len(rows)}")
    return rows if n is None else random.Random(seed).sample(rows, n)
