"""Several processes, on one machine or on many, as one run."""

import atexit
import os
import subprocess
import sys

import jax

from nlx import core

LOST = (
  'This process of the run has ended early. If another one is missing or was lost, start all of '
  'them again: training goes on from its last checkpoint.'
)


def start_processes(
  count: int | None = None,
  index: int | None = None,
  coordinator: str | None = None,
  *,
  heartbeat_timeout: int = 100,
) -> None:
  """Joins the processes of a run; before anything asks for the devices.

  If one of them is lost, the others cannot go on, and end too: at once where they hear of it, and
  after the timeout if not. They then exit with an error and say so last.

  Args:
    count: How many processes there are; as the cluster says if None, which Cloud TPU, SLURM and
      others do.
    index: Which of them this is, from 0.
    coordinator: `host:port` of the first, reachable from all.
    heartbeat_timeout: Seconds without a sign of life after which a process is lost.

  Raises:
    ValueError: If not all or none is given, `index` is none of the processes, or the timeout is not
      positive.
    RuntimeError: If there is no cluster to ask, or a process is missing.
  """
  if count is not None and index is not None and coordinator is not None:
    if not 0 <= index < count:
      raise ValueError(f'`index` must be one of the {count} processes, got {index}.')
  elif (count, index, coordinator) != (None, None, None):
    raise ValueError(
      '`count`, `index` and `coordinator` must be given together, or none of them where a cluster '
      f'knows them, got {count}, {index} and {coordinator!r}.'
    )
  core.check_positive('heartbeat_timeout', heartbeat_timeout, 'second')
  _end_as_one()
  jax.distributed.initialize(
    coordinator,
    num_processes=count,
    process_id=index,
    heartbeat_timeout_seconds=heartbeat_timeout,
  )


def _end_as_one() -> None:
  """Ends this process at an error, without waiting for others, and has it said whatever ends it.

  JAX aborts a process that hears of a lost one, so that a witness has to say it: a shell that sees
  its input end before it is told that all is well.
  """
  command = ['sh', '-c', 'read -r well || echo "$0" >&2', LOST]
  witness = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
  atexit.register(witness.communicate, b'\n')
  show = sys.excepthook

  def end(kind, error, traceback):
    show(kind, error, traceback)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)  # At exit JAX waits for the others, who may wait for this process.

  sys.excepthook = end
