"""The mains in processes of their own: one run of HOPE, and the results that are made of it."""

import json
import os
import shutil
import subprocess
import sys

import jax.numpy as jnp
import pytest

from experiments import common, language_model
from experiments.configs import lm
from experiments.reporting import page, provenance, runs
from nlx import training
from tests.training.test_loop import ROOT

NOTES = provenance.RESULTS / 'notes.md'
FILES = {'summary.json', 'config.json', 'metrics.jsonl', 'samples.txt', 'loss.png', 'levels.png'}


@pytest.fixture(scope='module')
def cache(request):
  """A folder of compiled programs, small ones too, that the processes share."""
  return request.config.cache.mkdir('jax-mains')


def call(module, *arguments, cache):
  """Runs a main in a process of its own and returns what it wrote to its standard output."""
  settings = {
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  result = subprocess.run(
    [sys.executable, '-m', f'experiments.{module}', *arguments],
    cwd=ROOT,
    env={**os.environ, **settings},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert result.returncode == 0, result.stderr
  return result.stdout


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Of all that the mains make in this file."""
  return tmp_path_factory.mktemp('results')


@pytest.fixture(scope='module')
def finished(folder, cache):
  """A finished smoke run: its folder and what it printed."""
  workdir = runs.Run('hope-smoke', 0).workdir(folder / 'runs')
  output = call(
    'train',
    '--config=experiments/configs/lm.py:hope-smoke',
    '--config.mesh.cpu_devices=2',
    '--config.mesh.fsdp=2',
    f'--workdir={workdir}',
    cache=cache,
  )
  return workdir, output


@pytest.fixture(scope='module')
def results(finished, folder, cache):
  """What `experiments.results` makes of that run and of the one that it has to add."""
  (finished[0] / 'commit').write_text('of a test\n')
  call('results', '--smoke', '--seeds=0', f'--folder={folder}', cache=cache)
  return folder


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


def test_model_of_a_run_is_loaded_with_what_it_learned(finished):
  workdir, _ = finished
  model, tokenizer = common.load(workdir)
  text = tokenizer.encode('The import statement combines two operations; it searches for the name')
  tokens = jnp.asarray(text)[None]
  loss, count = model.loss(tokens[:, :-1], tokens[:, 1:], jnp.ones((1, len(text) - 1)))
  fresh = common.create(common.read_config(workdir)).model
  assert loss < fresh.loss(tokens[:, :-1], tokens[:, 1:], jnp.ones((1, len(text) - 1)))[0]


def test_generate_goes_on_in_another_process_as_if_it_had_not_ended(finished, cache, tmp_path):
  """Equal files: of the last token, of all that was learned, and of the choices to come."""

  def generate(*arguments):
    return call('generate', f'--workdir={finished[0]}', *arguments, cache=cache)

  whole, parts = (f'--session={tmp_path / name}' for name in ('whole', 'parts'))
  text = generate(whole, '--prompt=Our ', '--max_tokens=16')
  assert text.startswith('Our ') and len(text) > len('Our \n')
  generate(parts, '--prompt=Our ', '--max_tokens=7')
  assert not generate(parts, '--max_tokens=9').startswith('Our ')
  assert (tmp_path / 'parts').read_bytes() == (tmp_path / 'whole').read_bytes()


def test_hope_smoke_learns(finished):
  workdir, _ = finished
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['val_loss'] < first_loss(workdir)


def test_transformer_smoke_learns(results):
  workdir = results / 'runs' / 'transformer-smoke-seed0'
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['val_loss'] < first_loss(workdir)


@pytest.mark.parametrize(
  ('section', 'name', 'value', 'message'),
  [
    ('data', 'batch_size', 3, '`data.batch_size` must be a multiple of .* got 3'),
    ('sample', 'prompt', '', '`prompt` must hold at least one token'),
    ('data', 'digest', 'another', "`data.digest` is 'another', but that of 'documentation' is"),
  ],
)
def test_run_that_is_refused_leaves_no_configuration(tmp_path, section, name, value, message):
  config = lm.get_config('hope-smoke')
  config.data.batch_size = 8  # One sequence for each device.
  config[section][name] = value
  with pytest.raises(ValueError, match=message):
    language_model.run(config, tmp_path)
  assert not (tmp_path / 'config.json').exists()


# ----- results


def language_models(results):
  return json.loads((results / 'results' / 'language_model.json').read_text())


def test_smoke_has_a_row_for_each_model(results):
  rows = language_models(results)['rows']
  assert [row['model'] for row in rows] == ['hope-smoke', 'transformer-smoke']
  assert {name for row in rows for name in row} == {'model', 'seed', *runs.FIELDS}


def test_smoke_has_a_row_for_each_learning_rate(results):
  rows = json.loads((results / 'results' / 'learning_rates.json').read_text())['rows']
  assert [row['learning_rate'] for row in rows] == 2 * list(runs.RATES['smoke'])


def test_results_file_says_where_it_comes_from(results):
  assert {'command', 'versions', 'hardware', 'commit'} <= set(language_models(results))


def test_finished_run_is_not_repeated(results):
  summary = results / 'runs' / 'hope-smoke-seed0' / 'summary.json'
  before = summary.stat().st_mtime_ns
  runs.train(runs.Run('hope-smoke', 0), results / 'runs')
  assert summary.stat().st_mtime_ns == before


def test_finished_run_of_another_configuration_is_an_error(results, tmp_path):
  shutil.copytree(results / 'runs' / 'hope-smoke-seed0', tmp_path / 'hope-smoke-seed1')
  with pytest.raises(ValueError, match='was made with another `seed`'):
    runs.train(runs.Run('hope-smoke', 1), tmp_path)


def test_report_is_the_same_again(results):
  assert (results / 'RESULTS.md').read_text() == page.page(results / 'results', NOTES)


def test_report_has_the_notes_and_the_numbers(results):
  text = (results / 'RESULTS.md').read_text()
  assert NOTES.read_text().strip() in text
  bits = language_models(results)['rows'][0]['val_bits_per_byte']
  assert f'{bits:.3f}' in text
