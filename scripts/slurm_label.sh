#!/usr/bin/env bash
# Labels images with an array job of Slurm: each task labels its share of the shards, tables or parts. Submit it from the
# repository's root with the Python environment activated:
#
#   IMAGES='s3://bucket/shards/{000000..009999}.tar' OUT=s3://bucket/labels sbatch --array=0-63 scripts/slurm_label.sh \
#       [flags of osm label]
#
# SHARES: the number of shares [the number of tasks of the array]; name it to submit only some tasks again.
# RESTARTS [100]: how often a task is requeued when its time is up. Pass the partition, the account and so on to sbatch;
# its flags override the lines below.
#
#SBATCH --job-name=osm-label
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
# This script (B:) gets SIGTERM a minute before the time limit, and requeues its task.
#SBATCH --signal=B:TERM@60
# A task is also requeued after a node failure, and its log is continued.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -euo pipefail
array=${SLURM_ARRAY_JOB_ID:?submit it: sbatch --array=0-63 scripts/slurm_label.sh}
task=${SLURM_ARRAY_TASK_ID:?submit it as an array: sbatch --array=0-63 scripts/slurm_label.sh}
images=${IMAGES:?IMAGES: the images, as the first argument of osm label}
out=${OUT:?OUT: the folder of the labels, which may be on s3:// or gs://}
shares=${SHARES:-}
if [ -z "$shares" ]; then
    shares=${SLURM_ARRAY_TASK_COUNT:?}
    if [ "${SLURM_ARRAY_TASK_MIN:-0}" != 0 ] || [ "${SLURM_ARRAY_TASK_MAX:-$((shares - 1))}" != $((shares - 1)) ]; then
        echo "error: the array is not 0-$((shares - 1)); set SHARES to the number of shares" >&2
        exit 2
    fi
fi
if [ "$task" -ge "$shares" ]; then
    echo "error: task $task of the array, but SHARES is $shares: tasks are numbered from 0" >&2
    exit 2
fi

"${PYTHON:-python}" -m osm label "$images" "$out" --to parts --share "$task/$shares" \
    --cpus_per_process "${SLURM_CPUS_PER_TASK:-1}" "$@" &
command=$!
told=
stop() {
    told=1
    kill -TERM "$command" 2>/dev/null || true
}
trap stop TERM
status=0
wait "$command" || status=$?
if [ -n "$told" ]; then # the trap ended `wait`, not the command
    wait "$command" || true
else
    exit "$status"
fi

job=${array}_$task
if [[ $(scontrol show job "$job") == *JobState=CANCELLED* ]]; then
    echo "$(date): task $task cancelled; the same sbatch goes on from there"
    exit 75
fi
if [ "${SLURM_RESTART_COUNT:-0}" -ge "${RESTARTS:-100}" ]; then
    echo "error: task $task has been started ${SLURM_RESTART_COUNT:-0} times before; not requeued" >&2
    exit 75
fi
echo "$(date): the time of task $task is up, requeued"
scontrol requeue "$job" || exit 75
