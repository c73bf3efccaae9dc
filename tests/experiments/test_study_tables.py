"""Studies of language models at full size, of made-up runs: their records, means and figures."""

import importlib
import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.reporting import tables
from experiments.studies import ablation, domains, long_context, records, second_reading, short_run
from nlx import data

CONTENDERS = {
  'ablation': len(ablation.VARIANTS),
  'domains': len(domains.CONTENDERS),
  'long_context': len(long_context.MODELS),
  'second_reading': len(second_reading.FULL.periods),
}


@pytest.fixture(scope='module', params=CONTENDERS)
def study(request):
  return importlib.import_module(f'experiments.studies.{request.param}')


@pytest.fixture(scope='module')
def found(study):
  """What the study finds if nothing is trained and every loss is a random number."""
  random = np.random.default_rng(0)

  def remember(name, key, make):
    if name != 'domains':  # The others train in one place, which can be replaced.
      return make()
    seeds, phases = key[1].seeds, len(domains.PHASES)
    return [
      {
        'initial': random.uniform(1, 3, len(domains.DOMAINS)).tolist(),
        'bits_per_byte': random.uniform(1, 3, (phases, len(domains.DOMAINS))).tolist(),
        'in_one_stream': random.uniform(1, 3, phases).tolist(),
        'diverged': False,
      }
      for _ in seeds
    ]

  def train(configs):
    return [trained(config) for config in configs]

  def trained(config):
    model = SimpleNamespace(num_parameters=lambda: 1000)
    language = SimpleNamespace(model=model, graph=None, tokenizer=None)
    params = {'blocks': {'cms': {'log_rate_factors': jnp.zeros(3)}}}
    losses = random.uniform(1, 3, config.training.steps).tolist()
    return short_run.Trained(language, params, losses, random.uniform(1, 3))

  def read(graph, params, text):
    return jnp.asarray(random.uniform(1, 3, (text.shape[0], text.shape[1] - 1)))

  text = SimpleNamespace(validation=SimpleNamespace(tokens=np.zeros(100_000, np.int32)))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(records, 'remember', remember)
    patch.setattr(short_run, 'train', train)
    patch.setattr(short_run, 'read', read)
    patch.setattr(data, 'load', lambda *args, **options: text)
    return study.run(study.FULL)


def contenders(study):
  return CONTENDERS[study.__name__.rpartition('.')[2]]


def test_full_study_has_records_and_a_figure_that_files_can_hold(study, found, tmp_path):
  runs = len(study.FULL.seeds) if 'seed' in found.rows[0] else 1
  assert len(found.rows) == contenders(study) * runs
  assert json.loads(json.dumps(found.rows)) == found.rows
  found.figure.savefig(tmp_path / 'figure.png')
  assert (tmp_path / 'figure.png').stat().st_size


def test_full_study_has_one_row_of_means_for_each_contender(study, found):
  """Seeds are told apart from contenders by the texts of their records."""
  means = tables.over_seeds(found.rows)
  assert len(means) == contenders(study)
  seeds = [row['seeds'] for row in means if 'seeds' in row]
  assert all(count == len(study.FULL.seeds) for count in seeds)
  assert len(tables.markdown(means).splitlines()) == 2 + len(means)
