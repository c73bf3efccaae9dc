"""Softmax attention against a plain loop, its positions and its cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx.memories.attention import Attention, rotate
from tests.compiling import quick_jit

BATCH, LENGTH, DIM, HEADS = 2, 11, 16, 2
WIDTH = DIM // HEADS


@functools.cache
def layer():
  return Attention(DIM, HEADS, rngs=nnx.Rngs(0))


def inputs():
  return jax.random.normal(jax.random.key(1), (BATCH, LENGTH, DIM))


@functools.cache
def call():
  return quick_jit(layer())


@functools.cache
def whole():
  """Outputs without a cache."""
  return call()(inputs(), layer().init_state(BATCH))[0]


def rotated(x, position):
  """One head's vector [K] as K / 2 complex numbers, turned by its position."""
  half = x.shape[0] // 2
  turn = np.exp(1j * position * 10_000.0 ** (-np.arange(half) / half))
  turned = (x[:half] + 1j * x[half:]) * turn
  return np.concatenate([turned.real, turned.imag])


@functools.cache
def plain():
  """Causal softmax attention, one query at a time."""
  x = np.asarray(inputs(), np.float64)
  kernel, output = (
    np.asarray(p.kernel[...], np.float64) for p in (layer().projection, layer().output)
  )
  out = np.zeros(x.shape)
  for b, h, t in np.ndindex(BATCH, HEADS, LENGTH):
    columns = slice(h * WIDTH, (h + 1) * WIDTH)
    queries, keys, values = (
      x[b] @ kernel[:, i * DIM : (i + 1) * DIM][:, columns] for i in range(3)
    )
    query = rotated(queries[t], t)
    scores = np.array([rotated(keys[s], s) @ query for s in range(t + 1)]) / np.sqrt(WIDTH)
    weights = np.exp(scores - scores.max())
    out[b, t, columns] = weights / weights.sum() @ values[: t + 1]
  return out @ output


def test_attention_equals_a_plain_softmax():
  np.testing.assert_allclose(whole(), plain(), atol=2e-5)


def test_attention_with_a_cache_equals_a_plain_softmax():
  out, _ = call()(inputs(), layer().init_state(BATCH, 2 * LENGTH))
  np.testing.assert_allclose(out, plain(), atol=2e-5)


@pytest.mark.parametrize('pieces', [(1,) * LENGTH, (4, 7), (1, 4, 1, 1, 4)])
def test_attention_continues_from_its_cache(pieces):
  state, outs, begin = layer().init_state(BATCH, 2 * LENGTH), [], 0
  for size in pieces:
    out, state = call()(inputs()[:, begin : begin + size], state)
    outs.append(out)
    begin += size
  np.testing.assert_allclose(jnp.concatenate(outs, axis=1), whole(), atol=1e-5)
  assert int(state.length) == LENGTH


@pytest.mark.parametrize('valid', [1, 4])
def test_attention_forgets_tokens_that_are_not_valid(valid):
  _, state = call()(inputs()[:, :valid], layer().init_state(BATCH, 2 * LENGTH))
  padded = inputs().at[:, valid:].add(9.0)
  _, got = call()(padded, layer().init_state(BATCH, 2 * LENGTH), valid)
  rest = inputs()[:, valid:]
  np.testing.assert_allclose(call()(rest, got)[0], call()(rest, state)[0], atol=1e-6)


def test_attention_step_equals_a_call_of_one_token():
  _, state = call()(inputs(), layer().init_state(BATCH, 2 * LENGTH))
  token = inputs()[:, :1]
  step = quick_jit(layer().step)
  jax.tree.map(np.testing.assert_array_equal, step(token, state), call()(token, state))


def test_attention_has_no_state_without_a_length():
  assert layer().init_state(BATCH) is None


def test_attention_is_causal():
  cut = 6
  out, _ = call()(inputs().at[:, cut:].add(1.0), layer().init_state(BATCH))
  np.testing.assert_allclose(out[:, :cut], whole()[:, :cut], atol=1e-6)


def test_attention_keeps_sequences_apart():
  out, _ = call()(inputs().at[1].add(1.0), layer().init_state(BATCH))
  np.testing.assert_allclose(out[0], whole()[0], atol=1e-6)


def test_rotate_is_relative():
  """Scores depend on the distance of two positions alone."""
  queries, keys = jax.random.normal(jax.random.key(2), (2, 1, LENGTH, HEADS, WIDTH))

  @jax.jit
  def scores(start):
    return jnp.einsum('bthk,bshk->bhts', rotate(queries, start), rotate(keys, start))

  np.testing.assert_allclose(scores(37), scores(0), atol=1e-4)


def test_rotate_turns_each_pair_by_its_position():
  x = jax.random.normal(jax.random.key(3), (1, LENGTH, HEADS, WIDTH))
  got, start = rotate(x, 5), 5
  for t, h in np.ndindex(LENGTH, HEADS):
    np.testing.assert_allclose(got[0, t, h], rotated(np.asarray(x[0, t, h]), start + t), atol=1e-5)


def test_rotate_leaves_position_zero_as_it_is():
  x = jax.random.normal(jax.random.key(3), (1, 1, HEADS, WIDTH))
  np.testing.assert_array_equal(rotate(x, 0), x)


def test_attention_computes_in_dtype():
  attention = Attention(DIM, HEADS, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
  out, state = quick_jit(attention)(inputs(), attention.init_state(BATCH, LENGTH))
  assert out.dtype == state.keys.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(jnp.float32), whole(), atol=0.1)


def test_attention_names_heads_that_do_not_divide():
  with pytest.raises(
    ValueError, match='`model_dim` must be a multiple of `num_heads`, got 16 and 3'
  ):
    Attention(16, 3, rngs=nnx.Rngs(0))


def test_attention_names_heads_of_odd_width():
  with pytest.raises(ValueError, match=r'`head_dim` must be a multiple of `2 \(rotary pairs\)`'):
    Attention(6, 2, rngs=nnx.Rngs(0))


def test_attention_cache_that_overflows_returns_nan():
  state = layer().init_state(BATCH, LENGTH - 1)
  out, _ = call()(inputs(), layer().init_state(BATCH, LENGTH))
  assert jnp.isfinite(out).all()
  first, state = call()(inputs()[:, :6], state)
  out, _ = call()(inputs()[:, 6:], state)
  assert jnp.isfinite(first).all()
  assert jnp.isnan(out).all()
