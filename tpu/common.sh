#!/usr/bin/env bash
# What the scripts of this folder share: settings, the way to gcloud, states. Sourced, not run.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ENV_FILE=${TPU_ENV:-$HERE/env}
SETTINGS='BACKEND PROJECT_ID ZONE TPU_NAME HOSTS WORKDIR ACCELERATOR_TYPE RUNTIME_VERSION
MACHINE_TYPE IMAGE_FAMILY IMAGE_PROJECT DISK_SIZE SHARED SETUP_COMMAND SPOT EXTRAS CREATE_FLAGS SSH_FLAGS
CREATE_SECONDS STOP_SECONDS GRACE_SECONDS POLL_SECONDS'
exec 3>&1 # For the user, also where the output of a function is captured.

say() { printf '%s\n' "$*" >&3; }

die() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# Reads lines NAME=value; what the environment already has comes first.
load_settings() {
  local line name
  [[ -f $ENV_FILE ]] \
    || die "there is no $ENV_FILE: copy tpu/env.example there, or name another file in TPU_ENV."
  while IFS= read -r line || [[ -n $line ]]; do
    [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
    name=${line%%=*}
    [[ $line == *=* && " ${SETTINGS//$'\n'/ } " == *" $name "* ]] \
      || die "$ENV_FILE: \`$line\` is no setting; tpu/README.md lists them."
    [[ -n ${!name:-} ]] || printf -v "$name" '%s' "${line#*=}"
  done <"$ENV_FILE"
  : "${DRY_RUN:=0}" "${HOSTS:=1}" "${SHARED:=0}" "${SETUP_COMMAND:=}" "${SPOT:=1}"
  : "${EXTRAS:=tpu}" "${CREATE_FLAGS:=}" "${SSH_FLAGS:=}"
  : "${CREATE_SECONDS:=3600}" "${STOP_SECONDS:=300}" "${GRACE_SECONDS:=300}" "${POLL_SECONDS:=30}"
}

need() {
  local name
  for name; do
    [[ -n ${!name:-} ]] || die "the setting \`$name\` is missing: give it in $ENV_FILE."
  done
}

check_settings() {
  local name
  need BACKEND PROJECT_ID ZONE TPU_NAME WORKDIR
  case $BACKEND in
    tpu) need ACCELERATOR_TYPE RUNTIME_VERSION ;;
    gce) need MACHINE_TYPE IMAGE_FAMILY IMAGE_PROJECT DISK_SIZE ;;
    *) die "\`BACKEND\` must be tpu or gce, got \`$BACKEND\`." ;;
  esac
  for name in HOSTS CREATE_SECONDS STOP_SECONDS GRACE_SECONDS; do
    [[ ${!name} =~ ^[1-9][0-9]*$ ]] \
      || die "\`$name\` must be a whole number of at least 1, got \`${!name}\`."
  done
  [[ $POLL_SECONDS =~ ^[0-9]+(\.[0-9]+)?$ ]] \
    || die "\`POLL_SECONDS\` must be a number of seconds, got \`$POLL_SECONDS\`."
  for name in DRY_RUN SHARED SPOT; do
    [[ ${!name} =~ ^[01]$ ]] || die "\`$name\` must be 0 or 1, got \`${!name}\`."
  done
  [[ $TPU_NAME =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] \
    || die "\`TPU_NAME\` must be small letters, digits and -, got \`$TPU_NAME\`."
  [[ $BACKEND == tpu || $HOSTS == 1 ]] \
    || die "\`HOSTS\` must be 1 with BACKEND=gce, where an instance is one host, got $HOSTS."
  case $WORKDIR in
    gs://?*/?*) SHARED=1 ;; # A bucket is there for all hosts, and outlives them.
    /*) ;;
    *) die "\`WORKDIR\` must be an absolute path or gs://BUCKET/FOLDER, got \`$WORKDIR\`." ;;
  esac
  [[ $SHARED == 1 || $HOSTS == 1 ]] || need_shared "$HOSTS hosts share it"
  RUN=$(basename "$WORKDIR")
  [[ $RUN =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] \
    || die "\`WORKDIR\` must end with the name of the run (letters, digits, . _ -), got \`$RUN\`."
  [[ $DRY_RUN == 1 ]] || command -v gcloud >/dev/null || die 'gcloud is not on PATH.'
}

need_shared() {
  die "\`WORKDIR\` must be in a bucket (gs://...), or on a file system that all hosts mount and" \
    "that outlives them, as $1: say so with SHARED=1. Got \`$WORKDIR\`."
}

# Every call of gcloud goes through here; DRY_RUN=1 prints it and calls nothing.
cloud() {
  set -- gcloud compute "$@" "--project=$PROJECT_ID" "--zone=$ZONE" --quiet
  if [[ $DRY_RUN == 1 ]]; then
    say "$(printf '%q ' "$@")"
  else
    "$@" </dev/null
  fi
}

# check_arguments CONFIG FLAGS...: of run.sh and resume.sh.
check_arguments() {
  [[ $# -gt 0 && $1 != -* ]] || die 'CONFIG is missing; --help shows an example.'
  local commit=${COMMIT:-HEAD} argument
  for argument in "${@:2}"; do
    [[ ! $argument =~ ^--?workdir(=|$) ]] \
      || die "the folder of the run is the setting \`WORKDIR\`, not a flag."
  done
  [[ $1 == /* || $1 == ../* ]] \
    || [[ $(git -C "$HERE/.." cat-file -t "$commit:${1%%:*}" 2>/dev/null) == blob ]] \
    || die "CONFIG: the commit $commit has no file ${1%%:*}; COMMIT=... names another."
}

# Prints the commit that is checked out; refuses if there is more than that.
clean_commit() {
  [[ ${ALLOW_DIRTY:-0} == 1 || -z $(git -C "$HERE" status --porcelain) ]] \
    || die 'uncommitted changes would stay behind: commit them, or set ALLOW_DIRTY=1.'
  git -C "$HERE" rev-parse HEAD
}

# describe KIND ASSUMED: prints the state of a resource, MISSING if there is none, or UNKNOWN if
# gcloud cannot tell. A dry run goes on with the state ASSUMED.
describe() {
  local answer words
  case $1 in
    queued-resource)
      words=(tpus queued-resources describe "$TPU_NAME" '--format=value(state.state)')
      ;;
    node) words=(tpus tpu-vm describe "$TPU_NAME" '--format=value(state)') ;;
    *) words=("$1s" describe "$TPU_NAME" '--format=value(status)') ;;
  esac
  if answer=$(cloud "${words[@]}" 2>&1); then
    [[ $DRY_RUN != 1 ]] || answer=$2
    grep -Ex '[A-Z_]+' <<<"$answer" || echo UNKNOWN # Without the warnings of gcloud.
  elif grep -Eq "\) NOT_FOUND: |/$TPU_NAME' was not found" <<<"$answer"; then
    echo MISSING
  else
    echo "$answer" >&2
    echo UNKNOWN
  fi
}

# tpu_state ASSUMED: the state of the whole; where a queued resource is ACTIVE, its node must be
# READY, or the state is that of the node.
tpu_state() {
  local state node
  if [[ $BACKEND == gce ]]; then
    state=$(describe instance "$1")
  else
    state=$(describe queued-resource "$1")
    if [[ $state == ACTIVE ]]; then
      node=$(describe node READY)
      [[ $node == READY ]] || state=$node
    fi
  fi
  echo "$state"
}

# What a state means: ready, waiting (for the next), gone or unknown.
condition() {
  case $1 in
    ACTIVE | RUNNING) echo ready ;;
    SUSPENDED | FAILED | PREEMPTED | TERMINATED | STOPPED | MISSING) echo gone ;;
    UNKNOWN) echo unknown ;;
    *) echo waiting ;; # ACCEPTED, WAITING_FOR_RESOURCES, PROVISIONING, STAGING, SUSPENDING, ...
  esac
}

# on_hosts WORKER COMMAND: runs a command in the home folder of a host, or of all.
on_hosts() {
  local flags
  read -r -a flags <<<"$SSH_FLAGS"
  set -- "$1" "--command=$2" ${flags[@]+"${flags[@]}"}
  if [[ $BACKEND == tpu ]]; then
    cloud tpus tpu-vm ssh "$TPU_NAME" "--worker=$1" "${@:2}"
  else
    cloud ssh "$TPU_NAME" "${@:2}"
  fi
}

# host_sh WORDS: the command that calls host.sh.
host_sh() { printf 'bash nlx/tpu/host.sh %s' "$(printf '%q ' "$@")"; }

# tell_hosts ANSWER COMMAND: runs a command on all hosts, and fails unless each says ANSWER in the
# end: with several workers, gcloud may succeed where one of them failed.
tell_hosts() {
  local line count=0
  while IFS= read -r line; do
    say "$line"
    [[ $line != "nlx "*" $1" ]] || count=$((count + 1))
  done < <(on_hosts all "$2")
  [[ $DRY_RUN == 1 || $count == "$HOSTS" ]] || die "$count of $HOSTS hosts say \`$1\`."
}

# Prints HOST STATE of the run, for each host that answers.
host_states() {
  local ask
  ask=$(host_sh state "$RUN")
  # A new host has no code yet.
  on_hosts all "if [ -f nlx/tpu/host.sh ]; then $ask; else echo nlx \$(hostname) none; fi" \
    | sed -n 's/^nlx //p'
}

# run_state ASSUMED: the run on all hosts as one: failed, lost, running, stopped, none, done; or
# unknown if not all hosts answer.
run_state() {
  local states state
  states=$(host_states) || true
  if [[ $DRY_RUN == 1 ]]; then
    echo "$1"
  elif [[ $(grep -c . <<<"$states") != "$HOSTS" ]]; then
    echo unknown
  else
    for state in failed lost running stopped none 'done'; do
      if grep -Eq " $state( |$)" <<<"$states"; then
        echo "$state"
        return
      fi
    done
  fi
}

# The header of a script is its help.
if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  exit
fi
load_settings
check_settings
