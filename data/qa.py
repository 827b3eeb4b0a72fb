"""
ScienceQA, StrategyQA and CommonsenseQA from local copies of the published files; no download.

    python data/qa.py                     # says which files to get, and where to put them
    load("scienceqa", "DIR", "train")     # rows: question, answer ("... #### B"), final ("B")

    name                 files read in the folder          rows of train / val / test
    scienceqa            problems.json, pid_splits.json    the published splits (1)
    strategyqa           strategyqa_train.json             2,290, carved: 70 % / 10 % / 20 %
    strategyqa_filtered  strategyqa_train_filtered.json    2,821 (2), carved the same way
    commonsenseqa        train_rand_split.jsonl            9,741, carved: 90 % / 10 % / -
                         dev_rand_split.jsonl              1,221, all of them test

(1) without the rows that have an image  (2) questions, without facts, that the authors left out
because their solvers answered them

The published test sets of the last two have no answers, so results on `test` are not those of a
leaderboard. Which rows are carved is decided by a hash of the question (wordproblems.side):
whatever the order or number of rows, a row keeps its split, and two rows with the same question
(numbers aside) are on the same side.
"""

import argparse
import os
import re
import sys
from pathlib import Path

if __name__ == "__main__":  # a script's own folder is on the path, the repository's root is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data.files import field, read_json, read_jsonl, text_field, texts_field, to_row
from data.wordproblems import side

SPLITS = ("train", "val", "test")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PUBLISHED = {
    "scienceqa": "https://github.com/lupantech/ScienceQA, folder data/scienceqa",
    "strategyqa": "https://allenai.org/data/strategyqa, in strategyqa_dataset.zip",
    "strategyqa_filtered": "https://allenai.org/data/strategyqa, in strategyqa_dataset.zip",
    "commonsenseqa": "https://www.tau-nlp.org/commonsenseqa",
}


def load(name, folder, split):
    """
    The rows of a split, in the file's order: dicts with question, answer (its last line is
    "#### " + final), final and where (the place in the file).

    Args:
        name: "scienceqa", "strategyqa", "strategyqa_filtered" or "commonsenseqa".
        folder: where its published files are.
        split: "train", "val" or "test".

    final is the letter of the right choice, "yes" or "no" for StrategyQA. Rows of ScienceQA with an
    image are left out, and their number is printed on stderr. "####" in the sources becomes "#
    ###".

    Raises ValueError for an unknown name or split, a malformed file or row (naming it), and when no
    row is left; FileNotFoundError for a missing file (saying where it is published).
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


# --------------------------------------------------------------------------------------------------
# Files to rows.


def _path(name, folder, file):
    path = os.path.join(folder, file)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist: {name} is published at {PUBLISHED[name]}")
    return path


def _scienceqa(folder, split):
    path = _path("scienceqa", folder, "problems.json")
    splits_path = _path("scienceqa", folder, "pid_splits.json")
    problems, splits = read_json(path), read_json(splits_path)
    rows = []
    try:
        pids = texts_field(splits, split)
    except ValueError as error:
        raise ValueError(f"{splits_path}: {error}") from None
    for pid in pids:
        if pid not in problems:
            raise ValueError(f"{splits_path}, {split!r}: {pid!r} is no id of problems.json")
        rows.append(to_row(scienceqa_row, problems[pid], f"{path}, problem {pid!r}"))
    seen = [row for row in rows if row is not None]
    images = len(rows) - len(seen)
    if images:
        message = f"scienceqa/{split}: {images} of {len(rows)} rows have an image: left out"
        print(message, file=sys.stderr)
    return seen


def _strategyqa(name, folder, split):
    path = _path(name, folder, name.replace("strategyqa", "strategyqa_train") + ".json")
    items = read_json(path, list)
    rows = [to_row(strategyqa_row, item, f"{path}, item {i}") for i, item in enumerate(items)]
    return [row for row in rows if side(row["question"]) == split]


def _commonsenseqa(folder, split):
    file = "dev_rand_split.jsonl" if split == "test" else "train_rand_split.jsonl"
    rows = []
    for where, item in read_jsonl(_path("commonsenseqa", folder, file)):
        row = to_row(commonsenseqa_row, item, where)
        in_val = side(item["question"]["stem"]) == "val"  # without the choices
        if split == "test" or in_val == (split == "val"):
            rows.append(row)
    return rows


# --------------------------------------------------------------------------------------------------
# Items to rows.


def scienceqa_row(problem):
    """
    One value of problems.json as a row, or None if it has an image, which a text model cannot see.

    Taken: question, choices (list of str), answer (int, index into choices), hint (str, maybe
        empty: the passage that
    a question may be about, put before it), image (file name or null), solution (str, maybe empty:
    the explanation). Not taken: task, grade, subject, topic, category, skill, lecture, split.
    """
    if field(problem, "image", str, type(None)):
        return None
    hint, question = field(problem, "hint", str).strip(), text_field(problem, "question")
    choices, answer = texts_field(problem, "choices"), field(problem, "answer", int)
    prompt = _multiple_choice(f"{hint}\n{question}".lstrip(), choices)
    if not 0 <= answer < len(choices):
        raise ValueError(f"'answer' must be an index into the {len(choices)} choices, got {answer}")
    return _row(prompt, field(problem, "solution", str), LETTERS[answer])


def strategyqa_row(item):
    """
    One item of strategyqa_train.json as a row.

    Taken: question, answer (bool), facts (list of str; may be absent). Not taken: qid, term,
        description,
    decomposition, evidence.
    """
    question, answer = text_field(item, "question"), field(item, "answer", bool)
    facts = texts_field(item, "facts") if "facts" in item else []
    return _row(question, " ".join(fact.strip() for fact in facts), "yes" if answer else "no")


def commonsenseqa_row(item):
    """
    One line of {train,dev}_rand_split.jsonl as a row.

    Taken: answerKey, question.stem, question.choices (list of {label, text}, labelled A, B, C, ...
        in this order). Not
    taken: id, question.question_concept.
    """
    question = field(item, "question", dict)
    choices = field(question, "choices", list)
    labels = [text_field(choice, "label") for choice in choices]
    texts = [text_field(choice, "text") for choice in choices]
    prompt = _multiple_choice(text_field(question, "stem"), texts)
    if labels != list(LETTERS[: len(labels)]):
        raise ValueError(f"the labels of 'choices' must be A, B, C, ..., got {', '.join(labels)}")
    answer = text_field(item, "answerKey")
    if answer not in labels:
        raise ValueError(f"'answerKey' must be one of {', '.join(labels)}, got {answer!r}")
    return _row(prompt, "", answer)


def _multiple_choice(question, choices):
    """question, then "(A) first" and so on, one choice a line."""
    if not 2 <= len(choices) <= len(LETTERS):
        raise ValueError(f"'choices' must be 2 to {len(LETTERS)}, got {choices!r:.60}")
    lines = [f"({letter}) {' '.join(choice.split())}" for letter, choice in zip(LETTERS, choices)]
    return "\n".join([question, *lines])


def _row(question, explanation, final):
    answer = f"{_clean(explanation)}\n#### {final}".lstrip()
    return {"question": _clean(question), "answer": answer, "final": final}


def _clean(text):
    """The text without what would be taken for the mark of the final answer: "####" becomes "# ###"."""
    return re.sub("#(?=###)", "# ", text.strip())


def main(argv=None):
    description = f"{__doc__}\nWhere they are published:\n\n"
    for name, place in PUBLISHED.items():
        folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
        description += f"    {name}: {place}\n        put them in {folder}\n"
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    parser.print_help()


if __name__ == "__main__":
    main()
