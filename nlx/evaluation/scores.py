"""What is kept, forgotten and transferred, from the scores on all tasks after each."""

from typing import Any, NamedTuple

import numpy as np


class ContinualScores(NamedTuple):
  """What a sequence of tasks did to a learner; float64 [...] each."""

  average: np.ndarray  # ACC: mean score on all tasks in the end, as it was given
  forgetting: np.ndarray  # from the best on a task to the end; positive is worse
  backward_transfer: np.ndarray  # from right after a task to the end; positive is better
  forward_transfer: np.ndarray  # from the start to right before a task; positive is better


def continual_scores(table: Any, initial: Any, *, higher_is_better: bool = True) -> ContinualScores:
  """Summarises the scores of a learner that meets T tasks one after another.

  With a[i, j] the score on task j after training on task i, and b[j] that before any training,

      average            mean over j of a[T, j]
      forgetting         mean over j < T of (max over j <= i < T of a[i, j]) - a[T, j]
      backward transfer  mean over j < T of a[T, j] - a[j, j]
      forward transfer   mean over j > 1 of a[j-1, j] - b[j]

  Where lower is better, as in bits per byte, the last three are those of -a and -b: positive
  forgetting is worse and positive transfer better in either case, and `average` is the mean of a
  itself. A score that is no number makes those summaries that need it no number.

  Args:
    table: [..., T, T] scores a, a row after each task, a column for each task; T at least 2.
    initial: [..., T] scores b of the untrained learner.
    higher_is_better: True for accuracies, False for losses and bits per byte.

  Returns:
    Summaries of shape [...].

  Raises:
    ValueError: If the shapes are none of these.

  Example:
    >>> import nlx
    >>> scores = nlx.evaluation.continual_scores([[0.9, 0.5], [0.6, 0.8]], [0.5, 0.4])
    >>> print(f'{scores.average:.2f} {scores.forgetting:.2f} {scores.forward_transfer:.2f}')
    0.70 0.30 0.10

  References:
    Lopez-Paz and Ranzato, Gradient Episodic Memory, arXiv 1706.08840, Eqs. 2-4; Chaudhry et al.,
    Riemannian Walk, arXiv 1801.10112, Sec. 3.2 (forgetting).
  """
  after, before = np.asarray(table, np.float64), np.asarray(initial, np.float64)
  if after.ndim < 2 or after.shape[-1] != after.shape[-2] or after.shape[-1] < 2:
    raise ValueError(f'`table` must be [..., T, T] of at least 2 tasks, got {after.shape}.')
  if before.shape != after.shape[:-1]:
    raise ValueError(
      f'`initial` must be [..., T] = {after.shape[:-1]} like `table`, got {before.shape}.'
    )
  average = after[..., -1, :].mean(axis=-1)
  if not higher_is_better:
    after, before = -after, -before
  learned = np.tri(after.shape[-1], dtype=bool)[:-1]  # [T-1, T]: the task was trained by then
  best = np.where(learned, after[..., :-1, :], -np.inf).max(axis=-2)[..., :-1]
  final = after[..., -1, :-1]
  right_after = np.diagonal(after, axis1=-2, axis2=-1)[..., :-1]
  right_before = np.diagonal(after, offset=1, axis1=-2, axis2=-1)
  return ContinualScores(
    average,
    (best - final).mean(axis=-1),
    (final - right_after).mean(axis=-1),
    (right_before - before[..., 1:]).mean(axis=-1),
  )
