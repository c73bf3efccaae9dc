#!/usr/bin/env bash
# Watches a run until it is done, and brings it back whenever its TPU is taken away.
#
#   tpu/resume.sh CONFIG [flags]
#
#   tpu/resume.sh experiments/configs/lm.py:hope-340m --config.data.corpus='gs://BUCKET/texts/*.txt' \
#     --config.data.tokenizer=gs://BUCKET/tokenizer.json \
#     --config.mesh.fsdp=8 --config.training.accumulation=16
#
# The arguments are those of run.sh. A TPU that is SUSPENDED, FAILED, PREEMPTED or MISSING is
# deleted, created and set up again, with the commit that was checked out at the start, and the run
# goes on from its last checkpoint. The watch ends if a run has failed or was stopped, or a host
# does not answer, while the TPU stays up for GRACE_SECONDS. Ctrl-C ends the watch only.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

check_arguments "$@"
[[ $SHARED == 1 ]] || need_shared 'a folder on the VM goes with the VM'
COMMIT=${COMMIT:-$(clean_commit)}
export COMMIT

start() { "$HERE/setup.sh" && "$HERE/run.sh" "$@"; }

if [[ $DRY_RUN == 1 ]]; then
  "$HERE/delete.sh"
  "$HERE/create.sh"
  start "$@"
  exit
fi

# Ends the watch if the trouble lasts: by then a preemption would have shown.
trouble=''
in_trouble() {
  : "${trouble:=$SECONDS}"
  ((SECONDS - trouble < GRACE_SECONDS)) \
    || die "$1, and $TPU_NAME is up. It costs until tpu/delete.sh deletes it."
}

gone=''
bring_back() {
  : "${gone:=$SECONDS}"
  if "$HERE/delete.sh" && "$HERE/create.sh"; then
    return
  fi
  ((SECONDS - gone < CREATE_SECONDS)) || die "no TPU after $CREATE_SECONDS seconds."
}

trap 'die "The watch has ended; what runs on $TPU_NAME goes on."' INT TERM
last=''
while true; do
  state=$(tpu_state ACTIVE) run=''
  condition=$(condition "$state")
  [[ $condition != ready ]] || run=$(run_state running)
  [[ "$state $run" == "$last" ]] || say "$(date '+%F %T') $TPU_NAME: $state $run"
  last="$state $run"
  case $condition,$run in
    ready,done)
      say "The run $RUN is done. $TPU_NAME costs until tpu/delete.sh deletes it."
      exit
      ;;
    ready,running) trouble='' gone='' ;;
    ready,none)
      if start "$@"; then trouble=''; else in_trouble "the run $RUN cannot be started"; fi
      ;;
    ready,failed | ready,lost | ready,stopped) in_trouble "the run $RUN is $run" ;;
    ready,unknown) in_trouble "not all $HOSTS hosts answer" ;;
    waiting,) trouble='' ;;
    gone,)
      trouble=''
      bring_back
      ;;
  esac
  sleep "$POLL_SECONDS"
done
