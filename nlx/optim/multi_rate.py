"""Groups of parameters that are updated at different frequencies."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from nlx import core, levels
from nlx.optim import leaves
from nlx.optim.description import described, infos_of, weights_info


class EveryState(NamedTuple):
  """What a group holds between two of its steps."""

  optimizer: optax.OptState  # of the inner transformation
  updates: Any  # like params: what the last step asked for


def every(
  inner: optax.GradientTransformation, period: int
) -> optax.GradientTransformationExtraArgs:
  """Takes a step with the mean of `period` gradients once every `period` steps, else none.

  The parameters are a level of that period whose ticks are optimizer steps: the continuum memory
  system across training.

  Args:
    inner: What takes the step.
    period: Steps per update.

  Returns:
    An optax transformation.

  Raises:
    ValueError: If `period` is smaller than 1.

  Example:
    >>> import nlx, optax, jax.numpy as jnp
    >>> tx = nlx.optim.every(optax.sgd(1.0), period=2)
    >>> params, steps = jnp.zeros(()), []
    >>> state = tx.init(params)
    >>> for gradient in (1.0, 3.0):
    ...   updates, state = tx.update(jnp.asarray(gradient), state, params)
    ...   steps.append(float(updates))
    >>> steps
    [0.0, -2.0]

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eq. 71.
  """
  core.check_positive('period', period, 'step')
  inner = optax.with_extra_args_support(inner)

  def start(params):
    return EveryState(inner.init(params), leaves.zeros(params))

  def level(params, like, **extra_args):
    def step(state, gradients):
      gradients = leaves.as_dtypes_of(gradients, like)
      updates, optimizer = inner.update(gradients, state.optimizer, params, **extra_args)
      # Some optimizers promote what they hold; a level has a state of one form.
      return EveryState(*leaves.as_dtypes_of((optimizer, updates), tuple(state)))

    inner_level = levels.Level(start, step, read=lambda state: state.updates)
    return levels.periodic(inner_level, period, levels.mean())

  def init(params):
    return level(params, params).init(params)

  def update(gradients, state, params=None, **extra_args):
    state = level(params, gradients, **extra_args).update(state, levels.Weighted(gradients, 1.0))
    updates = leaves.as_dtypes_of(state.held.updates, gradients)
    return core.select(state.count == 0, updates, core.tree_zeros_like(updates)), state

  def infos(state):
    held = state.held
    inside = infos_of(held.optimizer, held.updates)
    slower = [info._replace(period=info.period and period * info.period) for info in inside]
    return [*slower, *weights_info(held.updates, slower, period)]

  return optax.GradientTransformationExtraArgs(described(init, infos), update)


def scale_by_multi_rate(
  periods: Mapping[str, int] | None = None, inner: optax.GradientTransformation | None = None
) -> optax.GradientTransformationExtraArgs:
  """One direction for all parameters, that each group follows at its own period.

  Args:
    periods: From a regular expression to steps per update. A leaf belongs to the first that is
      found in its path, such as `['blocks']['cms']['w1']`; to none, and it is updated every step.
    inner: What makes the direction; `optax.scale_by_adam()` if not given.

  Returns:
    An optax transformation.

  Raises:
    ValueError: If a period is smaller than 1 or an expression is malformed; from `init`, if one is
      in no path.

  Example:
    >>> import nlx
    >>> tx = nlx.optim.scale_by_multi_rate({'cms': 16})

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eq. 71.
  """
  return _by_period(periods, lambda period: inner or optax.scale_by_adam())


def multi_rate(
  learning_rate: optax.ScalarOrSchedule,
  periods: Mapping[str, int] | None = None,
  *,
  inner: Callable[..., optax.GradientTransformation] | None = None,
  weight_decay: float = 0.0,
  mask: Any = None,
  options: Mapping[str, Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """An optimizer whose parameter groups are updated at different frequencies.

  A slow group takes one step with its mean gradient per period, weight decay included.

  Args:
    learning_rate: Constant or schedule by step of the whole optimizer.
    periods: From regular expressions on a leaf's path to steps per update; see
      `scale_by_multi_rate`.
    inner: A factory like `optax.adamw`, which it is if not given, for every group.
    weight_decay: Fraction of a weight removed per update, in units of the learning rate.
    mask: A function that says which parameters decay, as in `optax.adamw`.
    options: Further arguments of the factory, such as b1 and b2.

  Returns:
    An optax transformation.

  Raises:
    ValueError: As `scale_by_multi_rate`.

  Example:
    >>> import nlx
    >>> tx = nlx.optim.multi_rate(1e-3, {'cms.*w1': 4, 'cms': 16})

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eq. 71.
  """

  def make(period):
    return (inner or optax.adamw)(
      learning_rate=at(period), weight_decay=weight_decay, mask=mask, **(options or {})
    )

  def at(period):
    if not callable(learning_rate):
      return learning_rate
    return lambda count: learning_rate(count * period + period - 1)

  return _by_period(periods, make)


def _by_period(named, make):
  """Gives every leaf the transformation of the first expression that its path matches."""
  patterns = []
  for pattern, period in (named or {}).items():
    core.check_positive(f'periods[{pattern!r}]', period, 'step')
    try:
      patterns.append((re.compile(pattern), period))
    except re.error as error:
      raise ValueError(f'`periods` has the expression {pattern!r}: {error}.') from None

  def label(path, leaf):
    del leaf
    name = jax.tree_util.keystr(path)
    return next((period for pattern, period in patterns if pattern.search(name)), 1)

  def labels(params):
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern, _ in patterns:
      if names and not any(map(pattern.search, names)):
        raise ValueError(
          f'`periods` has the expression {pattern.pattern!r}, which is in no path of a parameter, '
          f'as in {names[0]!r}.'
        )
    return jax.tree_util.tree_map_with_path(label, params)

  periods = {1, *(period for _, period in patterns)}
  groups = {p: make(p) if p == 1 else every(make(p), p) for p in periods}
  return optax.partition(groups, labels)
