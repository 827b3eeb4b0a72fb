"""What a training step costs, paired on the same batches: forward and backward of DLR steps against an SFT step.

    python tests/bench.py        # one CPU thread, CPU time, embedded base model and task; medians of ratios
"""

import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from data.tokens import collate, encode_rows, load_encoding, load_rows
from dlr import GPT
from train import BASE


def main(batches=20, batch_size=8):
    torch.set_num_threads(1)
    model = GPT.from_checkpoint(BASE)
    rows = load_rows("wordproblems", "train", (batches + 1) * batch_size)
    items, _ = encode_rows(rows, load_encoding("wordproblems"), model.config.block_size)
    steps = {"sft": lambda idx, targets: model(idx, targets, codes="off")[1]}
    for n in (1, 4, 8, 16):
        for select in ("likelihood", "advantage"):
            steps[f"dlr {select} N={n}"] = lambda idx, targets, n=n, select=select: model.dlr_loss(
                idx, targets, n, select=select)[0]
    seconds = {name: [] for name in steps}
    for i in range(batches + 1):
        idx, targets = collate(items[i * batch_size : (i + 1) * batch_size])
        for name, loss in steps.items():
            start = time.process_time()
            loss(idx, targets).backward()
            seconds[name].append(time.process_time() - start)
            model.zero_grad()
    for name, times in seconds.items():
        ratios = sorted(t / s for t, s in zip(times[1:], seconds["sft"][1:]))  # the first batch warms up
        print(f"{name:22} {1000 * statistics.median(times[1:]):7.0f} ms   {statistics.median(ratios):5.2f} x sft "
              f"(quartiles {ratios[len(ratios) // 4]:.2f}-{ratios[3 * len(ratios) // 4]:.2f})")


if __name__ == "__main__":
    main()
