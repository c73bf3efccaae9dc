#!/usr/bin/env bash
# Shows the log of the run on one host, 0 if none is named.
#
#   tpu/logs.sh [HOST] [flags of tail]
#
#   tpu/logs.sh 0 -f        follows it
#   tpu/logs.sh 3 -n 200    shows more of it
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

host=0
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  host=$1
  shift
fi
((host < HOSTS)) || die "HOST must be smaller than \`HOSTS\` $HOSTS, got $host."
on_hosts "$host" "$(host_sh log "$RUN" "$@")"
