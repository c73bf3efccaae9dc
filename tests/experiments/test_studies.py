import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import common
from experiments.reporting import tables
from experiments.studies import (
  ablation,
  all_models,
  digits,
  domains,
  equal_time,
  long_context,
  minute,
  records,
  second_reading,
  short_run,
  what_is_forgotten,
)
from nlx import data, models, training


@pytest.mark.parametrize(
  'name',
  [
    'all_models',
    'byte_needles',
    'continual_digits',
    'curved_valley',
    'domains',
    'equal_time',
    'formal_languages',
    'gradient_horizon',
    'language',
    'mad',
    'needles',
    'orthogonal_tasks',
    'second_reading',
    'singular_values',
  ],
)
def test_study_finds_finite_numbers_and_draws_them(name, tmp_path, monkeypatch):
  monkeypatch.setattr(records, 'FOLDER', tmp_path)
  study = importlib.import_module(f'experiments.studies.{name}')
  found = study.run(study.SMOKE)
  values = [value for row in found.rows for value in row.values()]
  assert all(math.isfinite(value) for value in values if isinstance(value, int | float))
  assert len(tables.markdown(found.rows).splitlines()) == 2 + len(found.rows)
  assert found.figure is not None


def test_models_train_for_equally_long_and_the_best_rate_is_run_with_all_seeds(
  tmp_path, monkeypatch
):
  seconds = {'hope': 2.0, 'transformer': 0.5}
  losses = {0.1: 3.0, 0.2: 1.0, 0.4: 2.0}  # By learning rate, the same for both.

  def measure(job):
    bits = losses[job.rate] + 0.1 * job.seed + (job.model == 'hope')
    return {'bits_per_byte': bits, 'parameters': 1, 'tokens': 10 * job.steps}

  monkeypatch.setattr(records, 'FOLDER', tmp_path)
  monkeypatch.setattr(equal_time, 'pace', lambda timed: seconds[timed.model])
  monkeypatch.setattr(all_models, 'measure', measure)
  sizes = equal_time.Sizes(tuple(seconds), seconds=100.0, rates=tuple(losses), processes=1)
  first, second = equal_time.run(sizes).rows
  assert (first['model'], first['steps'], first['tokens']) == ('transformer', 200, 2000)
  assert (second['model'], second['steps'], second['rate']) == ('hope', 50, '0.2')
  assert [first[key] for key in ('least', 'bits_per_byte', 'greatest')] == pytest.approx(
    [1.0, 1.1, 1.2]
  )


@pytest.mark.parametrize('fields', ablation.VARIANTS.values(), ids=ablation.VARIANTS)
def test_ablation_compares_models_of_equal_size(fields):
  config = short_run.small('hope', steps=2, **fields)
  size = models.count_parameters(common.make_model_config(config.model, 256))
  assert size == pytest.approx(short_run.PARAMETERS + 2 * 256 * short_run.WIDTH, rel=0.03)


def test_runs_side_by_side_are_the_runs_one_by_one():
  """With seeds and learning rates of their own."""
  configs = [short_run.small('linear_attention', smoke=True, seed=seed, steps=4) for seed in (0, 1)]
  configs[1].optimizer.learning_rate *= 3
  together = short_run.SideBySide(configs)
  losses = np.stack([together.advance() for _ in range(4)], axis=1)
  for i, config in enumerate(configs):
    task, language = short_run.prepare(config)
    state = training.init_state(language.params, task.tx, key=jax.random.key(config.seed))
    step = training.make_step(task.loss_fn, task.tx)
    for j in range(4):
      state, metrics = step(state, next(task.batches))
      np.testing.assert_allclose(losses[i, j], metrics['loss'], rtol=1e-5)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), together.params(i), state.params
    )


def test_run_that_diverges_has_no_numbers_from_there(monkeypatch):
  prepare = short_run.prepare

  def poisoned(config):
    task, language = prepare(config)
    batches = [next(task.batches) for _ in range(4)]
    batches[2]['mask'] = batches[2]['mask'] * (np.nan if config.seed else 1)
    return task._replace(batches=iter(batches)), language

  monkeypatch.setattr(short_run, 'prepare', poisoned)
  good, bad = short_run.train(
    short_run.small('linear_attention', smoke=True, seed=seed, steps=4) for seed in (0, 1)
  )
  assert np.isfinite([*good.losses, good.bits_per_byte]).all()
  assert np.isfinite(bad.losses).tolist() == [True, True, False, False]
  assert np.isnan(bad.bits_per_byte) and short_run.last_loss(bad.losses) == float('inf')


def test_second_reading_without_rates_moves_no_block():
  config = short_run.small('hope', smoke=True, steps=2)
  language = common.create(config)
  still = nnx.merge(language.graph, second_reading.without_rates(language.params))
  np.testing.assert_array_equal(still.blocks.cms.rates(), 0)
  assert float(nnx.merge(language.graph, language.params).blocks.cms.rates().min()) > 0


def test_long_context_compares_stretches_of_the_text():
  bits = np.repeat([1.0, 2.0, 4.0, 8.0], [8, 8, 16, 32])  # To 512, 1024, 2048 and 4096.
  found = long_context.by_position(bits, bits + 0.5)
  assert found == {'to_512': 1, 'to_1024': 2, 'to_2048': 4, 'to_4096': 8, 'gain': 0.5}


def test_domains_counts_what_is_forgotten():
  """Of a table [phases, domains] in bits, where less is better."""
  table = np.array([[2, 9, 9, 9], [3, 4, 9, 9], [5, 4, 1, 9], [4, 6, 2, 3], [2, 9, 9, 9]], float)
  found = domains.summary([9.0] * 4, table, np.array([2, 3, 2.5, 1, 9.0]))
  assert found['forgotten'] == 5 - 2
  assert found['forgotten_in_one_stream'] == 3 - 2
  assert found['forgetting'] == pytest.approx(((4 - 2) + (6 - 4) + (2 - 1)) / 3)
  assert found['average'] == (4 + 6 + 2 + 3) / 4
  assert found['after_5_documentation'] == 2


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


DIGITS_RULES = ('AdamW', 'M3')  # For all parameters, and for matrices.


@pytest.fixture(scope='module')
def digits_rows():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(digits, 'RULES', {name: digits.RULES[name] for name in DIGITS_RULES})
    return digits.run(digits.SMOKE).rows


def test_digits_has_a_finite_row_for_each_optimizer_and_seed(digits_rows):
  things = [(row['optimizer'], row['seed']) for row in digits_rows]
  assert things == [(name, seed) for name in DIGITS_RULES for seed in digits.SMOKE.seeds]
  values = [value for row in digits_rows for value in row.values()]
  assert all(math.isfinite(value) for value in values if not isinstance(value, str))


@pytest.mark.parametrize('name', digits.RULES)
def test_digits_takes_steps_of_every_optimizer(name):
  params = digits.init(0)

  def step():
    return digits.update(name, 4, (params, digits.start(name, params)), params, 0.1)

  updated, _ = jax.eval_shape(step)
  assert jax.tree.map(jnp.shape, updated) == jax.tree.map(jnp.shape, params)


def test_digits_model_learns():
  sizes = digits.SMOKE._replace(steps=20, every=10)
  curves = digits.train(sizes, {'AdamW': 1e-2}, 0, digits.load(), digits.NUM_TRAIN)
  losses = [loss.mean() for loss in curves['AdamW'].losses]
  assert losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize('family', ['hope', 'transformer'])
def test_what_is_put_back_is_all_of_a_part_and_every_weight_is_in_one(family):
  params = common.create(short_run.small(family, smoke=True, steps=2)).params
  zeros, ones = (jax.tree.map(lambda x, v=v: v, params) for v in (0, 1))
  parts = [
    what_is_forgotten.put_back(zeros, ones, places) for places in what_is_forgotten.PARTS.values()
  ]
  assert all(any(jax.tree.leaves(part)) for part in parts)
  assert set(jax.tree.leaves(jax.tree.map(lambda *counts: sum(counts), *parts))) == {1}
