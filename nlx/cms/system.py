"""The blocks of a continuum memory system as one module: in series, or side by side."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nlx.cms.block import FastWeights, MLPBlock
from nlx.cms.config import CMSConfig
from nlx.optim import capture


class ContinuumMemory(nnx.Module):
  """MLP blocks of several periods, in series or in parallel.

      sequential, nested:  y = MLP_k(... MLP_2(MLP_1(x)))                  (Eqs. 70, 72, 73)
      independent:         y = x + sum_l a_l (MLP_l(x) - x)                (Eq. 74)

  A block is residual, MLP_l(x) = x + f_l(norm(x)). A block with a period learns in context: its
  weights are fast, one copy per sequence, and what is stored here is their learned initial state
  together with a learned factor of its inner rate. A block of period 0 never changes inside a
  sequence; one such block is the MLP of a Transformer. Ours: the a_l are scalars that begin at 1.

  Args:
    config: The configuration.
    rngs: Random streams.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 70-74.
  """

  def __init__(self, config: CMSConfig, *, rngs: nnx.Rngs):
    self.config = config
    dtypes = {'dtype': config.dtype, 'param_dtype': config.param_dtype}
    self.blocks = nnx.List(
      [
        MLPBlock(config.model_dim, hidden, rngs=rngs, norm_epsilon=config.norm_epsilon, **dtypes)
        for hidden in config.widths
      ]
    )
    learning = len(config.in_context_periods)
    zeros = jnp.zeros((learning,), config.param_dtype)
    self.log_rate_factors: Any = nnx.Param(zeros) if learning else None
    independent = config.form == 'independent'
    ones = jnp.ones((len(config.periods),), config.param_dtype)
    self.aggregation: Any = nnx.Param(ones) if independent else None

  def rates(self) -> jax.Array:
    """Inner learning rates of the blocks that learn in context, [..., blocks], fastest first."""
    factors = jnp.exp(self.log_rate_factors[...])  # [..., blocks], of all layers if stacked.
    rates = jnp.asarray(self.config.initial_rates, factors.dtype)
    return jnp.broadcast_to(rates, factors.shape) * factors

  def initial_weights(self) -> tuple[FastWeights, ...]:
    """Slow weights of the blocks that learn in context, in the order of the blocks."""
    learning = zip(self.blocks, self.config.periods, strict=True)
    weights = tuple(block.weights() for block, period in learning if period)
    return jax.tree.map(capture, weights) if self.config.rule.captures else weights

  def __call__(
    self, x: jax.Array, fast: tuple[FastWeights, ...], mask: jax.Array | None = None
  ) -> jax.Array:
    """Applies all blocks.

    Args:
      x: [B, C, D].
      fast: Weights of the blocks that learn in context.
      mask: [B, C], 0 for tokens that these do not learn from; 1 for all if None.

    Returns:
      [B, C, D].
    """
    own = iter(fast)
    weights = [next(own) if period else None for period in self.config.periods]
    if self.aggregation is None:
      for block, fast_weights in zip(self.blocks, weights, strict=True):
        x = block(x, fast_weights, mask)
      return x
    added = (block.mlp(x, w, mask) for block, w in zip(self.blocks, weights, strict=True))
    factors = self.aggregation[...].astype(x.dtype)
    return x + sum(factors[i] * one for i, one in enumerate(added))
