import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx import core


@pytest.mark.parametrize(
  'a, b',
  [((3, 4), (4, 2)), ((5, 3, 4), (5, 4, 2)), ((2, 5, 3, 4), (1, 5, 4, 2)), ((5, 3, 4), (4, 2))],
)
def test_matmul_equals_the_operator_for_broadcast_leading_axes(a, b):
  a, b = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate((a, b)))
  np.testing.assert_allclose(core.matmul(a, b), np.matmul(a, b), rtol=1e-5, atol=1e-6)


def test_matmul_merges_leading_axes_into_one():
  program = jax.make_jaxpr(core.matmul)(jnp.ones((2, 5, 3, 4)), jnp.ones((1, 5, 4, 2)))
  (product,) = (e for e in program.eqns if e.primitive.name == 'dot_general')
  assert [x.aval.ndim for x in product.invars] == [3, 3]
