"""Which level made the numbers of a session infinite or NaN."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nlx.models.language_model import LanguageModel
from nlx.models.sessions.session import Session


def divergence(model: LanguageModel, session: Session, index: int | None) -> FloatingPointError:
  """The error of a session whose logits are not finite.

  Args:
    model: The model.
    session: A single one, right after the first token of which that is so.
    index: Its place in a stack; None if there is none.
  """
  place = int(session.length) - 1
  which = '' if index is None else f' of session {index}'
  states = {**model.level_states(session.state), 'slow weights': nnx.state(model)}
  wrong = [name for name, state in states.items() if not _is_finite(state)]
  if wrong:
    levels = f'the states of these levels are not finite: {", ".join(wrong)}'
  else:
    levels = f'the states of all levels ({", ".join(states)}) are finite'
  return FloatingPointError(
    f'The logits after token {place} of the stream{which}, counted from 0, are not finite; '
    f'{levels}. The session of before this call is untouched.'
  )


def _is_finite(state: Any) -> bool:
  floating = (x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating))
  return all(bool(jnp.all(jnp.isfinite(x))) for x in floating)
