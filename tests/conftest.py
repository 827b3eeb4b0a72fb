"""One thread for each test process, and the small things that several tests train on."""

import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads would wait for each other

import torch

from data.tokens import LAYOUTS, SMOLLM2_PATTERN, byte_alphabet
from dlr import GPT, GPTConfig


def small_run(folder):
    """Flags for 12 quick steps: a tiny checkpoint and short rows, both written to `folder`."""
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=1024, block_size=128, n_layer=2, n_head=2, n_kv_head=1, n_embd=32)
    saved = {"config": vars(config), "model": GPT(config).state_dict()}
    torch.save(saved, folder / "base.pt")
    for split, n in (("train", 32), ("test", 4)):
        rows = [{"question": f"{i} + {3 * i}?", "answer": f"{'so ' * (i % 4)}#### {4 * i}"}
                for i in range(n)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines)
    return ["--init_from", str(folder / "base.pt"), "--data", str(folder), "--n_codes", "5",
            "--n_rollouts", "2", "--save_every", "3", "--no-generate", "--no-baseline",
            "--device", "cpu"]


def hugging_face_folder(folder):
    """A tiny Llama with a byte tokenizer laid out like SmolLM2's."""
    from data.huggingface import save

    splitters = {"type": "Sequence", "pretokenizers": LAYOUTS[SMOLLM2_PATTERN][1:]}
    vocab = {char: i for i, char in enumerate(byte_alphabet())}
    spec = {"normalizer": None, "pre_tokenizer": splitters,
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
            "added_tokens": [{"content": "<|endoftext|>", "id": 256}]}
    torch.manual_seed(0)
    save(GPT(GPTConfig(257, 256, 2, 2, 1, 32, n_codes=5)), folder)
    (folder / "codes.safetensors").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(spec))
