import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from experiments import common, language_model
from experiments.configs import lm
from nlx import data, models, training
from tests.training.test_loop import ROOT

NAMES = [f'{model}-{size}' for model in lm.MODELS for size in lm.SIZES]


def command(module, *arguments):
  return subprocess.run(
    [sys.executable, '-m', f'experiments.{module}', *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=60,
  )


def train(name, *arguments):
  config = f'--config=experiments/configs/lm.py:{name}'
  return command('train', config, '--workdir=/nonexistent/run', *arguments)


@pytest.mark.parametrize('name', NAMES)
def test_config_survives_json(name):
  config = lm.get_config(name)
  assert ml_collections.ConfigDict(common.as_dict(config)).name == name


@pytest.mark.parametrize('name', NAMES)
def test_config_sizes_divide(name):
  config = lm.get_config(name)
  assert config.model.model_dim % config.model.num_heads == 0
  assert config.optimizer.warmup_steps < config.training.steps
  for period in config.model.get('cms_periods', ()):
    assert config.data.seq_len % period == 0
    assert period % config.model.get('projection_chunk_size', 1) == 0


@pytest.mark.parametrize('name', ['hope', 'hope-big', 'hop-tiny', ''])
def test_unknown_config_lists_the_known(name):
  with pytest.raises(
    ValueError, match='one of hope, hope_attention, .* and SIZE one of smoke, tiny'
  ):
    lm.get_config(name)


def test_config_names_every_family():
  assert set(lm.MODELS) == set(models.FAMILIES)


@pytest.mark.parametrize('size', lm.SIZES)
def test_models_of_one_size_have_equally_many_parameters(size):
  """With a vocabulary of 32,000 where a tokenizer is to be given."""
  vocab_size = 256 if size in lm.DTYPES else 32_000
  counts = {
    model: models.count_parameters(
      common.make_model_config(lm.get_config(f'{model}-{size}').model, vocab_size)
    )
    for model in lm.MODELS
  }
  assert max(counts.values()) <= 1.05 * min(counts.values()), counts


def test_unknown_config_on_the_command_line_lists_the_known():
  result = train('hope-tinny')
  assert result.returncode != 0
  assert 'SIZE one of smoke, tiny, 30m, 340m' in result.stderr


def test_misspelt_key_names_the_near_one():
  result = train('hope-tiny', '--config.optimizer.learningrate=1e-3')
  assert result.returncode != 0
  assert 'Did you mean "learning_rate"' in result.stderr


def test_value_of_another_type_is_an_error():
  result = train('hope-tiny', '--config.data.seq_len=long')
  assert result.returncode != 0
  assert 'seq_len' in result.stderr


def test_config_is_locked():
  result = train('hope-tiny', '--config.data.brand_new=1')
  assert result.returncode != 0
  assert 'brand_new' in result.stderr


@pytest.mark.parametrize('module', ['train', 'generate', 'evaluate'])
def test_help_does_not_wait_for_jax(module):
  code = f"import sys, experiments.{module}; print('jax' in sys.modules, 'nlx' in sys.modules)"
  result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert result.stdout.split() == ['False', 'False']


def test_missing_workdir_is_an_error():
  result = command('train', '--config=experiments/configs/lm.py:hope-tiny')
  assert result.returncode != 0
  assert 'workdir' in result.stdout + result.stderr


@functools.cache
def language_and_corpus():
  config = lm.get_config('hope-smoke')
  language = common.create(config)
  corpus = data.load(config.data.corpus, language.tokenizer, max_bytes=config.data.max_bytes)
  return language, corpus


@pytest.mark.parametrize('optimizer', sorted(set(training.OPTIMIZERS) - {'delta_gradient_descent'}))
def test_every_optimizer_can_be_chosen_by_name(optimizer):
  """Its options are those of the configuration."""
  config = lm.get_config('hope-smoke')
  config.optimizer.name = optimizer
  tx = language_model.make_task(config, *language_and_corpus()).tx
  params = language_and_corpus()[0].params
  state = jax.eval_shape(tx.init, params)
  updates, _ = jax.eval_shape(tx.update, params, state, params)
  assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)


def test_options_of_optimizers_are_of_known_ones():
  assert {*lm.OPTIONS, 'delta_gradient_descent'} == set(training.OPTIMIZERS)
