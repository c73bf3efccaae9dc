import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlx.optim.higher_order_momentum import (
  higher_order_momentum,
  polynomial,
  scale_by_higher_order_momentum,
)
from nlx.optim.preconditioners import diagonal

NUM_STEPS = 20
GRADIENTS = np.random.default_rng(0).normal(size=(NUM_STEPS, 3, 4))


def updates_of(tx, gradients=GRADIENTS):
  params = jnp.ones(gradients.shape[1:])
  update, state, seen = jax.jit(tx.update), jax.jit(tx.init)(params), []
  for gradient in gradients:
    updates, state = update(gradient, state, params)
    seen.append(np.asarray(updates))
  return np.stack(seen)


@pytest.mark.usefixtures('float64')
def test_first_power_alone_is_momentum():
  tx = scale_by_higher_order_momentum(0.9, features=polynomial((1.0,)))
  np.testing.assert_array_equal(updates_of(tx), updates_of(optax.trace(0.9)))


@pytest.mark.usefixtures('float64')
def test_polynomial_is_its_powers_relative_to_the_root_mean_square():
  gradient = GRADIENTS[0]
  root = np.sqrt(np.mean(gradient**2))
  x = gradient / root
  want = root * (0.5 * x + 0.2 * x**3 + 0.1 * x**5)
  got = jax.jit(polynomial((0.5, 0.2, 0.1)))(gradient)
  np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.usefixtures('float64')
def test_higher_order_momentum_is_a_plain_loop():
  """Eq. 51 with a preconditioner that learns from the features."""
  decay, rms = 0.9, optax.scale_by_rms(0.9, eps_in_sqrt=False)
  features = polynomial((1.0, 0.3))
  tx = scale_by_higher_order_momentum(
    decay, features=features, preconditioner=diagonal(0.9, debias=False)
  )
  step = jax.jit(lambda gradient, state: rms.update(features(gradient), state))
  state, memory = rms.init(jnp.zeros((3, 4))), 0.0
  for gradient, got in zip(GRADIENTS, updates_of(tx), strict=True):
    updates, state = step(gradient, state)
    memory = decay * memory + np.asarray(updates)
    np.testing.assert_allclose(got, memory, rtol=1e-12)


@pytest.mark.parametrize('scale', [1e-3, 1e3])
def test_step_scales_as_the_gradient(scale):
  tx = scale_by_higher_order_momentum()
  got = updates_of(tx, scale * GRADIENTS)
  np.testing.assert_allclose(got, scale * updates_of(tx), rtol=1e-4)


def test_polynomial_keeps_the_sign_of_every_element():
  features = jax.jit(polynomial((0.0, 1.0, 2.0)))(GRADIENTS)
  np.testing.assert_array_equal(np.sign(features), np.sign(GRADIENTS))


def test_stack_of_matrices_has_features_of_each_alone():
  stack, features = GRADIENTS[:2] * np.array([1, 10.0]).reshape(2, 1, 1), jax.jit(polynomial())
  np.testing.assert_allclose(features(stack), [features(x) for x in stack], rtol=1e-6)


@pytest.mark.parametrize('shape', [(), (3,), (2, 3), (2, 2, 3)])
def test_zero_gradients_have_zero_features(shape):
  assert not np.any(jax.jit(polynomial())(jnp.zeros(shape)))


def test_updates_have_the_dtype_of_gradients_and_the_state_float32():
  tx = scale_by_higher_order_momentum()
  gradient = jnp.ones((2, 3), jnp.bfloat16)
  updates, state = jax.eval_shape(lambda: tx.update(gradient, tx.init(gradient)))
  assert updates.dtype == jnp.bfloat16
  assert state.momentum.memory.dtype == jnp.float32


def test_optimizer_descends_along_its_direction_with_weight_decay():
  want = -0.1 * (updates_of(scale_by_higher_order_momentum())[0] + 0.01)
  got = updates_of(higher_order_momentum(0.1, weight_decay=0.01))[0]
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('coefficients', [(), (0.0, 0.0), (1.0, -0.1)])
def test_polynomial_out_of_range_is_an_error(coefficients):
  with pytest.raises(ValueError, match='`coefficients` must not be negative, and one .* got'):
    polynomial(coefficients)


def test_decay_out_of_range_is_an_error():
  with pytest.raises(ValueError, match=r'`decay` must be in \[0, 1\), got 1.0'):
    scale_by_higher_order_momentum(1.0)
