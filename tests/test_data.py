"""The data: true problems, splits that don't leak, exact supervised tokens, clear errors. No network."""

import hashlib
import json
import os
import re
from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import arithmetic, gsm8k, smollm2, wordproblems
from data.tokens import collate, encode, encode_row, encode_rows, load_encoding, load_rows
from data.wordproblems import HELD_OUT_FRAMES, HELD_OUT_TEMPLATES, SPLITS, generate

ROOT, ENC = Path(__file__).parents[1], load_encoding("wordproblems")
GSM8K_DIR = Path(os.environ.get("GSM8K_DIR", ROOT.parent / "shared" / "gsm8k"))
needs_gsm8k = pytest.mark.skipif(not (GSM8K_DIR / "test.jsonl").is_file(), reason="set GSM8K_DIR")

ANNOTATION = re.compile(r"(\d+)([-+*/])(\d+) = <<(\d+)([-+*/])(\d+)=(\d+)>>(\d+)")


def numbers_in(text):
    return [int(n) for n in re.findall(r"\d+", text)]


@pytest.fixture(scope="module")
def problems():
    """Every split at its defaults, plus the harder 5-6 operations."""
    rows = {split: generate(600, 1, split) for split in SPLITS}
    hard, few = generate(600, 1, "test", ops=(5, 6)), generate(600, 2, "val", ops=(1, 1))
    return rows | {"hard": hard, "few": few}


# ---- the generator


def test_every_annotation_is_true(problems):
    """Broken if a calculation is wrong, an operand comes from nowhere, or a result is not used."""
    signs = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
    for row in chain(*problems.values()):
        *lines, last = row["answer"].split("\n")
        assert row["answer"].count("####") == 1 and last == f"#### {row['final']}"
        assert len(lines) == row["n_ops"] == len(row["ops"])
        known, results, operands = numbers_in(row["question"]), [], []
        for line, op in zip(lines, row["ops"]):
            [(a, sign, b, *again, result, shown)] = ANNOTATION.findall(line)
            assert [a, sign, b] == again and result == shown and sign == signs[op]
            a, b, result = int(a), int(b), int(result)
            true = a == b * result if sign == "/" else result == {"+": a + b, "-": a - b, "*": a * b}[sign]
            assert true, line
            assert 2 <= result <= wordproblems.MAX_VALUE
            assert a in known and b in known, row
            operands.append({a, b})
            results.append(result)
            known.append(result)
        assert result == row["final"]
        for i, result in enumerate(results[:-1]):
            assert any(result in later for later in operands[i + 1 :]), row


def test_distractors_are_on_demand_and_never_used():
    """Broken if the solution uses a distractor, or one is told that nobody asked for."""
    for told in (0, 1):
        for row in generate(300, 3, "train", distractor=told):
            used = numbers_in(row["answer"])
            assert len([n for n in numbers_in(row["question"]) if n not in used]) == told, row


def test_splits_share_no_masked_question(problems):
    """Broken if a test question differs from a training question in its numbers only."""

    def masked(rows):
        return {re.sub(r"\d+", "#", row["question"]) for row in rows}

    train = masked(problems["pretrain"] + problems["train"] + generate(2000, 9, "train", ops=(1, 1)))
    val = masked(problems["val"] + problems["few"])
    tests = [problems[split] for split in SPLITS if split.startswith("test")]
    test = masked(sum(tests, problems["hard"] + generate(500, 9, "test", ops=(1, 1))))
    assert not train & val and not train & test and not val & test


def test_what_is_held_out_is_told_in_one_split_only(problems):
    """Broken if train has seen the numbers, or the phrasings, that are new in a test split."""
    lo, hi = wordproblems.HELD_OUT_NUMBERS
    factors = range(wordproblems.FACTORS[0], wordproblems.FACTORS[1] + 1)
    held_out = {name for templates in HELD_OUT_TEMPLATES.values() for name in templates}
    for name, rows in problems.items():
        for row in rows:
            given = numbers_in(row["question"])
            if name == "test_numbers":
                assert all(lo <= n <= hi or n in factors for n in given) and max(given) >= lo, row
            else:
                assert all(wordproblems.NUMBERS[0] <= n <= wordproblems.NUMBERS[1] for n in given)
            frame, steps = row["template"].split(":")
            told = bool(held_out & set(steps.split("+")))
            assert told == (name == "test_templates") == (frame in HELD_OUT_FRAMES), row


def test_the_benchmark_never_changes():
    """Broken if the rows of published numbers change (never by accident) or depend on a set's order."""
    rows = load_rows("wordproblems", "test", n=100)
    some, others = (load_rows("wordproblems", "test", n=50, seed=seed) for seed in (0, 1))
    assert some == rows[:50] != others
    for row in rows:
        del row["spans"]  # they follow from the texts: tests/test_labels.py
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert digest[:16] == "716e4efbe4873ec5"


def test_a_wish_that_no_problem_fulfils_ends():
    """Broken if an impossible wish ends in an endless loop (others: test_bad_input.py)."""
    with pytest.raises(ValueError, match="-operation problem fits numbers"):
        generate(3, 0, numbers=(2, 3), max_value=3)


# ---- tokens


def test_bpe_round_trip_and_size(problems):
    """Broken if a text does not survive, digits merge, or <|endoftext|> comes out of plain text."""
    tokens = ENC.token_byte_values()
    assert not [t for t in tokens if len(t) > 1 and any(chr(b).isdigit() for b in t)]
    texts = [row["question"] + row["answer"] for row in problems["hard"]]
    for text in [*texts, "naïve 東京 🙂\n\t x=2;  <|endoftext|>"]:
        ids = encode(ENC, text)
        assert ENC.decode(ids) == text and ENC.eot_token not in ids
    assert ENC.eot_token == ENC.n_vocab - 1 == 767


def test_supervised_tokens_are_exactly_the_answer_and_the_end():
    """Broken if a prompt token is supervised, or the end token is not (n_prompt: see collate below)."""
    row = {"question": "Tom had 12 eggs.", "answer": "Tom had 12+7 = <<12+7=19>>19 eggs.\n#### 19"}
    ids, n_prompt = encode_row(row, ENC)
    prompt = "Question|:| Tom| had| |1|2| eggs|.\n|Answer|:"
    answer = " Tom| had| |1|2|+|7| = <<|1|2|+|7|=|1|9|>>|1|9| eggs|.\n####| |1|9|<|endoftext|>"
    tokens = [ENC.decode([i]) for i in ids]
    assert "|".join(tokens) == prompt + "|" + answer and "|".join(tokens[:n_prompt]) == prompt


IDS = st.lists(st.integers(0, 49), min_size=2, max_size=12)
ITEM = IDS.flatmap(lambda ids: st.tuples(st.just(ids), st.integers(1, len(ids) - 1)))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(items=st.lists(ITEM, min_size=1, max_size=6))
def test_collate_keeps_every_token_and_labels_the_answer_alone(items):
    """Broken if a token were lost or shifted, a prompt token labelled, or an answer token not."""
    idx, targets = collate(items, pad=7)
    assert idx.shape == targets.shape == (len(items), max(len(ids) for ids, _ in items) - 1)
    for x, y, (ids, n_prompt) in zip(idx.tolist(), targets.tolist(), items):
        n = len(ids) - 1
        assert [*x[:n], ids[-1]] == ids and set(x[n:]) <= {7}
        assert y == [ids[t + 1] if n_prompt - 1 <= t < n else -1 for t in range(len(y))]


def test_rows_too_long_are_counted_and_left_out(problems):
    """Broken if a row is truncated, which loses its answer, or is dropped unnoticed."""
    rows = problems["hard"][:50]
    lengths = [len(encode_row(row, ENC)[0]) for row in rows]
    block_size = sorted(lengths)[25] - 1  # the model sees all but the last token
    items, left_out = encode_rows(rows, ENC, block_size)
    assert left_out == sum(n - 1 > block_size for n in lengths) > 0
    assert [len(ids) for ids, _ in items] == [n for n in lengths if n - 1 <= block_size]
    with pytest.raises(ValueError, match="none of the 50 rows fits block_size=20"):
        encode_rows(rows, ENC, 20)


# ---- rows of every task


def test_tasks_load_by_name(tmp_path, monkeypatch):
    """Broken if a default size or gold string changes, or a name does not reach its files."""
    rows = load_rows("wordproblems", "train")
    assert len(rows) == 2000 and len(load_rows("arithmetic", "val")) == 500
    assert all(row["answer"].endswith("#### " + row["final"]) for row in rows)
    assert load_rows("arithmetic", "val", 5, seed=3) == arithmetic.generate(5, 3, "val")
    with pytest.raises(ValueError, match="split 'exam'"):
        load_rows("wordproblems", "exam")
    with pytest.raises(ValueError, match="split 'exam' of gsm8k"):
        load_rows("gsm8k", "exam")
    monkeypatch.setattr("data.tokens.DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/commonsenseqa/dev_rand_split.jsonl"):
        load_rows("commonsenseqa", "test")
    with pytest.raises(FileNotFoundError, match=r"run `python data/gsm8k\.py`"):
        load_rows("gsm8k", "train")


def test_folder_of_rows(tmp_path):
    """Broken if anybody's own {split}.jsonl fails, or a typed n silently gives fewer rows."""
    rows = [{"question": f"q{i}", "answer": f"a\n#### {i},000"} for i in range(5)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = {**rows[3], "final": "3,000", "where": f"{tmp_path}/test.jsonl:4"}
    assert load_rows(str(tmp_path), "test")[3] == expected  # an absolute path
    some = load_rows(tmp_path, "test", n=3, seed=1)
    assert len(some) == 3 and some == load_rows(tmp_path, "test", n=3, seed=1, at_most=True)
    assert len(load_rows(tmp_path, "test", n=6, at_most=True)) == 5
    (tmp_path / "val.jsonl").write_text("\n")
    for split, n, words in (("test", 6, "only 5"), ("val", 1, "no rows"), ("train", 1, "does not exist")):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            load_rows(tmp_path, split, n=n)


GOOD = '{"question": "Où?", "answer": "là\\n#### 1,000 "}'.encode()


@pytest.mark.parametrize("before, between, after", [
    (b"\n", b"\n \n\n", b"\n\n"),
    (b"\xef\xbb\xbf", b"\r\n\r\n", b"")])  # byte-order mark; no last newline
def test_jsonl_of_the_world(tmp_path, before, between, after):
    """Broken if another program's line ends, blank lines or byte-order mark make a row fail."""
    (tmp_path / "train.jsonl").write_bytes(before + GOOD + between + GOOD + after)
    rows = load_rows(tmp_path, "train")
    first, second = (row.pop("where") for row in rows)
    assert rows == [{"question": "Où?", "answer": "là\n#### 1,000", "final": "1,000"}] * 2
    line = 1 + (before + between).count(b"\n")
    assert (first != second) and second == f"{tmp_path}/train.jsonl:{line}"


@pytest.mark.parametrize("line, reason", [
    (b'{"question": 7, "answer": "#### 7"}', "'question' must be a string, got 7"),
    (b'{"question": " ", "answer": "#### 7"}', "'question' must not be empty"),
    (b'{"question": "q", "answer": "7 ####"}', "'answer' must end in one '####' and the final"),
    (b'{"question": "q", "answer": "#### 1 #### 2"}', "'answer' must end in one '####'"),
    (b'["q", "a"]', r"expected an object, got \['q', 'a'\]"),
    (b"{'question': 'q'}", "not JSON: Expecting property name .* at column 2"),
    (b'{"question": "q", "answer": "#### 7", "id": ' + b"7" * 5000 + b"}", "this JSON cannot be read: .*4300 digits"),
    (b'{"question": "q", "answer": "#### 7", "tree": ' + b"[" * 10**5 + b"]" * 10**5 + b"}",
     "this JSON cannot be read: maximum recursion depth"),
    ("Où?".encode("latin-1"), "not UTF-8 text: .* 0xf9")])
def test_bad_rows_are_named(tmp_path, line, reason):
    """Broken if one bad line among thousands is not found, or what is wrong with it not said."""
    (tmp_path / "train.jsonl").write_bytes(GOOD + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=rf"train\.jsonl:2: {reason}"):
        load_rows(tmp_path, "train")


# ---- GSM8K and SmolLM2


@needs_gsm8k
def test_real_gsm8k(tmp_path, monkeypatch):
    """Broken if a row is lost or in two splits, or a final is no integer without its commas."""
    gsm8k.main(["--from", str(GSM8K_DIR), "--out", str(tmp_path / "gsm8k")])
    monkeypatch.setattr("data.tokens.DATA_DIR", str(tmp_path))
    rows = {split: load_rows("gsm8k", split) for split in ("train", "val", "test")}
    assert {split: len(r) for split, r in rows.items()} == {"train": 6973, "val": 500, "test": 1319}
    assert sorted(os.listdir(tmp_path / "gsm8k")) == ["test.jsonl", "train.jsonl"]
    assert len({row["where"] for row in rows["train"] + rows["val"]}) == 7473
    finals = [row["final"] for r in rows.values() for row in r]
    assert all(re.fullmatch(r"-?\d+", final.replace(",", "")) for final in finals)
    assert sum("," in final for final in finals) == 79 + 14
    assert sum(final.startswith("-") for final in finals) == 3 + 2


def test_smollm2_undoes_the_permutation():
    """Broken if query and key rows stay in GGUF's order: the model still talks, but badly."""
    gguf = pytest.importorskip("gguf")
    w = torch.arange(8 * 3).reshape(8, 3).float().numpy()  # 2 heads of 4, each a0 a1 b0 b1
    permuted = w.reshape(2, 2, 2, 3).swapaxes(1, 2).reshape(8, 3)  # a0 b0 a1 b1, as GGUF has it

    class Tensor:
        name, data, tensor_type = "blk.7.attn_q.weight", permuted, gguf.GGMLQuantizationType.F32

    config = {"num_attention_heads": 2, "head_dim": 4}
    [(name, undone)] = smollm2.read_weights([Tensor], config).items()
    assert name == "model.layers.7.self_attn.q_proj.weight" and (undone == w).all()
