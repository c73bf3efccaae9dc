"""Configurations of language models, and the two families that exist."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from nlx import core
from nlx.levels import META_GRADIENTS
from nlx.memories import Rule, dgd
from nlx.memories.self_modifying import SelfModifyingConfig

MIXERS = ('self_modifying', 'attention')


@dataclass(frozen=True)
class LanguageModelConfig:
  """A stack of blocks: a sequence mixer, then a continuum memory system.

  Attributes:
    name: Of the family, for tables.
    mixer: 'self_modifying' or 'attention'.
    vocab_size: Number of token ids.
    model_dim: D.
    num_layers: L.
    num_heads: H.
    cms_periods: Tokens between in-context updates of each MLP block, in the order in which x passes
      them; 0 for a block that never changes inside a sequence. Each non-zero period is a multiple
      of the one before, the first of `projection_chunk_size`.
    cms_hidden: F of each MLP block.
    cms_rate: Initial inner learning rate of blocks that learn in context.
    cms_max_norm: Norm to which inner gradients are clipped.
    meta: How the outer gradient passes inner updates, see `nlx.levels.nest`.
    truncate: Cut it at every n-th update of a level; None for never.
    remat: Whether the backward pass recomputes every base chunk, or every projection chunk without
      in-context levels, from its start. It saves memory and, where that is what bounds the speed,
      time.
    chunk_size: Tokens between updates of the main memory.
    projection_chunk_size: Tokens between updates of the memories that generate keys, values and
      gates.
    memory_hidden: F of the memories.
    rule: Update rule of the memories.
    adaptive: Roles that are memories, see `SelfModifyingConfig`.
    reads: 'token' or 'chunk'.
    rate_gate: 'sigmoid' or 'exponential'.
    conv_width: Taps of the causal convolution.
    dtype: Of slow matrix products.
    param_dtype: Of parameters and fast state.
  """

  name: str
  mixer: str
  vocab_size: int
  model_dim: int
  num_layers: int
  num_heads: int
  cms_periods: tuple[int, ...]
  cms_hidden: int
  cms_rate: float = 0.1
  cms_max_norm: float = 1.0
  meta: str = 'full'
  truncate: int | None = None
  remat: bool = True
  chunk_size: int = 16
  projection_chunk_size: int = 64
  memory_hidden: int = 64
  rule: Rule = dgd(momentum=True)
  adaptive: tuple[str, ...] = ('k', 'v', 'eta', 'alpha')
  reads: str = 'token'
  rate_gate: str = 'sigmoid'
  conv_width: int = 4
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def __post_init__(self):
    core.check_choice('mixer', self.mixer, MIXERS)
    core.check_choice('meta', self.meta, META_GRADIENTS)
    for name in ('vocab_size', 'model_dim', 'num_layers', 'num_heads', 'cms_hidden'):
      core.check_positive(name, getattr(self, name))
    for name in ('cms_rate', 'cms_max_norm'):
      core.check_above_zero(name, getattr(self, name))
    if not self.cms_periods or any(period < 0 for period in self.cms_periods):
      raise ValueError(
        f'`cms_periods` must name at least one block, each of 0 or more tokens, '
        f'got {self.cms_periods}.'
      )
    self._check_periods()

  def _check_periods(self):
    periods = self.in_context_periods
    if len(set(periods)) < len(periods):
      raise ValueError(f'`cms_periods` must differ unless 0, got {self.cms_periods}.')
    names = [f'cms_periods[{self.cms_periods.index(period)}]' for period in periods]
    if self.mixer == 'self_modifying':
      periods = (self.self_modifying.projection_chunk_size, *periods)
      names = ['projection_chunk_size', *names]
    for i in range(1, len(periods)):
      core.check_divides(names[i - 1], periods[i - 1], names[i], periods[i])

  @property
  def in_context_periods(self) -> tuple[int, ...]:
    """Periods of the blocks that learn in context, fastest first."""
    return tuple(period for period in self.cms_periods if period)

  @property
  def base_chunk(self) -> int:
    """Tokens between the boundaries that streaming aligns to; 1 if there are none."""
    if self.in_context_periods:
      return self.in_context_periods[0]
    return self.projection_chunk_size if self.mixer == 'self_modifying' else 1

  @property
  def self_modifying(self) -> SelfModifyingConfig:
    """The configuration of the self-modifying layer."""
    return SelfModifyingConfig(
      model_dim=self.model_dim,
      num_heads=self.num_heads,
      memory_hidden=self.memory_hidden,
      chunk_size=self.chunk_size,
      projection_chunk_size=self.projection_chunk_size,
      rule=self.rule,
      adaptive=self.adaptive,
      reads=self.reads,
      rate_gate=self.rate_gate,
      conv_width=self.conv_width,
      remat=self.remat and not self.in_context_periods,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )


def hope(
  *,
  vocab_size: int,
  model_dim: int,
  num_layers: int,
  num_heads: int,
  cms_periods: tuple[int, ...] = (64, 256, 1024),
  cms_hidden: int | None = None,
  **options: Any,
) -> LanguageModelConfig:
  """HOPE: self-modifying Titans followed by a continuum memory system.

  Args:
    vocab_size: Number of token ids.
    model_dim: D.
    num_layers: L.
    num_heads: H.
    cms_periods: Periods of the MLP blocks in tokens, 0 for never.
    cms_hidden: F of each block; D if not given.
    **options: Other fields of `LanguageModelConfig`.

  Returns:
    The configuration, for `nlx.models.create`.

  Raises:
    ValueError: If sizes are not positive or periods do not divide each other.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Sec. 8.3, Eqs. 94-97.
  """
  return LanguageModelConfig(
    name='hope',
    mixer='self_modifying',
    vocab_size=vocab_size,
    model_dim=model_dim,
    num_layers=num_layers,
    num_heads=num_heads,
    cms_periods=tuple(cms_periods),
    cms_hidden=cms_hidden or model_dim,
    **options,
  )


def transformer(
  *,
  vocab_size: int,
  model_dim: int,
  num_layers: int,
  num_heads: int,
  mlp_hidden: int | None = None,
  **options: Any,
) -> LanguageModelConfig:
  """Transformer++: rotary attention, SwiGLU, RMSNorm before every block, no biases.

  Args:
    vocab_size: Number of token ids.
    model_dim: D.
    num_layers: L.
    num_heads: H.
    mlp_hidden: F of the MLP; 8 D / 3, rounded up to a multiple of 32, if not given.
    **options: Other fields of `LanguageModelConfig`.

  Returns:
    The configuration, for `nlx.models.create`.

  Raises:
    ValueError: If sizes are not positive.

  References:
    Touvron et al., LLaMA, arXiv 2302.13971.
  """
  return LanguageModelConfig(
    name='transformer',
    mixer='attention',
    vocab_size=vocab_size,
    model_dim=model_dim,
    num_layers=num_layers,
    num_heads=num_heads,
    cms_periods=(0,),
    cms_hidden=mlp_hidden or -(-8 * model_dim // 96) * 32,
    **options,
  )
