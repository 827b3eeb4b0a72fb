"""Causal tests of analysis/causal.py on a model whose codes provably matter, and eval.py's flags that lead there."""

import json
import math

import numpy as np
import pytest
import tiktoken
import torch

import eval as evaluation
from analysis import causal
from data.tokens import END, PROMPT, encode, encode_row, end_token, load_encoding
from dlr import GPT, GPTConfig

# A language of seven tokens a row: [Question: ][7] is padded so that the key digit starts chunk 1 and the answer digit
# lies in the same chunk. Blocks are silenced, so a state knows its own token and its chunk's code, nothing else: after
# the last space the answer can only come from the code that the router chose at the key.
PIECES = {b"Question: ": 256, b"abcdefghi": 257, b"\nAnswer:": 258, b" ####": 259}
ENC = tiktoken.Encoding("toy", pat_str=r"Question: | ####|\nAnswer:|[a-i]+|\d| ",
                        mergeable_ranks={bytes([i]): i for i in range(256)} | PIECES, special_tokens={END: 260})
V, DIGIT = 261, [ord(str(d)) for d in range(10)]
FILL, UNUSED, ALPHA = 10, 11, 0.5  # the code of the first chunk; one that never fires


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


KEYS = [*range(10), 0, 0]  # key 0 three times


@pytest.fixture(scope="module")
def result():
    return causal.analyze(reader(), ENC, problems(KEYS), max_new_tokens=4, progress=False)


def test_every_arm_has_the_accuracy_known_in_advance(result):
    """Broken if an arm did something else to the codes than it says, in generation."""
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(12, V + 13, generator=rng)
    router = torch.randn(causal.FRESH, 12, V + 13, generator=rng)[0]
    random = evaluation.random_codes(range(12), 2, 12, 0)[:, 1].tolist()
    position = causal.position_codes([torch.tensor([FILL, k]) for k in KEYS], [1] * 12, 2, 0)[:, 1].tolist()
    shuffled = evaluation.shuffled_codes([torch.tensor([FILL, k]) for k in KEYS], 2, range(12), 0)[:, 1].tolist()

    def says(direction):  # the token that a code with this vector asks for, behind the space before the answer
        state = ALPHA * direction / direction.norm()
        state[ord(" ")] += 1
        return int((reader().lm_head.weight.data @ state).argmax())

    expected = {
        "on": 1.0, "off": 0.0,
        "random": np.mean([c == k for c, k in zip(random, KEYS)]),
        "shuffled": np.mean([c == k for c, k in zip(shuffled, KEYS)]),
        "position": np.mean([c == k for c, k in zip(position, KEYS)]),
        "mean": 3 / 12,  # the mean vector points most to the answer of key 0
        "directions": np.mean([says(vectors[k]) == DIGIT[(k + 3) % 10] for k in KEYS]),
        "untrained": np.mean([int(router[:, DIGIT[k]].argmax()) == k for k in KEYS])}
    assert {name: result["arms"][name]["strict"] for name in expected} == pytest.approx(expected)
    assert 0 < expected["shuffled"] < 1 and expected["position"] < 1, "the test would not tell these from on"
    for name in causal.ARMS[1:]:
        arm = result["arms"][name]
        assert (arm["helped"], arm["hurt"]) == (0, round(12 * (1 - arm["strict"]))) and arm["same"] == 12 - arm["hurt"]


def test_likelihood_of_arms_is_the_closed_form(result):
    """Broken if the codes that are scored were not those of the arm, or the nats not a mean over answer tokens."""
    L = math.log(V - 1 + math.exp(4.0))  # the code's digit has logit 4, the 260 other tokens 0
    assert result["arms"]["on"]["nats"] == pytest.approx((L - 4) / 4, abs=1e-4)  # 4 answer tokens, 3 of them certain
    assert result["arms"]["off"]["nats"] == pytest.approx(math.log(V) / 4, abs=1e-4)
    assert result["arms"]["position"]["nats"] == pytest.approx(
        (L - 4 * result["arms"]["position"]["strict"]) / 4, abs=1e-4)  # the wrong code's digit takes the logit
    gain = result["information_gain"]
    assert gain["mean"][0] == pytest.approx((math.log(V) - L + 4) / 4, abs=1e-4)
    assert [p["gain"][0] for p in gain["by_position"]] == pytest.approx([0, 0, math.log(V) - L + 4, 0], abs=1e-3)


def test_replacing_a_code_hurts_exactly_its_problems(result):
    """Broken if a code's ablation touched other codes, missed its own, or the sham changed anything."""
    for code in result["codes"][:10]:
        n = KEYS.count(code["code"])
        assert (code["problems"], code["chunks"]) == (n, n)
        assert (code["ablation"]["hurt"], code["ablation"]["helped"]) == (n, 0)
        assert code["ablation"]["mcnemar_p"] == pytest.approx(min(1, 2 * 0.5**n))
    filler, unused = result["codes"][FILL], result["codes"][UNUSED]
    assert filler["chunks"] == 12 and filler["ablation"]["changes_nothing"]  # it steers nothing that is scored
    assert unused["ablation"] is None and unused["chunks"] == 0
    assert result["sham"]["codes"] == [UNUSED] and result["sham"]["changes_nothing"]
    first = result["ngrams"][0]
    assert first["codes"] == [FILL, 0] and (first["chunks"], first["ablation"]["hurt"]) == (3, 3)
    assert result["transitions"][FILL][:10] == [3, *[1] * 9] and sum(map(sum, result["transitions"])) == 12


def test_skipping_problems_where_a_code_is_silent_is_exact():
    """Broken if running only the batches in which a code fires gave other numbers than running all."""
    model = GPT(GPTConfig(ENC.n_vocab, 32, 2, 2, 1, 32, n_codes=4, chunk=2, router_std=1.0)).eval()
    torch.manual_seed(1)
    torch.nn.init.normal_(model.codebook.weight)
    items = [encode_row(row, ENC) for row in problems(KEYS)]
    dice, others = torch.rand(12, 20), torch.tensor([0, 1])
    codes = causal.routes(model, [ids[:-1] for ids, _ in items])
    for ngram in ((2,), (3, 3)):
        arm = lambda ngram=ngram: ({}, causal.without(ngram, others, dice))  # noqa: E731
        fires = {i for i in range(12) if causal.occurs(ngram, codes[i])}
        whole = causal.token_nll(model, items, arm(), batch_size=2)
        part = causal.token_nll(model, items, arm(), only=fires, batch_size=2)
        on = causal.token_nll(model, items, ({}, causal.argmax), batch_size=2)
        assert any(p is None for p in part) or len(fires) > 6
        for a, b, c in zip(whole, part, on):
            np.testing.assert_array_equal(a, c if b is None else b)


def test_without_replaces_only_the_code_that_completes_the_ngram():
    """Broken if an n-gram were found across the wrong chunks, or forgotten between calls of generation."""
    router = [[1, 2, 1, 2, 2, 1], [2, 1, 2, 0, 1, 2]]
    z = torch.nn.functional.one_hot(torch.tensor(router), 3).float()
    row, chunk = torch.arange(2)[:, None].expand(2, 6), torch.arange(6).expand(2, 6)
    expected = torch.tensor([[1, 0, 1, 0, 2, 1], [2, 1, 0, 0, 1, 0]])  # 2 after 1 becomes 0
    at_once = causal.without((1, 2), torch.tensor([0]), torch.rand(2, 6))
    assert torch.equal(at_once(z, row, chunk), expected)
    stepwise = causal.without((1, 2), torch.tensor([0]), torch.rand(2, 6))
    assert torch.equal(torch.stack([stepwise(z[:, m], row[:, m], chunk[:, m]) for m in range(6)], 1), expected)
    assert causal.occurs((1, 2), torch.tensor(router[0])) == 2 and causal.occurs((1,), torch.tensor([])) == 0
    others, dice = torch.tensor([0, 2]), torch.rand(2, 6)
    single = causal.without((1,), others, dice)(z, row, chunk)
    assert torch.equal(single[torch.tensor(router) != 1], torch.tensor(router)[torch.tensor(router) != 1])
    assert set(single[torch.tensor(router) == 1].tolist()) <= {0, 2}


def test_position_codes_keep_what_is_at_each_place():
    """Broken if the position-matched shuffle changed how often a code stands at a place, counted from the answer."""
    codes = [torch.tensor([0, 1, 2, 3]), torch.tensor([5, 6, 7]), torch.tensor([9, 10, 11, 12])]
    out = causal.position_codes(codes, [2, 1, 1], 5, 0)  # the answer starts at codes 2, 6 and 10
    assert out.shape == (3, 5)
    assert sorted([out[0, 2].item(), out[1, 1].item(), out[2, 1].item()]) == [2, 6, 10]
    assert sorted([out[0, 1].item(), out[1, 0].item(), out[2, 0].item()]) == [1, 5, 9]
    assert sorted([out[0, 3].item(), out[1, 2].item(), out[2, 2].item()]) == [3, 7, 11]
    assert out[0, 0] == 0 and out[2, 3] == 12  # alone at their place
    assert out[0, 4] == 12 or out[0, 4] in (3, 7, 11, 12)  # drawn from those that are there
    moved = [causal.position_codes(codes, [2, 1, 1], 5, seed)[0, 2].item() for seed in range(20)]
    assert set(moved) == {2, 6, 10}


def test_interventions_leave_no_trace():
    """Broken if a run were changed by being analyzed, or an error inside an intervention left the weights replaced."""
    model = reader()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    causal.analyze(model, ENC, problems([1, 2]), generate=False, progress=False)
    with pytest.raises(KeyError), causal.replaced(model, {"codebook": torch.ones(12, V + 13)}):
        raise KeyError
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_where_every_code_fires_the_sham_is_an_ngram():
    """Broken if a run without idle codes had no sham, or one that fires."""
    found = causal.analyze(reader(11), ENC, problems(KEYS), max_new_tokens=4, progress=False)
    assert found["codebook"]["used"] == 11
    i, j = found["sham"]["codes"]
    assert found["transitions"][i][j] == 0 and found["sham"]["changes_nothing"]


def test_one_static_code_is_analyzed_too():
    """Broken if C = 1, the control, failed where there is nothing to replace."""
    model = GPT(GPTConfig(V, 16, 1, 1, 1, 32, n_codes=1, chunk=6)).eval()
    torch.nn.init.normal_(model.codebook.weight)
    found = causal.analyze(model, ENC, problems([1, 2, 3]), generate=False, progress=False)
    assert found["codes"][0]["ablation"] is None and found["sham"] is None and not found["ngrams"]
    assert found["arms"]["random"]["changes_nothing"] and not found["arms"]["off"]["changes_nothing"]


def test_with_one_code_mean_is_on_in_mixed_precision_too():
    """Broken if an intervention's own arithmetic were rounded by autocast, as an effect of the codes."""
    model = GPT(GPTConfig(V, 16, 1, 1, 1, 32, n_codes=1, chunk=6)).eval()
    torch.nn.init.normal_(model.codebook.weight)
    with torch.autocast("cpu", torch.bfloat16):
        found = causal.analyze(model, ENC, problems([1, 2, 3]), generate=False, progress=False)
    assert found["arms"]["mean"]["changes_nothing"] and not found["arms"]["off"]["changes_nothing"]


def test_words_claim_no_more_than_the_numbers(result):
    """Broken if few problems gave a verdict, or one that the intervals support or refute said otherwise."""
    assert "No verdict from 12 problems" in "\n".join(result["findings"])
    rich = causal.findings({**result, "problems": 300})
    verdict = next(line for line in rich if "Supported by likelihood" in line)
    supported, refuted = verdict.split("Not supported:")
    assert "the codes help at all" in supported and "routes beat the mean vector" in supported
    weak = {**result["arms"]["off"], "nats_minus_on": [0.1, -0.1, 0.3]}
    poor = causal.findings({**result, "problems": 300, "arms": {**result["arms"], "off": weak}})
    assert any("Not supported: the codes help at all" in line for line in poor)
    assert any("Not shown beyond position" in line for line in result["findings"]) == (
        not any(r["cmi_bits"]["p"] < 0.05 / len(result["routing"]["trained"])
                for r in result["routing"]["trained"].values()))


def test_holm_against_statsmodels():
    """Broken if the correction for many codes differed from statsmodels' multipletests(p, method="holm")."""
    assert causal.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert causal.holm([0.2, 0.001, 0.5, 0.04, 0.04]) == pytest.approx([0.4, 0.005, 0.5, 0.16, 0.16])
    assert causal.holm([1.0, 0.9]) == [1.0, 1.0]


def test_codebook_numbers_by_hand():
    """Broken if usage, perplexity, cosine or norms of the codebook were computed over the wrong codes."""
    got = causal.codebook(torch.tensor([[3.0, 4.0], [0.0, 2.0], [9.0, 9.0]]), torch.tensor([3, 1, 0]))
    assert got["used"] == 2 and got["fraction_used"] == pytest.approx(2 / 3)
    assert got["perplexity"] == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert got["cosine"] == pytest.approx(0.8) and got["norms"] == pytest.approx([5, 2, 162**0.5])


def save_run(folder, model, **settings):
    """A run's folder as train.py leaves it, with the encoding of the word problems."""
    config = {**vars(model.config)}
    train = {"method": "dlr", "data": "wordproblems", "dtype": "float32", "seed": 0, **settings}
    torch.save({"config": config, "model": model.state_dict(), "tokenizer": "wordproblems", "suffix": [],
                "train": train}, folder / "ckpt.pt")


def small(codes=1.0):
    torch.manual_seed(0)
    model = GPT(GPTConfig(768, 256, 2, 2, 1, 32, n_codes=5, chunk=3)).eval()
    torch.nn.init.normal_(model.codebook.weight, std=codes)
    torch.nn.init.normal_(model.router.weight, std=1.0)
    return model


def test_analyze_writes_json_and_says_it_in_words(tmp_path, capsys):
    """Broken if --analyze wrote no or other JSON than it says, or its "on" were not the "on" of plain eval.py."""
    save_run(tmp_path, small())
    evaluation.main(["--analyze", str(tmp_path), "--rows", "5", "--max_new_tokens", "8"])
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "analysis.json").read_text())
    assert found["problems"] == 5 and all(sentence in said for sentence in found["findings"]) and found["findings"]
    evaluation.main([str(tmp_path), "--rows", "5", "--max_new_tokens", "8", "--arms", "on", "off"])
    plain = json.loads((tmp_path / "eval-wordproblems-test.json").read_text())["arms"]
    for arm in ("on", "off"):
        assert found["arms"][arm]["nats"] == pytest.approx(plain[arm]["nats"], abs=1e-6)
        assert found["arms"][arm]["strict"] == plain[arm]["strict"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["analysis.json", "ckpt.pt", "eval-wordproblems-test.json",
                                                          "eval-wordproblems-test.jsonl"]


def test_ask_shows_each_chunk_behind_its_code(tmp_path, capsys):
    """Broken if --ask printed other codes or another answer than the model's own, or lost text between chunks."""
    model, question = small(), "Mia had 12 shells. She found 7 more. How many shells did Mia have then?"
    save_run(tmp_path, model)
    evaluation.main([str(tmp_path), "--ask", question, "--max_new_tokens", "6"])
    said = capsys.readouterr().out
    enc = load_encoding("wordproblems")
    prompt = encode(enc, PROMPT.format(question=question))
    on, off = (model.generate([prompt], 6, codes=codes, stop=end_token(enc))[0] for codes in (None, "off"))
    codes = model.route(torch.tensor([prompt + on]))[0].argmax(-1).tolist()
    chunks = [enc.decode((prompt + on)[m * 3 : m * 3 + 3]) for m in range(len(codes))]
    assert "".join(f"[{c}]{text}" for c, text in zip(codes, chunks)) in said
    assert f"answer with codes on:\n{enc.decode(on).strip()}" in said
    assert enc.decode(off).strip() in said and on != off


def test_ask_takes_the_newest_run_and_says_where_there_are_no_codes(tmp_path, capsys, monkeypatch):
    """Broken if --ask without a run took the baseline inside one, or showed codes that a run does not have."""
    monkeypatch.chdir(tmp_path)
    for name, codes in (("runs/old", 1.0), ("runs/new", 1.0), ("runs/new/sft", 0.0)):
        (tmp_path / name).mkdir(parents=True)
        save_run(tmp_path / name, small(codes))
    evaluation.main(["--ask", "How many?", "--max_new_tokens", "3"])
    said = capsys.readouterr().out
    assert said.startswith("runs/new\ncodes on, [code]")
    evaluation.main(["runs/new/sft", "--ask", "How many?", "--max_new_tokens", "3"])
    assert "this run has no codes" in capsys.readouterr().out


@pytest.mark.parametrize("flags, message", [
    ([], "one run at a time"),
    (["--analyze"], "one run at a time"),
    (["--analyze", "RUN", "RUN"], "one run at a time"),
    (["--analyze", "--report", "RUN"], "not allowed with"),
    (["--analyze", "RUN", "--out", "x.txt"], r".json in an existing folder, got x.txt"),
    (["--report", "RUN", "--out", "no/x.html"], r".html in an existing folder, got no/x.html"),
    (["--analyze", "nowhere"], "nowhere"),
    (["--analyze", "PLAIN"], "every code of this run is zero"),
    (["RUN", "--ask", "long " * 300], "allowed are 1 to 256"),
    (["RUN", "--ask", " "], "the question is empty"),
    (["--analyze", "RUN", "--seed", "-1"], "--seed must be >= 0")])
def test_flags_that_make_no_sense_are_refused(tmp_path, capsys, monkeypatch, flags, message):
    """Broken if a wrong call of the new flags ended in a traceback, or left a file behind."""
    monkeypatch.chdir(tmp_path)
    for name, codes in (("RUN", 1.0), ("PLAIN", 0.0)):
        (tmp_path / name).mkdir()
        save_run(tmp_path / name, small(codes))
    with pytest.raises(SystemExit) as exit:
        evaluation.main(flags)
    assert exit.value.code == 2 and message in capsys.readouterr().err
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")) == ["PLAIN/ckpt.pt", "RUN/ckpt.pt"]
