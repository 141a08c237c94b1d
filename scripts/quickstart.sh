#!/usr/bin/env bash
# The whole system on a fresh machine: environment, installation, then `osm quickstart` (scenes, shards, training on two
# processes, predictions, scores, report, picture). Interrupted, the same command goes on where it was.
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
# osm comes last: where it is, all else is. -I: the one in this folder does not count.
if ! "$python" -I -c 'import osm' 2>/dev/null; then
    make_environment
    if [ "$(uname)" = Linux ]; then install_torch; fi
    echo "== installing the package and what it needs"
    pip_install -r "$root/requirements.txt" -e "$root"
fi
echo "== installed in $((SECONDS - started)) s"
exec "$python" -m osm quickstart "$@"
