"""Sessions in files: they come back bit for bit, or it is said why not."""

import resource

import jax
import jax.numpy as jnp
import pytest

from nlx.models import sessions
from tests.models import problems
from tests.models.session_problems import (
  HOPE,
  TRANSFORMER,
  assert_equal,
  both_models,
  session,
  stacked,
  write,
  written,
)

pytestmark = pytest.mark.usefixtures('float64')
META = {'model': {'name': 'hope', 'width': 16}, 'step': 100}


@pytest.mark.parametrize('make', [session, stacked], ids=['one', 'stack'])
@both_models
def test_session_comes_back_from_its_file(config, make, tmp_path):
  sessions.save(tmp_path / 'session', make(config), META)
  loaded = sessions.load(tmp_path / 'session', problems.make(config), META)
  assert_equal(loaded, make(config))
  assert jax.tree.structure(loaded) == jax.tree.structure(make(config))
  assert {path.name for path in tmp_path.iterdir()} == {'session'}


def test_session_comes_back_from_a_bucket(bucket):
  path = f'{bucket}/session'
  sessions.save(path, session(TRANSFORMER), META)
  assert_equal(sessions.load(path, problems.make(TRANSFORMER), META), session(TRANSFORMER))


def test_session_goes_on_from_its_file(tmp_path):
  sessions.save(tmp_path / 'session', session(HOPE))
  assert_equal(write(HOPE, sessions.load(tmp_path / 'session', problems.make(HOPE))), written(HOPE))


def test_session_of_few_bits_and_of_another_kind_of_key_comes_back(tmp_path):
  config = problems.with_cms(problems.CONFIGS['hope-attention'], param_dtype=jnp.bfloat16)
  model, key = problems.make(config), jax.random.key(3, impl='rbg')
  first = sessions.start(model, 2, max_length=8, key=key)
  assert any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(first))
  sessions.save(tmp_path / 'session', first)
  loaded = sessions.load(tmp_path / 'session', model)
  assert_equal(loaded, first)
  assert jax.random.key_impl(loaded.key) == 'rbg'


def test_equal_sessions_make_equal_files(tmp_path):
  for name in 'ab':
    sessions.save(tmp_path / name, session(HOPE), META)
  assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def test_session_is_saved_where_a_link_points_to(tmp_path):
  (tmp_path / 'link').symlink_to(tmp_path / 'session')
  sessions.save(tmp_path / 'link', session(HOPE))
  assert (tmp_path / 'link').is_symlink() and (tmp_path / 'session').exists()


@pytest.mark.parametrize(
  ('meta', 'message'),
  [
    ({**META, 'step': 200}, '`step` was 100, but is 200 here'),
    ({**META, 'model': {'name': 'hope'}}, '`model.width` was 16, but is None here'),
    ({}, '`model` was .*, but is None here'),
  ],
  ids=str,
)
def test_session_of_another_run_is_not_loaded(tmp_path, meta, message):
  sessions.save(tmp_path / 'session', session(HOPE), META)
  with pytest.raises(ValueError, match='holds the session of another model: ' + message):
    sessions.load(tmp_path / 'session', problems.make(HOPE), meta)


@pytest.mark.parametrize(
  ('other', 'message'),
  [
    (
      problems.with_mixer(HOPE, conv_width=2),
      r"conv` was 'float64\[2, 0, 16\]', but is .*\[2, 1, 16",
    ),
    (TRANSFORMER, r'`state.buffer` was .*, but is'),
    (problems.with_cms(HOPE, form='nested'), r'`state.levels\[1\].* was .*, but is'),
  ],
  ids=['conv', 'transformer', 'nested'],
)
def test_session_of_a_model_of_another_shape_is_not_loaded(tmp_path, other, message):
  sessions.save(tmp_path / 'session', session(HOPE))
  with pytest.raises(
    ValueError, match='holds the session of a model of another shape: .*' + message
  ):
    sessions.load(tmp_path / 'session', problems.make(other))


def test_session_in_double_precision_is_not_loaded_in_single(tmp_path):
  sessions.save(tmp_path / 'session', session(HOPE))
  with jax.enable_x64(False):
    single = problems.with_mixer(problems.ONE_LAYER, chunk_size=8, conv_width=1)
    with pytest.raises(ValueError, match="was 'float64.*, but is 'float32"):
      sessions.load(tmp_path / 'session', problems.make(single))


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda data: data[:-1], 'is damaged: its checksum'),
    (lambda data: data[:20], 'is damaged: its checksum'),
    (lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:], 'is damaged'),
    (lambda data: b'', 'is not the file of a session'),
    (lambda data: b'something else', 'is not the file of a session'),
  ],
  ids=['short', 'very_short', 'bit', 'empty', 'other'],
)
def test_damaged_file_is_an_error(tmp_path, damage, message):
  path = tmp_path / 'session'
  sessions.save(path, session(HOPE))
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(ValueError, match=message):
    sessions.load(path, problems.make(HOPE))


def test_missing_file_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError):
    sessions.load(tmp_path / 'session', problems.make(HOPE))


def interrupt(*args):
  raise KeyboardInterrupt


@pytest.mark.parametrize('name', ['os.fsync', 'os.replace'])
def test_interrupted_save_leaves_the_old_session(tmp_path, monkeypatch, name):
  path = tmp_path / 'session'
  sessions.save(path, session(HOPE), META)
  monkeypatch.setattr(name, interrupt)
  with pytest.raises(KeyboardInterrupt):
    sessions.save(path, written(HOPE)[1], META)
  assert_equal(sessions.load(path, problems.make(HOPE), META), session(HOPE))
  assert {path.name for path in tmp_path.iterdir()} == {'session'}


def test_save_to_a_full_disk_leaves_the_old_session(tmp_path):
  """Files may not grow beyond 1000 bytes."""
  path, after = tmp_path / 'session', written(HOPE)[1]
  sessions.save(path, session(HOPE), META)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
  try:
    with pytest.raises(OSError, match='File too large'):
      sessions.save(path, after, META)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert_equal(sessions.load(path, problems.make(HOPE), META), session(HOPE))
  assert {path.name for path in tmp_path.iterdir()} == {'session'}
