import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlx import levels
from tests.compiling import quick_jit

# Needs the parameters, clips, decays and has two moments: whatever an adapter could lose.
TX = optax.chain(optax.clip_by_global_norm(1.5), optax.adamw(0.1, weight_decay=0.2))


def problem(steps, shape=(3, 2)):
  """Initial parameters and a sequence of gradients."""
  random = np.random.default_rng(0)
  trees = [
    {'w': random.normal(size=shape), 'b': random.normal(size=shape[:1])} for _ in range(steps + 1)
  ]
  return trees[0], trees[1:]


def optax_path(tx, params, gradients):
  """The parameters after each step of an optax optimizer."""

  def step(carry, gradient):
    params, state = carry
    updates, state = tx.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    return (params, state), params

  return path(lambda params: (params, tx.init(params)), step, params, gradients)


def level_path(level, params, gradients, weight=1.0):
  """The weights of a level after each signal."""

  def step(state, gradient):
    state = level.update(state, levels.Weighted(gradient, weight))
    return state, level.read(state)

  return path(level.init, step, params, gradients)


def path(init, step, params, gradients):
  """What each step returns beside its carry."""

  @quick_jit
  def run(params, gradients):
    return jax.lax.scan(step, init(params), gradients)[1]

  return jax.device_get(run(params, jax.tree.map(lambda *x: np.stack(x), *gradients)))


def multi_steps(period):
  return optax.MultiSteps(TX, period, accumulator_dtype=jnp.float64)


def assert_equal(got, expected, rtol=1e-12):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol), got, expected)


@pytest.mark.usefixtures('float64')
def test_from_optax_of_period_one_equals_the_optimizer():
  params, gradients = problem(5)
  assert_equal(
    level_path(levels.from_optax(TX), params, gradients), optax_path(TX, params, gradients)
  )


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('period', [2, 3])
def test_from_optax_over_steps_equals_multi_steps(period):
  params, gradients = problem(7)
  expected = optax_path(multi_steps(period), params, gradients)
  assert_equal(level_path(levels.from_optax(TX, period), params, gradients), expected)


@pytest.mark.usefixtures('float64')
def test_from_optax_gives_the_optimizer_a_mean():
  params, (gradient,) = problem(1)
  got = level_path(levels.from_optax(TX), params, [gradient], weight=4.0)
  assert_equal(got, optax_path(TX, params, [jax.tree.map(lambda x: x / 4, gradient)]))


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('axis', [0, 1])
def test_from_optax_gives_every_sequence_its_own_optimizer(axis):
  params, gradients = problem(4, shape=(3, 3, 2))
  params, *gradients = [{'w': tree['w'] * np.arange(1, 4)[:, None, None]}
                        for tree in (params, *gradients)]  # fmt: skip
  tx = optax.chain(optax.clip_by_global_norm(3.0), optax.sgd(0.1, momentum=0.9))
  weights = np.array([1.0, 2.0, 0.5])
  place = lambda tree: jax.tree.map(lambda x: np.moveaxis(x, 0, axis), tree)  # noqa: E731
  level = levels.from_optax(tx, 2, batch_axis=axis)
  got = level_path(level, place(params), map(place, gradients), weights)['w'][-1]
  alone = levels.from_optax(tx, 2)
  for i, weight in enumerate(weights):
    take = lambda tree, i=i: jax.tree.map(lambda x: x[i], tree)  # noqa: E731
    expected = level_path(alone, take(params), map(take, gradients), weight)['w'][-1]
    assert_equal(np.take(got, i, axis), expected)


def test_from_optax_names_a_wrong_period():
  with pytest.raises(ValueError, match='`period` must be an integer of at least 1 tick, got 0'):
    levels.from_optax(TX, period=0)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('period', [1, 3])
def test_to_optax_inverts_from_optax(period):
  params, gradients = problem(7)
  tx = levels.to_optax(levels.from_optax(TX, period))
  expected = optax_path(multi_steps(period), params, gradients)
  assert_equal(optax_path(tx, params, gradients), expected)


@pytest.mark.usefixtures('float64')
def test_to_optax_has_a_place_in_a_chain():
  params, gradients = problem(4)
  tx = optax.chain(optax.clip_by_global_norm(1.5), levels.to_optax(levels.from_optax(optax.sgd(1))))
  expected = optax.chain(optax.clip_by_global_norm(1.5), optax.sgd(1))
  assert_equal(optax_path(tx, params, gradients), optax_path(expected, params, gradients))


def test_to_optax_keeps_its_state_under_jit():
  params, gradients = problem(3)
  tx = levels.to_optax(levels.from_optax(TX, 2))
  state, expected = tx.init(params), optax_path(tx, params, gradients)
  for i, gradient in enumerate(gradients):
    updates, state = jax.jit(tx.update)(gradient, state, params)
    params = jax.tree.map(lambda p, u: p + np.asarray(u), params, updates)
    assert_equal(params, jax.tree.map(lambda x, i=i: x[i], expected), rtol=1e-5)


def test_to_optax_has_a_state_that_can_be_given_away_with_the_parameters():
  params, _ = problem(1)
  params = jax.tree.map(jnp.asarray, params)
  trees = (params, levels.to_optax(levels.from_optax(TX, 2)).init(params))
  buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(trees)]
  assert len(set(buffers)) == len(buffers)


MOMENTUM = optax.sgd(0.1, momentum=0.9)


def test_from_optax_stands_still_where_nothing_was_seen():
  params, (first, second) = problem(2)
  level = levels.from_optax(MOMENTUM)
  update = quick_jit(level.update)
  before = update(quick_jit(level.init)(params), levels.Weighted(first, 1.0))
  zeros = jax.tree.map(np.zeros_like, second)
  after = update(before, levels.Weighted(zeros, 0.0))
  assert_equal(level.read(after), level.read(before), rtol=0)
  assert_equal(after.held.optimizer, before.held.optimizer, rtol=0)


@pytest.mark.parametrize('axis', [0, 1])
def test_from_optax_goes_on_beside_a_sequence_that_saw_nothing(axis):
  params, first, second = (tree['w'] for tree in (problem(2, (2, 2))[0], *problem(2, (2, 2))[1]))
  level = levels.from_optax(MOMENTUM, batch_axis=axis)
  update, seen = quick_jit(level.update), np.array([0.0, 1.0])
  before = update(quick_jit(level.init)(params), levels.Weighted(first, np.ones(2)))
  after = update(before, levels.Weighted(second * np.expand_dims(seen, 1 - axis), seen))
  still, moved = (np.moveaxis(np.asarray(level.read(s)), axis, 0) for s in (before, after))
  np.testing.assert_array_equal(moved[0], still[0])
  assert (moved[1] != still[1]).all()


@pytest.mark.parametrize('batch_axis', [None, 0])
def test_from_optax_decays_nothing_where_nothing_was_seen(batch_axis):
  tx = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0))
  level = levels.from_optax(tx, batch_axis=batch_axis)
  weight = 0.0 if batch_axis is None else jnp.array([0.0, 1.0])
  state = level.update(level.init(jnp.ones(2)), levels.Weighted(jnp.zeros(2), weight))
  assert level.read(state).tolist() == ([1, 1] if batch_axis is None else [1, 0.5])


def test_from_optax_sums_gradients_of_half_precision_in_single():
  level = levels.from_optax(optax.sgd(1.0, momentum=0.9), period=1024)
  signal = levels.Weighted(jnp.ones((), jnp.bfloat16), 1.0)

  def tick(state, _):
    return level.update(state, signal), ()

  state = quick_jit(lambda: jax.lax.scan(tick, level.init(signal.total - 1), length=1024)[0])()
  assert level.read(state).dtype == jnp.bfloat16
  assert float(level.read(state)) == -1
