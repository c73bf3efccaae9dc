#!/usr/bin/env bash
# Shows the state of the TPU, and of the run on each host.
#
#   tpu/status.sh
#
# A run is running, done, stopped (by SIGTERM: stop.sh, or the end of the VM), failed with an exit
# code, lost (it ended without one) or none.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

state=$(tpu_state ACTIVE)
say "$TPU_NAME ($BACKEND, $ZONE): $state"
case $(condition "$state") in
  ready) host_states | while read -r host answer; do say "$host: $RUN $answer"; done ;;
  unknown) exit 1 ;;
esac
