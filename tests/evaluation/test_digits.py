import numpy as np
import pytest

from nlx import evaluation


def test_split_digits_are_two_digits_at_a_time_and_all_images():
  tasks = evaluation.split_digits()
  for i, task in enumerate(tasks):
    for inputs, labels in ((task.inputs, task.labels), (task.test_inputs, task.test_labels)):
      assert inputs.shape == (len(labels), 64)
      assert set(labels.tolist()) == {2 * i, 2 * i + 1}
  assert sum(len(task.labels) for task in tasks) == 1347
  assert sum(len(task.test_labels) for task in tasks) == 450


def test_permuted_digits_are_the_same_pixels_in_another_order():
  first, second = evaluation.permuted_digits(2)
  np.testing.assert_array_equal(first.labels, second.labels)
  pixels, permuted = (
    sorted(np.concatenate([t.inputs, t.test_inputs]).T.tolist()) for t in (first, second)
  )
  assert pixels == permuted
  assert (first.inputs != second.inputs).any()
  assert first.inputs.max() == 1


def test_permuted_digits_begin_with_the_split_ones_in_their_order():
  ((digits, *_), (split, *_)) = evaluation.permuted_digits(2), evaluation.split_digits()
  np.testing.assert_array_equal(digits.inputs[digits.labels < 2], split.inputs)


def test_permuted_digits_depend_on_their_seed_alone():
  again = [evaluation.permuted_digits(3, seed=seed)[2].inputs for seed in (0, 0, 1)]
  np.testing.assert_array_equal(again[0], again[1])
  assert (again[0] != again[2]).any()


@pytest.mark.parametrize('number', [0, 3, 10])
def test_split_digits_need_a_divisor_of_ten(number):
  with pytest.raises(ValueError, match='`classes_per_task`'):
    evaluation.split_digits(number)


def test_permuted_digits_need_two_tasks():
  with pytest.raises(ValueError, match='`num_tasks` must be at least 2 tasks, got 1'):
    evaluation.permuted_digits(1)
