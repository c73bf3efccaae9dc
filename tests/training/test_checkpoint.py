import json
import logging
import resource

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlx import core, parallel, training
from tests.training import standin

TX = optax.adam(0.1)

# Writes that fail call back into an event loop of Orbax that is closed by then.
late_callbacks = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


def make_state(step=0, seed=0, width=16):
  params = standin.init_params(seed, width)
  state = training.init_state(params, TX, key=jax.random.key(seed))
  return state._replace(step=jnp.int32(step))


def save(folder, steps, keep=3, **shape):
  checkpoints = training.Checkpoints(folder, keep=keep)
  for step in steps:
    checkpoints.save(make_state(step, seed=step, **shape), {'next_index': step}, {'note': 'hello'})
  checkpoints.close()


def restore(folder, like):
  checkpoints = training.Checkpoints(folder)
  try:
    return checkpoints.restore(like)
  finally:
    checkpoints.close()


def numbers(state):
  return jax.tree.leaves(jax.device_get(state._replace(key=jax.random.key_data(state.key))))


@pytest.fixture
def quiet(monkeypatch):
  """Orbax logs the failures that a test provokes."""
  monkeypatch.setattr(logging.getLogger('absl'), 'disabled', True)


@pytest.fixture
def small_files():
  """Makes writes beyond 50 KB per file fail, as on a full disk."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

  def limit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))

  yield limit
  resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_checkpoint_round_trips_every_bit(tmp_path):
  save(tmp_path, [7])
  restored = restore(tmp_path, make_state())
  for found, expected in zip(numbers(restored.state), numbers(make_state(7, seed=7)), strict=True):
    np.testing.assert_array_equal(found, expected)


def test_checkpoint_keeps_the_kind_of_key(tmp_path):
  save(tmp_path, [7])
  key = restore(tmp_path, make_state()).state.key
  assert jax.random.bits(key) == jax.random.bits(jax.random.key(7))


def test_checkpoint_round_trips_arrays_without_elements(tmp_path):
  params = {**standin.init_params(), 'empty': jnp.zeros((2, 0))}
  state = training.init_state(params, TX, key=jax.random.key(0))
  checkpoints = training.Checkpoints(tmp_path)
  checkpoints.save(state, {}, {})
  checkpoints.close()
  assert restore(tmp_path, state).state.params['empty'].shape == (2, 0)


def test_checkpoint_holds_data_and_notes(tmp_path):
  save(tmp_path, [7])
  restored = restore(tmp_path, make_state())
  assert (restored.data, restored.meta) == ({'next_index': 7}, {'note': 'hello'})


def test_checkpoint_describes_its_shapes_in_json(tmp_path):
  save(tmp_path, [7])
  notes = json.loads((tmp_path / '7' / 'meta' / 'metadata').read_text())
  assert notes['shapes']['params']["['embed']"] == [[256, 16], 'float32']


def test_restore_takes_the_latest(tmp_path):
  save(tmp_path, [1, 3, 2])
  assert int(restore(tmp_path, make_state()).state.step) == 3


def test_restore_of_an_empty_folder_is_none(tmp_path):
  assert restore(tmp_path, make_state()) is None


def test_restore_lays_arrays_out_as_asked(tmp_path):
  save(tmp_path, [1])
  everywhere = parallel.replicated(parallel.make_mesh())
  restored = restore(tmp_path, jax.device_put(make_state(), everywhere))
  assert restored.state.params['embed'].sharding == everywhere


def test_parameters_can_be_restored_alone(tmp_path):
  save(tmp_path, [4])
  checkpoints = training.Checkpoints(tmp_path, read_only=True)
  assert checkpoints.restored_step is None
  params = checkpoints.restore_params(standin.init_params())
  checkpoints.close()
  np.testing.assert_array_equal(params['embed'], standin.init_params(4)['embed'])
  assert checkpoints.restored_step == 4


def test_parameters_of_an_empty_folder_are_an_error(tmp_path):
  checkpoints = training.Checkpoints(tmp_path, read_only=True)
  with pytest.raises(training.CheckpointError, match='There is no checkpoint in'):
    checkpoints.restore_params(standin.init_params())
  checkpoints.close()


def test_only_the_last_checkpoints_are_kept(tmp_path):
  save(tmp_path, [1, 2, 3, 4], keep=2)
  checkpoints = training.Checkpoints(tmp_path, read_only=True)
  assert checkpoints.steps() == [3, 4]
  checkpoints.close()


def test_step_that_was_saved_is_not_saved_again(tmp_path):
  checkpoints = training.Checkpoints(tmp_path)
  checkpoints.save(make_state(1), {}, {})
  with pytest.raises(training.CheckpointError, match='there is a checkpoint of step 1 already'):
    checkpoints.save(make_state(1), {}, {})
  checkpoints.close()


def test_later_changes_do_not_reach_a_checkpoint_being_saved(tmp_path):
  checkpoints = training.Checkpoints(tmp_path)
  step = training.make_step(standin.loss_fn, TX)
  state, batch = make_state(), next(standin.make_task().batches)
  expected = np.array(state.params['embed'])
  checkpoints.save(state, {}, {})
  for _ in range(20):
    state, _ = step(state, batch)
  checkpoints.close()
  found = restore(tmp_path, make_state()).state.params['embed']
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
  ('like', 'message'),
  [
    (make_state(width=32), r"leaf \['embed'\] is float32\[256, 16\].*but float32\[256, 32\] here"),
    (
      make_state()._replace(params={**standin.init_params(), 'new': jnp.zeros(2)}),
      r"leaf \['new'\] is missing in the checkpoint, but float32\[2\] here",
    ),
    (
      make_state()._replace(params={'embed': standin.init_params()['embed']}),
      r"leaf \['layer'\]\['bias'\] is float32\[256\] in the checkpoint, but missing here",
    ),
    (
      make_state()._replace(opt_state=optax.sgd(0.1, momentum=0.9).init(standin.init_params())),
      r"leaf \['opt_state'\]\[0\].trace.* is missing in the checkpoint",
    ),
  ],
  ids=['shape', 'new leaf', 'old leaf', 'optimizer'],
)
def test_checkpoint_of_another_shape_is_an_error(tmp_path, like, message):
  save(tmp_path, [5])
  with pytest.raises(ValueError, match='Checkpoint 5 in .* does not fit: ' + message):
    restore(tmp_path, like)


@late_callbacks
def test_failed_save_is_an_error_that_names_the_folder(tmp_path, quiet, small_files):
  checkpoints = training.Checkpoints(tmp_path / 'run')
  small_files()
  with pytest.raises(training.CheckpointError, match='could not be written to .*run; is the disk'):
    checkpoints.save(make_state(1, width=512), {}, {})
    checkpoints.wait()
  checkpoints.close()


@late_callbacks
def test_failed_save_keeps_older_checkpoints(tmp_path, quiet, small_files):
  save(tmp_path, [1], keep=1, width=512)
  checkpoints = training.Checkpoints(tmp_path, keep=1)
  small_files()
  with pytest.raises(training.CheckpointError, match=r'Complete checkpoints: \[1\]'):
    checkpoints.save(make_state(2, width=512), {}, {})
    checkpoints.wait()
  checkpoints.close()
  assert int(restore(tmp_path, make_state(width=512)).state.step) == 1


def damage(folder, step):
  """Cuts every file of the parameters short."""
  for path in (folder / str(step) / 'params').rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:10])


def test_restore_goes_back_to_the_latest_checkpoint_that_can_be_read(tmp_path, quiet):
  save(tmp_path, [1, 2])
  damage(tmp_path, 2)
  restored = restore(tmp_path, make_state())
  assert int(restored.state.step) == 1
  assert list(restored.unreadable) == [2]


def test_unreadable_checkpoint_is_replaced_by_the_next_save(tmp_path, quiet):
  save(tmp_path, [1, 2])
  damage(tmp_path, 2)
  checkpoints = training.Checkpoints(tmp_path)
  checkpoints.restore(make_state())
  checkpoints.save(make_state(2, seed=9), {}, {})
  checkpoints.close()
  restored = restore(tmp_path, make_state())
  assert (int(restored.state.step), restored.unreadable) == (2, {})


def test_checkpoint_that_can_be_read_at_the_second_try_is_kept(tmp_path, monkeypatch):
  """A network may fail once."""
  save(tmp_path, [1, 2])
  read, failures = training.Checkpoints._read, iter([OSError('reset')])

  def fails_once(*args):
    for error in failures:
      raise error
    return read(*args)

  monkeypatch.setattr(training.Checkpoints, '_read', fails_once)
  restored = restore(tmp_path, make_state())
  assert (int(restored.state.step), restored.unreadable) == (2, {})


def test_leaves_of_one_name_are_an_error(tmp_path):
  params = {'a.b': jnp.ones(2), 'a': {'b': jnp.zeros(2)}}
  checkpoints = training.Checkpoints(tmp_path)
  state = training.init_state(params, TX, key=jax.random.key(0))
  with pytest.raises(ValueError, match="names of their own, but two are 'a.b'"):
    checkpoints.save(state, {}, {})
  checkpoints.close()


def test_folder_that_orbax_reads_as_a_pattern_is_an_error(tmp_path):
  with pytest.raises(ValueError, match=r'`folder` must have no "\[" in its path'):
    training.Checkpoints(tmp_path / 'run[1]')


@pytest.mark.parametrize('name', ['run 1', 'run*', 'run?', 'rün', '%20', 'a{b}', '#', "'"])
def test_folder_may_have_any_other_name(name, tmp_path):
  save(tmp_path / name, [1])
  assert int(restore(tmp_path / name, make_state()).state.step) == 1


def test_raw_key_comes_back_raw(tmp_path):
  raw = make_state()._replace(key=jax.random.key_data(jax.random.key(3)))
  checkpoints = training.Checkpoints(tmp_path)
  checkpoints.save(raw, {}, {})
  checkpoints.close()
  found = restore(tmp_path, raw).state.key
  assert found.dtype == raw.key.dtype and (found == raw.key).all()


def test_folder_without_a_readable_checkpoint_is_an_error(tmp_path, quiet):
  save(tmp_path, [1])
  damage(tmp_path, 1)
  with pytest.raises(training.CheckpointError, match=r'None of the checkpoints \[1\].*step 1: '):
    restore(tmp_path, make_state())


def test_checkpoints_in_a_bucket_come_back_and_are_limited(bucket):
  folder = core.as_path(bucket) / 'run'
  save(folder, [1, 2, 3], keep=2)
  checkpoints = training.Checkpoints(folder, read_only=True)
  assert checkpoints.steps() == [2, 3]
  restored = checkpoints.restore(make_state())
  checkpoints.close()
  assert (restored.data, restored.unreadable) == ({'next_index': 3}, {})
  for found, expected in zip(numbers(restored.state), numbers(make_state(3, seed=3)), strict=True):
    np.testing.assert_array_equal(found, expected)


def test_checkpoint_in_a_bucket_that_was_not_completed_is_replaced(bucket):
  folder = core.as_path(bucket) / 'run'
  save(folder, [1, 2])
  (folder / '2' / 'commit_success.txt').unlink()  # As if killed before the end of the save.
  assert int(restore(folder, make_state()).state.step) == 1
  save(folder, [2])
  assert int(restore(folder, make_state()).state.step) == 2


def test_keep_below_one_is_an_error(tmp_path):
  with pytest.raises(ValueError, match='`keep`.*got 0'):
    training.Checkpoints(tmp_path, keep=0)


@pytest.mark.parametrize('name', ['m3', 'deep_momentum', 'multi_rate', 'learned_preconditioner'])
def test_state_of_a_deep_optimizer_comes_back(name, tmp_path):
  """Held levels, networks and counters, in the middle of a period."""
  tx = training.optimizer(name, 0.1)
  params = standin.init_params(0, 16)
  state = training.init_state(params, tx, key=jax.random.key(0))
  _, opt_state = jax.jit(tx.update)(params, state.opt_state, params)
  state = state._replace(opt_state=opt_state, step=jnp.int32(1))
  checkpoints = training.Checkpoints(tmp_path)
  checkpoints.save(state, {}, {})
  checkpoints.close()
  like = training.init_state(params, tx, key=jax.random.key(1))
  back = restore(tmp_path, like).state
  assert jax.tree.structure(back) == jax.tree.structure(state)
  for got, want in zip(numbers(back), numbers(state), strict=True):
    np.testing.assert_array_equal(got, want)
