#!/usr/bin/env bash
# The second door: the same set-up as run_benchmark.sh, then the checks.
#
#   ./run_tests.sh                      ruff, basedpyright, then all tests
#   ./run_tests.sh tests/test_x.py -x   pytest alone, with these arguments
#
# EXITBENCH_GLUE=DIR            also run the tests that read real GLUE data (original layout: SST-2/train.tsv, ...)
# EXITBENCH_ALLOWED_SKIPS=A;B   fail if a test is skipped for a reason that contains neither A nor B
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=setup_env.sh
source "$ROOT/setup_env.sh"

setup_env run minilm ray dev
cd "$ROOT"
# The tests need no network, so none may reach for it.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

if [ $# -eq 0 ]; then
    echo "== ruff"
    "$PYTHON" -m ruff check .
    "$PYTHON" -m ruff format --check .
    echo "== basedpyright"
    "$PYTHON" -m basedpyright --pythonpath "$PYTHON"
    echo "== pytest"
    # Two processes, each with the tests of a file to itself and one thread: most of the time goes into tracing, not kernels.
    export OMP_NUM_THREADS=1
    set -- -n 2 --dist loadfile --no-loadscope-reorder --durations 30 --durations-min 8
fi
exec "$PYTHON" -m pytest "$@"
