"""The level that blocks of all layers are inside sequences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx import cms, levels
from tests.compiling import quick_jit

BATCH, LAYERS, MAX_NORM = 3, 2, 0.5
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
