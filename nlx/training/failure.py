"""Says where a run stopped being finite."""

import numpy as np
from jax.typing import ArrayLike


class NonFiniteError(FloatingPointError):
  """Loss, gradient or update became infinite or NaN; the last good checkpoint is untouched.

  Attributes:
    step: The step, counted from 1, that was not finite.
    level: Name of the level whose state was first, or None if every level's state is finite.
  """

  def __init__(self, message: str, *, step: int, level: str | None):
    super().__init__(message)
    self.step = step
    self.level = level


def first_non_finite(sizes: dict[str, ArrayLike]) -> tuple[str, int] | None:
  """Returns the level, and the chunk, whose state was not finite first.

  Args:
    sizes: For every level, fastest first, the size of its state after each base chunk,
      [num_chunks].

  Returns:
    The name of the level and the index of the chunk; of several levels in one chunk the fastest.
    None if all are finite.
  """
  firsts = []
  for order, (name, size) in enumerate(sizes.items()):
    bad = np.flatnonzero(~np.isfinite(np.asarray(size, np.float64)))
    if bad.size:
      firsts.append((int(bad[0]), order, name))
  if not firsts:
    return None
  chunk, _, name = min(firsts)
  return name, chunk


def non_finite_error(
  step: int,
  loss: float,
  grad_norm: float,
  update_norm: float,
  sizes: dict[str, ArrayLike] | None,
  last_good: int,
) -> NonFiniteError:
  """Returns the error that says the step, the level and where to go on from.

  Args:
    step: The step, counted from 1.
    loss: Its loss.
    grad_norm: The global norm of its gradient.
    update_norm: That of what the optimizer made of it.
    sizes: As in `first_non_finite`, or None if nobody can tell.
    last_good: Step of the last checkpoint, 0 if there is none.
  """
  found = first_non_finite(sizes) if sizes is not None else None
  if found:
    where = f'first in level {found[0]!r}, at chunk {found[1]} of the sequence'
  elif sizes is None:
    where = 'at an unknown level (no diagnosis is available)'
  else:
    where = f'but the states of all levels ({", ".join(sizes)}) are finite'
  return NonFiniteError(
    f'Step {step} is not finite (loss {loss:g}, gradient norm {grad_norm:g}, update norm '
    f'{update_norm:g}), {where}. {_advice(last_good)}',
    step=step,
    level=found[0] if found else None,
  )


def non_finite_validation(step: int, loss: float, last_good: int) -> NonFiniteError:
  """Returns the error of a validation loss that is not finite, where training losses were.

  Args:
    step: The step, counted from 1, after which it was measured.
    loss: The loss.
    last_good: Step of the last checkpoint, 0 if there is none.
  """
  return NonFiniteError(
    f'The validation loss after step {step} is not finite ({loss:g}). {_advice(last_good)}',
    step=step,
    level=None,
  )


def _advice(last_good):
  kept = f'The checkpoint of step {last_good} is kept' if last_good else 'There is no checkpoint'
  return f'{kept}; a smaller learning rate or stronger clipping often helps.'
