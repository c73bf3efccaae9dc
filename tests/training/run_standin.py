"""Trains the stand-in in a process of its own, which may send itself a signal."""

import contextlib
import json
import os
import signal
import time

from nlx import training
from tests.training import standin


class Signalling:
  """An iterator of batches that sends its process a signal at one of them."""

  def __init__(self, batches, batch, name):
    self.batches, self.batch, self.signal, self.count = batches, batch, signal.Signals[name], 0

  def __next__(self):
    self.count += 1
    if self.count == self.batch:
      os.kill(os.getpid(), self.signal)
    if self.batch and self.count >= self.batch and self.signal == signal.SIGTERM:
      time.sleep(0.2)  # Steps take no time here, but processes take some to tell each other.
    return next(self.batches)

  def __getattr__(self, name):
    return getattr(self.batches, name)


def main(output, workdir, batch=0, name='SIGKILL'):
  """Prints into the file `output`; the signal of this name comes at this batch, unless 0."""
  task = standin.make_task(steps=50)
  task = task._replace(batches=Signalling(task.batches, batch, name))
  settings = training.Settings(steps=50, log_every=3, eval_every=10, checkpoint_every=10)
  with output.open('w') as file, contextlib.redirect_stdout(file):
    try:
      print(json.dumps(training.train(task, settings, standin.make_state(task), workdir)))
    except training.Preempted as end:
      print(json.dumps({'ended': end.step}))
