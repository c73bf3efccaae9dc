import importlib
import math

import pytest

from experiments.reporting import tables
from experiments.studies import digits


@pytest.mark.parametrize(
  'name',
  ['curved_valley', 'gradient_horizon', 'language', 'orthogonal_tasks', 'singular_values'],
)
def test_study_finds_finite_numbers_and_draws_them(name):
  study = importlib.import_module(f'experiments.studies.{name}')
  found = study.run(study.SMOKE)
  values = [value for row in found.rows for value in row.values()]
  assert all(math.isfinite(value) for value in values if isinstance(value, int | float))
  assert len(tables.markdown(found.rows).splitlines()) == 2 + len(found.rows)
  assert found.figure is not None


@pytest.fixture(scope='module')
def digits_rows():
  return digits.run(digits.SMOKE).rows


def test_digits_has_a_finite_row_for_each_optimizer_and_seed(digits_rows):
  things = [(row['optimizer'], row['seed']) for row in digits_rows]
  assert things == [(name, seed) for name in digits.RULES for seed in digits.SMOKE.seeds]
  values = [value for row in digits_rows for value in row.values()]
  assert all(math.isfinite(value) for value in values if not isinstance(value, str))


def test_digits_model_learns():
  sizes = digits.SMOKE._replace(steps=20, every=10)
  curves = digits.train(sizes, {'AdamW': 1e-2}, 0, digits.load(), digits.NUM_TRAIN)
  losses = [loss.mean() for loss in curves['AdamW'].losses]
  assert losses[2] < losses[1] < losses[0]
