#!/usr/bin/env bash
# The front door: set up .venv once, then run a suite or tune. `./run_benchmark.sh --help` tells the rest.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=setup_env.sh
source "$ROOT/setup_env.sh"

usage() {
    cat <<'HELP'
Usage: ./run_benchmark.sh [--mode MODE] [--config FILE] [option ...]

Sets up .venv (Python 3.11; once), then runs a suite: fine-tune or load, quantize, measure, show.
Without arguments: yaml_configs/suites/default.yaml, which brings its own data and models.

  --mode run|tune          run a suite (the default), or search the fastest network within an accuracy floor
  --config FILE            the suite to run, or with --mode tune the tuning file (yaml_configs/tuning/default.yaml)
  --dataset_location DIR   the folder of data sets, in the original GLUE layout (SST-2/train.tsv, ...)
  --checkpoints DIR        where fine-tuned models are kept and found again
  --output DIR             where the records, tables and plots go
  --only TEXT              run the matching rows only (not with --mode tune)
  --ray ADDRESS            first fine-tune and record over a Ray cluster, or with `local` over this machine (not with
                           --mode tune)
  --smoke                  every step at toy size: proves that the suite runs, measures nothing
  --dry-run                print rows, minutes and disk; run nothing (not with --mode tune)
  --help                   this text

`--key value` and `--key=value` are the same. Paths are taken from the folder you call from; a suite is also looked for
in the repository.

  ./run_benchmark.sh
  ./run_benchmark.sh --config=yaml_configs/suites/sst2_minilm.yaml --dataset_location=/data/glue

Exit codes: 0 every row ran, or tuning ends with PASS; 1 a row failed, tuning ends with FAIL, or a parameter here is
unknown; 2 the suite or its input is unusable.
Once set up, `.venv/bin/python -m benchmarks --help` shows the other commands.
HELP
}

fail() {
    echo "Error: $*" >&2
    exit 1
}

absolute() {
    case $1 in
        /*) echo "$1" ;;
        *) echo "$PWD/$1" ;;
    esac
}

mode=run
suite=
output=
only=
ray=
smoke=
dry_run=
arguments=()
groups=(run minilm)
while [ $# -gt 0 ]; do
    given=$1
    case $1 in
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    case $1 in
        --mode | --config | --dataset_location | --checkpoints | --output | --only | --ray)
            [ -n "${2:-}" ] || fail "$1 needs a value"
            ;;
    esac
    case $1 in
        --help | -h) usage && exit 0 ;;
        --smoke) smoke=-smoke && arguments+=("$1") && shift ;;
        --dry-run) dry_run=yes && arguments+=("$1") && shift ;;
        --mode) mode=$2 && shift 2 ;;
        --config) suite=$2 && shift 2 ;;
        --only) only=yes && arguments+=("$1" "$2") && shift 2 ;;
        --ray) ray=yes && groups+=(ray) && arguments+=("$1" "$2") && shift 2 ;;
        --output) output=$(absolute "$2") && shift 2 ;;
        --dataset_location | --checkpoints) arguments+=("$1" "$(absolute "$2")") && shift 2 ;;
        *) fail "No such parameter: $given" ;;
    esac
done

case $mode in
    run) folder=suites ;;
    tune) folder=tuning ;;
    *) fail "No such mode: $mode (run or tune)" ;;
esac
if [ "$mode" = tune ] && [ -n "$only$ray$dry_run" ]; then
    fail "--only, --ray and --dry-run go with --mode run"
fi
suite=${suite:-yaml_configs/$folder/default.yaml}

# Looked for before the set-up, which may take minutes.
if [ -f "$suite" ]; then
    suite=$(absolute "$suite")
elif [ ! -f "$ROOT/$suite" ]; then
    fail "No such suite: $suite (those that come with ExitBench are in yaml_configs/$folder/)"
fi

setup_env "${groups[@]}"
cd "$ROOT"
if [ "$mode" = tune ]; then
    exec "$PYTHON" -m benchmarks tune "$suite" ${output:+--output "$output"} "${arguments[@]}"
fi
if [ -n "$dry_run" ]; then
    exec "$PYTHON" -m benchmarks run "$suite" "${arguments[@]}"
fi
output=${output:-runs/$(basename "$suite" .yaml)$smoke}
code=0
"$PYTHON" -m benchmarks run "$suite" --output "$output" "${arguments[@]}" || code=$?
if [ "$code" -le 1 ]; then # every row has a record, be it an error
    "$PYTHON" -m reports table "$output"
    "$PYTHON" -m reports render "$output"
fi
exit "$code"
