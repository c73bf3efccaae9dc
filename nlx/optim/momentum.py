"""Momentum as a memory of gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlx.memories import Objective, dot_product
from nlx.optim import assembly, leaves
from nlx.optim.description import described, memory_info


class ScaleByMomentumState(NamedTuple):
  """State of `scale_by_momentum`."""

  count: jax.Array  # type: ignore[assignment]  # int32 scalar, steps taken
  memory: Any  # like params, at least float32


def scale_by_momentum(
  decay: float = 0.9,
  *,
  rate: float = 1.0,
  objective: Objective | None = None,
  nesterov: bool = False,
  debias: bool = False,
  output: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Momentum: a memory m without keys that learns gradients by gradient descent.

      m = decay m - rate grad_m L(m; g)        u = output(m)

  With the dot-product objective L = -<m, g> this is the heavy ball, m = decay m + rate g; with
  `rate` 1 - decay it is a moving average. With an L2 objective m regresses onto the gradients.

  Args:
    decay: What is kept of the memory per step, in [0, 1).
    rate: Inner learning rate.
    objective: What the memory lowers, applied over the last axis of a leaf; `dot_product()` if
      not given.
    nesterov: Whether the output looks one step ahead.
    debias: Whether the memory is divided by 1 - decay^t; for the dot product only.
    output: A function of the tree of memories, such as `newton_schulz`, which makes this Muon;
      nothing if not given.

  Returns:
    An optax transformation.

  Raises:
    ValueError: If `decay` is not in [0, 1), `rate` is negative, or `debias` is set with another
      objective than the dot product.

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> tx = nlx.optim.scale_by_momentum(decay=0.5)
    >>> updates, state = tx.update(jnp.ones(2), tx.init(jnp.zeros(2)))
    >>> updates, state = tx.update(jnp.ones(2), state)
    >>> updates.tolist()
    [1.5, 1.5]

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 33-37 and 52.
  """
  leaves.check_decay('decay', decay)
  leaves.check_not_negative('rate', rate)
  if debias and objective is not None and objective.name != dot_product().name:
    raise ValueError(
      f'`debias` is for the dot-product objective, whose memory is a sum, got {objective.name!r}.'
    )
  error = (objective or dot_product()).error

  @leaves.on_matrices
  def learn(memory, gradient):
    return decay * memory - rate * error(memory, gradient)

  def unbiased(memory, count):
    return memory / (1 - decay**count) if debias else memory

  def update(gradients, state, params):
    del params
    count = optax.safe_increment(state.count)
    full = jax.tree.map(leaves.in_float32, gradients)
    memory = jax.tree.map(learn, state.memory, full)
    if nesterov and debias:  # As Nadam: memory and gradient each by the steps that they hold.
      ahead = jax.tree.map(
        lambda m, g: learn(m / (1 - decay ** (count + 1)), g / (1 - decay**count)), memory, full
      )
    elif nesterov:
      ahead = jax.tree.map(learn, memory, full)
    else:
      ahead = jax.tree.map(lambda m: unbiased(m, count), memory)
    updates = ahead if output is None else output(ahead)
    return leaves.as_dtypes_of(updates, gradients), ScaleByMomentumState(count, memory)

  def init(params):
    return ScaleByMomentumState(jnp.zeros((), jnp.int32), leaves.zeros(params))

  def infos(state):
    name = (objective or dot_product()).name
    return [memory_info('momentum', name, 'gradient, retention', state.memory)]

  return leaves.transformation(described(init, infos), update)


def momentum(
  learning_rate: optax.ScalarOrSchedule,
  decay: float = 0.9,
  *,
  rate: float = 1.0,
  objective: Objective | None = None,
  nesterov: bool = False,
  debias: bool = False,
  weight_decay: float = 0.0,
  mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """Gradient descent with momentum as a memory of gradients; see `scale_by_momentum`.

  Args:
    learning_rate: Constant or schedule.
    decay: What is kept of the memory per step, in [0, 1).
    rate: Inner learning rate.
    objective: What the memory lowers; `dot_product()` if not given.
    nesterov: Whether the output looks one step ahead.
    debias: Whether the memory is divided by 1 - decay^t.
    weight_decay: Fraction of a weight removed per step, in units of the learning rate.
    mask: Says which parameters decay, as in `optax.adamw`.

  Returns:
    An optax transformation.

  Raises:
    ValueError: If `decay` is not in [0, 1) or `rate` is negative.

  Example:
    >>> import nlx
    >>> tx = nlx.optim.momentum(1e-2)

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 33-37.
  """
  scale = scale_by_momentum(decay, rate=rate, objective=objective, nesterov=nesterov, debias=debias)
  return assembly.descend(scale, learning_rate, weight_decay, mask)
