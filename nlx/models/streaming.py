"""Reading a sequence in pieces of any length, with the same outputs as in one pass.

A base chunk is learned from when the token after it arrives, because that token is its last target.
Until then the state holds the chunk's tokens and the carry at its start, from which the gradient of
the whole chunk is taken.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from nlx import levels
from nlx.levels import PeriodicState


class StreamState(NamedTuple):
  """All that a model knows of what it reads; only a cache of attention depends on the length."""

  levels: tuple[PeriodicState, ...]  # fast weights that learn in context, fastest first
  start: Any  # mixer states at the start of the current base chunk
  live: Any  # mixer states after the last token
  buffer: jax.Array  # [B, C] tokens of the current base chunk
  learns: jax.Array  # [B, C] float32: 1 where a token is learned from as a target, else 0
  phase: jax.Array  # int32 scalar: how many of them are filled


class Chunk(NamedTuple):
  """What the network reads in one base chunk."""

  tokens: jax.Array  # [B, C] int32
  targets: jax.Array  # [B, C] int32, the token after each
  mask: jax.Array  # [B, C] float32: 0 where there is no target to learn from
  starts: jax.Array | None = None  # [B] bool: where a document begins; None if none does


def init_stream(model, batch_size: int, max_length: int | None) -> StreamState:
  """The state before the first token."""
  carry = model.init_carry(batch_size, max_length)
  size = model.config.base_chunk
  state = StreamState(
    levels=model.init_levels(batch_size),
    start=carry,
    live=carry,
    buffer=jnp.zeros((batch_size, size), jnp.int32),
    learns=jnp.zeros((batch_size, size), jnp.float32),
    phase=jnp.zeros((), jnp.int32),
  )
  # What holds an array twice cannot be given away, as `jax.jit` does with what it is to donate.
  return jax.tree.map(jnp.copy, state)


def read_weights(model, states: tuple[PeriodicState, ...]) -> tuple:
  """The fast weights of each level."""
  return levels.read_weights(model.levels(), states)


class Text(NamedTuple):
  """Tokens to read, and what to make of them."""

  tokens: jax.Array  # [B, T] int32
  learns: jax.Array  # [B, T] float32, as in `StreamState`


def read(
  model, text: Text, state: StreamState, num_valid: jax.Array | None = None
) -> tuple[jax.Array, StreamState]:
  """Reads a text of any length.

  Args:
    model: The model.
    text: [B, T].
    state: Before it.
    num_valid: How many of several tokens count, a scalar of at least 1; all if None.

  Returns:
    Logits [B, T, V], of which those of tokens that do not count mean nothing, and the state.
  """
  if not model.config.has_chunks:
    return read_aligned(model, text, state, num_valid)
  if text.tokens.shape[1] == 1:
    return read_token(model, text, state)
  return read_many(model, text, state, num_valid)


def read_token(model, text: Text, state: StreamState) -> tuple[jax.Array, StreamState]:
  """Reads one token [B, 1] in constant time; returns logits [B, 1, V] and state."""
  if not model.config.has_chunks:
    return read_aligned(model, text, state)
  full = state.phase == model.config.base_chunk
  state = jax.lax.cond(full, lambda s: end_chunk(model, s, text), lambda s: s, state)
  return _read_inside(model, text, state)


def read_token_of_each(model, text: Text, states: StreamState) -> tuple[jax.Array, StreamState]:
  """Reads one token [N, B, 1] of each of N streams, which may be anywhere in their chunks.

  A chunk is learned from only where one has ended, stream by stream; `vmap` of `read_token` would
  learn from every chunk at every token.

  Args:
    model: The model.
    text: With a leading axis of streams.
    states: With a leading axis of streams.

  Returns:
    Logits [N, B, 1, V] and the states.
  """
  if not model.config.has_chunks:
    return jax.vmap(partial(read_aligned, model))(text, states)
  full = states.phase == model.config.base_chunk

  def end(stream):
    return jax.lax.cond(stream[0], lambda s, t: end_chunk(model, s, t), lambda s, t: s, *stream[1:])

  end_all = lambda states: jax.lax.map(end, (full, states, text))  # noqa: E731
  states = jax.lax.cond(jnp.any(full), end_all, lambda states: states, states)
  return jax.vmap(partial(_read_inside, model))(text, states)


def _read_inside(model, text: Text, state: StreamState) -> tuple[jax.Array, StreamState]:
  """Reads one token that does not begin a chunk, or the first of a chunk after `end_chunk`."""
  logits, live = model.apply_step(text.tokens, read_weights(model, state.levels), state.live)
  buffer = jax.lax.dynamic_update_slice_in_dim(state.buffer, text.tokens, state.phase, axis=1)
  learns = jax.lax.dynamic_update_slice_in_dim(state.learns, text.learns, state.phase, axis=1)
  return logits, state._replace(live=live, buffer=buffer, learns=learns, phase=state.phase + 1)


def end_chunk(model, state: StreamState, following: Text) -> StreamState:
  """Learns from a full buffer; what the mixers hold is already at its end."""
  if not state.levels:
    return state._replace(start=state.live, phase=jnp.zeros((), jnp.int32))
  return _learn(model, state, following)[1]


def read_aligned(
  model, text: Text, state: StreamState, num_valid: jax.Array | None = None
) -> tuple[jax.Array, StreamState]:
  """Reads a text [B, T] with a model that has no chunk boundaries."""
  logits, live = model.apply(text.tokens, (), state.live, num_valid)
  return logits, state._replace(live=live)


def read_many(
  model, text: Text, state: StreamState, num_valid: jax.Array | None = None
) -> tuple[jax.Array, StreamState]:
  """Reads a text [B, T] across chunks; returns logits [B, T, V] and state.

  The tokens of the unfinished chunk and the new ones are laid on the grid of base chunks, and every
  chunk that they touch is run from its start.
  """
  size = model.config.base_chunk
  batch_size, length = text.tokens.shape
  touched = -(-length // size) + 1
  total = state.phase + (length if num_valid is None else num_valid)

  def lay(buffered, new):
    grid = jnp.zeros((batch_size, touched * size + 1), new.dtype)
    grid = jax.lax.dynamic_update_slice_in_dim(grid, buffered, 0, axis=1)
    return jax.lax.dynamic_update_slice_in_dim(grid, new, state.phase, axis=1)

  grid = Text(*map(lay, (state.buffer, state.learns), text))
  shape = (batch_size, size, model.config.vocab_size)
  dtype = jnp.promote_types(model.config.dtype, jnp.float32)

  def one_chunk(state, begin):
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, begin, size + 1, axis=1)  # noqa: E731
    piece, valid = Text(*map(cut, grid)), jnp.clip(total - begin, 0, size)
    read = lambda state: _read_chunk(model, piece, valid, total - begin > size, state)  # noqa: E731
    skip = lambda state: (jnp.zeros(shape, dtype), state)  # noqa: E731
    logits, state = jax.lax.cond(valid > 0, read, skip, state)
    return state, logits

  begins = jnp.arange(0, touched * size, size, dtype=jnp.int32)
  phase = state.phase
  state, logits = jax.lax.scan(one_chunk, state, begins)
  logits = jnp.moveaxis(logits, 0, 1).reshape((batch_size, touched * size, -1))
  return jax.lax.dynamic_slice_in_dim(logits, phase, length, axis=1), state


def _read_chunk(model, piece: Text, valid, finished, state):
  """Runs one base chunk from its start; learns from it if the token after it is known."""
  here, following = (Text(*(x[:, part] for x in piece)) for part in (slice(-1), slice(-1, None)))
  buffered = state._replace(buffer=here.tokens, learns=here.learns, phase=valid)
  learn, only_read = (lambda s: _learn(model, s, following)), partial(read_again, model)
  return jax.lax.cond(finished, learn, only_read, buffered)


def read_again(model, state: StreamState) -> tuple[jax.Array, StreamState]:
  """Reads the buffered tokens from the start of their chunk; logits [B, C, V] and state."""
  fast = read_weights(model, state.levels)
  logits, live = model.apply(state.buffer, fast, state.start, state.phase)
  return logits, state._replace(live=live)


def _learn(model, state: StreamState, following: Text) -> tuple[jax.Array, StreamState]:
  """Runs the whole buffered base chunk, learns from it, and starts the next.

  Args:
    model: The model.
    state: With a full buffer.
    following: [B, 1], with the target of the buffer's last token.

  Returns:
    Logits of the chunk [B, C, V] and the state at its end.
  """
  size = model.config.base_chunk
  targets = jnp.concatenate([state.buffer[:, 1:], following.tokens], axis=1)
  mask = jnp.concatenate([state.learns[:, 1:], following.learns], axis=1)
  chunk = Chunk(state.buffer, targets, mask)
  system = model.levels()
  args = model.cell, system, nnx.state(model), state.levels, state.start, chunk
  (_, _, carry, logits), signals = levels.gradient_step(*args)
  states = levels.advance(system, state.levels, signals, size)
  phase = jnp.zeros((), jnp.int32)
  return logits, state._replace(levels=states, start=carry, live=carry, phase=phase)
