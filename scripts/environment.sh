# shellcheck shell=bash disable=SC2154
# Sourced by scripts that set $venv and $python: creates a virtual environment and installs packages into it.

# Many containers set this variable. Every process would then compile all modules that it imports.
unset PYTHONDONTWRITEBYTECODE

pip_install() {
    # Files are not compiled here, because only a few of the many thousand files are ever imported.
    "$python" -m pip install --quiet --progress-bar off --no-compile "$@"
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

# Creates the virtual environment if it does not exist or is incomplete.
make_environment() {
    local base
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        base=$(find_python)
        echo "== virtual environment $venv"
        "$base" -m venv "$venv"
    fi
}

have_torch() {
    "$python" -c 'import importlib.util as u; assert u.find_spec("torch") and u.find_spec("torchvision")' 2>/dev/null
}

# The releases that the tests pass with. If they are not available, requirements.txt decides.
install_torch() {
    have_torch || pip_install torch==2.14.1 torchvision==0.29.1 ||
        echo "torch 2.14.1 cannot be had here: taking what requirements.txt allows" >&2
}
