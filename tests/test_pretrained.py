"""Hugging Face folders: the paper's models against transformers, what is refused, and the way back. No network."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import dlr
from dlr import GPT, GPTConfig, read_hf_config, rope_frequencies

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")
load_file, save_file = safetensors.load_file, safetensors.save_file

ROOT = Path(__file__).parents[1]
SMOLLM2 = ROOT / "data" / "smollm2"
SIZES = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
         "num_key_value_heads": 2, "max_position_embeddings": 4096, "pad_token_id": 0, "bos_token_id": None,
         "eos_token_id": None}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
KINDS = {  # name: (class, config); 6 heads of 16 are 96 wide, the states 48
    "llama": ("Llama", {"rope_theta": 1e5, "rms_norm_eps": 1e-5}),
    "llama3": ("Llama", {"rope_parameters": {**LLAMA3, "rope_theta": 1e4}, "head_dim": 16}),
    "qwen3": ("Qwen3", {"rope_theta": 1e6, "head_dim": 16}),
}


def reference(kind="qwen3", tied=True, seed=0, **kw):
    """A random tiny model of transformers; norms random too, since ones would hide that one is skipped or swapped."""
    name, config = KINDS[kind]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, "tie_word_embeddings": tied, **config, **kw})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * (0.12 if p.dim() == 2 else 0.4) + (0.0 if p.dim() == 2 else 1.0))
    return model


def tokens(B, T, seed=1):
    return torch.randint(1, 97, (B, T), generator=torch.Generator().manual_seed(seed))


def same_logits(model, ref, idx):
    with torch.no_grad():
        torch.testing.assert_close(model(idx, codes="off")[0], ref(idx).logits, atol=1e-5, rtol=0)


# --- the same function as transformers --------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_greedy_text_are_those_of_transformers(kind, tied, tmp_path):
    """Broken if norms, their order with RoPE, head width, RoPE, SwiGLU or names differed from the real architecture."""
    ref = reference(kind, tied)
    ref.save_pretrained(tmp_path)
    model = GPT.from_pretrained(tmp_path, n_codes=4, chunk=2, block_size=64)
    assert (model.config.n_codes, model.config.chunk, model.config.block_size) == (4, 2, 64)
    assert (model.lm_head.weight is model.embed_tokens.weight) == tied
    same_logits(model, ref, tokens(3, 60))
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in (3, 9, 17, 40)]
    out = model.generate(prompts, 12)  # one ragged batch, with the cache
    longest, with_padding = 40, []
    for prompt in prompts:
        alone = ref.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
        with_padding.append([0] * (longest - len(prompt)) + prompt)
        assert out[len(with_padding) - 1] == alone[0, len(prompt):].tolist()
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    padded = ref.generate(torch.tensor(with_padding), attention_mask=mask, max_new_tokens=12, do_sample=False)
    assert out == padded[:, longest:].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_long_positions(kind, tmp_path):
    """Broken if RoPE drifted from transformers far out, or if the stretched frequencies were not Llama 3's."""
    ref = reference(kind)
    ref.save_pretrained(tmp_path)
    model = GPT.from_pretrained(tmp_path)
    assert model.config.block_size == 4096
    idx = tokens(1, 3000)
    same_logits(model, ref, idx)
    assert torch.equal(rope_frequencies(model.config), ref.model.rotary_emb.inv_freq)
    if kind == "llama3":
        plain = GPT.from_pretrained(tmp_path, rope_scaling=None)
        assert (plain(idx)[0] - model(idx)[0]).abs().max() > 0.1, "the test would not notice a missing scaling"


def test_llama3_frequencies_by_hand():
    """Broken if one of the three bands of wavelengths were stretched otherwise; Llama 3.2's own numbers, in float64."""
    config = read_hf_config_text(LLAMA_32_1B)
    got = rope_frequencies(GPTConfig(**{**config, "block_size": 8}))
    expected, bands = [], set()
    for i in range(32):
        f = 500000.0 ** (-2 * i / 64)
        w = 2 * math.pi / f
        s = (8192 / w - 1) / 3
        bands.add("keep" if w < 2048 else "slow" if w > 8192 else "blend")
        expected.append(f if w < 2048 else f / 32 if w > 8192 else (1 - s) * f / 32 + s * f)
    assert len(bands) == 3
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5)


@pytest.mark.skipif(not (SMOLLM2 / "model.safetensors").exists(), reason="needs data/smollm2.py's folder")
def test_smollm2_itself():
    """Broken if a real model, with real magnitudes, were computed otherwise than by transformers."""
    ref = transformers.AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32).eval()
    model = GPT.from_pretrained(SMOLLM2, block_size=128)
    idx = torch.randint(49152, (1, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(idx)[0], ref(idx).logits, atol=2e-3, rtol=1e-4)


def test_autocast_keeps_the_norms_of_q_and_k_in_float32(tmp_path, recwarn):
    """Broken if bfloat16 training or generation of Qwen3 failed, left a weight without gradient, or drifted off."""
    reference().save_pretrained(tmp_path)
    model = GPT.from_pretrained(tmp_path, block_size=64)
    idx = tokens(2, 30)
    exact = model(idx)[0]
    with torch.autocast("cpu", torch.bfloat16):
        model(idx, idx.clone(), codes="search", n_rollouts=2)[0].backward()
        close = model(idx)[0]
        assert [len(row) for row in model.generate([[1, 2, 3], [4]], 5)] == [5, 5]
    assert (close - exact).abs().max() < 0.1 * exact.abs().max()
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "_norm" in n or "_proj" in n)
    assert not [w for w in recwarn if "fused" in str(w.message)]


# --- folders of transformers 4 and 5, single and sharded --------------------------------------------------------------

# The config.json files of Qwen/Qwen3-0.6B and meta-llama/Llama-3.2-1B, as transformers 4 wrote them.
QWEN3_06B = """{"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
"bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
"initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
"model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
"rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true,
"torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false,
"vocab_size": 151936}"""
LLAMA_32_1B = """{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
"bos_token_id": 128000, "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
"initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
"model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
"pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0,
"low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
"tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 128256}"""


def read_hf_config_text(text):
    class Folder:  # read_hf_config wants a folder; this one is made of text
        def __truediv__(self, name):
            return self

        def read_text(self, encoding):
            return text

    return read_hf_config(Folder())


@pytest.mark.parametrize("text, changes, parameters", [  # the published parameter counts, tied weights counted once
    (QWEN3_06B, {}, 596_049_920),
    (QWEN3_06B, {"hidden_size": 2048, "intermediate_size": 6144}, 1_720_574_976),
    (QWEN3_06B, {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
     4_022_468_096),
    (QWEN3_06B, {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
                 "tie_word_embeddings": False}, 8_190_735_360),
    (LLAMA_32_1B, {}, 1_235_814_400),
    (LLAMA_32_1B, {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "head_dim": 128},
     3_212_749_824)], ids=["0.6B", "1.7B", "4B", "8B", "1B", "3B"])
def test_the_papers_models_have_their_published_sizes(text, changes, parameters):
    """Broken if a real config.json were refused or gave a model of another size."""
    config = read_hf_config_text(json.dumps({**json.loads(text), **changes}))
    with torch.device("meta"):
        model = GPT(GPTConfig(**config))
    ours = model.codebook.weight.numel() + model.router.weight.numel()
    assert sum(p.numel() for p in model.parameters()) - ours == parameters


@pytest.mark.parametrize("kind", ["llama3", "qwen3"])
def test_both_config_layouts(kind, tmp_path):
    """Broken if RoPE were read from transformers 5's rope_parameters only, or from transformers 4's fields only."""
    ref = reference(kind)
    ref.save_pretrained(tmp_path)
    five = GPT.from_pretrained(tmp_path, block_size=64).config
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    for scaling in ([rope, {**rope, "type": rope["rope_type"]}] if kind == "llama3" else [None, {"type": "default"}]):
        (tmp_path / "config.json").write_text(json.dumps({**config, "rope_scaling": scaling}))
        assert GPT.from_pretrained(tmp_path, block_size=64).config == five
    assert (five.rope_theta, five.rope_scaling is None) == ((1e4, False) if kind == "llama3" else (1e6, True))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_absent_fields_have_the_defaults_of_transformers(kind):
    """Broken if a config.json that leaves a field out meant another model here."""
    given = {"model_type": kind, "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
             "num_attention_heads": 6, "max_position_embeddings": 64, "num_key_value_heads": None}
    ours = GPTConfig(**read_hf_config_text(json.dumps(given)))
    theirs = transformers.AutoConfig.for_model(**given)
    assert (ours.n_kv_head, ours.head_dim, ours.norm_eps, ours.tie_embeddings, ours.rope_theta, ours.rope_scaling) == (
        theirs.num_key_value_heads, theirs.head_dim, theirs.rms_norm_eps, theirs.tie_word_embeddings,
        theirs.rope_parameters["rope_theta"], None)


@pytest.mark.parametrize("tied", [True, False])
def test_shards_load_as_one_file_does(tied, tmp_path):
    """Broken if a tensor were read from the wrong shard, or buffers of an old checkpoint were taken for weights."""
    ref = reference(tied=tied)
    ref.save_pretrained(tmp_path / "one")
    ref.save_pretrained(tmp_path / "many", max_shard_size="30KB")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 3
    one, many = (GPT.from_pretrained(tmp_path / name, block_size=64).state_dict() for name in ("one", "many"))
    assert all(torch.equal(one[name], many[name]) for name in one if not name.startswith("router"))
    weights = load_file(tmp_path / "one" / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    weights["lm_head.weight"] = weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).clone()
    save_file(weights, tmp_path / "one" / "model.safetensors")
    same_logits(GPT.from_pretrained(tmp_path / "one", block_size=64), ref, tokens(1, 20))


def test_loaded_models_are_finished(tmp_path):
    """Broken if building without memory left tables, the prior, fresh codes, the tie or requires_grad undefined."""
    reference("llama3").save_pretrained(tmp_path)
    torch.manual_seed(5)
    model = GPT.from_pretrained(tmp_path, block_size=100, n_codes=7, router_std=0.5)
    fresh = GPT(model.config)
    for name in ("cos", "sin", "bigram"):
        assert torch.equal(getattr(model, name), getattr(fresh, name)), name
    assert not model.codebook.weight.any() and 0.4 < model.router.weight.std() < 0.6
    assert {n for n, _ in model.named_parameters()} == {n for n, _ in fresh.named_parameters()}
    assert all(p.requires_grad and p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
    model(tokens(2, 20), tokens(2, 20), codes="search", n_rollouts=2)[0].backward()


MEMORY = """
import sys
from dlr import GPT
def kib(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))
import safetensors.torch
import torch
torch.empty(1, device="meta").normal_()  # imports 80 MB of torch's own modules
before = kib("VmRSS:")
model = GPT.from_pretrained(sys.argv[1], block_size=64)
print((kib("VmHWM:") - before) * 1024 / sum(4 * p.numel() for p in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from Linux's /proc")
def test_loading_holds_the_weights_once(tmp_path):
    """Broken if a state dict, or the file's pages, lay in memory beside the model: 3 B parameters would need 18 GB."""
    with torch.device("meta"):
        model = GPT(GPTConfig(5000, 64, 8, 8, 4, 768))  # 63 million parameters
    model = model.to_empty(device="cpu").bfloat16()
    model._finish()
    model.save_pretrained(tmp_path)
    run = [sys.executable, "-c", MEMORY, str(tmp_path)]
    peak = float(subprocess.run(run, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
    assert peak < 1.2, "1.5 would be the file beside the model, 2 another float32 copy"


# --- and back ---------------------------------------------------------------------------------------------------------


def trained(**kw):
    """A tiny model with trained codes and unusual settings."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**dict(vocab_size=97, block_size=200, n_layer=3, n_head=6, n_kv_head=2, n_embd=48,
                                    n_codes=5, chunk=3, steer_layer=2, steer_scale=0.3, route_norm=False), **kw}))
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=0.0 if p.dim() == 2 else 1.0, std=0.2)
    model.bigram.copy_(torch.rand(5, 5).softmax(-1) / 5)
    return model


LLAMA3_OURS = {k: v for k, v in LLAMA3.items() if k != "rope_type"}


@pytest.mark.parametrize("kw", [
    {}, {"tie_embeddings": False}, {"head_dim": 16, "qk_norm": True}, {"rope_scaling": LLAMA3_OURS, "rope_theta": 1e4},
    {"head_dim": 16, "qk_norm": True, "tie_embeddings": False, "rope_scaling": LLAMA3_OURS, "norm_eps": 1e-3}])
def test_saved_models_come_back_and_open_in_transformers(kw, tmp_path):
    """Broken if a weight, setting or code were lost on the way out, or transformers read the LM half otherwise."""
    model, folder = trained(**kw), tmp_path / "new" / "folder"
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    model.save_pretrained(folder, tokenizer=tmp_path / "tokenizer.json")
    names = {"config.json", "model.safetensors", "codes.safetensors", "tokenizer.json"}
    assert {p.name for p in folder.iterdir()} == names
    again = GPT.from_pretrained(folder)
    assert dataclasses.replace(again.config, router_std=model.config.router_std) == model.config
    for name, w in model.state_dict().items():
        assert torch.equal(w, again.state_dict()[name]), name
    ref, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(ref).__name__ == ("Qwen3ForCausalLM" if model.config.qk_norm else "LlamaForCausalLM")
    assert not any(info.values()), info
    idx = tokens(2, 150)
    same_logits(again, ref.eval(), idx)
    assert torch.equal(again(idx)[0], model(idx)[0]) and not torch.equal(model(idx)[0], model(idx, codes="off")[0])


def test_trained_codes_keep_their_settings(tmp_path):
    """Broken if an override silently changed what trained codes mean, or could not start untrained ones afresh."""
    model = trained()
    model.save_pretrained(tmp_path)
    assert GPT.from_pretrained(tmp_path, n_codes=5, steer_layer=None, block_size=30).config.steer_layer == 2
    for field, value in [("n_codes", 6), ("chunk", 4), ("steer_layer", 1), ("steer_scale", 0.5), ("route_norm", True)]:
        with pytest.raises(ValueError, match=rf"{tmp_path.name} holds trained codes with .*'{field}'.*not .*{value}"):
            GPT.from_pretrained(tmp_path, **{field: value})
    torch.nn.init.zeros_(model.codebook.weight)
    model.save_pretrained(tmp_path)  # over the other files
    other = GPT.from_pretrained(tmp_path, n_codes=6)
    assert (other.codebook.weight.shape, other.config.chunk) == ((6, 48), 3)


def test_bfloat16_goes_through_unchanged(tmp_path):
    """Broken if saving changed the type, or loading did not give float32."""
    model = trained().bfloat16()
    model.save_pretrained(tmp_path)
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    again = GPT.from_pretrained(tmp_path)
    assert again.embed_tokens.weight.dtype == torch.float32
    assert torch.equal(again.embed_tokens.weight, model.embed_tokens.weight.float())


def test_a_failed_save_leaves_the_folder_as_it_was(tmp_path):
    """Broken if half a model, or a temporary file, stayed behind."""
    trained().save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(FileNotFoundError, match="none"):
        trained(n_layer=4).save_pretrained(tmp_path, tokenizer=tmp_path / "none")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_configs_survive_json_and_torch_and_old_checkpoints_load(tmp_path):
    """Broken if a field could not be stored, or a checkpoint from before the new fields were refused."""
    config = GPTConfig(97, 64, 3, 6, 2, 48, head_dim=16, qk_norm=True, rope_scaling=LLAMA3_OURS)
    assert GPTConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    torch.save(dataclasses.asdict(config), tmp_path / "config.pt")
    assert GPTConfig(**torch.load(tmp_path / "config.pt", weights_only=True)) == config
    base = ROOT / "data" / "wordproblems_base.pt"
    assert not {"head_dim", "qk_norm", "rope_scaling"} & dlr.load_checkpoint(base)["config"].keys()
    model = GPT.from_checkpoint(base)
    assert model.config.head_dim == model.config.n_embd // model.config.n_head and not model.config.qk_norm


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kw, words", [
    ({"head_dim": 15}, "head_dim.*15"), ({"head_dim": 0}, "head_dim.*0"), ({"head_dim": 8.0}, "head_dim.*8.0"),
    ({"n_embd": 50}, "n_embd / n_head, 50 / 6"), ({"ffn_dim": -1}, "ffn_dim.*-1"), ({"qk_norm": 1}, "qk_norm.*1"),
    ({"tie_embeddings": "no"}, "tie_embeddings.*'no'"), ({"rope_theta": 0}, "rope_theta.*0"),
    ({"norm_eps": math.nan}, "norm_eps.*nan"), ({"rope_scaling": {"factor": 8}}, "rope_scaling.*low_freq_factor"),
    ({"rope_scaling": {**LLAMA3_OURS, "factor": "8"}}, "rope_scaling.*'8'"),
    ({"rope_scaling": {**LLAMA3_OURS, "low_freq_factor": 4.0}}, "low_freq_factor < high_freq_factor"),
    ({"rope_scaling": LLAMA3}, "rope_scaling.*rope_type"), ({"rope_scaling": "llama3"}, "rope_scaling.*llama3")])
def test_bad_fields(kw, words):
    """Broken if a value that cannot work were accepted, or the error did not name field and value."""
    with pytest.raises(ValueError, match=words):
        GPTConfig(**{**dict(vocab_size=97, block_size=64, n_layer=3, n_head=6, n_kv_head=2, n_embd=48), **kw})


@pytest.mark.parametrize("changes, words", [
    ({"model_type": "opt"}, "model_type 'opt'.*llama.*qwen3"), ({"model_type": None}, "model_type None"),
    ({"model_type": "qwen3_moe"}, "model_type 'qwen3_moe'"), ({"hidden_act": "gelu"}, "hidden_act 'gelu'.*silu"),
    ({"attention_bias": True}, "attention_bias True"), ({"mlp_bias": True}, "mlp_bias True"),
    ({"attention_dropout": 0.1}, "attention_dropout 0.1"), ({"use_sliding_window": True}, "use_sliding_window True"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types.*sliding_attention"),
    ({"layer_types": 3}, "layer_types 3"), ({"quantization_config": {"bits": 8}}, "quantization_config.*bits"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, "rope_type 'yarn'.*llama3"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear'"),
    ({"rope_scaling": 3}, "rope_scaling must be an object, got 3"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention"),
    ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.*low_freq_factor.*None"),
    ({"rope_scaling": LLAMA3, "original_max_position_embeddings": 99}, "original_max_position_embeddings 99.*64"),
    ({"hidden_size": None}, r"lacks \['hidden_size'\]"), ({"hidden_size": "48"}, "n_embd.*'48'"),
    ({"num_hidden_layers": 2}, "surplus.*layers.2"), ({"num_hidden_layers": 4}, "missing.*layers.3"),
    ({"rope_parameters": None, "rope_theta": -1}, "rope_theta.*-1"),
    ({"tie_word_embeddings": "yes"}, "tie_embeddings.*yes"),
    ({"head_dim": 8}, r"q_norm.weight: expected \(8,\), got \(16,\)"), ({"model_type": "llama"}, "surplus.*q_norm"),
    ({"vocab_size": 10**12}, r"expected \(1000000000000, 48\), got \(97, 48\)"),  # and no memory was asked for
    ({"tie_word_embeddings": False}, r"missing \['lm_head.weight'\]")])
def test_configs_that_this_gpt_would_compute_wrong(changes, words, tmp_path):
    """Broken if a field that changes results were ignored, or the error did not name file, field and value."""
    reference().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ValueError, match=rf"{tmp_path.name}.*{words}"):
        GPT.from_pretrained(tmp_path)


def edit(path, drop=(), **tensors):
    """Rewrite a safetensors file with some tensors dropped or replaced."""
    with safetensors.safe_open(path, "pt") as f:
        weights, metadata = {k: f.get_tensor(k).clone() for k in f.keys() if k not in drop}, f.metadata()
    save_file({**weights, **{k.replace("__", "."): v for k, v in tensors.items()}}, path, metadata)


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def lie(path, a, b):
    path.write_bytes(path.read_bytes().replace(a, b, 1))


def shard(folder, **weight_map):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    weight_map = {**dict.fromkeys(load_file(folder / "a.safetensors"), "a.safetensors"),
                  **{k.replace("__", "."): v for k, v in weight_map.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


LM, CODES, INDEX = "model.safetensors", "codes.safetensors", "model.safetensors.index.json"
UNREADABLE = r"\.safetensors: not a readable safetensors file"


@pytest.mark.parametrize("words, spoil", [
    ("config.json", lambda d: (d / "config.json").unlink()),
    ("config.json: not JSON", lambda d: cut(d / "config.json", 9)),
    ("config.json: not JSON", lambda d: (d / "config.json").write_bytes(b"\xff\xfe{}")),
    ("config.json: must hold a JSON object", lambda d: (d / "config.json").write_text("[1]")),
    (LM, lambda d: (d / LM).unlink()),
    ("model" + UNREADABLE, lambda d: cut(d / LM, 0)),
    ("model" + UNREADABLE, lambda d: cut(d / LM, 300)),
    ("model" + UNREADABLE, lambda d: cut(d / LM, -4)),
    ("model" + UNREADABLE, lambda d: lie(d / LM, b"[97,48]", b"[99,48]")),
    ("model" + UNREADABLE, lambda d: lie(d / LM, b"data_offsets", b"data_offzets")),
    (r"missing \['norm.weight'\]", lambda d: edit(d / LM, ["model.norm.weight"])),
    (r"surplus \['layers.0.self_attn.q_proj.bias'\]",
     lambda d: edit(d / LM, model__layers__0__self_attn__q_proj__bias=torch.zeros(96))),
    (r"norm.weight: expected \(48,\), got \(47,\)", lambda d: edit(d / LM, model__norm__weight=torch.ones(47))),
    (r"norm.weight: expected \(48,\), got \('I8', 48\)",
     lambda d: edit(d / LM, model__norm__weight=torch.ones(48, dtype=torch.int8))),
    ("model.safetensors: '(model.)?norm.weight'.*twice", lambda d: edit(d / LM, norm__weight=torch.ones(48))),
    ("model.safetensors: 'codebook.weight' does not belong",
     lambda d: edit(d / LM, codebook__weight=torch.ones(32, 48))),
    ("lm_head.weight.*embed_tokens.weight.*differ.*tie_embeddings=False",
     lambda d: edit(d / LM, lm_head__weight=torch.ones(97, 48))),
    ("index.json: 'x' must be in .*'../a.safetensors'", lambda d: shard(d, x="../a.safetensors")),
    ("index.json: 'x' must be in .*'/a.safetensors'", lambda d: shard(d, x="/a.safetensors")),
    ("index.json: 'x' must be in .*'c:a.safetensors'", lambda d: shard(d, x="c:a.safetensors")),
    (r"index.json: 'x' must be in .*'b\\\\a", lambda d: shard(d, x="b\\a.safetensors")),
    ("index.json: 'x' must be in .*'a.bin'", lambda d: shard(d, x="a.bin")),
    ("index.json: 'x' must be in .*7", lambda d: shard(d, x=7)),
    ("index.json: 'weight_map'.*None", lambda d: (d / LM).unlink() or (d / INDEX).write_text("{}")),
    ("b.safetensors", lambda d: shard(d, model__norm__weight="b.safetensors")),
    ("b.safetensors: 'model.norm.weight'.*twice", lambda d: shard(d, x="b.safetensors") or save_file(
        {"model.norm.weight": torch.ones(48)}, d / "b.safetensors")),
    ("codes" + UNREADABLE, lambda d: cut(d / CODES, -4)),
    (r"codes.safetensors: must hold.*settings \('n_codes'.*with {}",
     lambda d: save_file(load_file(d / CODES), d / CODES)),
    ("codes.safetensors: not JSON", lambda d: save_file(load_file(d / CODES), d / CODES, {"settings": "{"})),
    (r"codes.safetensors: must hold .*got \['bigram', 'router.weight'\]",
     lambda d: edit(d / CODES, ["codebook.weight"])),
    ("codes.safetensors: must hold .*norm.weight", lambda d: edit(d / CODES, norm__weight=torch.ones(48))),
    (r"codebook.weight: expected \(6, 48\), got \(5, 48\)",
     lambda d: lie(d / CODES, b'n_codes\\": 5', b'n_codes\\": 6')),
    ("chunk must be an integer >= 1, got 0", lambda d: lie(d / CODES, b'chunk\\": 3', b'chunk\\": 0')),
])
def test_folders_with_one_fault(words, spoil, tmp_path):
    """Broken if a damaged, lying or foreign file loaded, or the one error did not name the file and the culprit."""
    folder = tmp_path / "folder"
    trained(head_dim=16, qk_norm=True).save_pretrained(folder)
    GPT.from_pretrained(folder)
    spoil(folder)
    missing = words in ("config.json", LM, "b.safetensors")
    with pytest.raises(FileNotFoundError if missing else ValueError, match=rf"folder.*{words}"):
        GPT.from_pretrained(folder)
    if "tie_embeddings=False" in words:  # what the error recommends
        assert GPT.from_pretrained(folder, tie_embeddings=False).lm_head.weight.eq(1).all()


def test_overrides_are_checked(tmp_path):
    """Broken if an unknown or impossible override were ignored."""
    reference().save_pretrained(tmp_path)
    for override in ({"n_kodes": 3}, {"chunk": 0}):
        with pytest.raises(ValueError, match=rf"{tmp_path.name}.*{next(iter(override))}"):
            GPT.from_pretrained(tmp_path, **override)


def test_safetensors_is_optional(tmp_path, monkeypatch):
    """Broken if a user without the extra package got an error that does not say what to install."""
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for call in (trained().save_pretrained, GPT.from_pretrained):
        with pytest.raises(ImportError, match="pip install safetensors"):
            call(tmp_path)
    assert not list(tmp_path.iterdir())
