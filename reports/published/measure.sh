#!/usr/bin/env bash
# Measures published results anew and puts them beside this file, in a folder for CPUs whose INT8 instructions are this
# one's. What was begun in runs/published goes on from there.
#
#   reports/published/measure.sh GLUE CHECKPOINTS NAME...
#
# GLUE, CHECKPOINTS: --dataset_location and --checkpoints of run_benchmark.sh.
# NAME: a suite of yaml_configs/suites; or `tune_` and a tuning of yaml_configs/tuning.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)

if [ $# -lt 3 ]; then
    sed -n 's/^# \{0,1\}//; 2,8p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
instructions=avx2
for better in avx_vnni avx512_vnni amx_int8; do
    if grep -q -w $better /proc/cpuinfo; then instructions=$better; fi
done
where=(--dataset_location "$1" --checkpoints "$2")
shift 2
for name in "$@"; do
    begun=$ROOT/runs/published/$name
    case $name in
    tune_*)
        # 1: no trial kept the floor, which is a result, too.
        "$ROOT/run_benchmark.sh" --mode tune --topology "${name#tune_}" "${where[@]}" --output "$begun" || [ $? -eq 1 ]
        "$ROOT/.venv/bin/python" -m reports render "$begun/winner"
        ;;
    *) "$ROOT/run_benchmark.sh" --topology "$name" "${where[@]}" --output "$begun" ;;
    esac
    published=$HERE/$instructions/$name
    rm -rf "${published:?}"
    mkdir -p "$HERE/$instructions"
    cp -r "$begun" "$published"
    # What serves, and what tells how the run went, is not a result.
    find "$published" \( -name artefact -o -name logs -o -name .lock \) -prune -exec rm -r {} +
done
