"""Inverse roots of symmetric matrices, by matrix products only."""

import math

import jax
import jax.numpy as jnp

from nlx import core
from nlx.optim import leaves

# What is left to do once the smallest eigenvalue has come near 1: errors are squared per step.
_LAST_STEPS = 6


def largest_row_sum(matrix: jax.Array) -> jax.Array:
  """The largest sum of absolute values in a row, [..., 1, 1]: a bound of all eigenvalues.

  It holds no squares, so that it neither overflows nor vanishes before the matrix does.
  """
  sums = jnp.sum(jnp.abs(matrix), axis=-1, keepdims=True)
  return jnp.max(sums, axis=-2, keepdims=True, initial=0)


def inverse_root(
  matrix: jax.Array, power: int, *, ridge: float = 1e-6, steps: int | None = None
) -> jax.Array:
  """A^(-1/power) of symmetric positive semi-definite matrices, by a coupled Newton iteration.

      T = ((power + 1) I - M) / power        X = X T        M = T^power M

  with M = c A and X = c^(1/power) I at first, which keeps M = X^power A until M is I. It runs at
  full float32 precision on every backend, since roots stretch rounding errors.

  Args:
    matrix: [..., N, N], symmetric, with no eigenvalue below zero.
    power: Of the root, at least 1.
    ridge: Added to the eigenvalues, relative to a bound of the largest one, the largest row sum. It
      may not lie below the machine precision.
    steps: Iterations; as many as eigenvalues down to the ridge need, if not given.

  Returns:
    [..., N, N], symmetric, in the dtype of `matrix`. The root of zeros is a multiple of I.

  Raises:
    ValueError: If `power` or `steps` is smaller than 1, or `ridge` is not in [precision, 1).

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> nlx.optim.inverse_root(jnp.diag(jnp.array([4.0, 16.0])), 2).diagonal().round(3).tolist()
    [0.5, 0.25]

  References:
    Guo and Higham, A Schur-Newton method for the matrix p-th root, 2006; Anil et al., Scalable
    Second Order Optimization for Deep Learning, arXiv 2002.09018.
  """
  core.check_positive('power', power)
  a = leaves.in_float32(matrix)
  precision = float(jnp.finfo(a.dtype).eps)
  if not precision <= ridge < 1:
    raise ValueError(f'`ridge` must be in [{precision:.2g}, 1) for {a.dtype}, got {ridge}.')
  growth = power * math.log1p(1 / power)  # Small eigenvalues grow by (1 + 1/power)^power per step.
  if steps is None:
    steps = math.ceil(-math.log(ridge) / growth) + _LAST_STEPS
  core.check_positive('steps', steps, 'step')
  a = a.reshape((-1, *a.shape[-2:])) if a.size else a  # One batch axis: plain batched products.
  with jax.default_matmul_precision('highest'):
    root = _coupled_newton(a, power, ridge, steps)
  return root.reshape(matrix.shape).astype(matrix.dtype)


def _coupled_newton(a, power, ridge, steps):
  """Of matrices [B, N, N]."""
  bound = largest_row_sum(a)
  bound = jnp.where(bound >= jnp.finfo(a.dtype).tiny, bound, 1)  # Zeros stay zeros.
  eye = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
  start = (1 + power) / 2 / (1 + ridge)  # Any M of norm less than 1 + power converges.

  def step(_, carry):
    x, m = carry
    t = ((power + 1) * eye - m) / power
    m = jnp.linalg.matrix_power(t, power) @ m
    return x @ t, (m + m.mT) / 2  # Asymmetry, a rounding error, would grow.

  x, _ = jax.lax.fori_loop(0, steps, step, (eye, start * (a / bound + ridge * eye)))
  return (x + x.mT) / 2 * start ** (1 / power) * bound ** (-1 / power)
