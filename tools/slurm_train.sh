#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Train under Slurm:  tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]
# GPUS (8) is the number of processes, GPUS_PER_NODE (8) and CPUS_PER_TASK (5) what each asks for;
# SRUN_ARGS goes to srun as it is.
set -euo pipefail
if [ $# -lt 4 ]; then
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
fi
partition=$1
job=$2
config=$3
work_dir=$4
shift 4
per_node=${GPUS_PER_NODE:-8}
# shellcheck disable=SC2086  # SRUN_ARGS is a list of words
exec srun --partition="$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="${GPUS:-8}" \
    --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$config" --work-dir "$work_dir" --launcher slurm "$@"
