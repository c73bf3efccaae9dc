"""Momentum as a memory that learns gradients by the delta rule."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlx.core import matmul, matrix_norm
from nlx.optim import assembly, leaves
from nlx.optim.description import described, infos_of, memory_info
from nlx.optim.preconditioners import Preconditioner, identity


class ScaleByDeltaMomentumState(NamedTuple):
  """State of `scale_by_delta_momentum`."""

  memory: Any  # like params, at least float32
  preconditioner: Any  # of the preconditioner


def scale_by_delta_momentum(
  decay: float = 0.9,
  *,
  delta: float = 1e-2,
  preconditioner: Preconditioner | None = None,
  saturate: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """Delta momentum: before it writes a gradient, the memory forgets what it holds along it.

      m = m (decay I - lam g^T g) + P g        lam = delta / (1 + delta ||g||^2)

  Plain momentum sums gradients until decay removes them; here a new gradient first removes what
  m says about its own directions, so that m turns as fast as the gradients do. A leaf is a matrix
  [..., M, N] with rows as in m g^T g; leading axes are a batch, and a vector is one row.

  Ours: the printed rule has lam = 1 whatever the gradient's norm, and m diverges as soon as
  delta ||g||^2 exceeds 1 + decay. With lam as above the eigenvalues of decay I - lam g^T g stay
  between decay - 1 and decay for every gradient and every delta.

  Args:
    decay: What is kept of the memory per step, in [0, 1).
    delta: How strongly a gradient erases, per squared gradient; 0 is plain momentum.
    preconditioner: P, of what is written but not of what is erased; the identity if not given.
    saturate: Whether lam is bounded as above; if not, lam = delta, which is stable for small
      gradients only.

  Returns:
    An optax transformation.

  Raises:
    ValueError: If `decay` is not in [0, 1) or `delta` is negative.

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> tx = nlx.optim.scale_by_delta_momentum(decay=0.5, delta=0.25, saturate=False)
    >>> updates, state = tx.update(jnp.ones(2), tx.init(jnp.zeros(2)))
    >>> updates, state = tx.update(jnp.ones(2), state)
    >>> updates.tolist()
    [1.0, 1.0]

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 48-49.
  """
  leaves.check_decay('decay', decay)
  leaves.check_not_negative('delta', delta)
  precondition = preconditioner or identity()

  @leaves.on_matrices
  def learn(memory, gradient, written):
    bound = 1 + delta * jnp.square(matrix_norm(gradient)) if saturate else 1
    return decay * memory - delta / bound * _along(memory, gradient) + written

  def update(gradients, state, params):
    del params
    full = jax.tree.map(leaves.in_float32, gradients)
    learned = precondition.update(full, state.preconditioner)
    memory = jax.tree.map(learn, state.memory, full, precondition.apply(full, learned))
    return leaves.as_dtypes_of(memory, gradients), ScaleByDeltaMomentumState(memory, learned)

  def init(params):
    return ScaleByDeltaMomentumState(leaves.zeros(params), precondition.init(params))

  def infos(state):
    memory = memory_info('momentum', 'L2', 'delta, retention', state.memory)
    return [memory, *infos_of(state.preconditioner, state.memory)]

  return leaves.transformation(described(init, infos), update)


def _along(memory: jax.Array, gradient: jax.Array) -> jax.Array:
  """The product m g^T g of matrices [..., M, N], through the smaller of the two inner products."""
  rows, columns = gradient.shape[-2:]
  if rows <= columns:
    return matmul(matmul(memory, gradient.mT), gradient)
  return matmul(memory, matmul(gradient.mT, gradient))


def delta_momentum(
  learning_rate: optax.ScalarOrSchedule,
  decay: float = 0.9,
  *,
  delta: float = 1e-2,
  preconditioner: Preconditioner | None = None,
  saturate: bool = True,
  weight_decay: float = 0.0,
  mask: Any = None,
  labels: assembly.Labels | None = None,
  adamw: Mapping[str, Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Gradient descent with delta momentum for matrices; see `scale_by_delta_momentum`.

  Args:
    learning_rate: Constant or schedule.
    decay: What is kept of the memory per step, in [0, 1).
    delta: How strongly a gradient erases, per squared gradient.
    preconditioner: Acts on what is written; the identity if not given.
    saturate: Whether the erasure is bounded, which keeps the memory stable.
    weight_decay: Fraction of a weight removed per step, in units of the learning rate.
    mask: A function that says which parameters decay, as in `optax.adamw`.
    labels: From params to a tree of 'matrix' and 'other'; `matrix_labels` if not given.
    adamw: Options of `optax.adamw` for what is no matrix, as b1 or its own `learning_rate`.

  Returns:
    An optax transformation.

  Raises:
    ValueError: If `decay` is not in [0, 1) or `delta` is negative.

  Example:
    >>> import nlx
    >>> tx = nlx.optim.delta_momentum(1e-2, decay=0.99)

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 48-49.
  """
  scale = scale_by_delta_momentum(
    decay, delta=delta, preconditioner=preconditioner, saturate=saturate
  )
  return assembly.by_kind(
    scale, learning_rate, weight_decay=weight_decay, mask=mask, labels=labels, adamw=adamw
  )
