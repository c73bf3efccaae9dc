"""Inner objectives: what a memory lowers when it writes."""

from collections.abc import Callable
from typing import NamedTuple

import jax


class Objective(NamedTuple):
  """A loss between what a memory returns and what it should return.

  Attributes:
    name: For tables.
    error: `(prediction [..., V], target [..., V]) -> [..., V]`, the gradient of the loss for the
      prediction.
  """

  name: str
  error: Callable[[jax.Array, jax.Array], jax.Array]


def l2() -> Objective:
  """1/2 ||M(k) - v||^2.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eq. 65.
  """
  return Objective('L2', lambda prediction, target: prediction - target)


def dot_product() -> Objective:
  """-<M(k), v>, Hebbian.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eq. 64.
  """
  return Objective('dot product', lambda prediction, target: -target)
