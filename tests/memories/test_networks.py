import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx import memories
from tests.compiling import quick_jit

apply = quick_jit(memories.apply, static_argnums=0)


@functools.cache
def weights_of(network, *shape, **options):
  make = lambda: memories.init_weights(network, jax.random.key(0), *shape, **options)  # noqa: E731
  return jax.device_get(quick_jit(make)())


def keys_of(*shape):
  return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def test_matrix_is_a_linear_map():
  weights, keys = {'w': np.arange(6.0).reshape(2, 3)}, np.ones((5, 3))
  np.testing.assert_allclose(apply(memories.matrix(), weights, keys), keys @ weights['w'].T)


def test_mlp_is_residual():
  """Eq. 89."""
  network = memories.mlp(6, jnp.tanh)
  weights, keys = weights_of(network, 4, 4), keys_of(5, 4)
  expected = keys + np.tanh(keys @ weights['w2'].T) @ weights['w1'].T
  np.testing.assert_allclose(apply(network, weights, keys), expected, rtol=1e-5)


def test_mlp_without_output_weights_is_the_identity():
  network, keys = memories.mlp(6), keys_of(5, 4)
  weights = weights_of(network, 4, 4)
  weights = {**weights, 'w1': 0 * weights['w1']}
  np.testing.assert_array_equal(apply(network, weights, keys), keys)


def test_mlp_names_a_wrong_hidden_width():
  with pytest.raises(ValueError, match='`hidden` must be an integer of at least 1, got 0'):
    memories.mlp(0)


def test_mlp_names_unequal_widths():
  with pytest.raises(ValueError, match='needs equal widths, got key_dim=4 and value_dim=3'):
    memories.mlp(6).shapes(4, 3)


def test_apply_broadcasts_the_leading_axes_of_weights_with_those_of_keys():
  network = memories.mlp(6)
  weights, keys = weights_of(network, 4, 4, (2, 1, 3)), keys_of(1, 5, 3, 7, 4)
  out = apply(network, weights, keys)
  assert out.shape == (2, 5, 3, 7, 4)
  one = {name: weight[1, 0, 2] for name, weight in weights.items()}
  expected = apply(network, one, keys[0, 3, 2])
  np.testing.assert_allclose(np.asarray(out)[1, 3, 2], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('scale', [1.0, 0.5])
def test_init_weights_have_the_standard_deviation_asked_for(scale):
  weights = weights_of(memories.mlp(64), 16, 16, (40,), scale)
  assert {name: weight.shape for name, weight in weights.items()} == {
    'w1': (40, 16, 64),
    'w2': (40, 64, 16),
  }
  np.testing.assert_allclose(weights['w1'].std(), scale / 8, rtol=0.02)
  np.testing.assert_allclose(weights['w2'].std(), scale / 4, rtol=0.02)


def test_init_weights_of_two_matrices_differ():
  weights = weights_of(memories.mlp(4), 4, 4)
  assert np.abs(weights['w1'] - weights['w2']).min() > 0


def test_init_weights_have_the_dtype_asked_for():
  weights = weights_of(memories.matrix(), 4, 3, dtype=jnp.bfloat16)
  assert weights['w'].dtype == jnp.bfloat16


@pytest.mark.parametrize(
  'objective, loss',
  [
    (memories.l2(), lambda y, v: 0.5 * jnp.sum((y - v) ** 2)),
    (memories.dot_product(), lambda y, v: -jnp.sum(y * v)),
    (memories.huber(9.0), lambda y, v: 0.5 * jnp.sum((y - v) ** 2)),
    (memories.huber(0.5), lambda y, v: 0.5 * jnp.linalg.norm(y - v) - 0.125),
  ],
  ids=lambda x: getattr(x, 'name', ''),
)
def test_objective_error_is_the_gradient_of_its_loss(objective, loss):
  both = quick_jit(lambda *args: (objective.error(*args), jax.grad(loss)(*args)))
  np.testing.assert_allclose(*both(*keys_of(2, 5)), rtol=1e-6)


def test_huber_has_finite_derivatives_at_an_error_of_zero():
  slope = quick_jit(jax.jacobian(memories.huber().error))(jnp.ones(3), jnp.ones(3))
  np.testing.assert_allclose(slope, np.eye(3), atol=1e-6)


@pytest.mark.parametrize('threshold', [0, -1.0])
def test_huber_refuses_a_threshold_that_is_not_above_zero(threshold):
  with pytest.raises(ValueError, match='threshold'):
    memories.huber(threshold)
