"""Newton-Schulz on plain matrices: the iteration that optimizers and memories share."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Triple = tuple[float, float, float]

QUINTIC: Triple = (3.4445, -4.7750, 2.0315)
"""Steepest at zero; singular values end between 0.68 and 1.21 instead of at 1 (Jordan, Muon)."""


def matrix_norm(x: jax.Array) -> jax.Array:
  """The Frobenius norm of matrices [..., M, N] as [..., 1, 1], differentiable at zero."""
  squared = jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True)
  return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def orthogonalize(x: jax.Array, schedule: Sequence[Triple], eps: float) -> jax.Array:
  """Brings the singular values of matrices near 1 and keeps their singular vectors.

  Args:
    x: [n, M, N] with M <= N.
    schedule: Coefficients (a, b, c) of each iteration X = (a I + b A + c A^2) X, A = X X^T.
    eps: Added to the Frobenius norm, by which x is divided first.

  Returns:
    [n, M, N], kept in at least float32; products are as precise as
    `jax.default_matmul_precision` says.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 43-44; Jordan et al., Muon, 2024.
  """
  dtype = x.dtype
  x = x.astype(jnp.promote_types(dtype, jnp.float32))
  x = x / (matrix_norm(x) + eps)
  eye = jnp.eye(x.shape[-2], dtype=x.dtype)[None]
  for a, b, c in schedule:
    gram = x @ x.mT
    x = (a * eye + b * gram + c * (gram @ gram)) @ x
  return x.astype(dtype)
