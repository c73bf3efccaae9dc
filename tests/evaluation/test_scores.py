import numpy as np
import pytest

from nlx import evaluation


def scores_by_loops(a, b):
  """The definitions, one term after another."""
  num_tasks = len(a)
  earlier, later = range(num_tasks - 1), range(1, num_tasks)
  last = a[num_tasks - 1]
  best = {j: max(a[i][j] for i in range(j, num_tasks - 1)) for j in earlier}
  return (
    sum(last[j] for j in range(num_tasks)) / num_tasks,
    sum(best[j] - last[j] for j in earlier) / len(earlier),
    sum(last[j] - a[j][j] for j in earlier) / len(earlier),
    sum(a[j - 1][j] - b[j] for j in later) / len(later),
  )


@pytest.mark.parametrize('num_tasks', [2, 3, 7])
def test_scores_are_their_definitions(num_tasks):
  random = np.random.default_rng(0)
  table, initial = random.random((num_tasks, num_tasks)), random.random(num_tasks)
  found = evaluation.continual_scores(table, initial)
  np.testing.assert_allclose(found, scores_by_loops(table, initial), rtol=0, atol=1e-14)


def test_scores_keep_leading_axes():
  random = np.random.default_rng(0)
  table, initial = random.random((2, 3, 4, 4)), random.random((2, 3, 4))
  found = evaluation.continual_scores(table, initial)
  alone = evaluation.continual_scores(table[1, 2], initial[1, 2])
  assert {x.shape for x in found} == {(2, 3)}
  np.testing.assert_allclose([x[1, 2] for x in found], alone, rtol=1e-15)


def test_scores_of_losses_are_positive_for_the_same_things():
  table, initial = np.array([[1.0, 7.0], [3.0, 2.0]]), np.array([8.0, 8.0])
  found = evaluation.continual_scores(table, initial, higher_is_better=False)
  assert found == (2.5, 2.0, -2.0, 1.0)


def test_scores_need_nothing_of_tasks_that_are_far_ahead():
  table = np.array([[0.9, 0.2, np.nan], [0.8, 0.9, 0.3], [0.7, 0.6, 0.9]])
  assert np.isfinite(evaluation.continual_scores(table, np.zeros(3))).all()


@pytest.mark.parametrize('shape', [(3,), (2, 3), (1, 1)])
def test_scores_say_which_table_they_need(shape):
  with pytest.raises(ValueError, match=r'`table` must be \[..., T, T\] of at least 2 tasks, got'):
    evaluation.continual_scores(np.zeros(shape), np.zeros(shape[:-1]))


def test_scores_say_which_initial_scores_they_need():
  with pytest.raises(ValueError, match=r'`initial` must be \[..., T\] = \(3,\) like `table`'):
    evaluation.continual_scores(np.zeros((3, 3)), np.zeros(2))
