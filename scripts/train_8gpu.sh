#!/usr/bin/env bash
# The published training on the GPUs of one machine: all nine datasets, bf16, FSDP.
#
#   SAVE_PATH=/data/shards bash scripts/train_8gpu.sh [flags of train.py]
#
# GPUS [8]: the number of GPUs. SAVE_PATH, SETS, CONFIG, RUN, FSDP [full], TORCHRUN: see scripts/recipe.sh. The same command
# resumes from the newest checkpoint.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
FSDP=${FSDP-full}
# shellcheck source=scripts/recipe.sh
source "$root/scripts/recipe.sh"

# With exec, torchrun gets the signals that are sent to this script.
exec "${torchrun[@]}" --standalone --nproc_per_node="${GPUS:-8}" "$root/train/train.py" "${recipe[@]}"
