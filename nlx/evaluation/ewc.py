"""Elastic weight consolidation: parameters that mattered to past tasks are held by springs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from nlx import core

Params = Any


class EWCState(NamedTuple):
  """The penalties of all tasks so far, which add up to one quadratic; in at least float32."""

  fisher: Params  # like params: sum of the F of all tasks
  center: Params  # like params: mean of the theta* of all tasks, weighted by their F
  offset: jax.Array  # []: sum of F (theta* - center)^2 over tasks and parameters


def sample_labels(
  logits: Callable[[Params, jax.Array], jax.Array],
  params: Params,
  inputs: jax.Array,
  *,
  key: jax.Array,
) -> jax.Array:
  """Labels as the model itself would give them, for the Fisher information of a classifier.

  Args:
    logits: From parameters and one input to [classes].
    params: Of the model.
    inputs: [N, ...].
    key: Random key.

  Returns:
    [N] integers, one draw for each input.
  """
  return jax.random.categorical(key, jax.vmap(logits, (None, 0))(params, inputs))


def fisher_diagonal(
  log_likelihood: Callable[[Params, Any, Any], jax.Array],
  params: Params,
  inputs: Any,
  labels: Any,
  *,
  batch_size: int = 32,
) -> Params:
  """The mean, over samples, of the squared gradient of log p(label | input).

  This is the diagonal of the Fisher information where labels are draws of the model
  (`sample_labels`), and the 'empirical Fisher' where they are those of the data. Where the model
  has become sure of its training data the latter is near zero, and not the curvature.

  Args:
    log_likelihood: From parameters, one input and its label to log p, a scalar.
    params: Where the gradients are taken.
    inputs: Tree of [N, ...].
    labels: Tree of [N, ...].
    batch_size: Samples whose gradients are held in memory at once.

  Returns:
    A tree like `params`, in at least float32.

  Raises:
    ValueError: If there are no samples, if trees disagree about N, or if `batch_size` is smaller
      than 1.

  Example:
    >>> import jax.numpy as jnp, nlx
    >>> log_p = lambda mean, x, y: -0.5 * (y - mean * x) ** 2
    >>> x, y = jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])
    >>> print(nlx.evaluation.fisher_diagonal(log_p, jnp.zeros(()), x, y))
    0.5

  References:
    Kunstner et al., Limitations of the Empirical Fisher, arXiv 1905.12558.
  """
  core.check_positive('batch_size', batch_size, 'sample')
  sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves((inputs, labels))}
  if len(sizes) != 1 or sizes <= {(), (0,)}:
    raise ValueError(
      f'`inputs` and `labels` must have one leading axis of at least 1 sample, got {sizes}.'
    )
  ((num_samples,),) = sizes
  gradients = jax.vmap(jax.grad(log_likelihood), (None, 0, 0))

  def add(total, samples):
    squares = jax.tree.map(lambda g: jnp.sum(jnp.square(_wide(g)), 0), gradients(params, *samples))
    return core.tree_add(total, squares), None

  rest = num_samples % batch_size
  whole = jax.tree.map(
    lambda x: x[: num_samples - rest].reshape(-1, batch_size, *x.shape[1:]), (inputs, labels)
  )
  total, _ = jax.lax.scan(add, core.tree_zeros_like(jax.tree.map(_wide, params)), whole)
  if rest:
    total, _ = add(total, jax.tree.map(lambda x: x[num_samples - rest :], (inputs, labels)))
  return jax.tree.map(lambda x: x / num_samples, total)


def ewc_init(params: Params) -> EWCState:
  """The state before any task, whose penalty is zero."""
  wide = jax.tree.map(_wide, params)
  return EWCState(core.tree_zeros_like(wide), wide, jnp.zeros(()))


def ewc_add(state: EWCState, params: Params, fisher: Params) -> EWCState:
  """Adds the penalty of a task that has been learned.

  The sum of the quadratics of all tasks is kept as one, which is the same function: memory does
  not grow with the number of tasks.

  Args:
    state: Of the tasks before.
    params: theta*, the parameters at the end of the task.
    fisher: F, like `params`, none below zero; see `fisher_diagonal`.

  Returns:
    The state that includes this task.
  """
  chex.assert_trees_all_equal_shapes(state.fisher, params, fisher)
  fisher = jax.tree.map(_wide, fisher)
  total = core.tree_add(state.fisher, fisher)
  apart = jax.tree.map(lambda p, c: p.astype(c.dtype) - c, params, state.center)
  # Parameters that no task needs have F = 0 and stay where the center is.
  share = jax.tree.map(lambda f, t: f / jnp.where(t > 0, t, 1), fisher, total)
  spread = jax.tree.map(lambda f, s, d: jnp.sum(f * s * d**2), state.fisher, share, apart)
  return EWCState(
    total,
    jax.tree.map(lambda c, s, d: c + s * d, state.center, share, apart),
    state.offset + sum(jax.tree.leaves(spread)),
  )


def ewc_penalty(state: EWCState, params: Params, strength: jax.typing.ArrayLike) -> jax.Array:
  """Strength / 2 times the sum, over past tasks k, of F_k (theta - theta*_k)^2.

  Args:
    state: Of the past tasks.
    params: theta.
    strength: lambda, not below zero; what the loss of the current task is weighed against.

  Returns:
    A scalar, to be added to the loss.

  Raises:
    ValueError: If `strength` is a number below zero.

  Example:
    >>> import jax.numpy as jnp, nlx
    >>> params, fisher = jnp.array([1.0, 2.0]), jnp.array([3.0, 0.0])
    >>> state = nlx.evaluation.ewc_add(nlx.evaluation.ewc_init(params), params, fisher)
    >>> print(nlx.evaluation.ewc_penalty(state, jnp.array([2.0, 9.0]), strength=2.0))
    3.0

  References:
    Kirkpatrick et al., Overcoming Catastrophic Forgetting, arXiv 1612.00796, Eq. 3.
  """
  if isinstance(strength, int | float) and strength < 0:
    raise ValueError(f'`strength` must not be negative, got {strength}.')
  chex.assert_trees_all_equal_shapes(state.fisher, params)
  pulls = jax.tree.map(
    lambda f, p, c: jnp.sum(f * jnp.square(p - c)), state.fisher, params, state.center
  )
  total = sum(jax.tree.leaves(pulls)) + state.offset
  return jnp.asarray(strength, total.dtype) / 2 * total


def _wide(x):
  return jnp.asarray(x, jnp.promote_types(jnp.asarray(x).dtype, jnp.float32))
