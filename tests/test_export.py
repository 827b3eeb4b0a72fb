"""The way out: a code folded into a checkpoint of transformers, and all that a model's folder says beside it."""

import io
import json
import os
import re
import sys

import pytest
import torch
from conftest import hugging_face_folder, small_run

import eval as evaluation
import train
from data.plumbing import open_model
from data.tokens import encode, encode_row, end_token, end_tokens, load_encoding
from dlr import GPT, GPTConfig

transformers = pytest.importorskip("transformers")
pytest.importorskip("safetensors")

from safetensors.torch import load_file  # noqa: E402

from data import huggingface  # noqa: E402
from data.huggingface import save  # noqa: E402

ENC = load_encoding("wordproblems")
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)


def coded(**changes):
    """A tiny model whose four codes matter, 3 blocks, the steering after 2."""
    config = dict(vocab_size=97, block_size=120, n_layer=3, n_head=6, n_kv_head=2, n_embd=48, ffn_dim=80)
    config |= dict(n_codes=4, chunk=3, steer_layer=2, steer_scale=0.3)
    return shaken(GPT(GPTConfig(**{**config, **changes})))


def shaken(model):
    """The model with large random weights, so that its words vary and its codes matter."""
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=0.0 if p.dim() == 2 else 1.0, std=0.2)
    torch.nn.init.normal_(model.codebook.weight, std=2.0)
    return model.eval()


def tokens(B, T, high=97):
    return torch.randint(high, (B, T), generator=torch.Generator().manual_seed(1))


def opened(folder):
    """The model that transformers makes of a folder, which must have just the weights that it wants."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


# ---- a code, folded in ---------------------------------------------------------------------------

KINDS = {
    "tied": {},
    "first block": {"steer_layer": 1},
    "untied, llama 3's RoPE": {"tie_embeddings": False, "rope_scaling": LLAMA3, "head_dim": 16},
    "in the embedding": {"steer_layer": 0},
    "in the embedding, untied": {"steer_layer": 0, "tie_embeddings": False},
    "in the embedding of a Qwen3": {"steer_layer": 0, "qk_norm": True, "head_dim": 16},
}


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_computes_what_the_forced_code_does(kind, tmp_path):
    """Broken if the constant stood in the wrong block, lacked alpha, or moved the head or another bias."""
    model, idx = coded(**KINDS[kind]), tokens(2, 100)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for code in (0, 3):
        save(model, tmp_path, code)
        ref = opened(tmp_path)
        with torch.no_grad():
            forced, plain, expected = model(idx, codes=code)[0], model(idx, codes="off")[0], ref(idx).logits
        torch.testing.assert_close(expected, forced, atol=1e-5, rtol=0)
        assert (forced - plain).abs().max() > 0.1  # the code matters
        prompts = [tokens(1, n)[0].tolist() for n in (3, 8, 17)]
        for prompt, new in zip(prompts, model.generate(prompts, 20, codes=code)):
            whole = ref.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)
            assert new == whole[0, len(prompt) :].tolist()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_constant_is_one_bias_by_hand(tmp_path):
    """Broken if another checkpoint than the documented one were written, or the codes lay beside it still."""
    model = coded()
    save(model, tmp_path)
    assert (tmp_path / "codes.safetensors").exists()
    save(model, tmp_path, code=1)  # over the plain one
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads((tmp_path / "config.json").read_text())["mlp_bias"] is True
    weights = load_file(tmp_path / "model.safetensors")
    biases = {name: w for name, w in weights.items() if name.endswith(".bias")}
    assert len(biases) == 3 * 3
    constant = biases.pop("model.layers.1.mlp.down_proj.bias")  # l* = 2: after blocks 0 and 1
    assert torch.equal(constant, 0.3 * model.codebook.weight[1]) and constant.abs().min() > 0
    assert not any(w.any() for w in biases.values())


def test_our_loader_says_what_a_folded_folder_is_or_reads_it(tmp_path):
    """Broken if the biases were dropped without a word, or a model without biases computed something else."""
    save(coded(), tmp_path / "bias", 2)
    with pytest.raises(ValueError, match=r"bias/config.json: mlp_bias True .*folded a code.*use the run"):
        GPT.from_pretrained(tmp_path / "bias")
    model = coded(steer_layer=0)
    save(model, tmp_path / "embedding", 2)
    again = GPT.from_pretrained(tmp_path / "embedding")
    with torch.no_grad():
        torch.testing.assert_close(again(tokens(1, 50))[0], model(tokens(1, 50), codes=2)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("changes, code, words", [
    ({"qk_norm": True}, 1, "code 1 cannot be folded in: .*after block 2 of a Qwen3.*What can be: "),
    ({}, 4, r"code must be an integer in 0\.\.3, got 4"), ({}, -1, "got -1"),
    ({}, True, "got True"), ({}, "best", "got 'best'")])
def test_what_cannot_be_folded_in_is_one_line(changes, code, words, tmp_path):
    """Broken if a wrong model were written, or the user did not learn what can be done instead."""
    with pytest.raises(ValueError, match=words) as error:
        save(coded(**changes), tmp_path / "new", code)
    assert "\n" not in str(error.value) and not (tmp_path / "new").exists()


# ---- what was read is written --------------------------------------------------------------------

ENDS = {  # what config.json and generation_config.json list, the end tokens that generation obeys: ours is 256
    "one": (9, None, [256, 9]),
    "a list": ([9, 7], None, [256, 9, 7]),
    "generation_config.json first": (9, [7, 256], [256, 7]),
    "ours alone": (256, 256, [256]),
    "none": (None, None, [256]),
}


def folder_with_ends(folder, config_ends, generation_ends):
    """The tiny Llama of conftest.py with tokens, a context of 256 and the tokenizer's other files."""
    hugging_face_folder(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"eos_token_id": config_ends, "bos_token_id": 5}
    (folder / "config.json").write_text(json.dumps(config))
    if generation_ends is not None:
        generation = {"eos_token_id": generation_ends, "do_sample": True, "temperature": 0.6}
        (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>"}')
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


@pytest.mark.parametrize("case", ENDS)
@pytest.mark.parametrize("code", [None, 1])
def test_what_the_folder_said_goes_along(case, code, tmp_path):
    """Broken if an end token, the context, or a file of the tokenizer were lost: transformers would write on."""
    config_ends, generation_ends, expected = ENDS[case]
    old, new = tmp_path / "old", tmp_path / "new"
    folder_with_ends(old, config_ends, generation_ends)
    assert end_tokens(load_encoding(old)) == expected
    model = GPT.from_pretrained(old, block_size=64)
    save(model, new, code)
    config = json.loads((new / "config.json").read_text())
    generation = json.loads((new / "generation_config.json").read_text())
    written = expected if len(expected) > 1 else expected[0]
    assert config["eos_token_id"] == generation["eos_token_id"] == written
    assert (config["bos_token_id"], config["max_position_embeddings"]) == (5, 256)
    assert generation.get("temperature") == (0.6 if generation_ends else None)
    for name in ("tokenizer.json", "special_tokens_map.json", "tokenizer_config.json"):
        assert (new / name).read_bytes() == (old / name).read_bytes()
    assert transformers.GenerationConfig.from_pretrained(new).eos_token_id == written


def test_transformers_stops_where_we_stop(tmp_path):
    """Broken if the end tokens of the written folder were not those that transformers obeys."""
    folder_with_ends(tmp_path / "old", None, None)
    model = shaken(GPT.from_pretrained(tmp_path / "old"))
    [endless] = model.generate([[70, 71, 72]], 30, codes=1)
    stop = next(token for token in endless[5:] if token not in endless[:5])  # it ends after a few tokens
    (tmp_path / "old" / "generation_config.json").write_text(json.dumps({"eos_token_id": [stop, 256]}))
    save(model, tmp_path / "new", code=1)
    whole = opened(tmp_path / "new").generate(torch.tensor([[70, 71, 72]]), max_new_tokens=30, do_sample=False)
    assert whole[0, 3:].tolist() == endless[: endless.index(stop) + 1]
    assert 5 <= endless.index(stop) < 29
    enc = load_encoding(tmp_path / "old")
    answer = endless[: endless.index(stop)]
    assert model.generate([[70, 71, 72], [70]], 30, codes=1, stop=end_tokens(enc))[0] == answer
    assert evaluation.answer(model, enc, [[70, 71, 72]], ["code 1"], 30)["code 1"] == [enc.decode(answer)]


def test_a_folder_that_is_gone_does_not_lose_the_model(tmp_path, capsys):
    """Broken if what was trained could not be saved, or the missing end token went without a word."""
    folder_with_ends(tmp_path / "old", 9, None)
    model = GPT.from_pretrained(tmp_path / "old")
    os.rename(tmp_path / "old", tmp_path / "moved")
    save(model, tmp_path / "new", code=1)
    assert f"{tmp_path}/old is gone: its end tokens" in capsys.readouterr().out
    save(model, tmp_path / "new", code=1, tokenizer=tmp_path / "moved")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["eos_token_id"] == [256, 9]


@pytest.mark.parametrize("name, bad", [("config.json", [9, "a"]), ("generation_config.json", {"a": 1})])
def test_a_list_of_end_tokens_that_is_none_is_named(name, bad, tmp_path):
    """Broken if a damaged list ended in a traceback, or in answers that never end."""
    hugging_face_folder(tmp_path)
    old = json.loads((tmp_path / "config.json").read_text()) if name == "config.json" else {}
    (tmp_path / name).write_text(json.dumps({**old, "eos_token_id": bad}))
    with pytest.raises(ValueError, match=rf"{name}: eos_token_id must be an integer or a list of them, got"):
        load_encoding(tmp_path)


# ---- the command ---------------------------------------------------------------------------------


def run_folder(folder, chosen="code 2", **config):
    """A run on the word problems as train.py leaves it, with codes that matter, and its model."""
    model = coded(vocab_size=ENC.n_vocab, **config)
    folder.mkdir()
    torch.save({"config": vars(model.config), "model": model.state_dict(), "tokenizer": "wordproblems", "train": {}},
               folder / "ckpt.pt")
    (folder / "config.json").write_text('{"method": "dlr"}')
    if chosen:
        (folder / "summary.json").write_text(json.dumps({"chosen": chosen}))
    return model


@pytest.mark.parametrize("flags, code", [(["--code", "best"], 2), (["--code", "1"], 1), (["--code", "code 3"], 3)])
def test_a_run_becomes_a_folder_that_answers_in_transformers(flags, code, tmp_path, capsys):
    """Broken if the command took another code than the one chosen on val, or texts became other tokens."""
    model = run_folder(tmp_path / "run")
    huggingface.main([str(tmp_path / "run"), str(tmp_path / "new"), *flags])
    out = capsys.readouterr().out
    assert f"code {code} is folded in; context 120, end tokens {end_token(ENC)}\n" in out
    ref = opened(tmp_path / "new")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    assert tokenizer.eos_token_id == ref.generation_config.eos_token_id == end_token(ENC)
    question = "Mia had 12 shells. Then she found another 7.  naïve?"
    ids, n_prompt = encode_row({"question": question, "answer": ""}, ENC)
    inputs = tokenizer(f"Question: {question}\nAnswer:", return_tensors="pt")
    assert inputs.input_ids[0].tolist() == ids[:n_prompt]
    [new] = model.generate([ids[:n_prompt]], 30, codes=code, stop=end_token(ENC))
    whole = ref.generate(inputs.input_ids, max_new_tokens=30, do_sample=False)
    assert tokenizer.decode(whole[0, n_prompt:], skip_special_tokens=True) == ENC.decode(new)


def test_a_run_without_code_keeps_all_codes(tmp_path, capsys):
    """Broken if the plain LM or the codes beside it came back otherwise, or the tokenizer could not be read."""
    model = run_folder(tmp_path / "run")
    huggingface.main([str(tmp_path / "run" / "ckpt.pt"), str(tmp_path / "new")])
    again, enc = open_model(tmp_path / "new")
    assert (enc.n_vocab, end_tokens(enc)) == (ENC.n_vocab, [end_token(ENC)])
    assert encode(enc, "12 shells, naïve") == encode(ENC, "12 shells, naïve")
    for name, w in model.state_dict().items():
        assert torch.equal(w, again.state_dict()[name]), name


def test_a_terminal_may_lack_a_letter_of_the_folders_name(tmp_path, monkeypatch):
    """Broken if the folder was written, and then its name, printed on a terminal of ASCII, ended in a traceback."""
    run_folder(tmp_path / "run")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    huggingface.main([str(tmp_path / "run"), str(tmp_path / "běh")])
    sys.stdout.flush()
    assert b"b?h: the plain language model" in sys.stdout.buffer.getvalue()


def test_a_run_that_began_with_a_folder_gets_its_files_back(tmp_path, capsys):
    """Broken if the trained model lost the end tokens, the context or the tokenizer of its folder."""
    folder_with_ends(tmp_path / "hf", [9, 7], None)
    argv = small_run(tmp_path)
    argv[argv.index("--init_from") + 1] = str(tmp_path / "hf")
    train.main([*argv, "--epochs", ".25", "--eval_rows", "-1", "--block_size", "64", "--out", str(tmp_path / "run")])
    huggingface.main([str(tmp_path / "run"), str(tmp_path / "new"), "--code", "0"])
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["eos_token_id"] == [256, 9, 7] and config["max_position_embeddings"] == 256
    for name in ("tokenizer.json", "special_tokens_map.json", "tokenizer_config.json"):
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()
    os.rename(tmp_path / "hf", tmp_path / "moved")  # the run has a copy of all that counts
    huggingface.main([str(tmp_path / "run"), str(tmp_path / "alone"), "--code", "0"])
    assert end_tokens(open_model(tmp_path / "run" / "ckpt.pt")[1]) == [256, 9, 7]
    for path in (tmp_path / "new").iterdir():
        assert path.read_bytes() == (tmp_path / "alone" / path.name).read_bytes()


CASES = {  # what is wrong: (flags after RUN, words)
    "no such code": (["{d}/new", "--code", "4"], r"code must be an integer in 0\.\.3, got 4"),
    "no number": (["{d}/new", "--code", "first"], "--code must be best or the number of a code, got 'first'"),
    "no run": (["{d}/new", "--code", "best"], r"No such file .*none'"),
    "into the run": (["{d}/run"], "run holds a run, whose config.json would be overwritten"),
    "into a file": (["{d}/file/new"], "file"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_flags_are_one_line(case, tmp_path, capsys):
    """Broken if a mistake ended in a traceback, another status, or a half-written folder."""
    run_folder(tmp_path / "run")
    (tmp_path / "file").write_text("")
    flags, words = CASES[case]
    run = "none" if case == "no run" else "run"
    assert_one_line([str(tmp_path / run), *(flag.format(d=tmp_path) for flag in flags)], words, tmp_path, capsys)


@pytest.mark.parametrize("chosen, zero, flags, words", [
    (None, False, ["--code", "best"], "summary.json names no code that was chosen on val; give one, --code N"),
    ("code 1", True, ["--code", "best"], "has no trained codes; without --code its plain LM is written")])
def test_runs_without_what_is_asked_for_are_one_line(chosen, zero, flags, words, tmp_path, capsys):
    """Broken if a run that chose no code, or has none, gave some code all the same."""
    run_folder(tmp_path / "run", chosen)
    if zero:
        saved = torch.load(tmp_path / "run" / "ckpt.pt", weights_only=True)
        saved["model"]["codebook.weight"].zero_()
        torch.save(saved, tmp_path / "run" / "ckpt.pt")
    assert_one_line([str(tmp_path / "run"), str(tmp_path / "new"), *flags], words, tmp_path, capsys)


def assert_one_line(argv, words, folder, capsys):
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        huggingface.main(argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and re.search(words, error), error
    assert error.startswith("huggingface.py: error: ") and error.count("\n") == 1
    assert sorted(folder.rglob("*")) == before
