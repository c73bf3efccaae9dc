"""The chain of MLP blocks, and the level that its blocks are in context."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx import cms, levels
from tests.compiling import quick_jit

BATCH, LENGTH, DIM, HIDDEN, RATE = 3, 5, 8, 12, 0.3
PERIODS = (0, 4, 0, 8)
LAYERS, MAX_NORM = 2, 0.5


def inputs():
  return jax.random.normal(jax.random.key(1), (BATCH, LENGTH, DIM))


@functools.cache
def chain(periods=PERIODS):
  return cms.SequentialCMS(DIM, HIDDEN, periods, RATE, rngs=nnx.Rngs(0))


def written_out(norm_scale, up, down, x):
  """x + MLP(norm(x)) with SwiGLU for one sequence x [C, D]."""
  normed = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * norm_scale
  gate, value = np.split(normed @ up, 2, axis=-1)
  return x + (gate / (1 + np.exp(-gate)) * value) @ down


def parts(block):
  """The norm's scale, 'up' and 'down' as NumPy arrays."""
  return [np.asarray(p[...]) for p in (block.norm.scale, block.up.kernel, block.down.kernel)]


def copies(weights):
  """The same weights for every sequence."""
  return jax.tree.map(lambda w: jnp.repeat(w[None], BATCH, axis=0), weights)


def test_block_of_period_0_is_a_swiglu_mlp():
  got = quick_jit(chain((0,)))(inputs(), ())
  expected = written_out(*parts(chain((0,)).blocks[0]), np.asarray(inputs()))
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_chain_applies_its_blocks_in_order():
  got = quick_jit(chain())(inputs(), copies(chain().initial_weights()))
  expected = np.asarray(inputs())
  for block in chain().blocks:
    expected = written_out(*parts(block), expected)
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_chain_gives_fast_weights_to_the_blocks_that_learn():
  """In the order of the blocks, and to every sequence its own."""
  weights = chain().initial_weights()
  numbers = jnp.arange(1.0, BATCH + 1).reshape(BATCH, 1, 1)
  fast = tuple(
    jax.tree.map(lambda w, i=i: (i + numbers) * w[None], block) for i, block in enumerate(weights)
  )
  got = quick_jit(chain())(inputs(), fast)
  expected, learning = np.array(inputs()), iter(fast)
  for block, period in zip(chain().blocks, PERIODS, strict=True):
    scale, up, down = parts(block)
    own = next(learning) if period else None
    for b in range(BATCH):
      up, down = (own['up'][b], own['down'][b]) if period else (up, down)
      expected[b] = written_out(scale, np.asarray(up), np.asarray(down), expected[b])
  np.testing.assert_allclose(got, expected, atol=2e-4)


def test_chain_lists_initial_weights_of_blocks_that_learn():
  blocks = [chain().blocks[i] for i, period in enumerate(PERIODS) if period]
  for weights, block in zip(chain().initial_weights(), blocks, strict=True):
    np.testing.assert_array_equal(weights['up'], block.up.kernel[...])
    np.testing.assert_array_equal(weights['down'], block.down.kernel[...])


def test_chain_learns_one_rate_per_block_that_learns():
  np.testing.assert_allclose(jnp.exp(chain().log_rates[...]), [RATE, RATE], rtol=1e-6)


def test_chain_that_never_learns_has_no_rates():
  assert chain((0, 0)).log_rates is None


def test_block_output_scale_multiplies_its_last_matrix():
  plain, scaled = (
    cms.MLPBlock(DIM, HIDDEN, rngs=nnx.Rngs(0), output_scale=scale) for scale in (1.0, 0.5)
  )
  np.testing.assert_allclose(scaled.down.kernel[...], 0.5 * plain.down.kernel[...], rtol=1e-6)
  np.testing.assert_array_equal(scaled.up.kernel[...], plain.up.kernel[...])


def test_block_computes_in_the_dtype_of_its_input():
  """Fast weights stay float32 and are cast for the product."""
  block = cms.MLPBlock(DIM, HIDDEN, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
  out = quick_jit(block)(inputs().astype(jnp.bfloat16), copies(block.weights()))
  assert out.dtype == jnp.bfloat16
  expected = quick_jit(block)(inputs(), copies(block.weights()))
  np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.05)


# ----- the level

RATES = jnp.array([0.1, 0.7])


def level(period=2):
  return cms.in_context_level(RATES, period, MAX_NORM)


def stacked(seed, scale=1.0):
  """Something like the weights of all layers and sequences [L, B, ...]."""
  keys = jax.random.split(jax.random.key(seed))
  shapes = {'up': (LAYERS, BATCH, 4, 6), 'down': (LAYERS, BATCH, 3, 4)}
  return {
    name: scale * jax.random.normal(key, shape)
    for key, (name, shape) in zip(keys, shapes.items(), strict=True)
  }


def plain_update(weights, total, count):
  """theta_l - rate_l clip(mean gradient), one sequence after the other."""
  new = jax.tree.map(np.array, weights)
  for b in range(BATCH):
    mean = {name: np.asarray(x[:, b]) / count[b] for name, x in total.items()}
    norm = np.sqrt(sum(np.sum(x**2) for x in mean.values()))
    for name in new:
      for layer in range(LAYERS):
        step = mean[name][layer] * min(1, MAX_NORM / norm)
        new[name][layer, b] -= np.asarray(RATES)[layer] * step
  return new


def assert_close(got, expected):
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), got, expected)


@pytest.mark.parametrize('scale', [0.01, 1.0], ids=['unclipped', 'clipped'])
def test_level_steps_along_the_clipped_mean_gradient(scale):
  weights, gradients = stacked(0), (stacked(1, scale), stacked(2, scale))
  counts = jnp.array([[1.0, 2.0, 4.0], [3.0, 0.0, 4.0]])
  state = level().init(weights)
  for gradient, count in zip(gradients, counts, strict=True):
    state = quick_jit(level().update)(state, levels.Weighted(gradient, count))
  total = jax.tree.map(jnp.add, *gradients)
  assert_close(level().read(state), plain_update(weights, total, counts.sum(0)))


def test_level_is_held_until_its_period_ends():
  weights = stacked(0)
  state = level(4).init(weights)
  for i in range(3):
    state = level(4).update(state, levels.Weighted(stacked(i), jnp.ones(BATCH)))
    jax.tree.map(np.testing.assert_array_equal, level(4).read(state), weights)


def test_level_clips_every_sequence_by_its_own_norm():
  """A large gradient of one sequence leaves the steps of the others alone."""
  weights, gradient, count = stacked(0), stacked(1, 0.01), jnp.ones(BATCH)
  large = jax.tree.map(lambda x: x.at[:, 1].multiply(1e4), gradient)
  update = quick_jit(level(1).update)
  got, expected = (
    level(1).read(update(level(1).init(weights), levels.Weighted(g, count)))
    for g in (large, gradient)
  )
  others = jnp.array([0, 2])
  jax.tree.map(
    np.testing.assert_array_equal,
    *(jax.tree.map(lambda x: x[:, others], w) for w in (got, expected)),
  )


def test_level_of_a_sequence_without_targets_stays():
  weights = stacked(0)
  zero = jax.tree.map(jnp.zeros_like, weights)
  state = level(1).update(level(1).init(weights), levels.Weighted(zero, jnp.zeros(BATCH)))
  jax.tree.map(np.testing.assert_array_equal, level(1).read(state), weights)


def test_level_has_finite_outer_gradients_where_inner_ones_are_zero():
  weights = stacked(0)

  def loss(gradient):
    signal = levels.Weighted(gradient, jnp.zeros(BATCH))
    read = level(1).read(level(1).update(level(1).init(weights), signal))
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(read))

  gradients = quick_jit(jax.grad(loss))(jax.tree.map(jnp.zeros_like, weights))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


def test_level_passes_a_gradient_to_its_rates():
  weights, gradient = stacked(0), stacked(1)

  def loss(rates):
    one = cms.in_context_level(rates, 1, MAX_NORM)
    read = one.read(one.update(one.init(weights), levels.Weighted(gradient, jnp.ones(BATCH))))
    return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(read))

  assert np.abs(quick_jit(jax.grad(loss))(RATES)).min() > 1e-3
