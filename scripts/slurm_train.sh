#!/usr/bin/env bash
# The published training on several machines of a Slurm cluster. Submitted from the repository's root, with the Python
# environment active:
#
#   SAVE_PATH=/data/shards sbatch --nodes=2 scripts/slurm_train.sh [flags of train.py, which win]
#
# GPUS [8]: of a node. RESTARTS [3]: how often all processes start again from the newest checkpoint after one has failed.
# PORT: of the rendezvous (made from the job's number). SAVE_PATH, SETS, CONFIG, RUN, FSDP [hybrid; full on one node],
# TORCHRUN: see scripts/recipe.sh. Partition, account and the like are flags of sbatch, which win over the lines below.
#
#SBATCH --job-name=osm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=24:00:00
# Two minutes before the time is up, this script (B:) gets SIGTERM: time to write a checkpoint.
#SBATCH --signal=B:TERM@120
# The job starts again from the queue after a node failed, too, and its log goes on.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
job=${SLURM_JOB_ID:?submit it: sbatch scripts/slurm_train.sh}
# Slurm runs a copy of this file from elsewhere: where it lay is where it was submitted from.
root=$SLURM_SUBMIT_DIR
if [ ! -f "$root/scripts/recipe.sh" ]; then
    echo "error: submitted from $root, which is not the repository's root" >&2
    exit 2
fi
nodes=$SLURM_JOB_NUM_NODES
FSDP=${FSDP-$([ "$nodes" -gt 1 ] && echo hybrid || echo full)}
# shellcheck source=scripts/recipe.sh
source "$root/scripts/recipe.sh"

# What the training leaves when a signal stopped it, after its checkpoint is written: {"step": ..., "signal": ...}. Its
# exit code then is 75, but of a failed process torchrun says 1, whatever it ended with; hence the file.
stopped=$run/stopped
step_of() { sed -n 's/.*"step": *\([0-9]*\).*/\1/p' "$1" 2>/dev/null || true; }
step_before=$(step_of "$stopped")
rm -f "$stopped"

read -r first_node < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# Since Slurm 22.05, srun does not take this over from sbatch.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# One torchrun a node, which starts a process a GPU; they meet at the first node. The restart count is in the id, as a
# requeued job must not meet what is left of its last start.
srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --wait=600 \
    "${torchrun[@]}" --nnodes="$nodes" --nproc_per_node="${GPUS:-8}" --max_restarts="${RESTARTS:-3}" \
    --rdzv_id="$job-${SLURM_RESTART_COUNT:-0}" --rdzv_backend=c10d \
    --rdzv_endpoint="$first_node:${PORT:-$((20000 + job % 20000))}" \
    "$root/train/train.py" "${recipe[@]}" &
step=$!

# By scancel, which signals the processes of all nodes: an srun that gets SIGTERM itself kills them at once. torchrun gets
# it as well, and so does not take the processes that end for failed ones to be restarted.
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
