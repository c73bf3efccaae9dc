"""Multi-scale momentum Muon: orthogonalised momenta at several update frequencies."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlx import core, levels
from nlx.optim import assembly, leaves
from nlx.optim.description import described, memory_info
from nlx.optim.newton_schulz import newton_schulz

SECOND_MOMENTS = ('relative', 'literal', 'none')


class SlowMemory(NamedTuple):
  """What a slow level holds between two updates."""

  memory: Any  # like params: momentum of the sums of `period` gradients
  output: Any  # like params: the memory, orthogonalised


class ScaleByM3State(NamedTuple):
  """State of `scale_by_m3`."""

  count: jax.Array  # type: ignore[assignment]  # int32 scalar, steps taken
  fast: Any  # like params: momentum of every gradient
  slow: tuple[levels.PeriodicState, ...]  # one `SlowMemory` per slow level, fastest first
  second_moment: Any  # like params; None without


def scale_by_m3(
  slow_period: int | Sequence[int] = 16,
  *,
  decay: float = 0.95,
  slow_decay: float = 0.9,
  slow_weight: float = 0.5,
  second_moment: str | None = None,
  second_decay: float = 0.999,
  eps: float = 1e-8,
  literal: bool = False,
  orthogonalize: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """M3: a momentum at every step and others once per period, each orthogonalised.

      every step:     M1 = b1 M1 + (1 - b1) g    V = b2 V + (1 - b2) g^2    O1 = NS(M1)
      every f steps:  M2 = b3 M2 + (1 - b3) (sum of the last f gradients)   O2 = NS(M2)
      u = (O1 + alpha O2) / (sqrt(V) + eps)

  Ours: the averages (Algorithm 1 prints sums, see `literal`); O2 is computed once per period; any
  number of slow levels; and sqrt(V) is taken relative to its root mean square over a matrix,
  because a step that is divided by sqrt(V) itself shrinks as gradients grow. What V has not seen
  yet, a share of b2^t, counts as its mean: after one gradient V has entries near zero where O1 has
  none.

  Args:
    slow_period: f, steps between updates of the slow momentum, or one for each slow level.
    decay: b1, of the fast momentum, in [0, 1).
    slow_decay: b3, of the slow ones.
    slow_weight: alpha; 0 leaves the fast momentum alone, which is Muon.
    second_moment: 'relative' or 'literal' as above, or 'none' for no division. 'relative' if not
      given, 'literal' with `literal`.
    second_decay: b2, of V.
    eps: Added to sqrt(V).
    literal: Sums instead of averages, M = M + (1 - b) g.
    orthogonalize: NS, a function of a tree; `newton_schulz` if not given. With
      `functools.partial(newton_schulz, mesh=mesh)` the devices of a mesh share the work.

  Returns:
    An optax transformation for matrices [..., M, N]; vectors are matrices of one row.

  Raises:
    ValueError: If a decay is not in [0, 1), a period is smaller than 1, a weight or `eps` negative,
      or `second_moment` unknown, or 'relative' of sums.

  Example:
    >>> import nlx, optax, jax.numpy as jnp
    >>> tx = optax.chain(nlx.optim.scale_by_m3(slow_period=4), optax.scale_by_learning_rate(0.02))
    >>> state = tx.init(jnp.zeros((2, 3)))
    >>> updates, state = tx.update(jnp.ones((2, 3)), state)

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Algorithm 1 and Eq. 75.
  """
  for name, value in (('decay', decay), ('slow_decay', slow_decay), ('second_decay', second_decay)):
    leaves.check_decay(name, value)
  for name, value in (('slow_weight', slow_weight), ('eps', eps)):
    leaves.check_not_negative(name, value)
  kind = _kind_of_second_moment(second_moment, literal)
  orthogonalize = orthogonalize or newton_schulz
  periods = tuple(slow_period) if isinstance(slow_period, Sequence) else (slow_period,)
  for period in periods:
    core.check_positive('slow_period', period, 'step')

  def average(memory, gradient, decay):
    return (memory if literal else decay * memory) + (1 - decay) * gradient

  slow_level = _slow_level(lambda m, g: average(m, g, slow_decay), orthogonalize)
  slow_levels = tuple(levels.periodic(slow_level, period) for period in periods)

  def init(params):
    return ScaleByM3State(
      count=jnp.zeros((), jnp.int32),
      fast=leaves.zeros(params),
      slow=tuple(slow.init(params) for slow in slow_levels),
      second_moment=None if kind == 'none' else leaves.zeros(params),
    )

  def update(gradients, state, params):
    del params
    count = optax.safe_increment(state.count)
    full = jax.tree.map(leaves.in_float32, gradients)
    fast = jax.tree.map(lambda m, g: average(m, g, decay), state.fast, full)
    slow = tuple(
      level.update(state, full) for level, state in zip(slow_levels, state.slow, strict=True)
    )
    updates = orthogonalize(fast)
    for level, memory in zip(slow_levels, slow, strict=True):
      updates = jax.tree.map(lambda u, o: u + slow_weight * o, updates, level.read(memory))
    second = state.second_moment
    if second is not None:
      second = jax.tree.map(lambda v, g: average(v, jnp.square(g), second_decay), second, full)
      unseen = second_decay**count
      root = jax.tree.map(
        lambda v: jnp.sqrt(v) if kind == 'literal' else _relative_root(v, unseen), second
      )
      updates = jax.tree.map(lambda u, r: u / (r + eps), updates, root)
    return leaves.as_dtypes_of(updates, gradients), ScaleByM3State(count, fast, slow, second)

  rule = 'gradient' if literal else 'gradient, retention'
  init = described(init, lambda state: _infos(state, rule, periods))
  return leaves.transformation(init, update)


def _infos(state: ScaleByM3State, rule: str, periods: Sequence[int]) -> list[levels.LevelInfo]:
  info = functools.partial(memory_info, objective='dot product', rule=rule)
  found = [info('fast momentum', memory=state.fast)]
  if state.second_moment is not None:
    found.append(info('second moment', memory=state.second_moment))
  for period, slow in zip(periods, state.slow, strict=True):
    found.append(info('slow momentum', memory=slow.held.memory, period=period))
  return found


def _kind_of_second_moment(second_moment: str | None, literal: bool) -> str:
  kind = second_moment or ('literal' if literal else 'relative')
  core.check_choice('second_moment', kind, SECOND_MOMENTS)
  if literal and kind == 'relative':
    raise ValueError("`second_moment` of `literal` sums must be 'literal' or 'none'.")
  return kind


def _slow_level(average, orthogonalize) -> levels.Level:
  """A momentum of the sums that it receives, orthogonalised as often as it is updated."""

  def learn(state, gradients):
    memory = jax.tree.map(average, state.memory, gradients)
    return SlowMemory(memory, orthogonalize(memory))

  def start(params):
    return SlowMemory(leaves.zeros(params), leaves.zeros(params))

  return levels.Level(start, learn, read=lambda state: state.output)


def _relative_root(second: jax.Array, unseen: jax.Array) -> jax.Array:
  """The root of V / mean(V), a share `unseen` of which is 1; 1 where V is zero everywhere."""
  matrices = leaves.as_matrix(second)
  mean = jnp.mean(matrices, axis=(-2, -1), keepdims=True)
  ratio = jnp.where(mean > 0, matrices / jnp.where(mean > 0, mean, 1), 1)
  return jnp.sqrt((1 - unseen) * ratio + unseen).reshape(second.shape)


def m3(
  learning_rate: optax.ScalarOrSchedule,
  slow_period: int | Sequence[int] = 16,
  *,
  decay: float = 0.95,
  slow_decay: float = 0.9,
  slow_weight: float = 0.5,
  second_moment: str | None = None,
  second_decay: float = 0.999,
  eps: float = 1e-8,
  literal: bool = False,
  orthogonalize: Callable[[Any], Any] | None = None,
  weight_decay: float = 0.0,
  mask: Any = None,
  labels: assembly.Labels | None = None,
  adamw: Mapping[str, Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """M3 for matrices, AdamW for the rest; see `scale_by_m3`.

  Ours: the direction of a matrix is multiplied by 0.2 sqrt(max(M, N)), so that one learning rate
  serves both (Liu et al., arXiv 2502.16982).

  Args:
    learning_rate: Constant or schedule, in the range of AdamW's.
    slow_period: Steps between updates of the slow momentum, or one for each slow level.
    decay: Of the fast momentum.
    slow_decay: Of the slow ones.
    slow_weight: Weight of the slow directions.
    second_moment: 'relative', 'literal' or 'none'.
    second_decay: Of the second moment.
    eps: Added to the root of the second moment.
    literal: Sums instead of averages, as printed.
    orthogonalize: A function of a tree of matrices; `newton_schulz` if not given.
    weight_decay: Fraction of a weight removed per step, in units of the learning rate.
    mask: A function that says which parameters decay, as in `optax.adamw`.
    labels: From params to 'matrix' or 'other'; see `nlx.optim.matrix_labels`.
    adamw: Options of the AdamW for the rest.

  Returns:
    An optax transformation.

  Raises:
    ValueError: As `scale_by_m3`.

  Example:
    >>> import nlx, optax
    >>> tx = optax.chain(optax.clip_by_global_norm(1.0), nlx.optim.m3(3e-4, slow_period=16))

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Algorithm 1 and Eq. 75.
  """
  scale = scale_by_m3(
    slow_period,
    decay=decay,
    slow_decay=slow_decay,
    slow_weight=slow_weight,
    second_moment=second_moment,
    second_decay=second_decay,
    eps=eps,
    literal=literal,
    orthogonalize=orthogonalize,
  )
  scale = optax.chain(scale, assembly.scale_by_shape())
  return assembly.by_kind(
    scale, learning_rate, weight_decay=weight_decay, mask=mask, labels=labels, adamw=adamw
  )
