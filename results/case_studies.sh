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

# Six-digit arithmetic, one code for each token: learned with the codes, or half learned and then frozen under them.
arithmetic=(--data arithmetic --batch_size 32)
study arith-dlr 500 --eval_rows -1 "${arithmetic[@]}" --rows 100000 --epochs 0.75 --lr 2e-3 --chunk 1
base=runs/case/arith-base/ckpt.pt
[ -e "$base" ] || "$python" train.py --method sft "${arithmetic[@]}" --rows 100000 --epochs 0.4 --lr 2e-3 \
    --eval_rows 500 --out runs/case/arith-base
study arith-frozen 500 --eval_rows -1 "${arithmetic[@]}" --init_from "$base" --epochs 1 --chunk 1 --method frozen \
    --code_lr 1e-1
