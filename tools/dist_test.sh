#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Test on several processes of one or more machines:  tools/dist_test.sh CONFIG CKPT NUM_PROCESSES [options of test.py]
# A process is a GPU; without CUDA the processes share the CPU (backend gloo).
# Several machines: the same line on each, with NNODES, NODE_RANK and MASTER_ADDR set.
# The launcher's store listens at PORT (29500) on all interfaces, whatever MASTER_ADDR is: docs/security.md.
set -euo pipefail
if [ $# -lt 3 ]; then
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
fi
config=$1
checkpoint=$2
processes=$3
shift 3
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$processes" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
