"""Reading into a session and writing from it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from nlx import core
from nlx.models import streaming
from nlx.models.language_model import LanguageModel
from nlx.models.sampling import ANCESTRAL, Sampling, choose
from nlx.models.sessions.divergence import divergence
from nlx.models.sessions.session import UNLIMITED, Session, at, is_stacked
from nlx.models.streaming import StreamState, Text

# Tokens that one call of a program writes or reads at most. One program, which may stop at any
# token, writes all texts, so that no cut into calls changes a bit; a few read all texts, in blocks
# that are filled up to a power of two, so that not every length is compiled.
BLOCK = 256
SMALLEST_BLOCK = 16


def start(
  model: LanguageModel,
  batch_size: int = 1,
  *,
  max_length: int | None = None,
  key: jax.Array | None = None,
) -> Session:
  """Starts a session, which has read nothing yet.

  Args:
    model: A language model.
    batch_size: B, sequences that are read in step.
    max_length: The most tokens to be read and written; needed by full attention, which keeps them
      all, and of no effect on other models, whose sessions never end.
    key: Decides what `write` chooses; `jax.random.key(0)` if None.

  Returns:
    The session.

  Raises:
    ValueError: If the model has full attention and `max_length` is not given.

  Example:
    A model that learns from what it reads and writes; a fork is an older value that is still used:

    >>> import nlx, jax.numpy as jnp
    >>> from flax import nnx
    >>> config = nlx.models.transformer(vocab_size=16, model_dim=8, num_layers=1, num_heads=2)
    >>> model = nlx.models.create(config, rngs=nnx.Rngs(0))
    >>> sessions = nlx.models.sessions
    >>> session = sessions.start(model, max_length=32)
    >>> session = sessions.read(model, session, jnp.array([[3, 1, 4]]))
    >>> tokens, longer = sessions.write(model, session, 5)
    >>> again, _ = sessions.write(model, session, 5)
    >>> bool((tokens == again).all()), int(longer.length)
    (True, 8)
  """
  core.check_positive('batch_size', batch_size, 'sequence')
  if max_length is not None:
    core.check_positive('max_length', max_length, 'token')
  key = jax.random.key(0) if key is None else key
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(key)
  graph, params = nnx.split(model)
  return _start(graph, batch_size, max_length if model.config.mixer.grows else None, params, key)


def init_state(model: LanguageModel, batch_size: int, max_length: int | None) -> StreamState:
  """The state before the first token, with room for a block of which only one token counts."""
  if max_length is not None and not model.config.has_chunks:
    max_length += BLOCK
  return model.init_state(batch_size, max_length)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _start(graph, batch_size, max_length, params, key):
  model = nnx.merge(graph, params)
  config, zero = model.config, jnp.zeros((), jnp.int32)
  return Session(
    state=init_state(model, batch_size, max_length),
    logits=jnp.zeros((batch_size, config.vocab_size), jnp.promote_types(config.dtype, jnp.float32)),
    key=key,
    written=zero,
    length=zero,
    max_length=zero + (UNLIMITED if max_length is None else max_length),
  )


def read(
  model: LanguageModel, session: Session, tokens: ArrayLike, *, learns: ArrayLike | bool = True
) -> Session:
  """Reads tokens, and learns from them in context.

  Not for use inside `jax.jit`: it looks at the numbers that come out.

  Args:
    model: The model of the session.
    session: Where to read on, one or a stack.
    tokens: [B, T] ids, at least one; [N, B, T] for a stack.
    learns: Which tokens the blocks that learn in context take as targets, of the shape of `tokens`
      or one for all. Memories and attention hold all that they read.

  Returns:
    The session after these tokens.

  Raises:
    ValueError: If the tokens have the wrong shape, are none of the vocabulary, or do not fit in.
    FloatingPointError: If logits are not finite; names the token, and the levels whose state is not
      finite either. `session` is what it was.
  """
  tokens = _checked_tokens(model, session, tokens)
  learns = np.asarray(learns, np.float32)
  if learns.shape not in ((), tokens.shape):
    raise ValueError(
      f'`learns` must be one value or of the shape of `tokens` {tokens.shape}, got {learns.shape}.'
    )
  learns = np.broadcast_to(learns, tokens.shape)
  _check_room(session, tokens.shape[-1])
  graph, params = nnx.split(model)
  for begin in range(0, tokens.shape[-1], BLOCK):
    block = slice(begin, begin + BLOCK)
    before, text = session, (tokens[..., block], learns[..., block])
    count, padded = text[0].shape[-1], [_padded(x) for x in text]
    session, finite = _read(graph, params, before, *padded, count)
    finite = np.asarray(finite)
    if finite.min() < count:
      # With the levels as they were then.
      session, _ = _read(graph, params, before, *padded, int(finite.min()) + 1)
      i = int(finite.argmin()) if is_stacked(session) else None
      raise divergence(model, session if i is None else at(session, i), i)
  return session


def _padded(x):
  """Fills T of x [..., T] up to a power of two, but of one token, which takes constant time."""
  length = x.shape[-1]
  size = 1 if length == 1 else max(SMALLEST_BLOCK, 1 << (length - 1).bit_length())
  return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - length)])


@partial(jax.jit, static_argnums=0)
def _read(graph, params, session, tokens, learns, count):
  """The session after `count` of the tokens, and how many come before one whose logits are not."""
  model = nnx.merge(graph, params)

  def one(stream):
    state, *text = stream
    logits, state = streaming.read(model, Text(*text), state, count)
    finite = jnp.all(jnp.isfinite(logits), axis=(0, 2)).astype(jnp.int32)
    last = jax.lax.dynamic_index_in_dim(logits, count - 1, axis=1, keepdims=False)
    return state, last, jnp.sum(jnp.cumprod(finite))

  stream = (session.state, tokens, learns)
  state, logits, finite = jax.lax.map(one, stream) if is_stacked(session) else one(stream)
  return session._replace(state=state, logits=logits, length=session.length + count), finite


def write(
  model: LanguageModel,
  session: Session,
  num_tokens: int,
  *,
  sampling: Sampling = ANCESTRAL,
  learn: bool = True,
) -> tuple[jax.Array, Session]:
  """Writes tokens and reads them, so that the next call, of `read` or `write`, goes on.

  The n-th token of a session is chosen with the n-th random key that is made of the session's, and
  every text is written by one program: two writes of ten tokens are one of twenty, bit for bit. Not
  for use inside `jax.jit`: it looks at the numbers that come out.

  Args:
    model: The model of the session.
    session: What to continue, one or a stack; it has read at least one token.
    num_tokens: How many.
    sampling: How each is chosen.
    learn: Whether the blocks that learn in context take what is written here as targets: they learn
      from all that the session holds, or only from what it was given to read.

  Returns:
    Tokens [B, num_tokens], or [N, B, num_tokens] of a stack, and the session after them.

  Raises:
    ValueError: If the session has read nothing, or so many tokens do not fit in.
    FloatingPointError: If logits are not finite; names the token, and the levels whose state is not
      finite either. `session` is what it was.
  """
  core.check_positive('num_tokens', num_tokens, 'token')
  if np.min(session.length) < 1:
    raise ValueError('`session` must have read at least one token before it can write.')
  _check_room(session, num_tokens)
  graph, params = nnx.split(model)
  pieces = []
  for begin in range(0, num_tokens, BLOCK):
    count = min(BLOCK, num_tokens - begin)
    tokens, session, finite = _write(graph, sampling, params, session, float(learn), count)
    finite = np.asarray(finite)
    if not finite.all():
      i = int(finite.argmin()) if is_stacked(session) else None
      raise divergence(model, session if i is None else at(session, i), i)
    pieces.append(np.asarray(tokens)[..., :count])
  return jnp.asarray(np.concatenate(pieces, axis=-1)), session


@partial(jax.jit, static_argnums=(0, 1))
def _write(graph, sampling, params, session, learn, count):
  """Tokens [..., BLOCK], of which `count` are written, the session, and whether all is finite."""
  model = nnx.merge(graph, params)

  def going_on(carry):
    index, _, _, finite = carry
    return (index < count) & jnp.all(finite)

  def one(carry):
    index, tokens, session, _ = carry
    token, session = _next(model, session, sampling, learn)
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token, index, axis=-1)
    return index + 1, tokens, session, jnp.all(jnp.isfinite(session.logits), axis=(-2, -1))

  tokens = jnp.zeros((*session.logits.shape[:-1], BLOCK), jnp.int32)
  finite = jnp.ones(session.written.shape, bool)
  carry = (jnp.zeros((), jnp.int32), tokens, session, finite)
  return jax.lax.while_loop(going_on, one, carry)[1:]


def _next(model, session, sampling, learn):
  """Chooses a token [..., 1] for every sequence, and reads it."""

  def choose_one(logits, key, written):
    return choose(logits, jax.random.fold_in(key, written), sampling)[:, None]

  step: Any = streaming.read_token
  if is_stacked(session):
    choose_one, step = jax.vmap(choose_one), streaming.read_token_of_each
  token = choose_one(session.logits, session.key, session.written)
  text = Text(token, jnp.broadcast_to(jnp.asarray(learn, jnp.float32), token.shape))
  logits, state = step(model, text, session.state)
  return token, session._replace(
    state=state,
    logits=logits[..., 0, :],
    written=session.written + 1,
    length=session.length + 1,
  )


def _checked_tokens(model, session, tokens) -> np.ndarray:
  tokens = np.asarray(tokens)
  leading, vocab_size = session.logits.shape[:-1], model.config.vocab_size
  if tokens.ndim != len(leading) + 1 or tokens.shape[:-1] != leading or not tokens.shape[-1]:
    raise ValueError(
      f'`tokens` must have shape {[*leading, "T"]} with at least 1 token, got {tokens.shape}.'
    )
  if not np.issubdtype(tokens.dtype, np.integer):
    raise ValueError(f'`tokens` must be integers, got {tokens.dtype}.')
  if tokens.min() < 0 or tokens.max() >= vocab_size:
    wrong = tokens[(tokens < 0) | (tokens >= vocab_size)][0]
    raise ValueError(f'`tokens` must lie in 0..{vocab_size - 1}, got {wrong}.')
  return tokens.astype(np.int32)


def _check_room(session, count):
  """Raises ValueError unless `count` more tokens fit in."""
  length, max_length = np.asarray(session.length), np.asarray(session.max_length)
  room = np.min(np.where(max_length == UNLIMITED, UNLIMITED, max_length - length))
  if count > room:
    raise ValueError(
      f'`session` is full: of its `max_length` {np.min(max_length)} tokens {room} are left, and '
      f'{count} were to follow.'
    )
