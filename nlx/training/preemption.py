"""SIGTERM: a run saves at a step that all its processes agree on, and ends."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):  # Nothing went wrong.
  """A run was told to end, and has saved all that it needs to go on.

  Attributes:
    step: The step after which it ended.
  """

  def __init__(self, step: int):
    super().__init__(f'The run was told to end, and has saved step {step}.')
    self.step = step


class Watch:
  """Notices SIGTERM between steps, from its construction until `close`.

  Where processes work together, JAX does so for all of them, and they stop after the same step.
  Where a process is alone, a second SIGTERM ends it at once.
  """

  def __init__(self):
    self._asked = False
    self._old = None
    alone = not jax.distributed.is_initialized()
    if alone and threading.current_thread() is threading.main_thread():
      self._old = signal.signal(signal.SIGTERM, self._notice)

  def asked(self, step: int) -> bool:
    """Whether the run is to end after this step; every process asks after every step."""
    if jax.distributed.is_initialized():
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked

  def close(self) -> None:
    """Leaves SIGTERM to whoever had it before."""
    if self._old is not None:
      signal.signal(signal.SIGTERM, self._old)
      self._old = None

  def _notice(self, number, frame):
    del number, frame
    self._asked = True
    self.close()
