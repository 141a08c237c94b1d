#!/usr/bin/env bash
# The whole system on a fresh machine: creates an environment, installs the package, and runs `osm quickstart` (photos,
# scenes, shards, training on two processes, predictions, scores, report, picture). If it is interrupted, the same command
# resumes.
#
#   bash scripts/quickstart.sh [OUT] [--short] [flags of `osm quickstart`]     OUT: runs/quickstart
#
# OSM_VENV: the virtual environment (.venv). PYTHON: what creates it (the first Python >= 3.11 found).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/environment.sh
source "$root/scripts/environment.sh"

venv=${OSM_VENV:-$root/.venv}
python=$venv/bin/python
export HF_HUB_OFFLINE=1 PIP_DISABLE_PIP_VERSION_CHECK=1

started=$SECONDS
# osm is installed last, so if it is there, everything is. -I ignores the package in the working directory.
if ! "$python" -I -c 'import osm' 2>/dev/null; then
    make_environment
    if [ "$(uname)" = Linux ]; then install_torch; fi
    echo "== installing the package and what it needs"
    pip_install -r "$root/requirements.txt" -e "$root"
fi
echo "== installed in $((SECONDS - started)) s"
exec "$python" -m osm quickstart "$@"
