"""Momentum of preconditioned gradients, or preconditioned momentum."""

from typing import Any, NamedTuple

import jax
import optax

from nlx import core
from nlx.optim import assembly, leaves
from nlx.optim.momentum import ScaleByMomentumState, scale_by_momentum
from nlx.optim.preconditioners import Preconditioner, diagonal

APPLIED_TO = ('gradient', 'momentum')


class ScaleByPreconditionedMomentumState(NamedTuple):
  """State of `scale_by_preconditioned_momentum`."""

  momentum: ScaleByMomentumState
  preconditioner: Any  # of the preconditioner


def scale_by_preconditioned_momentum(
  decay: float = 0.9,
  *,
  preconditioner: Preconditioner | None = None,
  rate: float = 1.0,
  applied_to: str = 'gradient',
  nesterov: bool = False,
  debias: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Momentum with a preconditioner P that is learned from the gradients.

      'gradient':   m = decay m + rate P g    u = m
      'momentum':   m = decay m + rate g      u = P m

  P takes each gradient in before it is applied. With `diagonal()` the first is RMSProp with
  momentum, and the second, with `rate` 1 - decay and `debias`, Adam.

  Args:
    decay: What is kept of the memory per step, in [0, 1).
    preconditioner: P, such as `diagonal()`, which it is if not given, or `kronecker()`.
    rate: Inner learning rate.
    applied_to: What P multiplies: 'gradient', as printed in Eq. 47, or 'momentum'.
    nesterov: Whether the output looks one step ahead.
    debias: Whether the memory is divided by 1 - decay^t.

  Returns:
    An optax transformation.

  Raises:
    ValueError: If `decay` is not in [0, 1), `rate` is negative, or `applied_to` unknown.

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> tx = nlx.optim.scale_by_preconditioned_momentum(decay=0.5)
    >>> updates, state = tx.update(jnp.array([2.0, -8.0]), tx.init(jnp.zeros(2)))
    >>> updates, state = tx.update(jnp.array([2.0, -8.0]), state)
    >>> updates.round(3).tolist()
    [1.5..., -1.5...]

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 46-47.
  """
  core.check_choice('applied_to', applied_to, APPLIED_TO)
  momentum = scale_by_momentum(decay, rate=rate, nesterov=nesterov, debias=debias)
  precondition = diagonal() if preconditioner is None else preconditioner

  def init(params):
    return ScaleByPreconditionedMomentumState(momentum.init(params), precondition.init(params))

  def update(gradients, state, params):
    del params
    full = jax.tree.map(leaves.in_float32, gradients)
    learned = precondition.update(full, state.preconditioner)
    if applied_to == 'gradient':
      updates, memory = momentum.update(precondition.apply(full, learned), state.momentum)
    else:
      updates, memory = momentum.update(full, state.momentum)
      updates = precondition.apply(updates, learned)
    updates = leaves.as_dtypes_of(updates, gradients)
    return updates, ScaleByPreconditionedMomentumState(memory, learned)

  return leaves.transformation(init, update)


def preconditioned_momentum(
  learning_rate: optax.ScalarOrSchedule,
  decay: float = 0.9,
  *,
  preconditioner: Preconditioner | None = None,
  rate: float = 1.0,
  applied_to: str = 'gradient',
  nesterov: bool = False,
  debias: bool = False,
  weight_decay: float = 0.0,
  mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """Gradient descent with preconditioned momentum; see `scale_by_preconditioned_momentum`.

  Args:
    learning_rate: Constant or schedule.
    decay: What is kept of the memory per step, in [0, 1).
    preconditioner: P; `diagonal()` if not given.
    rate: Inner learning rate.
    applied_to: What P multiplies: 'gradient' or 'momentum'.
    nesterov: Whether the output looks one step ahead.
    debias: Whether the memory is divided by 1 - decay^t.
    weight_decay: Fraction of a weight removed per step, in units of the learning rate.
    mask: Says which parameters decay, as in `optax.adamw`.

  Returns:
    An optax transformation.

  Raises:
    ValueError: If `decay` is not in [0, 1), `rate` is negative, or `applied_to` unknown.

  Example:
    >>> import nlx
    >>> shampoo = nlx.optim.kronecker(period=10)
    >>> tx = nlx.optim.preconditioned_momentum(1e-3, preconditioner=shampoo)

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 46-47.
  """
  scale = scale_by_preconditioned_momentum(
    decay,
    preconditioner=preconditioner,
    rate=rate,
    applied_to=applied_to,
    nesterov=nesterov,
    debias=debias,
  )
  return assembly.descend(scale, learning_rate, weight_decay, mask)
