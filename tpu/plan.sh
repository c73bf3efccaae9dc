#!/usr/bin/env bash
# Compiles a training step for a TPU slice without a TPU: does it fit, and how long does it take?
#
#   tpu/plan.sh CONFIG TOPOLOGY [flags]
#
#   tpu/plan.sh experiments/configs/lm.py:hope-340m v5e:16x16
#   tpu/plan.sh experiments/configs/lm.py:hope-1b v5p:8x8x8 --config.data.batch_size=256
#
# The flags are those of experiments.plan and experiments.train. It takes no settings, no gcloud and
# no text, but the compiler of TPUs, which the first call installs into .venv-tpu, or another VENV.
# TOPOLOGY local, with .venv, plans for the devices of this machine. The exit code is 0 if the step
# fits. DRY_RUN=1 prints the calls and makes none.
set -euo pipefail

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  exit
fi
for argument in "${1:--}" "${2:--}"; do
  if [[ $argument == -* ]]; then
    echo 'plan.sh: CONFIG or TOPOLOGY is missing; --help shows an example.' >&2
    exit 2
  fi
done
call() {
  if [[ ${DRY_RUN:-0} == 1 ]]; then printf '%q ' "$@" && echo; else "$@"; fi
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ $2 == local ]]; then
  : "${VENV:=.venv}" "${EXTRAS:=dev}"
fi
: "${VENV:=.venv-tpu}" "${EXTRAS:=dev,tpu}"
call make --no-print-directory setup "VENV=$VENV" "EXTRAS=$EXTRAS" >&2
call "$VENV/bin/python" -m experiments.plan "--config=$1" "--topology=$2" "${@:3}"
