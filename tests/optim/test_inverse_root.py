import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx.optim.inverse_root import inverse_root as plain_inverse_root
from nlx.optim.inverse_root import largest_row_sum

inverse_root = jax.jit(plain_inverse_root, static_argnames=('power', 'ridge', 'steps'))


def matrices(condition, leading=(2, 3), size=6):
  """Symmetric positive definite matrices with eigenvalues from 1 down to 1 / condition."""
  rng = np.random.default_rng(0)
  basis = np.linalg.qr(rng.normal(size=(*leading, size, size)))[0]
  values = np.geomspace(1, 1 / condition, size).reshape((1,) * (len(leading) + 1) + (size,))
  return (basis * values) @ np.swapaxes(basis, -1, -2)


def reference(matrix, power, ridge):
  """By eigenvalues, with the ridge that `inverse_root` adds."""
  bound = np.abs(matrix).sum(-1).max(-1)[..., None]
  values, basis = np.linalg.eigh(matrix)
  scaled = basis * ((values + ridge * bound) ** (-1 / power))[..., None, :]
  return scaled @ np.swapaxes(basis, -1, -2)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('power', [1, 2, 3, 4])
@pytest.mark.parametrize('condition', [1, 1e4, 1e6])
def test_inverse_root_is_that_of_the_eigenvalues(power, condition):
  a = matrices(condition)
  got = inverse_root(a, power)
  want = reference(a, power, 1e-6)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-9 * np.abs(want).max())


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('power', [2, 4])
def test_inverse_root_inverts_with_a_ridge_too_small_to_matter(power):
  """R^power A = I at condition 1e4, where the ridge moves the smallest eigenvalue by 2e-8."""
  a = matrices(1e4)
  root = np.asarray(inverse_root(a, power, ridge=1e-12))
  product = np.linalg.matrix_power(root, power) @ a
  np.testing.assert_allclose(product, np.broadcast_to(np.eye(6), a.shape), atol=1e-7)


@pytest.mark.parametrize('power', [2, 4])
def test_inverse_root_in_float32_is_right_where_the_matrix_has_no_rank(power):
  """To 2 %: its smallest eigenvalues, the ridge, are a few times the rounding errors."""
  factor = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
  a = factor @ factor.T
  got = inverse_root(a, power)
  want = reference(np.float64(factor) @ np.float64(factor).T, power, 1e-6)
  assert np.linalg.norm(got - want) < 0.02 * np.linalg.norm(want)


def test_inverse_root_of_zeros_is_finite():
  root = inverse_root(jnp.zeros((2, 3, 3)), 4)
  np.testing.assert_allclose(
    root, np.broadcast_to(10**1.5 * np.eye(3), root.shape), rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize('scale', [1e-30, 1e30])
def test_inverse_root_scales_with_the_matrix(scale):
  a = matrices(10, ()).astype(np.float32)
  got = inverse_root(scale * a, 4) * scale**0.25
  np.testing.assert_allclose(got, inverse_root(a, 4), rtol=1e-4, atol=1e-5)


def test_inverse_root_keeps_bfloat16():
  root = inverse_root(jnp.eye(2, dtype=jnp.bfloat16), 2)
  assert root.dtype == jnp.bfloat16
  np.testing.assert_allclose(root.astype(jnp.float32), np.eye(2), atol=1e-2)


def test_inverse_root_takes_no_matrices():
  assert inverse_root(jnp.zeros((0, 3, 3)), 2).shape == (0, 3, 3)


@pytest.mark.usefixtures('float64')
def test_largest_row_sum_bounds_the_eigenvalues():
  a = np.random.default_rng(0).normal(size=(20, 5, 5))
  a = a @ np.swapaxes(a, -1, -2)
  bound = np.asarray(jax.jit(largest_row_sum)(a))[:, 0, 0]
  assert (bound >= np.linalg.eigvalsh(a)[:, -1]).all()


@pytest.mark.parametrize(
  'power, options, message',
  [
    (0, {}, '`power` must be an integer of at least 1, got 0'),
    (2, {'steps': 0}, '`steps` must be an integer of at least 1 step, got 0'),
    (2, {'ridge': 0.0}, r'`ridge` must be in \[1.2e-07, 1\) for float32, got 0.0'),
    (2, {'ridge': 1.0}, '`ridge` must be in .* got 1.0'),
  ],
)
def test_inverse_root_out_of_range_is_an_error(power, options, message):
  with pytest.raises(ValueError, match=message):
    inverse_root(jnp.eye(2), power, **options)
