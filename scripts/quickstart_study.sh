#!/usr/bin/env bash
# The figures of docs/quickstart.md: the quickstart with two training seeds, each tested on scenes of three seeds, and
# simple baselines on the same scenes.
#
#   scripts/quickstart_study.sh OUT && python3 scripts/quickstart_table.py OUT
#
# The probes need scikit-learn and scikit-image (pip install -e '.[test]'). If it is interrupted, the same command resumes.
set -euo pipefail
root=$(dirname "$(dirname "$(realpath "$0")")")
mkdir -p "${1:?usage: scripts/quickstart_study.sh OUT}"
out=$(realpath "$1")
python=${PYTHON:-python3}
export HF_HUB_OFFLINE=1 TQDM_DISABLE=1 PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
seeds="42 43"
more_tests="9100 9200"
sets=scenes_fine,scenes_plain

trap 'kill $(jobs -p) 2>/dev/null || true' EXIT  # a part does not outlive the script

# predict RUN TABLE FOLDER FLAGS...: both parts at once
predict() {
  local run=$1 table=$2 folder=$3 part
  shift 3
  for part in 0 1; do
    "$python" -m osm generate $part 2 "$run/final" "$folder" --datasets "$table" --sets $sets --num_threads 1 "$@" &
  done
  for part in $(jobs -p); do wait "$part"; done
}

for seed in $seeds; do
  "$python" -m osm quickstart "$out/seed_$seed" --full --seed "$seed"
  for test in $more_tests; do
    # Paths in a dataset YAML are relative to the file, so the copies refer to the new scenes.
    folder=$out/seed_$seed/test_$test
    mkdir -p "$folder"
    cp "$out/seed_$seed/sets.yaml" "$out/seed_$seed/sets_held_out.yaml" "$folder"
    "$python" -m osm scenes "$folder/scenes" --split test --images 170 --seed "$test"
    "$python" -m osm scenes "$folder/scenes" --split held_out --images 90 --seed $((test + 1)) --pairs held_out
    predict "$out/seed_$seed/run" "$folder/sets.yaml" "$folder/predictions"
    predict "$out/seed_$seed/run" "$folder/sets_held_out.yaml" "$folder/held_out"
    "$python" -m osm report "$folder/report" --predictions "after training=$folder/predictions" \
      --predictions "held-out pairs=$folder/held_out" --parts 2 --datasets "$folder/sets.yaml" --run "$out/seed_$seed/run"
  done
done

first=$out/seed_${seeds%% *}
for features in tower statistics; do
  if [ ! -s "$out/probe_$features.json" ]; then
    echo "== linear probe: $features"
    "$python" "$root/benchmarks/linear_probe.py" --config osm_nano --features $features --datasets "$first/sets.yaml" \
      --shards "scenes_fine=$first/shards/scenes_fine/000000000.tar" \
      --shards "scenes_plain=$first/shards/scenes_plain/000000000.tar" > "$out/probe_$features.tmp"
    mv "$out/probe_$features.tmp" "$out/probe_$features.json"
  fi
done
