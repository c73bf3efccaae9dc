import numpy as np
import pytest

from nlx import evaluation
from nlx.evaluation import sequences


def accuracies_by_loops(predictions, targets, mask):
  rows = [
    [(p, t) for p, t, m in zip(*row, strict=True) if m]
    for row in zip(predictions.tolist(), targets.tolist(), mask.tolist(), strict=True)
  ]
  pairs = [pair for row in rows for pair in row]
  classes = {t for _, t in pairs}
  recall = [np.mean([p == t for p, t in pairs if t == c]) for c in classes]
  sequence = np.mean([all(p == t for p, t in row) for row in rows])
  return sequence, np.mean([p == t for p, t in pairs]), np.mean(recall)


@pytest.mark.parametrize('errors', [0.0, 0.1, 1.0])
def test_accuracies_are_their_definitions(errors):
  random = np.random.default_rng(0)
  targets = random.choice([0, 1, 5], size=(40, 7), p=[0.7, 0.2, 0.1])
  predictions = np.where(random.random(targets.shape) < errors, 3, targets)
  mask = (random.random(targets.shape) < 0.6).astype(np.float32)
  mask[:, 2] = 1
  found = evaluation.accuracies(predictions, targets, mask)
  np.testing.assert_allclose(found, accuracies_by_loops(predictions, targets, mask), atol=1e-12)


def test_accuracies_say_which_arrays_they_need():
  targets = np.zeros((3, 4), int)
  with pytest.raises(ValueError, match=r'`predictions` must be \[N, T\] like `targets`, got \(3,'):
    evaluation.accuracies(np.zeros((3, 5)), targets, targets)
  with pytest.raises(ValueError, match=r'`mask` must be \[N, T\] like `targets`, got \(4,\)'):
    evaluation.accuracies(targets, targets, np.ones(4))
  with pytest.raises(ValueError, match='`mask` must be other than 0 somewhere in each sequence'):
    evaluation.accuracies(targets, targets, np.array([[1] * 4, [1] * 4, [0] * 4]))


def test_streams_differ_by_seed_and_by_every_part_of_the_path():
  paths = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0), (2**32, 0), (0,), (1,)]
  numbers = [tuple(sequences.stream(*path).integers(2**60, size=2)) for path in paths]
  assert len(set(numbers)) == len(paths)


@pytest.mark.parametrize('seed', [-1, 0.5, None, True])
def test_streams_say_which_seed_they_need(seed):
  with pytest.raises(ValueError, match='`seed` must be an integer of at least 0, got'):
    sequences.stream(seed)
