"""Returning levels of a session to where they started."""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from flax import nnx

from nlx import core
from nlx.levels.nested import restart_faster
from nlx.models import streaming
from nlx.models.language_model import LanguageModel
from nlx.models.sessions.reading import init_state
from nlx.models.sessions.session import UNLIMITED, Session, is_stacked


def reset(model: LanguageModel, session: Session, levels: Sequence[str] | None = None) -> Session:
  """Returns levels to their learned initial state, and leaves all else as it is.

  A level starts anew at the start of the current base chunk, whose tokens, at most a whole chunk
  until the next token comes, are read again. What was read before is forgotten, what was gathered
  for an update to come as well; updates stay due when they were due. A model whose base chunk is
  one token has nothing to read again: its logits stay those of before until the next token is read.
  Attention and convolutions are no levels and keep their tokens. In a nested system the initial
  state of a block is what the next slower block has learned it to be, unless that one is reset as
  well.

  Args:
    model: The model of the session.
    session: One or a stack.
    levels: Names as in `model.level_infos()`, without the slow weights, which no session moves; all
      if None.

  Returns:
    The session.

  Raises:
    ValueError: If the model has no such level.

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> from flax import nnx
    >>> config = nlx.models.linear_attention(
    ...   vocab_size=16, model_dim=8, num_layers=1, num_heads=2, chunk_size=2
    ... )
    >>> model = nlx.models.create(config, rngs=nnx.Rngs(0))
    >>> [info.name for info in model.level_infos()]
    ['memory', 'slow weights']
    >>> session = nlx.models.sessions.start(model)
    >>> session = nlx.models.sessions.read(model, session, jnp.array([[3, 1, 4]]))
    >>> session = nlx.models.sessions.reset(model, session, ['memory'])
  """
  names = [info.name for info in model.level_infos()[:-1]]  # All but the slow weights.
  chosen = names if levels is None else levels
  for name in chosen:
    core.check_choice('levels', name, names)
  max_length = int(np.min(session.max_length))
  graph, params = nnx.split(model)
  limit = None if max_length == UNLIMITED else max_length
  return _reset(graph, tuple(chosen), limit, params, session)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _reset(graph, names, max_length, params, session):
  model = nnx.merge(graph, params)

  def one(stream):
    state, logits = stream
    fresh = init_state(model, logits.shape[0], max_length)
    owned = _places(model, state, names)

    def start_anew(carry):
      old, structure = jax.tree.flatten(carry)
      new = jax.tree.leaves(fresh.live)
      return jax.tree.unflatten(structure, [new[i] if i in owned else x for i, x in enumerate(old)])

    state = state._replace(
      levels=_restarted(model, state, fresh, names),
      start=start_anew(state.start),
      live=start_anew(state.live),
    )
    return jax.lax.cond(state.phase > 0, read_again, lambda *stream: stream, state, logits)

  def read_again(state, _):
    logits, state = streaming.read_again(model, state)
    return state, jax.lax.dynamic_index_in_dim(logits, state.phase - 1, axis=1, keepdims=False)

  stream = (session.state, session.logits)
  state, logits = jax.lax.map(one, stream) if is_stacked(session) else one(stream)
  return session._replace(state=state, logits=logits)


def _places(model, state, names) -> set[int]:
  """Which leaves of what the mixers hold belong to levels of these names."""
  structure = jax.tree.structure(state.live)
  numbers = jax.tree.unflatten(structure, range(len(jax.tree.leaves(state.live))))
  numbered = state._replace(live=numbers, levels=((),) * len(state.levels))
  levels = model.level_states(numbered)
  return {i for name in names for i in jax.tree.leaves(levels[name])}


def _restarted(model, state, fresh, names) -> tuple:
  """The blocks' levels; one of these names starts anew, but keeps the time of its next update."""
  system, levels = model.levels(), state.levels
  blocks = list(model.level_states(state))[-len(levels) :]
  for i in reversed(range(len(levels))):
    if blocks[i] in names:
      levels = (*levels[:i], fresh.levels[i], *levels[i + 1 :])
      if i + 1 < len(levels):  # A nested block starts from what the next slower one holds.
        levels = restart_faster(system, levels, i + 1)
      one = levels[i]._replace(count=state.levels[i].count)
      levels = (*levels[:i], one, *levels[i + 1 :])
  return levels
