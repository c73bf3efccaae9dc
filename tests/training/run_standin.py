"""Trains the stand-in in a process of its own: WORKDIR [the batch at which to die]."""

import json
import os
import signal
import sys

from nlx import training
from tests.training import standin


class Deadly:
  """An iterator of batches that kills the process, as `kill -9` would, at one of them."""

  def __init__(self, batches, death):
    self.batches, self.death, self.count = batches, death, 0

  def __next__(self):
    self.count += 1
    if self.count == self.death:
      os.kill(os.getpid(), signal.SIGKILL)
    return next(self.batches)

  def __getattr__(self, name):
    return getattr(self.batches, name)


if __name__ == '__main__':
  death = int(sys.argv[2]) if len(sys.argv) > 2 else None
  task = standin.make_task(steps=50)
  task = task._replace(batches=Deadly(task.batches, death))
  settings = training.Settings(steps=50, log_every=3, eval_every=10, checkpoint_every=10)
  state = standin.make_state(task)
  print(json.dumps(training.train(task, settings, state, sys.argv[1])))
