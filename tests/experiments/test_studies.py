import importlib
import math

import numpy as np
import pytest

from experiments.reporting import tables
from experiments.studies import digits, language, minute
from nlx import data


@pytest.mark.parametrize(
  'name',
  ['curved_valley', 'gradient_horizon', 'language', 'orthogonal_tasks', 'singular_values'],
)
def test_study_finds_finite_numbers_and_draws_them(name, tmp_path, monkeypatch):
  study = importlib.import_module(f'experiments.studies.{name}')
  if hasattr(study, 'MEMORY'):
    monkeypatch.setattr(study, 'MEMORY', tmp_path / 'runs.jsonl')
  found = study.run(study.SMOKE)
  values = [value for row in found.rows for value in row.values()]
  assert all(math.isfinite(value) for value in values if isinstance(value, int | float))
  assert len(tables.markdown(found.rows).splitlines()) == 2 + len(found.rows)
  assert found.figure is not None


def test_language_study_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
  monkeypatch.setattr(language, 'MEMORY', tmp_path / 'runs.jsonl')
  monkeypatch.setattr(language.provenance, 'commit', lambda: 'a' * 12)
  args = (language.SMOKE, 'transformer-smoke', 'delta_momentum', 0.1, 0)
  first = language.remember(*args)
  monkeypatch.delattr(language, 'train')
  assert language.remember(*args) == first
  with pytest.raises(NameError):
    language.remember(*args[:-1], 1)


def test_minute_has_a_row_of_both_models_of_bytes():
  (row,) = minute.run(minute.SMOKE).rows
  assert row['model'] == 'linear_attention'
  assert row['steps'] > 0
  assert 4 < row['unigram_bits_per_byte'] < 5
  assert math.isfinite(row['bits_per_byte'])


def test_unigram_model_knows_the_bytes_of_the_training_text():
  corpus = data.load('documentation', data.tokenizer('bytes'), max_bytes=20_000)
  alphabet = range(1 + max(corpus.train.tokens.max(), corpus.validation.tokens.max()))
  seen = corpus.train.tokens.tolist()
  shares = {token: (1 + seen.count(token)) / (len(alphabet) + len(seen)) for token in alphabet}
  expected = -np.mean([np.log2(shares[token]) for token in corpus.validation.tokens.tolist()])
  np.testing.assert_allclose(minute.unigram(corpus), expected, rtol=1e-6)


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
