"""
What every answer token belongs to: its class, and the operation, operand, step or sub-task at hand.

The class is read off the characters. The others are known by construction: word problems and
arithmetic bring them along (`spans`; `labels` and `offsets`), other data has none.

A token takes the label under its first character that is no space, or under its first if all are:
" ####" is "####", ".\\n####" is the punctuation that ends the line. Labels are looked up in the text
that the tokens spell, byte by byte, not in row["answer"]: the two differ where a tokenizer composes
accents (Qwen3) or drops bytes (SmolLM2). All parts of a split character have that character's label.
"""

import re
import unicodedata

# The minus of 10-3, the slash of 1/2, the x of "5 x 3"; not those of two-thirds, km/h and "box 3".
OPERATOR = re.compile(r"[+*×÷−]|(?<=[ \d)%/])[-/x](?=[ $(]{0,3}\.?\d)")


def classes(text):
    """
    The class of every character: digit, operator, word, mark (<< >> =), #### or punctuation, which
    includes spaces.
    """
    known = {"N": "digit", "L": "word", "M": "word"}  # first letters of Unicode's categories
    found = [known.get(unicodedata.category(c)[0], "punctuation") for c in text]
    for name, pattern in (("####", "####"), ("mark", "<<|>>|="), ("operator", OPERATOR)):
        for match in re.finditer(pattern, text):
            found[match.start() : match.end()] = [name] * len(match[0])
    return found


def token_labels(row, ids, n_prompt, enc):
    """
    {kind: [label or None for each of ids[n_prompt:]]}: the answer and the end token.

        class      see `classes`; the last token is "end"
        operation  of a word problem's line: add, sub, mul, div
        operand    first, second, result, final: numbers of word problems
        step       the template that a line of a word problem calculates
        subtask    of a digit of an arithmetic row, see data/arithmetic.py

    A kind that the row says nothing about is absent.
    """
    pieces = [enc.decode_single_token_bytes(i) for i in ids[n_prompt:-1]]
    # Half a character becomes one character ("surrogateescape") for each of its bytes.
    text = b"".join(pieces).decode("utf-8", "surrogateescape")
    char_of_byte = [i for i, c in enumerate(text) for _ in c.encode("utf-8", "surrogateescape")]
    judged_by, start = [], 0  # of each token, the character whose label it takes
    for piece in pieces:
        own = char_of_byte[start : start + len(piece)]
        judged_by.append(next((i for i in own if not text[i].isspace()), own[0]))
        start += len(piece)

    of_char = {"class": classes(text)}
    spans = row.get("spans", {})
    if "offsets" in row:
        spans = {"subtask": [[i, i + 1, y] for i, y in zip(row["offsets"], row["labels"])]}
    for kind, labelled in spans.items():
        of_char[kind] = [None] * len(text)
        for first, last, label in labelled:  # in row["answer"], which stands after one space
            of_char[kind][first + 1 : last + 1] = [label] * (last - first)

    found = {kind: [labels[i] for i in judged_by] + [None] for kind, labels in of_char.items()}
    found["class"][-1] = "end"
    return found


def label_rows(rows, items, enc):
    """
    token_labels of all rows of a task, whose tokens are items (ids, n_prompt): {kind: [labels of row 0,
    of row 1, ...]}.
    """
    each = [token_labels(row, ids, n_prompt, enc) for row, (ids, n_prompt) in zip(rows, items)]
    return {kind: [labels[kind] for labels in each] for kind in each[0]}
