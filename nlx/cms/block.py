"""An MLP block whose weights may be fast."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nlx.memories.modules import Projection, RMSNorm, swiglu
from nlx.optim import Captured, dense

FastWeights = dict[str, Any]  # Arrays, or `Captured` kernels.


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
    norm_epsilon: float = 1e-6,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
  ):
    dtypes = {'dtype': dtype, 'param_dtype': param_dtype}
    self.norm = RMSNorm(model_dim, epsilon=norm_epsilon, dtype=param_dtype)
    self.up = Projection(model_dim, 2 * hidden, rngs=rngs, **dtypes)
    self.down = Projection(hidden, model_dim, rngs=rngs, **dtypes)

  def weights(self) -> FastWeights:
    """The slow weights: 'up' [D, 2F] with the gate first, and 'down' [F, D]."""
    return {'up': self.up.kernel[...], 'down': self.down.kernel[...]}

  def __call__(
    self, x: jax.Array, fast: FastWeights | None = None, mask: jax.Array | None = None
  ) -> jax.Array:
    """Applies the block.

    Args:
      x: [B, C, D].
      fast: Weights of every sequence, 'up' [B, D, 2F] and 'down' [B, F, D]; the block's own if
        None.
      mask: [B, C], 0 for tokens whose inputs no moment is to gather; 1 for all if None.

    Returns:
      [B, C, D].
    """
    return x + self.mlp(x, fast, mask)

  def mlp(
    self, x: jax.Array, fast: FastWeights | None = None, mask: jax.Array | None = None
  ) -> jax.Array:
    """What the block adds to x."""
    up, down = self.up, self.down
    if fast is not None:
      up, down = _by(fast['up'], mask), _by(fast['down'], mask)
    return swiglu(self.norm(x), up, down)


def _by(weight, mask):
  """The product with a weight of every sequence, [B, C, in] to [B, C, out]."""
  if not isinstance(weight, Captured):
    return lambda x: x @ weight.astype(x.dtype)

  def product(x):
    seen = jnp.ones(x.shape[:-1]) if mask is None else mask
    # Gradients of fast weights are sums over tokens; that of a moment would be a mean.
    moment = jnp.sum(seen, axis=-1)[:, None, None] * weight.moment
    return jax.vmap(dense)(x, Captured(weight.weight.astype(x.dtype), moment), seen)

  return product
