"""How the next token is chosen from its logits."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nlx import core


@dataclass(frozen=True)
class Sampling:
  """How the next token is chosen.

  Tokens are ranked from the most to the least likely, equally likely ones by their id. `top_k` and
  `top_p` keep the first of this order, `top_p` by the probabilities of what `top_k` has kept.

  Attributes:
    temperature: Divides the logits; 0 takes the first token.
    top_k: How many tokens are kept; all if None.
    top_p: Keep no more tokens than it takes to hold this probability, at least one; all if 1.

  References:
    Holtzman et al., The Curious Case of Neural Text Degeneration, arXiv 1904.09751, Sec. 3.1, for
    `top_p`, which cuts off the nucleus.
  """

  temperature: float = 1.0
  top_k: int | None = None
  top_p: float = 1.0

  def __post_init__(self):
    if not 0 <= self.temperature < float('inf'):
      raise ValueError(
        f'`temperature` must be a finite number of at least 0, got {self.temperature!r}.'
      )
    if self.top_k is not None:
      core.check_positive('top_k', self.top_k, 'token')
    if not 0 < self.top_p <= 1:
      raise ValueError(f'`top_p` must be above 0 and at most 1, got {self.top_p!r}.')


ANCESTRAL = Sampling()
"""Every token by its probability."""

GREEDY = Sampling(temperature=0.0)
"""The most likely token."""


def choose(logits: jax.Array, key: jax.Array, sampling: Sampling = ANCESTRAL) -> jax.Array:
  """Chooses a token for every sequence.

  Args:
    logits: [B, V].
    key: Random key; unused at temperature 0.
    sampling: How.

  Returns:
    Token ids [B], int32.

  Raises:
    ValueError: If `top_k` is larger than V.

  Example:
    >>> import nlx, jax, jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.1, 0.6, 0.3]]))
    >>> nucleus = nlx.models.Sampling(top_p=0.5)
    >>> nlx.models.sampling.choose(logits, jax.random.key(0), nucleus).tolist()
    [1]
  """
  vocab_size = logits.shape[-1]
  if sampling.top_k is not None and sampling.top_k > vocab_size:
    raise ValueError(
      f'`top_k` must be at most the {vocab_size} tokens of the vocabulary, got {sampling.top_k}.'
    )
  if sampling.temperature == 0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  below = logits - jnp.max(logits, axis=-1, keepdims=True)
  # The likeliest stay at 0 whatever the temperature, which may be 0 in the dtype of the logits.
  logits = jnp.where(below < 0, below / sampling.temperature, 0)
  if sampling.top_k is None and sampling.top_p == 1:
    return jax.random.categorical(key, logits).astype(jnp.int32)
  logits, ids = jax.lax.top_k(logits, sampling.top_k or vocab_size)
  if sampling.top_p < 1:
    probabilities = jax.nn.softmax(logits, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = (before < sampling.top_p).at[:, 0].set(True)  # `top_p` may be 0 in this dtype.
    logits = jnp.where(kept, logits, -jnp.inf)
  place = jax.random.categorical(key, logits)
  return jnp.take_along_axis(ids, place[:, None], axis=-1)[:, 0].astype(jnp.int32)
