"""Hugging Face folders: the paper's models against transformers, what is refused, and the way back."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from data.tokens import encode, load_encoding
from dlr import GPT, GPTConfig, rope_frequencies

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")
load_file, save_file = safetensors.load_file, safetensors.save_file

from data.huggingface import read_config, save  # noqa: E402  (needs safetensors)

SMOLLM2 = Path(__file__).parents[1] / "data" / "smollm2"
SIZES = dict(vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
             num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=4096)
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
KINDS = {  # name: (class, config); 6 heads of 16 are 96 wide, the states 48
    "llama": ("Llama", {"rope_theta": 1e5, "rms_norm_eps": 1e-5}),
    "llama3": ("Llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, **LLAMA3},
                         "head_dim": 16, "tie_word_embeddings": False}),
    "qwen3": ("Qwen3", {"rope_theta": 1e6, "head_dim": 16}),
}
LM, CODES = "model.safetensors", "codes.safetensors"


def reference(folder, kind="qwen3", **more):
    """A random tiny model of transformers, saved; random norms, since ones would hide a swap."""
    name, config = KINDS[kind]
    torch.manual_seed(0)
    config = dict(tie_word_embeddings=True, pad_token_id=0, bos_token_id=None, eos_token_id=None) | config
    config = getattr(transformers, f"{name}Config")(**SIZES, **config)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            matrix = p.dim() == 2
            p.copy_(0.12 * torch.randn(p.shape) if matrix else 1 + 0.4 * torch.randn(p.shape))
    model.save_pretrained(folder, **more)
    return model


def tokens(B, T, seed=1):
    return torch.randint(1, 97, (B, T), generator=torch.Generator().manual_seed(seed))


def same_logits(model, ref, idx):
    with torch.no_grad():
        ours, _ = model(idx, codes="off")
        torch.testing.assert_close(ours, ref(idx).logits, atol=1e-5, rtol=0)


# --- the same function as transformers ------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_greedy_text_are_those_of_transformers(kind, tmp_path):
    """Broken if norms, RoPE (also far out), head width or names differed from the architecture."""
    ref = reference(tmp_path, kind)
    model = GPT.from_pretrained(tmp_path, n_codes=4, chunk=2)
    assert (model.config.n_codes, model.config.chunk, model.config.block_size) == (4, 2, 4096)
    assert (model.lm_head.weight is model.embed_tokens.weight) == (kind != "llama3")
    assert torch.equal(model.bigram, GPT(model.config).bigram) and not model.codebook.weight.any()
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    same_logits(model, ref, tokens(1, 3000))
    assert torch.equal(rope_frequencies(model.config), ref.model.rotary_emb.inv_freq)
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in (3, 9, 17, 40)]
    together = model.generate(prompts, 12)  # one ragged batch, with the cache
    for prompt, answer in zip(prompts, together):
        alone = ref.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
        assert answer == alone[0, len(prompt) :].tolist()


@pytest.mark.skipif(not (SMOLLM2 / LM).exists(), reason="run data/smollm2.py")
def test_smollm2_itself():
    """Broken if data/smollm2.py converts a tensor wrongly, or real magnitudes are computed otherwise."""
    ref = transformers.AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32).eval()
    model = GPT.from_pretrained(SMOLLM2, block_size=128)
    idx = torch.randint(49152, (1, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(idx)[0], ref(idx).logits, atol=2e-3, rtol=1e-4)
    enc = load_encoding(SMOLLM2)
    [[token]] = model.generate([encode(enc, "The capital of France is")], 1)
    assert enc.decode([token]) == " Paris"


# --- config.json of transformers 4 and 5, files single and sharded --------------------------------

# Those of Qwen/Qwen3-0.6B and meta-llama/Llama-3.2-1B, as transformers 4 wrote them, in what counts.
REAL = {596_049_920: dict(
            model_type="qwen3", attention_bias=False, head_dim=128, hidden_act="silu", hidden_size=1024,
            intermediate_size=3072, max_position_embeddings=40960, num_attention_heads=16,
            num_hidden_layers=28, num_key_value_heads=8, rms_norm_eps=1e-06, rope_scaling=None,
            rope_theta=1000000, sliding_window=None, tie_word_embeddings=True,
            use_sliding_window=False, vocab_size=151936),
        1_235_814_400: dict(
            model_type="llama", attention_bias=False, head_dim=64, hidden_act="silu", hidden_size=2048,
            intermediate_size=8192, max_position_embeddings=131072, mlp_bias=False,
            num_attention_heads=32, num_hidden_layers=16, num_key_value_heads=8, pretraining_tp=1,
            rms_norm_eps=1e-05, rope_theta=500000.0, tie_word_embeddings=True, vocab_size=128256,
            rope_scaling={"rope_type": "llama3", **LLAMA3, "factor": 32.0})}


def config_of(config, folder):
    (folder / "config.json").write_text(json.dumps(config))
    return read_config(folder / "config.json")


@pytest.mark.parametrize("parameters", REAL)
def test_the_papers_models_have_their_published_sizes(parameters, tmp_path):
    """Broken if a config.json of transformers 4 were refused, gave another size or another RoPE."""
    with torch.device("meta"):
        model = GPT(GPTConfig(**config_of(REAL[parameters], tmp_path)))
    rope = {**LLAMA3, "factor": 32.0} if model.config.rope_theta == 500000 else None
    assert model.config.rope_scaling == rope and model.config.rope_theta >= 500000
    codes = model.codebook.weight.numel() + model.router.weight.numel()
    assert sum(p.numel() for p in model.parameters()) - codes == parameters


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_absent_fields_have_the_defaults_of_transformers(kind, tmp_path):
    """Broken if a config.json that leaves a field out meant another model here."""
    given = {**SIZES, "model_type": kind, "num_key_value_heads": None}
    ours = GPTConfig(**config_of(given, tmp_path))
    theirs = transformers.AutoConfig.for_model(**given)
    assert ours.n_kv_head == theirs.num_key_value_heads and ours.head_dim == theirs.head_dim
    assert ours.norm_eps == theirs.rms_norm_eps and ours.tie_embeddings == theirs.tie_word_embeddings
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"] and ours.rope_scaling is None


def add(path, name, tensor):
    """One more tensor in a safetensors file."""
    save_file({**load_file(path), name: tensor}, path, {"format": "pt"})


def test_shards_load_as_one_file_does(tmp_path):
    """Broken if a shard were left out, or a table in an old checkpoint were taken for a weight."""
    ref = reference(tmp_path, max_shard_size="30KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 3
    add(shards[0], "model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(8))
    same_logits(GPT.from_pretrained(tmp_path, block_size=64), ref, tokens(1, 20))


def test_a_head_in_the_file_of_a_tied_config(tmp_path, capsys):
    """Broken if a head trained apart were refused or lost; transformers 5 loads it untied."""
    ref = reference(tmp_path)
    add(tmp_path / LM, "lm_head.weight", -2 * ref.lm_head.weight.detach())
    model = GPT.from_pretrained(tmp_path, block_size=64)
    said = f"{tmp_path}: the config ties lm_head to embed_tokens"
    assert not model.config.tie_embeddings and capsys.readouterr().out.startswith(said)
    ref = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    same_logits(model, ref, tokens(1, 20))


# --- and back -------------------------------------------------------------------------------------


def trained(**changes):
    """A tiny model with trained codes and unusual settings."""
    config = dict(vocab_size=97, block_size=200, n_layer=3, n_head=6, n_kv_head=2, n_embd=48)
    config |= dict(n_codes=5, chunk=3, steer_layer=2, steer_scale=0.3, route_norm=False)
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**config, **changes}))
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=0.0 if p.dim() == 2 else 1.0, std=0.2)
    model.bigram.copy_(torch.rand(5, 5).softmax(-1) / 5)
    return model


QWEN3_LIKE = {"head_dim": 16, "qk_norm": True}


@pytest.mark.parametrize("changes", [{"rope_scaling": LLAMA3, "rope_theta": 1e4},
                                     {**QWEN3_LIKE, "tie_embeddings": False, "norm_eps": 1e-3}])
def test_saved_models_come_back_and_open_in_transformers(changes, tmp_path):
    """Broken if a weight, setting or code were lost, or transformers read the LM half otherwise."""
    model, folder = trained(**changes), tmp_path / "new" / "folder"
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    save(model, folder, tokenizer=tmp_path / "tokenizer.json")
    assert {p.name for p in folder.iterdir()} == {"config.json", LM, CODES, "tokenizer.json"}
    again = GPT.from_pretrained(folder)
    assert dataclasses.replace(again.config, router_std=model.config.router_std) == model.config
    for name, w in model.state_dict().items():
        assert torch.equal(w, again.state_dict()[name]), name
    ref, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(ref).__name__.startswith("Qwen3" if model.config.qk_norm else "Llama")
    assert not any(info.values()), info
    same_logits(again, ref.eval(), tokens(2, 150))


def test_trained_codes_keep_their_settings(tmp_path):
    """Broken if an override changed what trained codes mean, or untrained ones could not be new."""
    model = trained()
    save(model, tmp_path)
    same = GPT.from_pretrained(tmp_path, n_codes=5, steer_layer=None, block_size=30)
    assert (same.config.steer_layer, same.config.block_size) == (2, 30)
    others = dict(n_codes=6, chunk=4, steer_layer=1, steer_scale=0.5, route_norm=True)
    for field, value in others.items():
        with pytest.raises(ValueError, match=rf"{tmp_path.name}: .*trained with {field} .*{value}"):
            GPT.from_pretrained(tmp_path, **{field: value})
    torch.nn.init.zeros_(model.codebook.weight)
    save(model, tmp_path)  # over the other files
    other = GPT.from_pretrained(tmp_path, n_codes=6)
    assert (other.codebook.weight.shape, other.config.chunk) == ((6, 48), 3)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("changes, words", [
    ({"model_type": "opt"}, "model_type 'opt'.*llama or qwen3"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu'.*silu"),
    ({"attention_bias": True}, "attention_bias True"),
    ({"use_sliding_window": True}, "use_sliding_window True"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types 'sliding_attention'"),
    ({"quantization_config": {"bits": 8}}, "quantization_config.*bits"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn'.*llama3"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "needs .*low_freq_factor.*'factor': 8.0"),
    ({"hidden_size": None}, "lacks hidden_size"),
    ({"tie_word_embeddings": False}, "lm_head.weight")])
def test_configs_that_this_gpt_would_compute_wrong(changes, words, tmp_path):
    """Broken if a field that changes results were ignored, or the error did not name it."""
    reference(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ValueError, match=rf"(?s){tmp_path.name}.*{words}"):
        GPT.from_pretrained(tmp_path)


def shard(folder):
    (folder / LM).unlink()
    index = {"weight_map": {"model.norm.weight": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("words, spoil", [  # test_bad_input.py has the faults of config.json
    ("norm.bias", lambda d: add(d / LM, "model.norm.bias", torch.zeros(48))),
    ("b.safetensors", shard),
    ("codes.safetensors: not a readable", lambda d: (d / CODES).write_bytes(b"")),
    ("codes.safetensors: must hold.*with {}", lambda d: save_file(load_file(d / CODES), d / CODES))])
def test_folders_with_one_fault(words, spoil, tmp_path):
    """Broken if a damaged or foreign file loaded, or the error did not name it and the culprit."""
    save(trained(**QWEN3_LIKE), tmp_path)
    spoil(tmp_path)
    with pytest.raises(FileNotFoundError if spoil is shard else ValueError, match=words) as error:
        GPT.from_pretrained(tmp_path)
    assert tmp_path.name in str(error.value)


def test_safetensors_is_optional(tmp_path, monkeypatch):
    """Broken if a user without the package got an error that does not say what to install."""
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.delitem(sys.modules, "data.huggingface")
    with pytest.raises(ImportError, match="pip install safetensors"):
        GPT.from_pretrained(tmp_path)
