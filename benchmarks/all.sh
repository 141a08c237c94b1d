#!/usr/bin/env bash
# Runs every benchmark of speed again, and writes all figures to OUT/all.json (benchmarks/all_speed.py).
#
#   bash benchmarks/all.sh OUT                       all that can run here; goes on where it stopped
#   SMALL=1 bash benchmarks/all.sh OUT               the smallest sizes, which show that the commands work
#   bash benchmarks/all.sh OUT --only loader,startup --fresh
#   bash benchmarks/all.sh OUT --list
#
# OSM_VENV: the virtual environment that scripts/test.sh made (.venv). The inputs of some benchmarks are named by DATA,
# NANO, QUERIES, SETS and OLD (benchmarks/speed_inputs.py).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${OSM_VENV:-$root/.venv}
exec "$venv/bin/python" "$root/benchmarks/all_speed.py" "$@"
