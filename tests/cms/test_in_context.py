"""The level that blocks of all layers are inside sequences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlx import cms, levels, optim
from tests.compiling import quick_jit

BATCH, LAYERS, MAX_NORM = 3, 2, 0.5
RATES = jnp.array([0.1, 0.7])


def level(period=2):
  return cms.in_context_level(RATES, period, MAX_NORM)


def stacked(seed, scale=1.0):
  """Something like the weights of all layers and sequences [L, B, ...]."""
  random = np.random.default_rng(seed)
  shapes = {'up': (LAYERS, BATCH, 4, 6), 'down': (LAYERS, BATCH, 3, 4)}
  return {name: np.float32(scale * random.normal(size=shape)) for name, shape in shapes.items()}


def after(level, weights, signal):
  """What a level is read as after one update."""
  step = quick_jit(lambda *args: level.read(level.update(level.init(args[0]), args[1])))
  return jax.device_get(step(weights, signal))


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
  counts = np.array([[1.0, 2.0, 4.0], [3.0, 0.0, 4.0]], np.float32)
  state = level().init(weights)
  for gradient, count in zip(gradients, counts, strict=True):
    state = quick_jit(level().update)(state, levels.Weighted(gradient, count))
  total = jax.tree.map(np.add, *gradients)
  assert_close(level().read(state), plain_update(weights, total, counts.sum(0)))


def test_level_is_held_until_its_period_ends():
  weights = stacked(0)
  state, update = level(4).init(weights), quick_jit(level(4).update)
  for i in range(3):
    state = update(state, levels.Weighted(stacked(i), np.ones(BATCH, np.float32)))
    jax.tree.map(np.testing.assert_array_equal, level(4).read(state), weights)


def test_level_clips_every_sequence_by_its_own_norm():
  """A large gradient of one sequence leaves the steps of the others alone."""
  weights, gradient, count = stacked(0), stacked(1, 0.01), np.ones(BATCH, np.float32)
  factors = np.array([1, 1e4, 1], np.float32).reshape(1, -1, 1, 1)
  large = jax.tree.map(lambda x: factors * x, gradient)
  got, expected = (after(level(1), weights, levels.Weighted(g, count)) for g in (large, gradient))
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[:, ::2], y[:, ::2]), got, expected)


def test_level_of_a_sequence_without_targets_stays():
  weights = stacked(0)
  zero = jax.tree.map(np.zeros_like, weights)
  got = after(level(1), weights, levels.Weighted(zero, np.zeros(BATCH, np.float32)))
  jax.tree.map(np.testing.assert_array_equal, got, weights)


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


# ----- rules


def test_level_moves_by_any_optimizer_apart_for_layers_and_sequences():
  """M3, whose Newton-Schulz and slow momentum see one matrix of one layer and sequence."""
  rule = cms.InContextRule('M3', functools.partial(optim.m3, slow_period=2))
  one = cms.in_context_level(RATES, 1, 1e6, rule)
  weights, gradients = stacked(0), [stacked(seed) for seed in (1, 2, 3)]

  @quick_jit
  def alone(rate, params, gradients):
    tx = optim.m3(rate, slow_period=2)
    state = tx.init(params)
    for gradient in gradients:
      updates, state = tx.update(gradient, state, params)
      params = optax.apply_updates(params, updates)
    return params

  state, update = one.init(weights), quick_jit(one.update)
  for gradient in gradients:
    state = update(state, levels.Weighted(gradient, np.ones(BATCH, np.float32)))
  for place in np.ndindex(LAYERS, BATCH):
    take = lambda tree, place=place: jax.tree.map(lambda x: x[place], tree)  # noqa: E731
    expected = alone(RATES[place[0]], take(weights), take(gradients))
    assert_close(take(jax.device_get(one.read(state))), expected)


def test_level_of_delta_gradient_descent_takes_the_proximal_minimiser():
  """W+ = argmin mean 1/2 ||W^T x - u||^2 + ||W - W0||^2 / (2 eta), at the rate of each layer."""
  one = cms.in_context_level(RATES, 1, 1e6, cms.DELTA_GRADIENT_DESCENT)
  weights = jax.device_get(jax.tree.map(optim.capture, stacked(0)))
  x = np.random.default_rng(5).normal(size=(LAYERS, BATCH, 7, 4)).astype(np.float32)
  gradient, moment = stacked(1)['up'], x.mT @ x / 7
  signal = {
    'up': optim.Captured(7 * gradient, 7 * moment),
    'down': jax.tree.map(np.zeros_like, weights['down']),
  }
  got = after(one, weights, levels.Weighted(signal, np.full(BATCH, 7, np.float32)))['up']
  eta = np.reshape(RATES, (-1, 1, 1, 1))
  start = weights['up'].weight
  slope = moment @ got.weight + gradient + (got.weight - start) / eta
  np.testing.assert_allclose(slope, 0, atol=1e-4)
  np.testing.assert_array_equal(got.moment, 0)


def test_level_clips_weights_and_not_the_moments_of_inputs():
  one = cms.in_context_level(RATES, 1, MAX_NORM, cms.DELTA_GRADIENT_DESCENT)
  weights, count = jax.tree.map(optim.capture, stacked(0)), np.ones(BATCH, np.float32)
  eye = lambda w: np.eye(w.moment.shape[-1]) + 0 * np.asarray(w.moment)  # noqa: E731
  moments = jax.tree.map(eye, weights, is_leaf=optim.is_captured)
  large = stacked(1)
  norm = np.sqrt(sum(np.sum(x**2, axis=(0, 2, 3)) for x in large.values()))
  clipped = jax.tree.map(lambda x: x * (MAX_NORM / norm).reshape(1, -1, 1, 1), large)
  got, expected = (
    after(one, weights, levels.Weighted(jax.tree.map(optim.Captured, g, moments), count))
    for g in (large, clipped)
  )
  assert_close(got, expected)


def test_nested_level_clips_what_it_hands_down_apart():
  """A large gradient of the faster block does not shorten the step of the slower one."""
  one = cms.in_context_level(RATES, 1, MAX_NORM)
  weights, gradient, count = stacked(0), stacked(1), np.ones(BATCH, np.float32)
  of_faster = jax.tree.map(lambda x: 100 * x, gradient)
  signal = levels.Weighted(levels.Nested(gradient, of_faster), count)
  large = after(one, levels.Nested(weights, weights), signal)
  alone = after(one, weights, levels.Weighted(gradient, count))
  assert_close(large.own, alone)
  assert_close(large.initial, alone)


# ----- how often


@pytest.mark.parametrize('form', ['sequential', 'nested'])
def test_levels_are_updated_exactly_every_period_over_ten_thousand_tokens(form):
  """In one pass and in a stream; the counts of both are 10,000 over the period, rounded down."""
  periods, tokens, chunk = (16, 64, 256, 1024), 10_000, 16
  config = cms.CMSConfig(4, 3, periods, form=form, rule=COUNTING)
  system = cms.in_context_levels(config, jnp.ones((1, len(periods))))
  weights = tuple(jnp.zeros((1, 1)) for _ in periods)
  states = [
    level.init(w) for level, w in zip(system, cms.initial_weights(config, weights), strict=True)
  ]

  def cell(slow, fast, carry, x):
    return jnp.zeros((1,)) * sum(w.sum() for w in fast), jnp.ones((1,)), carry, ()

  def stream(states, x):
    signals = levels.gradient_step(cell, system, (), states, (), x)[1]
    return levels.advance(system, states, signals, chunk), ()

  chunks = jnp.zeros((tokens // chunk, 1))
  in_one_pass = quick_jit(levels.nest(system, cell))((), states, (), chunks).states
  streamed, _ = quick_jit(lambda: jax.lax.scan(stream, tuple(states), chunks))()
  for ended in (in_one_pass, streamed):
    assert [int(state.count) for state in ended] == [tokens % period for period in periods]
    updates = [
      levels.own(level.read(state)).item() for level, state in zip(system, ended, strict=True)
    ]
    assert updates == [expected_updates(form, periods, i, tokens) for i in range(len(periods))]


def counter(rate):
  """An optimizer that adds 1 to weights, whatever their gradient."""
  del rate
  return optax.stateless(lambda updates, params: jax.tree.map(jnp.ones_like, updates))


COUNTING = cms.InContextRule('counting', counter)


def expected_updates(form, periods, i, tokens):
  """Nested: updates since the last restart, and what the slower level added to the start."""
  if form == 'sequential' or i + 1 == len(periods):
    return tokens // periods[i]
  return tokens % periods[i + 1] // periods[i] + tokens // periods[i + 1]
