#!/usr/bin/env bash
# Copies the commit that is checked out to all hosts, and installs it there under Python 3.12.
#
#   tpu/setup.sh
#
# Refuses if there are uncommitted changes; with ALLOW_DIRTY=1 they stay behind. COMMIT=... copies
# another commit. What was in the folder nlx of the hosts is replaced.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

copy() {
  local flags
  read -r -a flags <<<"$SSH_FLAGS"
  set -- "$1" "$TPU_NAME:$2" ${flags[@]+"${flags[@]}"}
  if [[ $BACKEND == tpu ]]; then
    cloud tpus tpu-vm scp "$@" --worker=all
  else
    cloud scp "$@"
  fi
}

commit=${COMMIT:-$(clean_commit)}
archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
git -C "$HERE/.." archive --format=tar.gz --output="$archive" "$commit"
say "Copying commit $commit."
copy "$archive" nlx.tar.gz
tell_hosts ready "if systemctl is-active --quiet 'nlx-*'; then \
echo 'A run is active here: stop it first.' >&2; exit 1; fi; \
rm -rf nlx && mkdir nlx && tar -xzf nlx.tar.gz -C nlx && $(host_sh setup "$EXTRAS" "$SETUP_COMMAND")"
say 'Next: tpu/run.sh CONFIG [flags]'
