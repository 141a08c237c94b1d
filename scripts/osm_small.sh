#!/usr/bin/env bash
# Trains, predicts and scores osm-small on three small sets: all figures of docs/results.md.
#
#   scripts/osm_small.sh DATA OUT
#
# DATA contains coco_mini/, camvid/ and clothing/, each with train/ and val/ in COCO panoptic format (images/, panoptic/,
# panoptic.json). If it is interrupted, the same command resumes. It runs two processes of one thread each. Environment
# variables:
#   CONFIG [osm_small_queries]        the config of the model
#   EPOCHS [7], VIEWS [2], SAMPLES [200]  epochs, crops of a photo, and samples of a dataset per epoch; smaller for a try
#   IGNORED_<SET>="3, 14"             category ids of a dataset that are not used in training
#   ONLY_PREDICT=1                    leave out the controls and the probe
#   CACHE [OUT/cache]                 folder of the tower's tokens, which runs with the same tower and views can share
#   THINGS                            folder of a fourth dataset of the same format (scripts/shipped.sh)
set -euo pipefail
data=$(realpath "${1:?usage: scripts/osm_small.sh DATA OUT}")
mkdir -p "${2:?usage: scripts/osm_small.sh DATA OUT}"
out=$(realpath "$2")
root=$(dirname "$(dirname "$(realpath "$0")")")
python=${PYTHON:-python3}
things=${THINGS:+$(realpath "$THINGS")}
sets="coco_mini camvid clothing${things:+ things}"
samples=${SAMPLES:-200}
cache=${CACHE:-$out/cache}
export OMP_NUM_THREADS=1
# By default, glibc returns the memory of every freed large tensor to the system, which slows down allocations.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592

folder() { if [ "$1" = things ]; then echo "$things"; else echo "$data/$1"; fi; }  # folder SET

rows() {  # rows SPLIT: the YAML of the sets
  echo "datasets:"
  for set in $sets; do
    # The COCO photos use the built-in dataset `coco` with its mode and vocabulary. The other datasets have their own entries.
    if [ "$set" = coco_mini ]; then echo "  coco:"; else
      echo "  $set:"
      echo "    form: coco_panoptic"
      echo "    title: $set"
    fi
    local ignored=IGNORED_${set^^}
    if [ "$1" = train ] && [ -n "${!ignored-}" ]; then echo "    ignored_ids: [${!ignored}]"; fi
    echo "    image_dir: $(folder "$set")/val/images"
    echo "    mask_dir: $(folder "$set")/val/panoptic"
    echo "    json_file: $(folder "$set")/val/panoptic.json"
  done
}
rows val > "$out/sets.yaml"
rows train > "$out/sets_train.yaml"

for set in $sets; do
  "$python" "$root/dataset_preparation/convert_coco_panoptic_to_wds.py" --output_dir "$out/shards/$set" \
    --image_dir "$(folder "$set")/train/images" --ann_dir "$(folder "$set")/train/panoptic" \
    --json_file "$(folder "$set")/train/panoptic.json"
done

more=()
if [ -n "$things" ]; then
  more=(--things_shards "$out/shards/things/000000000.tar" --batch_size_things 2 --train_num_samples_things $((2 * samples)))
fi
"$python" -m torch.distributed.run --standalone --nproc_per_node 2 "$root/train/train.py" \
  --config "${CONFIG:-osm_small_queries}" --datasets "$out/sets_train.yaml" --run_name "$out/run" --num_epochs "${EPOCHS:-7}" --views "${VIEWS:-2}" \
  --feature_cache "$cache" --delete_previous_checkpoint \
  --coco_shards "$out/shards/coco_mini/000000000.tar" --batch_size_coco 1 --train_num_samples_coco "$samples" \
  --camvid_shards "$out/shards/camvid/000000000.tar" --batch_size_camvid 1 --train_num_samples_camvid "$samples" \
  --clothing_shards "$out/shards/clothing/000000000.tar" --batch_size_clothing 2 --train_num_samples_clothing $((2 * samples)) \
  "${more[@]}"

trap 'kill $(jobs -p) 2>/dev/null || true' EXIT  # a part does not outlive the script

predict() {  # predict NAME FLAGS...: both parts at once, then the scores
  local name=$1
  shift
  for part in 0 1; do
    "$python" "$root/test/generate_pred.py" $part 2 "$out/run/final" "$out/$name" --datasets "$out/sets.yaml" \
      --sets "coco,camvid,clothing${things:+,things}" --num_threads 1 "$@" &
  done
  for part in $(jobs -p); do wait "$part"; done
  "$python" "$root/test/evaluate_pred.py" "$out/$name" 2 --datasets "$out/sets.yaml" --metrics all \
    --json "$out/$name.json"
}

echo "== predictions"
predict predictions
if [ -n "${ONLY_PREDICT-}" ]; then exit; fi
echo "== the same with each mask exchanged for another image's"
predict shuffled_masks --modes own --alter shuffle_masks
echo "== the same with a grey image"
predict blank_image --modes own --alter blank_image
echo "== majority class and linear probe on the frozen tower"
"$python" "$root/benchmarks/linear_probe.py" --datasets "$out/sets.yaml" --shards "coco=$out/shards/coco_mini/000000000.tar" \
  --shards "camvid=$out/shards/camvid/000000000.tar" --shards "clothing=$out/shards/clothing/000000000.tar" \
  | tee "$out/linear_probe.json"
