#!/usr/bin/env bash
# The side of the hosts: the other scripts call it by ssh. Its answers are lines `nlx HOST ANSWER`.
#
#   host.sh setup EXTRAS COMMAND
#   host.sh start RUN STOP_SECONDS FLAGS...
#   host.sh state|stop RUN
#   host.sh log RUN [flags of tail]
#
# ~/nlx holds the code; ~/nlx-runs/RUN the flags, the log and, once it has ended, the exit code.
set -euo pipefail
cd

answer() { echo "nlx $(hostname) $*"; }

setup() {
  PATH="$HOME/.local/bin:$PATH"
  command -v make >/dev/null || { sudo apt-get update -qq && sudo apt-get install -qq make; }
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  uv python install 3.12 # The images have an older one.
  make -C nlx setup PYTHON="$(uv python find 3.12)" EXTRAS="$1"
  [[ -z ${2:-} ]] || bash -c "$2"
  answer ready
}

state() {
  local folder="nlx-runs/$1"
  case $(systemctl show --property=ActiveState --value "nlx-$1") in
    active | activating | deactivating | reloading) echo running ;;
    *)
      case $(cat "$folder/exit" 2>/dev/null) in
        0) echo 'done' ;;
        143) echo stopped ;;
        ?*) echo "failed $(cat "$folder/exit")" ;;
        *) if [[ -d $folder ]]; then echo lost; else echo none; fi ;;
      esac
      ;;
  esac
}

start() {
  local folder="nlx-runs/$1"
  [[ $(state "$1") != running ]] || { answer running; exit 1; }
  mkdir -p "$folder"
  rm -f "$folder/exit"
  printf '%s\0' "${@:3}" >"$folder/flags"
  # SIGTERM goes to `work` alone, which passes it on once; the network outlives the run.
  sudo systemd-run --quiet --collect --unit="nlx-$1" --uid="$(id -un)" \
    --property=KillMode=mixed --property=TimeoutStopSec="$2" \
    --property=After=network-online.target bash "$PWD/nlx/tpu/host.sh" work "$1"
  answer started
}

# The service itself. A run that SIGTERM ended leaves the exit code 143, also if it saved and
# returned 0: it is not done.
work() {
  local folder="$PWD/nlx-runs/$1" flags child code=0 signal='' stopped=''
  mapfile -d '' flags <"$folder/flags"
  cd nlx
  echo "$(date '+%F %T') experiments.train ${flags[*]@Q}" >>"$folder/log"
  .venv/bin/python -m experiments.train "${flags[@]}" >>"$folder/log" 2>&1 &
  child=$!
  trap 'signal=1 stopped=1; kill -TERM "$child" || true' TERM
  while true; do
    signal='' code=0
    wait "$child" || code=$?
    [[ -n $signal ]] || break # Else it is the wait that has ended.
  done
  [[ $code != 0 || -z $stopped ]] || code=143
  echo "$code" >"$folder/exit.new"
  mv "$folder/exit.new" "$folder/exit"
}

stop() {
  [[ $(state "$1") != running ]] || sudo systemctl stop "nlx-$1"
  answer "$(state "$1")"
}

case ${1:-} in
  setup | start | work | stop) "$@" ;;
  state) answer "$(state "$2")" ;;
  log) exec tail "${@:3}" "nlx-runs/$2/log" ;;
  *) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
