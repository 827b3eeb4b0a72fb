#!/usr/bin/env bash
# What README and analysis/README.md say of a GPU, measured again. On a machine with one, from the repository's root:
#   python data/smollm2.py && python data/gsm8k.py && bash analysis/gpu.sh
set -eu
python train.py --out runs/gpu-main
python tests/bench.py
python tests/bench.py data/smollm2
[ -d data/gsm8k-modes ] || python data/modes.py gsm8k worked short --out data/gsm8k-modes
python analysis/runs.py modes_gsm8k --jobs 4
python analysis/runs.py gsm8k_gpu --jobs 4
