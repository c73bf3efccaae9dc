"""Momentum with a preconditioner that learns by its own gradient steps."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from nlx.optim import assembly
from nlx.optim.preconditioned_momentum import scale_by_preconditioned_momentum
from nlx.optim.preconditioners import learned


def scale_by_learned_preconditioner(
  rate: float = 1e-2,
  *,
  decay: float = 0.9,
  objective: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
  structure: str = 'elementwise',
) -> optax.GradientTransformationExtraArgs:
  """Momentum of P g, where P lowers an objective of its own; see `learned`.

      P = P - rate grad_P L(P; g)        m = decay m + P g        u = m

  Args:
    rate: Of the steps of P; at most 1 without an objective.
    decay: What is kept of the momentum per step, in [0, 1).
    objective: `(preconditioner, gradient) -> scalar` of one leaf; whitening if not given.
    structure: Of P, 'elementwise' or 'matrix'.

  Returns:
    An optax transformation.

  Raises:
    ValueError: If `rate` or `decay` is out of range, or `structure` unknown.

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> tx = nlx.optim.scale_by_learned_preconditioner(rate=0.25, decay=0.0)
    >>> updates, state = tx.update(jnp.array([3.0, -5.0]), tx.init(jnp.zeros(2)))
    >>> updates.round(3).tolist()
    [1.0, -1.0]

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 38-41 and 47.
  """
  preconditioner = learned(rate, objective=objective, structure=structure)
  return scale_by_preconditioned_momentum(decay, preconditioner=preconditioner)


def learned_preconditioner(
  learning_rate: optax.ScalarOrSchedule,
  rate: float = 1e-2,
  *,
  decay: float = 0.9,
  objective: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
  structure: str = 'elementwise',
  weight_decay: float = 0.0,
  mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """Gradient descent with a learned preconditioner; see `scale_by_learned_preconditioner`.

  Args:
    learning_rate: Constant or schedule.
    rate: Of the steps of P; at most 1 without an objective.
    decay: What is kept of the momentum per step, in [0, 1).
    objective: `(preconditioner, gradient) -> scalar` of one leaf; whitening if not given.
    structure: Of P, 'elementwise' or 'matrix'.
    weight_decay: Fraction of a weight removed per step, in units of the learning rate.
    mask: Says which parameters decay, as in `optax.adamw`.

  Returns:
    An optax transformation.

  Raises:
    ValueError: If `rate` or `decay` is out of range, or `structure` unknown.

  Example:
    >>> import nlx
    >>> tx = nlx.optim.learned_preconditioner(1e-3, structure='matrix')

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 38-41 and 47.
  """
  scale = scale_by_learned_preconditioner(
    rate, decay=decay, objective=objective, structure=structure
  )
  return assembly.descend(scale, learning_rate, weight_decay, mask)
