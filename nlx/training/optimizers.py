"""Optimizers by name: a schedule, clipping and weight decay on matrices only."""

import functools
import inspect
import math
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nlx import optim

Params = Any


def warmup_cosine(
  peak: float, *, warmup_steps: int, total_steps: int, floor: float = 0.0
) -> optax.Schedule:
  """Returns a learning rate that rises linearly and falls along half a cosine.

  Step `warmup_steps - 1` is the first at `peak`, step `total_steps - 1` the first at the floor;
  no step has rate zero unless `floor` is.

  Args:
    peak: Largest learning rate, positive.
    warmup_steps: Steps of linear rise, at least 0.
    total_steps: Steps of the run, more than `warmup_steps`.
    floor: Final learning rate as a fraction of `peak`, in [0, 1].

  Returns:
    A function from the number of completed steps to the learning rate.

  Raises:
    ValueError: If an argument is out of range.
  """
  if not peak > 0:
    raise ValueError(f'`peak` learning rate must be positive, got {peak}.')
  if not 0 <= warmup_steps < total_steps:
    raise ValueError(
      f'`warmup_steps` must be in [0, `total_steps`), got {warmup_steps} of {total_steps} steps.'
    )
  if not 0 <= floor <= 1:
    raise ValueError(f'`floor` must be a fraction in [0, 1] of the peak, got {floor}.')

  def schedule(step: jax.typing.ArrayLike) -> jax.Array:
    count = jnp.asarray(step, jnp.float32) + 1
    rise = count / max(warmup_steps, 1)
    progress = jnp.clip((count - warmup_steps) / (total_steps - warmup_steps), 0, 1)
    fall = floor + (1 - floor) * (1 + jnp.cos(math.pi * progress)) / 2
    return peak * jnp.where(count <= warmup_steps, rise, fall)

  return schedule


def matrices(params: Params, stacked: Collection[str] = ()) -> Params:
  """Returns a tree of bools: True where a parameter has at least two axes of its own.

  What `nlx.optim.names_vector`, such as a bias, is no matrix, however many axes it has.

  Args:
    params: Tree of arrays.
    stacked: Names of subtrees whose leaves have a leading axis of layers, which does not count.

  Returns:
    A tree of the same structure.
  """

  def is_matrix(path: tuple[Any, ...], param: jax.Array) -> bool:
    if optim.names_vector(path):
      return False
    names = [str(getattr(entry, 'key', getattr(entry, 'name', ''))) for entry in path]
    return jnp.ndim(param) - any(name in stacked for name in names) >= 2

  return jax.tree_util.tree_map_with_path(is_matrix, params)


def _delta_gradient_descent(**options: Any) -> optax.GradientTransformation:
  """Refuses parameters for which it would be AdamW under another name."""
  tx = optim.delta_gradient_descent(**options)

  def init(params):
    nodes = jax.tree.leaves(params, is_leaf=optim.is_captured)
    if not any(map(optim.is_captured, nodes)):
      raise ValueError(
        '`delta_gradient_descent` acts on kernels that are wrapped by `nlx.optim.capture` and used '
        'through `nlx.optim.dense`, and this model has none.'
      )
    return tx.init(params)

  return optax.GradientTransformationExtraArgs(init, tx.update)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  'adamw': optax.adamw,
  'ademamix': optax.contrib.ademamix,
  'deep_momentum': optim.deep_momentum,
  'delta_gradient_descent': _delta_gradient_descent,
  'delta_momentum': optim.delta_momentum,
  'generalized_gradient_descent': optim.generalized_gradient_descent,
  'higher_order_momentum': optim.higher_order_momentum,
  'learned_preconditioner': optim.learned_preconditioner,
  'm3': optim.m3,
  'momentum': optim.momentum,
  'multi_rate': optim.multi_rate,
  'muon': optim.muon,
  'preconditioned_momentum': optim.preconditioned_momentum,
}


def optimizer(
  name: str,
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: float = 0.0,
  decay_mask: Callable[[Params], Params] = matrices,
  clip_norm: float | None = 1.0,
  **options: Any,
) -> optax.GradientTransformation:
  """Makes an optimizer from its name.

  Args:
    name: A key of `OPTIMIZERS`, whose entries take `learning_rate`, `weight_decay`, `mask` and
      options of their own.
    learning_rate: Constant or schedule by step.
    weight_decay: Fraction of a weight removed per step, in units of the learning rate.
    decay_mask: Says which parameters are matrices: these decay, and the rules of `nlx.optim` that
      are for matrices act on those of them that are no embedding, head or convolution. By default
      all with at least two axes.
    clip_norm: Largest global norm of a gradient; None leaves gradients as they are.
    **options: For the named optimizer, as `b1` and `b2` of AdamW.

  Returns:
    An optax transformation.

  Raises:
    ValueError: If the name is unknown, or a number is out of range.
  """
  if name not in OPTIMIZERS:
    raise ValueError(f'`name` of the optimizer must be one of {sorted(OPTIMIZERS)}, got {name!r}.')
  if not callable(learning_rate):
    optim.leaves.check_not_negative('learning_rate', learning_rate)
  if not weight_decay >= 0:
    raise ValueError(f'`weight_decay` must not be negative, got {weight_decay}.')
  if clip_norm is not None and not clip_norm > 0:
    raise ValueError(f'`clip_norm` must be positive or None, got {clip_norm}.')
  factory = OPTIMIZERS[name]
  if 'labels' in inspect.signature(factory).parameters:
    options.setdefault('labels', functools.partial(_labels, decay_mask))
  inner = factory(
    learning_rate=learning_rate, weight_decay=weight_decay, mask=decay_mask, **options
  )
  clip = optax.identity() if clip_norm is None else _clip(clip_norm)
  return optax.chain(clip, inner)


def _clip(max_norm):
  """Clips gradients by their global norm; what is no gradient, a captured moment, is left alone."""

  def is_gradient(params):
    return jax.tree.map(
      lambda node: node._replace(weight=True, moment=False) if optim.is_captured(node) else True,
      params,
      is_leaf=optim.is_captured,
    )

  return optax.masked(optax.clip_by_global_norm(max_norm), is_gradient)


def _labels(is_matrix, params):
  """'matrix' for what both the mask and `nlx.optim.matrix_labels` take for one."""
  return jax.tree.map(
    lambda label, decays: label if decays else optim.OTHER,
    optim.matrix_labels(params),
    is_matrix(params),
  )
