"""The value of a session, alone or in a stack of several."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nlx import core
from nlx.models.streaming import StreamState

UNLIMITED = np.iinfo(np.int32).max


class Session(NamedTuple):
  """All that goes on in a stream: nothing else is needed to go on with it, or to repeat it.

  It is a pytree and is never changed in place: who keeps an old value has a fork. In a stack of N
  sessions every array has a leading axis of N. B sequences of one session are read in step; several
  sessions are wherever they are.
  """

  state: StreamState  # after the last token
  logits: jax.Array  # [B, V] float32, of the next token: all that was written was also read
  key: jax.Array  # random key: the n-th token that is written is chosen with fold_in(key, n)
  written: jax.Array  # int32 scalar: tokens written
  length: jax.Array  # int32 scalar: tokens read, the written ones included
  max_length: jax.Array  # int32 scalar: the most that fit in, `UNLIMITED` if nothing grows


def is_stacked(session: Session) -> bool:
  """Whether it is a stack of several."""
  return session.written.ndim == 1


def stack(sessions: Sequence[Session]) -> Session:
  """Puts sessions of one model side by side, to `read` and `write` them together.

  Each keeps its own place in the stream, its own random key, and learns at its own time.

  Args:
    sessions: At least one, of equal batch sizes and, for attention, of equal `max_length`.

  Returns:
    A stack, with a leading axis in every array.

  Raises:
    ValueError: If they do not fit together; names the first array that differs.

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> from flax import nnx
    >>> config = nlx.models.transformer(vocab_size=16, model_dim=8, num_layers=1, num_heads=2)
    >>> model = nlx.models.create(config, rngs=nnx.Rngs(0))
    >>> one = nlx.models.sessions.start(model, max_length=8)
    >>> two = nlx.models.sessions.stack([one, one])
    >>> two = nlx.models.sessions.read(model, two, jnp.array([[[3, 1]], [[3, 2]]]))
    >>> [int(session.length) for session in nlx.models.sessions.unstack(two)]
    [2, 2]
  """
  if not sessions:
    raise ValueError('`sessions` must be at least one session, got none.')
  if any(map(is_stacked, sessions)):
    raise ValueError('`sessions` must be single ones: unstack those that are stacked.')
  shapes = [describe(leaves(session)) for session in sessions]
  for i, other in enumerate(shapes):
    difference = core.first_difference(shapes[0], other)
    if difference:
      raise ValueError(f'`sessions[{i}]` does not fit `sessions[0]`: {difference}.')
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *sessions)


def unstack(stacked: Session) -> list[Session]:
  """The sessions of a stack.

  Args:
    stacked: From `stack`.

  Returns:
    Its sessions, in the order in which they were stacked.

  Raises:
    ValueError: If it is a single session.
  """
  if not is_stacked(stacked):
    raise ValueError('`stacked` must be a stack of sessions, got a single one.')
  return [at(stacked, i) for i in range(len(stacked.written))]


def at(stacked: Session, i: int) -> Session:
  """One session of a stack."""
  return jax.tree.map(lambda x: x[i], stacked)


def leaves(session: Session) -> dict[str, Any]:
  """The arrays of a session by their paths, in the order of its leaves."""
  flat = jax.tree_util.tree_leaves_with_path(session)
  return {jax.tree_util.keystr(path).lstrip('.'): leaf for path, leaf in flat}


def describe(arrays: dict[str, Any]) -> dict[str, str]:
  """The dtype and shape of each of several arrays."""
  return {name: f'{x.dtype}{list(x.shape)}' for name, x in arrays.items()}
