"""Small slow parts that memories and blocks share: norms, projections, a causal convolution."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

_EPSILON = 1e-6


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float = _EPSILON) -> jax.Array:
  """Divides x by its root mean square along the last axis, times `scale`, in at least float32."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
  scale = scale.reshape((1,) * (x.ndim - scale.ndim) + scale.shape)
  return (wide * inverse * scale).astype(x.dtype)


def unit_norm(x: jax.Array) -> jax.Array:
  """Divides x by its L2 norm along the last axis; zero stays zero, with a finite derivative."""
  return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + _EPSILON)


def swiglu(
  x: jax.Array,
  up: Callable[[jax.Array], jax.Array],
  down: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """down(silu(gate) * value), where `up` gives gate and value [..., 2F] of x."""
  gate, value = jnp.split(up(x), 2, axis=-1)
  return down(jax.nn.silu(gate) * value)


def horizon_logits(heads: int) -> jax.Array:
  """Initial logits [H] of retentions whose horizons are spread from 256 to 4096 tokens.

  A residual memory both of whose matrices have decayed to zero has no gradient and stays there; an
  untrained gate must not bring it so far.
  """
  return jnp.log(jnp.logspace(8, 12, heads, base=2.0))


class RMSNorm(nnx.Module):
  """Root-mean-square normalisation with a learned scale."""

  def __init__(self, dim: int, *, epsilon: float = _EPSILON, dtype: Any = jnp.float32):
    self.scale = nnx.Param(jnp.ones((dim,), dtype))
    self.epsilon = epsilon

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., dim] to [..., dim]."""
    return rms_norm(x, self.scale[...], self.epsilon)


class Projection(nnx.Module):
  """A linear map without bias, computed in `dtype`, its parameters in `param_dtype`."""

  def __init__(
    self,
    in_dim: int,
    out_dim: int,
    *,
    rngs: nnx.Rngs,
    scale: float = 1.0,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
  ):
    std = scale / in_dim**0.5
    self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (in_dim, out_dim), param_dtype))
    self.dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., in_dim] to [..., out_dim]."""
    return x.astype(self.dtype) @ self.kernel[...].astype(self.dtype)


class CausalConv(nnx.Module):
  """A depthwise causal convolution that starts as the identity; its state is its last inputs."""

  def __init__(self, dim: int, width: int, *, rngs: nnx.Rngs, param_dtype: Any = jnp.float32):
    noise = 0.02 * jax.random.normal(rngs.params(), (width, dim), param_dtype)
    self.kernel = nnx.Param(noise.at[-1].add(1.0))
    self.width, self.dim = width, dim

  def init_state(self, batch_size: int, dtype: Any = jnp.float32) -> jax.Array:
    """Zeros [B, width - 1, dim]: nothing was seen."""
    return jnp.zeros((batch_size, self.width - 1, self.dim), dtype)

  def __call__(
    self, x: jax.Array, state: jax.Array, num_valid: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Convolves x [B, T, dim] after `state`.

    Args:
      x: Inputs.
      state: The inputs before them [B, width - 1, dim].
      num_valid: How many of the T inputs count for the new state; all if None.

    Returns:
      Outputs [B, T, dim] and the new state.
    """
    length = x.shape[1]
    padded = jnp.concatenate([state.astype(x.dtype), x], axis=1)
    kernel = self.kernel[...].astype(x.dtype)
    out = kernel[0][None, None] * padded[:, :length]
    for i in range(1, self.width):
      out += kernel[i][None, None] * padded[:, i : i + length]
    seen = length if num_valid is None else num_valid
    last = jax.lax.dynamic_slice_in_dim(padded, seen, self.width - 1, axis=1)
    return out, last.astype(state.dtype)
