"""Levels for a model that was trained without them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nlx import core
from nlx.cms import FORMS, GRADIENT_DESCENT, CMSConfig, InContextRule, MLPBlock
from nlx.models.config import LanguageModelConfig
from nlx.models.language_model import LanguageModel, create


def stack_levels(
  model: LanguageModel,
  periods: tuple[int, ...],
  *,
  form: str = 'independent',
  hidden: int | tuple[int, ...] | None = None,
  pretrained: int = -1,
  rule: InContextRule = GRADIENT_DESCENT,
  rate: float = 0.1,
  proportional_rates: bool = False,
  max_norm: float = 1.0,
  meta: str = 'full',
  rngs: nnx.Rngs | None = None,
) -> LanguageModel:
  """Gives levels to a model whose MLPs do not learn in context.

  The MLP of every layer becomes a continuum memory system of blocks with these periods. Until a
  block is updated in context, and always at a rate of 0, the new model computes what `model` does.
  Its further training is that of any model.

      independent:  f(x) = f_1(x) + ... + f_k(x): the hidden units of the MLP in k groups
      in series:    x + f(x), with blocks x + 0 around it

  In series the new blocks have a random `up` and a `down` of zeros. They receive a gradient, `up`
  from the first update of `down` on.

  Args:
    model: A model of one block of period 0 per layer, with a mixer of any kind, such as
      `nlx.interop.load_llama` gives. It stays as it is; the new model shares the arrays that are
      the same.
    periods: Tokens between in-context updates of each block, as in `CMSConfig`.
    form: 'independent', 'sequential' or 'nested', as in `CMSConfig`.
    hidden: F of the blocks. Independent ones share the hidden units of the MLP: one width for each,
      which add up to its own; as equal as can be if None. In series it is the F of each new block;
      D if None.
    pretrained: Which block in series is the MLP; the last is the slowest, if it learns.
    rule: How blocks learn in context.
    rate: Initial inner learning rate of the blocks.
    proportional_rates: Whether that of slower blocks grows with their period, see `CMSConfig`.
    max_norm: Norm to which inner gradients are clipped.
    meta: How the outer gradient passes inner updates, see `nlx.levels.nest`.
    rngs: Random streams of the new blocks in series; 'params' is used.

  Returns:
    The new model.

  Raises:
    ValueError: If `model` has levels already or scales its MLP, widths do not add up, or periods
      do not divide each other.

  Example:
    >>> import nlx
    >>> from flax import nnx
    >>> config = nlx.models.transformer(vocab_size=16, model_dim=8, num_layers=1, num_heads=2)
    >>> model = nlx.models.create(config, rngs=nnx.Rngs(0))
    >>> nlx.models.stack_levels(model, (8, 32)).config.cms.widths
    (16, 16)

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Sec. 7.3. Ours: both ways to divide the
    function of one MLP among several blocks.
  """
  old = model.config
  if old.cms.periods != (0,):
    raise ValueError(
      '`model` must have one block that does not learn in context, cms.periods (0,), '
      f'got {old.cms.periods}.'
    )
  if old.cms.form == 'independent':
    raise ValueError(
      "`model` must add its MLP as it is, cms.form 'sequential' or 'nested', got 'independent', "
      'which scales it by a learned factor.'
    )
  core.check_choice('form', form, FORMS)
  if not periods:
    raise ValueError('`periods` must name at least one block, got none.')
  in_series, periods = form != 'independent', tuple(periods)
  place = _place(pretrained, len(periods)) if in_series else None
  if in_series:
    widths = _widths_in_series(old.cms, len(periods), place, hidden)
  else:
    widths = _widths_of_groups(old.cms.widths[0], len(periods), hidden)
  cms = dataclasses.replace(
    old.cms,
    hidden=widths,
    periods=periods,
    form=form,
    rule=rule,
    rate=rate,
    proportional_rates=proportional_rates,
    max_norm=max_norm,
  )
  config = dataclasses.replace(old, cms=cms, meta=meta)

  pure = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  mlp = pure['blocks']['cms']['blocks'][0]
  if in_series:
    blocks = _around(mlp, place, config, rngs)
  else:
    blocks = _divide(mlp, widths)
  return _with_blocks(config, pure, blocks)


def _place(pretrained, count):
  """The index of the pretrained block, from the front."""
  if not -count <= pretrained < count:
    raise ValueError(f'`pretrained` must be one of the {count} blocks, got {pretrained}.')
  return pretrained % count


def _widths_in_series(cms: CMSConfig, count, place, hidden):
  hidden = cms.model_dim if hidden is None else hidden
  core.check_positive('hidden', hidden)
  return tuple(cms.widths[0] if i == place else hidden for i in range(count))


def _widths_of_groups(units, count, hidden):
  """How many of the MLP's hidden units each block gets."""
  if hidden is None:
    hidden = tuple(units // count + (i < units % count) for i in range(count))
  if isinstance(hidden, list):
    hidden = tuple(hidden)
  if not isinstance(hidden, tuple) or len(hidden) != count or sum(hidden) != units:
    raise ValueError(
      f'`hidden` of independent blocks must be {count} widths that add up to the {units} hidden '
      f'units of the MLP, got {hidden}.'
    )
  return hidden


def _divide(mlp: dict, widths) -> list[dict]:
  """The MLP [L, ...] as blocks of some of its hidden units, each with a copy of the norm."""
  gate, value = jnp.split(mlp['up']['kernel'], 2, axis=-1)
  down, blocks, begin = mlp['down']['kernel'], [], 0
  for width in widths:
    units = slice(begin, begin + width)
    up = jnp.concatenate([gate[..., units], value[..., units]], axis=-1)
    kernels = {'up': {'kernel': up}, 'down': {'kernel': down[:, units]}}
    blocks.append({'norm': jax.tree.map(jnp.copy, mlp['norm']), **kernels})
    begin += width
  return blocks


def _around(mlp: dict, place, config: LanguageModelConfig, rngs) -> list[dict]:
  """The MLP at its place, and new blocks that add nothing yet."""
  widths = config.cms.widths
  if rngs is None and len(widths) > 1:
    raise ValueError('`rngs` must be given: new blocks in series begin with random numbers.')
  return [mlp if i == place else _new_block(config, width, rngs) for i, width in enumerate(widths)]


def _new_block(config: LanguageModelConfig, width, rngs) -> dict[str, Any]:
  """A block of every layer that is the identity, and that gradients can move."""
  cms = config.cms

  @nnx.split_rngs(splits=config.num_layers)
  @nnx.vmap(in_axes=0, out_axes=0)
  def stacked(rngs):
    dtypes = {'dtype': cms.dtype, 'param_dtype': cms.param_dtype}
    return MLPBlock(cms.model_dim, width, rngs=rngs, norm_epsilon=cms.norm_epsilon, **dtypes)

  block = nnx.to_pure_dict(nnx.state(stacked(rngs), nnx.Param))
  block['down'] = jax.tree.map(jnp.zeros_like, block['down'])
  return block


def _with_blocks(config: LanguageModelConfig, pure: dict, blocks: list[dict]) -> LanguageModel:
  """The model of this configuration with these blocks, and all else of `pure`."""
  model = nnx.eval_shape(lambda: create(config, rngs=nnx.Rngs(0)))
  cms: dict[str, Any] = {'blocks': dict(enumerate(blocks))}
  if config.in_context_periods:
    cms['log_rate_factors'] = _like(model.blocks.cms.log_rate_factors, jnp.zeros)
  if config.cms.form == 'independent':
    cms['aggregation'] = _like(model.blocks.cms.aggregation, jnp.ones)
  pure = {**pure, 'blocks': {**pure['blocks'], 'cms': cms}}
  assert core.tree_size(pure) == model.num_parameters()
  nnx.update(model, pure)
  return model


def _like(param, fill):
  return fill(param.shape, param.dtype)
