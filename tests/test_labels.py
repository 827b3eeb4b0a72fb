"""Labels of tokens: by hand, by an independent parse, and where tokens cut characters or cross borders. No network."""

import re

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.labels import OPERATIONS, OPERATOR, classes, label_rows, operations, token_labels
from data import arithmetic, wordproblems
from data.tokens import END, QWEN3_PATTERN, SMOLLM2_PATTERN, encode_row, load_encoding

LETTERS = {"w": "word", "p": "punctuation", "d": "digit", "o": "operator", "m": "mark", "#": "####", "e": "end",
           "1": "first", "2": "second", "r": "result", "f": "final", "-": None}


@pytest.fixture(scope="module")
def enc():
    return load_encoding("wordproblems")


def labels_of(row, enc, suffix=()):
    """The row's answer tokens as texts, and its labels."""
    ids, n_prompt = encode_row(row, enc, suffix)
    texts = [enc.decode_single_token_bytes(i).decode("utf-8", "backslashreplace") for i in ids[n_prompt:]]
    return texts, token_labels(row, ids, n_prompt, enc)


def spelled(letters):
    return [LETTERS[c] for c in letters.replace(" ", "")]


def byte_tokens(pattern, missing=()):
    """A tokenizer that knows single bytes only, without those of `missing`."""
    ranks = {bytes([b]): i for i, b in enumerate(b for b in range(256) if b not in missing)}
    return tiktoken.Encoding("bytes", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END: len(ranks)})


# ---- by hand


def test_a_word_problem_by_hand(enc):
    """Broken if a label slips by a token, or if the second line of a two-line step loses it."""
    row = wordproblems.generate(60, 2, "train", ops=(3, 3))[5]
    assert row["template"] == "fair:have+packs+times_less"
    tokens, labels = labels_of(row, enc)
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
        "problem": ["fair"] * 64,
    }


@pytest.mark.parametrize("op, i, question, digits, subtasks", [
    ("add", 32, "4193+5855", "10048", "UC US US SC SA"),  # 3+5, 9+5 carries, 1+8+1 and 4+5+1 carry it on
    ("sub", 7, "4750-0752", "03998", "ME UB UD UD MB"),
])
def test_arithmetic_by_hand(enc, op, i, question, digits, subtasks):
    """Broken if a digit gets its neighbour's sub-task, or the tokens around the digits get one."""
    row = arithmetic.generate(40, 0, "train", digits=4, op=op, cascade=0.3)[i]
    assert row["question"] == question
    tokens, labels = labels_of(row, enc)
    assert tokens == [" ", "##", "##", " ", *digits, END]
    assert labels == {"class": spelled("p##p ddddd e"), "problem": [op] * 10,
                      "subtask": [None] * 4 + subtasks.split() + [None]}


def test_a_gsm8k_row_by_hand(enc):
    """Broken if the parts of a split character, a line of several operations or a line of none are labelled wrongly."""
    row = {"question": "?", "answer": "José paid 2*3 = $<<2*3=6>>6.\nMixed 6 x 2-1 = <<6*2-1=11>>11.\nSo, 11\n#### 11"}
    tokens, labels = labels_of(row, enc)
    lines = [
        (r" |J|os|\xc3|\xa9| p|aid| |2|*|3| = |$|<|<|2|*|3|=|6|>>|6|.NL",
         "p w w w w w w p d o d m p m m d o d m d m d p", "mul"),
        ("M|i|x|ed| |6| |x| |2|-|1| = <<|6|*|2|-|1|=|1|1|>>|1|1|.NL",
         "w w w w p d p o p d o d m d o d o d m d d m d d p", "mixed"),
        ("S|o|,| |1|1|NL", "w w p p d d p", None),
        ("##|##| |1|1|END", "# # p d d e", None),
    ]
    joined = [t.replace("NL", "\n").replace("END", END) for texts, *_ in lines for t in texts.split("|")]
    assert tokens == joined
    assert labels == {"class": [y for _, letters, _ in lines for y in spelled(letters)],
                      "operation": [op for texts, _, op in lines for _ in texts.split("|")]}


def test_operators_and_operations_by_hand():
    """Broken if a hyphen, a slash in "km/h" or an x in a word counts as an operator, or one next to a $ does not."""
    text = "10 - 3, $4-$3, 5 x 3, 2x.5, 1/2, (4)/2, 50%*2, 9 + $1, Y + 3, -5, two-day, km/h, box 5, x = 5"
    found = [match.start() for match in OPERATOR.finditer(text)]
    assert [text[i] for i in found] == list("--xx//*++-") and [classes(text)[i] for i in found] == ["operator"] * 10
    lines = {"a <<1+2=3>>3": "add", "<<1+2+3=6>> <<6+1=7>>": "add", "<<1+2=3>> <<3*2=6>>": "mixed", "<<5=5>>5": None,
             "1+2=3": None, "<<8//2=4>>": "div", "<<7-(2-1)=6>>": "sub", "<<6/2=.5*6=3>>": "mixed", "": None}
    for line, operation in lines.items():
        assert operations("x\n" + line + "\ny") == [None] * 2 + [operation] * len(line + "\n") + [None]
    assert set(OPERATIONS.values()) == {"add", "sub", "mul", "div"}


# ---- against an independent parse


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


@pytest.mark.parametrize("split, n", [("train", 300), ("test_templates", 60)])
def test_spans_and_token_labels_agree_with_a_parse(enc, split, n):
    """Broken if generate() misplaces a span, or a token is judged by another character than its first non-space."""
    for row in wordproblems.generate(n, 5, split, ops=(1, 6)):
        spans = parsed(row)
        assert row["spans"] == spans
        ids, n_prompt = encode_row(row, enc)
        labels, (text, starts) = token_labels(row, ids, n_prompt, enc), enc.decode_with_offsets(ids[n_prompt:-1])
        for kind, labelled in spans.items():
            for i, (start, end) in enumerate(zip(starts, starts[1:] + [len(text)])):
                piece = text[start:end]
                place = start + re.search(r"\S|^\s+$", piece).start() - 1  # the text has a space before the answer
                expected = [y for a, b, y in labelled if a <= place < b]
                assert labels[kind][i] == (expected[0] if expected else None), (row, piece)
            assert labels[kind][-1] is None


# ---- what tokenizers do to text


def test_composed_accents_keep_the_labels_in_place():
    """Broken if labels come from row["answer"], whose accents Qwen3 composes: all after the first would slip."""
    enc = byte_tokens(QWEN3_PATTERN)
    row = {"question": "?", "answer": "Jose\u0301e\u0301 <<1+2=3>>3\n#### 3"}
    tokens, labels = labels_of(row, enc)
    assert tokens == [" ", *"Jos", r"\xc3", r"\xa9", r"\xc3", r"\xa9", *" <<1+2=3>>3\n#### 3", END]
    assert labels["class"] == spelled("p www wwww p mm dod m d mm d p #### p d e")
    assert labels["operation"] == ["add"] * 20 + [None] * 7


def test_dropped_bytes_keep_the_labels_in_place():
    """Broken if labels count characters that SmolLM2's vocabulary cannot spell, whole (\\x04) or in part (\\xf1)."""
    enc = byte_tokens(SMOLLM2_PATTERN, missing=(0x04, 0xF1))
    row = {"question": "?", "answer": "a\x04b\U00040000 7-2 = <<7-2=5>>5\n#### 5"}
    tokens, labels = labels_of(row, enc)
    assert tokens == [" ", "a", "b", r"\x80", r"\x80", r"\x80", *" 7-2 = <<7-2=5>>5\n#### 5", END]
    assert labels["class"] == spelled("p ww ppp p dod p m p mm dod m d mm d p #### p d e")
    assert labels["operation"] == ["sub"] * 24 + [None] * 7


def test_a_token_of_spaces_belongs_where_it_starts():
    """Broken if the newlines that end a line of a calculation count for the line after."""
    ranks = {bytes([b]): b for b in range(256)} | {b"\n\n": 256}
    enc = tiktoken.Encoding("two", pat_str=SMOLLM2_PATTERN, mergeable_ranks=ranks, special_tokens={END: 257})
    tokens, labels = labels_of({"question": "?", "answer": "<<1+2=3>>\n\n\n#### 3"}, enc)
    assert tokens == [" ", *"<<1+2=3>>", "\n\n", *"\n#### 3", END]
    assert labels["operation"] == ["add"] * 11 + [None] * 8


BYTES = byte_tokens(SMOLLM2_PATTERN)


@settings(max_examples=100, deadline=None)
@given(st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" .\n#<>=+-0é東🙂\u0301"))))
def test_every_byte_has_the_class_of_its_character(answer):
    """Broken if some text, however odd, moves the labels: here one token is one byte."""
    row = {"question": "?", "answer": answer}
    labels = labels_of(row, BYTES)[1]
    expected = [y for c, y in zip(" " + answer, classes(" " + answer)) for _ in c.encode()]
    assert labels["class"] == expected + ["end"]


# ---- rows


def test_a_suffix_of_the_prompt_moves_nothing(enc):
    """Broken if pause tokens, which end the prompt, are taken for the answer's first tokens."""
    row = wordproblems.generate(1, 0, "test")[0]
    assert labels_of(row, enc, suffix=[enc.n_vocab] * 8) == labels_of(row, enc)


def test_another_rows_tokens_are_refused(enc):
    """Broken if rows and tokens that got out of step end in a table of wrong labels."""
    one, other = wordproblems.generate(2, 0, "test")
    ids, n_prompt = encode_row(other, enc)
    with pytest.raises(ValueError, match=r"the ids spell ' .*, the row's answer is ' "):
        token_labels(one, ids, n_prompt, enc)
    one, other = arithmetic.generate(2, 0, "test")
    with pytest.raises(ValueError, match="the row's answer is ' #### "):
        token_labels(one, *encode_row(other, enc), enc)


def test_label_rows_collects_and_leaves_out_empty_kinds(enc):
    """Broken if a row that lacks a kind ends in an error or a shorter list, or if QA gets a table of operations."""
    qa = {"question": "?", "answer": "#### B"}
    rows = [qa, *arithmetic.generate(1, 0, "test"), qa]
    items = [encode_row(row, enc) for row in rows]
    found = label_rows(rows, items, enc)
    lengths = [len(ids) - n_prompt for ids, n_prompt in items]
    assert list(found) == ["class", "problem", "subtask"]
    assert all([len(labels) for labels in kind] == lengths for kind in found.values())
    assert set(found["subtask"][0] + found["subtask"][2]) == {None} and set(found["problem"][1]) == set(rows[1]["ops"])
    with pytest.raises(ValueError):
        label_rows(rows, items[:2], enc)
