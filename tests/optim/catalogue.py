"""Every optimizer of nlx.optim, for the tests that sweep all of them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from nlx import optim


class Entry(NamedTuple):
  """An optimizer in both forms.

  Attributes:
    scale: Without arguments, the `scale_by_x` form.
    full: From a learning rate, the `x` form.
    rate: A learning rate at which it lowers the problems of the contract.
    degree: The power of c by which a direction grows when all gradients are multiplied by c.
  """

  scale: Callable[[], optax.GradientTransformation]
  full: Callable[..., optax.GradientTransformation]
  rate: float = 0.02
  degree: float | None = 1.0


CATALOGUE = {
  'momentum': Entry(optim.scale_by_momentum, optim.momentum, 3e-3),
  'preconditioned_momentum': Entry(
    optim.scale_by_preconditioned_momentum, optim.preconditioned_momentum, 0.02, 0.0
  ),
  'learned_preconditioner': Entry(
    optim.scale_by_learned_preconditioner, optim.learned_preconditioner, 0.02, 0.0
  ),
  'delta_momentum': Entry(optim.scale_by_delta_momentum, optim.delta_momentum, 0.02, None),
  'deep_momentum': Entry(optim.scale_by_deep_momentum, optim.deep_momentum, 0.02, 0.0),
  'higher_order_momentum': Entry(
    optim.scale_by_higher_order_momentum, optim.higher_order_momentum, 3e-3
  ),
  'm3': Entry(optim.scale_by_m3, optim.m3, 0.06, 0.0),
  'multi_rate': Entry(optim.scale_by_multi_rate, optim.multi_rate, 0.05, 0.0),
  # It acts on captured kernels, of which there are none here: what it owes for them is in
  # test_delta_gradient_descent.py, and here that it leaves everything else to optax.
  'delta_gradient_descent': Entry(
    lambda: optim.scale_by_delta_gradient_descent(0.1), optim.delta_gradient_descent, 0.02, None
  ),
  'generalized_gradient_descent': Entry(
    lambda: optim.scale_by_generalized_gradient_descent(0.1),
    optim.generalized_gradient_descent,
    0.02,
  ),
}


def trees():
  """Parameters of every rank, and of none."""
  keys = jax.random.split(jax.random.key(0), 4)
  return {
    'scalar': jax.random.normal(keys[0], ()),
    'vector': jax.random.normal(keys[1], (5,)),
    'matrix': jax.random.normal(keys[2], (4, 6)),
    'stack': {'of_tall': jax.random.normal(keys[3], (2, 5, 3))},
    'empty': (),
  }
