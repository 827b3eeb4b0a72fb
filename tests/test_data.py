"""The data: true problems, splits that don't leak, exact supervised tokens, clear errors. No network."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch

from data import arithmetic, gsm8k, smollm2, tokens, wordproblems
from data.tokens import collate, encode, encode_row, encode_rows, load_encoding, load_rows
from data.wordproblems import HELD_OUT_FRAMES, HELD_OUT_TEMPLATES, SPLITS, generate

ROOT = Path(__file__).parents[1]
GSM8K_DIR = Path(os.environ.get("GSM8K_DIR", ROOT.parent / "shared" / "gsm8k"))
SMOLLM2_DIR = ROOT / "data" / "smollm2"
needs_gsm8k = pytest.mark.skipif(not (GSM8K_DIR / "test.jsonl").is_file(), reason="no GSM8K files: set GSM8K_DIR")
needs_smollm2 = pytest.mark.skipif(not SMOLLM2_DIR.is_dir(), reason="no data/smollm2: run python data/smollm2.py")

ANNOTATION = re.compile(r"(\d+)([-+*/])(\d+) = <<(\d+)([-+*/])(\d+)=(\d+)>>(\d+)")


def numbers_in(text):
    return [int(n) for n in re.findall(r"\d+", text)]


@pytest.fixture(scope="module")
def problems():
    """Every split at its defaults, plus the harder 5-6 operations."""
    rows = {split: generate(600, 1, split) for split in SPLITS}
    return rows | {"hard": generate(600, 1, "test", ops=(5, 6)), "few": generate(600, 2, "val", ops=(1, 1))}


# ---- the generator


def test_every_annotation_is_true(problems):
    """A wrong calculation or a final answer that isn't the last result would teach and grade nonsense."""
    signs = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
    for row in chain(*problems.values()):
        *lines, last = row["answer"].split("\n")
        assert row["answer"].count("####") == 1
        assert last == f"#### {row['final']}"
        assert len(lines) == row["n_ops"] == len(row["ops"])
        for line, op in zip(lines, row["ops"]):
            found = ANNOTATION.findall(line)
            assert len(found) == 1, line
            a, sign, b, *again, result, shown = found[0]
            assert [a, sign, b] == again and result == shown and sign == signs[op]
            a, b, result = int(a), int(b), int(result)
            if sign == "/":
                assert b * result == a, line  # exact
            else:
                assert result == {"+": a + b, "-": a - b, "*": a * b}[sign], line
            assert 2 <= result <= wordproblems.MAX_VALUE
        assert result == row["final"]


def test_steps_are_a_graph_over_the_given_numbers(problems):
    """An operand from nowhere, or a result that no later step uses, would make a problem unanswerable or padded."""
    for row in chain(*problems.values()):
        known, results, operands = numbers_in(row["question"]), [], []
        for a, _, b, *_, result, _ in ANNOTATION.findall(row["answer"]):
            assert int(a) in known and int(b) in known, row
            operands.append({int(a), int(b)})
            results.append(int(result))
            known.append(int(result))
        for i, result in enumerate(results[:-1]):
            assert any(result in later for later in operands[i + 1 :]), row


def test_not_every_problem_is_a_chain(problems):
    """If each step only used the result before it, the task could be solved without keeping quantities apart."""
    branching = 0
    for row in problems["train"]:
        steps = ANNOTATION.findall(row["answer"])
        branching += any(before[6] not in (step[0], step[2]) for before, step in pairwise(steps))
    assert 0.2 < branching / len(problems["train"]) < 0.8


def test_distractors_are_on_demand_and_never_used():
    """A distractor that the solution uses is no distractor; one that nobody asked for would spoil the ablation."""
    plain, distracted = (generate(300, 3, "train", distractor=p) for p in (0, 1))
    sentences = [re.sub(r"\\{\w\\}", ".+", re.escape(s)) for s in wordproblems.DISTRACTORS.split("|")]
    for row in plain:
        assert set(numbers_in(row["question"])) <= set(numbers_in(row["answer"]))
        assert not any(re.search(s, row["question"]) for s in sentences)
    for row in distracted:
        extra = [n for n in numbers_in(row["question"]) if n not in numbers_in(row["answer"])]
        assert len(extra) == 1, row
        assert any(re.search(s, row["question"]) for s in sentences)


def test_splits_share_no_masked_question(problems):
    """A test question that differs from a training question in its numbers only would measure memory."""

    def masked(rows):
        return {re.sub(r"\d+", "#", row["question"]) for row in rows}

    train = masked(problems["pretrain"] + problems["train"] + generate(2000, 9, "train", ops=(1, 1)))
    val = masked(problems["val"] + problems["few"])
    test = masked(sum((problems[split] for split in SPLITS if split.startswith("test")), problems["hard"]))
    test |= masked(generate(500, 9, "test", ops=(1, 1)))
    assert not train & val and not train & test and not val & test


def test_held_out_numbers_are_given_in_one_split_only(problems):
    """If train had seen them, test_numbers would not test generalisation to new numbers."""
    lo, hi = wordproblems.HELD_OUT_NUMBERS
    factors = range(wordproblems.FACTORS[0], wordproblems.FACTORS[1] + 1)
    for name, rows in problems.items():
        for row in rows:
            given = numbers_in(row["question"])
            if name == "test_numbers":
                assert all(lo <= n <= hi or n in factors for n in given) and max(given) >= lo, row
            else:
                assert all(wordproblems.NUMBERS[0] <= n <= wordproblems.NUMBERS[1] for n in given), row


def test_held_out_templates_and_frames_are_told_in_one_split_only(problems):
    """If train had told them, test_templates would not test generalisation to new phrasings."""
    held_out = {name for templates in HELD_OUT_TEMPLATES.values() for name in templates}
    phrases = ["gift with", "behind", "machine", "bags equally", "shops,", "Each day", "washed", "must", "giving away"]
    for name, rows in problems.items():
        for row in rows:
            frame, steps = row["template"].split(":")
            told = held_out & set(steps.split("+"))
            assert bool(told) == (name == "test_templates") == (frame in HELD_OUT_FRAMES), row
            if not told:
                assert not any(phrase in row["question"] for phrase in phrases), row
    used = {step for row in problems["test_templates"] for step in row["template"].split(":")[1].split("+")}
    assert held_out <= used


def test_same_seed_same_rows_in_another_process(problems):
    """Hash randomisation or a global RNG in the generator would give everybody another benchmark."""
    code = "import json; from data.wordproblems import generate; print(json.dumps(generate(50, 1, 'train')))"
    env = os.environ | {"PYTHONHASHSEED": "123"}
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == problems["train"][:50]
    assert generate(50, 2, "train") != problems["train"][:50]
    assert len({row["question"] for row in problems["train"]}) == len(problems["train"])


def test_the_benchmark_never_changes():
    """Published numbers are for these very test rows: a changed template or range must be a conscious change here."""
    rows = [{k: v for k, v in row.items() if k != "spans"} for row in load_rows("wordproblems", "test", n=100)]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()  # spans follow from the texts: tests/test_labels.py
    assert digest[:16] == "716e4efbe4873ec5"


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(n=0), "n=0 problems"),
        (dict(split="exam"), "split 'exam' is none of pretrain, train, val"),
        (dict(ops=(0, 3)), r"ops \(0, 3\) must be \(lo, hi\) with 1 <= lo <= hi <= 6"),
        (dict(ops=(3, 7)), r"ops \(3, 7\)"),
        (dict(numbers=(150, 300)), r"numbers \(150, 300\) must be"),
        (dict(distractor=2), "distractor 2 is a probability"),
        (dict(numbers=(2, 3), max_value=3), "-operation problem fits numbers"),
    ],
)
def test_generator_refuses(kwargs, message):
    """Impossible wishes must end in a clear error, not in an endless loop."""
    with pytest.raises(ValueError, match=message):
        generate(**dict(n=3, seed=0) | kwargs)


def test_number_range_control():
    """`numbers` and `max_value` must hold for every given number and result."""
    for row in generate(200, 0, "train", numbers=(10, 19), max_value=50, distractor=0):
        assert max(numbers_in(row["answer"])) <= 50
        assert all(2 <= n <= 9 or 10 <= n <= 19 for n in numbers_in(row["question"]))


# ---- tokens


@pytest.fixture(scope="module")
def enc():
    return load_encoding("wordproblems")


def test_digits_are_never_merged(enc, problems):
    """A merged '12' would hide from the model that 12 + 7 ends in 9."""
    assert not [t for t in enc.token_byte_values() if len(t) > 1 and any(chr(b).isdigit() for b in t)]
    row = problems["train"][0]
    ids = encode(enc, row["answer"])
    assert sum(enc.decode([i]).isdigit() for i in ids) == sum(c.isdigit() for c in row["answer"])


def test_bpe_round_trip_and_size(enc, problems):
    """Every text must survive encoding; <|endoftext|> is the last id and never comes out of plain text."""
    for text in [row["question"] + row["answer"] for row in problems["hard"]] + [
        "naïve 東京 🙂\n\t x=2;  <|endoftext|>"
    ]:
        ids = encode(enc, text)
        assert enc.decode(ids) == text and enc.eot_token not in ids
    assert enc.eot_token == enc.n_vocab - 1 == 767


def test_bpe_file_is_what_the_trainer_writes(tmp_path):
    """The stored vocabulary must come out of the published command (here on fewer problems, up to the first merges)."""
    wordproblems.train_bpe(str(tmp_path / "a"), n=10, vocab=270)
    wordproblems.train_bpe(str(tmp_path / "b"), n=10, vocab=270)
    text = (tmp_path / "a").read_text()
    assert text == (tmp_path / "b").read_text() and len(text.splitlines()) == 270
    stored = Path(wordproblems.BPE_FILE).read_text().splitlines()
    assert text.splitlines()[:256] == stored[:256]
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, stored)}
    assert list(ranks.values()) == list(range(767))
    for token, rank in ranks.items():  # a merge of two earlier tokens
        assert rank < 256 or any(
            ranks.get(token[:i], rank) < rank > ranks.get(token[i:], rank) for i in range(1, len(token))
        )
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_supervised_tokens_are_exactly_the_answer_and_the_end(enc):
    """Supervising a prompt token, or missing the end token, would change what every reported loss means."""
    row = {"question": "Tom had 12 eggs.", "answer": "Tom had 12+7 = <<12+7=19>>19 eggs.\n#### 19"}
    ids, n_prompt = encode_row(row, enc)
    prompt = ["Question", ":", " Tom", " had", " ", "1", "2", " eggs", ".\n", "Answer", ":"]
    answer = [
        " Tom",
        " had",
        " ",
        "1",
        "2",
        "+",
        "7",
        " = <<",
        "1",
        "2",
        "+",
        "7",
        "=",
        "1",
        "9",
        ">>",
        "1",
        "9",
        " eggs",
    ]
    answer += [".\n####", " ", "1", "9", "<|endoftext|>"]
    assert [enc.decode([i]) for i in ids] == prompt + answer and n_prompt == len(prompt)
    idx, targets = collate([(ids, n_prompt)])
    assert targets[targets != -1].tolist() == ids[n_prompt:]


def test_collate_by_hand():
    """Targets one position off, or a labelled padding token, would train the model on the wrong thing."""
    idx, targets = collate([([5, 6, 7, 8], 2), ([1, 2, 3, 4, 9, 9], 4)], pad=0)
    assert idx.tolist() == [[5, 6, 7, 0, 0], [1, 2, 3, 4, 9]]
    assert targets.tolist() == [[-1, 7, 8, -1, -1], [-1, -1, -1, 9, 9]]
    assert idx.dtype == targets.dtype == torch.long


def test_rows_too_long_are_counted_and_left_out(enc, problems):
    """A truncated row would lose its answer; a silently dropped one would shrink the data unnoticed."""
    rows = problems["hard"][:50]
    lengths = [len(encode_row(row, enc)[0]) for row in rows]
    block_size = sorted(lengths)[25] - 1  # the model sees all but the last token
    items, left_out = encode_rows(rows, enc, block_size)
    assert left_out == sum(n - 1 > block_size for n in lengths) > 0
    assert [len(ids) for ids, _ in items] == [n for n in lengths if n - 1 <= block_size]
    with pytest.raises(ValueError, match="none of the 50 rows fits block_size=20"):
        encode_rows(rows, enc, 20)
    with pytest.raises(ValueError, match="no rows"):
        encode_rows([], enc, 20)


# ---- rows of every task


def test_load_rows_wordproblems():
    """Defaults must be the same everywhere, and the gold answer a string from the data."""
    sizes = dict(train=2000, val=500, test_numbers=20)
    for split, n in sizes.items():
        rows = load_rows("wordproblems", split, n=n if split == "test_numbers" else None)
        assert len(rows) == n and all(row["answer"].endswith("#### " + row["final"]) for row in rows)
    with pytest.raises(ValueError, match="split 'exam'"):
        load_rows("wordproblems", "exam")


@pytest.mark.parametrize(
    "line", ['{"question": "q"}', "[]", "{", '{"question": "q", "answer": "7"}', '{"question": "", "answer": "#### 7"}',
             '{"question": "q", "answer": "#### "}', '{"question": "q", "answer": "#### 1 #### 2"}', ""]
)  # fmt: skip
def test_bad_rows_are_named(tmp_path, line):
    """One bad line among thousands must be found by file and line number."""
    (tmp_path / "train.jsonl").write_text('{"question": "q", "answer": "a\\n#### 1,000 "}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"train.jsonl, line 2: "):
        load_rows(str(tmp_path), "train")


def test_folder_of_rows(tmp_path):
    """Anybody's own {split}.jsonl must work, and n must not silently give fewer rows."""
    rows = [{"question": f"q{i}", "answer": f"a\n#### {i},000"} for i in range(5)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_rows(str(tmp_path), "test")[3] == rows[3] | {"final": "3,000"}
    some = load_rows(str(tmp_path), "test", n=3, seed=1)
    assert len(some) == 3 and some == load_rows(str(tmp_path), "test", n=3, seed=1)
    with pytest.raises(ValueError, match="it has only 5"):
        load_rows(str(tmp_path), "test", n=6)
    with pytest.raises(ValueError, match="n=0 rows"):
        load_rows(str(tmp_path), "test", n=0)
    with pytest.raises(FileNotFoundError, match=r"val\.jsonl does not exist"):
        load_rows(str(tmp_path), "val")
    (tmp_path / "val.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"val\.jsonl has no rows"):
        load_rows(str(tmp_path), "val")


# ---- GSM8K


def fake_gsm8k(folder, monkeypatch):
    """Small stand-ins for the official files, with the checksums to match."""
    folder.mkdir()
    sums = {}
    for name, n in (("train.jsonl", 600), ("test.jsonl", 5)):
        text = "".join(json.dumps({"question": f"{name} {i}", "answer": f"a\n#### {i}"}) + "\n" for i in range(n))
        (folder / name).write_text(text)
        sums[name] = hashlib.sha256(text.encode()).hexdigest()
    monkeypatch.setattr(gsm8k, "SHA256", sums)
    return folder


def test_gsm8k_script_and_split(tmp_path, monkeypatch, capsys):
    """The checked files arrive complete, and val is carved off train without overlap."""
    source, out = fake_gsm8k(tmp_path / "source", monkeypatch), tmp_path / "data" / "gsm8k"
    gsm8k.main(["--from", str(source), "--out", str(out)])
    assert sorted(os.listdir(out)) == ["test.jsonl", "train.jsonl"]
    assert (out / "train.jsonl").read_bytes() == (source / "train.jsonl").read_bytes()
    monkeypatch.setattr("data.tokens.DATA_DIR", str(tmp_path / "data"))
    train, val, test = (load_rows("gsm8k", split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (100, 500, 5)
    assert len({row["question"] for row in train + val}) == 600
    with pytest.raises(ValueError, match="split 'exam' of gsm8k"):
        load_rows("gsm8k", "exam")


def test_gsm8k_checksum_mismatch_writes_nothing(tmp_path, monkeypatch, capsys):
    """A truncated or edited file must not pass for the official one."""
    source, out = fake_gsm8k(tmp_path / "source", monkeypatch), tmp_path / "out"
    with open(source / "test.jsonl", "a") as f:
        f.write("\n")
    with pytest.raises(SystemExit) as stop:
        gsm8k.main(["--from", str(source), "--out", str(out)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "test.jsonl is not the official file: its sha256 is" in error
    assert not out.exists()


def test_gsm8k_without_network_or_files(tmp_path, monkeypatch, capsys):
    """Without network the user must learn about --from, and about the script when the files are missing."""

    def refuse(url, timeout):
        raise OSError("no network")

    monkeypatch.setattr(gsm8k.urllib.request, "urlopen", refuse)
    for argv, hint in (([], "use --from DIR"), (["--from", str(tmp_path)], "cannot read")):
        with pytest.raises(SystemExit) as stop:
            gsm8k.main([*argv, "--out", str(tmp_path / "out")])
        assert stop.value.code == 2 and hint in capsys.readouterr().err
    monkeypatch.setattr("data.tokens.DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"run `python data/gsm8k\.py`"):
        load_rows("gsm8k", "train")


@needs_gsm8k
def test_real_gsm8k(tmp_path, monkeypatch, enc):
    """The official files: 7,473 and 1,319 rows, every final an integer once the thousands commas are gone."""
    gsm8k.main(["--from", str(GSM8K_DIR), "--out", str(tmp_path / "gsm8k")])
    monkeypatch.setattr("data.tokens.DATA_DIR", str(tmp_path))
    rows = {split: load_rows("gsm8k", split) for split in ("train", "val", "test")}
    assert {split: len(r) for split, r in rows.items()} == {"train": 6973, "val": 500, "test": 1319}
    finals = [row["final"] for r in rows.values() for row in r]
    assert all(re.fullmatch(r"-?\d+", final.replace(",", "")) for final in finals)
    assert sum("," in final for final in finals) == 79 + 14 and sum(final.startswith("-") for final in finals) == 3 + 2
    items, left_out = encode_rows(rows["test"][:100], enc, 10**6)  # a small BPE reads any text
    assert enc.decode(items[0][0][items[0][1] : -1]) == " " + rows["test"][0]["answer"] and left_out == 0


# ---- SmolLM2


def test_smollm2_bad_source(tmp_path, capsys):
    """A wrong file must be refused by name before anything is written."""
    pytest.importorskip("gguf")
    pytest.importorskip("safetensors")
    (tmp_path / "x.gguf").write_bytes(b"not a gguf file at all")
    (tmp_path / "x.whl").write_bytes(b"not a wheel")
    for name in ("x.gguf", "x.whl", "missing.gguf"):
        with pytest.raises(SystemExit) as stop:
            smollm2.main(["--from", str(tmp_path / name), "--out", str(tmp_path / "out")])
        assert stop.value.code == 2 and f"{name} is neither a wheel" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_smollm2_undoes_the_permutation():
    """Query and key rows left in GGUF's order rotate the wrong pairs: the model still talks, but badly."""
    gguf = pytest.importorskip("gguf")
    w = torch.arange(8 * 3).reshape(8, 3).float().numpy()  # 2 heads of 4: rows a0 a1 b0 b1 per head in Hugging Face
    permuted = w.reshape(2, 2, 2, 3).swapaxes(1, 2).reshape(8, 3)  # a0 b0 a1 b1, as llama.cpp's converter writes it

    class Tensor:
        name, data, tensor_type = "blk.7.attn_q.weight", permuted, gguf.GGMLQuantizationType.F32

    config = {"num_attention_heads": 2, "head_dim": 4}
    [(name, undone)] = smollm2.read_weights([Tensor], config).items()
    assert name == "model.layers.7.self_attn.q_proj.weight" and (undone == w).all()


@needs_smollm2
def test_smollm2_knows_paris():
    """Wrong tensor names, norms, rotary base or permutation: the real model would not answer this."""
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(SMOLLM2_DIR, dtype=torch.float32)
    enc = load_encoding(SMOLLM2_DIR)
    ids = encode(enc, "The capital of France is")
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    assert enc.decode([logits.argmax().item()]) == " Paris"


def test_the_other_tasks_load_by_name(tmp_path, monkeypatch):
    """Broken if `--data arithmetic` or `--data commonsenseqa` did not reach its generator or its published files."""
    rows = load_rows("arithmetic", "val", 5, seed=3)
    assert rows == arithmetic.generate(5, 3, "val") and len(load_rows("arithmetic", "val")) == 500
    with pytest.raises(FileNotFoundError, match=r"commonsenseqa.train_rand_split\.jsonl"):
        load_rows("commonsenseqa", "train")
    monkeypatch.setattr(tokens, "DATA_DIR", str(tmp_path))
    (tmp_path / "commonsenseqa").mkdir()
    choices = [{"label": "A", "text": "sky"}, {"label": "B", "text": "sea"}]
    lines = [{"answerKey": "B", "id": str(i), "question": {"question_concept": "fish", "stem": f"Where is fish {i}?",
                                                           "choices": choices}} for i in range(3)]
    (tmp_path / "commonsenseqa" / "dev_rand_split.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    rows = load_rows("commonsenseqa", "test", 2)
    assert len(rows) == 2 and rows[0]["answer"] == "#### B" and rows[0]["question"].endswith("(A) sky\n(B) sea")
    with pytest.raises(ValueError, match="only 3"):
        load_rows("commonsenseqa", "test", 4)
