#!/usr/bin/env bash
# Build the documentation in site/. Broken links and anchors are errors. Nothing is asked of a network.
#
#   bash scripts/docs.sh            build
#   bash scripts/docs.sh serve      build, and serve on http://127.0.0.1:8000 while you edit
#
# OSM_VENV: the virtual environment that scripts/test.sh made (.venv).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${OSM_VENV:-.venv}/bin/python
# Newer versions of mkdocs-material advertise their successor on every build.
export NO_MKDOCS_2_WARNING=1
case ${1:-build} in
build) "$python" -m mkdocs build --strict --quiet ;;
serve) "$python" -m mkdocs serve --strict ;;
*)
    echo "unknown: $1 (build, serve)" >&2
    exit 2
    ;;
esac
