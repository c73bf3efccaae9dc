"""Titans' memory as a context: attention over a segment and over what the memory recalls for it."""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from nlx import core
from nlx.levels import LevelInfo
from nlx.memories.attention import attend, rotate
from nlx.memories.mixer import MemoryConfig, MixerState
from nlx.memories.modules import Projection, RMSNorm


@dataclass(frozen=True)
class MemoryAsContextConfig:
  """Shape of the layer.

  Attributes:
    memory: The memory; its chunks are the segments that attention sees.
    num_persistent: Learned tokens that every query sees.
  """

  memory: MemoryConfig
  num_persistent: int = 0

  def __post_init__(self):
    if self.num_persistent < 0:
      raise ValueError(f'`num_persistent` must be at least 0 tokens, got {self.num_persistent}.')
    core.check_divides('2 (rotary pairs)', 2, 'head_dim', self.memory.head_dim)

  @property
  def model_dim(self) -> int:
    """D."""
    return self.memory.model_dim

  @property
  def param_dtype(self) -> Any:
    """Of parameters and fast state."""
    return self.memory.param_dtype

  @property
  def alignment(self) -> int:
    """Tokens of a segment."""
    return self.memory.chunk_size

  @property
  def grows(self) -> bool:
    """Whether the state grows with the length of a stream."""
    return False

  def make(self, *, rngs: nnx.Rngs) -> 'MemoryAsContext':
    """The layer, with random parameters."""
    return MemoryAsContext(self, rngs=rngs)


class MemoryAsContextState(NamedTuple):
  """Fast state of the layer."""

  memory: MixerState
  keys: jax.Array  # [B, 2, C, H, K] of what was recalled and read in the current segment
  values: jax.Array  # [B, 2, C, H, K]


class MemoryAsContext(nnx.Module):
  """A sequence layer [B, T, D] to [B, T, D] that attends to its memory's answers.

  For every segment S of C tokens, with the memory M of the segment's start,

      H = M(S W_q)    Y = attention over [persistent tokens, H, S]    out = Y * sigmoid(M_t(Y))

  and the memory is written with Y. Ours: token t sees the answers to the tokens up to itself only,
  since those to later ones, which the printed mask lets it see, depend on these tokens; M_t has
  been written up to token t; both factors of the output are normed.

  References:
    Behrouz et al., Titans, arXiv 2501.00663, Sec. 4.1.
  """

  def __init__(self, config: MemoryAsContextConfig, *, rngs: nnx.Rngs):
    self.config, memory = config, config.memory
    dim, dtypes = memory.model_dim, {'dtype': memory.dtype, 'param_dtype': memory.param_dtype}
    # Segments are recomputed as a whole.
    self.memory = dataclasses.replace(memory, remat=False).make(rngs=rngs)
    self.recall = Projection(dim, dim, rngs=rngs, **dtypes)
    self.queries = Projection(dim, dim, rngs=rngs, **dtypes)
    self.context = Projection(dim, 2 * dim, rngs=rngs, **dtypes)
    self.output = Projection(dim, dim, rngs=rngs, **dtypes)
    self.value_norm = RMSNorm(dim, dtype=memory.param_dtype)
    self.gate_norm = RMSNorm(dim, dtype=memory.param_dtype)
    if config.num_persistent:
      shape = (config.num_persistent, dim)
      self.persistent = nnx.Param(jax.random.normal(rngs.params(), shape, memory.param_dtype))

  def init_state(self, batch_size: int, max_length: int | None = None) -> MemoryAsContextState:
    """The initial state of the memory, and an empty segment."""
    config = self.config.memory
    shape = (batch_size, 2, config.chunk_size, config.num_heads, config.head_dim)
    memory = self.memory.init_state(batch_size, max_length)
    return MemoryAsContextState(
      memory, jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)
    )

  def __call__(
    self, x: jax.Array, state: MemoryAsContextState, num_valid: jax.Array | None = None
  ) -> tuple[jax.Array, MemoryAsContextState]:
    """Reads a stretch of tokens that begins at a segment boundary.

    Args:
      x: [B, T, D].
      state: Fast state at the boundary.
      num_valid: How many of the T tokens count, a scalar; all if None.

    Returns:
      Outputs [B, T, D] and the state after the last valid token.
    """
    size, pieces = self.config.alignment, []
    whole = x.shape[1] // size * size
    valid = lambda begin: None if num_valid is None else num_valid - begin  # noqa: E731

    def segment(state, inputs):
      begin, x = inputs
      out, state = self._segment(x, state, valid(begin))
      return state, out

    if whole:
      segments = core.split_time(x[:, :whole], size, axis=-2)
      state, out = core.scan_chunks(
        segment, state, (jnp.arange(0, whole, size), segments), remat=True
      )
      pieces.append(core.join_time(out, axis=-2))
    if whole < x.shape[1]:
      out, state = self._segment(x[:, whole:], state, valid(whole))
      pieces.append(out)
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=-2), state

  def _segment(self, x, state, num_valid):
    """One segment, or its beginning."""
    if num_valid is None:
      return self._read(x, state, self.memory)
    num_valid = jnp.clip(num_valid, 0, x.shape[1])

    def some(state):
      return self._read(x, state, lambda y, memory: self.memory(y, memory, num_valid))

    def none(state):
      return jnp.zeros(x.shape, self.config.memory.dtype), state

    # A segment of padding must not take the place of the last one that was read.
    return jax.lax.cond(num_valid > 0, some, none, state)

  def step(
    self, x: jax.Array, state: MemoryAsContextState
  ) -> tuple[jax.Array, MemoryAsContextState]:
    """Reads one token x [B, 1, D] anywhere in a segment."""
    return self._read(x, state, self.memory.step)

  def _read(self, x, state, write):
    """Attends from tokens of one segment, and lets `write(y, memory)` put them into the memory."""
    x, phase = x.astype(self.config.memory.dtype), state.memory.memory.count
    recalled = self.memory.recall(self._split(self.recall(x)), state.memory)
    recalled = jnp.swapaxes(recalled, 1, 2).reshape(x.shape).astype(x.dtype)
    keys, values = self._context(jnp.stack([recalled, x], axis=1), phase)
    keys, values = (
      jax.lax.dynamic_update_slice_in_dim(cache, new.astype(cache.dtype), phase, axis=2)
      for cache, new in ((state.keys, keys), (state.values, values))
    )
    y = self._attend(x, keys, values, phase)
    gate, memory = write(y, state.memory)
    out = self.value_norm(y) * jax.nn.sigmoid(self.gate_norm(gate))
    return out, MemoryAsContextState(memory, keys, values)

  def _split(self, x):
    """[B, T, D] to [B, H, T, K] in the dtype of the memory."""
    config = self.config.memory
    x = x.reshape((*x.shape[:2], config.num_heads, config.head_dim))
    return jnp.swapaxes(x, 1, 2).astype(config.state_dtype)

  def _context(self, x, phase):
    """Keys and values [B, 2, T, H, K] of answers and tokens x [B, 2, T, D]."""
    config = self.config.memory
    heads = (*x.shape[:-1], config.num_heads, config.head_dim)
    keys, values = (part.reshape(heads) for part in jnp.split(self.context(x), 2, axis=-1))
    flat = keys.reshape((-1, *heads[2:]))
    return rotate(flat, phase).reshape(heads), values

  def _attend(self, x, keys, values, phase):
    """Attention from x [B, T, D] to what the segment holds up to each token."""
    config = self.config
    heads = (*x.shape[:2], config.memory.num_heads, config.memory.head_dim)
    queries = rotate(self.queries(x).reshape(heads), phase)
    seen = jnp.arange(keys.shape[2])[None] <= phase + jnp.arange(x.shape[1])[:, None]
    seen = jnp.concatenate([seen, seen], axis=1)
    keys, values = (
      cache.reshape((cache.shape[0], -1, *cache.shape[3:])) for cache in (keys, values)
    )
    fixed = None
    if config.num_persistent:
      both = jnp.split(self.context(self.persistent[...]), 2, axis=-1)
      fixed = (both[0].reshape((-1, *heads[2:])), both[1].reshape((-1, *heads[2:])))
    out = attend(queries, keys, values, seen[None, None], fixed=fixed)
    return self.output(out.reshape(x.shape))

  def level_infos(self) -> list[LevelInfo]:
    """The memory."""
    return self.memory.level_infos()

  def level_states(self, state: MemoryAsContextState) -> list[Any]:
    """Its state."""
    return self.memory.level_states(state.memory)
