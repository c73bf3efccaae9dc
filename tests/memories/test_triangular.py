import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx import memories
from nlx.memories import triangular
from tests.compiling import quick_jit


def strictly_lower(size, leading=(), seed=0):
  normal = np.random.default_rng(seed).normal(size=(*leading, size, size))
  return np.tril(normal, -1) / size**0.5


def plain_inverse(strict):
  eye = jnp.eye(strict.shape[-1]).reshape((1,) * (strict.ndim - 2) + strict.shape[-2:])
  return jnp.linalg.inv(eye + strict)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('size', [*range(1, 18), 24, 31, 32, 33, 48, 63, 64])
def test_unit_lower_inverse_equals_numpy(size):
  strict = strictly_lower(size)
  expected = np.linalg.inv(np.eye(size) + strict)
  got = quick_jit(memories.unit_lower_inverse)(strict)
  np.testing.assert_allclose(got, expected, atol=1e-12)


@pytest.mark.usefixtures('float64')
def test_unit_lower_inverse_is_exact_for_large_entries():
  strict = np.tril(np.full((12, 12), 3.0), -1)
  # (I + L)^-1 has -3 (-2)^(i - j - 1) below the diagonal.
  distance = np.subtract.outer(np.arange(12), np.arange(12))
  expected = np.where(distance > 0, -3 * (-2.0) ** (distance - 1), np.eye(12))
  np.testing.assert_array_equal(quick_jit(memories.unit_lower_inverse)(strict), expected)


@pytest.mark.usefixtures('float64')
def test_unit_lower_inverse_takes_leading_axes():
  strict = strictly_lower(11, (2, 3))
  expected = np.linalg.inv(np.eye(11) + strict)
  got = quick_jit(memories.unit_lower_inverse)(strict)
  np.testing.assert_allclose(got, expected, atol=1e-12)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  ('leading', 'num_programs'),
  [([(2, 3), (2, 3)], 1), ([(2, 1), (2, 3)], 1), ([(1, 3), (2, 3)], 2), ([(3,), (2, 3)], 2)],
  ids=['equal', 'joined', 'unequal', 'ranks'],
)
def test_unit_lower_inverses_are_joined_where_they_can_be(leading, num_programs):
  stricts = [strictly_lower(11, axes, seed=i) for i, axes in enumerate(leading)]
  for got, strict in zip(triangular.unit_lower_inverses(stricts), stricts, strict=True):
    np.testing.assert_allclose(got, np.linalg.inv(np.eye(11) + strict), atol=1e-12)
  program = str(jax.make_jaxpr(triangular.unit_lower_inverses)(stricts))
  alone = str(jax.make_jaxpr(memories.unit_lower_inverse)(stricts[0]))
  assert program.count('dot_general') == num_programs * alone.count('dot_general')


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('size', [1, 5, 8, 19])
def test_unit_lower_inverse_has_the_derivatives_of_an_inverse(size):
  strict = strictly_lower(size)
  directions = strictly_lower(size, seed=1), strictly_lower(size, seed=2)

  def derivatives(inverse):
    def first(strict):
      return jax.jvp(inverse, (strict,), directions[:1])[1]

    def loss(strict):
      return jnp.sum(jnp.sin(inverse(strict)))

    _, second = jax.jvp(first, (strict,), directions[1:])
    gradient, hessian_product = jax.jvp(jax.grad(loss), (strict,), directions[:1])
    return first(strict), second, jnp.tril(gradient, -1), jnp.tril(hessian_product, -1)

  got, expected = (
    quick_jit(functools.partial(derivatives, inverse))()
    for inverse in (memories.unit_lower_inverse, plain_inverse)
  )
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-11), got, expected)


def test_unit_lower_inverse_uses_matrix_products_only():
  program = str(jax.make_jaxpr(memories.unit_lower_inverse)(jnp.zeros((64, 64))))
  assert 'dot_general' in program
  assert not any(name in program for name in ('triangular_solve', 'lu', 'while', 'scan'))
