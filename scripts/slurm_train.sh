#!/usr/bin/env bash
# The published training on several nodes of a Slurm cluster. Submit it from the repository's root with the Python
# environment activated:
#
#   SAVE_PATH=/data/shards sbatch --nodes=2 scripts/slurm_train.sh [flags of train.py]
#
# GPUS [8]: the GPUs of a node. RESTARTS [3]: how often all processes restart from the newest checkpoint after one failed.
# PORT: the port of the rendezvous [derived from the job id]. SAVE_PATH, SETS, CONFIG, RUN, FSDP [hybrid; full on one
# node], TORCHRUN: see scripts/recipe.sh. Pass the partition, the account and so on to sbatch; its flags override the lines
# below.
#
#SBATCH --job-name=osm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=24:00:00
# This script (B:) gets SIGTERM two minutes before the time limit, so that it can write a checkpoint.
#SBATCH --signal=B:TERM@120
# The job is also requeued after a node failure, and its log is continued.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
job=${SLURM_JOB_ID:?submit it: sbatch scripts/slurm_train.sh}
# Slurm runs a copy of this file from another folder, so the repository is found by the submit directory.
root=$SLURM_SUBMIT_DIR
if [ ! -f "$root/scripts/recipe.sh" ]; then
    echo "error: submitted from $root, which is not the repository's root" >&2
    exit 2
fi
nodes=$SLURM_JOB_NUM_NODES
FSDP=${FSDP-$([ "$nodes" -gt 1 ] && echo hybrid || echo full)}
# shellcheck source=scripts/recipe.sh
source "$root/scripts/recipe.sh"

# If a signal stops the training, it writes a checkpoint and then this file: {"step": ..., "signal": ...}. The file is
# needed because torchrun replaces the training's exit code 75 with 1.
stopped=$run/stopped
step_of() { sed -n 's/.*"step": *\([0-9]*\).*/\1/p' "$1" 2>/dev/null || true; }
step_before=$(step_of "$stopped")
rm -f "$stopped"

read -r first_node < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# Since Slurm 22.05, srun does not inherit this from sbatch.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# Each node runs one torchrun, which starts one process per GPU. The rendezvous is on the first node. The restart count is
# part of the rendezvous id, so that a requeued job cannot join leftovers of its previous start.
srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --wait=600 \
    "${torchrun[@]}" --nnodes="$nodes" --nproc_per_node="${GPUS:-8}" --max_restarts="${RESTARTS:-3}" \
    --rdzv_id="$job-${SLURM_RESTART_COUNT:-0}" --rdzv_backend=c10d \
    --rdzv_endpoint="$first_node:${PORT:-$((20000 + job % 20000))}" \
    "$root/train/train.py" "${recipe[@]}" &
step=$!

# scancel signals the processes of all nodes; an srun that gets SIGTERM itself would kill them at once. torchrun gets the
# signal too, so it does not restart the processes that end.
forward() {
    echo "$(date): job $job is told to stop"
    scancel --signal=TERM "$job" || true
    told=1
}
trap forward TERM
told=1
while [ -n "$told" ]; do # a signal ends `wait`, not the step
    told=
    status=0
    wait "$step" || status=$?
done

if [ "$status" = 0 ] || { [ "$status" != 75 ] && [ ! -e "$stopped" ]; }; then
    exit "$status"
fi
step_after=$(step_of "$stopped")
if [ -n "$step_after" ] && [ "$step_after" = "$step_before" ]; then
    echo "error: stopped at step $step_after, as the time before: --time is too short for a step; not requeued" >&2
    exit 75
fi
if [[ $(scontrol show job "$job") == *JobState=CANCELLED* ]]; then
    echo "cancelled at step ${step_after:-?}; the same sbatch goes on from there"
    exit 75
fi
echo "$(date): stopped at step ${step_after:-?}, requeued"
scontrol requeue "$job" || exit 75
