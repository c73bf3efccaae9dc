"""An optimizer is a level, and a level is an optimizer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlx.levels.level import Level
from nlx.levels.periodic import PeriodicLevel, Weighted, mean, periodic


class OptaxState(NamedTuple):
  """State of a level that an optax transformation updates."""

  params: Any  # the weights that other levels read
  optimizer: optax.OptState


def from_optax(
  tx: optax.GradientTransformation, period: int = 1, batch_axis: int | None = None
) -> PeriodicLevel:
  """A level whose weights an optax transformation updates every `period` ticks.

  Its signals are `Weighted` sums of gradients; the transformation receives their mean. A period in
  which nothing was seen, of weight 0, moves nothing, whatever momentum or weight decay there is.

  Args:
    tx: Any optax transformation, learning rate and sign included.
    period: Ticks per update.
    batch_axis: The axis of independent sequences in every weight: each has its own optimizer state
      and, say, its own clipping. None if the weights belong to one sequence, or to all of them.

  Returns:
    A periodic level; `init` takes the initial weights.

  Raises:
    ValueError: If `period` is smaller than 1.

  Example:
    >>> import nlx, optax, jax.numpy as jnp
    >>> level = nlx.levels.from_optax(optax.sgd(0.5), period=2)
    >>> state = level.init(jnp.zeros(()))
    >>> for gradient in (1.0, 3.0):
    ...   state = level.update(state, nlx.levels.Weighted(jnp.asarray(gradient), 1.0))
    >>> float(level.read(state))
    -1.0

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eq. 71.
  """
  init, step = tx.init, tx.update
  if batch_axis is not None:
    init = jax.vmap(init, in_axes=batch_axis)
    step = jax.vmap(step, (batch_axis, 0, batch_axis), (batch_axis, 0))

  def update(state, signal):
    updates, optimizer = step(signal.total, state.optimizer, state.params)
    new = OptaxState(optax.apply_updates(state.params, updates), optimizer)
    return OptaxState(
      _where(signal.weight > 0, new.params, state.params, batch_axis),
      _where(signal.weight > 0, new.optimizer, state.optimizer, 0),
    )

  level = Level(
    init=lambda params: OptaxState(jax.tree.map(jnp.copy, params), init(params)),
    update=update,
    read=lambda state: state.params,
  )
  gather = mean(batch_axis)

  def weighted(gathered, weights):
    return Weighted(gather.result(gathered, weights), gathered.weight)

  return periodic(level, period, gather._replace(result=weighted))


def _where(seen, new, old, axis):
  """New leaves for the sequences that have seen something, of which `axis` is the axis."""

  def choose(new, old):
    axes = [i for i in range(new.ndim) if i != axis] if seen.ndim else ()
    return jnp.where(jnp.expand_dims(seen, axes), new, old)

  return jax.tree.map(choose, new, old)


def to_optax(level: PeriodicLevel) -> optax.GradientTransformation:
  """The optax transformation that moves parameters as `level` moves its weights.

  Args:
    level: A level whose signals are `Weighted` gradients, such as `from_optax` makes.

  Returns:
    A transformation for `optax.chain`; one call is one tick of weight 1. Its state is the level's
    own.
  """

  def update(gradients, state, params=None):
    del params
    new_state = level.update(state, Weighted(gradients, 1.0))
    moved = jax.tree.map(lambda new, old: new - old, level.read(new_state), level.read(state))
    return moved, new_state

  return optax.GradientTransformation(level.init, update)
