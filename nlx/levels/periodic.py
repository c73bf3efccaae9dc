"""Hold a state, gather what it saw, update it every `period` ticks.

This is the only place in nlx where "every C ticks" is written. The ticks are tokens for the
memories and for the continuum memory system inside a sequence, and optimizer steps across training.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nlx import core
from nlx.levels.level import Level, Signal, State, Weights


class Gather(NamedTuple):
  """How a held level collects its signals until its period ends.

  Attributes:
    start: `(level, state) -> gathered`. What is gathered before the first signal.
    add: `(gathered, held, signal) -> gathered`. Takes in one signal; `held` is read meanwhile.
    result: `(gathered, weights) -> signal`. What the level's own `update` receives at the end; the
      held weights tell of which dtypes.
  """

  start: Callable[[Level, State], Any]
  add: Callable[[Any, State, Signal], Any]
  result: Callable[[Any, Weights], Signal]


def _accumulator(level: Level, state: State) -> Weights:
  """Zeros like the weights, in at least float32: in 16 bits a sum soon stops to grow."""

  def zeros(x):
    x = jnp.zeros_like(x)
    real = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if real else x

  return jax.tree.map(zeros, level.read(state))


def _as_weights(tree: Weights, weights: Weights) -> Weights:
  return jax.tree.map(lambda x, weight: x.astype(weight.dtype), tree, weights)


total = Gather(
  start=_accumulator,
  add=lambda gathered, held, signal: core.tree_add(gathered, signal),
  result=_as_weights,
)
"""Signals add up: Eq. 71 as printed."""


class Weighted(NamedTuple):
  """A sum and what it weighs: the signal of a gradient level, and what `mean` gathers."""

  total: Any  # like the weights: a sum of gradients
  weight: jax.Array | float  # scalar, or [B] with a batch axis: tokens or samples in the sum


def mean(batch_axis: int | None = None) -> Gather:
  """Gathers `Weighted` signals; the level receives the sum of sums over the sum of weights.

  Args:
    batch_axis: The axis of independent sequences in every weight; their means are separate. None
      for none.
  """

  def start(level, state):
    zeros = _accumulator(level, state)
    shape = () if batch_axis is None else (jax.tree.leaves(zeros)[0].shape[batch_axis],)
    return Weighted(zeros, jnp.zeros(shape, jnp.float32))

  def add(gathered, held, signal):
    weight = gathered.weight + jnp.asarray(signal.weight, gathered.weight.dtype)
    return Weighted(core.tree_add(gathered.total, signal.total), weight)

  def result(gathered, weights):
    weight = jnp.where(gathered.weight > 0, gathered.weight, 1)  # nothing seen: a mean of zero

    def divide(x):
      axes = () if batch_axis is None else [i for i in range(x.ndim) if i != batch_axis]
      return x / jnp.expand_dims(weight, axes).astype(x.dtype)

    return _as_weights(jax.tree.map(divide, gathered.total), weights)

  return Gather(start, add, result)


def fold(add: Callable[[State, State, Signal], State]) -> Gather:
  """Gathers by a recurrence `add(live, held, signal) -> live` that starts from the held state.

  The gathered value is the live state itself; at the end of the period it replaces the held one.
  """
  return Gather(
    start=lambda level, state: jax.tree.map(jnp.copy, state),  # So that both can be given away.
    add=add,
    result=lambda gathered, weights: gathered,
  )


class PeriodicState(NamedTuple):
  """State of a level that is held for a period."""

  held: State  # the inner level's state: what is read until the period ends
  gathered: Any  # what was seen since the last update
  count: jax.Array  # type: ignore[assignment]  # int32 scalar: ticks since the last update


class PeriodicLevel(NamedTuple):
  """A level that updates every `period` ticks; satisfies the contract of `Level`.

  Attributes:
    init: `params -> PeriodicState`.
    update: `(state, signal, ticks=1) -> state`. Gathers, and flushes if the period has ended.
    read: `state -> weights` of the held state.
    gather: `(state, signal, ticks=1) -> state`. Takes a signal in, changes nothing that is read.
    flush: `state -> state`. Updates the held state from what was gathered and starts a new period.
    period: Ticks per update.
  """

  init: Callable[[Any], PeriodicState]
  update: Callable[..., PeriodicState]
  read: Callable[[PeriodicState], Weights]
  gather: Callable[..., PeriodicState]
  flush: Callable[[PeriodicState], PeriodicState]
  period: int


def periodic(level: Level, period: int, gather: Gather = total) -> PeriodicLevel:
  """Updates `level` once every `period` ticks, with what its signals add up to.

  Between two updates the inner state is held, so a slow level is constant within its chunk.

  Args:
    level: The level to slow down.
    period: Ticks per update, in ticks of the enclosing loop; at least 1.
    gather: How signals are collected: `total`, `mean()`, or a `fold`.

  Returns:
    A level that takes the same signals as `gather` does. A signal may be worth several ticks, as
    long as none crosses the end of a period.

  Raises:
    ValueError: If `period` is smaller than 1.

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> count_up = nlx.levels.Level(init=jnp.asarray, update=jnp.add)
    >>> slow = nlx.levels.periodic(count_up, period=2)
    >>> state = slow.init(0.0)
    >>> for signal in (1.0, 2.0, 4.0):
    ...   state = slow.update(state, jnp.asarray(signal))
    >>> float(slow.read(state)), float(state.gathered), int(state.count)
    (3.0, 4.0, 1)

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eq. 71.
  """
  core.check_positive('period', period, 'tick')

  def restart(held):
    return PeriodicState(held, gather.start(level, held), jnp.zeros((), jnp.int32))

  def take_in(state, signal, ticks=1):
    gathered = gather.add(state.gathered, state.held, signal)
    return PeriodicState(state.held, gathered, state.count + jnp.asarray(ticks, jnp.int32))

  def flush(state):
    signal = gather.result(state.gathered, level.read(state.held))
    return restart(level.update(state.held, signal))

  def update(state, signal, ticks=1):
    state = take_in(state, signal, ticks)
    return jax.lax.cond(state.count >= period, flush, lambda state: state, state)

  return PeriodicLevel(
    init=lambda params: restart(level.init(params)),
    update=update,
    read=lambda state: level.read(state.held),
    gather=take_in,
    flush=flush,
    period=period,
  )
