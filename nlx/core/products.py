"""Matrix products in the form that compilers run fastest."""

import math

import jax
import jax.numpy as jnp

from nlx.core.mesh import auto_axes


def power(x: jax.Array, exponent: float) -> jax.Array:
  """Returns x ** exponent, by multiplications where the exponent is a whole number."""
  return x ** (int(exponent) if float(exponent).is_integer() else exponent)


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns a @ b with all leading axes merged into one: a plain batched product.

  A product whose operands broadcast otherwise becomes one with several free axes, and its
  derivatives have more; these are slow on CPUs, and some versions of XLA refuse them beyond a rank.
  Where a mesh divides arrays, axes stay apart: devices would have to gather those that merge.

  Args:
    a: [..., M, K].
    b: [..., K, N]; leading axes broadcast with those of a.

  Returns:
    [..., M, N].
  """
  leading = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])

  if auto_axes():
    return a @ b

  def merged(x):
    x = jnp.broadcast_to(x, leading + x.shape[-2:])
    return x.reshape((math.prod(leading), *x.shape[-2:]))

  return (merged(a) @ merged(b)).reshape((*leading, a.shape[-2], b.shape[-1]))
