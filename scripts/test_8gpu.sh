#!/usr/bin/env bash
# The published test on the GPUs of one machine: each GPU names one part of the validation masks. Then they are scored.
#
#   bash scripts/test_8gpu.sh CKPT OUT_DIR [flags of generate_pred.py]
#
# GPUS [8]: the number of GPUs. If CUDA_VISIBLE_DEVICES is set, it selects them. PYTHON [python3]. A part that fails does
# not stop the others, and the same command resumes. Proposals (--masks FILE) are not scored.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
usage="usage: bash scripts/test_8gpu.sh CKPT OUT_DIR [flags of generate_pred.py]"
checkpoint=${1:?$usage}
out=${2:?$usage}
shift 2
python=${PYTHON:-python3}
gpus=${GPUS:-8}
if ! [[ $gpus =~ ^[1-9][0-9]*$ ]]; then
    echo "error: GPUS '$gpus' is not a number of GPUs, 1 or more" >&2
    exit 2
fi
devices=()
if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    IFS=, read -ra devices <<<"$CUDA_VISIBLE_DEVICES"
    if [ ${#devices[@]} -lt "$gpus" ]; then
        echo "error: GPUS is $gpus, but CUDA_VISIBLE_DEVICES '$CUDA_VISIBLE_DEVICES' names ${#devices[@]}; set GPUS=${#devices[@]}" >&2
        exit 2
    fi
else
    for ((i = 0; i < gpus; i++)); do devices+=("$i"); done
fi

# The flags that evaluate_pred.py needs too.
scores=()
proposals=
words=("$@")
for ((k = 0; k < ${#words[@]}; k++)); do
    case ${words[k]} in
    --datasets) scores+=(--datasets "${words[k + 1]:-}") ;;
    --datasets=*) scores+=("${words[k]}") ;;
    --masks) [ "${words[k + 1]:-}" = gt ] || proposals=1 ;;
    --masks=gt) ;;
    --masks=*) proposals=1 ;;
    esac
done

trap 'kill $(jobs -p) 2>/dev/null || true' EXIT # a part does not outlive the script
parts=()
for ((i = 0; i < gpus; i++)); do
    CUDA_VISIBLE_DEVICES=${devices[i]} "$python" "$root/test/generate_pred.py" "$i" "$gpus" "$checkpoint" "$out" "$@" &
    parts+=($!)
done
failed=()
for i in "${!parts[@]}"; do
    wait "${parts[i]}" || failed+=("$i")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "error: part ${failed[*]} of $gpus failed; the same command does what is left" >&2
    exit 1
fi
[ -n "$proposals" ] || "$python" "$root/test/evaluate_pred.py" "$out" "$gpus" ${scores[@]+"${scores[@]}"}
