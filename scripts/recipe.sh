# shellcheck shell=bash disable=SC2034  # what it sets is used by the scripts that source it
# To be sourced by scripts that train: sets `recipe` (the flags of train.py), `run` (the run's folder) and `torchrun`.
#
# SAVE_PATH        the folder of the shards, as dataset_preparation/README.md has it; needed where SETS names a set
# SETS             the sets that are trained on [all nine]; SETS="" leaves them to flags of your own
# CONFIG           model, schedule and precision [osm_recipe]
# RUN              the run's folder, on a disk that all nodes see [runs/osm_final]
# FSDP             full, hybrid (sharded in a node, copied between nodes), or "" for DDP
# TORCHRUN         what starts the processes, with flags of its own [torchrun]
#
# The flags of the command come after all of these, and win.

published_sets="coco lvis a847 pc459 ade20k cityscapes v3det partimagenet pascal_part"

# set_row SET: its folder, its last shard, images a step and process, samples an epoch.
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
# Told to stop, torchrun tells its processes, and kills them after 30 s: writing a checkpoint may take longer.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-100}
# A store of its own for every restart: in one that outlives them, new processes find the addresses of the dead.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:-1}
