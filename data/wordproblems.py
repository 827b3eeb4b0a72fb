"""
Seeded GSM8K-style word problems: the embedded task, no download needed.

A problem is a small graph of quantities. Each quantity belongs to a person (or to two who pooled
theirs); a step changes it, derives another person's quantity from it, or combines two. Numbers are
drawn while the story is told, so every division is exact, every value is an integer in [2,
max_value] and the answer is right by construction. A step is one answer line with GSM8K's
calculator annotation:

    Mia had 12 shells at the beach. Then she found another 7 shells. Tom had 2 times as many ...?
    Mia had 12+7 = <<12+7=19>>19 shells.
    Tom had 19*2 = <<19*2=38>>38 shells.
    #### 38

Training, val and tests never share a number-masked question (digits -> '#'), whatever the seeds and
sizes: a hash of the masked question decides on whose side a problem belongs, and
the generator draws until it fits. Only `test_templates` uses the frames and templates held out, and
only `test_numbers` is given numbers from HELD_OUT_NUMBERS (factors stay within FACTORS, results may
be anything up to max_value).

    python data/wordproblems.py --n 5 --seed 0 --split train --ops 3 4
    python data/wordproblems.py --train_bpe     # remake data/wordproblems.tiktoken
"""

import argparse
import base64
import hashlib
import os
import random
import re

SPLITS = ("pretrain", "train", "val", "test", "test_templates", "test_numbers")
PRETRAIN_OPS = (1, 2)  # operations per problem, inclusive: what the base checkpoint knows
POST_OPS = (3, 4)  # what post-training has to teach
NUMBERS = (2, 60)  # given numbers, inclusive, of every split but test_numbers
HELD_OUT_NUMBERS = (61, 99)  # given numbers of test_numbers
FACTORS = (2, 9)  # multipliers and divisors: small, so that products can be learnt digit by digit
MAX_VALUE = 200  # no given number and no result is larger
DISTRACTOR = 0.2  # probability of a sentence with a number that must not be used

BPE_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "wordproblems.tiktoken")
BPE_VOCAB = 767  # 256 bytes and the merges; <|endoftext|> makes it 768
# One digit, one token; a space belongs to the word after it, never to a digit; " = <<" and
# ".\n####" may be one token.
BPE_PATTERN = r"\p{N}| ?\p{L}+|[^\p{L}\p{N}]+(?<! )| +"

SHE = "Mia Anna Lily Emma Zoe Sara Nora Ruby Ella Lucy Maya Rosa".split()
HE = "Tom Ben Max Leo Sam Jack Omar Noah Ravi Alex Finn Hugo".split()

# Story frames: place, things, containers.
FRAMES = {
    "beach": ("at the beach", "shells stones buttons beads", "buckets"),
    "school": ("at school", "pencils stickers cards crayons", "boxes"),
    "farm": ("on the farm", "apples plums eggs pumpkins", "baskets"),
    "fair": ("at the fair", "tickets balloons tokens cookies", "bags"),
    "park": ("in the park", "acorns leaves flowers marbles", "bags"),
    "library": ("at the library", "books stamps maps cards", "boxes"),
    "market": ("at the market", "oranges lemons candles cookies", "baskets"),
    "garden": ("in the garden", "roses seeds tomatoes flowers", "pots"),
    "workshop": ("in the workshop", "nails screws beads buttons", "jars"),
    "camp": ("at camp", "marbles ropes stickers stones", "bags"),
}
HELD_OUT_FRAMES = {
    "museum": ("at the museum", "stamps stones cards tickets", "boxes"),
    "river": ("by the river", "shells leaves apples marbles", "buckets"),
}

# Step templates by kind: id -> (formulas, ways to tell it, ways to answer it). Alternatives are
# separated by "|", the operations of a step by ";". In formulas v is the quantity at hand, x
# another person's, k and j are given numbers, f a given factor, r the result just before. In texts
# {S} acts ("she" or "they" where that is clear), {X} is the other, {o} the things, {p} the place,
# {c} the containers, {e} the calculation. All in the past tense: it fits one person and two.
TEMPLATES = {
    "start": {
        "have": ("", "{S} had {k} {o}.|{S} had {k} {o} {p}.|{S} started with {k} {o}.|{S} collected {k} {o} {p}.", ""),
    },
    "start_op": {
        "morning": (
            "k+j",
            "{S} found {k} {o} in the morning and {j} at night.|{S} got {k} {o} on Monday and {j} on Friday.",
            "{S} had {e} {o}.|{S} had {e} {o} in all.",
        ),
        "colors": (
            "k+j",
            "{S} had {k} red {o} and {j} blue ones.|{S} had {k} big {o} and {j} small ones.",
            "{S} had {e} {o}.|In all, {S} had {e} {o}.",
        ),
        "missing": (
            "k-j",
            "{S} had {k} {o}, but {j} got lost.|{S} took {k} {o} along and lost {j} of them.",
            "{S} had {e} {o}.|{S} still had {e} {o}.",
        ),
        "boxes": (
            "k*f",
            "{S} had {f} {c} with {k} {o} each.|{S} filled {f} {c} with {k} {o} each.",
            "{S} had {e} {o}.|The {c} held {e} {o}.",
        ),
        "one_share": (
            "k/f",
            "{S} got an equal share of {k} {o}, split {f} ways.|{f} people split {k} {o} equally, {S} was one of them.",
            "{S} had {e} {o}.|One share was {e} {o}.",
        ),
    },
    "update": {
        "find": (
            "v+k",
            "{S} found {k} more {o}.|Then {S} found another {k} {o}.",
            "{S} then had {e} {o}.|{S} had {e} {o}.",
        ),
        "buy": (
            "v+k",
            "{S} bought {k} more {o}.|Then {S} bought another {k} {o}.",
            "{S} had {e} {o}.|Now {S} had {e} {o}.",
        ),
        "gift": (
            "v+k",
            "{S} got {k} {o} from a friend.|As a gift, {S} got {k} more {o}.",
            "With the gift, {S} had {e} {o}.|{S} had {e} {o}.",
        ),
        "win": (
            "v+k",
            "{S} won {k} {o} in a game.|Then {S} won another {k} {o}.",
            "After the game, {S} had {e} {o}.|{S} had {e} {o}.",
        ),
        "give": (
            "v-k",
            "{S} gave {k} {o} to a friend.|Then {S} gave away {k} of the {o}.",
            "{S} had {e} {o} left.|{S} kept {e} {o}.",
        ),
        "lose": (
            "v-k",
            "{S} lost {k} {o}.|Then {S} lost {k} of the {o}.",
            "{S} had {e} {o} left.|{S} still had {e} {o}.",
        ),
        "use": (
            "v-k",
            "{S} used {k} {o} for a game.|Then {S} used up {k} of the {o}.",
            "{S} had {e} {o} left.|That left {e} {o}.",
        ),
        "break": (
            "v-k",
            "{S} broke {k} of the {o}.|By accident, {S} broke {k} {o}.",
            "{S} had {e} good {o} left.|That left {e} {o}.",
        ),
        "grow": (
            "v*f",
            "{S} kept going until there were {f} times as many {o}.|Soon {S} had {f} times as many {o} as before.",
            "{S} then had {e} {o}.|{S} had {e} {o}.",
        ),
        "swap": (
            "v*f",
            "{S} swapped each of the {o} for {f} smaller ones.|For each of the {o}, {S} got {f} new ones instead.",
            "After that, {S} had {e} {o}.|{S} had {e} {o}.",
        ),
        "piles": (
            "v/f",
            "{S} made {f} equal piles and kept one.|Then {S} put the {o} in {f} equal piles and kept one pile.",
            "{S} kept {e} {o}.|One pile had {e} {o}.",
        ),
        "one_of": (
            "v/f",
            "{S} kept one out of every {f} {o}.|Of every {f} {o}, {S} kept just one.",
            "{S} kept {e} {o}.|{S} had {e} {o} left.",
        ),
    },
    "update_two": {  # a side calculation, then the change
        "packs": (
            "k*f;v+r",
            "{S} bought {f} packs of {k} {o}.|Then {S} got {f} packs with {k} {o} each.",
            "The packs had {e} {o}.;{S} had {e} {o}.",
        ),
        "days": (
            "k*f;v+r",
            "For {f} days, {S} found {k} {o} a day.|Then {S} got {k} more {o} on each of {f} days.",
            "In those days, {S} got {e} {o}.;{S} then had {e} {o}.",
        ),
        "each": (
            "k*f;v-r",
            "{S} gave {k} {o} to each of {f} friends.|Then {S} let {f} friends take {k} {o} each.",
            "The friends got {e} {o}.;{S} had {e} {o} left.",
        ),
        "two_gifts": (
            "k+j;v+r",
            "{S} got {k} {o} from an aunt and {j} from an uncle.|Then {S} bought {k} {o} and found {j}.",
            "{S} got {e} more {o}.;{S} had {e} {o}.",
        ),
        "two_losses": (
            "k+j;v-r",
            "{S} gave away {k} {o} and lost {j}.|Then {S} sold {k} {o} and used {j}.",
            "In all, {e} {o} were gone.;{S} had {e} {o} left.",
        ),
        "split_gift": (
            "k/f;v+r",
            "{S} got one of {f} equal parts of {k} more {o}.|"
            "Another {k} {o} were split {f} ways, and {S} got one part.",
            "One part was {e} {o}.;{S} had {e} {o}.",
        ),
    },
    "derive": {  # {S} comes in, compared with {X}
        "more": ("x+k", "{S} had {k} more {o} than {X}.|{S} found {k} {o} more than {X} had.", "{S} had {e} {o}."),
        "fewer": ("x-k", "{S} had {k} fewer {o} than {X}.|{S} had {k} {o} less than {X}.", "{S} had {e} {o}."),
        "times": (
            "x*f",
            "{S} had {f} times as many {o} as {X}.|{S} got {f} {o} for each one that {X} had.",
            "{S} had {e} {o}.",
        ),
        "times_less": (
            "x/f",
            "{X} had {f} times as many {o} as {S}.|{X} had {f} {o} for each one that {S} had.",
            "{S} had {e} {o}.",
        ),
    },
    "pool": {
        "pool": ("x+v", "{B} put their {o} together.|Then {B} shared all their {o}.", "Together, they had {e} {o}."),
    },
    "money": {  # after "sell", the things are dollars
        "spend": (
            "v-k",
            "{S} spent {k} dollars on food.|Then {S} paid {k} dollars for a bus ride.",
            "{S} had {e} dollars left.",
        ),
        "earn": (
            "v+k",
            "{S} earned {k} more dollars.|Then {S} got {k} dollars for some work.",
            "{S} then had {e} dollars.|{S} had {e} dollars.",
        ),
        "save": (
            "v*f",
            "{S} saved until there were {f} times as many dollars.|Soon {S} had {f} times as many dollars.",
            "{S} then had {e} dollars.",
        ),
        "part": (
            "v/f",
            "{S} split the dollars {f} ways and kept one part.|Then {S} kept one of {f} equal parts of the money.",
            "{S} kept {e} dollars.",
        ),
    },
    "sell": {
        "sell": (
            "v*f",
            "{S} sold all the {o} for {f} dollars each.|Then {S} sold the {o} for {f} dollars each.",
            "{S} got {e} dollars.",
        ),
    },
    # The last two kinds end the problem and bring its question.
    "final": {
        "pack": (
            "v/f",
            "{S} put the {o} in {c} of {f}. How many {c} were filled?|"
            "If {f} {o} fit into each of the {c}, how many {c} did {S} fill?",
            "{S} filled {e} {c}.",
        ),
        "share": (
            "v/f",
            "{S} gave the {o} to {f} friends equally. How many did each friend get?|"
            "If {S} shared the {o} equally among {f} friends, how many did each get?",
            "Each friend got {e} {o}.",
        ),
        "worth": (
            "v*f",
            "{S} sold the {o} for {f} dollars each. How many dollars is that?|"
            "At {f} dollars each, how many dollars did {S} get for the {o}?",
            "{S} got {e} dollars.",
        ),
    },
    "final_two": {
        "total": (
            "x+v",
            "How many {o} did {B} have in all?|How many {o} did {B} have together?",
            "Together, they had {e} {o}.|In all, they had {e} {o}.",
        ),
        "difference": (
            "v-x",
            "How many more {o} did {S} have than {X}?|How many fewer {o} did {X} have than {S}?",
            "The difference was {e} {o}.",
        ),
    },
}
HELD_OUT_TEMPLATES = {  # told only in test_templates
    "start_op": {
        "shelves": ("k*f", "On each of {f} shelves, {S} kept {k} {o}.", "{S} had {e} {o}."),
        "all_but": ("k-j", "Out of {k} {o} {p}, all but {j} went to {S}.", "{S} had {e} {o}."),
    },
    "update": {
        "inside": ("v+k", "{S} opened a gift with {k} more {o} inside.", "{S} had {e} {o}."),
        "behind": ("v-k", "When leaving, {S} left {k} of the {o} behind.", "{S} had {e} {o} left."),
        "copies": ("v*f", "{S} used a machine that turned each of the {o} into {f}.", "{S} then had {e} {o}."),
        "one_bag": ("v/f", "{S} filled {f} bags equally and lost all but one bag.", "{S} kept {e} {o}."),
    },
    "update_two": {
        "shops": ("k*f;v+r", "At each of {f} shops, {S} bought {k} {o}.", "{S} bought {e} {o}.;{S} had {e} {o}."),
        "daily": ("k*f;v-r", "Each day for {f} days, {S} used up {k} {o}.", "{S} used {e} {o}.;{S} had {e} {o} left."),
    },
    "derive": {
        "needs": ("x-k", "{S} needed {k} more {o} to have as many as {X}.", "{S} had {e} {o}."),
        "after_giving": ("x+k", "After giving away {k} {o}, {S} would have as many as {X}.", "{S} had {e} {o}."),
    },
    "final": {
        "minutes": (
            "v*f",
            "{S} washed each of the {o} for {f} minutes. How many minutes is that?",
            "That took {e} minutes.",
        ),
    },
    "final_two": {
        "catch_up": ("v-x", "How many {o} must {X} get to have as many as {S}?", "{X} had to get {e} {o}."),
    },
}
QUESTIONS = (
    "How many {o} did {S} have then?|In the end, how many {o} did {S} have?|How many {o} did {S} have in the end?"
)
DISTRACTORS = (
    "The walk there took {k} minutes.|There were {k} birds in the trees.|A bus with {k} people went by.|"
    "It was {k} days before the party.|There were {k} dogs {p}.|A big sign said {k}.|There were {k} chairs {p}."
)
HELD_OUT_IDS = {name for templates in HELD_OUT_TEMPLATES.values() for name in templates}
OPERATIONS = {"+": "add", "-": "sub", "*": "mul", "/": "div"}


def _parse(kind, held_out):
    """[(id, formulas, tellings, answers per formula, slots)] of one kind, with the texts split once."""
    templates = TEMPLATES[kind] | (HELD_OUT_TEMPLATES.get(kind, {}) if held_out else {})
    parsed = []
    for name, (formulas, tellings, answers) in templates.items():
        slots = [slot for slot in "kjf" if slot in formulas or (slot == "k" and not formulas)]
        answers = [variants.split("|") for variants in answers.split(";")]
        parsed.append((name, formulas.split(";") if formulas else [], tellings.split("|"), answers, slots))
    return parsed


SEEN = {kind: _parse(kind, held_out=False) for kind in TEMPLATES}
ALL = {kind: _parse(kind, held_out=True) for kind in TEMPLATES}


def _calculate(formulas, values, max_value):
    """[(a, sign, b, result)] per formula, or None where a rule for numbers is broken (inexact, < 2 or > max_value)."""
    steps = []
    for a, sign, b in formulas:
        a, b = values[a], values[b]
        if sign == "/" and a % b:
            return None
        r = a + b if sign == "+" else a - b if sign == "-" else a * b if sign == "*" else a // b
        if not 2 <= r <= max_value:
            return None
        steps.append((a, sign, b, r))
        values["r"] = r
    return steps


def _next_kinds(quantities, strangers, left, money):
    """The kinds of steps that may come next, repeated by weight, with `left` >= 1 operations left to tell."""
    if not quantities:
        return ["start", "start", "start_op"]
    if money:
        return ["money"]
    kinds = ["update"] * 4 + ["update_two"] * 2 * (left > 1)
    if len(quantities) == 2:  # the last operation has to combine them
        if left == 1:
            return ["final_two", "final_two", "pool"]
        return kinds * (left > 2) + ["update"] * 2 + ["pool"] + ["derive"] * strangers
    if strangers:
        kinds += ["derive"] * 2 + ["start"] + ["start_op"] * (left > 1)
    return kinds + (["final"] * 2 if left == 1 else ["sell"])


def _join(names):
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _capital(text):
    return text[0].upper() + text[1:]


def _append(text, pieces, labels, spans):
    """`text` with the pieces appended; for each piece that is an int, [start, end, the next label] goes to `spans`."""
    labels = iter(labels)
    for piece in pieces:
        if isinstance(piece, int):
            spans.append([len(text), len(text) + len(str(piece)), next(labels)])
        text += str(piece)
    return text


def _tell(rng, n_ops, templates, frames, numbers, max_value, distractor):
    """One problem as a row of generate(), or None if the numbers led nowhere."""
    frame = rng.choice(frames)
    place, things, containers = (FRAMES | HELD_OUT_FRAMES)[frame]
    things = rng.choice(things.split())
    strangers = rng.sample(SHE + HE, 3)  # people not in the story yet
    quantities = []  # [names of the owners, value]: those that the answer still needs, at most two
    told, answer, ids, ops, seen, subject, asked = [], "", [], [], set(), None, False
    spans = {"operation": [], "operand": [], "step": []}
    failures = 0
    while len(ops) < n_ops:
        left = n_ops - len(ops)
        kind = rng.choice(_next_kinds(quantities, len(strangers) > 0, left, things == "dollars"))
        name, formulas, tellings, answers, slots = rng.choice(templates[kind])

        # who: `own` is the quantity that the step changes, `other` the one it looks at
        own, other = None, None
        if kind == "derive":
            other = rng.choice(quantities)
        elif kind in ("pool", "final_two"):
            other, own = rng.sample(quantities, 2)
        elif quantities and not kind.startswith("start"):
            own = rng.choice(quantities)
        owners = own[0] if own else strangers[-1:]

        # numbers: draw until they fit the formulas, a few times
        for _ in range(8):
            values = {slot: rng.randint(*(FACTORS if slot == "f" else numbers)) for slot in slots}
            values |= {"v": own and own[1], "x": other and other[1]}
            steps = _calculate(formulas, values, max_value)
            if steps is not None:
                break
        result = steps[-1][3] if steps else values.get("k")
        too_easy = name in ("difference", "catch_up") and result in seen  # "5 more than Mia. How many more?"
        group = kind == "derive" and len(other[0]) > 1  # "as many as Mia and Tom" can be read in two ways
        if steps is None or too_easy or group:
            failures += 1
            if failures > 20:
                return None
            continue

        # words
        words = dict(o=things, p=place, c=containers, **values)
        if other:
            words |= {"X": _join(other[0]), "B": _join(other[0] + owners)}
        they = "they" if len(owners) > 1 else "she" if owners[0] in SHE else "he"
        pronoun = subject == owners and not other and rng.random() < 0.6
        told.append(_capital(rng.choice(tellings).format(S=they if pronoun else _join(owners), **words)))
        words["S"] = they if len(owners) > 1 else owners[0]
        for (a, sign, b, r), variants in zip(steps, answers):
            before, after = (part.format(**words) for part in rng.choice(variants).split("{e}"))
            line = [_capital(before), a, sign, b, " = <<", a, sign, b, "=", r, ">>", r, after + "\n"]
            start, operands = len(answer), ("first", "second", "first", "second", "result", "result")
            answer = _append(answer, line, operands, spans["operand"])
            ops.append(OPERATIONS[sign])
            spans["operation"].append([start, len(answer), ops[-1]])
            spans["step"].append([start, len(answer), name])
            seen |= {a, b, r}
        seen.add(result)
        ids.append(name)

        # what is open now
        if own is None:
            strangers.pop()
            if kind == "derive" and (len(quantities) == 2 or len(ops) == n_ops or rng.random() < 0.5):
                quantities.remove(other)  # its owner's part is over
            quantities.append([owners, result])
        elif kind in ("pool", "final_two"):
            owners = other[0] + owners
            quantities = [[owners, result]]
        else:
            own[1] = result
        if kind == "sell":
            things = "dollars"
        asked = kind.startswith("final")
        clear = kind != "derive" or told[-1].startswith(owners[0])  # "Max had 2 more than Leo. He ...": who?
        subject = owners if clear else None

    if rng.random() < distractor:
        number = rng.randint(*numbers)
        if number in seen:
            return None
        text = rng.choice(DISTRACTORS.split("|")).format(k=number, p=place)
        told.insert(rng.randint(1, len(told) - asked), text)
    if not asked:
        told.append(rng.choice(QUESTIONS.split("|")).format(o=things, S=_join(quantities[0][0])))
    answer = _append(answer, ["#### ", result], ["final"], spans["operand"])
    return {
        "question": " ".join(told),
        "answer": answer,
        "final": result,
        "n_ops": n_ops,
        "ops": ops,
        "template": frame + ":" + "+".join(ids),
        "spans": spans,
    }


def masked(question):
    """The question with every number replaced by '#': what splits must not share."""
    return re.sub(r"\d+", "#", question)


def side(question):
    """'test' (20 %), 'val' (10 %) or 'train' (70 %): the only splits that may hold this question with any numbers."""
    text = masked(question).encode("utf-8", "replace")  # half a character, a lone surrogate, has no UTF-8
    bucket = hashlib.sha256(text).digest()[0] % 10
    return "test" if bucket < 2 else "val" if bucket == 2 else "train"


def generate(n, seed, split="train", ops=None, numbers=None, max_value=MAX_VALUE, distractor=DISTRACTOR):
    """
    n problems, no question twice, always the same for the same arguments (and the first m < n are
    those of n=m).

    Args:
        split: one of SPLITS.
        ops: (lo, hi) operations per problem, inclusive, drawn uniformly; PRETRAIN_OPS or POST_OPS
            by default.
        numbers: (lo, hi) of the given numbers, inclusive; NUMBERS or, for test_numbers,
            HELD_OUT_NUMBERS by default.
        max_value: the largest given number or result.
        distractor: probability of a sentence with a number that must not be used.

    Returns a list of dicts: question, answer (str), final (int), n_ops (int), ops (list of add,
    sub, mul, div, one per answer line), template (frame:step+step+...) and spans, which say what
    the characters of the answer belong to, as {kind: [[start, end, label], ...]} with
    answer[start:end], in order:
        operation: every answer line but the last with its newline; add, sub, mul or div.
        step: the same lines; the id in TEMPLATES of the step that the line calculates (two lines
            for an update_two).
        operand: every number, first, second or result of its line (in the annotation, too), or
            final, after ####.
    What the model is taught is " " + answer, there everything is one character later.

    Raises ValueError on arguments out of range, and when no problem fits the numbers.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    ops = ops or (PRETRAIN_OPS if split == "pretrain" else POST_OPS)
    numbers = numbers or (HELD_OUT_NUMBERS if split == "test_numbers" else NUMBERS)
    if n < 1:
        raise ValueError(f"n={n} problems: it must be at least 1")
    if not 1 <= ops[0] <= ops[1] <= 6:
        raise ValueError(f"ops {tuple(ops)} must be (lo, hi) with 1 <= lo <= hi <= 6")
    if not 2 <= numbers[0] <= numbers[1] <= max_value:
        raise ValueError(f"numbers {tuple(numbers)} must be (lo, hi) with 2 <= lo <= hi <= max_value = {max_value}")
    if not 0 <= distractor <= 1:
        raise ValueError(f"distractor {distractor} is a probability, it must be within [0, 1]")
    rng = random.Random(f"{split} {seed}")
    held_out = split == "test_templates"
    templates, frames = (ALL, list(HELD_OUT_FRAMES)) if held_out else (SEEN, list(FRAMES))
    wanted = "test" if split.startswith("test") else "val" if split == "val" else "train"
    rows, questions, failures = [], set(), 0
    while len(rows) < n:
        n_ops = rng.randint(*ops)
        row = None
        while row is None:  # n_ops stays, so that hard-to-fit lengths are not rarer
            failures += 1
            if failures > 5_000:
                raise ValueError(f"no {n_ops}-operation problem fits numbers {tuple(numbers)}, max_value {max_value}")
            row = _tell(rng, n_ops, templates, frames, numbers, max_value, distractor)
            if row is None or row["question"] in questions or side(row["question"]) != wanted:
                row = None
            elif held_out and HELD_OUT_IDS.isdisjoint(row["template"].split(":")[1].split("+")):
                row = None
        failures = 0
        questions.add(row["question"])
        rows.append(row)
    return rows


def train_bpe(path=BPE_FILE, n=500, vocab=BPE_VOCAB):
    """Trains the BPE with tiktoken's own trainer on n problems of pretrain and n of train, and writes its ranks."""
    from tiktoken._educational import bpe_train

    rows = generate(n, 0, "pretrain") + generate(n, 0, "train")
    text = "\n".join(f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows)
    ranks = bpe_train(text, vocab, BPE_PATTERN, visualise=None)
    with open(path + ".tmp", "w", encoding="utf-8") as f:
        f.writelines(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    os.replace(path + ".tmp", path)


def main(argv=None):
    parser = argparse.ArgumentParser(description="print generated word problems, or retrain their BPE")
    parser.add_argument("--n", type=int, default=5, help="number of problems to print")
    parser.add_argument("--seed", type=int, default=0, help="seed of the generator")
    parser.add_argument("--split", default="train", choices=SPLITS, help="which split to draw from")
    parser.add_argument("--ops", type=int, nargs=2, metavar=("LO", "HI"), help="operations per problem, 1-6")
    parser.add_argument("--distractor", type=float, default=DISTRACTOR, help="probability of an irrelevant number")
    parser.add_argument("--train_bpe", action="store_true", help=f"retrain the BPE and write {BPE_FILE}")
    args = parser.parse_args(argv)
    if args.train_bpe:
        train_bpe()
        print(f"wrote {BPE_FILE}: {BPE_VOCAB} tokens")
        return
    try:
        rows = generate(args.n, args.seed, args.split, args.ops, distractor=args.distractor)
    except ValueError as error:
        parser.error(str(error))
    for row in rows:
        print(f"[{row['template']}]\nQuestion: {row['question']}\nAnswer: {row['answer']}\n")


if __name__ == "__main__":
    main()
