#!/usr/bin/env bash
# Deletes the TPU, and makes sure that nothing of its name is left.
#
#   tpu/delete.sh
#
# Fails, and says what is left, if something is after STOP_SECONDS.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

kinds=(queued-resource node)
[[ $BACKEND == tpu ]] || kinds=(instance disk)

delete() {
  case $1 in
    queued-resource) cloud tpus queued-resources delete "$TPU_NAME" --force ;; # And its node.
    node) cloud tpus tpu-vm delete "$TPU_NAME" ;;
    *) cloud "$1s" delete "$TPU_NAME" ;; # An instance, and its disk.
  esac
}

# Prints what there is of the name; a dry run assumes nothing.
remains() {
  local kind state
  for kind in "${kinds[@]}"; do
    state=$(describe "$kind" MISSING)
    [[ $state == MISSING ]] || printf '%s %s is %s. ' "$kind" "$TPU_NAME" "$state"
  done
}

assumed=ACTIVE # The first goes with the second.
for kind in "${kinds[@]}"; do
  state=$(describe "$kind" "$assumed")
  [[ $state == MISSING ]] || delete "$kind" || true # What is left is found below.
  assumed=MISSING
done
deadline=$((SECONDS + STOP_SECONDS))
while left=$(remains) && [[ -n $left ]]; do
  ((SECONDS < deadline)) || die "not all is deleted, and may cost: $left"
  sleep "$POLL_SECONDS"
done
say "Nothing named $TPU_NAME is left in $ZONE."
