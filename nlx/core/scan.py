"""The scan that every loop over time in this package goes through."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def scan_chunks(
  body: Callable[[Any, Any], tuple[Any, Any]],
  carry: Any,
  xs: Any,
  *,
  remat: bool = False,
  policy: Callable[..., Any] | None = None,
) -> tuple[Any, Any]:
  """`jax.lax.scan`, rematerialised on request, that calls the body directly for a single step.

  A loop of one step costs a compiler as much as a long one and hides its body from fusion, so it is
  not made.

  Args:
    body: `(carry, x) -> (carry, y)`.
    carry: The first carry.
    xs: A pytree with a common leading axis, at least 1 long.
    remat: Whether the backward pass recomputes each step from its carry.
    policy: What of a step it keeps all the same, of `jax.checkpoint_policies`; nothing if None.

  Returns:
    The last carry, and the outputs stacked along a leading axis.
  """
  length = jax.tree.leaves(xs)[0].shape[0]
  body = jax.checkpoint(body, prevent_cse=False, policy=policy) if remat else body
  if length == 1:
    carry, y = body(carry, jax.tree.map(lambda x: x[0], xs))
    return carry, jax.tree.map(lambda y: jnp.asarray(y)[None], y)
  return jax.lax.scan(body, carry, xs)


def split_time(x: jax.Array, size: int, axis: int) -> jax.Array:
  """Cuts a time axis into chunks and moves them to the front: [..., n C, ...] to [n, ..., C, ...].

  Args:
    x: An array whose time axis is a multiple of `size` long.
    size: C.
    axis: The time axis, counted from the end (negative).
  """
  shape = x.shape[:axis] + (x.shape[axis] // size, size) + x.shape[x.ndim + axis + 1 :]
  return jnp.moveaxis(x.reshape(shape), x.ndim + axis, 0)


def join_time(x: jax.Array, axis: int) -> jax.Array:
  """The inverse of `split_time`."""
  moved = jnp.moveaxis(x, 0, axis - 1)
  at = moved.ndim + axis - 1
  return moved.reshape(moved.shape[:at] + (-1,) + moved.shape[at + 2 :])
