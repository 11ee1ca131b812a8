#!/usr/bin/env bash
# A run on a TPU slice of VMs: makes the slice, installs, starts the same command on every host, starts it again when it stops
# for another reason than a wrong config. With --spot a slice that is taken away is asked for again: the run goes on from its
# newest checkpoint, which RUN_DIR on a bucket keeps.
#
#   PROJECT=my-project ZONE=us-east5-a NAME=mpo-8b TYPE=v5p-128 VERSION=v2-alpha-tpuv5 \
#   BUCKET=gs://my-bucket CONFIG=configs/mpo-llama-3-8b-ultrafeedback.yaml configs/launch/tpu-vm.sh [--section.key value ...]
#
# TYPE counts cores for v5p (v5p-128 is 64 chips, --topology v5p:4x4x4) and chips for v5e and v6e (v6e-64 is v6e:8x8).
set -euo pipefail
: "${PROJECT:?}" "${ZONE:?}" "${NAME:?}" "${TYPE:?}" "${VERSION:?}" "${BUCKET:?}" "${CONFIG:?}"
at=(--project "$PROJECT" --zone "$ZONE")
source_of_package="${PACKAGE:-align-jax}" # or git+https://..., or a wheel in the bucket

make_slice() {
  gcloud compute tpus queued-resources create "$NAME" "${at[@]}" --node-id "$NAME" --accelerator-type "$TYPE" \
    --runtime-version "$VERSION" ${SPOT:+--spot}
  local now
  until now="$(state)" && [[ "$now" == ACTIVE ]]; do
    if [[ "$now" == FAILED ]]; then return 1; fi
    echo "waiting for $NAME: $now"
    sleep 30
  done
}

state() { gcloud compute tpus queued-resources describe "$NAME" "${at[@]}" --format 'value(state.state)'; }

everywhere() { gcloud compute tpus tpu-vm ssh "$NAME" "${at[@]}" --worker=all --command "$1"; }

install() {
  gcloud compute tpus tpu-vm scp "$CONFIG" "$NAME:run.yaml" "${at[@]}" --worker=all
  everywhere "python3 -m venv ~/venv && ~/venv/bin/pip install -q '${source_of_package}[tpu]'"
  # All hosts must see one run.dir.
  everywhere "mkdir -p ~/bucket && { mountpoint -q ~/bucket || gcsfuse --implicit-dirs '${BUCKET#gs://}' ~/bucket; }"
}

command="~/venv/bin/align-jax train ~/run.yaml --run.dir ~/bucket/$NAME --run.stopped_status 143 ${*@Q}"
installed=
for attempt in $(seq "${ATTEMPTS:-20}"); do
  now="$(state 2>/dev/null || echo none)"
  if [[ "$now" != ACTIVE ]]; then
    installed=
    if [[ "$now" != none ]]; then # taken away, or failed
      gcloud compute tpus queued-resources delete "$NAME" "${at[@]}" --force --quiet
    fi
    make_slice
  fi
  if [[ -z "$installed" ]]; then install && installed=1; fi
  status=0
  everywhere "$command" || status=$?
  case "$status" in
    0) echo "done: $BUCKET/$NAME"; exit 0 ;;
    2) echo "a wrong config, or hosts that were told different things: see the line above" >&2; exit 2 ;;
    *) echo "attempt $attempt ended with status $status; once more" >&2 ;;
  esac
done
echo "gave up after ${ATTEMPTS:-20} attempts" >&2
exit 1
