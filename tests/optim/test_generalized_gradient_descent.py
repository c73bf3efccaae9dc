import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlx.optim.generalized_gradient_descent import (
  generalized_gradient_descent,
  scale_by_generalized_gradient_descent,
)

PARAMS = {'w': jnp.array([[0.5, -1.5], [2.0, 0.3]]), 'b': jnp.array([1.0]), 's': jnp.array(2.0)}
GRADIENTS = {'w': jnp.array([[1.0, 0.3], [-0.7, 2.0]]), 'b': jnp.array([0.1]), 's': jnp.array(3.0)}


def step(tx, params=None, gradients=None):
  params = PARAMS if params is None else params
  gradients = GRADIENTS if gradients is None else gradients

  @jax.jit
  def after(params):
    updates, _ = tx.update(gradients, tx.init(params), params)
    return optax.apply_updates(params, updates)

  return jax.device_get(after(params))


def float64(tree):
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


@pytest.mark.parametrize('inner_steps', [1, 5])
@pytest.mark.parametrize('rate', [0.3, 0.0, optax.linear_schedule(0.0, 1.0, 10)])
def test_generalized_gradient_descent_is_sgd_by_default(rate, inner_steps):
  """To the last bit."""
  got, want = generalized_gradient_descent(rate, inner_steps=inner_steps), optax.sgd(rate)
  got_state, want_state = (jax.jit(tx.init)(PARAMS) for tx in (got, want))
  for _ in range(3):
    got_updates, got_state = jax.jit(got.update)(GRADIENTS, got_state, PARAMS)
    want_updates, want_state = jax.jit(want.update)(GRADIENTS, want_state, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, got_updates, want_updates)


@pytest.mark.usefixtures('float64')
def test_written_out_defaults_are_sgd():
  tx = generalized_gradient_descent(
    0.3,
    objective=lambda weight, gradient: jnp.sum(weight * gradient),
    retention=lambda weight, old, rate: jnp.sum((weight - old) ** 2) / (2 * rate),
    inner_steps=3,
  )
  got, want = step(tx, float64(PARAMS), float64(GRADIENTS)), step(optax.sgd(0.3))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)


@pytest.mark.usefixtures('float64')
def test_ridge_retention_has_its_closed_form(rate=0.2, ridge=1.5):
  """W+ = (W0 / eta - g) / (1 / eta + c)."""

  def retention(weight, old, rate):
    return jnp.sum((weight - old) ** 2) / (2 * rate) + ridge / 2 * jnp.sum(weight**2)

  params, gradients = float64(PARAMS), float64(GRADIENTS)
  tx = generalized_gradient_descent(rate, retention=retention, inner_steps=60)
  want = jax.tree.map(lambda w, g: (w / rate - g) / (1 / rate + ridge), params, gradients)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), step(tx, params, gradients), want
  )


@pytest.mark.usefixtures('float64')
def test_entropic_retention_is_exponentiated_gradient(rate=0.2):
  """The Bregman divergence of the negative entropy has W+ = W0 exp(-eta g)."""

  def retention(weight, old, rate):
    return jnp.sum(weight * jnp.log(weight / old) - weight + old) / rate

  params = {'w': np.array([0.5, 1.5, 2.0])}
  gradients = {'w': np.array([1.0, -0.7, 0.3])}
  tx = generalized_gradient_descent(rate, retention=retention, inner_steps=200, inner_rate=0.5)
  want = params['w'] * np.exp(-rate * gradients['w'])
  np.testing.assert_allclose(step(tx, params, gradients)['w'], want, rtol=1e-10)


@pytest.mark.usefixtures('float64')
def test_result_is_stationary_for_the_users_objective_and_retention(rate=0.2):
  """An L2 regression of W onto -g and an L4 retention have no slope left at W+."""

  def objective(weight, gradient):
    return jnp.sum((weight + gradient) ** 2) / 2

  def retention(weight, old, rate):
    return jnp.sum((weight - old) ** 4) / (4 * rate)

  params, gradients = {'w': np.array([0.5, -1.5, 2.0])}, {'w': np.array([1.0, 0.3, -0.7])}
  tx = generalized_gradient_descent(
    rate, objective=objective, retention=retention, inner_steps=500, inner_rate=0.5
  )
  w, old, g = step(tx, params, gradients)['w'], params['w'], gradients['w']
  slope = jax.jit(jax.grad(lambda w: objective(w, g) + retention(w, old, rate)))(w)
  np.testing.assert_allclose(slope, 0, atol=1e-9)


def test_a_leaf_of_bfloat16_has_updates_of_bfloat16():
  gradients = jax.tree.map(lambda g: g.astype(jnp.bfloat16), GRADIENTS)
  tx = scale_by_generalized_gradient_descent(0.1)
  updates, _ = jax.jit(tx.update)(gradients, jax.jit(tx.init)(PARAMS), PARAMS)
  jax.tree.map(np.testing.assert_array_equal, updates, gradients)


def test_weights_decay_next_to_the_step():
  got = step(generalized_gradient_descent(0.1, weight_decay=0.5))
  params, gradients = jax.device_get((PARAMS, GRADIENTS))
  want = jax.tree.map(lambda p, g: p - 0.1 * (g + 0.5 * p), params, gradients)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)


def test_generalized_gradient_descent_takes_injected_numbers():
  factory = optax.inject_hyperparams(generalized_gradient_descent, static_args='inner_steps')
  got = step(factory(learning_rate=0.1, inner_steps=2, inner_rate=0.5))
  want = step(generalized_gradient_descent(0.1, inner_steps=2, inner_rate=0.5))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)


def test_update_needs_params():
  tx = generalized_gradient_descent(0.1)
  with pytest.raises(ValueError, match='needs params'):
    tx.update(GRADIENTS, tx.init(PARAMS))


@pytest.mark.parametrize(
  'options, message', [({'inner_steps': 0}, 'inner_steps'), ({'inner_rate': -1.0}, 'inner_rate')]
)
def test_generalized_gradient_descent_refuses(options, message):
  with pytest.raises(ValueError, match=f'`{message}`'):
    generalized_gradient_descent(0.1, **options)


def test_retention_that_divides_by_a_learning_rate_of_zero_gives_no_nan():
  def ridge(weight, old, learning_rate):
    return jnp.sum((weight - old) ** 2) / (2 * learning_rate) + jnp.sum(weight**2)

  tx = generalized_gradient_descent(optax.linear_schedule(0.0, 1.0, 10), retention=ridge)
  params = jnp.ones(2)
  updates, _ = jax.jit(tx.update)(jnp.ones(2), jax.jit(tx.init)(params), params)
  assert not updates.any()
