import json
import os
import socket
import subprocess
import sys

import pytest

from nlx import training
from tests.training import standin
from tests.training.test_loop import ROOT

pytestmark = pytest.mark.multiprocess


def free_port():
  with socket.socket() as server:
    server.bind(('127.0.0.1', 0))
    return server.getsockname()[1]


def train_together(workdir, steps, count, batch=0, model=1):
  """Trains in `count` processes of one device each and returns their summaries."""
  port, command = free_port(), [sys.executable, '-m', 'tests.training.run_processes']
  processes = [
    subprocess.Popen(
      [*command, *map(str, (workdir, steps, port, index, count, batch, model))],
      cwd=ROOT,
      env={**os.environ, 'JAX_NUM_CPU_DEVICES': '1', 'JAX_PLATFORMS': 'cpu'},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(count)
  ]
  outputs = [process.communicate(timeout=120) for process in processes]
  for process, (_, errors) in zip(processes, outputs, strict=True):
    assert process.returncode == 0, errors
  return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def train_alone(workdir, steps=20):
  task = standin.make_task(batch_size=8)
  return training.train(task, training.Settings(steps), standin.make_state(task), workdir)


def test_four_processes_end_together_and_two_go_on(tmp_path):
  """After the same step, when one is told to; to the numbers of one process that never ended."""
  ended = train_together(tmp_path / 'run', steps=50, count=4, batch=4)
  assert ended == [ended[0]] * 4
  assert 4 <= ended[0]['ended'] < 50
  both = train_together(tmp_path / 'run', steps=50, count=2)
  assert both[0]['val_loss'] == both[1]['val_loss']
  alone = train_alone(tmp_path / 'alone', steps=50)
  assert both[0]['val_loss'] == pytest.approx(alone['val_loss'], rel=1e-6)


def test_processes_of_one_model_axis_read_the_same_batches(tmp_path):
  both = train_together(tmp_path / 'run', steps=20, count=2, model=2)
  alone = train_alone(tmp_path / 'alone')
  for summary in both:
    assert summary['tokens'] == alone['tokens']
    assert summary['val_loss'] == pytest.approx(alone['val_loss'], rel=1e-6)
