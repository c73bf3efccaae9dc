"""The shape of a continuum memory system, and the rules by which its blocks learn in context."""

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from nlx import core, optim

FORMS = ('sequential', 'nested', 'independent')


class InContextRule(NamedTuple):
  """How blocks learn in context: any optimizer that a learning rate alone makes.

  Attributes:
    name: For tables.
    optimizer: `learning_rate -> optax.GradientTransformation`. It gets the clipped mean gradient of
      one layer, sequence and level, and the learned rate, an array. The outer gradient passes it,
      so its derivative must be finite where gradients are zero.
    captures: Whether the blocks report the second moments of their inputs, as delta gradient
      descent needs.
  """

  name: str
  optimizer: Callable[[Any], optax.GradientTransformation]
  captures: bool = False


GRADIENT_DESCENT = InContextRule('gradient descent', optax.sgd)
DELTA_GRADIENT_DESCENT = InContextRule('DGD', optim.delta_gradient_descent, captures=True)


@dataclass(frozen=True)
class CMSConfig:
  """A continuum memory system: MLP blocks, each of which is updated at a period of its own.

  Attributes:
    model_dim: D.
    hidden: F of every block, or of each in the order of `periods`.
    periods: Tokens between in-context updates of each block, in the order in which x passes them; 0
      for a block that never changes inside a sequence. Periods other than 0 grow, each a multiple
      of the one before.
    form: 'sequential' (Eq. 73), blocks in series whose initial weights are all slow weights;
      'nested' (Eq. 72), in series, but a slower block learns the initial weights of the next faster
      one, which restarts from them at the end of the slower period; 'independent' (Eq. 74), blocks
      side by side, joined by a learned weighted sum.
    rule: How blocks learn in context.
    rate: Initial inner learning rate of the blocks; 0 for blocks that stay where they are.
    proportional_rates: Whether `rate` is that of the fastest block only, and those of slower ones
      are greater as their periods are. Gradients are means over a period; this makes their steps
      those on the sums of Eq. 71, so that in the same time all blocks go about equally far.
    max_norm: Norm to which inner gradients are clipped.
    norm_epsilon: Under the root of every norm.
    dtype: Of matrix products.
    param_dtype: Of parameters and fast weights.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 70-74.
  """

  model_dim: int
  hidden: int | tuple[int, ...]
  periods: tuple[int, ...]
  form: str = 'sequential'
  rule: InContextRule = GRADIENT_DESCENT
  rate: float = 0.4
  proportional_rates: bool = True
  max_norm: float = 1.0
  norm_epsilon: float = 1e-6
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def __post_init__(self):
    object.__setattr__(self, 'periods', tuple(self.periods))  # Hashable, if a list was given.
    if isinstance(self.hidden, list):
      object.__setattr__(self, 'hidden', tuple(self.hidden))
    core.check_positive('model_dim', self.model_dim)
    for name in ('max_norm', 'norm_epsilon'):
      core.check_above_zero(name, getattr(self, name))
    if not 0 <= self.rate < float('inf'):
      raise ValueError(f'`rate` must be a finite number of at least 0, got {self.rate}.')
    core.check_choice('form', self.form, FORMS)
    self._check_periods()
    self._check_hidden()

  def _check_periods(self):
    fit = [isinstance(x, numbers.Integral) and x >= 0 for x in self.periods]
    if not fit or not all(fit):
      raise ValueError(
        f'`periods` must name at least one block, each of 0 or more tokens, got {self.periods}.'
      )
    periods = self.in_context_periods
    if len(set(periods)) < len(periods):
      raise ValueError(f'`periods` must differ unless 0, got {self.periods}.')
    names = [f'periods[{self.periods.index(period)}]' for period in periods]
    for i in range(1, len(periods)):
      core.check_divides(names[i - 1], periods[i - 1], names[i], periods[i])

  def _check_hidden(self):
    if not isinstance(self.hidden, tuple):
      core.check_positive('hidden', self.hidden)
      return
    if len(self.hidden) != len(self.periods):
      raise ValueError(
        f'`hidden` must be one width or one of each of the {len(self.periods)} blocks, '
        f'got {self.hidden}.'
      )
    for i, width in enumerate(self.hidden):
      core.check_positive(f'hidden[{i}]', width)

  @property
  def in_context_periods(self) -> tuple[int, ...]:
    """Periods of the blocks that learn in context, fastest first."""
    return tuple(period for period in self.periods if period)

  @property
  def initial_rates(self) -> tuple[float, ...]:
    """Inner learning rates of the blocks that learn in context, before any is learned."""
    periods = self.in_context_periods
    return tuple(
      self.rate * (period / periods[0] if self.proportional_rates else 1.0) for period in periods
    )

  @property
  def widths(self) -> tuple[int, ...]:
    """F of each block."""
    if isinstance(self.hidden, tuple):
      return self.hidden
    return (self.hidden,) * len(self.periods)
