#!/usr/bin/env bash
# Starts a run on all hosts, or goes on with one that ended, and leaves it there.
#
#   tpu/run.sh CONFIG [flags]
#
#   tpu/run.sh experiments/configs/lm.py:hope-340m --config.data.corpus='gs://BUCKET/texts/*.txt' \
#     --config.data.tokenizer=gs://BUCKET/tokenizer.json \
#     --config.mesh.fsdp=8 --config.training.accumulation=16
#
# The folder of the run is the setting WORKDIR, and its last part is the name of the run. The flags
# are those of experiments.train, with paths as the hosts see them, or in a bucket.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

check_arguments "$@"

case $(run_state none) in
  running) die "the run $RUN is running already." ;;
  unknown) die "cannot tell whether the run $RUN is running: not all $HOSTS hosts answer." ;;
esac
flags=("--config=$1" "--workdir=$WORKDIR")
((HOSTS == 1)) || flags+=(--config.processes.count=0) # As the cluster says.
tell_hosts started "$(host_sh start "$RUN" "$STOP_SECONDS" "${flags[@]}" "${@:2}")"
say 'Next: tpu/logs.sh, tpu/status.sh, tpu/stop.sh, or tpu/resume.sh with the same arguments.'
