#!/usr/bin/env bash
# The long test series that CI leaves out. Each writes its figures to a JSON file. Run this script before a release. It
# takes about 160 minutes on two cores, without the series `tests`.
#
#   bash scripts/full_check.sh            all series
#   bash scripts/full_check.sh kills llms some of them
#
# The series are tests, kills, memory, quickstart, llms, towers, label, scale and serve.
#
# OSM_VENV: the virtual environment that scripts/test.sh made (.venv).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${OSM_VENV:-.venv}/bin/python
figures=docs/benchmarks
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

series() {
    case $1 in
    # Repetitions and further cases of the slow tests, which CI leaves out, and all layouts of both bridges.
    tests) OSM_LONG_TESTS=1 "$python" -m pytest -q -m "long or layouts" ;;
    # Random SIGKILLs over runs that change batch size and process count twice.
    kills) "$python" tests/training/kill_series.py --kills 30 --out "$figures/reliability/kills.json" ;;
    # The memory of each process of an FSDP run, and of a single process.
    memory) "$python" tests/training/fsdp_memory.py --out "$figures/reliability/fsdp_memory.json" ;;
    # `osm quickstart --short`, killed during training and resumed.
    quickstart) OSM_WHOLE_QUICKSTART=1 "$python" -m pytest -q tests/test_quickstart.py -k killed_while_it_trains ;;
    # All families of LLMs, with both bridges.
    llms) "$python" benchmarks/families.py --again --output "$figures/families/llms.json" --table docs/families.md ;;
    # All towers.
    towers)
        rm -f "$figures/families/towers.json"
        "$python" scripts/tower_families.py
        ;;
    # 200 pictures labeled by osm_small, killed twice and resumed.
    label)
        scenes=$(mktemp -d)
        "$python" -m osm scenes "$scenes" --split val --sets scenes_plain --images 40 --seed 3
        ln -s scenes_plain.json "$scenes/panoptic.json"
        "$python" benchmarks/label_series.py osm_small "$scenes" --pictures 200 \
            --output "$figures/labeling/scenes.json"
        rm -r "$scenes"
        ;;
    # 2,000 pictures labeled on Ray, with killed workers and drivers, and from and to an object store. NANO as below.
    scale)
        scenes=$(mktemp -d)
        "$python" -m osm scenes "$scenes" --split val --sets scenes_plain --images 40 --seed 3
        ln -s scenes_plain.json "$scenes/panoptic.json"
        "$python" benchmarks/label_scale.py "${NANO:-runs/quickstart/run/final}" "$scenes" --name osm_nano \
            --output "$figures/scale/ray_scenes.json"
        rm -r "$scenes"
        ;;
    # Load, memory over 10,000 requests, and faults of `osm serve`; NANO is a trained osm_nano (the quickstart's).
    serve)
        nano=${NANO:-runs/quickstart/run/final}
        for model in osm_small "$nano"; do
            name=$([ "$model" = osm_small ] && echo osm_small || echo osm_nano)
            "$python" benchmarks/serve_load.py "$model" --output "$figures/serving/load_$name.json"
        done
        "$python" benchmarks/serve_load.py "$nano" --soak 10000 --output "$figures/serving/soak.json"
        "$python" benchmarks/serve_faults.py "$nano" --output "$figures/serving/faults.json"
        "$python" benchmarks/serve_tables.py "$figures/serving" docs/serving.md
        ;;
    *)
        echo "unknown series: $1 (tests, kills, memory, quickstart, llms, towers, label, scale, serve)" >&2
        return 2
        ;;
    esac
}

wanted=("$@")
if [ $# -eq 0 ]; then
    wanted=(tests kills memory quickstart llms towers label scale serve)
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
