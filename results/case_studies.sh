#!/usr/bin/env bash
# The runs behind the README's "What do the codes do?": trains them in runs/case/ where they are missing, analyzes each
# on test problems and keeps its analysis here, in case_NAME.json.   bash results/case_studies.sh
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}

study() { # study NAME PROBLEMS TRAIN-FLAGS...
    local name=$1 problems=$2
    shift 2
    [ -e "runs/case/$name/ckpt.pt" ] || "$python" train.py --no-baseline "$@" --out "runs/case/$name"
    [ -e "runs/case/$name/analysis.json" ] || "$python" eval.py --analyze "runs/case/$name" --rows "$problems"
    cp "runs/case/$name/analysis.json" "results/case_$name.json"
}

# Word problems: the LM learns with its codes, or is frozen under them.
study words-dlr 200 --eval_rows -1
study words-frozen 200 --eval_rows -1 --method frozen --code_lr 1e-1

# Six-digit arithmetic, one code for each token: the LM learns it with its codes, or (it has only seen word problems) is
# frozen under them.
arithmetic=(--eval_rows -1 --data arithmetic --batch_size 32 --chunk 1)
study arith-dlr 500 "${arithmetic[@]}" --rows 100000 --epochs 0.75 --lr 2e-3
study arith-frozen 500 "${arithmetic[@]}" --epochs 1 --method frozen --code_lr 1e-1
