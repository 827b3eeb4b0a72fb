"""The same tokens as Hugging Face's `tokenizers` library, for every family of load_encoding. No network."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.tokens import (
    begin_token,
    byte_alphabet,
    encode,
    encode_row,
    encode_rows,
    end_token,
    load_encoding,
    load_rows,
    tokenizer_json,
)

tokenizers = pytest.importorskip("tokenizers")

ROOT = Path(__file__).parents[1]
GSM8K_DIR = Path(os.environ.get("GSM8K_DIR", ROOT.parent / "shared" / "gsm8k"))
REAL = Path(os.environ.get("DLR_TOKENIZERS", "nowhere"))  # holds {qwen3,llama3}/tokenizer.json
FAMILIES = ["smollm2", "qwen3", "llama3"]
MISSING = {0x04, 0x06, 0xC0, 0xF1}  # bytes that the small SmolLM2 can't spell

CORPUS = [
    "Natalia sold 48/2 = <<48/2=24>>24 clips.\n#### 1,234.50",
    "def f(x):\n    return {'a': x**2}  # it's we'll they've I'd\n\n\n\tx",
    "IT'S WE'LL THEY'VE I'D Don'T 'S 'll ''re 'ſ it'ſ a'sb",
    "naïve café — “quotes” 東京 🙂 ½ ² ٣ Ⅷ e\u0301",
    "cafe\u0301 A\u030a \u212b o\u0323\u0302 o\u0302\u0323 \u1100\u1161\u11a8 \u0958 \u2126",
    "שלום עולם مرحبا ١٢٣ हिन्दी ไทย \u202eabc\u202c \u200f",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪 ☃\ufe0f 𝒳𝟙𝟚 \U00020000",
    "a\u0301\u0302\u0303 \u0301 \u0308x ゙か゚ カ゛",
    "x\u00a0y\u2003z\u3000w\u200bv\u2028u\u2029t\x85s\x0br\x0cq\x1cp\ufeff",
    "  two   spaces 12 3  4   \n \r\n\r\n 5  ",
    " 7 77 777 7777 77777a7b 1234567890 3.14159 ١٢٣٤٥",
    "!!! ...\n\n ?!\r\n {};\n\n--->\n <<48/2=24>>  //\n",
    "a\x04b !\x04! \x00\x06\x13\x14\x16\x1d  \x04x",
    "zqxjk zqxjk zqxjkl",  # the small Llama-3 has it as a token that no merge makes
    "<|endoftext|> x<|end_of_text|><|begin_of_text|>",
    "",
]


def tiny_spec(family):
    """A tokenizer.json laid out as the family's real one, with 400 tokens learnt from this file."""
    contractions, letters = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    rest = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    numbers = r"|\p{N}{1,3}" if family == "llama3" else r"|\p{N}"
    cut = {"type": "Split", "pattern": {"Regex": contractions + letters + numbers + rest},
           "behavior": "Isolated", "invert": False}
    if family == "smollm2":
        cut = {"type": "Digits", "individual_digits": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": family != "qwen3",
                  "use_regex": family == "smollm2"}
    start = {"added_tokens": [], "normalizer": {"type": "NFC"} if family == "qwen3" else None,
             "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, byte_level]},
             "model": {"type": "BPE", "vocab": {}, "merges": []}}
    reference = tokenizers.Tokenizer.from_str(json.dumps(start))
    missing = {byte_alphabet()[b] for b in MISSING} if family == "smollm2" else set()
    first, last = [], ["<|endoftext|>", "<|im_end|>"]
    if family == "smollm2":
        first, last = ["<|endoftext|>", "<|im_start|>"], []
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=first, show_progress=False,
        initial_alphabet=sorted(set(byte_alphabet()) - missing))
    reference.train_from_iterator([Path(__file__).read_text(encoding="utf-8")] * 2, trainer)
    if family == "llama3":  # all ways to make a token are merges; a begin token before every text
        last = ["<|begin_of_text|>", "<|end_of_text|>"]
        spec = json.loads(reference.to_str())
        vocab = spec["model"]["vocab"]
        vocab["zqxjk"] = len(vocab)
        ways = [(t[:i], t[i:]) for t in sorted(vocab, key=vocab.get) for i in range(1, len(t))]
        merges = [f"{a} {b}" for a, b in ways if a in vocab and b in vocab]
        spec["model"] |= {"ignore_merges": True, "merges": merges}
        reference = tokenizers.Tokenizer.from_str(json.dumps(spec))
        reference.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{last[0]} $A", special_tokens=[(last[0], len(vocab))])
    reference.add_special_tokens(last)
    return json.loads(reference.to_str())


def load_both(path):
    """(our encoding, the library's tokenizer), special tokens in a text being plain text for both."""
    reference = tokenizers.Tokenizer.from_file(str(path))
    reference.encode_special_tokens = True
    return load_encoding(path), reference


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    both = {}
    for family in FAMILIES:
        path = tmp_path_factory.mktemp("tokenizer") / "copy.json"  # the names must say nothing
        path.write_text(json.dumps(tiny_spec(family)), encoding="utf-8")
        both[family] = load_both(path)
    return both


def assert_same(both, texts):
    enc, reference = both
    for text, expected in zip(texts, reference.encode_batch(texts, add_special_tokens=False)):
        assert encode(enc, text) == expected.ids, repr(text)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_tokens_as_hugging_face(tiny, family):
    """Broken if pattern, NFC, whole tokens or missing bytes differ: the model never saw such tokens."""
    texts = CORPUS + [Path(__file__).read_text(encoding="utf-8")]
    codes = [*range(0x600), *range(0x1E00, 0x2100), *range(0x3000, 0x3100)]
    texts += [f"{c} a{c}{c}'{c} 1{c}" for c in map(chr, codes)]
    assert_same(tiny[family], texts)


PIECES = st.text(max_size=20) | st.sampled_from([word for text in CORPUS for word in text.split(" ")])
PIECES |= st.text(" \n\r\t\u00a0\u3000'sStTlLdDeE\u0301\u030a12٣a!<=>", max_size=12)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(PIECES, max_size=8), joint=st.sampled_from(["", " ", "\n"]))
@example(pieces=["e", "\u0301"], joint="")
def test_same_tokens_on_any_text(tiny, family, pieces, joint):
    """Broken if some text that nobody thought of gets other tokens than the library's."""
    assert_same(tiny[family], [joint.join(pieces)])


@pytest.mark.parametrize("family", FAMILIES)
def test_begin_and_end_tokens(tiny, family):
    """Broken if prompts lack Llama-3's begin token or have it twice, or answers end with another."""
    enc, reference = tiny[family]
    ids, n_prompt = encode_row({"question": "Why 12?", "answer": "So.\n#### 3"}, enc)
    end = "<|end_of_text|>" if family == "llama3" else "<|endoftext|>"
    prompt = reference.encode("Question: Why 12?\nAnswer:")  # as the library starts a text
    assert ids[:n_prompt] == prompt.ids
    answer = reference.encode(" So.\n#### 3", add_special_tokens=False).ids
    assert ids[n_prompt:] == [*answer, reference.token_to_id(end)] and end_token(enc) == ids[-1]
    begin = reference.token_to_id("<|begin_of_text|>")  # None but for llama3
    assert begin_token(enc) == begin and ids.count(begin) == (family == "llama3")


# ---- added tokens that are not special, very long texts, and the embedded tokenizer written


ADDED = ["</think>", "</think>\n", "<think", "e\u0301t", "caf\u00e9", "1/2", " the ", "t>"]


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    """The tiny tokenizers with added tokens that are not special, found before (raw) or after NFC."""
    both = {}
    for family in FAMILIES:
        for raw in (True, False):
            reference = tokenizers.Tokenizer.from_str(json.dumps(tiny_spec(family)))
            for i, text in enumerate(ADDED):
                normalized = not raw if i % 3 else raw  # some of the other kind, too
                reference.add_tokens([tokenizers.AddedToken(text, normalized=normalized)])
            reference.add_special_tokens(["<|x</think>"])  # special, hence plain text; it hides </think>
            path = tmp_path_factory.mktemp("added") / "tokenizer.json"
            path.write_text(reference.to_str(), encoding="utf-8")
            both[family, raw] = load_both(path)
    return both


def test_an_added_token_is_one_id(tmp_path):
    """Broken if "</think>" were cut into six, or lost when the ids are read."""
    spec = tiny_spec("qwen3")
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)  # as in the real one
    spec["added_tokens"].append({"id": 402, "content": "</think>", "special": False, **flags})
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    enc, reference = load_both(tmp_path / "tokenizer.json")
    ids = encode(enc, "so</think> 12")
    assert ids == reference.encode("so</think> 12").ids and ids.count(402) == 1
    assert enc.decode(ids) == "so</think> 12"


THINK = st.lists(st.sampled_from([*ADDED, "<|x</think>", "<|im_end|>", "think>", "caf", "e", "\u0301", " ", "\n", "1"]))


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=150, deadline=None)
@given(pieces=THINK)
@example(pieces=["cafe\u0301 e\u0301t", "</think>\n"])
@example(pieces=["<|x</think>", "</think>"])
def test_added_tokens_anywhere(added, family, raw, pieces):
    """Broken if the longest did not win, NFC came at the wrong time, or a special token were found."""
    assert_same(added[family, raw], ["".join(pieces)])


@pytest.mark.parametrize("family", FAMILIES)
def test_very_long_texts(tiny, family, monkeypatch):
    """Broken if a row of a million blanks were not left out as too long, or long rows had other tokens."""
    rows = [{"question": "Why?", "answer": "#### 3"}]
    for blank in " \n\t\u3000":
        rows.append({"question": "Why" + blank * 1_000_000 + "?", "answer": "#### 3"})
    items, left_out = encode_rows(rows, tiny[family][0], 512)
    assert (len(items), left_out) == (1, 4)
    monkeypatch.setattr("data.tokens.TIKTOKEN_MAX", 0)  # all texts are cut as long ones are
    assert_same(tiny[family], CORPUS)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    path = tmp_path_factory.mktemp("embedded") / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json(load_encoding("wordproblems"))), encoding="utf-8")
    return load_both(path)


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(PIECES, max_size=8), joint=st.sampled_from(["", " ", "\n"]))
def test_the_embedded_tokenizer_as_a_tokenizer_json(embedded, pieces, joint):
    """Broken if a model exported with it read other tokens in transformers than it was trained on."""
    ours, text = load_encoding("wordproblems"), joint.join(pieces)
    assert embedded[0]._mergeable_ranks == ours._mergeable_ranks
    assert end_token(embedded[0]) == end_token(ours)
    assert encode(ours, text) == embedded[1].encode(text, add_special_tokens=False).ids
    assert_same(embedded, [text])


def test_the_embedded_tokenizer_on_its_own_texts(embedded):
    """Broken if merges written in a wrong order showed on whole problems alone."""
    rows = load_rows("wordproblems", "test", 200)
    assert_same(embedded, [f"{row['question']}\n{row['answer']}" for row in rows] + CORPUS)


# ---- what is refused


def at(*path, value):
    """A change of one entry of a tokenizer.json."""

    def change(spec):
        for key in path[:-1]:
            spec = spec[key]
        spec[path[-1]] = value

    return change


def swap_merges(spec):
    merges = spec["model"]["merges"]
    merges[3], merges[-1] = merges[-1], merges[3]


MERGES = "its merges are not those of its tokens in the order of their ids"
REFUSED = {  # case: (family, change, words)
    "normalizer": ("qwen3", at("normalizer", value=None), "its normalizer and pre_tokenizer are others"),
    "no end": ("qwen3", at("added_tokens", value=[]), "added_tokens has no <.endoftext.>"),
    "an id twice": ("qwen3", at("model", "vocab", "a", value=7), "are not 0 to 401, each once"),
    "merge order": ("qwen3", swap_merges, MERGES),
    "llama3's merge order": ("llama3", swap_merges, MERGES),
    "a token with blanks": ("qwen3", at("added_tokens", 1, value={
        "id": 401, "content": "<b>", "special": False, "rstrip": True}), "added token '<b>' has rstrip"),
    "whole pieces": ("llama3", at("model", "ignore_merges", value=False), MERGES)}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_known_exactly_is_refused(tmp_path, case):
    """Broken if a foreign tokenizer.json gave silently different tokens or an unclear error."""
    family, change, words = REFUSED[case]
    spec = tiny_spec(family)
    change(spec)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match=words) as error:
        load_encoding(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/tokenizer.json: not a tokenizer of SmolLM2, ")
    assert len(str(error.value)) < 1000


def test_files_that_are_no_tokenizer(tmp_path):
    """Broken if a truncated or wrong file ended in a traceback that does not name it."""
    for content in ("{", "[]", '{"a": 1}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match=r"tokenizer\.json:"):
            load_encoding(tmp_path)
    with pytest.raises(FileNotFoundError, match="'nowhere': neither 'wordproblems' nor a"):
        load_encoding("nowhere")


# ---- the real ones

# tokens, begin, end
KNOWN = {"smollm2": (49152, None, 0), "qwen3": (151669, None, 151643), "llama3": (128256, 128000, 128001)}


@pytest.mark.parametrize("family", FAMILIES)
def test_real_tokenizers(family):
    """Broken if the real vocabularies, with merges unlike small ones, gave other tokens."""
    path = (ROOT / "data" if family == "smollm2" else REAL) / family / "tokenizer.json"
    if not path.is_file():
        pytest.skip(f"no {path}: set DLR_TOKENIZERS, or run python data/smollm2.py")
    enc, reference = load_both(path)
    assert (enc.n_vocab, begin_token(enc), end_token(enc)) == KNOWN[family]
    texts = CORPUS + [Path(__file__).read_text(encoding="utf-8")]
    if (GSM8K_DIR / "train.jsonl").is_file():
        texts += (GSM8K_DIR / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert_same((enc, reference), texts)
