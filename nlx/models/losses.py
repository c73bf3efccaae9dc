"""The next-token loss, without the logits of a long sequence ever existing at once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nlx import core

MAX_LOGITS = 2**24  # Of one sequence at a time: 512 tokens of a vocabulary of 32,768.


def token_losses(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """-log p(target) in nats: logits [..., vocab_size], targets [...] to [...].

  The loss of a target that is not in the vocabulary is NaN. The target's logit is selected by
  comparison, whose derivatives of every order are products, not scatters.
  """
  targets = targets.astype(jnp.int32)
  ids = jnp.arange(logits.shape[-1]).reshape((1,) * targets.ndim + (-1,))
  chosen = jnp.sum(jnp.where(ids == targets[..., None], logits, 0), axis=-1)
  is_token = (targets >= 0) & (targets < logits.shape[-1])
  return jnp.where(is_token, jax.nn.logsumexp(logits, axis=-1) - chosen, jnp.nan)


def head_losses(
  head: Callable[[jax.Array], jax.Array], hidden: jax.Array, targets: jax.Array, vocab_size: int
) -> jax.Array:
  """The losses of tokens from what enters the output head.

  Where a sequence has more than `MAX_LOGITS` logits, the head and the losses are computed for a
  stretch of tokens after another, forward and backward; the backward pass computes the logits anew.

  Args:
    head: From [B, C, D] to logits [B, C, vocab_size].
    hidden: [B, T, D].
    targets: [B, T].
    vocab_size: How many logits a token has.

  Returns:
    -log p(target) in nats [B, T].
  """
  length = hidden.shape[1]
  count = -(-length * vocab_size // MAX_LOGITS)
  if count <= 1:
    return token_losses(head(hidden), targets)
  size = -(-length // count)
  pad = -length % size
  pieces = (
    core.split_time(jnp.pad(hidden, ((0, 0), (0, pad), (0, 0))), size, axis=-2),
    core.split_time(jnp.pad(targets, ((0, 0), (0, pad))), size, axis=-1),
  )

  def one(carry, piece):
    hidden, targets = piece
    return carry, token_losses(head(hidden), targets)

  _, losses = core.scan_chunks(one, (), pieces, remat=True)
  return core.join_time(losses, axis=-1)[:, :length]
