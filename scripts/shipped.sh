#!/usr/bin/env bash
# Trains the bridge of osm-small that the package brings along (osm/weights/osm_small), calibrates and scores it.
#
#   scripts/shipped.sh DATA OUT
#
# DATA contains coco_mini/, coco_panoptic/, camvid/ and clothing/, each with train/ and val/ in COCO panoptic format, and
# imagenet_samples/ with one photo of each class of ImageNet-1k (scripts/imagenet_regions.py). WordNet's files are needed
# for the names of these photos (apt-get install wordnet-base). Mosaics of the photos whose classes have a name in COCO are
# added to COCO's photos (scripts/imagenet_mosaics.py). If it is interrupted, the same command resumes.
# Two processes of one thread each. To try it, it can be made shorter: EPOCHS [6], STEPS [100] of an epoch, VIEWS [2], the
# crops of a photo, and FOLD_STEPS [500] of the models whose predictions calibrate the probabilities. CACHE [OUT/cache] is
# the folder of the tower's tokens, which runs can share. The loss of ImageNet is the largest. It has a fifth of the
# weight of the others, so that it does not dominate the gradient. When the classifier is trained again, it has a twentieth
# of COCO's weight.
set -euo pipefail
data=$(realpath "${1:?usage: scripts/shipped.sh DATA OUT}")
mkdir -p "${2:?usage: scripts/shipped.sh DATA OUT}"
out=$(realpath "$2")
root=$(dirname "$(dirname "$(realpath "$0")")")
python=${PYTHON:-python3}
steps=${STEPS:-100}
cache=${CACHE:-$out/cache}
export PYTHONPATH=$root OMP_NUM_THREADS=1
# By default, glibc returns the memory of every freed large tensor to the system, which slows down allocations.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592

echo "== photos to shards"
if [ ! -f "$out/imagenet/regions.json" ]; then
  "$python" "$root/scripts/imagenet_regions.py" "$data/imagenet_samples" "$out/imagenet"
fi
if [ ! -f "$out/mosaics/panoptic.json" ]; then
  "$python" "$root/scripts/imagenet_mosaics.py" "$out/imagenet" "$data/coco_panoptic/train" "$out/mosaics"
fi
"$python" "$root/scripts/merge_panoptic.py" "$out/coco" "$data/coco_panoptic/train" "$data/coco_mini/train" "$out/mosaics"
for set in camvid clothing; do "$python" "$root/scripts/merge_panoptic.py" "$out/$set" "$data/$set/train"; done
for set in coco camvid clothing; do
  "$python" -m osm prepare coco_panoptic --output_dir "$out/shards/$set" --image_dir "$out/$set/images" \
    --ann_dir "$out/$set/panoptic" --json_file "$out/$set/panoptic.json"
done
"$python" -m osm prepare regions --output_dir "$out/shards/imagenet" --image_dir "$out/imagenet/images" \
  --json_file "$out/imagenet/regions.json"
cat > "$out/sets.yaml" << YAML
datasets:
  camvid: {form: coco_panoptic, title: CamVid, labels: $data/camvid/train/panoptic.json}
  clothing: {form: coco_panoptic, title: Clothing, labels: $data/clothing/train/panoptic.json}
  imagenet: {form: regions, title: ImageNet}
YAML

echo "== training"
images=$((2 * steps))  # a step takes `batch_size` images of a set in each of two processes
"$python" -m torch.distributed.run --standalone --nproc_per_node 2 "$root/train/train.py" --config osm_small \
  --datasets "$out/sets.yaml" --run_name "$out/run" --num_epochs "${EPOCHS:-6}" --views "${VIEWS:-2}" \
  --known_names --known_classes "$root/scripts/imagenet_classes.json" \
  --feature_cache "$cache" --delete_previous_checkpoint \
  --coco_shards "$out/shards/coco/000000000.tar" --batch_size_coco 3 --train_num_samples_coco $((3 * images)) \
  --camvid_shards "$out/shards/camvid/000000000.tar" --batch_size_camvid 1 --train_num_samples_camvid "$images" \
  --clothing_shards "$out/shards/clothing/000000000.tar" --batch_size_clothing 1 --train_num_samples_clothing "$images" \
  --imagenet_shards "$out/shards/imagenet/000000000.tar" --batch_size_imagenet 1 --train_num_samples_imagenet "$images" \
  --loss_multiplier_imagenet 0.2

echo "== the classifier of the known names"
trained=$(sha256sum < "$out/run/final/model.safetensors")
# An earlier refit may belong to another training, such as a short trial.
if [ "$trained" != "$(cat "$out/refitted/trained.sha256" 2> /dev/null)" ]; then
  "$python" -m osm refit_names "$out/run/final" "$out/refitted" --force --datasets "$out/sets.yaml" \
    --weights camvid=0.3 --weights clothing=0.3 --weights imagenet=0.05 --shards "coco=$out/shards/coco/000000000.tar" \
    --shards "camvid=$out/shards/camvid/000000000.tar" --shards "clothing=$out/shards/clothing/000000000.tar" \
    --shards "imagenet=$out/shards/imagenet/000000000.tar"
  echo "$trained" > "$out/refitted/trained.sha256"
fi

echo "== models of two folds, whose predictions calibrate the probabilities"
mkdir -p "$out/folds"
for made in imagenet mosaics; do ln -sfn "$out/$made" "$out/folds/$made"; done  # these are made once
"$python" "$root/scripts/experiments.py" "$data" "$out/folds" --only shipped --sets coco,camvid,clothing --cache "$cache" \
  --steps "${FOLD_STEPS:-500}"
rm -rf "$out/model"
"$python" -m osm export "$out/refitted" "$out/model" --half
"$python" -m osm calibrate "$out/model" --json "$out/calibration.json" --plot "$out/reliability.png" \
  --predictions "$out/folds/shipped/0" --datasets "$out/folds/sets_0.yaml" \
  --predictions "$out/folds/shipped/1" --datasets "$out/folds/sets_1.yaml"

echo "== accuracy on the val photos"
"$python" "$root/scripts/score_folders.py" "$out/model" "$out/val" "coco:coco_panoptic=$data/coco_panoptic/val" \
  "coco:coco_mini=$data/coco_mini/val" "camvid=$data/camvid/val" "clothing=$data/clothing/val" | tee "$out/val.txt"
checked=()
for set in coco_panoptic coco_mini camvid clothing; do
  checked+=(--predictions "$out/val/$set" --datasets "$out/val/$set.yaml")
done
"$python" -m osm calibrate "$out/model" --check "${checked[@]}" --json "$out/calibration_val.json"
echo "== a ridge probe on the same photos"
probe() {
  [ ! -f "$out/probe_$1.json" ] || return 0
  "$python" "$root/benchmarks/linear_probe.py" --datasets "$out/val/$1.yaml" \
    --shards "$2=$out/shards/$2/000000000.tar" > "$out/probe_$1.json.part"
  mv "$out/probe_$1.json.part" "$out/probe_$1.json"
}
probe clothing clothing &
probe coco_panoptic coco && probe coco_mini coco && probe camvid camvid
wait $!

echo "== to ship: scripts/shipped_record.py $out BEFORE, with the previous version's predictions for the val photos"
