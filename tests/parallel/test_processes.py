import os
import subprocess
import sys

import pytest

from nlx import parallel
from nlx.parallel import processes
from tests.training.test_loop import ROOT
from tests.training.test_processes import free_port


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'count': 2}, '`count`, `index` and `coordinator` must be given together'),
    ({'coordinator': 'host:1'}, "must be given together.*got None, None and 'host:1'"),
    ({'count': 2, 'index': 2, 'coordinator': 'host:1'}, '`index` must be one of the 2 processes'),
    (
      {'heartbeat_timeout': 0},
      '`heartbeat_timeout` must be an integer of at least 1 second, got 0',
    ),
  ],
)
def test_half_of_a_cluster_is_an_error(arguments, message):
  """Before any waiting; tests/training/test_processes.py has whole ones."""
  with pytest.raises(ValueError, match=message):
    parallel.start_processes(**arguments)


@pytest.mark.multiprocess
@pytest.mark.parametrize('victim', [0, 1])
def test_lost_process_ends_the_others(victim):
  """Whether it is the one that the others ask or not; with words on how to go on."""
  port, command = free_port(), [sys.executable, '-m', 'tests.parallel.run_processes']
  started = [
    subprocess.Popen(
      [*command, *map(str, (port, index, victim))],
      cwd=ROOT,
      env={**os.environ, 'JAX_NUM_CPU_DEVICES': '1', 'JAX_PLATFORMS': 'cpu'},
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  errors = [process.communicate(timeout=100)[1] for process in started]
  assert started[victim].returncode == -9
  assert started[1 - victim].returncode not in (0, -9)
  assert errors[1 - victim].rstrip().endswith(processes.LOST)
