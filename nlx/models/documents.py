"""Documents in sequence: where one begins, a sequence knows nothing of what it read before."""

from typing import Any

import jax
import jax.numpy as jnp

from nlx.levels import OptaxState, PeriodicState, Weighted


def restart_carry(starts: jax.Array, fresh: Any, carry: Any) -> Any:
  """Mixer states of all layers, fresh where a document begins.

  Args:
    starts: [B] bool.
    fresh: A `Carry` before the first token.
    carry: The `Carry` of now. Counts, which sequences share, stay.

  Returns:
    The `Carry` to read on with.
  """
  first = jax.tree.map(lambda new, old: _choose(starts, new, old, 0), fresh.first, carry.first)
  rest = jax.tree.map(lambda new, old: _choose(starts, new, old, 1), fresh.rest, carry.rest)
  return carry._replace(first=first, rest=rest)


def restart_levels(
  starts: jax.Array, fresh: tuple[PeriodicState, ...], states: tuple[PeriodicState, ...]
) -> tuple[PeriodicState, ...]:
  """States of the levels that learn in context, fresh where a document begins.

  Weights return to their learned initial state and nothing is gathered yet. Updates stay due when
  they were due, with the mean over what of the document they have seen.

  Args:
    starts: [B] bool.
    fresh: States before the first token.
    states: Those of now.

  Returns:
    The states to read on with.
  """

  def along(axis):
    return lambda new, old: jax.tree.map(lambda x, y: _choose(starts, x, y, axis), new, old)

  by_layer, by_sequence = along(1), along(0)  # Weights are [L, B, ...], all else is [B, ...].

  def one(new, old):
    held = OptaxState(
      by_layer(new.held.params, old.held.params),
      by_sequence(new.held.optimizer, old.held.optimizer),
    )
    gathered = Weighted(
      by_layer(new.gathered.total, old.gathered.total),
      by_sequence(new.gathered.weight, old.gathered.weight),
    )
    return old._replace(held=held, gathered=gathered)

  return tuple(one(new, old) for new, old in zip(fresh, states, strict=True))


def _choose(starts, new, old, axis):
  """`new` for the sequences that start, `old` for the others and for what they share."""
  if old.ndim <= axis:
    return old
  shape = [1] * old.ndim
  shape[axis] = starts.shape[0]
  return jnp.where(starts.reshape(shape), new, old)
