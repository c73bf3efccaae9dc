"""What every optimizer of this package does to the leaves of a tree."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Updates = Any
Params = Any


def transformation(
  init: Callable[[Params], Any],
  update: Callable[[Updates, Any, Params | None], tuple[Updates, Any]],
) -> optax.GradientTransformationExtraArgs:
  """An optax transformation that swallows the extra arguments that are meant for others."""

  def update_with_extra_args(updates, state, params=None, **extra_args):
    del extra_args
    return update(updates, state, params)

  return optax.GradientTransformationExtraArgs(init, update_with_extra_args)


def in_float32(x: jax.Array) -> jax.Array:
  """`x` in at least float32, in which all fast state is kept."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def zeros(params: Params) -> Params:
  """A memory of zeros for every leaf, in at least float32, with the leaf's sharding."""
  return jax.tree.map(lambda p: jnp.zeros_like(p, jnp.promote_types(p.dtype, jnp.float32)), params)


def as_dtypes_of(updates: Updates, like: Updates) -> Updates:
  """Updates in the dtypes of the gradients that they come from."""
  return jax.tree.map(lambda u, g: u if u.dtype == g.dtype else u.astype(g.dtype), updates, like)


def part_by_part(per_leaf: Any, part: Any, tree: Any) -> Any:
  """From records at the places of the leaves of `tree` to one record of trees like it.

  State is kept so: containers such as `nnx.Optimizer` take what is at the place of a leaf for one
  array.

  Args:
    per_leaf: Like `tree`, with a record like `part` for each leaf.
    part: A dict or tuple of anything.
    tree: Any tree.
  """
  structure: Any = jax.tree.structure(tree)
  record: Any = jax.tree.structure(part)
  rows = [record.flatten_up_to(one) for one in structure.flatten_up_to(per_leaf)]
  trees = [structure.unflatten(row[i] for row in rows) for i in range(record.num_leaves)]
  return record.unflatten(trees)


def as_matrix(x: jax.Array) -> jax.Array:
  """A leaf as matrices [..., M, N]: a vector is one row, a scalar one row of one."""
  return x.reshape((1,) * (2 - x.ndim) + x.shape)


def on_matrices(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Lets a function of matrices [..., M, N] work on leaves of any rank."""

  def apply(x, *others):
    return function(as_matrix(x), *map(as_matrix, others)).reshape(x.shape)

  return apply


def check_decay(name: str, value: Any) -> None:
  """Raises ValueError unless 0 <= value < 1; values that are arrays pass unchecked."""
  if isinstance(value, int | float) and not 0 <= value < 1:
    raise ValueError(f'`{name}` must be in [0, 1), got {value}.')


def check_not_negative(name: str, value: Any) -> None:
  """Raises ValueError if a number is below zero; values that are arrays pass unchecked."""
  if isinstance(value, int | float) and not value >= 0:
    raise ValueError(f'`{name}` must not be negative, got {value}.')
