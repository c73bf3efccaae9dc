"""Sessions: written as they are read, forked, reset, stacked, and told where they diverge."""

import functools
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx import models
from nlx.models import Sampling, sessions, streaming
from tests.models import problems

# Sessions are read in pieces of 3: after 3, 6 and 9 tokens they are at 3, 6 and 1 of chunks of 8.
PIECE, LENGTHS, WRITTEN = 3, (3, 6, 9), 10
# Without a memory of tokens but its levels: its convolution sees one token.
HOPE = problems.in_float64(problems.with_mixer(problems.ONE_LAYER, chunk_size=8, conv_width=1))
TRANSFORMER = problems.in_float64(problems.CONFIGS['transformer'])
NUCLEUS = Sampling(temperature=2.0, top_k=20, top_p=0.9)
pytestmark = pytest.mark.usefixtures('float64')
DOUBLE = {'dtype': jnp.float64, 'param_dtype': jnp.float64}
SAMBA = models.samba(**problems.SIZES, **DOUBLE, window=4)
both_models = pytest.mark.parametrize('config', [HOPE, TRANSFORMER], ids=['hope', 'transformer'])


def read(config, session, tokens, learns=True):
  """Reads piece by piece."""
  model = problems.make(config)
  for begin in range(0, tokens.shape[-1], PIECE):
    session = sessions.read(model, session, tokens[..., begin : begin + PIECE], learns=learns)
  return session


def write(config, session, num_tokens=WRITTEN, **options):
  options = {'sampling': NUCLEUS, **options}
  return sessions.write(problems.make(config), session, num_tokens, **options)


@functools.cache
def started(config, seed=7):
  key = jax.random.key(seed)
  return sessions.start(problems.make(config), problems.BATCH, max_length=64, key=key)


@functools.cache
def session(config, length=9, seed=7):
  """One that has read so many tokens, at most 12, of a text of its own."""
  return read(config, started(config, seed), problems.tokens(length=12, seed=seed)[:, :length])


@functools.cache
def written(config):
  return write(config, session(config))


def plain(value):
  """Its arrays, with random keys as numbers."""
  numbers = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
  return jax.tree.map(lambda x: np.array(numbers(x)), value)


def assert_equal(got, expected):
  jax.tree.map(np.testing.assert_array_equal, plain(got), plain(expected))


def assert_close(got, expected, tolerance=1e-10):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=0, atol=tolerance),
    plain(got),
    plain(expected),
  )


# ----- reading and writing


@pytest.mark.parametrize('config', [HOPE, TRANSFORMER, SAMBA], ids=['hope', 'transformer', 'samba'])
def test_session_has_the_logits_of_one_pass(config):
  text = problems.tokens(length=12, seed=7)[:, :9]
  logits, _ = problems.read(config, text, (9,))
  assert_close(session(config).logits, logits[:, -1])


def test_session_reads_more_tokens_than_a_block():
  text = problems.tokens(length=300)
  got = sessions.read(problems.make(HOPE), started(HOPE), text)
  expected = read(HOPE, started(HOPE), text)
  assert_close((got.logits, got.state.levels), (expected.logits, expected.state.levels))
  assert int(got.length) == 300


def test_session_of_attention_is_read_up_to_its_last_place():
  text = problems.tokens(length=64)
  full = sessions.read(problems.make(TRANSFORMER), started(TRANSFORMER), text)
  logits, _ = problems.read(TRANSFORMER, text, (64,))
  assert_close(full.logits, logits[:, -1])


@both_models
def test_session_has_read_what_it_has_written(config):
  tokens, after = written(config)
  assert tokens.shape == (problems.BATCH, WRITTEN) and tokens.dtype == jnp.int32
  expected = read(config, session(config), tokens[:, :9])
  expected = sessions.read(problems.make(config), expected, tokens[:, 9:])
  assert_close(after.logits, expected.logits)
  assert_close(after.state.levels, expected.state.levels)


@both_models
def test_two_writes_are_one_bit_for_bit(config):
  first, middle = write(config, session(config), 3)
  second, after = write(config, middle, WRITTEN - 3)
  assert_equal((jnp.concatenate([first, second], axis=1), after), written(config))


def test_session_writes_more_tokens_than_a_block():
  model = problems.make(TRANSFORMER)
  before = sessions.start(model, problems.BATCH, max_length=310)
  before = sessions.read(model, before, problems.tokens(length=PIECE))
  first, middle = write(TRANSFORMER, before, 200)
  second, after = write(TRANSFORMER, middle, 100)
  assert_equal((jnp.concatenate([first, second], axis=1), after), write(TRANSFORMER, before, 300))


def test_session_counts_what_it_reads_and_writes():
  _, after = written(HOPE)
  assert (int(after.written), int(after.length)) == (WRITTEN, 9 + WRITTEN)
  assert (int(session(HOPE).written), int(session(HOPE).length)) == (0, 9)


@both_models
def test_fork_does_not_change_the_original(config):
  before = plain(session(config))
  _, fork = written(config)
  read(config, fork, problems.tokens(length=3, seed=2))
  assert_equal(session(config), before)
  assert_equal(write(config, session(config)), written(config))


def test_session_with_another_key_writes_another_text():
  other = session(HOPE)._replace(key=jax.random.key(8))
  assert (write(HOPE, other)[0] != written(HOPE)[0]).any()


def test_session_without_a_key_is_that_of_key_0():
  model = problems.make(TRANSFORMER)
  assert_equal(sessions.start(model, 2, max_length=64), started(TRANSFORMER, 0))
  raw = sessions.start(model, 2, max_length=64, key=jax.random.PRNGKey(0))
  assert_equal(raw, started(TRANSFORMER, 0))


@pytest.mark.parametrize('learn', [True, False])
def test_session_learns_from_what_it_writes_if_told_to(learn):
  tokens, after = write(HOPE, session(HOPE), 9, learn=learn)
  expected = read(HOPE, session(HOPE), tokens, learns=learn)
  assert_close(after.state.levels, expected.state.levels)
  filled = slice(int(expected.state.phase))
  assert_equal(after.state.learns[:, filled], expected.state.learns[:, filled])
  assert (after.state.learns[:, filled] == learn).all()


def test_session_learns_from_the_tokens_it_is_told_to():
  text = problems.tokens(length=9)
  learns = jnp.arange(9)[None] + jnp.zeros((problems.BATCH, 1)) > 4
  model, after = problems.make(HOPE), started(HOPE)
  for begin in range(0, 9, PIECE):
    piece = slice(begin, begin + PIECE)
    after = sessions.read(model, after, text[:, piece], learns=learns[:, piece])
  _, state = problems.read(HOPE, text, (9,), learns=learns.astype(jnp.float32))
  assert_close(after.state.levels, state.levels)


# ----- levels


def test_reset_of_all_levels_leaves_only_the_tokens_of_this_chunk():
  """Of 9 tokens the last; a model without any other memory then is as one that read only that."""
  model, text = problems.make(HOPE), problems.tokens(length=12, seed=7)
  got = sessions.reset(model, session(HOPE))
  expected = sessions.read(model, started(HOPE), text[:, 8:9])
  assert_close((got.logits, got.state.live), (expected.logits, expected.state.live))
  assert_close([x.held for x in got.state.levels], [x.held for x in expected.state.levels])


def test_reset_session_learns_the_same_in_any_pieces():
  model = problems.make(HOPE)
  forgetful, text = sessions.reset(model, session(HOPE)), problems.tokens(length=9)
  expected = read(HOPE, forgetful, text)
  got = forgetful
  for i in range(9):
    got = sessions.read(model, got, text[:, i : i + 1])
  assert_close((got.logits, got.state.levels), (expected.logits, expected.state.levels))


@pytest.mark.parametrize('name', ['CMS 8', 'CMS 16', 'memory', 'roles k v eta alpha'])
def test_reset_of_one_level_leaves_the_others(name):
  model, before = problems.make(HOPE), session(HOPE)
  after = sessions.reset(model, before, [name])
  fresh = model.level_states(started(HOPE).state)
  old, new = model.level_states(before.state), model.level_states(after.state)
  assert name in old
  for other in old:
    if other.startswith('CMS') and other != name:
      assert_equal(new[other], old[other])
  if name.startswith('CMS'):
    assert_equal(new[name].held, fresh[name].held)
    assert not any(x.any() for x in jax.tree.leaves(new[name].gathered))
    assert int(new[name].count) == int(old[name].count)
  else:
    moved = [np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (new, old)), strict=True)]
    assert max(moved) > 1e-4
    assert_equal(after.state.levels, before.state.levels)


def test_reset_without_effect_changes_nothing():
  model = problems.make(HOPE)
  assert_close(sessions.reset(model, session(HOPE), []), session(HOPE))
  assert_equal(sessions.reset(model, started(HOPE)), started(HOPE))
  assert_equal(
    sessions.reset(problems.make(TRANSFORMER), session(TRANSFORMER)), session(TRANSFORMER)
  )


def test_reset_of_nested_blocks_starts_from_what_the_slower_block_has_learned():
  model = problems.make(problems.with_cms(HOPE, periods=(8, 16, 32), form='nested'))
  fresh = sessions.start(model, problems.BATCH)
  moved = jax.tree.map(lambda x: x + 1, fresh.state.levels)
  before = fresh._replace(state=fresh.state._replace(levels=moved))
  after = sessions.reset(model, before, ['CMS 8', 'CMS 16']).state.levels
  assert_equal(after[2], moved[2])
  assert_equal(after[1].held.params.own, moved[2].held.params.initial)
  assert_equal(after[1].held.params.initial, fresh.state.levels[1].held.params.initial)
  assert_equal(after[0].held, fresh.state.levels[0].held)


def test_reset_of_an_unknown_level_is_an_error():
  message = r"`levels` must be one of \['CMS 16', .*\], got 'slow weights'"
  with pytest.raises(ValueError, match=message):
    sessions.reset(problems.make(HOPE), session(HOPE), ['slow weights'])


# ----- several at a time


def several(config):
  """Sessions at different places of their chunks, in different texts, with keys of their own."""
  return [session(config, length, seed=length) for length in LENGTHS]


@functools.cache
def stacked(config):
  return sessions.stack(several(config))


@both_models
def test_stacked_sessions_are_written_as_one_by_one(config):
  """Each passes the ends of its chunks at its own time."""
  tokens, after = write(config, stacked(config))
  for i, (one, other) in enumerate(zip(several(config), sessions.unstack(after), strict=True)):
    expected, session = write(config, one)
    np.testing.assert_array_equal(tokens[i], expected)
    assert_close(other, session)


@both_models
def test_stacked_sessions_are_read_as_one_by_one(config):
  text = jnp.stack([problems.tokens(length=6, seed=i) for i in range(3)])
  learns = np.arange(text.size).reshape(text.shape) % 3 > 0
  model, after = problems.make(config), stacked(config)
  for piece in (slice(0, 3), slice(3, 6)):
    after = sessions.read(model, after, text[..., piece], learns=learns[..., piece])
  for i, other in enumerate(sessions.unstack(after)):
    expected = several(config)[i]
    for piece in (slice(0, 3), slice(3, 6)):
      expected = sessions.read(model, expected, text[i, :, piece], learns=learns[i, :, piece])
    assert_close(other, expected)


def test_stacked_sessions_are_reset_as_one_by_one():
  model = problems.make(HOPE)
  after = sessions.reset(model, stacked(HOPE), ['CMS 8'])
  for one, other in zip(several(HOPE), sessions.unstack(after), strict=True):
    assert_close(other, sessions.reset(model, one, ['CMS 8']))


def test_stacked_sessions_come_apart_as_they_were():
  assert_equal(sessions.unstack(stacked(HOPE)), several(HOPE))


def test_stacked_sessions_learn_only_where_a_chunk_ends():
  """Under `vmap` a condition would be a selection, and all would learn at every token."""
  state = stacked(HOPE).state
  shape = (*state.buffer.shape[:2], 1)
  text = streaming.Text(jnp.zeros(shape, jnp.int32), jnp.ones(shape, jnp.float32))
  step = functools.partial(streaming.read_token_of_each, problems.make(HOPE))
  outer = jax.make_jaxpr(step)(text, state)
  (condition,) = (x for x in outer.eqns if x.primitive.name == 'cond')
  (loop,) = (x for x in condition.params['branches'][1].eqns if x.primitive.name == 'scan')
  assert [x.primitive.name for x in loop.params['jaxpr'].eqns].count('cond') == 1


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (list, 'must be at least one session, got none'),
    (lambda: [stacked(HOPE)], 'must be single ones'),
    (
      lambda: [session(TRANSFORMER), sessions.start(problems.make(TRANSFORMER), 1, max_length=64)],
      r"`sessions\[1\]` does not fit .*: `logits` was .*\[2, 32\]', but is .*\[1, 32\]'",
    ),
  ],
  ids=['none', 'stacked', 'batch'],
)
def test_sessions_that_do_not_fit_together_are_an_error(make, message):
  with pytest.raises(ValueError, match=message):
    sessions.stack(make())


def test_single_session_does_not_come_apart():
  with pytest.raises(ValueError, match='`stacked` must be a stack of sessions, got a single one'):
    sessions.unstack(session(HOPE))


# ----- wrong arguments


@pytest.mark.parametrize(
  ('tokens', 'message'),
  [
    (np.zeros((2, 0), int), r"`tokens` must have shape \[2, 'T'\] with .*, got \(2, 0\)"),
    (np.zeros((3, 4), int), r'must have shape .*, got \(3, 4\)'),
    (np.zeros(4, int), r'must have shape .*, got \(4,\)'),
    (np.zeros((1, 2, 4), int), r'must have shape .*, got \(1, 2, 4\)'),
    (np.zeros((2, 4)), '`tokens` must be integers, got float64'),
    (np.full((2, 4), 32), r'`tokens` must lie in 0\.\.31, got 32'),
    (np.full((2, 4), -1), r'`tokens` must lie in 0\.\.31, got -1'),
  ],
  ids=['none', 'batch', 'axis', 'stack', 'dtype', 'large', 'negative'],
)
def test_session_names_wrong_tokens(tokens, message):
  with pytest.raises(ValueError, match=message):
    sessions.read(problems.make(HOPE), session(HOPE), tokens)


def test_session_names_a_wrong_mask():
  with pytest.raises(ValueError, match=r'`learns` must be one value or .* \(2, 4\), got \(4,\)'):
    sessions.read(problems.make(HOPE), session(HOPE), np.zeros((2, 4), int), learns=[True] * 4)


def test_session_that_has_read_nothing_cannot_write():
  with pytest.raises(ValueError, match='`session` must have read at least one token'):
    write(HOPE, started(HOPE))


def test_session_without_room_is_an_error():
  message = r'`session` is full: of its `max_length` 64 tokens 55 are left, and 56 were to follow'
  with pytest.raises(ValueError, match=message):
    write(TRANSFORMER, session(TRANSFORMER), 56)
  with pytest.raises(ValueError, match=message):
    sessions.read(problems.make(TRANSFORMER), session(TRANSFORMER), np.zeros((2, 56), int))
  tokens, _ = write(TRANSFORMER, session(TRANSFORMER), 55)
  assert tokens.shape == (problems.BATCH, 55)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'batch_size': 0}, '`batch_size` must be an integer of at least 1 sequence, got 0'),
    ({'max_length': 0}, '`max_length` must be an integer of at least 1 token, got 0'),
    ({}, '`max_length` must be given'),
  ],
  ids=str,
)
def test_start_names_a_wrong_argument(options, message):
  with pytest.raises(ValueError, match=message):
    sessions.start(problems.make(TRANSFORMER), **options)


# ----- divergence


def diverging():
  """The model with inner rates that are infinite: its fastest block is lost after 8 tokens."""
  graph, params = problems.split(HOPE)
  params['blocks']['cms']['log_rate_factors'][...] += 800
  return nnx.merge(graph, params)


def test_reading_names_the_first_token_and_the_level_that_diverged():
  message = r'after token 8 of the stream, .* these levels are not finite: CMS 8\. The session'
  with pytest.raises(FloatingPointError, match=message):
    sessions.read(diverging(), session(HOPE, 6), problems.tokens(length=PIECE))


def test_writing_names_the_first_token_and_the_level_that_diverged():
  message = r'after token 8 of the stream, .* these levels are not finite: CMS 8\. The session'
  with pytest.raises(FloatingPointError, match=message):
    sessions.write(diverging(), session(HOPE, 6), WRITTEN, sampling=NUCLEUS)


def test_divergence_names_the_session_of_a_stack():
  text = jnp.stack([problems.tokens(length=PIECE)] * len(LENGTHS))
  with pytest.raises(FloatingPointError, match='after token 8 of the stream of session 1, '):
    sessions.read(diverging(), stacked(HOPE), text)
  with pytest.raises(FloatingPointError, match='after token 8 of the stream of session 1, '):
    sessions.write(diverging(), stacked(HOPE), WRITTEN, sampling=NUCLEUS)


def test_divergence_names_slow_weights():
  graph, params = problems.split(TRANSFORMER)
  params['norm']['scale'][...] *= jnp.nan
  message = 'after token 9 of the stream, .* not finite: slow weights'
  with pytest.raises(FloatingPointError, match=message):
    sessions.write(nnx.merge(graph, params), session(TRANSFORMER), 10, sampling=NUCLEUS)


# ----- files

META = {'model': {'name': 'hope', 'width': 16}, 'step': 100}


@pytest.mark.parametrize('make', [session, stacked], ids=['one', 'stack'])
@both_models
def test_session_comes_back_from_its_file(config, make, tmp_path):
  sessions.save(tmp_path / 'session', make(config), META)
  loaded = sessions.load(tmp_path / 'session', problems.make(config), META)
  assert_equal(loaded, make(config))
  assert jax.tree.structure(loaded) == jax.tree.structure(make(config))
  assert {path.name for path in tmp_path.iterdir()} == {'session'}


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
