"""Inner objectives: what a memory lowers when it writes."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nlx import core


class Objective(NamedTuple):
  """A loss between what a memory returns and what it should return.

  Attributes:
    name: For tables.
    error: `(prediction [..., V], target [..., V]) -> [..., V]`, the gradient of the loss for the
      prediction.
  """

  name: str
  error: Callable[[jax.Array, jax.Array], jax.Array]


@functools.cache
def l2() -> Objective:
  """1/2 ||M(k) - v||^2.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eq. 65.
  """
  return Objective('L2', lambda prediction, target: prediction - target)


@functools.cache
def dot_product() -> Objective:
  """-<M(k), v>, Hebbian.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eq. 64.
  """
  return Objective('dot product', lambda prediction, target: -target)


@functools.cache
def huber(threshold: float = 1.0) -> Objective:
  """1/2 ||e||^2 of the error e = M(k) - v up to a norm of `threshold`, linear in the norm beyond.

  A memory of several matrices writes errors that were taken at the start of its chunk; where gates
  are fully open, long chunks let them feed each other until answers diverge. Bounded errors do not.
  Ours: the norm is that of the whole error, so that its direction is kept.

  Args:
    threshold: Where the loss becomes linear; values of unit norm suggest 1.

  Returns:
    The objective.

  Raises:
    ValueError: If `threshold` is not above 0.

  References:
    Behrouz et al., Miras, arXiv 2504.13173, Sec. 5.
  """
  core.check_above_zero('threshold', threshold)

  def error(prediction, target):
    difference = prediction - target
    squared = jnp.sum(jnp.square(difference), axis=-1, keepdims=True)
    # Never below the threshold, so that the root is differentiable at an error of zero.
    return difference * threshold * jax.lax.rsqrt(jnp.maximum(squared, threshold**2))

  return Objective('Huber', error)


@functools.cache
def lp(p: float = 3.0) -> Objective:
  """1/p ||M(k) - v||_p^p; Moneta has p = 3.

  Args:
    p: The exponent, at least 2.

  Returns:
    The objective.

  Raises:
    ValueError: If `p` is smaller than 2, where the error has no derivative at zero, or not finite.

  References:
    Behrouz et al., Miras, arXiv 2504.13173, Sec. 5.
  """
  if not 2 <= p < float('inf'):
    raise ValueError(f'`p` must be a finite number of at least 2, got {p}.')

  def error(prediction, target):
    difference = prediction - target
    # A root of an error of zero would have no derivative; its slope is 0, or 1 where p is 2.
    at_zero = difference == 0
    size = core.power(jnp.where(at_zero, 1, jnp.abs(difference)), p - 2)
    return difference * jnp.where(at_zero & (p > 2), 0, size)

  return Objective(f'L{p:g}', error)
