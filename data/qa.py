"""
ScienceQA, StrategyQA and CommonsenseQA from local copies of the published files. Nothing is downloaded.

    load("scienceqa", "DIR", "train")     # rows: question, answer ("... #### B"), final ("B")

    name                 files read in the folder                 rows of train / val / test
    scienceqa            problems.json, pid_splits.json           the published splits
    strategyqa           strategyqa_train.json                    carved from train: 70 % / 10 % / 20 %
    strategyqa_filtered  strategyqa_train_filtered.json           the same, on the 2,821 questions that the authors
                                                                  left out because their solvers answered them
    commonsenseqa        train_rand_split.jsonl                   90 % / carved from train: 10 % / -
                         dev_rand_split.jsonl                     - / - / all

The published test sets of the last two have no answers, so results on `test` are not those of a leaderboard. Which rows
are carved is decided by a hash of the question (wordproblems.side): whatever the order or number of rows, a row keeps
its split, and two rows with the same question (numbers aside) are on the same side.

Not checked: the published files could not be opened here, their layouts (and the 2,821) are written down from memory.
Least sure are that a problem without image has "image": null, and whether the filtered questions come with facts.
"""

import json
import os
import re
import sys

from data.wordproblems import side

SPLITS = ("train", "val", "test")
JSON_NAMES = {str: "a string", int: "an integer", bool: "true or false", list: "an array", dict: "an object"}
JSON_NAMES[type(None)] = "null"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PUBLISHED = {
    "scienceqa": "https://github.com/lupantech/ScienceQA, folder data/scienceqa",
    "strategyqa": "https://allenai.org/data/strategyqa, in strategyqa_dataset.zip",
    "strategyqa_filtered": "https://allenai.org/data/strategyqa, in strategyqa_dataset.zip",
    "commonsenseqa": "https://www.tau-nlp.org/commonsenseqa",
}


def _clean(text):
    """The text without what would be taken for the mark of the final answer: "####" becomes "# ###"."""
    return re.sub("#(?=###)", "# ", text.strip())


def _field(row, key, *kinds):
    """row[key], which must be there and exactly of one of these types (so true is no integer)."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {row!r:.60}")
    if key not in row:
        raise ValueError(f"{key!r} is missing")
    if type(row[key]) not in kinds:
        raise ValueError(f"{key!r} must be {' or '.join(JSON_NAMES[kind] for kind in kinds)}, got {row[key]!r:.60}")
    return row[key]


def _text(row, key):
    text = _clean(_field(row, key, str))
    if not text:
        raise ValueError(f"{key!r} must not be empty")
    return text


def _strings(row, key):
    texts = _field(row, key, list)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{key!r} must be an array of strings, got {texts!r:.60}")
    return [_clean(text) for text in texts]


def _multiple_choice(question, choices):
    """question, then "(A) first" and so on, one choice a line."""
    if not 2 <= len(choices) <= len(LETTERS) or "" in choices:
        raise ValueError(f"'choices' must be 2 to {len(LETTERS)} and none of them empty, got {choices!r:.60}")
    return "\n".join([question] + [f"({c}) {' '.join(text.split())}" for c, text in zip(LETTERS, choices)])


def _row(question, explanation, final):
    return {"question": question, "answer": f"{explanation.strip()}\n#### {final}".lstrip(), "final": final}


def scienceqa_row(problem):
    """
    One value of problems.json as a row, or None if it has an image, which a text model cannot see.

    Taken: question, choices (list of str), answer (int, index into choices), hint (str, maybe empty: the passage that a
    question may be about, put before it), image (file name or null), solution (str, maybe empty: the explanation). Not
    taken: task, grade, subject, topic, category, skill, lecture, split.
    """
    if _field(problem, "image", str, type(None)):
        return None
    hint, question = _clean(_field(problem, "hint", str)), _text(problem, "question")
    choices, answer = _strings(problem, "choices"), _field(problem, "answer", int)
    prompt = _multiple_choice(f"{hint}\n{question}".lstrip(), choices)
    if not 0 <= answer < len(choices):
        raise ValueError(f"'answer' must be an index into the {len(choices)} choices, got {answer}")
    return _row(prompt, _clean(_field(problem, "solution", str)), LETTERS[answer])


def strategyqa_row(item):
    """
    One item of strategyqa_train.json as a row.

    Taken: question, answer (bool), facts (list of str; may be absent). Not taken: qid, term, description,
    decomposition, evidence.
    """
    question, answer = _text(item, "question"), _field(item, "answer", bool)
    facts = _strings(item, "facts") if "facts" in item else []
    return _row(question, " ".join(facts), "yes" if answer else "no")


def commonsenseqa_row(item):
    """
    One line of {train,dev}_rand_split.jsonl as a row.

    Taken: answerKey, question.stem, question.choices (list of {label, text}, labelled A, B, C, ... in this order). Not
    taken: id, question.question_concept.
    """
    question = _field(item, "question", dict)
    choices = _field(question, "choices", list)
    labels, texts = [_text(c, "label") for c in choices], [_text(c, "text") for c in choices]
    prompt = _multiple_choice(_text(question, "stem"), texts)
    if labels != list(LETTERS[: len(labels)]):
        raise ValueError(f"the labels of 'choices' must be A, B, C, ... in this order, got {', '.join(labels)}")
    answer = _text(item, "answerKey")
    if answer not in labels:
        raise ValueError(f"'answerKey' must be one of {', '.join(labels)}, got {answer!r}")
    return _row(prompt, "", answer)


def _read(path, name):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist: {name} is published at {PUBLISHED[name]}")
    try:
        with open(path, encoding="utf-8") as f:
            return f.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8: {error}") from None


def _parse(text, kind, place):
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{place}: expected JSON: {error}") from None
    if not isinstance(value, kind):
        raise ValueError(f"{place}: expected {JSON_NAMES[kind]}, got {value!r:.60}")
    return value


def _convert(to_row, item, place):
    try:
        return to_row(item)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _scienceqa(folder, split):
    path, splits_path = os.path.join(folder, "problems.json"), os.path.join(folder, "pid_splits.json")
    problems = _parse(_read(path, "scienceqa"), dict, path)
    splits = _parse(_read(splits_path, "scienceqa"), dict, splits_path)
    rows = []
    for pid in _convert(lambda item: _strings(item, split), splits, splits_path):
        if pid not in problems:
            raise ValueError(f"{splits_path}, {split!r}: expected ids of problems.json, {pid!r} is none")
        rows.append(_convert(scienceqa_row, problems[pid], f"{path}, problem {pid!r}"))
    if None in rows:
        print(f"scienceqa/{split}: {rows.count(None)} of {len(rows)} rows have an image: left out", file=sys.stderr)
    return [row for row in rows if row is not None]


def _strategyqa(name, folder, split):
    path = os.path.join(folder, name.replace("strategyqa", "strategyqa_train") + ".json")
    items = _parse(_read(path, name), list, path)
    rows = [_convert(strategyqa_row, item, f"{path}, item {i}") for i, item in enumerate(items)]
    return [row for row in rows if side(row["question"]) == split]


def _commonsenseqa(folder, split):
    path = os.path.join(folder, "dev_rand_split.jsonl" if split == "test" else "train_rand_split.jsonl")
    rows = []
    for number, line in enumerate(_read(path, "commonsenseqa").removesuffix("\n").split("\n"), 1):
        place = f"{path}, line {number}"
        item = _parse(line, dict, place)
        row = _convert(commonsenseqa_row, item, place)
        if split == "test" or (split == "val") == (side(item["question"]["stem"]) == "val"):
            rows.append(row)
    return rows


def load(name, folder, split):
    """
    The rows of a split, in the file's order: dicts with question, answer (its last line is "#### " + final) and final.

    Args:
        name: "scienceqa", "strategyqa", "strategyqa_filtered" or "commonsenseqa".
        folder: where its published files are.
        split: "train", "val" or "test".

    final is the letter of the right choice, "yes" or "no" for StrategyQA. Rows of ScienceQA with an image are left out,
    and their number is printed on stderr. "####" in the sources becomes "# ###".

    Raises ValueError for an unknown name or split, a malformed file or row (naming it), and when no row is left;
    FileNotFoundError for a missing file (saying where it is published).
    """
    if name not in PUBLISHED:
        raise ValueError(f"data set {name!r} is none of {', '.join(PUBLISHED)}")
    if split not in SPLITS:
        raise ValueError(f"split {split!r} of {name} is none of {', '.join(SPLITS)}")
    if name == "scienceqa":
        rows = _scienceqa(folder, split)
    elif name == "commonsenseqa":
        rows = _commonsenseqa(folder, split)
    else:
        rows = _strategyqa(name, folder, split)
    if not rows:
        raise ValueError(f"{name} in {folder} has no rows for {split}")
    return rows
