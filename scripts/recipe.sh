# shellcheck shell=bash disable=SC2034  # what it sets is used by the scripts that source it
# Sourced by training scripts: sets `recipe` (the flags of train.py), `run` (the run's folder) and `torchrun`.
#
# SAVE_PATH        the folder of the shards, as in dataset_preparation/README.md; required unless SETS is empty
# SETS             the datasets [all nine]; with SETS="", pass flags for your own datasets
# CONFIG           model, schedule and precision [osm_recipe]
# RUN              the run's folder, on a disk that all nodes can access [runs/osm_final]
# FSDP             full, hybrid (sharded within a node, replicated across nodes), or "" for DDP
# TORCHRUN         the launcher and its flags [torchrun]
#
# The flags of the command override all of these.

published_sets="coco lvis a847 pc459 ade20k cityscapes v3det partimagenet pascal_part"

# set_row SET: the folder, the last shard, the batch size per process, and the samples per epoch of a dataset.
set_row() {
    case $1 in
    coco) echo coco_pan_wds_exclude_lvisval 000000106 8 100000 ;;
    lvis) echo lvis_wds 000000099 16 200000 ;;
    a847) echo a847_wds 000000025 4 50000 ;;
    pc459) echo pc459_wds 000000004 2 25000 ;;
    ade20k) echo ade20k_pan_wds 000000020 4 50000 ;;
    cityscapes) echo cityscapes_pan_wds 000000002 2 25000 ;;
    v3det) echo v3det_wds 000000183 16 200000 ;;
    partimagenet) echo part_imagenet_wds 000000020 4 50000 ;;
    pascal_part) echo pascal_part_wds 000000008 2 25000 ;;
    *)
        echo "error: SETS: no published set is called '$1'; they are $published_sets" >&2
        return 2
        ;;
    esac
}

recipe=(--config "${CONFIG:-osm_recipe}" --run_name "${RUN:-runs/osm_final}")
if [ -n "${FSDP-}" ]; then
    recipe+=(--fsdp --fsdp_sharding_strategy "$FSDP")
fi
for set in ${SETS-$published_sets}; do
    row=$(set_row "$set") || exit
    read -r folder last batch samples <<<"$row"
    shards="${SAVE_PATH:?is the folder of the shards (dataset_preparation/README.md): set it}/$folder"
    recipe+=("--${set}_shards" "$shards/{000000000..$last}.tar")
    recipe+=("--batch_size_$set" "$batch" "--train_num_samples_$set" "$samples")
done
recipe+=("$@")

for ((i = 0; i < ${#recipe[@]}; i++)); do
    case ${recipe[i]} in
    --run_name) run=${recipe[i + 1]-} ;;
    --run_name=*) run=${recipe[i]#*=} ;;
    esac
done

read -ra torchrun <<<"${TORCHRUN:-torchrun}"
# When torchrun is stopped, it signals its processes and kills them after 30 s, but writing a checkpoint may take longer.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-100}
# Every restart gets its own store. In a shared store, new processes would find the addresses of terminated processes.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:-1}
