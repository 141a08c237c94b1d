#!/usr/bin/env bash
# The published training on the GPUs of one machine: all nine sets, bf16, FSDP.
#
#   SAVE_PATH=/data/shards bash scripts/train_8gpu.sh [flags of train.py, which win]
#
# GPUS [8]: how many. SAVE_PATH, SETS, CONFIG, RUN, FSDP [full], TORCHRUN: see scripts/recipe.sh. Ended in any way, the
# same command goes on from the newest checkpoint.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
FSDP=${FSDP-full}
# shellcheck source=scripts/recipe.sh
source "$root/scripts/recipe.sh"

# exec: a signal that this script is sent is torchrun's, which passes it on.
exec "${torchrun[@]}" --standalone --nproc_per_node="${GPUS:-8}" "$root/train/train.py" "${recipe[@]}"
