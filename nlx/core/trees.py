"""Pytree arithmetic."""

from typing import TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar('Tree')


def tree_add(a: Tree, b: Tree) -> Tree:
  """Leaf by leaf `a + b`, in the dtypes of `a`."""
  return jax.tree.map(lambda x, y: x + jnp.asarray(y, x.dtype), a, b)


def tree_zeros_like(tree: Tree) -> Tree:
  """Zeros of the same structure, shapes and dtypes."""
  return jax.tree.map(jnp.zeros_like, tree)


def tree_size(tree: object) -> int:
  """The number of elements in all leaves."""
  return sum(x.size for x in jax.tree.leaves(tree))


def select(condition: jax.Array, on_true: Tree, on_false: Tree) -> Tree:
  """One of two trees of equal structure, by a scalar condition."""
  return jax.tree.map(lambda x, y: jnp.where(condition, x, y), on_true, on_false)


def squared_norm(tree: object) -> jax.Array:
  """The sum of squares of all leaves, accumulated in at least float32."""

  def leaf(x):
    return jnp.sum(jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32))))

  return sum((leaf(x) for x in jax.tree.leaves(tree)), jnp.zeros(()))


def root_mean_square(tree: object) -> jax.Array:
  """The root of the mean square over all elements of the floating leaves."""
  floating = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
  return jnp.sqrt(squared_norm(floating) / tree_size(floating))


def clip_by_norm(tree: Tree, max_norm: float) -> Tree:
  """Scales `tree` so that its global norm is at most `max_norm`.

  The scale is a function of the squared norm with no square root at zero, so that its derivative is
  finite everywhere; an all-zero tree under an outer gradient is what an inner loop starts from.

  Args:
    tree: A pytree of arrays.
    max_norm: The largest norm that passes unchanged; above it the norm becomes `max_norm`.

  Returns:
    The scaled tree.
  """
  excess = jnp.maximum(squared_norm(tree) / max_norm**2, 1.0)
  scale = jax.lax.rsqrt(excess)
  return jax.tree.map(lambda x: (scale * x).astype(x.dtype), tree)
