"""
Hugging Face folders of Llama, SmolLM2, Llama 3.2 and Qwen3, read and written.

    config.json           the architecture, as transformers 4 or 5 spells it
    model.safetensors     the weights; or several shards, named in model.safetensors.index.json
    tokenizer.json        see data/tokens.py
    codes.safetensors     ours: codebook, router and bigram, with their settings in its metadata

Parameters are named as in GPT, with "model." before all but the head, so no table translates them.
"""

import json
import os
import shutil
from pathlib import Path

import torch

from data.files import parse, read_json
from data.plumbing import CODE_SETTINGS, CODE_TENSORS, build

try:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file, save_file
except ImportError as error:
    raise ImportError("Hugging Face folders need safetensors: pip install safetensors") from error

NAMES = {  # of GPTConfig's fields in config.json
    "vocab_size": "vocab_size",
    "block_size": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
    "head_dim": "head_dim",
    "ffn_dim": "intermediate_size",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
LLAMA3_ROPE = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def load(folder, **overrides):
    """
    The GPT of a folder, in float32, with the codes that `save` left there, else with fresh ones.

    `overrides` set fields of its config (block_size, n_codes, chunk, ...). ValueError names what
    this GPT would compute wrongly.
    """
    folder = Path(folder)
    config, weights = read_config(folder / "config.json"), read_weights(folder)
    if config["tie_embeddings"] and "lm_head.weight" in weights:
        head = weights.pop("lm_head.weight")
        if not torch.equal(head, weights["embed_tokens.weight"]):
            print(f"{folder}: the config ties lm_head to embed_tokens, but its file holds another "
                  f"lm_head; loaded untied")
            config["tie_embeddings"] = False
            weights["lm_head.weight"] = head
    if (folder / "codes.safetensors").exists():
        codes, settings = read_codes(folder / "codes.safetensors")
        config |= settings
        weights |= codes
    return build(config, weights, folder, **overrides)


def read_config(path):
    """GPTConfig's fields from a config.json. ValueError on what this GPT would compute wrongly."""
    hf = {name: value for name, value in read_json(path).items() if value is not None}

    def only(name, value, allowed):
        if value not in allowed:
            known = " or ".join(map(str, allowed))
            raise ValueError(f"{path}: {name} {value!r} is not implemented, only {known}")

    only("model_type", hf.get("model_type"), ["llama", "qwen3"])
    only("hidden_act", hf.get("hidden_act", "silu"), ["silu"])
    only("attention_dropout", hf.get("attention_dropout", 0), [0])
    only("quantization_config", hf.get("quantization_config"), [None])
    for name in ("attention_bias", "mlp_bias", "use_sliding_window"):
        only(name, hf.get(name, False), [False])
    for kind in hf.get("layer_types", []):
        only("layer_types", kind, ["full_attention"])

    rope = hf.get("rope_scaling") or hf.get("rope_parameters") or {}  # transformers 4 and 5
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    only("rope_type", rope_type, ["default", "llama3"])
    for given in (hf, rope):
        only("partial_rotary_factor", given.get("partial_rotary_factor", 1), [1])
    scaling = None
    if rope_type == "llama3":
        scaling = {name: rope.get(name) for name in LLAMA3_ROPE}
        if None in scaling.values():
            raise ValueError(f"{path}: rope_scaling needs {', '.join(LLAMA3_ROPE)}, got {rope}")

    qwen3 = hf["model_type"] == "qwen3"
    fields = {  # the defaults of transformers
        "num_key_value_heads": hf.get("num_attention_heads"),
        "head_dim": 128 if qwen3 else None,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        **hf,
    }
    if "rope_theta" in rope:  # transformers 5
        fields["rope_theta"] = rope["rope_theta"]
    missing = [name for name in NAMES.values() if name not in fields]
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}")
    config = {ours: fields[theirs] for ours, theirs in NAMES.items()}
    return {**config, "qk_norm": qwen3, "rope_scaling": scaling}


def read_weights(folder):
    """{our name: tensor} from model.safetensors, or from all the shards that its index names."""
    files, index = ["model.safetensors"], folder / "model.safetensors.index.json"
    if index.exists() and not (folder / "model.safetensors").exists():
        files = sorted(set(read_json(index)["weight_map"].values()))
    weights = {}
    for file in files:
        for name, tensor in read_tensors(folder / file).items():
            if not name.endswith("rotary_emb.inv_freq"):  # a table in old files
                weights[name.removeprefix("model.")] = tensor
    return weights


def read_codes(path):
    """({name: tensor}, {setting: value}) of codes.safetensors."""
    tensors = read_tensors(path)
    with safe_open(path, "pt") as f:
        settings = (f.metadata() or {}).get("settings", "{}")
    settings = parse(settings.encode(), dict, path)
    if tensors.keys() != set(CODE_TENSORS) or settings.keys() != set(CODE_SETTINGS):
        raise ValueError(f"{path}: must hold {CODE_TENSORS} with the settings {CODE_SETTINGS}, "
                         f"got {tuple(tensors)} with {settings}")
    return tensors, settings


def read_tensors(path):
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file: {error}") from None


def save(model, folder, tokenizer=None):
    """
    Write the plain LM as config.json and model.safetensors, which transformers opens, and
    codes.safetensors beside it. `tokenizer`: a tokenizer.json to copy.
    """
    cfg = model.config
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    codes = {name: weights.pop(name) for name in CODE_TENSORS}
    settings = {name: getattr(cfg, name) for name in CODE_SETTINGS}
    metadata = {"format": "pt", "settings": json.dumps(settings)}
    head = weights.pop("lm_head.weight")
    lm = {f"model.{name}": tensor for name, tensor in weights.items()}
    if not cfg.tie_embeddings:
        lm["lm_head.weight"] = head

    config = {
        "model_type": "qwen3" if cfg.qk_norm else "llama",
        "architectures": ["Qwen3ForCausalLM" if cfg.qk_norm else "LlamaForCausalLM"],
        **{theirs: getattr(cfg, ours) for ours, theirs in NAMES.items()},
        "rope_scaling": cfg.rope_scaling and {"rope_type": "llama3", **cfg.rope_scaling},
        "hidden_act": "silu",
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "torch_dtype": str(head.dtype).removeprefix("torch."),
    }
    files = {  # name: how it is written
        "model.safetensors": lambda path: save_file(lm, path, {"format": "pt"}),
        "codes.safetensors": lambda path: save_file(codes, path, metadata),
        "config.json": lambda path: path.write_text(json.dumps(config, indent=2), encoding="utf-8"),
    }
    if tokenizer is not None:
        files["tokenizer.json"] = lambda path: shutil.copyfile(tokenizer, path)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:  # all are complete before the first gets its name
        for name, write in files.items():
            write(folder / f"{name}.tmp")
        for name in files:
            os.replace(folder / f"{name}.tmp", folder / name)
    finally:
        for name in files:
            (folder / f"{name}.tmp").unlink(missing_ok=True)
