# shellcheck shell=bash
# Sourced by run_benchmark.sh and run_tests.sh, which set ROOT to the repository root.
#
#   setup_env GROUP...   makes $ROOT/.venv hold these [dependency-groups] of pyproject.toml, at the versions pinned in
#                        requirements.lock. Quick when they are there already. pip's own settings (PIP_INDEX_URL,
#                        PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, ...) are honoured.
#
# .venv/exitbench/ records what stands:
#   sound     absent if an install was cut off half-way; then .venv is made anew
#   GROUP     the pins (see below) that GROUP was last installed from
#   pip.log   what pip did

PYTHON="$ROOT/.venv/bin/python"

# A subshell: its options, directory, trap and lock end with it.
setup_env() (
    set -euo pipefail
    cd "$ROOT"
    [ -n "$(missing_groups "$@")" ] || exit 0

    # One set-up at a time. pip inherits the lock, so it is held until pip has really ended.
    exec 9>.venv.lock
    if ! flock --nonblock 9; then
        echo "Another set-up is at work in this folder: waiting for it to end."
        flock 9
    fi
    if [ ! -x "$PYTHON" ] || [ ! -e .venv/exitbench/sound ]; then make_venv; fi
    # shellcheck disable=SC2046  # the group names are words
    install_groups $(missing_groups "$@")
)

# Print a hash of all that decides which versions are installed.
pins() {
    cat pyproject.toml requirements.lock | sha256sum | cut -d' ' -f1
}

# Print those of the given groups that .venv does not hold at the present pins.
missing_groups() {
    local group now
    now=$(pins)
    for group in "$@"; do
        if [ ! -x "$PYTHON" ] || [ "$(cat ".venv/exitbench/$group" 2>/dev/null)" != "$now" ]; then
            printf '%s ' "$group"
        fi
    done
}

make_venv() {
    local python
    python=$(find_python)
    if [ -e .venv ] && [ ! -d .venv/exitbench ]; then
        echo "Error: .venv was not made by this script: move it away, then run this again." >&2
        exit 1
    fi
    rm -rf .venv
    mkdir -p .venv/exitbench
    "$python" -m venv .venv
    # --group came with pip 25.1; Python 3.11 brings an older pip.
    if [[ $("$PYTHON" -m pip install --help) != *--group* ]]; then
        "$PYTHON" -m pip install -qq --disable-pip-version-check --upgrade 'pip>=25.1'
    fi
    touch .venv/exitbench/sound
}

find_python() {
    local python found=""
    for python in python3.11 python3 python; do
        # A name on the PATH may be a shim with nothing behind it, so each is asked what it is.
        if "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
                echo "Error: $python cannot make virtual environments: install its venv module" \
                    "(Debian, Ubuntu: apt-get install python3.11-venv)." >&2
                exit 1
            fi
            echo "$python"
            return
        fi
        found+="${found:+, }$("$python" --version 2>/dev/null || echo "no $python")"
    done
    echo "Error: ExitBench needs Python 3.11 on the PATH; there is: $found." >&2
    exit 1
}

install_groups() {
    [ $# -gt 0 ] || return 0 # another set-up did it while this one waited
    local group now status=0 cut_off="" started=$SECONDS
    local log=.venv/exitbench/pip.log
    local arguments=(--disable-pip-version-check --no-input --constraint requirements.lock)
    for group in "$@"; do arguments+=(--group "$group"); done
    now=$(pins)

    echo "Installing into .venv: $* (the first time 2 to 6 minutes and 2.5 GB; later only what changed) ..."
    rm .venv/exitbench/sound
    trap 'cut_off=yes' INT TERM
    "$PYTHON" -m pip install "${arguments[@]}" >"$log" 2>&1 || status=$?
    # When pip gives up by itself (no network, say), what stood before still stands.
    [ -n "$cut_off" ] || [ "$status" -gt 128 ] || touch .venv/exitbench/sound
    [ -z "$cut_off" ] || exit 130
    if [ "$status" -ne 0 ]; then
        tail -n 15 "$log" >&2
        echo "Error: pip could not install $*; its last lines are above, the others in $log." >&2
        exit 1
    fi
    for group in "$@"; do echo "$now" >".venv/exitbench/$group"; done
    echo "Installed in $((SECONDS - started)) s."
}
