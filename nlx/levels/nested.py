"""A slower level that learns the initial weights of the next faster one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from nlx.levels.periodic import PeriodicLevel, PeriodicState, Weighted


class Nested(NamedTuple):
  """Weights of a level that also learns where the next faster level starts from.

  Whenever such a level is updated, the faster one restarts from `initial`, with a fresh optimizer.
  The gradient of `initial` is that of the faster level's weights, gathered over the slower period
  as the level gathers its own: the first-order form of learning an initial state (ours; the paper
  prints the minimum alone).

  Attributes:
    own: The weights that the network computes with.
    initial: Like the `own` weights of the next faster level.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Sec. 3.3 and Eq. 72; Finn et al., MAML,
    arXiv 1703.03400, Sec. 5.2, for the first-order form.
  """

  own: Any
  initial: Any


def nested(weights: Sequence[Any]) -> tuple[Any, ...]:
  """Gives every level but the fastest the initial weights of the next faster one.

  Args:
    weights: Initial weights of each level, fastest first.

  Returns:
    What `level.init` takes, level by level, for `nlx.levels.nest`.

  Example:
    >>> import nlx
    >>> nlx.levels.nested((1.0, 2.0, 3.0))[1:]
    (Nested(own=2.0, initial=1.0), Nested(own=3.0, initial=2.0))
  """
  slower = (Nested(own, initial) for initial, own in zip(weights, weights[1:], strict=False))
  return (*weights[:1], *slower)


def own(weights: Any) -> Any:
  """The weights that the network computes with."""
  return weights.own if isinstance(weights, Nested) else weights


def signals_for(weights: Sequence[Any], gradients: Sequence[Any], count: Any) -> tuple:
  """What each level gathers: the gradient of its own weights, and of what it is to initialise."""

  def signal(i):
    if isinstance(weights[i], Nested):
      if i == 0:
        raise ValueError('the fastest level must have no `Nested` weights: there is none faster.')
      return Weighted(Nested(gradients[i], gradients[i - 1]), count)
    return Weighted(gradients[i], count)

  return tuple(signal(i) for i in range(len(weights)))


def restart_faster(
  levels: Sequence[PeriodicLevel], states: tuple[PeriodicState, ...], i: int
) -> tuple[PeriodicState, ...]:
  """After level `i` was updated: the next faster level starts anew if its initial state moved."""
  weights = levels[i].read(states[i])
  if not isinstance(weights, Nested):
    return states
  faster = levels[i - 1].read(states[i - 1])
  start = faster._replace(own=weights.initial) if isinstance(faster, Nested) else weights.initial
  return (*states[: i - 1], levels[i - 1].init(start), *states[i:])
