"""A level along time."""

from collections.abc import Callable
from typing import Any

import jax

from nlx import core
from nlx.levels.periodic import PeriodicLevel, PeriodicState


def unroll(
  level: PeriodicLevel,
  read: Callable[[PeriodicState, Any], Any],
  state: PeriodicState,
  signals: Any,
  *,
  remat: bool = True,
) -> tuple[Any, PeriodicState]:
  """Updates a level signal by signal and reads it after each: the definition of every memory here.

  Memories have parallel forms that give the same outputs (see `nlx.memories`); this loop is for
  levels that have none, and is what those forms are tested against.

  Args:
    level: A periodic level.
    read: `(state, signal) -> output`. `state.gathered` of a `fold` is the live state, so reading it
      is the token read; reading `state.held` is the chunk read.
    state: The first state.
    signals: A pytree with a leading time axis [T, ...], one tick each.
    remat: Whether the backward pass keeps only one state per period.

  Returns:
    Outputs [T, ...] and the last state.
  """

  def tick(state, signal):
    state = level.update(state, signal)
    return state, read(state, signal)

  length = jax.tree.leaves(signals)[0].shape[0]
  whole = length - length % level.period
  if not remat or whole == 0:
    state, outputs = jax.lax.scan(tick, state, signals)
    return outputs, state

  def one_period(state, signals):
    return jax.lax.scan(tick, state, signals)

  shape = (whole // level.period, level.period)
  periods = jax.tree.map(lambda x: x[:whole].reshape(shape + x.shape[1:]), signals)
  state, outputs = core.scan_chunks(one_period, state, periods, remat=True)
  outputs = jax.tree.map(lambda x: x.reshape((whole, *x.shape[2:])), outputs)
  if whole == length:
    return outputs, state
  state, rest = jax.lax.scan(tick, state, jax.tree.map(lambda x: x[whole:], signals))
  join = lambda a, b: jax.numpy.concatenate([a, b])  # noqa: E731
  return jax.tree.map(join, outputs, rest), state
