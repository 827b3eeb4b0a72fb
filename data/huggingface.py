"""
Hugging Face folders of Llama, SmolLM2, Llama 3.2 and Qwen3, read and written.

    config.json           the architecture, as transformers 4 or 5 spells it
    model.safetensors     the weights; or several shards, named in model.safetensors.index.json
    tokenizer.json        see data/tokens.py
    codes.safetensors     ours: codebook, router and bigram, with their settings in its metadata

Parameters are named as in GPT, with "model." before all but the head, so no table translates them.

A trained run as such a folder, for transformers and all that reads its models:

    python data/huggingface.py RUN FOLDER                # the plain LM, and the codes beside it
    python data/huggingface.py RUN FOLDER --code best    # one code, folded in: the one chosen on val
    python data/huggingface.py RUN FOLDER --code 1       # or this one

It answers "Question: ...\nAnswer:", which is how it was trained, and stops after the answer.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch

if __name__ == "__main__":  # a script's own folder is on the path, the repository's root is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data import plumbing
from data.files import parse, read_json
from data.tokens import (
    END,
    GENERATION,
    MODEL_CONFIG,
    begin_token,
    end_tokens,
    find_rest,
    list_ends,
    load_encoding,
    tokenizer_json,
)
from dlr import CODE_SETTINGS, CODE_TENSORS, build, load_checkpoint

try:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file, save_file
except ImportError as error:
    message = "Hugging Face folders need safetensors: pip install safetensors"
    if __name__ == "__main__":
        sys.exit(plumbing.fail("huggingface.py", message))
    raise ImportError(message) from error

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
    this GPT would compute wrongly. The model's `source` is the folder, where `save` finds the rest.
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
    model = build(config, weights, folder, **overrides)
    model.source = folder
    return model


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
    if hf.get("mlp_bias"):
        raise ValueError(f"{path}: mlp_bias True is not implemented, only False. If `save` folded a code into "
                         "this model, it is for transformers; here use the run that it was made from")
    for name in ("attention_bias", "use_sliding_window"):
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


def save(model, folder, code=None, tokenizer=None):
    """
    Write a model as a folder that transformers opens: config.json, model.safetensors, and the rest of
    the folder that it came from (`source`, set by load): the tokenizer's files, the end and begin
    tokens, generation_config.json and the length of the context.

    code: None writes the plain LM, and codes.safetensors beside it, which `load` reads, too. A number in
        0..C-1 writes one model that computes what model(idx, codes=code) does, see fold.
    tokenizer: another place of the rest, as in load_encoding: a folder, a tokenizer.json or "wordproblems";
        for a model of GPT.from_checkpoint, of which no place is known.

    ValueError where the code cannot be folded in, or `folder` holds a run.
    """
    folder = Path(folder)
    if (folder / "ckpt.pt").exists():
        raise ValueError(f"{folder} holds a run, whose config.json would be overwritten; choose another folder")
    cfg = model.config
    weights, fields = plain_lm(model) if code is None else fold(model, code)
    known, rest = read_rest(tokenizer or getattr(model, "source", None))
    config = {
        "model_type": "qwen3" if cfg.qk_norm else "llama",
        "architectures": ["Qwen3ForCausalLM" if cfg.qk_norm else "LlamaForCausalLM"],
        **{theirs: getattr(cfg, ours) for ours, theirs in NAMES.items()},
        "rope_scaling": cfg.rope_scaling and {"rope_type": "llama3", **cfg.rope_scaling},
        "hidden_act": "silu",
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "torch_dtype": str(weights["model.norm.weight"].dtype).removeprefix("torch."),
        **fields,
        **known,
    }
    files = {  # name: how it is written
        "model.safetensors": lambda path: save_file(weights, path, {"format": "pt"}),
        "config.json": lambda path: path.write_text(json.dumps(config, indent=2), encoding="utf-8"),
    }
    for name, content in rest.items():
        files[name] = lambda path, content=content: path.write_bytes(content)
    if code is None:
        codes = {name: model.state_dict()[name].contiguous() for name in CODE_TENSORS}
        settings = {name: getattr(cfg, name) for name in CODE_SETTINGS}
        metadata = {"format": "pt", "settings": json.dumps(settings)}
        files["codes.safetensors"] = lambda path: save_file(codes, path, metadata)

    folder.mkdir(parents=True, exist_ok=True)
    try:  # all are complete before the first gets its name
        for name, write in files.items():
            write(folder / f"{name}.tmp")
        if code is not None:  # of an earlier save
            (folder / "codes.safetensors").unlink(missing_ok=True)
        for name in files:
            os.replace(folder / f"{name}.tmp", folder / name)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {folder}: {error}") from error
    finally:
        for name in files:
            (folder / f"{name}.tmp").unlink(missing_ok=True)


def plain_lm(model):
    """({Hugging Face's name: tensor}, {}) of the language model without codes, see fold."""
    weights = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            if not model.config.tie_embeddings:
                weights[name] = tensor.contiguous()
        elif name not in CODE_TENSORS:
            weights[f"model.{name}"] = tensor.contiguous()
    return weights, {}


def fold(model, code):
    """
    ({Hugging Face's name: tensor}, {field of config.json: value}) of a model without codes that computes
    what this one does with `code` everywhere: its vector alpha e_c is then a constant, which is added to
    every state after l* blocks.

    Block l* - 1 ends by adding its MLP's output to the states: the constant is a bias of this MLP's
    down_proj. Llama has such biases, in all of its MLPs or in none: all others are 0. With l* = 0 no block
    comes before; the constant is added to every embedding, and the head, which stays as it is, is stored
    apart. ValueError for Qwen3 with l* > 0: transformers' Qwen3 has no such bias.
    """
    cfg = model.config
    if type(code) is not int or not 0 <= code < cfg.n_codes:
        raise ValueError(f"code must be an integer in 0..{cfg.n_codes - 1}, got {code!r}")
    weights, _ = plain_lm(model)
    constant = (cfg.steer_scale * model.codebook.weight[code]).detach()  # (H,)
    if cfg.steer_layer == 0:
        weights["lm_head.weight"] = model.lm_head.weight.detach().clone()
        weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"] + constant
        return weights, {"tie_word_embeddings": False}
    if cfg.qk_norm:
        raise ValueError(f"code {code} cannot be folded in: it acts after block {cfg.steer_layer} of a Qwen3, which "
                         "has no bias there. What can be: a code of a Llama, or one with steer_layer 0; without "
                         "code, the plain LM is saved, its codes beside it")
    for i in range(cfg.n_layer):
        for name in ("gate_proj", "up_proj", "down_proj"):
            width = cfg.n_embd if name == "down_proj" else cfg.ffn_dim
            weights[f"model.layers.{i}.mlp.{name}.bias"] = constant.new_zeros(width)
    weights[f"model.layers.{cfg.steer_layer - 1}.mlp.down_proj.bias"] = constant
    return weights, {"mlp_bias": True}


def read_rest(source):
    """
    What a model's folder says beside the model: ({field of config.json: value}, {file: its bytes}).

    source: as in load_encoding, or None, of which nothing is known. The end tokens are those at which
    generation stops here: the one of training, and those that the folder lists.
    """
    if source is None:
        return {}, {}
    if source != "wordproblems" and not Path(source).exists():
        print(f"{source} is gone: its end tokens, context and tokenizer are not written")
        return {}, {}
    found = find_rest(source)
    config = read_json(found.pop(MODEL_CONFIG)) if MODEL_CONFIG in found else {}
    generation = read_json(found.pop(GENERATION)) if GENERATION in found else {}
    files = {name: path.read_bytes() for name, path in found.items()}
    if source == "wordproblems":
        files["tokenizer.json"] = as_json(tokenizer_json(load_encoding(source)))
        files["tokenizer_config.json"] = as_json({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END})

    begin, ends = config.get("bos_token_id"), list_ends(source)
    try:
        enc = load_encoding(source)
        ends = end_tokens(enc)
        begin = begin_token(enc) if begin is None else begin
    except (ValueError, FileNotFoundError):
        pass  # no tokenizer, or one of another family: what the folder says is all there is
    tokens = {"bos_token_id": begin, "pad_token_id": config.get("pad_token_id")}
    tokens["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    tokens = {name: value for name, value in tokens.items() if value is not None}
    if tokens or generation:  # transformers generates by this file, not by config.json
        generation = {**tokens, **generation}
        if "eos_token_id" in tokens:
            generation["eos_token_id"] = tokens["eos_token_id"]
        files[GENERATION] = as_json(generation)
    known = dict(tokens)
    if config.get("max_position_embeddings"):
        known["max_position_embeddings"] = config["max_position_embeddings"]
    return known, files


def as_json(value):
    return json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8")


# --------------------------------------------------------------------------------------------------
# The command.


def rest_of_run(run, saved):
    """Where the rest of a run's model is, see read_rest: the run has a copy, or it is where it was read."""
    read_from = saved.get("tokenizer", "wordproblems")
    if (run / MODEL_CONFIG).exists():
        return run
    if read_from == "wordproblems" or Path(read_from).exists():
        return read_from
    print(f"{read_from}, which the run began with, is gone: the context is the run's, and of the tokenizer's "
          "files there is tokenizer.json alone")
    return run / "tokenizer.json"


def main(argv=None):
    plumbing.safe_output()
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder made by train.py, or its ckpt.pt")
    parser.add_argument("folder", type=Path, help="the folder to write")
    parser.add_argument("--code", metavar="best|N", help="fold this code in (default: none, the plain LM)")
    args = parser.parse_args(argv)
    with plumbing.one_line_errors("huggingface.py"):
        checkpoint = args.run / "ckpt.pt" if args.run.is_dir() else args.run
        run = checkpoint.parent
        saved = load_checkpoint(checkpoint)
        code = None if args.code is None else plumbing.find_code(run, args.code)
        model = build(saved["config"], saved["model"], saved["path"])
        if code is not None and not model.codebook.weight.any():
            raise ValueError(f"--code {code}: {run} has no trained codes; without --code its plain LM is written")
        save(model, args.folder, code, rest_of_run(run, saved))
        written = read_json(args.folder / "config.json")
    what = "the plain language model, codes.safetensors beside it" if code is None else f"code {code} is folded in"
    print(f"wrote {args.folder}: {what}; context {written['max_position_embeddings']}, "
          f"end tokens {written['eos_token_id']}")


if __name__ == "__main__":
    main()
