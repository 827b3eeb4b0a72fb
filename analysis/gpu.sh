#!/usr/bin/env bash
# What README and analysis/README.md say of a GPU, measured again. On a machine with one, from the repository's root:
#   python data/smollm2.py && python data/gsm8k.py && bash analysis/gpu.sh
# Most valuable first; each part stands alone, and what has been measured is not measured again.
set -u
[ -d data/gsm8k-modes ] || python data/modes.py gsm8k worked short --out data/gsm8k-modes
python analysis/runs.py gsm8k_gpu --jobs 3    # the language model's rate: 1e-5, as in the paper, and 1e-4
python analysis/runs.py modes_gsm8k --jobs 3  # half of the answers cut to their last line
python train.py --out runs/gpu-main
python tests/bench.py data/smollm2
python tests/bench.py
