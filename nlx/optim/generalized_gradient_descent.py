"""Generalized gradient descent: the minimiser of a user's objective and retention."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlx import core
from nlx.optim import assembly, leaves


class ScaleByGeneralizedGradientDescentState(NamedTuple):
  """State of `scale_by_generalized_gradient_descent`."""

  count: jax.Array  # type: ignore[assignment]  # int32 scalar, steps taken


def scale_by_generalized_gradient_descent(
  learning_rate: optax.ScalarOrSchedule,
  *,
  objective: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
  retention: Callable[[jax.Array, jax.Array, Any], jax.Array] | None = None,
  inner_steps: int = 1,
  inner_rate: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
  """Generalized gradient descent: a leaf learns its own gradient under a chosen retention.

      W+ = argmin_W  objective(W, g) + retention(W, W0, eta)        g = the gradient at W0

  The defaults, <W, g> and ||W - W0||^2 / (2 eta), make W+ = W0 - eta g: gradient descent. Ours: the
  minimiser is approached from W0 by gradient steps of size `inner_rate` eta, and returned as the
  direction D of W+ = W0 - eta D. A first step sees a retention by its slope at W0 alone, which for
  the default is zero, so other retentions need more steps than one.

  Args:
    learning_rate: eta, constant or schedule: the same as what the direction is scaled by.
    objective: `(weight, gradient) -> scalar`, for each leaf by itself.
    retention: `(weight, old, learning_rate) -> scalar`, for each leaf by itself; in place of the
      default, not on top of it.
    inner_steps: Gradient steps towards the minimiser.
    inner_rate: Their size in units of eta. With the default retention plus one of curvature c,
      they converge if `inner_rate` (1 + eta c) < 2.

  Returns:
    An optax transformation from gradients to D. It needs params.

  Raises:
    ValueError: If `learning_rate` or `inner_rate` is negative or `inner_steps` is smaller than 1;
      from `update`, if params are not given.

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> def ridge(weight, old, learning_rate):
    ...   return jnp.sum((weight - old) ** 2 / (2 * learning_rate) + weight**2 / 2)
    >>> tx = nlx.optim.scale_by_generalized_gradient_descent(0.5, retention=ridge, inner_steps=30)
    >>> params = jnp.array([3.0])
    >>> updates, _ = tx.update(jnp.zeros(1), tx.init(params), params)
    >>> (params - 0.5 * updates).round(3).tolist()
    [2.0]

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Definition 5 and Eqs. 59-60.
  """
  leaves.check_not_negative('learning_rate', learning_rate)
  leaves.check_not_negative('inner_rate', inner_rate)
  core.check_positive('inner_steps', inner_steps, 'step')

  def solve(gradient, old, eta):
    """The direction D; the default retention has the gradient (W - W0) / eta = -D."""
    divisor = jnp.maximum(eta, jnp.finfo(old.dtype).tiny ** 0.5)  # A schedule may begin at 0.

    def step(_, direction):
      weight = old - eta * direction
      learn = gradient if objective is None else jax.grad(objective)(weight, gradient)
      keep = -direction if retention is None else jax.grad(retention)(weight, old, divisor)
      return direction + inner_rate * (learn + keep)

    return jax.lax.fori_loop(0, inner_steps, step, jnp.zeros_like(gradient))

  def update(gradients, state, params):
    if params is None:
      raise ValueError(
        'generalized gradient descent needs params: `update(gradients, state, params)`.'
      )
    eta = learning_rate(state.count) if callable(learning_rate) else learning_rate

    def one(gradient, param):
      full = leaves.in_float32(gradient)
      return solve(full, param.astype(full.dtype), jnp.asarray(eta, full.dtype))

    updates = leaves.as_dtypes_of(jax.tree.map(one, gradients, params), gradients)
    count = optax.safe_increment(state.count)
    return updates, ScaleByGeneralizedGradientDescentState(count)

  def init(params):
    del params
    return ScaleByGeneralizedGradientDescentState(jnp.zeros((), jnp.int32))

  return leaves.transformation(init, update)


def generalized_gradient_descent(
  learning_rate: optax.ScalarOrSchedule,
  *,
  objective: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
  retention: Callable[[jax.Array, jax.Array, Any], jax.Array] | None = None,
  inner_steps: int = 1,
  inner_rate: float = 1.0,
  weight_decay: float = 0.0,
  mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """Steps to the minimiser of a chosen objective and retention.

  See `scale_by_generalized_gradient_descent`. With the defaults this is `optax.sgd`.

  Args:
    learning_rate: Constant or schedule.
    objective: `(weight, gradient) -> scalar`; <weight, gradient> if not given.
    retention: `(weight, old, learning_rate) -> scalar`; ||weight - old||^2 / (2 learning_rate) if
      not given.
    inner_steps: Gradient steps towards the minimiser.
    inner_rate: Their size in units of the learning rate.
    weight_decay: Fraction of a weight removed per step, in units of the learning rate.
    mask: Says which parameters decay, as in `optax.adamw`.

  Returns:
    An optax transformation. It needs params.

  Raises:
    ValueError: If `learning_rate` or `inner_rate` is negative or `inner_steps` is smaller than 1;
      from `update`, if params are not given.

  Example:
    >>> import nlx
    >>> tx = nlx.optim.generalized_gradient_descent(1e-2)

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Definition 5 and Eqs. 59-60.
  """
  scale = scale_by_generalized_gradient_descent(
    learning_rate,
    objective=objective,
    retention=retention,
    inner_steps=inner_steps,
    inner_rate=inner_rate,
  )
  return assembly.descend(scale, learning_rate, weight_decay, mask)
