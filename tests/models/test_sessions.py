"""Sessions: written as they are read, forked, reset, and told where they diverge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx import models
from nlx.models import sessions
from tests.models import problems
from tests.models.session_problems import (
  HOPE,
  NUCLEUS,
  PIECE,
  TRANSFORMER,
  WRITTEN,
  assert_close,
  assert_equal,
  both_models,
  diverging,
  plain,
  read,
  session,
  started,
  write,
  written,
)

pytestmark = pytest.mark.usefixtures('float64')
DOUBLE = {'dtype': jnp.float64, 'param_dtype': jnp.float64}
SAMBA = models.samba(**problems.SIZES, **DOUBLE, window=4)


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


def test_reading_names_the_first_token_and_the_level_that_diverged():
  message = r'after token 8 of the stream, .* these levels are not finite: CMS 8\. The session'
  with pytest.raises(FloatingPointError, match=message):
    sessions.read(diverging(), session(HOPE, 6), problems.tokens(length=PIECE))


def test_writing_names_the_first_token_and_the_level_that_diverged():
  message = r'after token 8 of the stream, .* these levels are not finite: CMS 8\. The session'
  with pytest.raises(FloatingPointError, match=message):
    sessions.write(diverging(), session(HOPE, 6), WRITTEN, sampling=NUCLEUS)


def test_divergence_names_slow_weights():
  graph, params = problems.split(TRANSFORMER)
  params['norm']['scale'][...] *= jnp.nan
  message = 'after token 9 of the stream, .* not finite: slow weights'
  with pytest.raises(FloatingPointError, match=message):
    sessions.write(nnx.merge(graph, params), session(TRANSFORMER), 10, sampling=NUCLEUS)
