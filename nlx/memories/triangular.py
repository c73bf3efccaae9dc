"""The inverse of unit lower triangular matrices by matrix products only."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from nlx.core import matmul

_LEAF = 8  # below this a dense product costs less than splitting


@jax.custom_jvp
def unit_lower_inverse(strict: jax.Array) -> jax.Array:
  """(I + L)^-1 for strictly lower triangular L.

  Blocks of 8 by the exact product (I - L)(I + L^2)(I + L^4), larger ones by doubling: the inverse
  of [[P, 0], [Q, R]] is [[P', 0], [-R' Q P', R']]. Everything is a batched matrix product, so that
  accelerators and CPUs alike run it fast, and it can be differentiated any number of times:
  d(X) = -X dL X.

  Args:
    strict: L [..., C, C]; entries on and above the diagonal must be zero.

  Returns:
    [..., C, C], unit lower triangular.
  """
  size = strict.shape[-1]
  if size == 1:
    return jnp.ones_like(strict)
  padded = _LEAF
  while padded < size:
    padded *= 2
  if padded > size:
    pad = [(0, 0)] * (strict.ndim - 2) + [(0, padded - size)] * 2
    return _inverse(jnp.pad(strict, pad))[..., :size, :size]
  return _inverse(strict)


def unit_lower_inverses(stricts: Sequence[jax.Array]) -> list[jax.Array]:
  """`unit_lower_inverse` of several arrays [..., C, C], as one wherever they can be joined.

  A program of one inverse is smaller, and its products are fewer and larger. Equal shapes are
  joined along an axis of their own, since a mesh may divide those that they have.

  Args:
    stricts: Strictly lower triangular, of equal shapes, or of shapes that differ in the axis before
      the matrices alone, to be joined; of any others, each is inverted for itself.

  Returns:
    The inverse of each, [..., C, C].
  """
  leading = [strict.shape[:-2] for strict in stricts]
  if len(set(leading)) == 1:
    inverse = unit_lower_inverse(jnp.stack(stricts, axis=-3))
    return [inverse[..., i, :, :] for i in range(len(stricts))]
  if len({(len(shape), shape[:-1]) for shape in leading}) > 1:
    return [unit_lower_inverse(strict) for strict in stricts]
  ends = itertools.accumulate(shape[-1] for shape in leading[:-1])
  return jnp.split(unit_lower_inverse(jnp.concatenate(stricts, axis=-3)), list(ends), axis=-3)


@unit_lower_inverse.defjvp
def _unit_lower_inverse_jvp(primals, tangents):
  inverse = unit_lower_inverse(*primals)
  return inverse, -matmul(matmul(inverse, jnp.tril(tangents[0], -1)), inverse)


def _inverse(strict):
  size = strict.shape[-1]
  if size == _LEAF:
    eye = jnp.eye(size, dtype=strict.dtype)
    square = matmul(strict, strict)
    expand = strict.ndim - 2
    eye = eye.reshape((1,) * expand + eye.shape)
    return matmul(matmul(eye - strict, eye + square), eye + matmul(square, square))
  half = size // 2
  diagonal = jnp.stack([strict[..., :half, :half], strict[..., half:, half:]])
  first, second = _inverse(diagonal)
  corner = -matmul(matmul(second, strict[..., half:, :half]), first)
  upper = jnp.concatenate([first, jnp.zeros_like(corner)], axis=-1)
  return jnp.concatenate([upper, jnp.concatenate([corner, second], axis=-1)], axis=-2)
