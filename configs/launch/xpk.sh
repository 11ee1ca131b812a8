#!/usr/bin/env bash
# The same on GKE by XPK, which writes the JobSet: two v5p slices of 64 chips, joined over the data center's network.
#
#   PROJECT=my-project ZONE=us-east5-a CLUSTER=my-cluster IMAGE=... BUCKET=gs://... configs/launch/xpk.sh mpo-2-slices
set -euo pipefail
: "${PROJECT:?}" "${ZONE:?}" "${CLUSTER:?}" "${IMAGE:?}" "${BUCKET:?}"
name="${1:?a name for the workload}"
run="align-jax train mpo-llama-3-8b-ultrafeedback --run.stopped_status 143 --run.dir /bucket/runs/$name"
xpk workload create --project "$PROJECT" --zone "$ZONE" --cluster "$CLUSTER" --workload "$name" \
  --tpu-type "${TYPE:-v5p-128}" --num-slices "${SLICES:-2}" --docker-image "$IMAGE" \
  --max-restarts "${RESTARTS:-50}" --termination-grace-period-seconds 120 \
  --command "mkdir -p /bucket && gcsfuse --implicit-dirs ${BUCKET#gs://} /bucket && $run"
