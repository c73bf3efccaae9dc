"""Momentum of higher-order features of the gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nlx.optim import assembly, leaves
from nlx.optim.preconditioned_momentum import scale_by_preconditioned_momentum
from nlx.optim.preconditioners import Preconditioner, identity

Features = Callable[[jax.Array], jax.Array]


def polynomial(coefficients: Sequence[float] = (1.0, 0.1)) -> Features:
  """phi(g) = r sum_k c_k (g / r)^(2k + 1), with r the root mean square of g over its matrix.

  Only odd powers and no negative coefficients: phi keeps the sign of every element, so that a step
  along it goes downhill; an even power would push a weight the same way whatever its gradient says.
  Ours: powers are taken relative to r, so that a step grows in proportion to the gradient and not
  as its cube. Elements of size r are multiplied by sum_k c_k, smaller ones by less.

  Args:
    coefficients: c_0, c_1, ... of the powers 1, 3, ...; not negative, and not all zero.

  Returns:
    A function of one leaf; r is taken over its last two axes, and over all of a vector.

  Raises:
    ValueError: If a coefficient is negative, or none is above 0.

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> nlx.optim.polynomial((0.0, 1.0))(jnp.array([1.0, -7.0])).round(3).tolist()
    [0.04..., -13.72...]

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eq. 51.
  """
  coefficients = tuple(coefficients)
  if min(coefficients, default=0) < 0 or not any(coefficients):
    raise ValueError(
      f'`coefficients` must not be negative, and one must be above 0, got {coefficients}.'
    )

  def features(g):
    squared = jnp.square(g)
    mean = jnp.mean(squared, axis=(-2, -1), keepdims=True)
    ratio = jnp.where(mean > 0, squared / jnp.where(mean > 0, mean, 1), 0)
    return g * sum(c * ratio**k for k, c in enumerate(coefficients))

  return leaves.on_matrices(features)


def scale_by_higher_order_momentum(
  decay: float = 0.9,
  *,
  features: Features | None = None,
  preconditioner: Preconditioner | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Momentum of features of the gradient, m = decay m + P phi(g).

  P is learned from what it is applied to, the features.

  Args:
    decay: What is kept of the memory per step, in [0, 1).
    features: phi, a function of one leaf of gradients; `polynomial()` if not given.
    preconditioner: P; `identity()` if not given.

  Returns:
    An optax transformation.

  Raises:
    ValueError: If `decay` is not in [0, 1).

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> cubes = nlx.optim.polynomial((0.0, 1.0))
    >>> tx = nlx.optim.scale_by_higher_order_momentum(features=cubes)
    >>> updates, state = tx.update(jnp.array([1.0, -7.0]), tx.init(jnp.zeros(2)))
    >>> updates.round(3).tolist()
    [0.04..., -13.72...]

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eq. 51.
  """
  phi = polynomial() if features is None else features
  momentum = scale_by_preconditioned_momentum(decay, preconditioner=preconditioner or identity())

  def update(gradients, state, params):
    lifted = jax.tree.map(lambda g: phi(leaves.in_float32(g)), gradients)
    updates, state = momentum.update(lifted, state, params)
    return leaves.as_dtypes_of(updates, gradients), state

  return leaves.transformation(momentum.init, update)


def higher_order_momentum(
  learning_rate: optax.ScalarOrSchedule,
  decay: float = 0.9,
  *,
  features: Features | None = None,
  preconditioner: Preconditioner | None = None,
  weight_decay: float = 0.0,
  mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """Gradient descent with higher-order momentum; see `scale_by_higher_order_momentum`.

  Args:
    learning_rate: Constant or schedule.
    decay: What is kept of the memory per step, in [0, 1).
    features: phi, a function of one leaf of gradients; `polynomial()` if not given.
    preconditioner: P; `identity()` if not given.
    weight_decay: Fraction of a weight removed per step, in units of the learning rate.
    mask: Says which parameters decay, as in `optax.adamw`.

  Returns:
    An optax transformation.

  Raises:
    ValueError: If `decay` is not in [0, 1).

  Example:
    >>> import nlx
    >>> tx = nlx.optim.higher_order_momentum(1e-2)

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eq. 51.
  """
  scale = scale_by_higher_order_momentum(decay, features=features, preconditioner=preconditioner)
  return assembly.descend(scale, learning_rate, weight_decay, mask)
