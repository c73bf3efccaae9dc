"""Writing text one token at a time, in memory that does not grow with its length."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from nlx import core
from nlx.models.language_model import LanguageModel
from nlx.models.streaming import StreamState


def generate(
  model: LanguageModel,
  prompt: jax.Array,
  *,
  max_tokens: int,
  state: StreamState | None = None,
  key: jax.Array | None = None,
  temperature: float = 1.0,
  top_k: int | None = None,
) -> tuple[jax.Array, StreamState]:
  """Continues a prompt, learning in context from it and from what is written.

  Args:
    model: A language model.
    prompt: [B, T] int32, T at least 1.
    max_tokens: Tokens to write.
    state: Where to read on from; a fresh one if not given.
    key: Random key; needed unless `temperature` is 0.
    temperature: Divides the logits; 0 takes the most likely token.
    top_k: Sample among the k most likely tokens only; among all if None.

  Returns:
    The new tokens [B, max_tokens] and the state, which has read the prompt and all new tokens but
    the last.

  Raises:
    ValueError: If an argument is out of range or a key is missing.

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> from flax import nnx
    >>> config = nlx.models.transformer(vocab_size=16, model_dim=8, num_layers=1, num_heads=2)
    >>> model = nlx.models.create(config, rngs=nnx.Rngs(0))
    >>> tokens, state = nlx.models.generate(
    ...   model, jnp.zeros((1, 3), int), max_tokens=4, temperature=0
    ... )
    >>> tokens.shape
    (1, 4)
  """
  core.check_positive('max_tokens', max_tokens, 'token')
  if prompt.ndim != 2 or prompt.shape[1] < 1:
    raise ValueError(f'`prompt` must have shape [B, T] with at least 1 token, got {prompt.shape}.')
  if temperature < 0:
    raise ValueError(f'`temperature` must be at least 0, got {temperature}.')
  if top_k is not None and not 1 <= top_k <= model.config.vocab_size:
    raise ValueError(f'`top_k` must lie in 1..{model.config.vocab_size}, got {top_k}.')
  if key is None and temperature > 0:
    raise ValueError('`key` must be given to sample with a temperature above 0.')
  if state is None:
    state = model.init_state(prompt.shape[0], max_length=prompt.shape[1] + max_tokens)
  key = jax.random.key(0) if key is None else key
  graph, params = nnx.split(model)
  return _generate(graph, max_tokens, temperature, top_k, params, prompt, state, key)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _generate(graph, max_tokens, temperature, top_k, params, prompt, state, key):
  model = nnx.merge(graph, params)
  logits, state = model(prompt.astype(jnp.int32), state)

  def choose(logits, index):
    if temperature == 0:
      return jnp.argmax(logits, axis=-1)
    if top_k is not None:
      least = jax.lax.top_k(logits, top_k)[0][:, -1:]
      logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(jax.random.fold_in(key, index), logits / temperature)

  def write(carry, index):
    token, state = carry
    logits, state = model(token, state)
    token = choose(logits[:, -1], index).astype(jnp.int32)[:, None]
    return (token, state), token[:, 0]

  first = choose(logits[:, -1], 0).astype(jnp.int32)[:, None]
  (_, state), rest = jax.lax.scan(write, (first, state), jnp.arange(1, max_tokens))
  return jnp.concatenate([first, rest.T], axis=1), state
