"""The contract: a level is a state and a pure way to update it."""

from collections.abc import Callable
from typing import Any, NamedTuple

State = Any
Signal = Any
Weights = Any


def _whole_state(state: State) -> Weights:
  return state


class Level(NamedTuple):
  """One optimization problem of a nested system, as pure functions.

  The shape is optax's on purpose: a level that holds gradients is an optimizer, one that holds keys
  and values is a memory, one that holds next-token gradients is a continuum memory block.

  Attributes:
    init: `params -> state`. From slow weights (the learned initial state) to fast state.
    update: `(state, signal) -> state`. Pure; same structure, shapes and dtypes out as in.
    read: `state -> weights`. The part of the state that other levels compute with.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Defs. 3 and 6.
  """

  init: Callable[[Any], State]
  update: Callable[[State, Signal], State]
  read: Callable[[State], Weights] = _whole_state
