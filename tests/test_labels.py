"""Labels of tokens: by hand, by an independent parse, and where tokens cut characters. No network."""

import re

import pytest
import tiktoken

from analysis.labels import classes, label_rows, token_labels
from data import arithmetic, wordproblems
from data.tokens import END, QWEN3_PATTERN, SMOLLM2_PATTERN, encode_row, load_encoding

LETTERS = {"w": "word", "p": "punctuation", "d": "digit", "o": "operator", "m": "mark", "#": "####",
           "e": "end", "1": "first", "2": "second", "r": "result", "f": "final", "-": None}
ENC = load_encoding("wordproblems")


def labels_of(row, enc=ENC):
    """The row's answer tokens as texts, and its labels."""
    ids, n_prompt = encode_row(row, enc)
    texts = [enc.decode_single_token_bytes(i).decode("utf-8", "backslashreplace") for i in ids[n_prompt:]]
    return texts, token_labels(row, ids, n_prompt, enc)


def spelled(letters):
    return [LETTERS[c] for c in letters.replace(" ", "")]


def byte_tokens(pattern, missing=()):
    """A tokenizer that knows single bytes only, without those of `missing`."""
    ranks = {bytes([b]): i for i, b in enumerate(b for b in range(256) if b not in missing)}
    end = {END: len(ranks)}
    return tiktoken.Encoding("bytes", pat_str=pattern, mergeable_ranks=ranks, special_tokens=end)


def test_a_word_problem_by_hand():
    """Broken if a label slips by a token; the other lines are those of the parse below."""
    row = wordproblems.generate(60, 2, "train", ops=(3, 3))[5]
    assert row["template"] == "fair:have+packs+times_less"
    tokens, labels = labels_of(row)
    # " = <<" is one token (its first character that is no space is "="), so is ".\n####"
    text = "Sara| had| |6|3|/|9| = <<|6|3|/|9|=|7|>>|7| tickets|.\n####| |7".split("|")
    assert tokens[-len(text) - 1 :] == [*text, END]
    n = len(text) - 2  # the last line is not part of the step
    assert {kind: own[-len(text) - 1 :] for kind, own in labels.items()} == {
        "class": spelled("w w p d d o d m d d o d m d m d w p p d e"),
        "operand": spelled("- - - 1 1 - 2 - 1 1 - 2 - r - r - - - f -"),
        "operation": ["div"] * n + [None] * 3, "step": ["times_less"] * n + [None] * 3}


def test_arithmetic_by_hand():
    """Broken if a digit gets its neighbour's sub-task, or the tokens around the digits get one."""
    row = arithmetic.generate(40, 0, "train", digits=4, op="add", cascade=0.3)[32]
    assert row["question"] == "4193+5855"  # 3+5, 9+5 carries, 1+8+1 and 4+5+1 carry it on
    tokens, labels = labels_of(row)
    assert tokens == [" ", "##", "##", " ", *"10048", END]
    subtasks = [None] * 4 + "UC US US SC SA".split() + [None]
    assert labels == {"class": spelled("p##p ddddd e"), "subtask": subtasks}
    items = [encode_row(row, ENC)] * 2
    assert label_rows([row] * 2, items, ENC) == {kind: [own] * 2 for kind, own in labels.items()}


def test_operators_by_hand():
    """Broken if the slash of "km/h" or an x in a word is an operator, or one beside a $ is not."""
    text = "10 - 3, $4-$3, 5 x 3, 2x.5, 1/2, (4)/2, 50%*2, 9 + $1, Y + 3, -5"
    text += ", two-day, km/h, box 5, x = 5"  # none of these
    found = [i for i, kind in enumerate(classes(text)) if kind == "operator"]
    assert [text[i] for i in found] == list("--xx//*++-")


def parsed(row):
    """The spans of a word problem, found again in its text."""
    kinds = {name: kind for kind, templates in wordproblems.ALL.items() for name, *_ in templates}
    names = row["template"].split(":")[1].split("+")
    steps = [name for name in names for _ in range({"start": 0, "update_two": 2}.get(kinds[name], 1))]
    spans = {"operation": [], "operand": [], "step": []}
    for match, step in zip(re.finditer(r".*\n", row["answer"]), steps, strict=True):
        found = re.search(r"(\d+)([-+*/])(\d+) = <<(\d+)\2(\d+)=(\d+)>>(\d+)", match[0])
        operation = {"+": "add", "-": "sub", "*": "mul", "/": "div"}[found[2]]
        spans["operation"].append([*match.span(), operation])
        spans["step"].append([*match.span(), step])
        for group, name in zip((1, 3, 4, 5, 6, 7), spelled("1212rr")):
            spans["operand"].append([match.start() + i for i in found.span(group)] + [name])
    spans["operand"].append([*re.search(r"(?<=#### )\d+$", row["answer"]).span(), "final"])
    return spans


@pytest.mark.parametrize("split, n", [("train", 200), ("test_templates", 60)])
def test_spans_agree_with_a_parse(split, n):
    """Broken if generate() misplaces the span of an operation, operand or step in some template."""
    for row in wordproblems.generate(n, 5, split, ops=(1, 6)):
        assert row["spans"] == parsed(row), row


@pytest.mark.parametrize("enc, answer, pieces, letters", [
    # Qwen3 composes accents; SmolLM2's vocabulary cannot spell \x04 and a byte of \U00040000
    (byte_tokens(QWEN3_PATTERN), "Jose\u0301e\u0301 <<1+2=3>>3\n#### 3",
     [" ", *"Jos", r"\xc3", r"\xa9", r"\xc3", r"\xa9", *" <<1+2=3>>3\n#### 3", END],
     "p www wwww p mm dod m d mm d p #### p d e"),
    (byte_tokens(SMOLLM2_PATTERN, missing=(0x04, 0xF1)), "a\x04b\U00040000 7-2 = <<7-2=5>>5\n#### 5",
     [" ", "a", "b", r"\x80", r"\x80", r"\x80", *" 7-2 = <<7-2=5>>5\n#### 5", END],
     "p ww ppp p dod p m p mm dod m d mm d p #### p d e")])
def test_what_tokenizers_change_keeps_the_labels_in_place(enc, answer, pieces, letters):
    """Broken if labels come from row["answer"], which differs from the tokens' text: all slip."""
    tokens, labels = labels_of({"question": "?", "answer": answer}, enc)
    assert tokens == pieces and labels["class"] == spelled(letters)
