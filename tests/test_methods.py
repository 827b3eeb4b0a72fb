"""The methods of train.py beside dlr and sft: what each trains, and what each baseline does to the data."""

import json
import random

import pytest
import torch

import train
from data.baselines import N_PAUSE, VQ_CHUNK, VQ_CODES, assort, solution_chunks, vqvae_codes
from data.tokens import collate, encode_row, load_encoding, load_rows
from dlr import GPT, GPTConfig, load_checkpoint
from eval import answer, load_run
from eval import main as eval_main

SMALL = ["--init_from", "scratch", "--n_layer", "2", "--n_embd", "32", "--rows", "24", "--epochs", "2", "--save_every",
         "2", "--eval_rows", "-1", "--device", "cpu", "--no-baseline"]
ENC = load_encoding("wordproblems")


@pytest.mark.parametrize("method, learns", [
    ("sft", {"lm"}), ("dlr", {"lm", "codebook", "router"}), ("static", {"lm", "codebook"}),
    ("frozen", {"codebook", "router"}), ("random_router", {"lm", "codebook"}), ("pause", {"lm"}),
    ("tokenassorted", {"lm"})])
def test_each_method_trains_what_it_says(tmp_path, method, learns):
    """Broken if a control were not one: a frozen LM that moves, a random router that learns, codes in plain SFT."""
    argv = [*SMALL, "--method", method, "--out", str(tmp_path / "run")]
    cfg = train.parse(argv)
    torch.manual_seed(cfg.seed)
    before = train.make_model(cfg)[0].state_dict()
    train.main(argv)
    after = load_checkpoint(tmp_path / "run" / "ckpt.pt")["model"]
    moved = {"lm": set()}
    for name, old in before.items():
        part = name.split(".")[0] if name.startswith(("codebook", "router")) else "lm"
        if name != "bigram":
            moved.setdefault(part, set()).add(not torch.equal(old, after[name][: len(old)]))
    assert {part for part, seen in moved.items() if seen == {True}} == learns, "every tensor of these parts must move"
    assert {part for part, seen in moved.items() if seen == {False}} == {"lm", "codebook", "router"} - learns
    assert len(after["codebook.weight"]) == (1 if method == "static" else 32)


def test_a_control_cannot_be_given_other_settings(tmp_path, capsys):
    """Broken if `--method static --n_codes 8` silently trained something else than it says."""
    for flags, words in [(["--method", "static", "--n_codes", "8"], "--n_codes 1"),
                         (["--method", "random_router", "--n_rollouts", "4"], "--n_rollouts 0"),
                         (["--select", "likelihood", "--n_rollouts", "0"], "--n_rollouts"),
                         (["--method", "tokenassorted", "--data", "arithmetic"], "no answer of arithmetic has 16"),
                         (["--method", "nothing"], "nothing"), (["--dtype", "int8"], "int8")]:
        with pytest.raises(SystemExit) as stop:
            train.main([*SMALL, *flags, "--out", str(tmp_path / "run")])
        assert stop.value.code == 2 and words in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_no_search_without_rollouts():
    """Broken if n_rollouts 0 searched, or graded other codes than the router's argmax."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(50, 32, 2, 2, 1, 16, n_codes=4, chunk=2))
    torch.nn.init.normal_(model.codebook.weight)
    idx = torch.randint(50, (3, 12))
    targets = torch.roll(idx, -1, 1)
    model.rollouts = None  # a call would fail
    loss, terms = model.dlr_loss(idx, targets, n_rollouts=0, select="advantage", alpha_reg=0.0)
    off, on = model(idx, targets, codes="off")[1], model(idx, targets)[1]
    assert loss.item() == pytest.approx(on.item(), rel=1e-5) and on != off  # generalist - info gain
    assert terms["policy"] == 0 and terms["info_gain"].item() == pytest.approx((off - on).item(), abs=1e-5)
    del model.rollouts
    with pytest.raises(ValueError, match="n_rollouts"):
        model.search(idx, targets, n_rollouts=0)


@pytest.mark.parametrize("tie", [True, False])
def test_added_tokens_change_nothing_but_the_vocabulary(tie):
    """Broken if a grown vocabulary disturbed the old tokens, untied a tied head, or did not start at the mean."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(50, 32, 2, 2, 1, 16, tie_embeddings=tie))
    idx = torch.randint(50, (2, 9))
    old, mean = model(idx)[0], model.embed_tokens.weight.mean(0)
    assert model.add_tokens(3) == 50 and model.config.vocab_size == 53
    torch.testing.assert_close(model(idx)[0][..., :50], old)
    for row in model.embed_tokens.weight[50:]:
        torch.testing.assert_close(row, mean)
    assert (model.lm_head.weight is model.embed_tokens.weight) == tie
    again = GPT.from_checkpoint({"config": vars(model.config), "model": model.state_dict(), "path": "x"})
    torch.testing.assert_close(again(idx)[0], model(idx)[0])


def test_pauses_stand_between_prompt_and_answer():
    """Broken if the pause tokens were labels, missing at inference, or not exactly 8 after the prompt."""
    row = load_rows("wordproblems", "train", 1)[0]
    ids, n_prompt = encode_row(row, ENC, [900] * N_PAUSE)
    plain, n_plain = encode_row(row, ENC)
    assert N_PAUSE == 8 and n_prompt == n_plain + 8
    assert ids == plain[:n_plain] + [900] * 8 + plain[n_plain:]
    _, targets = collate([(ids, n_prompt)])
    assert targets[targets >= 0].tolist() == plain[n_plain:]


def test_a_pause_run_is_evaluated_with_its_pauses(tmp_path, capsys):
    """Broken if eval.py asked a model trained with pauses without them: its likelihood would differ from train.py's."""
    argv = [a if a != "-1" else "4" for a in SMALL]
    train.main([*argv, "--method", "pause", "--max_new_tokens", "4", "--out", str(tmp_path / "run")])
    model, enc, suffix, settings = load_run(tmp_path / "run")
    assert suffix == [enc.n_vocab] * 8 and model.config.vocab_size == enc.n_vocab + 1 and settings["method"] == "pause"
    eval_main([str(tmp_path / "run"), "--rows", "4", "--arms", "off", "--max_new_tokens", "4", "--device", "cpu"])
    mine = json.loads((tmp_path / "run" / "eval-wordproblems-test.json").read_text())["arms"]["off"]["nats"]
    trained = json.loads((tmp_path / "run" / "summary.json").read_text())["arms"]["off"]["nats"]
    assert mine == pytest.approx(trained, rel=1e-6)


def test_added_tokens_have_no_text(monkeypatch):
    """Broken if a latent or pause token in a generated answer crashed decoding or left something in the text."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(ENC.n_vocab, 64, 2, 2, 1, 16))
    first, text = model.add_tokens(2), ENC.encode("12 apples")
    monkeypatch.setattr(model, "generate", lambda *a, **k: [[first, *text, first + 1]])
    assert answer(model, ENC, [[1, 2]], ["off"])["off"] == ["12 apples"]


def test_assorted_rows_by_hand():
    """Broken if codes replaced the wrong tokens, lost the prompt or the rest, or stood outside <abs> and </abs>."""
    ids = list(range(100, 100 + 3 + 2 * VQ_CHUNK + 5))  # 3 of prompt, 2 full chunks, 5 more
    seen = {}
    for seed in range(40):
        out, n_prompt = assort((ids, 3), [7, 9], 800, random.Random(seed))
        assert n_prompt == 3
        seen[len(out)] = out
    assert sorted(seen) == [12, 11 + VQ_CHUNK, 40]
    assert seen[40] == ids
    assert seen[11 + VQ_CHUNK] == [*ids[:3], 800, 809, 801, *ids[3 + VQ_CHUNK :]]
    assert seen[12] == [*ids[:3], 800, 809, 811, 801, *ids[3 + 2 * VQ_CHUNK :]]


def test_the_final_answer_is_never_abstracted():
    """Broken if codes could hide the #### line, which is what is graded."""
    counts = []
    for row in load_rows("wordproblems", "train", 50):
        ids, n_prompt = encode_row(row, ENC)
        n = solution_chunks(ENC, ids[n_prompt:])
        rest = ENC.decode(ids[n_prompt + n * VQ_CHUNK :])
        assert "####" in rest and rest.split("####")[1].startswith(" " + row["final"])
        longer = ids[n_prompt + (n + 1) * VQ_CHUNK :]
        assert "####" not in ENC.decode(longer), "one chunk more would have fitted"
        counts.append(n)
    assert max(counts) >= 3
    assert solution_chunks(ENC, ENC.encode("#### 5")) == 0


def test_the_vqvae_tells_chunks_apart():
    """Broken if the quantiser ignored the tokens: equal chunks must share a code, clearly different ones must not."""
    torch.manual_seed(0)
    embedding = torch.randn(20, 8)
    kinds = [[i] * VQ_CHUNK for i in range(6)]
    answers = [kinds[i % 6] + kinds[(i + 1) % 6] + [3] for i in range(60)] + [[1, 2]]
    codes = vqvae_codes(embedding, answers, steps=100)
    assert [len(c) for c in codes] == [2] * 60 + [0]
    of_kind = [{codes[i][0] for i in range(60) if i % 6 == kind} for kind in range(6)]
    assert all(len(c) == 1 for c in of_kind) and len(set.union(*of_kind)) == 6
    assert all(codes[i][1] == codes[(i + 1) % 6][0] for i in range(60))
    assert all(0 <= c < VQ_CODES for pair in codes for c in pair)


def test_a_row_is_assorted_anew_each_time_and_resumes_to_the_same_bits(tmp_path, monkeypatch):
    """Broken if every epoch hid the same tokens, or an interruption changed which ones."""
    flags = [*SMALL, "--method", "tokenassorted"]
    lengths, real = [], train.collate
    monkeypatch.setattr(train, "collate", lambda items: lengths.extend(len(i[0]) for i in items) or real(items))
    train.main([*flags, "--out", str(tmp_path / "whole")])
    assert sorted(lengths[:24]) != sorted(lengths[24:]), "two epochs over the same 24 rows"
    steps, step = [], torch.optim.AdamW.step

    def crash(self, *a, **k):
        steps.append(1)
        if len(steps) == 4:
            raise RuntimeError("power cut")
        return step(self, *a, **k)

    monkeypatch.setattr(torch.optim.AdamW, "step", crash)
    with pytest.raises(RuntimeError):
        train.main([*flags, "--out", str(tmp_path / "cut")])
    train.main(["--resume", "--out", str(tmp_path / "cut")])
    a, b = (load_checkpoint(tmp_path / name / "ckpt.pt")["model"] for name in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_bfloat16_is_close_to_float32(tmp_path):
    """Broken if --dtype bfloat16 changed more than rounding, or did nothing."""
    losses = {}
    for dtype in ("float32", "bfloat16"):
        train.main([*SMALL, "--dtype", dtype, "--method", "sft", "--out", str(tmp_path / dtype)])
        lines = (tmp_path / dtype / "metrics.jsonl").read_text().splitlines()
        losses[dtype] = [json.loads(line)["loss"] for line in lines]
        saved = load_checkpoint(tmp_path / dtype / "ckpt.pt")["model"]
        assert all(v.dtype == torch.float32 for v in saved.values()), "the master weights stay float32"
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.01) and losses["bfloat16"] != losses["float32"]
