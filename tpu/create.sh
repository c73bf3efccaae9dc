#!/usr/bin/env bash
# Creates the TPU that the settings describe, and waits until its hosts answer.
#
#   tpu/create.sh
#
# If it is stopped, fails or takes more than CREATE_SECONDS, it says what is left behind. Called
# again, it goes on waiting.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

create() {
  local flags
  read -r -a flags <<<"$CREATE_FLAGS"
  if [[ $BACKEND == tpu ]]; then
    set -- tpus queued-resources create "$TPU_NAME" "--node-id=$TPU_NAME" \
      "--accelerator-type=$ACCELERATOR_TYPE" "--runtime-version=$RUNTIME_VERSION"
    [[ $SPOT != 1 ]] || set -- "$@" --spot
  else
    # The scope lets the host reach a bucket; a VM with a TPU cannot migrate.
    set -- instances create "$TPU_NAME" "--machine-type=$MACHINE_TYPE" \
      "--image-family=$IMAGE_FAMILY" "--image-project=$IMAGE_PROJECT" \
      "--boot-disk-size=$DISK_SIZE" --scopes=cloud-platform --maintenance-policy=TERMINATE
    [[ $SPOT != 1 ]] \
      || set -- "$@" --provisioning-model=SPOT --instance-termination-action=DELETE
  fi
  cloud "$@" ${flags[@]+"${flags[@]}"}
}

# Whether all hosts answer; a wrong HOSTS is found here.
hosts_answer() {
  local count
  [[ $DRY_RUN != 1 ]] || return 0
  count=$(host_states | grep -c .) || true
  ((count <= HOSTS)) || die "\`HOSTS\` is $HOSTS, but $count hosts answer."
  ((count == HOSTS)) || say "$TPU_NAME: $count of $HOSTS hosts answer."
  ((count == HOSTS))
}

wait_until_ready() {
  local state last='' deadline=$((SECONDS + CREATE_SECONDS))
  while true; do
    state=$(tpu_state ACTIVE)
    [[ $state == "$last" ]] || say "$TPU_NAME: $state"
    last=$state
    case $(condition "$state") in
      ready) if hosts_answer; then return; fi ;;
      gone) die "$TPU_NAME is $state." ;;
    esac
    ((SECONDS < deadline)) || die "not ready after $CREATE_SECONDS seconds: $TPU_NAME is $state."
    sleep "$POLL_SECONDS"
  done
}

left_behind() {
  local state
  trap - EXIT INT TERM
  state=$(tpu_state MISSING)
  if [[ $state == MISSING ]]; then
    echo "Nothing named $TPU_NAME is left behind." >&2
  else
    echo "Left behind: $TPU_NAME is $state, and may cost. tpu/delete.sh deletes it." >&2
  fi
}

state=$(tpu_state MISSING)
case $(condition "$state") in
  unknown) die "cannot tell whether $TPU_NAME exists." ;;
  gone) [[ $state == MISSING ]] || die "$TPU_NAME is $state: tpu/delete.sh deletes it." ;;
esac
trap left_behind EXIT
trap 'exit 130' INT TERM
[[ $state != MISSING ]] || create
wait_until_ready
trap - EXIT
say "$TPU_NAME is ready, and costs until tpu/delete.sh deletes it. Next: tpu/setup.sh"
