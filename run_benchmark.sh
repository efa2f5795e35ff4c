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

  --mode MODE              run        run a suite (the default)
                           tune       search the fastest network within an accuracy floor
                           accuracy   print what one model scores on dev
                           benchmark  print how fast one model answers
  --config PATH            run: the suite. tune: the tuning file. accuracy, benchmark: the model that --int8=true reads
                           instead of --input_model, if given (what tune left in --output_model)
  --topology NAME          run: yaml_configs/suites/NAME.yaml. tune: yaml_configs/tuning/NAME.yaml. accuracy, benchmark:
                           either of them, which must be of the model's task
  --dataset_location DIR   the folder of data sets, in the original GLUE layout (SST-2/train.tsv, ...)
  --help                   this text

run, tune:
  --checkpoints DIR        where fine-tuned models are kept and found again
  --output DIR             where the records, tables and plots go
  --smoke                  every step at toy size: proves that it runs, measures nothing
run:
  --only TEXT              run the matching rows only
  --ray ADDRESS            first fine-tune and record over a Ray cluster, or with `local` over this machine
  --dry-run                print rows, minutes and disk; run nothing
tune, accuracy, benchmark:
  --input_model DIR        tune: a checkpoint to tune instead of those of the file. accuracy, benchmark: a checkpoint,
                           measured whole and without exits, or an exported model, measured with its exits
tune:
  --output_model DIR       where the winner is exported
accuracy, benchmark:
  --int8 true|false        whether in INT8; a checkpoint is quantized on the spot (default: false)
  --batch_size N           rows a call (default: 16)
  --iters N                calls that benchmark times (default: 100)

`--key value` and `--key=value` are the same. Paths are taken from the folder you call from; a suite is also looked for
in the repository.

  ./run_benchmark.sh
  ./run_benchmark.sh --config=yaml_configs/suites/sst2_minilm.yaml --dataset_location=/data/glue
  ./run_benchmark.sh --mode=tune --topology=sst2_minilm --dataset_location=/data/glue --output_model=saved_results
  ./run_benchmark.sh --mode=benchmark --int8=true --config=saved_results --dataset_location=/data/glue --batch_size=1

Exit codes: 0 every row ran, or tuning ends with PASS; 1 a row failed, tuning ends with FAIL, or a parameter here is
unknown; 2 the suite, the model or its input is unusable.
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
config=
topology=
model=
output=
smoke=
dry_run=
named=()
arguments=()
groups=(run minilm)
while [ $# -gt 0 ]; do
    given=$1
    case $1 in
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    named+=("$1")
    case $1 in
        --help | -h) usage && exit 0 ;;
        --smoke) smoke=-smoke && arguments+=("$1") && shift && continue ;;
        --dry-run) dry_run=yes && arguments+=("$1") && shift && continue ;;
        --mode | --config | --topology | --dataset_location | --checkpoints | --output | --only | --ray | \
            --input_model | --output_model | --int8 | --batch_size | --iters)
            [ -n "${2:-}" ] || fail "$1 needs a value"
            ;;
        *) fail "No such parameter: $given" ;;
    esac
    case $1 in
        --mode) mode=$2 ;;
        --config) config=$2 ;;
        --topology) topology=$2 ;;
        --output) output=$(absolute "$2") ;;
        --input_model) model=$(absolute "$2") && arguments+=("$1" "$model") ;;
        --dataset_location | --checkpoints | --output_model) arguments+=("$1" "$(absolute "$2")") ;;
        --ray) groups+=(ray) && arguments+=("$1" "$2") ;;
        *) arguments+=("$1" "$2") ;;
    esac
    shift 2
done

takes="--mode --config --topology --dataset_location"
case $mode in
    run) folder=suites takes+=" --checkpoints --output --smoke --only --ray --dry-run" ;;
    tune) folder=tuning takes+=" --checkpoints --output --smoke --input_model --output_model" ;;
    accuracy | benchmark) takes+=" --input_model --int8 --batch_size --iters" ;;
    *) fail "No such mode: $mode (run, tune, accuracy or benchmark)" ;;
esac
for name in "${named[@]}"; do
    [[ " $takes " == *" $name "* ]] || fail "$name does not go with --mode $mode"
done

# Looked for before the set-up, which may take minutes.
if [ -n "$model" ] && [ ! -d "$model" ]; then
    fail "No such model: $model"
fi
if [ "$mode" = accuracy ] || [ "$mode" = benchmark ]; then
    [ -n "$model$config" ] || fail "--mode $mode needs --input_model"
    [ -z "$config" ] || arguments+=(--config "$(absolute "$config")")
    [ -z "$topology" ] || arguments+=(--topology "$topology")
    setup_env "${groups[@]}"
    cd "$ROOT"
    exec "$PYTHON" -m benchmarks "$mode" "${arguments[@]}"
fi
[ -z "$config" ] || [ -z "$topology" ] || fail "give --config or --topology, not both"
suite=${config:-yaml_configs/$folder/${topology:-default}.yaml}
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
