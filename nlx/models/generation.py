"""Continuing a prompt in one call."""

import jax

from nlx import core
from nlx.models import sessions
from nlx.models.language_model import LanguageModel
from nlx.models.sampling import ANCESTRAL, Sampling
from nlx.models.sessions import Session


def generate(
  model: LanguageModel,
  prompt: jax.Array,
  *,
  max_tokens: int,
  sampling: Sampling = ANCESTRAL,
  key: jax.Array | None = None,
  session: Session | None = None,
  max_length: int | None = None,
) -> tuple[jax.Array, Session]:
  """Continues a prompt, learning in context from it and from what is written.

  Args:
    model: A language model.
    prompt: [B, T] int32, T at least 1.
    max_tokens: Tokens to write.
    sampling: How each is chosen.
    key: Random key; needed by a new session unless the temperature is 0.
    session: Where to read on from; a new one if not given.
    max_length: Of a new session, see `nlx.models.sessions.start`; as long as prompt and new tokens
      if not given.

  Returns:
    The new tokens [B, max_tokens], and the session, which has read the prompt and all of them: it
    can be given to `generate` with what is to be read next, or to `nlx.models.sessions.write`.

  Raises:
    ValueError: If an argument is out of range, or a key is missing, or given with a session, which
      has its own.
    FloatingPointError: If logits are not finite; names the token and the levels.

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> from flax import nnx
    >>> config = nlx.models.transformer(vocab_size=16, model_dim=8, num_layers=1, num_heads=2)
    >>> model = nlx.models.create(config, rngs=nnx.Rngs(0))
    >>> tokens, session = nlx.models.generate(
    ...   model, jnp.zeros((1, 3), int), max_tokens=4, sampling=nlx.models.GREEDY
    ... )
    >>> tokens.shape, int(session.length)
    ((1, 4), 7)
  """
  core.check_positive('max_tokens', max_tokens, 'token')
  if prompt.ndim != 2 or prompt.shape[1] < 1:
    raise ValueError(f'`prompt` must have shape [B, T] with at least 1 token, got {prompt.shape}.')
  if session is None:
    if key is None and sampling.temperature > 0:
      raise ValueError('`key` must be given to sample with a temperature above 0.')
    if max_length is None:
      max_length = prompt.shape[1] + max_tokens
    session = sessions.start(model, prompt.shape[0], max_length=max_length, key=key)
  elif key is not None or max_length is not None:
    raise ValueError('`key` and `max_length` must be left out with a `session`, which has its own.')
  session = sessions.read(model, session, prompt)
  return sessions.write(model, session, max_tokens, sampling=sampling)
