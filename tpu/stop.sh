#!/usr/bin/env bash
# Stops the run on all hosts with SIGTERM, so that it can save, and waits until it has ended.
#
#   tpu/stop.sh
#
# What has not ended after STOP_SECONDS is killed. tpu/run.sh goes on from the last checkpoint.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

on_hosts all "$(host_sh stop "$RUN")" || true # What still runs is found below.
state=$(run_state stopped)
case $state in
  running) die "the run $RUN is still running." ;;
  unknown) die "cannot tell whether the run $RUN has ended: not all $HOSTS hosts answer." ;;
esac
say "The run $RUN is not running: $state. The TPU costs until tpu/delete.sh deletes it."
