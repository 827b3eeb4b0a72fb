"""
How text becomes supervised tokens, for every task: tokenizers, the prompt format, batches and rows.

The supervised tokens are exactly the answer and the end token. Prompt and answer are tokenised
apart, so that no token spans the border. A row too long for the context is counted and left out,
never truncated. GSM8K's 7,473 training rows take 0.7 s with SmolLM2's tokenizer on one CPU core:
nothing is worth caching on disk.
"""

import base64
import functools
import itertools
import os
import random
import unicodedata
from pathlib import Path

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
    wordproblems.BPE_PATTERN: [None, *_split_by(wordproblems.BPE_PATTERN)],  # as we write it, tokenizer_json
}
# What a model's folder says beside its weights. A run's folder, where config.json has the flags, may hold
# the config.json of the model that it began with under the last of these names.
GENERATION, MODEL_CONFIG = "generation_config.json", "model_config.json"
REST = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
        "merges.txt", "chat_template.jinja", GENERATION, MODEL_CONFIG)
# Beyond so many characters tiktoken's regular expressions may give up: it panics at a million steps.
TIKTOKEN_MAX = 100_000


def load_encoding(name):
    """
    The tokenizer of a task or a model, for `encode`, `begin_token`, `end_token` and `end_tokens`.

    name: "wordproblems", the small BPE stored in the repository; or the path of a tokenizer.json of
    SmolLM2, Qwen3 or Llama-3, or of the folder with it. What tiktoken has no place for is kept as two
    attributes: `text_tokens`, see encode, and `listed_ends`, see end_tokens.
    """
    name = str(name)
    text_tokens, listed_ends = {}, []
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
            text_tokens = _text_tokens(spec)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            family = "not a tokenizer of SmolLM2, Qwen3 or Llama-3"
            raise ValueError(f"{path}: {family}: {error}") from None
        listed_ends = list_ends(name)
    enc = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    enc.text_tokens, enc.listed_ends = text_tokens, listed_ends
    return enc


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


def _text_tokens(spec):
    """
    What encode needs to find the added tokens of a parsed tokenizer.json that are not special:
    {normalized: (regular expression, {text: id})} for those that are looked for in the text as it is
    (False), and for those that are looked for after NFC (True).

    The expression finds the special ones, too: the library passes over them, and so over what
    overlaps with them. Of several that begin at one place the longest is taken.
    """
    nfc = spec["normalizer"] is not None
    found = {}
    for normalized in (False, True):
        group = {}
        for token in spec["added_tokens"]:
            special = token.get("special", True)
            if token.get("normalized", not special) == normalized:
                text = token["content"]
                if normalized and nfc:
                    text = unicodedata.normalize("NFC", text)
                group[text] = None if special else token["id"]
                for flag in ("single_word", "lstrip", "rstrip"):
                    if not special and token.get(flag):
                        raise ValueError(f"its added token {text!r} has {flag}, which is not implemented")
        ids = {text: i for text, i in group.items() if i is not None}
        if ids:
            longest_first = sorted(group, key=len, reverse=True)
            found[normalized] = regex.compile("|".join(map(regex.escape, longest_first))), ids
    return found


def find_rest(source):
    """
    {name in REST: its path} of a folder, or of the folder of a tokenizer.json; model_config.json is the
    config.json where that is a model's. {} for the embedded tokenizer.
    """
    source = Path(source)
    if str(source) == "wordproblems" or not source.exists():
        return {}
    folder = source if source.is_dir() else source.parent
    found = {name: folder / name for name in REST if (folder / name).is_file()}
    if source.is_file():
        found["tokenizer.json"] = source
    config, is_run = folder / "config.json", (folder / "ckpt.pt").exists()
    if MODEL_CONFIG not in found and config.is_file() and not is_run:
        found[MODEL_CONFIG] = config
    return found


def list_ends(source):
    """
    The end tokens that a model's folder lists, its eos_token_id as a list of ids; [] if it has none.
    As for transformers, generation_config.json comes first.
    """
    found = find_rest(source)
    for name in (GENERATION, MODEL_CONFIG):
        path = found.get(name)
        ids = read_json(path).get("eos_token_id") if path else None
        if ids is not None:
            ids = ids if isinstance(ids, list) else [ids]
            if not all(type(i) is int for i in ids):
                raise ValueError(f"{path}: eos_token_id must be an integer or a list of them, got {ids!r:.60}")
            return ids
    return []


def tokenizer_json(enc):
    """
    The tokenizer.json, as a dict, of a tokenizer of which every token of more than one byte is one
    merge, such as the embedded one: load_encoding and the `tokenizers` library read it.
    """
    normalizer, *splitters, byte_level = LAYOUTS[enc._pat_str]
    byte_level = {**byte_level, "trim_offsets": True}
    ranks = enc._mergeable_ranks
    alphabet = byte_alphabet()

    def spell(token):
        return "".join(alphabet[b] for b in token)

    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:  # the merges before this one leave two parts of it
            parts = [bytes([b]) for b in token]
            while len(parts) > 2:
                made = [ranks.get(a + b, rank) for a, b in itertools.pairwise(parts)]
                i = made.index(min(made))
                parts[i : i + 2] = [parts[i] + parts[i + 1]]
            merges.append([spell(part) for part in parts])
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": text, **flags} for text, i in enc._special_tokens.items()],
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splitters, byte_level]},
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {spell(token): i for token, i in ranks.items()}, "merges": merges},
    }


def byte_alphabet():
    """The characters that spell bytes 0-255 in a tokenizer.json; printable ones are themselves."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = iter(range(0x100, 0x200))
    return [chr(b if b in printable else next(rest)) for b in range(256)]


def begin_token(enc):
    """The id of the token before every prompt (Llama-3's <|begin_of_text|>), or None."""
    return enc.encode_single_token(LLAMA3_BEGIN) if enc._pat_str == LLAMA3_PATTERN else None


def end_token(enc):
    """The id of the token after every answer in training: <|endoftext|>, Llama-3's <|end_of_text|>."""
    return enc.encode_single_token(LLAMA3_END if enc._pat_str == LLAMA3_PATTERN else END)


def end_tokens(enc):
    """The ids that end an answer that is generated: end_token's, then those that the model's folder lists."""
    return list(dict.fromkeys([end_token(enc), *getattr(enc, "listed_ends", [])]))


@functools.cache
def _missing_bytes(enc):
    return frozenset(range(256)) - {token[0] for token in enc.token_byte_values() if len(token) == 1}


def encode(enc, text):
    """
    The token ids of `text`, in which special tokens count as plain text. An added token that is not
    special, such as Qwen3's "</think>", is one id, as in the `tokenizers` library.
    """
    pieces = _split_added(enc, [text], normalized=False)
    if enc._pat_str == QWEN3_PATTERN:
        pieces = [p if isinstance(p, int) else unicodedata.normalize("NFC", p) for p in pieces]
    ids = []
    for piece in _split_added(enc, pieces, normalized=True):
        ids += [piece] if isinstance(piece, int) else _encode_plain(enc, piece)
    return ids


def _split_added(enc, pieces, normalized):
    """Texts (and ids) with the ids of added tokens in the place of these tokens, see _text_tokens."""
    tokens = getattr(enc, "text_tokens", {})  # an Encoding of tiktoken's own has none
    if normalized not in tokens:
        return pieces
    pattern, ids = tokens[normalized]
    split = []
    for piece in pieces:
        if isinstance(piece, int):
            split.append(piece)
            continue
        start = 0
        for match in pattern.finditer(piece):
            if match[0] in ids:
                split += [piece[start : match.start()], ids[match[0]]]
                start = match.end()
        split.append(piece[start:])
    return split


def _encode_plain(enc, text):
    """
    The token ids of a text without added tokens.

    SmolLM2's vocabulary lacks 21 bytes, on which tiktoken panics. They are dropped after the text
    is cut into pieces and before the merges, which is what the `tokenizers` library does. It panics
    on some very long texts, too (a million blanks), so these are cut here as well.
    """
    missing = _missing_bytes(enc)
    if len(text) <= TIKTOKEN_MAX and missing.isdisjoint(text.encode("utf-8", "replace")):
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
