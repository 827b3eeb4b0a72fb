"""analysis/: causal tests on a model whose codes provably matter; the two baselines; the table."""

import json
import math
import random
import subprocess
import types

import numpy as np
import pytest
import tiktoken
import torch

import eval as evaluation
from analysis import baselines, causal, runs
from data.tokens import END, encode_row, load_encoding, load_rows
from dlr import GPT, GPTConfig
from eval import arm_codes

# A language of seven tokens a row. "Question: " is padded so that the key digit starts chunk 1, in
# which the answer digit lies, too. Blocks are silenced: after the last space the answer can only come
# from the code that the router chose at the key.
PIECES = {b"Question: ": 256, b"abcdefghi": 257, b"\nAnswer:": 258, b" ####": 259}
ENC = tiktoken.Encoding("toy", pat_str=r"Question: | ####|\nAnswer:|[a-i]+|\d| ",
                        mergeable_ranks={bytes([i]): i for i in range(256)} | PIECES,
                        special_tokens={END: 260})
V, DIGIT = 261, [ord(str(d)) for d in range(10)]
FILL, UNUSED, ALPHA = 10, 11, 0.5  # the code of the first chunk; one that never fires
KEYS = [*range(10), 0, 0]  # key 0 three times


def reader():
    """Code d fires at key d and says that the answer is (d + 3) % 10: all right with its codes."""
    model = GPT(GPTConfig(V, 16, 1, 1, 1, V + 13, n_codes=12, chunk=6, steer_layer=0,
                          steer_scale=ALPHA, route_norm=False, tie_embeddings=False,
                          norm_eps=1e-12)).eval()
    for p in model.parameters():
        p.data.zero_()
    model.norm.weight.data.fill_(1.0)
    model.embed_tokens.weight.data[:, :V] = torch.eye(V)
    head, codebook = model.lm_head.weight.data, model.codebook.weight.data
    for a, b in ((258, 259), (259, ord(" ")), *((d, 260) for d in DIGIT)):
        head[b, a] = 5.0  # after "\nAnswer:" comes " ####", then " ", and after a digit the end
    after_norm = ALPHA * math.sqrt((V + 13) / (1 + ALPHA**2))  # of a code in a state of rms 1
    for d in range(10):
        head[DIGIT[(d + 3) % 10], V + d] = 4.0 / after_norm  # what code d says, with logit 4
        codebook[d, V + d] = 1.0
        model.router.weight.data[d, DIGIT[d]] = 1.0
    codebook[FILL, V + 11] = codebook[UNUSED, V + 12] = 1.0  # no digit
    model.router.weight.data[FILL, 256] = 1.0
    return model


def problems(keys):
    """Rows whose key digit is token 6, the start of chunk 1; the answer is (key + 3) % 10."""
    return [{"question": f"{'abcdefghi ' * 2}abcdefghi{key}", "answer": f"#### {(key + 3) % 10}",
             "final": str((key + 3) % 10)} for key in keys]


@pytest.fixture(scope="module")
def analyzed():
    model = reader()
    # two problems a batch: those in which a replaced code is silent are not run again
    return model, causal.analyze(model, ENC, problems(KEYS), max_new_tokens=4, batch_size=2, chosen="code 0")


# ---- causal.py


def test_every_arm_has_the_numbers_known_in_advance(analyzed):
    """Broken if an arm did something else to the codes than it says, in likelihood or answers."""
    used = [torch.tensor([FILL, k]) for k in KEYS]
    tables = {"random": arm_codes("random", range(12), None, 2, reader(), 0),
              "shuffled": arm_codes("shuffled", range(12), used, 2, reader(), 0),
              "position": causal.position_codes(used, [1] * 12, 2, 0)}
    right = {name: np.mean([code == key for code, key in zip(table[:, 1].tolist(), KEYS)])
             for name, table in tables.items()}
    right |= {"on": 1.0, "off": 0.0, "mean": 3 / 12}  # the mean points most to the answer of key 0
    right |= {f"code {code}": KEYS.count(code) / 12 for code in range(10)}  # everywhere: right at its own key
    right |= {f"code {FILL}": 0.0, f"code {UNUSED}": 0.0}
    assert 0 < right["shuffled"] < 1 and right["position"] < 1, "no test if these are like on"
    arms = analyzed[1]["arms"]
    assert {name: arm["strict"] for name, arm in arms.items()} == pytest.approx(right)
    for name in right.keys() - {"on"}:
        hurt = round(12 * (1 - right[name]))
        assert [arms[name][key] for key in ("helped", "hurt", "same")] == [0, hurt, 12 - hurt]
    # 4 answer tokens, 3 of them certain: the code's digit has logit 4, the 260 other tokens 0.
    L = math.log(V - 1 + math.exp(4.0))
    nats = {name: L - 4 * right[name] for name in ("on", "position", "code 0", "code 5")} | {"off": math.log(V)}
    assert {name: arms[name]["nats"] for name in nats} == pytest.approx(
        {name: x / 4 for name, x in nats.items()}, abs=1e-4)
    assert arms["off"]["nats_minus_on"][0] == pytest.approx((math.log(V) - L + 4) / 4, abs=1e-4)


def test_replacing_a_code_hurts_exactly_its_problems(analyzed):
    """Broken if an ablation touched other codes, missed its own or left a trace in the model."""
    model, result = analyzed
    costs = 4 + math.log(V) - math.log(V - 1 + math.exp(4.0)), 4  # the filler's code; a wrong digit
    for code in result["codes"][:10]:
        n, found = KEYS.count(code["code"]), code["ablation"]
        assert (code["problems"], code["chunks"], found["hurt"], found["helped"]) == (n, n, n, 0)
        assert found["mcnemar_p"] == pytest.approx(min(1, 2 * 0.5**n))
        assert found["p_holm"] == 1  # 11 tests
        assert costs[0] - 1e-3 < found["nats_minus_on"][0] * 48 / n < costs[1] + 1e-3
    filler, unused = result["codes"][FILL], result["codes"][UNUSED]
    assert filler["chunks"] == 12 and filler["ablation"]["changes_nothing"]  # steers nothing scored
    assert unused["ablation"] is None and unused["chunks"] == 0
    assert result["sham"]["code"] == UNUSED and result["sham"]["changes_nothing"]
    untouched = reader().state_dict()
    assert all(torch.equal(v, untouched[k]) for k, v in model.state_dict().items())


def test_position_codes_keep_what_is_at_each_place():
    """Broken if "position" changed how often a code stands at a place, counted from the answer."""
    codes = [torch.tensor([0, 1, 2, 3]), torch.tensor([5, 6, 7]), torch.tensor([9, 10, 11, 12])]
    starts = [2, 1, 1]  # the answer starts at codes 2, 6 and 10
    out = causal.position_codes(codes, starts, 5, 0)
    for place, pool in ((-1, [1, 5, 9]), (0, [2, 6, 10]), (1, [3, 7, 11])):
        assert sorted(int(out[i, start + place]) for i, start in enumerate(starts)) == pool
    assert out[0, 4] == out[1, 3] == out[2, 3] == 12  # where only one row has a code
    drawn = {int(causal.position_codes(codes, starts, 5, seed)[0, 2]) for seed in range(20)}
    assert drawn == {2, 6, 10}


def test_what_changes_nothing_is_reported():
    """Broken if one static code, the control, failed, or rounding passed for a change."""
    model = GPT(GPTConfig(V, 16, 1, 1, 1, 32, n_codes=1, chunk=6)).eval()
    torch.nn.init.normal_(model.codebook.weight)
    with torch.autocast("cpu", torch.bfloat16):
        found = causal.analyze(model, ENC, problems([1, 2, 3]), generate=False)
    assert found["codes"][0]["ablation"] is None and found["sham"] is None
    assert found["arms"]["mean"]["changes_nothing"] and found["arms"]["random"]["changes_nothing"]
    assert not found["arms"]["off"]["changes_nothing"] and "strict" not in found["arms"]["on"]


def test_words_claim_no_more_than_the_numbers(analyzed):
    """Broken if few problems gave a verdict, or a sentence said otherwise than the intervals."""
    result = analyzed[1]

    def said(**changed):
        return "\n".join(causal.findings({**result, "problems": 300, **changed}))

    assert "No verdict from 12 problems" in said(problems=12)
    supported, refuted = said().split("Not supported:")
    assert "the router's codes help at all" in supported and "routes beat the mean vector" in supported
    weak = {**result["arms"]["off"], "nats_minus_on": [0.1, -0.1, 0.3]}
    assert "Not supported: the router's codes help at all" in said(arms={**result["arms"], "off": weak})
    assert "CHANGES something" in said(sham={**result["sham"], "changes_nothing": False})


def test_a_headline_follows_from_the_lines_below_it(analyzed):
    """Broken if two codes in equal use were "barely" active, or what untrained routers tell, too, were a "Yes"."""
    result = analyzed[1]

    def said(usage=(0.5, 0.5), untrained=0.0):
        codes = [code | {"share": share} for code, share in zip(result["codes"], usage)]
        book = causal.codebook(torch.eye(2), torch.tensor(usage))
        kind = {"bits_beyond_position": {"excess": 0.2, "p": 0.001}, "entropy_bits": 2.0, "position_bits": 1.0,
                "untrained": [untrained] * 3, "random": [0.0] * 3, "codes": []}
        kinds = {"class": kind, "operand": kind | {"untrained": [0.3] * 3}}
        return "\n".join(causal.findings({**result, "codes": codes, "codebook": book, "routing": kinds}))

    assert "active? Yes: 2 of 2 codes fire" in said()
    assert "active? Barely: 2 of 2 codes fire" in said(usage=(0.96, 0.04))
    assert "active? No: 1 of 2 codes fire" in said(usage=(1.0, 0.0))
    assert "input-dependent? Yes, about class. Bits" in said() and said().count("NOT more than every") == 1
    assert "input-dependent? Not by training" in said(untrained=0.3)
    assert "code 0 everywhere, best on val: +" in said() and "code 1 everywhere: +" in said()


def test_statistics_against_stored_numbers():
    """Broken if p differed from statsmodels' (multipletests "holm", mcnemar exact)."""
    p, corrected = [0.2, 0.001, 0.5, 0.04, 0.04], [0.4, 0.005, 0.5, 0.16, 0.16]
    assert causal.holm(p) == pytest.approx(corrected)
    assert causal.holm([1.0, 0.9]) == [1.0, 1.0]
    a, b = [1] * 9 + [0] * 2 + [1] * 5, [0] * 9 + [1] * 2 + [1] * 5
    assert causal.mcnemar(a, b) == pytest.approx(0.065429688) and causal.mcnemar(a, a) == 1
    vectors, usage = torch.tensor([[3.0, 4.0], [0.0, 2.0], [9.0, 9.0]]), torch.tensor([3, 1, 0])
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert causal.codebook(vectors, usage) == {
        "used": 2, "cosine": pytest.approx(0.8), "perplexity": pytest.approx(math.exp(entropy)),
        "norms": pytest.approx([5, 2, 162**0.5])}


def test_the_command_agrees_with_eval(tmp_path, capsys, monkeypatch):
    """Broken if an arm were not that of eval.py, or generation permuted the codes of the gold text."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(768, 256, 2, 2, 1, 32, n_codes=5, chunk=3)).eval()
    torch.nn.init.normal_(model.codebook.weight)
    torch.nn.init.normal_(model.router.weight)
    flags = {"method": "dlr", "data": "wordproblems", "dtype": "float32"}
    torch.save({"config": vars(model.config), "model": model.state_dict(),
                "tokenizer": "wordproblems", "train": flags}, tmp_path / "ckpt.pt")
    (tmp_path / "summary.json").write_text('{"chosen": "code 3"}')
    routes, analyze, routed = causal.routes, causal.analyze, []
    monkeypatch.setattr(causal, "routes", lambda model, ids, *rest: (
        routed.append(ids) or routes(model, ids, *rest)))
    monkeypatch.setattr(causal, "analyze", lambda *args, **more: analyze(*args, max_new_tokens=8, **more))
    causal.main([str(tmp_path), "--rows", "5"])
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "analysis.json").read_text(encoding="utf-8"))
    assert found["problems"] == 5 and found["findings"] and "   code 3 everywhere, best on val: " in said
    assert all(line in said for line in found["findings"])
    model, enc, _, _ = evaluation.load_run(tmp_path)
    rows = load_rows("wordproblems", "test", 5)
    ids, n = encode_row(rows[0], enc)
    own = model.generate([ids[:n]], 8, stop=enc.encode_single_token(END))[0]
    assert [routed[0][0], routed[1][0]] == [ids[:-1], ids[:n] + own]
    plain, _ = evaluation.evaluate(model.eval(), enc, rows, [*evaluation.ARMS, "each"], max_new_tokens=8)
    for arm, s in plain["arms"].items():
        assert found["arms"][arm]["nats"] == pytest.approx(s["nats"], abs=1e-6)
        assert found["arms"][arm]["strict"] == s["strict"]


# ---- baselines.py


def test_assorted_rows_by_hand():
    """Broken if codes replaced the wrong tokens, lost the prompt, or could hide the #### line."""
    L, ids = baselines.VQ_CHUNK, list(range(100, 108 + 2 * baselines.VQ_CHUNK))  # 3 of prompt
    drawn = [baselines.assort((ids, 3), [7, 9], 800, random.Random(seed)) for seed in range(40)]
    assert all(n_prompt == 3 for _, n_prompt in drawn)
    assert {tuple(out) for out, _ in drawn} == {
        tuple(ids), (*ids[:3], 800, 809, 801, *ids[3 + L :]),
        (*ids[:3], 800, 809, 811, 801, *ids[3 + 2 * L :])}
    enc = load_encoding("wordproblems")
    for row in load_rows("wordproblems", "train", 50):
        ids, n_prompt = encode_row(row, enc)
        n = baselines.solution_chunks(enc, ids[n_prompt:])
        assert f"#### {row['final']}" in enc.decode(ids[n_prompt + n * L :])
        assert "####" not in enc.decode(ids[n_prompt + (n + 1) * L :]), "one chunk more would fit"


def test_the_vqvae_tells_chunks_apart():
    """Broken if equal chunks did not share a code, or clearly different ones did."""
    torch.manual_seed(0)
    kinds = [[i] * baselines.VQ_CHUNK for i in range(6)]
    answers = [kinds[i % 6] + kinds[(i + 1) % 6] + [3] for i in range(60)] + [[1, 2]]
    codes = baselines.vqvae_codes(torch.randn(20, 8), answers, steps=100)
    own = [first for first, _ in codes[:6]]
    assert len(set(own)) == 6 and codes[60] == []
    assert codes[:60] == [[own[i % 6], own[(i + 1) % 6]] for i in range(60)]


@pytest.mark.parametrize("method", ["pause", "tokenassorted"])
def test_a_baseline_leaves_a_run_like_train_does(tmp_path, monkeypatch, method):
    """Broken if eval.py left out the pauses, pauses were labels, or every epoch hid the same tokens."""
    seen, real = [], baselines.collate
    monkeypatch.setattr(baselines, "collate", lambda items: seen.extend(items) or real(items))
    monkeypatch.setattr(baselines, "VQ_CODES", 64)  # 1024 of them, 256 wide, take minutes
    monkeypatch.setattr(baselines, "VQ_WIDTH", 16)
    run, few = tmp_path / "run", ["--max_new_tokens", "4", "--device", "cpu"]
    baselines.main([method, "--rows", "16", "--epochs", "2", "--eval_rows", "4", *few, "--out", str(run)])
    model, enc, suffix, config = evaluation.load_run(run)
    assert config["method"] == method and runs.read_run(run)["steps"] == 4
    if method == "pause":
        assert suffix == [enc.n_vocab] * 8 and model.config.vocab_size == enc.n_vocab + 1
        items = [encode_row(row, enc) for row in load_rows("wordproblems", "train", 16)]
        plain = {tuple(ids): n for ids, n in items}
        for ids, n in seen:
            assert ids[n - 8 : n] == suffix and plain[(*ids[: n - 8], *ids[n:])] == n - 8
    else:
        lengths = [sorted(len(ids) for ids, _ in epoch) for epoch in (seen[:16], seen[16:])]
        assert suffix == [] and lengths[0] != lengths[1]
        assert any(max(ids) >= enc.n_vocab + 2 for ids, _ in seen)
    evaluation.main([str(run), "--rows", "4", "--arms", "off", *few])
    trained, again = (json.loads((run / name).read_text())["arms"]["off"]["nats"]
                      for name in ("summary.json", "eval-wordproblems-test.json"))
    assert again == pytest.approx(trained, rel=1e-6)


# ---- runs.py


def line(label, seed, nll, strict):
    return {"label": label, "seed": seed, "steps": 10 + seed, "seconds": 7.0, "tokens": [10, 30],
            "nll": nll, "strict": strict}


SFT = [line("sft", 0, {"off": [10, 60]}, {"off": "01"}),  # 1.75 and 1 nats a token
       line("sft", 1, {"off": [10, 30]}, {"off": "11"})]
DLR = [line("dlr", 0, {"on": [10, 30], "off": [20, 30]}, {"on": "11", "off": "10"}),  # 1; 1.25
       line("dlr", 1, {"on": [10, 0], "off": [10, 30]}, {"on": "11", "off": "00"})]  # 0.25; 1


def cells(*args):
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in runs.table(*args).splitlines()]


def test_the_table_by_hand():
    """Broken if a mean, a paired difference or its interval left out tokens, problems or seeds."""
    ungraded = line("ungraded", 1, {"off": [0, 0]}, None)
    del ungraded["strict"]
    head, _, sft, dlr, nats_only = cells([*SFT, *DLR, ungraded])
    assert head == ["run", "seeds", "accuracy %, on", "off", "minus sft, points [95 %]", "nats, on",
                    "off", "minus sft, nats [95 %]", "on - off, nats [95 %]", "steps"]
    assert sft == ["sft", "2", "", "75.0 ± 35.4", "", "", "1.3750 ± 0.5303", "", "", "10, 11"]
    # Student's t for 2 seeds: 12.706. Resamples of two problems hold only one half the time.
    # points: seeds 50 and 0, spread 12.706 * 25 = 317.65; problems 50 and 0, so 25 on either side
    # nats: seeds -0.75 and -0.75, no spread; problems 0 and -1 (of 10 and 30 tokens)
    # on - off: seeds -0.25 and -0.75, spread 12.706 * 0.25; problems -0.5 and -0.5, no width
    assert dlr == ["dlr", "2", "100.0 ± 0.0", "25.0 ± 35.4", "+25.0 [-293.6, +343.6]",
                   "0.6250 ± 0.5303", "1.1250 ± 0.1768", "-0.7500 [-1.0000, +0.0000]",
                   "-0.5000 [-3.6765, +2.6765]", "10, 11"]
    # one seed, paired with the same seed of sft: problems -1 and -1
    assert nats_only == ["ungraded", "1", "", "", "", "", "0.0000", "-1.0000 [-1.0000, -1.0000]", "", "11"]
    for lines in ([*SFT, *DLR], [*DLR, *SFT]):
        [sft] = [row for row in cells(lines, "dlr") if row[0] == "sft"]
        assert sft[4].startswith("+50.0 [") and sft[7].startswith("+0.2500 [")
    with pytest.raises(ValueError, match="'none'; there are sft, dlr"):
        runs.table([*SFT, *DLR], "none")


def test_a_half_done_experiment_is_finished(tmp_path, monkeypatch, capsys):
    """Broken if a run were measured twice, one cut short not resumed, or a failure or an empty table kept silent."""
    settings, calls = {"sft": "--method sft", "dlr, x": "--lr 1"}, []
    monkeypatch.setattr(runs, "HERE", tmp_path / "analysis")
    monkeypatch.setattr(runs.figures, "HERE", tmp_path / "analysis")  # rows are read there
    monkeypatch.setattr(runs, "EXPERIMENTS", {"toy": ([0, 1], settings)})
    monkeypatch.setattr(runs, "read_run", lambda out: line("dlr, x", 0, {"off": [1, 1]}, {"off": "11"}))
    log, cut = tmp_path / "analysis/results/toy.jsonl", tmp_path / "runs/toy/dlr--x-0"
    log.parent.mkdir(parents=True)
    with pytest.raises(ValueError, match="toy: nothing has been measured"):
        runs.main(["toy", "--table"])
    log.write_text(json.dumps(SFT[0]) + "\n")
    cut.mkdir(parents=True)
    (cut / "config.json").write_text("{}")

    def stub(argv, **kwargs):
        out = runs.Path(argv[argv.index("--out") + 1])
        calls.append(argv[2:6])
        out.mkdir(parents=True, exist_ok=True)
        (out / "ckpt.pt").touch()
        return types.SimpleNamespace(returncode=int("1" in argv), stderr="out of luck")

    monkeypatch.setattr(subprocess, "run", stub)
    with pytest.raises(RuntimeError, match="sft, seed 1: failed\nout of luck"):
        runs.main(["toy"])
    assert calls[:2] == [["--resume", "--out", str(cut)], ["--method", "sft", "--seed", "1"]]
    runs.main(["toy", "--table"])
    assert "| dlr, x | 1 |" in capsys.readouterr().out


def finished(folder, verdicts, summary=(), method="sft", **record):
    """A finished run's folder, with seed 0."""
    folder.mkdir()
    answers = [{"question": f"{i}?", "gold": "1", "tokens": 2, **record,
                "off": {"nll": 1.0 + i, "way": "short", "strict": bool(right)}} for i, right in enumerate(verdicts)]
    about = {"rows": len(answers), "arms": {"off": {}}, "train_seconds": 1.0, **dict(summary)}
    (folder / "config.json").write_text(json.dumps({"method": method, "seed": 0}))
    (folder / "summary.json").write_text(json.dumps(about))
    (folder / "answers.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    (folder / "metrics.jsonl").write_text("{}\n" * 7)


def test_own_runs_are_told_apart_by_their_folders(tmp_path, monkeypatch, capsys):
    """Broken if one of two runs of a method and seed vanished, or a graded and an ungraded one crashed."""
    monkeypatch.chdir(tmp_path)
    finished(tmp_path / "a", [0, 0, 1, 1])
    finished(tmp_path / "b", [1, 1, 1, 1])
    finished(tmp_path / "c", [])
    for name in ("summary.json", "answers.jsonl"):  # of --no-generate
        text = (tmp_path / "a" / name).read_text()
        (tmp_path / "c" / name).write_text(text.replace('"strict"', '"other"'))
    runs.main(["--compare", "a", "b", "c"])
    rows = [[cell.strip() for cell in line.split("|")[1:]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["a", "b", "c"] and [row[3] for row in rows] == ["50.0", "100.0", ""]
    assert rows[1][4].startswith("+50.0 [") and rows[2][7] == "+0.0000 [+0.0000, +0.0000]"
    runs.main(["--compare", "a", "b", "--reference", "b"])
    assert "-50.0 [" in capsys.readouterr().out
    runs.main(["--compare", "c", "a"])
    assert "| a | 1 |  | 50.0 |  |" in capsys.readouterr().out, "nothing graded to compare with"


@pytest.mark.parametrize("spoil, words", [
    ({"question": "Others?"}, "different problems, or with different tokenizers .4 and 4 problems"),
    ({"tokens": 3}, "different tokenizers"), ({"gold": "2"}, "different problems"),
    ({"verdicts": [0, 1]}, "4 and 2 problems"),
    ({"summary": {"rows": 300}}, "b/summary.json is not what train.py wrote")])
def test_runs_that_do_not_match_are_not_compared(tmp_path, monkeypatch, spoil, words):
    """Broken if different problems were paired, with an interval, or another evaluation passed for the run's."""
    monkeypatch.chdir(tmp_path)
    finished(tmp_path / "a", [0, 0, 1, 1])
    finished(tmp_path / "b", **{"verdicts": [1, 1, 1, 1], **spoil})
    with pytest.raises(ValueError, match=words):
        runs.main(["--compare", "a", "b"])
    (tmp_path / "b" / "summary.json").write_text(json.dumps({"rows": 4, "arms": {}, "data": "d", "split": "test"}))
    with pytest.raises(ValueError, match=r"b/summary\.json is not what train.py wrote"):  # of eval.py
        runs.main(["--compare", "a", "b"])
