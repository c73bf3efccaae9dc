"""Softmax attention: the memory without parameters, which keeps keys and values as they are."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from nlx import core
from nlx.levels import LevelInfo
from nlx.memories.modules import Projection


@dataclass(frozen=True)
class AttentionConfig:
  """Shape of softmax attention.

  Attributes:
    model_dim: D.
    num_heads: H, heads of queries.
    num_kv_heads: Heads of keys and values, each shared by equally many heads of queries; H if None.
    head_dim: K; D / H if None. Even with rotary positions.
    window: How many tokens each sees, itself and those right before it; all if None.
    num_persistent: Learned tokens that every query sees, however far it is; with rotary positions,
      as if they were at the beginning of the text.
    rope_base: Base of the wavelengths of rotary positions; no positions if None, so that
      order shows in nothing but in what is seen.
    implementation: 'xla', which can be differentiated any number of times, as levels that learn in
      context need; or 'cudnn', fused and without a matrix of scores, which has first derivatives
      only and runs on NVIDIA GPUs in 16 bits, with K a multiple of 8 and, to train with a window,
      persistent tokens or a cache, even numbers of tokens.
    dtype: Of matrix products and of the cache.
    param_dtype: Of parameters.
  """

  model_dim: int
  num_heads: int
  num_kv_heads: int | None = None
  head_dim: int | None = None
  window: int | None = None
  num_persistent: int = 0
  rope_base: float | None = 10_000.0
  implementation: Literal['xla', 'cudnn'] = 'xla'
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def __post_init__(self):
    for name in ('model_dim', 'num_heads', 'num_kv_heads', 'head_dim', 'window'):
      if getattr(self, name) is not None:
        core.check_positive(name, getattr(self, name))
    core.check_divides('num_kv_heads', self.kv_heads, 'num_heads', self.num_heads)
    if self.head_dim is None:
      core.check_divides('num_heads', self.num_heads, 'model_dim', self.model_dim)
    if self.num_persistent < 0:
      raise ValueError(f'`num_persistent` must be at least 0 tokens, got {self.num_persistent}.')
    if self.rope_base is not None:
      core.check_divides('2 (rotary pairs)', 2, 'head_dim', self.key_dim)
      core.check_above_zero('rope_base', self.rope_base)
    core.check_choice('implementation', self.implementation, ('xla', 'cudnn'))
    if self.implementation == 'cudnn' and jnp.dtype(self.dtype).itemsize != 2:
      raise ValueError(
        f"`dtype` must have 16 bits for `implementation='cudnn'`, got {jnp.dtype(self.dtype)}."
      )

  @property
  def kv_heads(self) -> int:
    """How many heads keys and values have."""
    return self.num_kv_heads or self.num_heads

  @property
  def key_dim(self) -> int:
    """K, the width of a head."""
    return self.head_dim or self.model_dim // self.num_heads

  @property
  def alignment(self) -> int:
    """Tokens between the boundaries at which reading in parallel may begin."""
    return 1

  @property
  def grows(self) -> bool:
    """Whether the state grows with the length of a stream."""
    return self.window is None

  def make(self, *, rngs: nnx.Rngs) -> 'Attention':
    """The layer, with random parameters."""
    return Attention(self, rngs=rngs)


class AttentionState(NamedTuple):
  """Keys and values of all tokens from place 0 on, or of the last ones up to the end.

  Keys are rotated, if there are positions.
  """

  keys: jax.Array  # [B, S, heads, K], S = max_length or window
  values: jax.Array  # [B, S, heads, K]
  length: jax.Array  # int32 scalar: how many tokens were read
  seen: jax.Array  # [B] int32: how many of them, the last, a sequence sees


class Attention(nnx.Module):
  """Causal softmax attention, with rotary positions or without any, [B, T, D] to [B, T, D].

  It is the Nadaraya-Watson solution of the same L2 regression from keys to values that the other
  memories solve by gradient steps: over all tokens, or over a window of the last ones, whose state
  has a constant size and whose cost grows linearly with the length.

  Args:
    config: Shape.
    rngs: Random streams; 'params' is used.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 62-63; Su et al., RoFormer, arXiv
    2104.09864; Ainslie et al., GQA, arXiv 2305.13245 (shared keys and values); Behrouz et al.,
    Titans, arXiv 2501.00663, Sec. 3.3 (persistent tokens).
  """

  def __init__(self, config: AttentionConfig, *, rngs: nnx.Rngs):
    self.config, dim = config, config.model_dim
    dtypes = {'dtype': config.dtype, 'param_dtype': config.param_dtype}
    width = (config.num_heads + 2 * config.kv_heads) * config.key_dim
    self.projection = Projection(dim, width, rngs=rngs, **dtypes)
    self.output = Projection(config.num_heads * config.key_dim, dim, rngs=rngs, **dtypes)
    if config.num_persistent:
      shape = (config.num_persistent, dim)
      self.persistent = nnx.Param(jax.random.normal(rngs.params(), shape, config.param_dtype))

  def init_state(self, batch_size: int, max_length: int | None = None) -> AttentionState | None:
    """An empty cache, for `max_length` tokens or the window; None, no past, if neither is set."""
    config = self.config
    size = config.window or max_length
    if size is None:
      return None
    shape = (batch_size, size, config.kv_heads, config.key_dim)
    keys, values = jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)
    count = jnp.zeros((batch_size,), jnp.int32)
    return AttentionState(keys, values, jnp.zeros((), jnp.int32), count)

  def __call__(
    self, x: jax.Array, state: AttentionState | None, num_valid: jax.Array | None = None
  ) -> tuple[jax.Array, AttentionState | None]:
    """Attends from x [B, T, D] to itself and to what the state holds.

    Args:
      x: Inputs.
      state: From `init_state` or an earlier call. A cache of all tokens needs room for T more; one
        that overflows returns NaN: what it lost cannot be read any more, and under `jit` no error
        can be raised.
      num_valid: How many of the T tokens the new state keeps; all if None.

    Returns:
      Outputs [B, T, D] and the new state.

    Raises:
      ValueError: If T is 0 or more than a cache of all tokens has room for, or if there is no state
        for a window.
    """
    core.check_positive('T', x.shape[1], 'token')
    queries, keys, values = self._split(self.projection(x))
    if self.config.rope_base is not None:
      # Places in each sequence's text: persistent tokens must not know how much was read before it.
      place = 0 if state is None else state.seen
      queries, keys = (rotate(part, place, self.config.rope_base) for part in (queries, keys))
    if state is None and self.config.window:
      raise ValueError('`state` must be given: a sliding window reads on from the tokens before.')
    if state is None:
      out = self._attend(queries, keys, values)
    else:
      kept = x.shape[1] if num_valid is None else num_valid
      if self.config.window:
        out, keys, values = self._read_window(queries, keys, values, state, kept)
      else:
        out, keys, values = self._read_all(queries, keys, values, state)
      state = AttentionState(
        keys, values, self._num_read(state, x.shape[1], kept), state.seen + kept
      )
    return self.output(out.reshape((*x.shape[:2], -1))), state

  def step(
    self, x: jax.Array, state: AttentionState | None
  ) -> tuple[jax.Array, AttentionState | None]:
    """Reads one token x [B, 1, D]."""
    return self(x, state)

  def level_infos(self) -> list[LevelInfo]:
    """None: nothing is learned in context."""
    return []

  def level_states(self, state: AttentionState | None) -> list[Any]:
    """None."""
    del state
    return []

  def _split(self, projected):
    """Queries [..., H, K], keys and values [..., heads, K] of what the projection made."""
    config = self.config
    own, shared = config.num_heads * config.key_dim, config.kv_heads * config.key_dim
    parts = jnp.split(projected, (own, own + shared), axis=-1)
    return tuple(part.reshape((*part.shape[:-1], -1, config.key_dim)) for part in parts)

  def _num_read(self, state, length, kept):
    """How many tokens were read; more than a cache of all has room for once it has overflowed."""
    if self.config.window:
      return state.length + kept
    size = state.keys.shape[1]
    return jnp.where(state.length + length <= size, state.length + kept, size + 1)

  def _read_all(self, queries, keys, values, state):
    """Outputs and caches of all tokens; what is not valid is written over before it is seen."""
    start, length = state.length, queries.shape[1]
    if length > state.keys.shape[1]:
      raise ValueError(f'`x` has {length} tokens, for a cache of {state.keys.shape[1]}.')
    keys, values = (
      jax.lax.dynamic_update_slice_in_dim(cache, new.astype(cache.dtype), start, axis=1)
      for cache, new in ((state.keys, keys), (state.values, values))
    )
    places, first = jnp.arange(keys.shape[1])[None], start - state.seen[:, None]
    not_behind = places <= start + jnp.arange(length)[:, None]
    mask = not_behind[None] & (places >= first)[:, None]
    out = self._attend(queries, keys, values, mask[:, None])
    return jnp.where(start + length <= keys.shape[1], out, jnp.nan), keys, values

  def _read_window(self, queries, keys, values, state, kept):
    """Outputs and caches of the last tokens.

    More tokens than a window are cut into blocks of its size: each sees no more than its own block
    and the one before, which is the cache for the first.
    """
    window, (batch, length) = self.config.window, queries.shape[:2]
    assert window is not None
    keys, values = (
      jnp.concatenate([cache.astype(new.dtype), new], axis=1)
      for cache, new in ((state.keys, keys), (state.values, values))
    )
    last = [
      jax.lax.dynamic_slice_in_dim(x, kept, window, axis=1).astype(state.keys.dtype)
      for x in (keys, values)
    ]
    size = min(length, window)
    blocks = -(-length // size)
    if blocks > 1:
      pad = ((0, 0), (0, blocks * size - length), (0, 0), (0, 0))
      queries, keys, values = (jnp.pad(x, pad) for x in (queries, keys, values))
      queries = queries.reshape((batch * blocks, size, *queries.shape[2:]))
      keys, values = (_with_block_before(x, size) for x in (keys, values))
    mask = _window_mask(state.seen, blocks, size, window)
    mask = mask.reshape((-1, *mask.shape[2:]))
    out = self._attend(queries, keys, values, mask)
    return out.reshape((batch, blocks * size, *out.shape[2:]))[:, :length], *last

  def _attend(self, queries, keys, values, mask=None):
    """Attention to these keys and to persistent tokens, see `attend`."""
    fixed = None
    if self.config.num_persistent:
      fixed = self._split(self.projection(self.persistent[...]))[1:]
    implementation = self.config.implementation
    return attend(queries, keys, values, mask, fixed=fixed, implementation=implementation)


def attend(
  queries: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  mask: jax.Array | None = None,
  *,
  fixed: tuple[jax.Array, jax.Array] | None = None,
  implementation: Any = 'xla',
) -> jax.Array:
  """Softmax attention, in float64 as well, with keys and values that every query sees.

  Args:
    queries: [B, T, H, K].
    keys: [B, S, heads, K]; H is a multiple of their heads.
    values: [B, S, heads, K].
    mask: What is seen, [B or 1, 1, T, S]; each query what is not behind it if None.
    fixed: Further keys and values [N, heads, K] of no place.
    implementation: 'xla' or 'cudnn', see `AttentionConfig`.

  Returns:
    [B, T, H, K].
  """
  dtype = queries.dtype
  keys, values = keys.astype(dtype), values.astype(dtype)
  causal = jnp.tri(queries.shape[1], dtype=bool)[None, None]
  if fixed is not None:
    mask = causal if mask is None else mask
    keys, values = (
      jnp.concatenate([jnp.broadcast_to(new[None].astype(dtype), (x.shape[0], *new.shape)), x], 1)
      for new, x in zip(fixed, (keys, values), strict=True)
    )
    places = ((0, 0), (0, 0), (0, 0), (fixed[0].shape[0], 0))
    mask = jnp.pad(mask, places, constant_values=True)
  if dtype == jnp.float64:
    return _attend_in_double(queries, keys, values, causal if mask is None else mask)
  return jax.nn.dot_product_attention(
    queries,
    keys,
    values,
    mask=mask,
    is_causal=mask is None,
    implementation=implementation,
  )


def _with_block_before(x, size):
  """Cuts [B, (n + 1) W, heads, K] into [B n, 2 W, heads, K], each block with the one before it."""
  blocks = x.reshape((x.shape[0], -1, size, *x.shape[2:]))
  pairs = jnp.concatenate([blocks[:, :-1], blocks[:, 1:]], axis=2)
  return pairs.reshape((-1, 2 * size, *x.shape[2:]))


def _window_mask(seen, blocks, size, window):
  """Which of its block and the W places before it each query sees: [B, n, 1, C, W + C].

  Query i is at place W + i and sees the W places up to there, if the last `seen` [B] tokens and the
  blocks before have filled them.
  """
  places, queries = jnp.arange(window + size)[None, None], jnp.arange(size)[None, :, None]
  position = size * jnp.arange(blocks)[:, None, None] - window + places
  filled = position[None] + seen[:, None, None, None] >= 0
  return (((places > queries) & (places <= window + queries))[None] & filled)[:, :, None]


def _attend_in_double(queries, keys, values, mask):
  """What `jax.nn.dot_product_attention` computes, which rounds its weights to float32."""
  groups = queries.shape[2] // keys.shape[2]
  keys, values = (jnp.repeat(x, groups, axis=2) for x in (keys, values))
  scores = jnp.einsum('bthk,bshk->bhts', queries, keys) * queries.shape[-1] ** -0.5
  weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min), axis=-1)
  return jnp.einsum('bhts,bshk->bthk', weights, values)


def rotate(x: jax.Array, start: jax.Array | int, base: float = 10_000.0) -> jax.Array:
  """Rotary position embedding of x [B, T, H, K] whose first token has position `start`, [B] or one.

  Angles are computed in at least float32.
  """
  half, wide = x.shape[-1] // 2, jnp.promote_types(x.dtype, jnp.float32)
  frequency = base ** (-jnp.arange(half, dtype=wide) / half)
  position = (jnp.reshape(start, (-1, 1)) + jnp.arange(x.shape[1])[None]).astype(wide)
  angle = position[:, :, None, None] * frequency[None, None, None]
  cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
  first, second = x[..., :half], x[..., half:]
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
