"""Grading: generated text in, verdict out. The gold answer comes from the data, never from tokens."""

import re
from decimal import Decimal

SIGN = "[-+\u2212]"  # U+2212 is the typographic minus
NUMBER = (r"(?<!\d)(?<!\d[.,/^:])"  # not the tail of a longer literal, such as the 2 of 1/2
          rf"(?:(?<![\w).]){SIGN}\$?|\${SIGN})?\$?"  # the minus of 10-3 is no sign
          r"(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,4})?"
          r"(?![ \t]*(?:[*/^][ \t]*|[-+:.,eE\u2212]*)\d)")  # not the head of one: 1/2, 1 000


def to_number(text):
    """The value of "$1,234.00", "18.", "50%", "-3" or "2e-06" as a Decimal; None if it is no number."""
    text = re.sub(r"[$,%\s]", "", text or "").replace("\u2212", "-").removesuffix(".")
    number = re.fullmatch(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d{1,4})?", text, re.ASCII)
    return Decimal(text) if number else None


def is_number(gold):
    """
    Whether a gold answer is a number that the grader also reads in an answer: "$1,234.00" is, but
    neither "1 000" nor "3, 5", with which no answer would be right.
    """
    written = re.fullmatch(rf"{NUMBER}[$,%.\s]*", gold, re.ASCII)
    return written is not None and to_number(gold) is not None


def grade(text, gold):
    """
    Generated text against the gold answer: a number, a letter A-Z, or yes or no (else ValueError);
    only answers of its kind are looked for. strict: the one right after the first "####" is right.
    flexible: the last one anywhere is right. parsed: there is one after "####". A missing answer is
    wrong; one that is written as the gold answer is always right.
    """
    gold = str(gold).strip()
    if is_number(gold):
        pattern, value = NUMBER, to_number
    elif re.fullmatch("[A-Z]", gold):
        pattern, value = r"\b[A-Z]\b", str
    elif gold.lower() in ("yes", "no"):
        pattern, value = r"(?i:\byes\b|\bno\b)", str.lower
    else:
        raise ValueError(f"the gold answer must be a number (1000 or 1,000), a letter A-Z, yes or no, got {gold!r:.60}")
    first = re.match(rf"\(?({pattern})", text.partition("####")[2].lstrip(), re.ASCII)
    every = re.findall(pattern, text, re.ASCII)
    return {"strict": first is not None and value(first[1]) == value(gold),
            "flexible": bool(every) and value(every[-1]) == value(gold),
            "parsed": first is not None}


def check_golds(rows):
    """ValueError, naming file and line, if a row's gold answer cannot be graded."""
    for i, row in enumerate(rows):
        try:
            grade("", row["final"])
        except ValueError as e:
            raise ValueError(f"{row.get('where', f'row {i}')}: {e}; --no-generate grades nothing, "
                             "it measures likelihood alone") from e
