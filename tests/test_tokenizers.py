"""The same tokens as Hugging Face's `tokenizers` library, for every family of load_encoding. No network."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import data.tokens
from data.tokens import begin_token, byte_alphabet, encode, encode_row, end_token, load_encoding

tokenizers = pytest.importorskip("tokenizers")

ROOT = Path(__file__).parents[1]
GSM8K_DIR = Path(os.environ.get("GSM8K_DIR", ROOT.parent / "shared" / "gsm8k"))
REAL = Path(os.environ.get("DLR_TOKENIZERS", "nowhere"))  # a folder with qwen3/tokenizer.json and llama3/tokenizer.json
FAMILIES = ["smollm2", "qwen3", "llama3"]
MISSING = {0x04, 0x06, 0xC0, 0xF1}  # bytes that the small SmolLM2 can't spell

CORPUS = [
    "Natalia sold 48/2 = <<48/2=24>>24 clips.\n#### 1,234.50",
    "def f(x):\n    return {'a': x**2}  # it's we'll they've I'd\n\n\n\tx",
    "IT'S WE'LL THEY'VE I'D Don'T 'S 'll ''re 'ſ it'ſ a'sb",
    "naïve café — “quotes” 東京 🙂 ½ ² ٣ Ⅷ e\u0301",
    "cafe\u0301 A\u030a \u212b o\u0323\u0302 o\u0302\u0323 \u1100\u1161\u11a8 \u0958 \u2126",
    "\ufb01 Tie\u0302\u0301ng Vie\u0323\u0302t \u0344 \u1e9b\u0323",
    "שלום עולם مرحبا ١٢٣ हिन्दी ไทย \u202eabc\u202c \u200f",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪 ☃\ufe0f 𝒳𝟙𝟚 \U00020000",
    "a\u0301\u0302\u0303 \u0301 \u0308x ゙か゚ カ゛",
    "x\u00a0y\u2003z\u3000w\u200bv\u2028u\u2029t\x85s\x0br\x0cq\x1cp\ufeff",
    "  two   spaces 12 3  4   \n \r\n\r\n 5  ",
    "\n\n\n   \n\t\t \r\r\n x\r\ny   \n",
    " 7 77 777 7777 77777a7b 1234567890 3.14159 ١٢٣٤٥",
    "!!! ...\n\n ?!\r\n {};\n\n--->\n <<48/2=24>>  //\n",
    "a\x04b !\x04! \x00\x06\x13\x14\x16\x1d  \x04x",
    "\U00040000 \U000fffff \x04",
    "zqxjk zqxjk zqxjkl",  # the small Llama-3 has it as a token that no merge makes
    "<|endoftext|> x<|end_of_text|><|begin_of_text|>",
    "",
]


def split_by(pattern, trim_offsets):
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": trim_offsets, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}


def layout(family):
    """What the real tokenizer.json says besides vocabulary and merges."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    begin = {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    special = {"id": "<|begin_of_text|>", "ids": [0], "tokens": ["<|begin_of_text|>"]}
    template = {"type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text, begin, text]}
    template["special_tokens"] = {"<|begin_of_text|>": special}
    contractions, rest = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    cut = {
        "smollm2": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "qwen3": split_by(contractions + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + rest, False),
        "llama3": split_by(contractions + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + rest, True),
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "NFC"} if family == "qwen3" else None,
        "pre_tokenizer": cut[family],
        "post_processor": {"type": "Sequence", "processors": [byte_level, template]} if family == "llama3" else None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "" if family == "qwen3" else None,
            "end_of_word_suffix": "" if family == "qwen3" else None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {},
            "merges": [],
        },
    }


def tiny_spec(family):
    """A tokenizer.json as the family's, with 400 tokens learnt from this file."""
    reference = tokenizers.Tokenizer.from_str(json.dumps(layout(family) | {"post_processor": None}))
    missing = {byte_alphabet()[b] for b in MISSING} if family == "smollm2" else set()
    first = ["<|endoftext|>", "<|im_start|>"] if family == "smollm2" else []
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=first,
        initial_alphabet=sorted(set(byte_alphabet()) - missing),
        show_progress=False,
    )
    reference.train_from_iterator([Path(__file__).read_text(encoding="utf-8")] * 2, trainer)
    spec = json.loads(reference.to_str())
    vocab, model = spec["model"]["vocab"], spec["model"]
    last = {"smollm2": [], "qwen3": ["<|endoftext|>", "<|im_end|>"], "llama3": ["<|begin_of_text|>", "<|end_of_text|>"]}
    if family == "llama3":
        model["ignore_merges"] = True
        vocab["zqxjk"] = len(vocab)
        ways = [(t[:i], t[i:]) for t in sorted(vocab, key=vocab.get) for i in range(1, len(t))]
        model["merges"] = [f"{a} {b}" for a, b in ways if a in vocab and b in vocab]
        spec["post_processor"] = layout(family)["post_processor"]
        spec["post_processor"]["processors"][1]["special_tokens"]["<|begin_of_text|>"]["ids"] = [len(vocab)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    spec["added_tokens"] += [{"id": len(vocab) + i, "content": t, **flags} for i, t in enumerate(last[family])]
    return spec


def load_both(folder):
    """(our encoding, the library's tokenizer), special tokens in a text being plain text for both."""
    reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference.encode_special_tokens = True
    return load_encoding(folder), reference


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    both = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp("tokenizer")  # the folder's name must say nothing
        (folder / "tokenizer.json").write_text(json.dumps(tiny_spec(family)), encoding="utf-8")
        both[family] = load_both(folder)
    return both


def assert_same(both, texts):
    enc, reference = both
    for text, expected in zip(texts, reference.encode_batch(texts, add_special_tokens=False)):
        assert encode(enc, text) == expected.ids, repr(text)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_tokens_as_hugging_face(tiny, family):
    """Broken if a family's pattern, NFC, whole tokens or missing bytes differ: the model never saw such tokens."""
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
    """Broken if prompts lack Llama-3's begin token, have it twice, or answers end with a token of another family."""
    enc, reference = tiny[family]
    ids, n_prompt = encode_row({"question": "Why 12?", "answer": "So.\n#### 3"}, enc)
    end = "<|end_of_text|>" if family == "llama3" else "<|endoftext|>"
    assert ids[:n_prompt] == reference.encode("Question: Why 12?\nAnswer:").ids  # as the library starts a text
    answer = reference.encode(" So.\n#### 3", add_special_tokens=False).ids
    assert ids[n_prompt:] == [*answer, reference.token_to_id(end)] and end_token(enc) == ids[-1]
    assert begin_token(enc) == (reference.token_to_id("<|begin_of_text|>") if family == "llama3" else None)
    assert ids.count(begin_token(enc)) == (family == "llama3")


def test_begin_and_end_tokens_of_wordproblems():
    """Broken if the small BPE of the repository gets another end token than its checkpoints were trained with."""
    enc = load_encoding("wordproblems")
    assert begin_token(enc) is None and end_token(enc) == enc.eot_token == 767


@pytest.mark.parametrize("family", FAMILIES)
def test_name_loads_the_same_again(tiny, family):
    """Broken if a checkpoint, which stores enc.name only, came back with other tokens."""
    enc, again = tiny[family][0], load_encoding(tiny[family][0].name)
    assert type(enc.name) is str and again.name == enc.name and again._pat_str == enc._pat_str
    assert (again._mergeable_ranks, again._special_tokens) == (enc._mergeable_ranks, enc._special_tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_endless_whitespace(tiny, family, monkeypatch):
    """Broken if a million spaces make tiktoken panic, or if long texts are cut otherwise than short ones."""
    enc, _ = tiny[family]
    ids = encode(enc, "a" + " " * 1_000_000 + "b")
    assert enc.decode(ids) == "a" + " " * 1_000_000 + "b"
    short = [encode(enc, text) for text in CORPUS]
    monkeypatch.setattr(data.tokens, "MAX_TEXT", 0)
    assert [encode(enc, text) for text in CORPUS] == short


# ---- what is refused


def at(*path, value):
    """A change of one entry of a tokenizer.json."""

    def change(spec):
        for key in path[:-1]:
            spec = spec[key]
        spec[path[-1]] = value

    return change


def rename(old, new):
    def change(spec):
        spec["model"]["vocab"] = {new if t == old else t: i for t, i in spec["model"]["vocab"].items()}

    return change


def swap_merges(spec):
    merges = spec["model"]["merges"]
    merges[3], merges[-1] = merges[-1], merges[3]


def unmade_token(spec):
    spec["added_tokens"], vocab = [], spec["model"]["vocab"]
    vocab["zqxjk"] = len(vocab)
    spec["added_tokens"] = [{"content": "<|endoftext|>", "id": len(vocab)}]


def merges_that_only_the_list_keeps_apart(spec):
    """abc is ab + c for the library, which for "abc" has merged b + c before; tiktoken would merge a + bc."""
    letters = "<=>"
    a, b, c = letters
    vocab = {char: i for i, char in enumerate(byte_alphabet())} | {b + c: 256, a + b: 257, a + b + c: 258}
    spec["model"] |= {"vocab": vocab, "merges": [[b, c], [a, b], [a + b, c]]}
    spec["added_tokens"] = [{"content": "<|endoftext|>", "id": 259}]


def merges_of_a_run(spec):
    """=== is = + == for the library, which from the left makes == + = and stops; tiktoken would merge these two."""
    vocab = {char: i for i, char in enumerate(byte_alphabet())} | {"==": 256, "===": 257}
    spec["model"] |= {"vocab": vocab, "merges": [["=", "="], ["=", "=="]]}
    spec["added_tokens"] = [{"content": "<|endoftext|>", "id": 258}]


SPLIT = ("pre_tokenizer", "pretokenizers", 0)
REFUSED = {
    "regex": (at(*SPLIT, "pattern", "Regex", value=r"\s+|\S+"), r"(?s)s\+.*only those of SmolLM2, Qwen3 and"),
    "pattern": (at(*SPLIT, "pattern", value={"String": " "}), "only those of SmolLM2"),
    "behavior": (at(*SPLIT, "behavior", value="Removed"), "Removed"),
    "prefix space": (at("pre_tokenizer", "pretokenizers", 1, "add_prefix_space", value=True), "only those of SmolLM2"),
    "normalizer": (at("normalizer", value={"type": "NFKC"}), "NFKC"),
    "no normalizer": (at("normalizer", value=None), "only those of SmolLM2"),
    "no pre_tokenizer": (at("pre_tokenizer", value=None), "only those of SmolLM2"),
    "WordPiece": (at("model", "type", value="WordPiece"), 'model.type is "WordPiece"'),
    "byte_fallback": (at("model", "byte_fallback", value=True), "model.byte_fallback is true"),
    "dropout": (at("model", "dropout", value=0.1), "model.dropout is 0.1"),
    "unk_token": (at("model", "unk_token", value="a"), "model.unk_token"),
    "suffix": (at("model", "end_of_word_suffix", value="</w>"), "model.end_of_word_suffix"),
    "no end": (at("added_tokens", value=[]), "added_tokens has no <|endoftext|>"),
    "list": (at("model", value=[]), "AttributeError|TypeError"),
    "vocab list": (at("model", "vocab", value=["a"]), "TypeError"),
    "empty": (at("model", value={"type": "BPE", "vocab": {}, "merges": []}), "the ids of vocab"),
    "token list": (at("added_tokens", value=[{"content": ["x"], "id": 1}]), "TypeError"),
    "repeated": (at("model", "vocab", "a", value=7), "the ids of vocab and added_tokens are not 0 to 401, each once"),
    "negative": (at("model", "vocab", "a", value=-1), "each once"),
    "float": (at("model", "vocab", "!", value=0.0), "each once"),
    "bool": (at("model", "vocab", "!", value=False), "each once"),
    "string": (at("model", "vocab", "!", value="0"), "each once"),
    "huge": (at("model", "vocab", "a", value=2**70), "each once"),
    "gap": (at("added_tokens", 0, "id", value=4_000_000_000), "each once"),
    "alphabet": (rename("a", "漢"), "token '漢' is not spelled"),
    "surrogate": (rename("a", "\ud800"), "is not spelled"),
    "no letters": (rename("a", ""), "token '' is not spelled"),
    "added surrogate": (at("added_tokens", 1, "content", value="\ud800"), "added token '.ud800'"),
    "added byte": (at("added_tokens", 1, value={"content": "a", "id": 64}), "each once|ordinary token"),
    "merge order": (swap_merges, "the merge .* is not of two tokens into a third, in the order of its ids"),
    "merge of three": (at("model", "merges", 0, value=["a", "b", "c"]), "the merge"),
    "merge of none": (at("model", "merges", 0, value="ab"), "the merge"),
    "unknown merge": (at("model", "merges", 0, value=["a", "漢"]), "the merge"),
    "number merge": (at("model", "merges", 0, value=7), "TypeError"),
    "unmade token": (unmade_token, "token 'zqxjk' does not come out of the merges"),
    "ambiguous merges": (merges_that_only_the_list_keeps_apart, "token '<=>' does not come out of the merges"),
    "run": (merges_of_a_run, "token '===' does not come out of the merges"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_known_exactly_is_refused(tmp_path, case):
    """Broken if a foreign or broken tokenizer.json gave silently different tokens, a panic, or an unclear error."""
    change, message = REFUSED[case]
    spec = tiny_spec("qwen3")
    change(spec)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match=message) as error:
        load_encoding(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/tokenizer.json is not a tokenizer that can be read exactly: ")
    assert len(str(error.value)) < 2500


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '{"a": NaN}', "[" * 100_000, "9" * 5000, b"\xff\xfe{}"])
def test_files_that_are_no_tokenizer(tmp_path, text):
    """Broken if a truncated or wrong file ended in a traceback that does not name it."""
    (tmp_path / "tokenizer.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer that can be read exactly"):
        load_encoding(tmp_path)
    with pytest.raises(FileNotFoundError, match="'nowhere' is neither 'wordproblems' nor a folder"):
        load_encoding("nowhere")


def test_llama3_needs_its_own_tokens_and_flag(tmp_path):
    """Broken if a Llama-3 folder without its end token, or without ignore_merges, were read all the same."""
    for change, message in (
        (at("added_tokens", 1, "content", value="<|endoftext|>"), "added_tokens has no <.end_of_text.>"),
        (at("model", "ignore_merges", value=False), "several merges make the same token"),
    ):
        spec = tiny_spec("llama3")
        change(spec)
        (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
        with pytest.raises(ValueError, match=message):
            load_encoding(tmp_path)


# ---- the real ones

FOLDERS = {"smollm2": ROOT / "data" / "smollm2", "qwen3": REAL / "qwen3", "llama3": REAL / "llama3"}
KNOWN = {"smollm2": (49152, None, 0), "qwen3": (151669, None, 151643), "llama3": (128256, 128000, 128001)}


@pytest.mark.parametrize("family", FAMILIES)
def test_real_tokenizers(family):
    """Broken if the real vocabularies, whose merges no small one can stand for, gave other tokens than the library."""
    if not (FOLDERS[family] / "tokenizer.json").is_file():
        pytest.skip(f"no {FOLDERS[family]}/tokenizer.json: set DLR_TOKENIZERS, or run python data/smollm2.py")
    enc, reference = load_both(FOLDERS[family])
    assert (enc.n_vocab, begin_token(enc), end_token(enc)) == KNOWN[family]
    texts = CORPUS + [Path(__file__).read_text(encoding="utf-8")]
    if (GSM8K_DIR / "train.jsonl").is_file():
        rows = [json.loads(line) for line in open(GSM8K_DIR / "train.jsonl", encoding="utf-8")]
        texts += [text for row in rows for text in (row["question"], " " + row["answer"])]
    assert_same((enc, reference), texts)
