import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx import memories


def test_matrix_is_a_linear_map():
  weights = {'w': jnp.arange(6.0).reshape(2, 3)}
  keys = jnp.ones((5, 3))
  np.testing.assert_allclose(
    memories.apply(memories.matrix(), weights, keys), keys @ weights['w'].T
  )


def test_mlp_is_residual():
  """Eq. 89."""
  network = memories.mlp(6, jax.nn.gelu)
  weights = memories.init_weights(network, jax.random.key(0), 4, 4)
  keys = jax.random.normal(jax.random.key(1), (5, 4))
  expected = keys + jax.nn.gelu(keys @ weights['w2'].T) @ weights['w1'].T
  np.testing.assert_allclose(memories.apply(network, weights, keys), expected, rtol=1e-5)


def test_mlp_without_output_weights_is_the_identity():
  network = memories.mlp(6)
  weights = memories.init_weights(network, jax.random.key(0), 4, 4)
  keys = jax.random.normal(jax.random.key(1), (5, 4))
  weights['w1'] = jnp.zeros_like(weights['w1'])
  np.testing.assert_array_equal(memories.apply(network, weights, keys), keys)


def test_mlp_names_a_wrong_hidden_width():
  with pytest.raises(ValueError, match='`hidden` must be an integer of at least 1, got 0'):
    memories.mlp(0)


def test_mlp_names_unequal_widths():
  with pytest.raises(ValueError, match='needs equal widths, got key_dim=4 and value_dim=3'):
    memories.mlp(6).shapes(4, 3)


def test_apply_broadcasts_the_leading_axes_of_weights_with_those_of_keys():
  network = memories.mlp(6)
  weights = memories.init_weights(network, jax.random.key(0), 4, 4, (2, 1, 3))
  keys = jax.random.normal(jax.random.key(1), (1, 5, 3, 7, 4))
  out = memories.apply(network, weights, keys)
  assert out.shape == (2, 5, 3, 7, 4)
  one = {name: weight[1, 0, 2] for name, weight in weights.items()}
  np.testing.assert_allclose(
    out[1, 3, 2], memories.apply(network, one, keys[0, 3, 2]), rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize('scale', [1.0, 0.5])
def test_init_weights_have_the_standard_deviation_asked_for(scale):
  weights = memories.init_weights(memories.mlp(64), jax.random.key(0), 16, 16, (40,), scale)
  assert {name: weight.shape for name, weight in weights.items()} == {
    'w1': (40, 16, 64),
    'w2': (40, 64, 16),
  }
  np.testing.assert_allclose(weights['w1'].std(), scale / 8, rtol=0.02)
  np.testing.assert_allclose(weights['w2'].std(), scale / 4, rtol=0.02)


def test_init_weights_of_two_matrices_differ():
  weights = memories.init_weights(memories.mlp(4), jax.random.key(0), 4, 4)
  assert np.abs(weights['w1'] - weights['w2']).min() > 0


def test_init_weights_have_the_dtype_asked_for():
  weights = memories.init_weights(memories.matrix(), jax.random.key(0), 4, 3, dtype=jnp.bfloat16)
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
  prediction, target = jax.random.normal(jax.random.key(0), (2, 5))
  np.testing.assert_allclose(
    objective.error(prediction, target), jax.grad(loss)(prediction, target), rtol=1e-6
  )


def test_huber_has_finite_derivatives_at_an_error_of_zero():
  slope = jax.jacobian(memories.huber().error)(jnp.ones(3), jnp.ones(3))
  np.testing.assert_allclose(slope, jnp.eye(3), atol=1e-6)


@pytest.mark.parametrize('threshold', [0, -1.0])
def test_huber_refuses_a_threshold_that_is_not_above_zero(threshold):
  with pytest.raises(ValueError, match='threshold'):
    memories.huber(threshold)
