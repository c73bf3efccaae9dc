"""The inverse of unit lower triangular matrices by matrix products only."""

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
