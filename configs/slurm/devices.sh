#!/bin/bash
# Without SLURM: the folds of one experiment spread over the GPUs of this machine.
#
#   DEVICES="0 1 2 3" FOLDS="0 1 2 3 4" configs/slurm/devices.sh configs/mine.yaml
#
# Folds go round the devices, one after the other on each. A device stops where a fold fails, the
# others go on, and the end is an error then; the same command again finishes what is left.
# What they say goes to runs/logs/<config>-fold<k>.log.
set -uo pipefail
config=$1
shift
name=$(basename "$config" .yaml)
mkdir -p runs/logs
read -ra devices <<<"$DEVICES"
failed=0
count=${#devices[@]}
for ((first = 0; first < count; first++)); do
    (
        place=0
        for fold in $FOLDS; do
            if ((place++ % count == first)); then
                export CUDA_VISIBLE_DEVICES=${devices[first]}
                "${PYTHON:-python}" 02_train_stage1.py \
                    --config "$config" "$@" --folds "$fold" >"runs/logs/$name-fold$fold.log" 2>&1 ||
                    { tail -n 5 "runs/logs/$name-fold$fold.log" >&2 && exit 1; }
            fi
        done
    ) &
done
for job in $(jobs -p); do wait "$job" || failed=1; done
exit "$failed"
