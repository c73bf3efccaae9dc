"""HOPE, HOPE-Attention and Transformer++, and how every family is put together."""

import dataclasses
from typing import Any

from nlx import core
from nlx.cms import CMSConfig
from nlx.memories.attention import AttentionConfig
from nlx.memories.self_modifying import SelfModifyingConfig
from nlx.models.config import LanguageModelConfig, MixerConfig

_DTYPES = ('dtype', 'param_dtype')
_SHARED = ('model_dim', 'remat', *_DTYPES)


def split_options(config_class: type, options: dict[str, Any]) -> tuple[dict, dict]:
  """Options that are fields of a mixer's configuration, and the rest; some are both.

  Those are the width, the dtypes, and what is recomputed: memories recompute chunks or not.

  Args:
    config_class: The dataclass of the mixer.
    options: What a user gave.

  Returns:
    Options of the mixer, and of the model around it.
  """
  names = {field.name for field in dataclasses.fields(config_class)}
  own = {name: value for name, value in options.items() if name in names}
  if 'remat' in own:
    own['remat'] = own['remat'] != 'none'
  rest = {name: v for name, v in options.items() if name not in names or name in _SHARED}
  return own, rest


def around(
  name: str, mixer: MixerConfig, *, mlp_hidden: int | None = None, **options: Any
) -> LanguageModelConfig:
  """A model of this mixer, with one MLP that does not learn in context if not told otherwise.

  Args:
    name: Of the family.
    mixer: What mixes tokens.
    mlp_hidden: F of the MLP; 8 D / 3, rounded up to a multiple of 32, if not given. `cms_hidden` is
      another name of it.
    **options: Fields of `LanguageModelConfig`, and those of its `CMSConfig` as `cms_periods`,
      `cms_form` and so on; `cms_shares`, if not None, says which part of the hidden units each
      block has, in any unit, F being their mean.

  Returns:
    The configuration.

  Raises:
    ValueError: If both names are given, or `cms_shares` has not one number above 0 for each block.
  """
  options.pop('model_dim', None)  # That of the mixer.
  own = {name: options.pop(name) for name in tuple(options) if name.startswith('cms_')}
  hidden = own.pop('cms_hidden', None)
  if hidden is not None and mlp_hidden is not None:
    raise ValueError(f'give `mlp_hidden` or `cms_hidden`, got both: {mlp_hidden} and {hidden}.')
  hidden = mlp_hidden if hidden is None else hidden
  hidden = -(-8 * mixer.model_dim // 96) * 32 if hidden is None else hidden
  shared = {name: options[name] for name in ('norm_epsilon', *_DTYPES) if name in options}
  fields = {'periods': (0,), **{name.removeprefix('cms_'): value for name, value in own.items()}}
  if (shares := fields.pop('shares', None)) is not None:
    hidden = _divide(hidden, shares, len(fields['periods']))
  cms = CMSConfig(model_dim=mixer.model_dim, hidden=hidden, **{**shared, **fields})
  return LanguageModelConfig(name=name, mixer=mixer, cms=cms, **options)


def _divide(hidden: int, shares: tuple[float, ...], count: int) -> tuple[int, ...]:
  """Widths of blocks whose mean is `hidden`, but for rounding."""
  core.check_positive('cms_hidden', hidden)
  if len(shares) != count or not all(share > 0 for share in shares):
    raise ValueError(
      f'`cms_shares` must give each of the {count} blocks a number above 0, got {shares}.'
    )
  return tuple(max(1, round(hidden * count * share / sum(shares))) for share in shares)


def hope(
  *,
  vocab_size: int,
  model_dim: int,
  num_layers: int,
  num_heads: int,
  cms_periods: tuple[int, ...] = (64, 256, 1024),
  cms_hidden: int | None = None,
  chunk_size: int = 16,
  projection_chunk_size: int = 64,
  memory_hidden: int = 64,
  remat: str = 'chunks',
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
    chunk_size: Tokens between updates of the main memory.
    projection_chunk_size: Tokens between updates of the memories that generate keys, values and
      gates.
    memory_hidden: F of the memories; 0 makes them matrices.
    remat: What the backward pass recomputes, see `LanguageModelConfig`; the chunks of the memories
      are projection chunks.
    **options: Other fields of `LanguageModelConfig` and `SelfModifyingConfig`, and of `CMSConfig`
      with `cms_` before their names.

  Returns:
    The configuration, for `nlx.models.create`.

  Raises:
    ValueError: If sizes are not positive or periods do not divide each other.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Sec. 8.3, Eqs. 94-97.
  """
  own, rest = split_options(SelfModifyingConfig, {'model_dim': model_dim, **options})
  mixer = SelfModifyingConfig(
    num_heads=num_heads,
    memory_hidden=memory_hidden,
    chunk_size=chunk_size,
    projection_chunk_size=projection_chunk_size,
    remat=remat != 'none' and not any(cms_periods),
    **own,
  )
  return around(
    'hope',
    mixer,
    vocab_size=vocab_size,
    num_layers=num_layers,
    cms_periods=tuple(cms_periods),
    cms_hidden=model_dim if cms_hidden is None and 'mlp_hidden' not in rest else cms_hidden,
    remat=remat,
    **rest,
  )


def hope_attention(
  *,
  vocab_size: int,
  model_dim: int,
  num_layers: int,
  num_heads: int,
  cms_periods: tuple[int, ...] = (64, 256, 1024),
  cms_hidden: int | None = None,
  **options: Any,
) -> LanguageModelConfig:
  """HOPE-Attention: softmax attention followed by a continuum memory system.

  Args:
    vocab_size: Number of token ids.
    model_dim: D.
    num_layers: L.
    num_heads: H.
    cms_periods: Periods of the MLP blocks in tokens, 0 for never.
    cms_hidden: F of each block; D if not given.
    **options: Other fields of `LanguageModelConfig` and `AttentionConfig`, and of `CMSConfig` with
      `cms_` before their names.

  Returns:
    The configuration, for `nlx.models.create`.

  Raises:
    ValueError: If sizes are not positive or periods do not divide each other.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Sec. 8.3.
  """
  own, rest = split_options(AttentionConfig, {'model_dim': model_dim, **options})
  return around(
    'hope_attention',
    AttentionConfig(num_heads=num_heads, **own),
    vocab_size=vocab_size,
    num_layers=num_layers,
    cms_periods=tuple(cms_periods),
    cms_hidden=model_dim if cms_hidden is None and 'mlp_hidden' not in rest else cms_hidden,
    **rest,
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
    **options: Other fields of `LanguageModelConfig` and `AttentionConfig`, and of `CMSConfig` with
      `cms_` before their names.

  Returns:
    The configuration, for `nlx.models.create`.

  Raises:
    ValueError: If sizes are not positive.

  References:
    Touvron et al., LLaMA, arXiv 2302.13971.
  """
  own, rest = split_options(AttentionConfig, {'model_dim': model_dim, **options})
  return around(
    'transformer',
    AttentionConfig(num_heads=num_heads, **own),
    vocab_size=vocab_size,
    num_layers=num_layers,
    mlp_hidden=mlp_hidden,
    **rest,
  )
