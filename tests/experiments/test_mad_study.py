"""The study of MAD: its models, its decoder, and what it makes of a grid."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.studies import mad
from nlx import evaluation


def record(macro, loss=1.0):
  return {'parameters': 10, 'macro': macro, 'micro': macro / 2, 'loss': loss}


def test_setting_of_the_greatest_mean_macro_accuracy_is_best():
  """And of the least loss where that is the same."""
  grid = {
    (1e-3, 0.0): [record(0.9), record(0.1)],
    (1e-3, 0.1): [record(0.5, loss=3.0), record(0.6)],
    (3e-3, 0.0): [record(0.6), record(0.5)],
  }
  assert mad.best(grid) == (3e-3, 0.0)


def test_row_is_of_the_best_setting_and_the_mean_is_over_tasks():
  grid = {(1e-3, 0.0): [record(0.2)] * 2, (3e-3, 0.1): [record(0.25), record(0.75)]}
  found = mad.row('recall', 'HOPE', grid)
  assert (found['rate'], found['decay']) == ('0.003', '0.1')
  assert [found[key] for key in ('macro', 'micro')] == [50, 25]
  rows = [found, {**found, 'macro': 100.0}, {**found, 'model': 'Titans', 'macro': 0.0}]
  mean = mad.mean(rows, 'HOPE')
  assert (mean['task'], mean['macro'], mean['micro']) == ('mean', 75, 25)


@pytest.mark.parametrize('task', ['recall', 'compression', 'memorization'])
def test_model_answers_an_id_of_the_task_at_every_position(task):
  setting = evaluation.MAD_BASELINES[task]
  make, logits = mad.build('Transformer++', setting)
  tokens = jnp.zeros((2, 8), int)
  shape = jax.eval_shape(lambda: logits(make(nnx.Rngs(0)), tokens)).shape
  assert shape == (2, 8, setting.vocab_size)


def test_decoder_knows_the_place_of_every_position():
  found = np.asarray(mad.sinusoids(32, 128))
  assert found.shape == (32, 128)
  np.testing.assert_allclose(found[5, [0, 63, 64]], [np.sin(5), np.sin(5e-4), np.cos(5)], atol=1e-5)
  assert len(np.unique(found.round(3), axis=0)) == 32


@pytest.mark.parametrize('name', mad.MODELS)
def test_models_are_equally_wide_and_learn_in_context_by_memories_alone(name):
  config = mad.configure(name, 16)
  mixer: Any = config.mixer
  assert (config.model_dim, config.cms.widths, config.num_layers) == (128, (352,), 2)
  assert config.in_context_periods == ()
  assert config.model_dim // mixer.num_heads == (8 if name == 'Transformer++' else 32)
