"""
JSON files that others wrote, read with errors that say where and why: "train.jsonl:7: 'answer' is
missing".

Files are UTF-8 whatever the locale, with or without a byte-order mark, with either line ending.
"""

import json

NAMES = {
    str: "a string",
    int: "an integer",
    bool: "true or false",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


def parse(content, kind, path, line=None):
    """The dict or list (kind) in `content`, the bytes of a JSON file or of one line of it."""
    where = path if line is None else f"{path}:{line}"
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text: {error}") from None
    except json.JSONDecodeError as error:
        where = f"{path}:{line or error.lineno}"
        reason = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        raise ValueError(f"{where}: not JSON: {reason}") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; nested too deeply
        raise ValueError(f"{where}: this JSON cannot be read: {error}") from None
    if not isinstance(value, kind):
        raise ValueError(f"{where}: expected {NAMES[kind]}, got {value!r:.60}")
    return value


def read_json(path, kind=dict):
    """The JSON value of this kind that a file holds."""
    with open(path, "rb") as f:
        return parse(f.read(), kind, path)


def read_jsonl(path):
    """("FILE:LINE", object) of every line that is not blank."""
    with open(path, "rb") as f:
        for number, line in enumerate(f, 1):
            if line.strip():
                yield f"{path}:{number}", parse(line, dict, path, number)


def field(item, key, *kinds):
    """item[key], which must be there and of exactly one of these types (true is no integer)."""
    if not isinstance(item, dict):
        raise ValueError(f"expected an object, got {item!r:.60}")
    if key not in item:
        raise ValueError(f"{key!r} is missing")
    if type(item[key]) not in kinds:
        expected = " or ".join(NAMES[kind] for kind in kinds)
        raise ValueError(f"{key!r} must be {expected}, got {item[key]!r:.60}")
    return item[key]


def texts_field(item, key):
    """item[key], which must be a list of strings."""
    values = field(item, key, list)
    for value in values:
        if not isinstance(value, str):
            raise ValueError(f"{key!r} must be strings, got {value!r:.60}")
    return values


def text_field(item, key):
    """item[key], stripped; it must be a string with more than white space."""
    value = field(item, key, str).strip()
    if not value:
        raise ValueError(f"{key!r} must not be empty")
    return value


def to_row(convert, item, where):
    """convert(item), a row or None, with "where" it is from; convert's ValueErrors say it, too."""
    try:
        row = convert(item)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return {**row, "where": where} if row else None
