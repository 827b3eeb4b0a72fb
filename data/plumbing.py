"""
Plumbing that train.py and eval.py share, nothing of the method: the device, files that are whole or absent, checkpoints,
and filling a GPT with weights.

`build` serves data/huggingface.py too: load(folder, **overrides) ends in `return build(config, weights, source, **overrides)`.
"""

import contextlib
import json
import os

import torch

from dlr import GPT, GPTConfig

CODE_TENSORS = ("codebook.weight", "router.weight", "bigram")
CODE_SETTINGS = ("n_codes", "chunk", "steer_layer", "steer_scale", "route_norm")  # trained codes need these


def load_checkpoint(path):
    """The dict that train.py saved, on the CPU, with its "path". ValueError on a foreign or cut file."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as e:  # torch.load fails in many ways on a truncated or foreign file
        raise ValueError(f"{path}: not a readable checkpoint ({type(e).__name__}); truncated or foreign") from e
    if not isinstance(saved, dict) or not {"config", "model"} <= saved.keys():
        raise ValueError(f"{path}: not a checkpoint of train.py, which holds 'config' and 'model'")
    return {**saved, "path": str(path)}


def load_model(saved, **overrides):
    """A GPT from a checkpoint: its path, or what load_checkpoint returned. See build."""
    if not isinstance(saved, dict):
        saved = load_checkpoint(saved)
    return build(saved["config"], saved["model"], saved["path"], **overrides)


def build(config, weights, source, **overrides):
    """
    A GPT from the fields of its config and a state dict, both found in `source`; float32.

    Without a codebook, or with a zero one, codes start fresh under `overrides` of the config (n_codes, chunk, ...).
    Trained codes keep their settings: other ones are a ValueError, as are weights that do not fit the config.
    """
    weights = dict(weights)
    trained = "codebook.weight" in weights and bool(weights["codebook.weight"].any())
    if trained:
        for name in CODE_SETTINGS:
            wanted = overrides.pop(name, None)
            if wanted not in (None, config[name]):
                raise ValueError(f"{source}: codes trained with {name} {config[name]} do not work with {wanted}")
    try:
        model = GPT(GPTConfig(**{**config, **overrides}))
        if not trained:
            fresh = model.state_dict()
            weights |= {name: fresh[name] for name in CODE_TENSORS}
        if model.config.tie_embeddings and "embed_tokens.weight" in weights:
            weights["lm_head.weight"] = weights["embed_tokens.weight"]
        model.load_state_dict(weights)  # names all that is missing, unknown or of a wrong shape
    except (TypeError, ValueError, RuntimeError) as e:
        raise ValueError(f"{source}: no GPT has this config and these weights: {e}") from e
    return model


def find_device(wanted):
    """(device, why) for --device; ValueError if the one wanted is not there."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    there = [name for name in found if found[name]]
    if wanted == "auto":
        return there[0], "no GPU was found" if there[0] == "cpu" else f"a {there[0]} GPU was found"
    if wanted not in there:
        raise ValueError(f"--device {wanted} is not there; this machine has {', '.join(there)}")
    return wanted, "--device"


def precision(dtype, device):
    """The context for --dtype: bfloat16 autocast, or nothing; auto = bfloat16 where a GPU has it."""
    if dtype == "auto":
        has_bfloat16 = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bfloat16" if has_bfloat16 else "float32"
    return torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()


def write(path, save):
    """Write a file so that it is either whole or absent: save(temporary path), then rename."""
    tmp = path.with_name(path.name + ".tmp")
    try:
        save(tmp)
        os.replace(tmp, path)
    except (OSError, RuntimeError) as e:  # torch.save says RuntimeError when the disk is full
        raise OSError(f"cannot write {path}: {e}") from e
    finally:
        tmp.unlink(missing_ok=True)


def write_text(path, text):
    write(path, lambda tmp: tmp.write_text(text, encoding="utf-8"))


def write_records(path, records):
    """One JSON object a line."""
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
