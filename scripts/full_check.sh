#!/usr/bin/env bash
# The long series that CI leaves out, each with its figures as json. Run before a release; some 90 minutes of two cores.
#
#   bash scripts/full_check.sh            all of them
#   bash scripts/full_check.sh kills llms only these: kills, memory, quickstart, llms, towers
#
# OSM_VENV: the virtual environment that scripts/test.sh made (.venv).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${OSM_VENV:-.venv}/bin/python
figures=docs/benchmarks
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

series() {
    case $1 in
    # Random SIGKILLs over runs that change batch size and process count twice.
    kills) "$python" tests/training/kill_series.py --kills 30 --out "$figures/reliability/kills.json" ;;
    # What each process of an FSDP run holds, beside a single process.
    memory) "$python" tests/training/fsdp_memory.py --out "$figures/reliability/fsdp_memory.json" ;;
    # `osm quickstart --short`, killed while it trains and started again.
    quickstart) OSM_WHOLE_QUICKSTART=1 "$python" -m pytest -q tests/test_quickstart.py -k killed_while_it_trains ;;
    # All families of LLMs, with both bridges.
    llms) "$python" benchmarks/families.py --again --output "$figures/families/llms.json" --table docs/families.md ;;
    # All towers.
    towers)
        rm -f "$figures/families/towers.json"
        "$python" scripts/tower_families.py
        ;;
    *)
        echo "unknown series: $1 (kills, memory, quickstart, llms, towers)" >&2
        return 2
        ;;
    esac
}

wanted=("$@")
if [ $# -eq 0 ]; then
    wanted=(kills memory quickstart llms towers)
fi
failed=()
for name in "${wanted[@]}"; do
    echo "== $name"
    series "$name" || failed+=("$name")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
