"""The sequential continuum memory system: MLP blocks in series, each with its own period."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from nlx import core
from nlx.levels import PeriodicLevel, from_optax
from nlx.memories.modules import Projection, RMSNorm, swiglu

FastWeights = dict[str, jax.Array]


class MLPBlock(nnx.Module):
  """A pre-norm residual SwiGLU block, x + MLP(norm(x)), whose MLP may be replaced by fast weights.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 70, 94-97; Shazeer, GLU Variants,
    arXiv 2002.05202.
  """

  def __init__(
    self,
    model_dim: int,
    hidden: int,
    *,
    rngs: nnx.Rngs,
    output_scale: float = 1.0,
    norm_epsilon: float = 1e-6,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
  ):
    dtypes = {'dtype': dtype, 'param_dtype': param_dtype}
    self.norm = RMSNorm(model_dim, epsilon=norm_epsilon, dtype=param_dtype)
    self.up = Projection(model_dim, 2 * hidden, rngs=rngs, **dtypes)
    self.down = Projection(hidden, model_dim, rngs=rngs, scale=output_scale, **dtypes)

  def weights(self) -> FastWeights:
    """The slow weights: 'up' [D, 2F] with the gate first, and 'down' [F, D]."""
    return {'up': self.up.kernel[...], 'down': self.down.kernel[...]}

  def __call__(self, x: jax.Array, fast: FastWeights | None = None) -> jax.Array:
    """Applies the block.

    Args:
      x: [B, C, D].
      fast: Weights of every sequence, 'up' [B, D, 2F] and 'down' [B, F, D]; the block's own if
        None.

    Returns:
      [B, C, D].
    """
    up, down = (self.up, self.down) if fast is None else (_by(fast['up']), _by(fast['down']))
    return x + swiglu(self.norm(x), up, down)


def _by(weight):
  return lambda x: x @ weight.astype(x.dtype)


class SequentialCMS(nnx.Module):
  """MLP blocks in series: y = MLP_k(... MLP_2(MLP_1(x))), Eq. 73.

  A block with a period learns in context: its weights are fast, one copy per sequence, and what is
  stored here is their learned initial state together with the logarithm of their learned inner
  rate. A block of period 0 never changes inside a sequence; one such block is the MLP of a
  Transformer.

  Args:
    model_dim: D.
    hidden: F of every block.
    periods: Tokens between updates of every block; 0 for never.
    rate: Initial inner learning rate of the blocks that learn in context.
    rngs: Random streams.
    norm_epsilon: Under the root of every norm.
    dtype: Of matrix products.
    param_dtype: Of parameters.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 70-73.
  """

  def __init__(
    self,
    model_dim: int,
    hidden: int,
    periods: tuple[int, ...],
    rate: float,
    *,
    rngs: nnx.Rngs,
    norm_epsilon: float = 1e-6,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
  ):
    dtypes = {'norm_epsilon': norm_epsilon, 'dtype': dtype, 'param_dtype': param_dtype}
    self.blocks = nnx.List([MLPBlock(model_dim, hidden, rngs=rngs, **dtypes) for _ in periods])
    self.periods = periods
    learning = sum(period > 0 for period in periods)
    log_rates = jnp.full((learning,), jnp.log(rate), param_dtype)
    self.log_rates = nnx.Param(log_rates) if learning else None

  def initial_weights(self) -> tuple[FastWeights, ...]:
    """Slow weights of the blocks that learn in context, in the order of the blocks."""
    return tuple(
      block.weights() for block, period in zip(self.blocks, self.periods, strict=True) if period
    )

  def __call__(self, x: jax.Array, fast: tuple[FastWeights, ...]) -> jax.Array:
    """Applies all blocks to x [B, C, D]; `fast` holds weights of those that learn in context."""
    fast_weights = iter(fast)
    for block, period in zip(self.blocks, self.periods, strict=True):
      x = block(x, next(fast_weights) if period else None)
    return x


def in_context_level(rates: jax.Array, period: int, max_norm: float) -> PeriodicLevel:
  """A level of the continuum memory system inside sequences, over the blocks of all layers.

  theta_l <- theta_l - rate_l clip(g), where g is the gradient of the next-token loss over the last
  `period` tokens, per token. Clipping is by the norm over all layers of one sequence and level.

  Args:
    rates: Inner learning rate of each layer [L].
    period: Tokens per update.
    max_norm: Of the clipped gradient.

  Returns:
    A level whose weights are stacked over layers and sequences, [L, B, ...].

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eq. 71.
  """

  def update(gradients, state, params=None):
    del params
    clipped = core.clip_by_norm(gradients, max_norm)
    steps = jax.tree.map(lambda g: -rates.reshape((-1,) + (1,) * (g.ndim - 1)) * g, clipped)
    return steps, state

  tx = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
  return from_optax(tx, period, batch_axis=1)
