"""The levels that the blocks of all layers are inside a sequence."""

from typing import Any

import jax
import optax

from nlx import core
from nlx.cms.config import GRADIENT_DESCENT, CMSConfig, InContextRule
from nlx.levels import Nested, PeriodicLevel, from_optax, nested
from nlx.optim import is_captured, release


def in_context_levels(config: CMSConfig, rates: jax.Array) -> tuple[PeriodicLevel, ...]:
  """A level for each block that learns in context, fastest first.

  Args:
    config: The configuration.
    rates: Inner learning rates [L, blocks that learn].

  Returns:
    Levels whose weights are stacked over layers and sequences, [L, B, ...].
  """
  return tuple(
    in_context_level(rates[:, i], period, config.max_norm, config.rule)
    for i, period in enumerate(config.in_context_periods)
  )


def initial_weights(config: CMSConfig, weights: tuple) -> tuple:
  """What `init` of each level takes, from the initial weights of each block that learns."""
  return nested(weights) if config.form == 'nested' else weights


def in_context_level(
  rates: jax.Array, period: int, max_norm: float, rule: InContextRule = GRADIENT_DESCENT
) -> PeriodicLevel:
  """A level of the continuum memory system inside sequences, over the blocks of all layers.

  theta_l <- theta_l - rate_l f(clip(g)), where g is the gradient of the next-token loss over the
  last `period` tokens, per token, and f what the rule makes of it, the gradient itself if it is
  gradient descent. Clipping is by the norm over all layers of one sequence and level; a nested
  level's own weights and what it hands down are clipped apart.

  Args:
    rates: Inner learning rate of each layer [L].
    period: Tokens per update.
    max_norm: Of the clipped gradient.
    rule: How weights move.

  Returns:
    A level whose weights are stacked over layers and sequences, [L, B, ...].

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eq. 71.
  """
  step = jax.vmap(lambda rate, *args: rule.optimizer(rate).update(*args))

  def init(params):
    return jax.vmap(lambda rate, params: rule.optimizer(rate).init(params))(rates, params)

  def update(gradients, state, params=None):
    if isinstance(gradients, Nested):
      clipped: Any = Nested(*(_clip(part, max_norm) for part in gradients))
    else:
      clipped = _clip(gradients, max_norm)
    return step(rates, clipped, state, params)

  return from_optax(optax.GradientTransformation(init, update), period, batch_axis=1)


def _clip(gradients: Any, max_norm: float) -> Any:
  """Clips the gradients of weights; moments of inputs pass as they are."""
  clipped = core.clip_by_norm(release(gradients), max_norm)

  def put_back(x, clipped):
    return x._replace(weight=clipped) if is_captured(x) else clipped

  return jax.tree.map(put_back, gradients, clipped, is_leaf=is_captured)
