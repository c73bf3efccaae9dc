"""Sequences with a question at some of their positions, and how many answers are right."""

from typing import NamedTuple

import numpy as np


class LabelledSequences(NamedTuple):
  """A set to train on or to test with: N sequences of T tokens."""

  tokens: np.ndarray  # int32 [N, T], what is read
  targets: np.ndarray  # int32 [N, T], the answer at each position; 0 where there is none
  mask: np.ndarray  # float32 [N, T], 1 where the answer counts, else 0


class Accuracies(NamedTuple):
  """Shares of right answers, in [0, 1]."""

  sequence: float  # of sequences with no wrong answer
  micro: float  # of positions
  macro: float  # of the positions of a class, mean over the classes among the targets


def accuracies(predictions: np.ndarray, targets: np.ndarray, mask: np.ndarray) -> Accuracies:
  """Compares the answers to a set of sequences with the right ones.

  Args:
    predictions: Integers [N, T], such as the arg max of logits.
    targets: Integers [N, T] of at least 0.
    mask: [N, T], not 0 where the answer counts; at least once in each sequence.

  Returns:
    The shares of right answers. `macro` weighs each target id that occurs in the set alike.

  Raises:
    ValueError: If the shapes differ or a sequence asks nothing.

  Example:
    >>> import numpy as np, nlx
    >>> targets = np.array([[0, 0, 0], [0, 1, 1]])
    >>> found = nlx.evaluation.accuracies(targets * 0, targets, targets < 2)
    >>> print(f'{found.sequence:.2f} {found.micro:.2f} {found.macro:.2f}')
    0.50 0.67 0.50

  References:
    Bhattamishra et al., arXiv 2009.11264 (sequence); Poli et al., arXiv 2403.17844 (macro; their
    code also counts a class as wrong that is among the predictions alone).
  """
  predictions, targets, asked = np.asarray(predictions), np.asarray(targets), np.asarray(mask) != 0
  for name, array in (('predictions', predictions), ('mask', asked)):
    if targets.ndim != 2 or array.shape != targets.shape:
      raise ValueError(
        f'`{name}` must be [N, T] like `targets`, got {array.shape} and {targets.shape}.'
      )
  if not (targets.size and asked.any(axis=1).all()):
    raise ValueError('`mask` must be other than 0 somewhere in each sequence.')
  right = predictions == targets
  shown = np.bincount(targets[asked])
  hits = np.bincount(targets[asked & right], minlength=len(shown))
  return Accuracies(
    sequence=float((right | ~asked).all(axis=1).mean()),
    micro=float(right[asked].mean()),
    macro=float((hits[shown > 0] / shown[shown > 0]).mean()),
  )


def stream(seed: int, *path: int) -> np.random.Generator:
  """Random numbers that are independent of those of every other seed and path.

  Args:
    seed: At least 0.
    path: Numbers of at least 0, for the parts of a benchmark that must not share any.

  Returns:
    A generator at its beginning.

  Raises:
    ValueError: If `seed` is no such number.
  """
  if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
    raise ValueError(f'`seed` must be an integer of at least 0, got {seed!r}.')
  return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=path))
