"""Sequences of tasks made of scikit-learn's handwritten digits, which need no network."""

from typing import NamedTuple

import numpy as np

from nlx import core

_NUM_CLASSES, _NUM_PIXELS = 10, 64


class Task(NamedTuple):
  """One classification task."""

  inputs: np.ndarray  # float32 [N, 64] to train on, pixels in [0, 1]
  labels: np.ndarray  # int32 [N], digits
  test_inputs: np.ndarray  # float32 [M, 64]
  test_labels: np.ndarray  # int32 [M]


def split_digits(classes_per_task: int = 2) -> tuple[Task, ...]:
  """The ten digits, a few at a time: 0 and 1, then 2 and 3, and so on.

  Labels are digits, for one head of ten classes that all tasks share: nothing tells the learner
  which task an image is of (class-incremental learning).

  Args:
    classes_per_task: Digits that arrive together, a divisor of 10 and smaller than 10.

  Returns:
    10 / `classes_per_task` tasks. Of all 1797 images 1347 are for training and 450 for tests,
    always the same and in equal shares of all digits.

  Raises:
    ValueError: If `classes_per_task` is no such number.

  References:
    Zenke et al., Synaptic Intelligence, arXiv 1703.04200 (split MNIST); van de Ven and Tolias,
    Three Scenarios for Continual Learning, arXiv 1904.07734.
  """
  core.check_positive('classes_per_task', classes_per_task, 'class')
  core.check_divides('classes_per_task', classes_per_task, 'number of digits', _NUM_CLASSES)
  if classes_per_task == _NUM_CLASSES:
    raise ValueError('`classes_per_task` must be smaller than 10: all digits are one task.')
  inputs, labels, test_inputs, test_labels = _digits()

  def part(first):
    train, test = (y // classes_per_task == first for y in (labels, test_labels))
    return Task(inputs[train], labels[train], test_inputs[test], test_labels[test])

  return tuple(part(i) for i in range(_NUM_CLASSES // classes_per_task))


def permuted_digits(num_tasks: int = 10, *, seed: int = 0) -> tuple[Task, ...]:
  """All ten digits again and again, with the pixels in another order each time.

  Args:
    num_tasks: At least 2. The first has the pixels as they are.
    seed: Of the orders.

  Returns:
    The tasks, each with the images of `split_digits` for training and tests.

  Raises:
    ValueError: If `num_tasks` is smaller than 2.

  References:
    Kirkpatrick et al., Overcoming Catastrophic Forgetting, arXiv 1612.00796, Sec. 2.1 (permuted
    MNIST).
  """
  core.check_positive('num_tasks', num_tasks, 'task')
  if num_tasks < 2:
    raise ValueError(f'`num_tasks` must be at least 2 tasks, got {num_tasks}.')
  inputs, labels, test_inputs, test_labels = _digits()
  random = np.random.default_rng(seed)
  orders = [np.arange(_NUM_PIXELS)] + [
    random.permutation(_NUM_PIXELS) for _ in range(num_tasks - 1)
  ]
  return tuple(Task(inputs[:, i], labels, test_inputs[:, i], test_labels) for i in orders)


def _digits():
  """Images and labels to train on and to test with, in the fields of a task."""
  from sklearn.datasets import load_digits
  from sklearn.model_selection import train_test_split

  digits = load_digits()
  images, labels = (digits.data / 16).astype(np.float32), digits.target.astype(np.int32)
  train, test = train_test_split(
    np.arange(len(labels)), test_size=450, random_state=0, stratify=labels
  )
  return Task(images[train], labels[train], images[test], labels[test])
