import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx import core

TREE = {'a': jnp.array([3.0, 0.0]), 'b': (jnp.array([[4.0]]),)}
ZEROS = jax.tree.map(jnp.zeros_like, TREE)


def test_tree_add_keeps_the_dtypes_of_the_first():
  total = core.tree_add({'a': jnp.ones(2, jnp.bfloat16)}, {'a': jnp.full(2, 0.5)})
  assert total['a'].dtype == jnp.bfloat16
  np.testing.assert_array_equal(total['a'].astype(jnp.float32), [1.5, 1.5])


def test_tree_zeros_like_keeps_structure_shapes_and_dtypes():
  tree = {**TREE, 'c': jnp.ones(3, jnp.int8)}
  zeros = core.tree_zeros_like(tree)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), zeros) == jax.tree.map(
    lambda x: (x.shape, x.dtype), tree
  )
  assert not any(x.any() for x in jax.tree.leaves(zeros))


def test_tree_size_counts_elements():
  assert core.tree_size({'a': jnp.zeros((2, 3)), 'b': [jnp.zeros(())]}) == 7


@pytest.mark.parametrize('condition', [True, False])
def test_select_takes_one_of_two_trees(condition):
  selected = jax.jit(core.select)(condition, TREE, ZEROS)
  jax.tree.map(np.testing.assert_array_equal, selected, TREE if condition else ZEROS)


def test_squared_norm_sums_over_all_leaves():
  assert core.squared_norm(TREE) == 25


def test_squared_norm_of_nothing_is_zero():
  assert core.squared_norm({}) == 0


def test_squared_norm_does_not_lose_small_terms_of_a_half_precision_tree():
  assert core.squared_norm({'a': jnp.ones(1001, jnp.bfloat16)}) == 1001


@pytest.mark.parametrize('max_norm', [0.5, 1.0, 4.0])
def test_clip_by_norm_reaches_the_maximal_norm_from_above(max_norm):
  clipped = core.clip_by_norm(TREE, max_norm)
  np.testing.assert_allclose(core.squared_norm(clipped), max_norm**2, rtol=1e-6)
  np.testing.assert_allclose(clipped['a'][0] / clipped['b'][0][0, 0], 0.75, rtol=1e-6)


def test_clip_by_norm_lets_smaller_trees_pass_unchanged():
  jax.tree.map(np.testing.assert_array_equal, core.clip_by_norm(TREE, 5.5), TREE)


def test_clip_by_norm_keeps_dtypes():
  assert core.clip_by_norm({'a': jnp.ones(9, jnp.bfloat16)}, 1.0)['a'].dtype == jnp.bfloat16


def test_clip_by_norm_is_the_identity_near_zero_to_second_order():
  def clipped(x):
    return core.clip_by_norm({'x': x}, 2.0)['x']

  first, second = jax.jacobian(clipped), jax.jacobian(jax.jacobian(clipped))
  np.testing.assert_array_equal(jax.jit(first)(jnp.zeros(3)), np.eye(3))
  np.testing.assert_array_equal(jax.jit(second)(jnp.zeros(3)), 0)


@pytest.mark.usefixtures('float64')
def test_clip_by_norm_has_the_derivative_of_a_projection_above_the_bound():
  x, direction = np.array([3.0, -4.0, 12.0]), np.array([0.2, 0.5, -0.1])
  _, got = jax.jit(lambda *args: jax.jvp(lambda x: core.clip_by_norm(x, 2.0), args[:1], args[1:]))(
    x, direction
  )
  unit = x / np.linalg.norm(x)
  expected = 2 / np.linalg.norm(x) * (direction - unit * (unit @ direction))
  np.testing.assert_allclose(got, expected, rtol=1e-12)
