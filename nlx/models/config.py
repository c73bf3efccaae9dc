"""Configurations of language models: a stack of equal blocks."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import jax.numpy as jnp
from flax import nnx

from nlx import core
from nlx.cms import CMSConfig
from nlx.levels import META_GRADIENTS

REMAT = ('none', 'chunks', 'layers_but_dots', 'layers')  # From the most memory to the least.


class MixerConfig(Protocol):
  """What a sequence mixer is made of; `nlx.memories` and `nlx.models` have several.

  Its module maps [B, T, D] to [B, T, D], from a normed input to what is added to the stream, or, if
  it says that it is `residual`, from the stream to the stream. It has `init_state(batch_size,
  max_length)`, `__call__(x, state, num_valid=None)` from a boundary, `step(x, state)` of one token
  anywhere, and `level_infos()` and `level_states(state)` for tables. For traces it may have
  `gates(x, state)`, one `nlx.memories.Gates` or None for each of these levels.
  """

  @property
  def model_dim(self) -> int:
    """D."""

  @property
  def param_dtype(self) -> Any:
    """Of parameters and fast state."""

  @property
  def alignment(self) -> int:
    """Tokens between the boundaries at which reading in parallel may begin."""

  @property
  def grows(self) -> bool:
    """Whether the state grows with the length of a stream, which must then be known."""

  def make(self, *, rngs: nnx.Rngs) -> Any:
    """The module, with random parameters."""


@dataclass(frozen=True)
class LanguageModelConfig:
  """A stack of blocks: a sequence mixer, then a continuum memory system.

  Attributes:
    name: Of the family, for tables.
    mixer: What mixes tokens, such as a `SelfModifyingConfig`.
    cms: The MLP blocks after it, of the same width. The first period that is not 0 is a multiple of
      the mixer's chunks.
    vocab_size: Number of token ids.
    num_layers: L.
    meta: How the outer gradient passes inner updates, see `nlx.levels.nest`.
    truncate: Cut it at every n-th update of a level; None for never.
    remat: What the backward pass computes anew and therefore does not keep. 'none': nothing but
      chunks of HOPE's main memory, of memories as a context and of selective scans.
      'chunks': every base chunk of blocks that learn in context, from its start; without such
      blocks memories recompute chunks of their own, and attention nothing. 'layers': every layer
      as well, from what enters it. 'layers_but_dots': the same but for products with slow weights.
      No outputs or gradients depend on it.
    norm_epsilon: Under the root of the norms of blocks and head; mixers have their own.
    dtype: Of slow matrix products.
    param_dtype: Of parameters and fast state.
  """

  name: str
  mixer: MixerConfig
  cms: CMSConfig
  vocab_size: int
  num_layers: int
  meta: str = 'full'
  truncate: int | None = None
  remat: str = 'chunks'
  norm_epsilon: float = 1e-6
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def __post_init__(self):
    core.check_choice('meta', self.meta, META_GRADIENTS)
    core.check_choice('remat', self.remat, REMAT)
    for name in ('vocab_size', 'num_layers'):
      core.check_positive(name, getattr(self, name))
    if self.truncate is not None:
      core.check_positive('truncate', self.truncate, 'update')
    core.check_above_zero('norm_epsilon', self.norm_epsilon)
    if self.mixer.model_dim != self.cms.model_dim:
      raise ValueError(
        f'`cms.model_dim` must be the `mixer.model_dim` {self.mixer.model_dim}, '
        f'got {self.cms.model_dim}.'
      )
    if self.in_context_periods:
      chunk, period = self.mixer.alignment, self.in_context_periods[0]
      name = f'cms.periods[{self.cms.periods.index(period)}]'
      core.check_divides('chunk of the mixer', chunk, name, period)
    fused = _implementations(self.mixer) - {'xla'}
    if self.in_context_periods and fused:
      raise ValueError(
        "`implementation` of attention must be 'xla' where blocks learn in context, as their "
        f'gradients are differentiated again, got {fused.pop()!r}.'
      )

  @property
  def model_dim(self) -> int:
    """D."""
    return self.mixer.model_dim

  @property
  def in_context_periods(self) -> tuple[int, ...]:
    """Periods of the blocks that learn in context, fastest first."""
    return self.cms.in_context_periods

  @property
  def has_chunks(self) -> bool:
    """Whether there are boundaries that streaming aligns to."""
    return self.base_chunk > 1 or bool(self.in_context_periods)

  @property
  def base_chunk(self) -> int:
    """Tokens between the boundaries that streaming aligns to; 1 if there are none."""
    return self.in_context_periods[0] if self.in_context_periods else self.mixer.alignment


def _implementations(mixer: Any) -> set[str]:
  """How the attention inside a mixer is computed, that of mixers inside of it included."""
  found = {mixer.implementation} if hasattr(mixer, 'implementation') else set()
  for field in dataclasses.fields(mixer):
    value = getattr(mixer, field.name)
    for part in value if isinstance(value, tuple) else (value,):
      if dataclasses.is_dataclass(part):
        found |= _implementations(part)
  return found
