#!/usr/bin/env bash
# Everything from a fresh clone with only python3 (>= 3.10): makes .venv if it is missing, then does the job.
#   ./run.sh train [flags]   python train.py        ./run.sh test [flags]    lint and the whole test suite
#   ./run.sh eval RUN        python eval.py         ./run.sh gds [flags]     python gds.py
#   ./run.sh python ...      anything else in the environment, e.g. ./run.sh python data/gsm8k.py
set -euo pipefail
cd "$(dirname "$0")"

environment() { # environment NAME PIP-ARGUMENTS...: install once, and again when requirements.txt changes
    local stamp=".venv/installed-$1"
    shift
    if ! cmp -s requirements.txt "$stamp"; then
        python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "run.sh: python3 >= 3.10 is needed" >&2; exit 2; }
        [ -x .venv/bin/python ] || python3 -m venv .venv
        .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"
        cp requirements.txt "$stamp"
    fi
}

command=${1:-help}
[ $# -gt 0 ] && shift
case "$command" in
    train | eval | gds)
        environment run -c requirements.txt torch numpy tiktoken tqdm
        exec .venv/bin/python "$command.py" "$@" ;;
    python)
        environment pretrained -c requirements.txt torch numpy tiktoken tqdm safetensors gguf
        exec .venv/bin/python "$@" ;;
    test)
        environment test -r requirements.txt
        .venv/bin/ruff check .
        exec .venv/bin/python -m pytest "$@" ;;
    *)
        sed -n '2,5s/^# \{0,3\}//p' run.sh
        [ "$command" = help ] || exit 2 ;;
esac
