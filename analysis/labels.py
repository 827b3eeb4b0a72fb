"""
What every supervised token belongs to: its class, the operation, operand and step at hand, the problem, the sub-task.

Word problems and arithmetic bring these labels along (`spans`, `labels` and `offsets` of their rows, known by
construction). GSM8K does not: there the class is read off the characters, and the operation off the calculator
annotation <<48/2=24>> of the line.

A token takes the label under its first character that is no space, or under its first if all are: " ####" is "####",
".\\n####" is the punctuation that ends the line. Labels are looked up in the text that the tokens spell, byte by byte,
not in row["answer"]: they differ where a tokenizer composes accents (Qwen3) or drops bytes (SmolLM2). A token that
starts inside a character takes that character's label; so every part of a split character has the same.
"""

import re
import unicodedata

KINDS = ("class", "operation", "operand", "step", "problem", "subtask")
# The minus of 10-3, the slash of 1/2 and the x of "5 x 3", but not those of "two-thirds", "km/h" and "box 3".
OPERATOR = re.compile(r"[+*×÷−]|(?<=[ \d)%/])[-/x](?=[ $(]{0,3}\.?\d)")
OPERATIONS = {"+": "add", "-": "sub", "−": "sub", "*": "mul", "x": "mul", "×": "mul", "/": "div", "÷": "div"}


def classes(text):
    """The class of every character: digit, operator, word, mark (<< >> =), #### or punctuation (spaces, too)."""
    known = {"N": "digit", "L": "word", "M": "word"}  # first letters of Unicode's categories
    found = [known.get(unicodedata.category(c)[0], "punctuation") for c in text]
    for name, pattern in (("####", "####"), ("mark", "<<|>>|="), ("operator", OPERATOR)):
        for match in re.finditer(pattern, text):
            found[match.start() : match.end()] = [name] * len(match[0])
    return found


def operations(text):
    """The operation of every character, that of its line's annotations: add, sub, mul, div, mixed or None."""
    found = []
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        signs = {OPERATIONS[s] for left in re.findall(r"<<([^<>]*)=[^<>=]*>>", line) for s in OPERATOR.findall(left)}
        found += [None if not signs else signs.pop() if len(signs) == 1 else "mixed"] * len(line)
    return found


def token_labels(row, ids, n_prompt, enc):
    """
    {kind: [label or None for each of ids[n_prompt:]]}: the answer and the end token, as encode_row gives them.

        class: digit, operator (see OPERATOR), word, mark (<< >> =), ####, end, or punctuation, which
            includes spaces.
        operation: add, sub, mul, div (for GSM8K also mixed: several kinds in one line); None outside such lines.
        operand: first, second, result, final; None for all but numbers. Word problems only, as is
        step: the template that the line calculates.
        problem: the template's frame of a word problem, the operation of an arithmetic row; the end token has it, too.
        subtask: of an arithmetic row's digits (see data/arithmetic.py).

    A kind that the row says nothing about is absent. Raises ValueError if a row that has spans or offsets is not what
    the ids spell.
    """
    pieces = [enc.decode_single_token_bytes(i) for i in ids[n_prompt:-1]]
    text = b"".join(pieces).decode("utf-8", "surrogateescape")  # half a character is one character for each byte
    char = [i for i, c in enumerate(text) for _ in c.encode("utf-8", "surrogateescape")]  # of each byte
    places, at = [], 0  # of each token, the character that it is judged by
    for piece in pieces:
        own = char[at : at + len(piece)]
        places.append(next((i for i in own if not text[i].isspace()), own[0]))
        at += len(piece)

    kinds = {"class": classes(text)}
    if "spans" in row or "offsets" in row:
        if text != " " + row["answer"]:
            raise ValueError(f"the ids spell {text!r:.200}, the row's answer is {' ' + row['answer']!r:.200}")
        spans = row.get("spans") or {"subtask": [[i, i + 1, y] for i, y in zip(row["offsets"], row["labels"])]}
        for kind, labelled in spans.items():
            kinds[kind] = [None] * len(text)
            for start, end, label in labelled:
                kinds[kind][start + 1 : end + 1] = [label] * (end - start)  # after the space
        problem = row["template"].split(":")[0] if "spans" in row else row["ops"][0]
    else:
        kinds["operation"], problem = operations(text), None
    found = {kind: [labels[i] for i in places] + [None] for kind, labels in kinds.items()}
    found["class"][-1] = "end"
    if problem:
        found["problem"] = [problem] * (len(places) + 1)
    return found


def label_rows(rows, items, enc):
    """
    token_labels of many rows, items being their (ids, n_prompt): {kind: [labels of row 0, of row 1, ...]}. A kind that
    labels no token of any row is left out; rows that lack it have None for each token.
    """
    each = [token_labels(row, ids, n_prompt, enc) for row, (ids, n_prompt) in zip(rows, items, strict=True)]
    found = {kind: [labels.get(kind, [None] * len(labels["class"])) for labels in each] for kind in KINDS}
    return {kind: rows for kind, rows in found.items() if any(y is not None for labels in rows for y in labels)}
