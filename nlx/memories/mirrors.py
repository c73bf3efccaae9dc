"""Mirror maps: from the dual matrix that a rule moves to the weights that a memory has."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nlx import core


class Mirror(NamedTuple):
  """A mirror map: the rule moves a dual matrix A, and the memory computes with W = weight(A).

  Attributes:
    name: For tables.
    weight: `A [..., V, K] -> W [..., V, K]`.
  """

  name: str
  weight: Callable[[jax.Array], jax.Array]


@functools.cache
def lq_retention(q: float = 4.0, floor: float = 1.0) -> Mirror:
  """W = A / ||A||_q^(q-2), which keeps the weights from growing with what was written.

  Ours: the norm, over all entries of a matrix, is at least `floor`; without one the weights grow
  without bound as A decays.

  Args:
    q: The exponent of the norm, at least 2; Moneta has 4.
    floor: The least norm that divides, above 0.

  Returns:
    A mirror map for `gradient`.

  Raises:
    ValueError: If `q` is below 2 or not finite, or `floor` is not above 0.

  References:
    Behrouz et al., Miras, arXiv 2504.13173, Sec. 5 (Moneta).
  """
  core.check_above_zero('floor', floor)
  if not 2 <= q < float('inf'):
    raise ValueError(f'`q` must be a finite number of at least 2, got {q}.')

  def weight(dual):
    sizes = jnp.abs(dual)
    # The norm is taken in units of the largest entry, whose power would leave the range of floats.
    unit = jnp.maximum(jnp.max(sizes, axis=(-2, -1), keepdims=True), floor)
    unit = jax.lax.stop_gradient(unit)
    power = jnp.sum(core.power(sizes / unit, q), axis=(-2, -1), keepdims=True)
    norm = unit * jnp.maximum(power, core.power(floor / unit, q)) ** (1 / q)
    return dual * norm ** (2 - q)

  return Mirror(f'L{q:g}', weight)


@functools.cache
def kl_retention(scale: float | None = None) -> Mirror:
  """W = scale softmax(A) along the inputs: every row stays a distribution, times `scale`, ours.

  Retention by the Kullback-Leibler divergence from the last weights: with A = log W + const,
  W_t = scale softmax(alpha_t log W_{t-1} - step) moves A by the plain rule.

  Args:
    scale: The sum of a row; the square root of its length if not given.

  Returns:
    A mirror map for `gradient`.

  Raises:
    ValueError: If `scale` is not above 0.

  References:
    Behrouz et al., Miras, arXiv 2504.13173, Sec. 5 (Memora).
  """
  if scale is not None:
    core.check_above_zero('scale', scale)

  def weight(dual):
    size = dual.shape[-1] ** 0.5 if scale is None else scale
    return size * jax.nn.softmax(dual, axis=-1)

  return Mirror('KL', weight)
