"""Sessions side by side: each is read, written and reset as if alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx.models import sessions, streaming
from tests.models import problems
from tests.models.session_problems import (
  HOPE,
  LENGTHS,
  NUCLEUS,
  PIECE,
  TRANSFORMER,
  WRITTEN,
  assert_close,
  assert_equal,
  both_models,
  diverging,
  session,
  several,
  stacked,
  write,
)

pytestmark = pytest.mark.usefixtures('float64')


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


def test_divergence_names_the_session_of_a_stack():
  text = jnp.stack([problems.tokens(length=PIECE)] * len(LENGTHS))
  with pytest.raises(FloatingPointError, match='after token 8 of the stream of session 1, '):
    sessions.read(diverging(), stacked(HOPE), text)
  with pytest.raises(FloatingPointError, match='after token 8 of the stream of session 1, '):
    sessions.write(diverging(), stacked(HOPE), WRITTEN, sampling=NUCLEUS)
