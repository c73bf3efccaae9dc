import json
import os
import subprocess
import sys

import pytest

from experiments import language_model
from experiments.configs import lm
from nlx import training
from tests.training.test_loop import ROOT

FILES = {'summary.json', 'config.json', 'metrics.jsonl', 'samples.txt', 'loss.png', 'levels.png'}


def call(module, *arguments, cache):
  """Runs a main in a process of its own and returns what it wrote to its standard output."""
  result = subprocess.run(
    [sys.executable, '-m', f'experiments.{module}', *arguments],
    cwd=ROOT,
    env={**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(cache)},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert result.returncode == 0, result.stderr
  return result.stdout


@pytest.fixture(scope='module')
def finished(tmp_path_factory, request):
  """A finished smoke run: its folder and what it printed."""
  workdir = tmp_path_factory.mktemp('run') / 'hope'
  output = call(
    'train',
    '--config=experiments/configs/lm.py:hope-smoke',
    '--config.mesh.cpu_devices=2',
    f'--workdir={workdir}',
    cache=request.config.cache.mkdir('jax-mains'),
  )
  return workdir, output


def first_loss(workdir):
  return training.read_metrics(workdir / 'metrics.jsonl')[0]['train_loss']


def test_train_leaves_its_results_in_the_folder(finished):
  workdir, _ = finished
  assert {path.name for path in workdir.iterdir()} >= FILES


def test_train_prints_the_levels_and_ends_with_the_summary(finished):
  workdir, output = finished
  lines = output.splitlines()
  assert lines[0].startswith('level')
  assert json.loads(lines[-1]) == json.loads((workdir / 'summary.json').read_text())


def test_summary_tells_what_was_run(finished):
  summary = json.loads((finished[0] / 'summary.json').read_text())
  assert (summary['name'], summary['steps'], summary['tokens']) == ('hope-smoke', 4, 4 * 2 * 64)
  assert summary['device'].startswith('2 x ')
  assert set(summary['versions']) == {'python', 'jax', 'flax', 'optax'}
  assert summary['parameters'] > 0 and 0 < summary['val_bits_per_byte'] < 10


def test_samples_begin_with_the_prompt(finished):
  workdir, _ = finished
  assert (workdir / 'samples.txt').read_text().startswith('--- step 2\nThe ')


def test_generate_continues_the_prompt(finished, request):
  cache = request.config.cache.mkdir('jax-mains')
  text = call(
    'generate', f'--workdir={finished[0]}', '--prompt=Our ', '--max_tokens=16', cache=cache
  )
  assert text.startswith('Our ') and len(text) > len('Our \n')


def test_hope_smoke_learns(finished):
  workdir, _ = finished
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['val_loss'] < first_loss(workdir)


def test_transformer_smoke_learns(tmp_path):
  config = lm.get_config('transformer-smoke')
  config.data.batch_size = 8  # As many as there are devices.
  assert language_model.run(config, tmp_path)['val_loss'] < first_loss(tmp_path)


def test_batch_that_does_not_divide_over_devices_is_an_error(tmp_path):
  config = lm.get_config('hope-smoke')
  config.data.batch_size = 3
  with pytest.raises(ValueError, match='`data.batch_size` must be a multiple of .* got 3'):
    language_model.run(config, tmp_path)
