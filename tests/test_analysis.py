"""analysis/: the causal tests on a model whose codes provably matter; the two baselines; the table of runs."""

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

# A language of seven tokens a row. "Question: " is padded so that the key digit starts chunk 1, in which the answer
# digit lies, too. Blocks are silenced, so a state knows its own token and its chunk's code, nothing else: after the
# last space the answer can only come from the code that the router chose at the key.
PIECES = {b"Question: ": 256, b"abcdefghi": 257, b"\nAnswer:": 258, b" ####": 259}
ENC = tiktoken.Encoding("toy", pat_str=r"Question: | ####|\nAnswer:|[a-i]+|\d| ",
                        mergeable_ranks={bytes([i]): i for i in range(256)} | PIECES, special_tokens={END: 260})
V, DIGIT = 261, [ord(str(d)) for d in range(10)]
FILL, UNUSED, ALPHA = 10, 11, 0.5  # the code of the first chunk; one that never fires
KEYS = [*range(10), 0, 0]  # key 0 three times


def reader(n_codes=12):
    """Code d fires at key d and says that the answer is (d + 3) % 10; accuracy with its own codes is 100 %."""
    model = GPT(GPTConfig(V, 16, 1, 1, 1, V + 13, n_codes=n_codes, chunk=6, steer_layer=0, steer_scale=ALPHA,
                          route_norm=False, tie_embeddings=False, norm_eps=1e-12)).eval()
    for p in model.parameters():
        p.data.zero_()
    model.norm.weight.data.fill_(1.0)
    model.embed_tokens.weight.data[:, :V] = torch.eye(V)
    head = model.lm_head.weight.data
    for a, b in ((258, 259), (259, ord(" ")), *((d, 260) for d in DIGIT)):
        head[b, a] = 5.0  # after "\nAnswer:" comes " ####", then " ", and after a digit the end
    after_norm = ALPHA * math.sqrt((V + 13) / (1 + ALPHA**2))  # the component of a code in a state of rms 1
    for d in range(10):
        head[DIGIT[(d + 3) % 10], V + d] = 4.0 / after_norm  # what code d says, with logit 4
        model.codebook.weight.data[d, V + d] = 1.0
        model.router.weight.data[d, DIGIT[d]] = 1.0
    model.codebook.weight.data[FILL, V + 11] = 1.0  # no digit
    if n_codes > UNUSED:
        model.codebook.weight.data[UNUSED, V + 12] = 1.0
    model.router.weight.data[FILL, 256] = 1.0
    return model


def problems(keys):
    """Rows whose key digit stands at token 6, the start of chunk 1 (K = 6), and whose answer is (key + 3) % 10."""
    return [{"question": f"{'abcdefghi ' * 2}abcdefghi{key}", "answer": f"#### {(key + 3) % 10}",
             "final": str((key + 3) % 10)} for key in keys]


@pytest.fixture(scope="module")
def result():
    return causal.analyze(reader(), ENC, problems(KEYS), max_new_tokens=4)


# ---- causal.py


def test_every_arm_has_the_accuracy_and_likelihood_known_in_advance(result):
    """Broken if an arm did something else to the codes than it says, in likelihood or in generation."""
    used = [torch.tensor([FILL, k]) for k in KEYS]
    tables = {"random": arm_codes("random", range(12), None, 2, reader(), 0),
              "shuffled": arm_codes("shuffled", range(12), used, 2, reader(), 0),
              "position": causal.position_codes(used, [1] * 12, 2, 0)}
    right = {name: np.mean([code == key for code, key in zip(table[:, 1].tolist(), KEYS)])
             for name, table in tables.items()}
    right |= {"on": 1.0, "off": 0.0, "mean": 3 / 12}  # the mean vector points most to the answer of key 0
    assert 0 < right["shuffled"] < 1 and right["position"] < 1, "the test would not tell these from on"
    arms = result["arms"]
    assert {name: arm["strict"] for name, arm in arms.items()} == pytest.approx(right)
    for name in causal.ARMS:
        assert (arms[name]["helped"], arms[name]["hurt"]) == (0, round(12 * (1 - right[name])))
        assert arms[name]["same"] == 12 - arms[name]["hurt"]
    # 4 answer tokens, 3 of them certain: the code's digit has logit 4, the 260 other tokens 0.
    L = math.log(V - 1 + math.exp(4.0))
    nats = {"on": L - 4, "off": math.log(V), "position": L - 4 * right["position"]}
    for name, x in nats.items():
        assert arms[name]["nats"] == pytest.approx(x / 4, abs=1e-4)
    assert arms["off"]["nats_minus_on"][0] == pytest.approx((math.log(V) - L + 4) / 4, abs=1e-4)


def test_replacing_a_code_hurts_exactly_its_problems(result):
    """Broken if a code's ablation touched other codes, missed its own, or the sham changed anything."""
    for code in result["codes"][:10]:
        n = KEYS.count(code["code"])
        assert (code["problems"], code["chunks"]) == (n, n)
        assert (code["ablation"]["hurt"], code["ablation"]["helped"]) == (n, 0)
        assert code["ablation"]["mcnemar_p"] == pytest.approx(min(1, 2 * 0.5**n))
        assert code["ablation"]["p_holm"] == 1  # 11 tests
    filler, unused = result["codes"][FILL], result["codes"][UNUSED]
    assert filler["chunks"] == 12 and filler["ablation"]["changes_nothing"]  # it steers nothing that is scored
    assert unused["ablation"] is None and unused["chunks"] == 0
    assert result["sham"]["code"] == UNUSED and result["sham"]["changes_nothing"]


def test_skipping_problems_where_a_code_is_silent_is_exact():
    """Broken if running only the batches in which a code fires gave other numbers than running all."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(ENC.n_vocab, 32, 2, 2, 1, 32, n_codes=12, chunk=2, router_std=1.0)).eval()
    torch.nn.init.normal_(model.codebook.weight)
    items = [encode_row(row, ENC) for row in problems(KEYS)]
    codes = causal.routes(model, [ids[:-1] for ids, _ in items])
    rare = torch.bincount(torch.cat(codes)).argsort()[:6].tolist()
    skipped, vectors = 0, model.codebook.weight.detach()
    on = causal.token_nll(model, items, (vectors, causal.argmax), batch_size=2)
    for code in rare:
        arm = vectors, causal.without(code, torch.tensor([0, 1]), torch.rand(12, 20))
        fires = {i for i in range(12) if (codes[i] == code).any()}
        whole = causal.token_nll(model, items, arm, batch_size=2)
        part = causal.token_nll(model, items, arm, only=fires, batch_size=2)
        skipped += sum(p is None for p in part)
        for a, b, c in zip(whole, part, on):
            np.testing.assert_array_equal(a, c if b is None else b)
    assert skipped, "nothing was skipped, so nothing is tested"


def test_position_codes_keep_what_is_at_each_place():
    """Broken if the position-matched shuffle changed how often a code stands at a place, counted from the answer."""
    codes = [torch.tensor([0, 1, 2, 3]), torch.tensor([5, 6, 7]), torch.tensor([9, 10, 11, 12])]
    starts = [2, 1, 1]  # the answer starts at codes 2, 6 and 10
    out = causal.position_codes(codes, starts, 5, 0)
    for place, pool in ((-1, [1, 5, 9]), (0, [2, 6, 10]), (1, [3, 7, 11])):
        assert sorted(int(out[i, start + place]) for i, start in enumerate(starts)) == pool
    assert out[0, 0] == 0 and {*out[:, 3:].ravel().tolist()} - {3, 7, 11, 12} <= {0, 1, 2, 5, 6, 9, 10}
    assert out[0, 4] == out[1, 3] == out[2, 3] == 12  # where only one row has a code
    assert {int(causal.position_codes(codes, starts, 5, seed)[0, 2]) for seed in range(20)} == {2, 6, 10}


def test_interventions_leave_no_trace():
    """Broken if a run were changed by being analyzed, or an error inside an intervention left other weights."""
    model = reader()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    causal.analyze(model, ENC, problems([1, 2]), generate=False)
    with pytest.raises(KeyError), causal.swapped(model.codebook, torch.ones(12, V + 13)):
        raise KeyError
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("autocast", [False, True])
def test_one_static_code_is_analyzed_too(autocast):
    """Broken if C = 1, the control, failed, or if mixed precision rounded an intervention that changes nothing."""
    model = GPT(GPTConfig(V, 16, 1, 1, 1, 32, n_codes=1, chunk=6)).eval()
    torch.nn.init.normal_(model.codebook.weight)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = causal.analyze(model, ENC, problems([1, 2, 3]), generate=False)
    assert found["codes"][0]["ablation"] is None and found["sham"] is None
    assert found["arms"]["mean"]["changes_nothing"] and found["arms"]["random"]["changes_nothing"]
    assert not found["arms"]["off"]["changes_nothing"] and "strict" not in found["arms"]["on"]


def test_words_claim_no_more_than_the_numbers(result):
    """Broken if few problems gave a verdict, or a sentence said otherwise than the intervals."""
    assert "No verdict from 12 problems" in "\n".join(result["findings"])
    verdict = next(line for line in causal.findings({**result, "problems": 300}) if "Supported by" in line)
    supported, refuted = verdict.split("Not supported:")
    assert "the codes help at all" in supported and "routes beat the mean vector" in supported
    weak = {**result["arms"]["off"], "nats_minus_on": [0.1, -0.1, 0.3]}
    poor = causal.findings({**result, "problems": 300, "arms": {**result["arms"], "off": weak}})
    assert any("Not supported: the codes help at all" in line for line in poor)
    broken = causal.findings({**result, "sham": {**result["sham"], "changes_nothing": False}})
    assert any("CHANGES something" in line for line in broken)
    assert any("No sham" in line for line in causal.findings({**result, "sham": None}))


def test_statistics_against_stored_numbers():
    """Broken if p-values differed from statsmodels' (multipletests "holm", mcnemar exact) or the codebook's by hand."""
    assert causal.holm([0.2, 0.001, 0.5, 0.04, 0.04]) == pytest.approx([0.4, 0.005, 0.5, 0.16, 0.16])
    assert causal.holm([1.0, 0.9]) == [1.0, 1.0]
    a, b = [1] * 9 + [0] * 2 + [1] * 5, [0] * 9 + [1] * 2 + [1] * 5
    assert causal.mcnemar(a, b) == pytest.approx(0.065429688) and causal.mcnemar(a, a) == 1
    got = causal.codebook(torch.tensor([[3.0, 4.0], [0.0, 2.0], [9.0, 9.0]]), torch.tensor([3, 1, 0]))
    assert got["used"] == 2 and got["cosine"] == pytest.approx(0.8) and got["norms"] == pytest.approx([5, 2, 162**0.5])
    assert got["perplexity"] == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def save_run(folder, codes=1.0):
    """A run's folder as train.py leaves it."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(768, 256, 2, 2, 1, 32, n_codes=5, chunk=3)).eval()
    torch.nn.init.normal_(model.codebook.weight, std=codes)
    torch.nn.init.normal_(model.router.weight, std=1.0)
    folder.mkdir()
    torch.save({"config": vars(model.config), "model": model.state_dict(), "tokenizer": "wordproblems",
                "train": {"method": "dlr", "data": "wordproblems", "dtype": "float32"}}, folder / "ckpt.pt")


def test_the_command_agrees_with_eval(tmp_path, capsys, monkeypatch):
    """Broken if causal.py wrote other JSON than it says in words, its "on" were not the "on" of eval.py, or if what it
    permutes in generation were the codes of the gold text."""
    save_run(tmp_path / "run")
    causal.main([str(tmp_path / "run"), "--rows", "5", "--no-generate"])
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "analysis.json").read_text(encoding="utf-8"))
    assert found["problems"] == 5 and found["findings"] and all(line in said for line in found["findings"])
    model, enc, _, _ = evaluation.load_run(tmp_path / "run")
    rows = load_rows("wordproblems", "test", 5)
    routed, real = [], causal.routes
    monkeypatch.setattr(causal, "routes", lambda model, ids, *rest: routed.append(ids) or real(model, ids, *rest))
    found["arms"] = causal.analyze(model, enc, rows, max_new_tokens=8)["arms"]
    ids, n = encode_row(rows[0], enc)
    assert routed[0][0] == ids[:-1]
    assert routed[1][0] == ids[:n] + model.generate([ids[:n]], 8, stop=enc.encode_single_token(END))[0]
    plain, _ = evaluation.evaluate(model.eval(), enc, rows, max_new_tokens=8)
    for arm, s in plain["arms"].items():
        assert found["arms"][arm]["nats"] == pytest.approx(s["nats"], abs=1e-6)
        assert found["arms"][arm]["strict"] == s["strict"]


@pytest.mark.parametrize("flags, message", [
    (["nowhere"], "nowhere"), (["PLAIN"], "every code of this run is zero"), (["RUN", "--rows", "-1"], "--rows"),
    (["RUN", "--data", "none"], "none")])
def test_wrong_calls_are_one_line(tmp_path, capsys, monkeypatch, flags, message):
    """Broken if a wrong call ended in a traceback or left a file behind."""
    monkeypatch.chdir(tmp_path)
    save_run(tmp_path / "RUN")
    save_run(tmp_path / "PLAIN", codes=0.0)
    with pytest.raises(SystemExit) as stop:
        causal.main(flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.startswith("causal.py: error: ")
    assert len(error.splitlines()) == 1 and not list(tmp_path.rglob("analysis.json"))


# ---- baselines.py


@pytest.mark.parametrize("tie", [True, False])
def test_added_tokens_change_nothing_but_the_vocabulary(tie):
    """Broken if a grown vocabulary disturbed the old tokens, untied a tied head, or did not start at the mean."""
    model = GPT(GPTConfig(50, 32, 2, 2, 1, 16, tie_embeddings=tie))
    idx = torch.randint(50, (2, 9))
    old, mean = model(idx)[0], model.embed_tokens.weight.mean(0)
    assert baselines.add_tokens(model, 3) == 50 and model.config.vocab_size == 53
    torch.testing.assert_close(model(idx)[0][..., :50], old)
    torch.testing.assert_close(model.embed_tokens.weight[50:], mean.expand(3, -1))
    assert (model.lm_head.weight is model.embed_tokens.weight) == tie


def test_assorted_rows_by_hand():
    """Broken if codes replaced the wrong tokens, lost the prompt or the rest, stood outside <abs> and </abs>, or
    could hide the #### line, which is what is graded."""
    L, ids = baselines.VQ_CHUNK, list(range(100, 100 + 3 + 2 * baselines.VQ_CHUNK + 5))  # 3 of prompt, 2 chunks, 5 more
    drawn = [baselines.assort((ids, 3), [7, 9], 800, random.Random(seed)) for seed in range(40)]
    assert all(n_prompt == 3 for _, n_prompt in drawn)
    assert {tuple(out) for out, _ in drawn} == {
        tuple(ids), (*ids[:3], 800, 809, 801, *ids[3 + L :]), (*ids[:3], 800, 809, 811, 801, *ids[3 + 2 * L :])}
    enc, most = load_encoding("wordproblems"), 0
    for row in load_rows("wordproblems", "train", 50):
        ids, n_prompt = encode_row(row, enc)
        n = baselines.solution_chunks(enc, ids[n_prompt:])
        assert f"#### {row['final']}" in enc.decode(ids[n_prompt + n * L :])
        assert "####" not in enc.decode(ids[n_prompt + (n + 1) * L :]), "one chunk more would have fitted"
        most = max(most, n)
    assert most >= 3 and baselines.solution_chunks(enc, enc.encode("#### 5")) == 0


def test_the_vqvae_tells_chunks_apart():
    """Broken if the quantiser ignored the tokens: equal chunks must share a code, clearly different ones must not."""
    torch.manual_seed(0)
    kinds = [[i] * baselines.VQ_CHUNK for i in range(6)]
    answers = [kinds[i % 6] + kinds[(i + 1) % 6] + [3] for i in range(60)] + [[1, 2]]
    codes = baselines.vqvae_codes(torch.randn(20, 8), answers, steps=100)
    assert [len(c) for c in codes] == [2] * 60 + [0] and 0 <= min(map(min, codes[:60]))
    of_kind = [{codes[i][0] for i in range(60) if i % 6 == kind} for kind in range(6)]
    assert all(len(c) == 1 for c in of_kind) and len(set.union(*of_kind)) == 6
    assert all(codes[i][1] == codes[(i + 1) % 6][0] for i in range(60))


@pytest.mark.parametrize("method", ["pause", "tokenassorted"])
def test_a_baseline_leaves_a_run_like_train_does(tmp_path, capsys, monkeypatch, method):
    """Broken if eval.py asked a model trained with pauses without them, if pauses were labels, if every epoch hid the
    same tokens, or if runs.py could not compare these runs."""
    seen, real = [], baselines.collate
    monkeypatch.setattr(baselines, "collate", lambda items: seen.extend(items) or real(items))
    run = tmp_path / "run"
    flags = ["--rows", "16", "--epochs", "2", "--eval_rows", "4", "--max_new_tokens", "4", "--device", "cpu"]
    baselines.main([method, *flags, "--out", str(run)])
    assert sorted(p.name for p in run.iterdir()) == [
        "answers.jsonl", "ckpt.pt", "config.json", "metrics.jsonl", "summary.json"]
    model, enc, suffix, config = evaluation.load_run(run)
    assert config["method"] == method and len((run / "metrics.jsonl").read_text().splitlines()) == 4
    plain = {tuple(encode_row(row, enc)[0]): encode_row(row, enc)[1] for row in load_rows("wordproblems", "train", 16)}
    if method == "pause":
        assert suffix == [enc.n_vocab] * 8 and model.config.vocab_size == enc.n_vocab + 1
        for ids, n in seen:
            assert ids[n - 8 : n] == suffix and plain[(*ids[: n - 8], *ids[n:])] == n - 8
    else:
        assert suffix == [] and sorted(len(ids) for ids, _ in seen[:16]) != sorted(len(ids) for ids, _ in seen[16:])
        assert any(max(ids) >= enc.n_vocab + 2 for ids, _ in seen)
    trained = json.loads((run / "summary.json").read_text())["arms"]["off"]["nats"]
    evaluation.main([str(run), "--rows", "4", "--arms", "off", "--max_new_tokens", "4", "--device", "cpu"])
    again = json.loads((run / "eval-wordproblems-test.json").read_text())["arms"]["off"]["nats"]
    assert again == pytest.approx(trained, rel=1e-6)
    assert runs.read_run(run)["steps"] == 4
    with pytest.raises(SystemExit):
        baselines.main([method, *flags, "--out", str(run)])
    assert "already holds a run" in capsys.readouterr().err


# ---- runs.py


def test_intervals_over_seeds_and_problems_by_hand():
    """Broken if the interval left out the spread over seeds, or a difference were not paired."""
    a = np.array([[3.0, 5.0, 4.0], [2.0, 4.0, 3.0]])
    d, low, high = runs.over_seeds(a, np.zeros((2, 3)) + [[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])  # 2 in seed 0, 1 in seed 1
    assert d == pytest.approx(1.5) and high - d == pytest.approx(d - low) == pytest.approx(12.706 * 0.5)
    one = runs.over_seeds(a[:1], np.zeros((1, 3)), weights=[2, 1, 1])
    assert one[0] == pytest.approx(3.75)


def line(label, seed, nll, strict, **more):
    return {"label": label, "seed": seed, "steps": 10, "seconds": 7.0 + seed, "tokens": [10, 30], "nll": nll,
            "strict": strict, **more}


def test_the_table_by_hand():
    """Broken if a mean were not over tokens and seeds, or "minus sft" not the difference to the same seeds."""
    lines = [line("sft", 0, {"off": [10, 60]}, {"off": "01"}), line("sft", 1, {"off": [10, 30]}, {"off": "11"}),
             line("dlr", 0, {"on": [10, 30], "off": [20, 30]}, {"on": "11", "off": "10"}),
             line("dlr", 1, {"on": [10, 0], "off": [10, 30]}, {"on": "11", "off": "00"})]
    head, _, sft, dlr = (row.strip("| ").split(" | ") for row in runs.table(lines).splitlines())
    assert len(head) == len(dlr) == 10
    assert dlr[2:4] == ["100.0 ± 0.0", "25.0 ± 35.4"] and dlr[5:7] == ["0.6250 ± 0.5303", "1.1250 ± 0.1768"]
    assert dlr[4].startswith("+25.0 [") and dlr[7].startswith("-0.7500 [")  # 1 - 1.75 and .25 - 1 nats
    assert sft[0:2] == ["sft", "2"] and "75.0 ± 35.4" in " ".join(sft) and "1.3750 ± 0.5303" in " ".join(sft)
    assert dlr[8:] == ["10", "8"]


def test_a_half_done_experiment_is_finished(tmp_path, monkeypatch, capsys):
    """Broken if runs that are there were measured again, one cut short not resumed, or a failure kept silent."""
    (tmp_path / "analysis" / "results").mkdir(parents=True)
    monkeypatch.setattr(runs, "HERE", tmp_path / "analysis")
    monkeypatch.setattr(runs, "EXPERIMENTS", {"toy": ([0, 1], {"sft": "--method sft", "dlr, x": "--lr 1"})})
    log = tmp_path / "analysis" / "results" / "toy.jsonl"
    log.write_text(json.dumps(line("sft", 0, {"off": [10, 60]}, {"off": "01"})) + "\n")
    cut = tmp_path / "runs" / "toy" / "dlr--x-0"
    cut.mkdir(parents=True)
    (cut / "config.json").write_text("{}")
    calls = []

    def stub(argv, **kwargs):
        calls.append(argv[1:])
        out = runs.Path(argv[argv.index("--out") + 1])
        arms = ["off"] if "sft" in out.name else ["on", "off"]
        out.mkdir(parents=True, exist_ok=True)
        (out / "ckpt.pt").touch()
        (out / "metrics.jsonl").write_text("{}\n{}\n")
        (out / "summary.json").write_text(json.dumps({"train_seconds": 5, "arms": dict.fromkeys(arms)}))
        record = {"tokens": 4} | {arm: {"nll": 2.0, "strict": True} for arm in arms}
        (out / "answers.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(record) + "\n")
        return types.SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", stub)
    runs.main(["toy"])
    assert [call for call in calls if "--resume" in call] == [["train.py", "--resume", "--out", str(cut)]]
    fresh = [call for call in calls if "--resume" not in call]
    assert [call[1:5] for call in fresh] == [["--method", "sft", "--seed", "1"], ["--lr", "1", "--seed", "1"]]
    done = [json.loads(text) for text in log.read_text().splitlines()]
    assert [(d["label"], d["seed"]) for d in done] == [("sft", 0), ("dlr, x", 0), ("sft", 1), ("dlr, x", 1)]
    assert done[1]["nll"]["on"] == [2.0, 2.0] and done[1]["strict"]["on"] == "11" and done[1]["steps"] == 2
    assert "| dlr, x | 2 |" in capsys.readouterr().out and not list(tmp_path.rglob("ckpt.pt"))
    runs.main(["toy"])
    assert len(calls) == 3, "everything was there"
    log.write_text("")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: types.SimpleNamespace(returncode=1, stderr="out of luck"))
    with pytest.raises(RuntimeError, match="out of luck"):
        runs.main(["toy"])
