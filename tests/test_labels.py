"""Labels of tokens: by hand, by an independent parse, and where tokens cut characters. No network."""

import re

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.labels import OPERATOR, classes, label_rows, token_labels
from data import arithmetic, wordproblems
from data.tokens import END, QWEN3_PATTERN, SMOLLM2_PATTERN, encode_row, load_encoding

LETTERS = {"w": "word", "p": "punctuation", "d": "digit", "o": "operator", "m": "mark", "#": "####", "e": "end",
           "1": "first", "2": "second", "r": "result", "f": "final", "-": None}
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
    return tiktoken.Encoding("bytes", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END: len(ranks)})


def test_a_word_problem_by_hand():
    """Broken if a label slips by a token, or if the second line of a two-line step loses it."""
    row = wordproblems.generate(60, 2, "train", ops=(3, 3))[5]
    assert row["template"] == "fair:have+packs+times_less"
    tokens, labels = labels_of(row)
    # " = <<" is one token (its first character that is no space is "="), so is ".\n####"
    lines = [
        (" The| packs| had| |1|1|*|3| = <<|1|1|*|3|=|3|3|>>|3|3| tickets|.\n",
         "w w w p d d o d m d d o d m d d m d d w p",
         "- - - - 1 1 - 2 - 1 1 - 2 - r r - r r - -", "mul", "packs"),
        ("Zoe| had| |3|0|+|3|3| = <<|3|0|+|3|3|=|6|3|>>|6|3| tickets|.\n",
         "w w p d d o d d m d d o d d m d d m d d w p",
         "- - - 1 1 - 2 2 - 1 1 - 2 2 - r r - r r - -", "add", "packs"),
        ("Sara| had| |6|3|/|9| = <<|6|3|/|9|=|7|>>|7| tickets|.\n####",
         "w w p d d o d m d d o d m d m d w p",
         "- - - 1 1 - 2 - 1 1 - 2 - r - r - -", "div", "times_less"),
        (" |7|<|endoftext|>".replace("<|endoftext|>", "END"), "p d e", "- f -", None, None),
    ]
    assert tokens == [t.replace("END", END) for texts, *_ in lines for t in texts.split("|")]
    assert labels == {
        "class": [y for _, letters, *_ in lines for y in spelled(letters)],
        "operand": [y for _, _, letters, *_ in lines for y in spelled(letters)],
        "operation": [op for texts, *_, op, _ in lines for _ in texts.split("|")],
        "step": [step for texts, *_, step in lines for _ in texts.split("|")],
    }


@pytest.mark.parametrize("op, i, question, digits, subtasks", [
    ("add", 32, "4193+5855", "10048", "UC US US SC SA"),  # 3+5, 9+5 carries, 1+8+1 and 4+5+1 carry it on
    ("sub", 7, "4750-0752", "03998", "ME UB UD UD MB"),
])
def test_arithmetic_by_hand(op, i, question, digits, subtasks):
    """Broken if a digit gets its neighbour's sub-task, or the tokens around the digits get one."""
    row = arithmetic.generate(40, 0, "train", digits=4, op=op, cascade=0.3)[i]
    assert row["question"] == question
    tokens, labels = labels_of(row)
    assert tokens == [" ", "##", "##", " ", *digits, END]
    assert labels == {"class": spelled("p##p ddddd e"), "subtask": [None] * 4 + subtasks.split() + [None]}
    items = [encode_row(row, ENC)] * 2
    assert label_rows([row] * 2, items, ENC) == {kind: [own] * 2 for kind, own in labels.items()}


def test_operators_by_hand():
    """Broken if a hyphen, a slash in "km/h" or an x in a word counts as an operator, or one next to a $ does not."""
    text = "10 - 3, $4-$3, 5 x 3, 2x.5, 1/2, (4)/2, 50%*2, 9 + $1, Y + 3, -5, two-day, km/h, box 5, x = 5"
    found = [match.start() for match in OPERATOR.finditer(text)]
    assert [text[i] for i in found] == list("--xx//*++-") and [classes(text)[i] for i in found] == ["operator"] * 10


def parsed(row):
    """The spans of a word problem, found again in its text."""
    kinds = {name: kind for kind, templates in wordproblems.ALL.items() for name, *_ in templates}
    names = row["template"].split(":")[1].split("+")
    steps = [name for name in names for _ in range({"start": 0, "update_two": 2}.get(kinds[name], 1))]
    spans = {"operation": [], "operand": [], "step": []}
    for match, step in zip(re.finditer(r".*\n", row["answer"]), steps, strict=True):
        found = re.search(r"(\d+)([-+*/])(\d+) = <<(\d+)\2(\d+)=(\d+)>>(\d+)", match[0])
        spans["operation"].append([*match.span(), {"+": "add", "-": "sub", "*": "mul", "/": "div"}[found[2]]])
        spans["step"].append([*match.span(), step])
        for group, operand in zip((1, 3, 4, 5, 6, 7), "first second first second result result".split()):
            spans["operand"].append([match.start() + i for i in found.span(group)] + [operand])
    spans["operand"].append([*re.search(r"(?<=#### )\d+$", row["answer"]).span(), "final"])
    return spans


@pytest.mark.parametrize("split, n", [("train", 200), ("test_templates", 60)])
def test_spans_and_token_labels_agree_with_a_parse(split, n):
    """Broken if generate() misplaces a span, or a token is judged by another character than its first non-space."""
    for row in wordproblems.generate(n, 5, split, ops=(1, 6)):
        spans = parsed(row)
        assert row["spans"] == spans
        ids, n_prompt = encode_row(row, ENC)
        labels, (text, starts) = token_labels(row, ids, n_prompt, ENC), ENC.decode_with_offsets(ids[n_prompt:-1])
        for kind, labelled in spans.items():
            for i, (start, end) in enumerate(zip(starts, starts[1:] + [len(text)])):
                piece = text[start:end]
                place = start + re.search(r"\S|^\s+$", piece).start() - 1  # the text has a space before the answer
                expected = [y for a, b, y in labelled if a <= place < b]
                assert labels[kind][i] == (expected[0] if expected else None), (row, piece)
            assert labels[kind][-1] is None


@pytest.mark.parametrize("enc, answer, pieces, letters", [
    # Qwen3 composes accents; SmolLM2's vocabulary cannot spell \x04 and a byte of \U00040000
    (byte_tokens(QWEN3_PATTERN), "Jose\u0301e\u0301 <<1+2=3>>3\n#### 3",
     [" ", *"Jos", r"\xc3", r"\xa9", r"\xc3", r"\xa9", *" <<1+2=3>>3\n#### 3", END],
     "p www wwww p mm dod m d mm d p #### p d e"),
    (byte_tokens(SMOLLM2_PATTERN, missing=(0x04, 0xF1)), "a\x04b\U00040000 7-2 = <<7-2=5>>5\n#### 5",
     [" ", "a", "b", r"\x80", r"\x80", r"\x80", *" 7-2 = <<7-2=5>>5\n#### 5", END],
     "p ww ppp p dod p m p mm dod m d mm d p #### p d e")])
def test_what_tokenizers_change_keeps_the_labels_in_place(enc, answer, pieces, letters):
    """Broken if labels come from row["answer"], from which the tokens' text differs: all after it would slip."""
    tokens, labels = labels_of({"question": "?", "answer": answer}, enc)
    assert tokens == pieces and labels["class"] == spelled(letters)


BYTES = byte_tokens(SMOLLM2_PATTERN)


@settings(max_examples=100, deadline=None)
@given(st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" .\n#<>=+-0é東🙂\u0301"))))
def test_every_byte_has_the_class_of_its_character(answer):
    """Broken if some text, however odd, moves the labels: here one token is one byte."""
    labels = labels_of({"question": "?", "answer": answer}, BYTES)[1]
    expected = [y for c, y in zip(" " + answer, classes(" " + answer)) for _ in c.encode()]
    assert labels["class"] == expected + ["end"]
