import json
import math
import multiprocessing
import pathlib
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx import core, parallel, training
from nlx.training import lock
from tests.training import run_standin, standin

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETTINGS = training.Settings(steps=20, log_every=5, eval_every=10, checkpoint_every=10)
NUMBERS = ('steps', 'tokens', 'train_loss', 'val_loss', 'val_bits_per_byte')


def run(workdir, settings=SETTINGS, task=None, seed=0, **arguments):
  task = task or standin.make_task(steps=20)
  return training.train(task, settings, standin.make_state(task, seed), workdir, **arguments)


def rows(workdir, name):
  found = training.read_metrics(workdir / 'metrics.jsonl')
  return [(row['step'], row[name]) for row in found if name in row]


def numbers(summary):
  return {name: summary[name] for name in NUMBERS}


def test_train_learns(tmp_path):
  run(tmp_path)
  losses = [loss for _, loss in rows(tmp_path, 'val_loss')]
  assert losses[-1] < losses[0] < math.log(256)


def test_train_logs_the_first_step_and_every_fifth(tmp_path):
  run(tmp_path)
  assert [step for step, _ in rows(tmp_path, 'train_loss')] == [1, 5, 10, 15, 20]


def test_train_evaluates_at_its_interval_and_at_the_end(tmp_path):
  run(tmp_path, SETTINGS._replace(eval_every=8))
  assert [step for step, _ in rows(tmp_path, 'val_loss')] == [8, 16, 20]


def test_train_counts_tokens_and_separates_compilation(tmp_path):
  summary = run(tmp_path)
  assert (summary['steps'], summary['tokens']) == (20, 20 * 4 * 16)
  assert 0 < summary['compile_seconds'] < summary['wall_seconds']
  assert summary['tokens_per_second'] > 0


def test_train_reports_bits_per_byte_of_each_text(tmp_path):
  task = standin.make_task(steps=20)
  task = task._replace(train_bytes_per_token=2.0, validation_bytes_per_token=4.0)
  summary = run(tmp_path, task=task)
  assert summary['train_bits_per_byte'] == pytest.approx(summary['train_loss'] / math.log(2) / 2)
  assert summary['val_bits_per_byte'] == pytest.approx(summary['val_loss'] / math.log(2) / 4)


def test_train_writes_samples(tmp_path):
  hooks = training.Hooks(sample=lambda params, step: f'sample of {step}')
  run(tmp_path, hooks=hooks)
  assert rows(tmp_path, 'sample') == [(10, 'sample of 10'), (20, 'sample of 20')]


def test_train_shows_progress(tmp_path, capsys):
  run(tmp_path)
  captured = capsys.readouterr()
  assert 'bits/byte' in captured.err and 'tokens/s' in captured.err
  assert 'Step 20: validation' in captured.out


def test_train_on_many_devices_equals_one(tmp_path):
  mesh = parallel.make_mesh()
  task = standin.make_task(steps=20, batch_size=8)
  state = jax.device_put(standin.make_state(task), parallel.replicated(mesh))
  many = training.train(
    task, SETTINGS, state, tmp_path / 'many', sharding=parallel.batch_sharding(mesh)
  )
  one = run(tmp_path / 'one', task=standin.make_task(steps=20, batch_size=8))
  assert many['val_loss'] == pytest.approx(one['val_loss'], rel=1e-5)


def test_finished_run_gives_the_same_summary_and_no_new_rows(tmp_path):
  first = run(tmp_path)
  before = training.read_metrics(tmp_path / 'metrics.jsonl')
  second = run(tmp_path)
  assert numbers(first) == numbers(second)
  assert training.read_metrics(tmp_path / 'metrics.jsonl') == before


def test_wall_seconds_add_up_over_resumes(tmp_path):
  first = run(tmp_path, task=standin.make_task(steps=20), settings=SETTINGS._replace(steps=10))
  second = run(tmp_path)
  assert second['wall_seconds'] > first['wall_seconds']
  assert second['compile_seconds'] > first['compile_seconds']


def test_run_that_is_shortened_to_its_checkpoint_leaves_its_last_rows(tmp_path):
  killed = SETTINGS._replace(steps=20, eval_every=20)
  with pytest.raises(training.NonFiniteError):
    run(tmp_path, killed, task=failing_task(12))
  run(tmp_path, killed._replace(steps=10))
  assert [step for step, _ in rows(tmp_path, 'val_loss')] == [10]


def test_fewer_steps_than_the_checkpoint_are_an_error(tmp_path):
  run(tmp_path)
  hooks = training.Hooks(begin=lambda: pytest.fail('nothing begins'))
  with pytest.raises(ValueError, match='`steps` must not be below the 20 steps'):
    run(tmp_path, SETTINGS._replace(steps=10), hooks=hooks)


def test_second_run_in_a_folder_is_refused_while_the_first_is_at_work(tmp_path):
  with lock.lock(tmp_path), pytest.raises(ValueError, match='another process trains there'):
    run(tmp_path)
  run(tmp_path)


def test_validation_that_can_be_read_only_once_is_an_error(tmp_path):
  task = standin.make_task()
  task = task._replace(validation=iter(list(task.validation)))
  with pytest.raises(ValueError, match='`task.validation` must be read at every evaluation'):
    training.train(task, training.Settings(1), standin.make_state(task), tmp_path)


def test_setting_out_of_range_is_an_error(tmp_path):
  with pytest.raises(ValueError, match='`log_every` must be .* got 0'):
    run(tmp_path, SETTINGS._replace(log_every=0))


def run_in_a_process(workdir, *death):
  """Returns how the process ended, and what it printed."""
  processes = multiprocessing.get_context('forkserver')
  processes.set_forkserver_preload([run_standin.__name__])  # Imports take longer than training.
  output = workdir.with_suffix('.txt')
  process = processes.Process(target=run_standin.main, args=(output, workdir, *death), daemon=True)
  process.start()
  process.join(timeout=120)
  return process.exitcode, output.read_text().splitlines()


def test_killed_run_ends_with_the_same_numbers_bit_for_bit(tmp_path):
  # Before the first checkpoint, while one is being saved, and between two.
  for death in (5, 12, 27):
    code, _ = run_in_a_process(tmp_path / 'killed', death, 'SIGKILL')
    assert code == -signal.SIGKILL
  # Told to end between two checkpoints, and then where it saves anyway.
  for batch, last_digit in ((7, 7), (3, 0)):
    code, lines = run_in_a_process(tmp_path / 'killed', batch, 'SIGTERM')
    assert code == 0
    assert json.loads(lines[-1])['ended'] % 10 == last_digit
  # That step was evaluated when the run went on: not to be told twice.
  code, _ = run_in_a_process(tmp_path / 'killed', 3, 'SIGKILL')
  assert code == -signal.SIGKILL
  summaries = []
  for name in ('whole', 'killed'):
    code, lines = run_in_a_process(tmp_path / name)
    assert code == 0
    summaries.append(json.loads(lines[-1]))
  assert any('Resuming from step' in line for line in lines)
  assert numbers(summaries[0]) == numbers(summaries[1])
  for name in ('train_loss', 'grad_norm', 'val_loss'):
    assert rows(tmp_path / 'whole', name) == rows(tmp_path / 'killed', name)


class Killed(BaseException):
  """An end that nothing answers to."""


def test_killed_run_in_a_bucket_ends_with_the_same_rows(tmp_path, bucket, monkeypatch):
  """The rows since the last checkpoint, of step 15, are lost and written again."""
  workdir, settings = core.as_path(bucket) / 'run', SETTINGS._replace(eval_every=15)

  def kill(params, step):
    monkeypatch.setattr(core.Mirror, 'publish', lambda mirror: None)
    raise Killed

  with monkeypatch.context() as monkeypatch, pytest.raises(Killed):
    run(workdir, settings, hooks=training.Hooks(sample=kill))
  assert [step for step, _ in rows(workdir, 'train_loss')] == [1, 5, 10]
  found, expected = run(workdir, settings), run(tmp_path, settings)
  assert numbers(found) == numbers(expected)
  for name in ('train_loss', 'grad_norm', 'val_loss'):
    assert rows(workdir, name) == rows(tmp_path, name)


class Masked:
  """Batches without a valid token from the one with this index on."""

  def __init__(self, batches, at):
    self.batches, self.at, self.index = batches, at, 0

  def __next__(self):
    self.index += 1
    batch = next(self.batches)
    return {**batch, 'mask': batch['mask'] * (self.index <= self.at)}

  def get_state(self):
    return self.batches.get_state()


def failing_task(at):
  """A task whose loss is NaN from the batch with this index on."""
  task = standin.make_task(steps=20)

  def loss_fn(params, batch):
    loss_sum, count = standin.loss_fn(params, batch)
    return jnp.where(batch['mask'][0, 0] == 0, jnp.nan, loss_sum), count

  return task._replace(loss_fn=loss_fn, batches=Masked(task.batches, at))


def diagnose(params, batch):
  broken = batch['mask'].sum() == 0
  fine = np.ones(4)
  return {'attention': fine, 'cms': np.where(broken, [1, 1, np.inf, np.nan], 1), 'slow': fine}


def test_failure_names_the_step_and_the_level(tmp_path):
  message = r"Step 13 is not finite \(loss nan.*first in level 'cms', at chunk 2"
  with pytest.raises(training.NonFiniteError, match=message) as error:
    run(tmp_path, task=failing_task(12), hooks=training.Hooks(diagnose=diagnose))
  assert (error.value.step, error.value.level) == (13, 'cms')


def test_failure_keeps_the_last_good_checkpoint(tmp_path):
  with pytest.raises(training.NonFiniteError, match='The checkpoint of step 10 is kept'):
    run(tmp_path, task=failing_task(12))
  checkpoints = training.Checkpoints(tmp_path / 'checkpoints', read_only=True)
  assert checkpoints.steps() == [10]
  params = checkpoints.restore_params(standin.init_params())
  checkpoints.close()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_failure_at_the_first_step_says_that_there_is_no_checkpoint(tmp_path):
  with pytest.raises(training.NonFiniteError, match='Step 1 .*There is no checkpoint'):
    run(tmp_path, task=failing_task(0))


def test_validation_that_is_not_finite_is_a_failure_and_is_not_saved(tmp_path):
  task = standin.make_task(steps=20)
  spoiled = [{**batch, 'mask': batch['mask'] * np.nan} for batch in task.validation]
  with pytest.raises(
    training.NonFiniteError, match='validation loss after step 10 .*no checkpoint'
  ):
    run(tmp_path, task=task._replace(validation=spoiled))
  checkpoints = training.Checkpoints(tmp_path / 'checkpoints', read_only=True)
  assert checkpoints.steps() == [] and not rows(tmp_path, 'val_loss')
  checkpoints.close()


def test_failure_outside_of_every_level_says_so(tmp_path):
  hooks = training.Hooks(diagnose=lambda params, batch: {'cms': np.ones(4)})
  with pytest.raises(training.NonFiniteError, match=r'states of all levels \(cms\) are finite'):
    run(tmp_path, task=failing_task(12), hooks=hooks)


def test_first_non_finite_prefers_the_earliest_chunk_then_the_fastest_level():
  nan = np.nan
  sizes = {'fast': [1, 1, nan], 'middle': [1, nan, nan], 'slow': [1, nan, nan]}
  assert training.first_non_finite(sizes) == ('middle', 1)
