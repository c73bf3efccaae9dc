"""Softmax attention: the memory without parameters, which keeps every key and value."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from nlx import core
from nlx.memories.modules import Projection


class AttentionState(NamedTuple):
  """Keys and values seen so far."""

  keys: jax.Array  # [B, S, H, K]
  values: jax.Array  # [B, S, H, K]
  length: jax.Array  # int32 scalar: how many of the S places are filled


class Attention(nnx.Module):
  """Causal multi-head softmax attention with rotary positions, [B, T, D] to [B, T, D].

  It is the Nadaraya-Watson solution of the same L2 regression from keys to values that the other
  memories solve by gradient steps.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eq. 62; Su et al., RoFormer, arXiv
    2104.09864.
  """

  def __init__(
    self,
    model_dim: int,
    num_heads: int,
    *,
    rngs: nnx.Rngs,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
  ):
    core.check_divides('num_heads', num_heads, 'model_dim', model_dim)
    core.check_divides('2 (rotary pairs)', 2, 'head_dim', model_dim // num_heads)
    dtypes = {'dtype': dtype, 'param_dtype': param_dtype}
    self.projection = Projection(model_dim, 3 * model_dim, rngs=rngs, **dtypes)
    self.output = Projection(model_dim, model_dim, rngs=rngs, **dtypes)
    self.num_heads, self.head_dim = num_heads, model_dim // num_heads
    self.dtype = dtype

  def init_state(self, batch_size: int, max_length: int | None = None) -> AttentionState | None:
    """An empty cache for `max_length` tokens; None, no past, without a length."""
    if max_length is None:
      return None
    shape = (batch_size, max_length, self.num_heads, self.head_dim)
    zeros = jnp.zeros(shape, self.dtype)
    return AttentionState(zeros, zeros, jnp.zeros((), jnp.int32))

  def __call__(
    self, x: jax.Array, state: AttentionState | None, num_valid: jax.Array | None = None
  ) -> tuple[jax.Array, AttentionState | None]:
    """Attends from x [B, T, D] to itself and to what the state holds.

    Args:
      x: Inputs.
      state: A cache with room for T more tokens, or None. A cache that overflows returns NaN: what
        it lost cannot be read any more, and under `jit` no error can be raised.
      num_valid: How many of the T tokens the new state keeps; all if None.

    Returns:
      Outputs [B, T, D] and the new state.
    """
    start = jnp.zeros((), jnp.int32) if state is None else state.length
    heads = (*x.shape[:2], self.num_heads, self.head_dim)
    queries, keys, values = (
      part.reshape(heads) for part in jnp.split(self.projection(x), 3, axis=-1)
    )
    queries, keys = rotate(queries, start), rotate(keys, start)
    if state is None:
      out = jax.nn.dot_product_attention(queries, keys, values, is_causal=True)
    else:
      keys, values = (
        jax.lax.dynamic_update_slice_in_dim(cache, new.astype(cache.dtype), start, axis=1)
        for cache, new in ((state.keys, keys), (state.values, values))
      )
      mask = _seen(x, keys, start)
      past, kept = keys.astype(queries.dtype), values.astype(queries.dtype)
      out = jax.nn.dot_product_attention(queries, past, kept, mask=mask)
      out = jnp.where(start + x.shape[1] <= keys.shape[1], out, jnp.nan)
      length = start + (x.shape[1] if num_valid is None else num_valid)
      state = AttentionState(keys, values, length)
    return self.output(out.reshape(x.shape)), state

  def step(
    self, x: jax.Array, state: AttentionState | None
  ) -> tuple[jax.Array, AttentionState | None]:
    """Reads one token x [B, 1, D]."""
    return self(x, state)


def _seen(x, keys, start):
  """Which places of the cache each query may see: [1, 1, T, S]."""
  places = jnp.arange(keys.shape[1])[None, :]
  queries = start + jnp.arange(x.shape[1])[:, None]
  return (places <= queries)[None, None]


def rotate(x: jax.Array, start: jax.Array, base: float = 10_000.0) -> jax.Array:
  """Rotary position embedding of x [B, T, H, K] whose first token has position `start`."""
  half = x.shape[-1] // 2
  frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  position = (start + jnp.arange(x.shape[1])).astype(jnp.float32)
  angle = (position[:, None] * frequency[None])[None, :, None]
  cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
  first, second = x[..., :half], x[..., half:]
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
