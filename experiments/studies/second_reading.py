"""A text read twice by models that keep learning, all slow weights frozen."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.studies import Found, records, short_run
from nlx import data

TITLE = 'A text read twice'
CAPTION = (
  'HOPE of width 64 and three MLP blocks per layer, of which 0, 1, 2 or 3 learn in context, every '
  '64, 128 or 256 tokens, at rates that begin at 0.4, 0.8 or 1.6 and are learned; parameters are '
  'equal but for one rate per layer and level. Each was trained for 200 steps of 1,024 tokens on '
  'sequences of 512 of English documentation. Then slow weights are frozen, and four stretches of '
  '8,192 bytes of the last tenth, held out, are read twice in a row, each as one stream. `gain` '
  'is the fall in bits per byte from the first to the second reading. `gain_without_learning` is '
  'that of the same model with the inner rates of its blocks at zero; its memories still learn.'
)


class Sizes(NamedTuple):
  """What is trained and read."""

  periods: tuple[tuple[int, ...], ...] = (
    (0, 0, 0),
    (64, 0, 0),
    (0, 128, 0),
    (0, 0, 256),
    (64, 128, 0),
    (0, 128, 256),
    (64, 128, 256),
  )
  steps: int = 200
  seeds: tuple[int, ...] = (0, 1, 2)
  texts: int = 4
  length: int = 8192  # bytes of each
  smoke: bool = False


FULL = Sizes()
SMOKE = Sizes(((64, 0, 0),), steps=2, seeds=(0,), texts=1, length=128, smoke=True)
BIN = 256  # tokens, in the figure


def run(sizes: Sizes) -> Found:
  """Returns a row for each model and seed, and the curves."""
  found = [
    {'periods': periods, **record}
    for periods in sizes.periods
    for record in remembered(sizes, periods)
  ]
  rows = [{'levels': levels(one), **one['row']} for one in found]
  return Found(rows, plot(sizes, found))


def levels(record: dict[str, Any]) -> int:
  """How many blocks of a model learn in context."""
  return sum(period > 0 for period in record['periods'])


def remembered(sizes: Sizes, periods: tuple[int, ...]) -> list[dict[str, Any]]:
  """What models of as many levels leave, one for each seed."""
  found = records.remember('second_reading', (periods, sizes), lambda: measure(sizes, periods))
  print(periods, [one['row'] for one in found], flush=True)
  return found


def measure(sizes: Sizes, periods: tuple[int, ...]) -> list[dict[str, Any]]:
  """Trains models and has them read."""
  configs = [
    short_run.small(
      'hope', smoke=sizes.smoke, seed=seed, steps=sizes.steps, **short_run.levels(*periods)
    )
    for seed in sizes.seeds
  ]
  return [
    reading(sizes, config, trained)
    for config, trained in zip(configs, short_run.train(configs), strict=True)
  ]


def reading(sizes: Sizes, config: Any, trained: short_run.Trained) -> dict[str, Any]:
  """Has a model read; its row and its losses along the text."""
  corpus = data.load(config.data.corpus, trained.language.tokenizer)
  once = short_run.windows(corpus.validation.tokens, sizes.texts, sizes.length)
  twice = jnp.asarray(np.concatenate([once, once, once[:, :1]], axis=1), jnp.int32)
  graph, params = trained.language.graph, trained.params
  first, second, curve = halves(short_run.read(graph, params, twice))
  still = without_rates(params) if any(config.model.cms_periods) else params
  first_still, second_still, _ = halves(short_run.read(graph, still, twice))
  row = {
    'periods': ', '.join(map(str, filter(None, config.model.cms_periods))) or 'none',
    'seed': config.seed,
    'parameters': trained.language.model.num_parameters(),
    'held_out_bits_per_byte': trained.bits_per_byte,
    'first_reading': first,
    'second_reading': second,
    'gain': first - second,
    'gain_without_learning': first_still - second_still,
  }
  return {'row': row, 'curve': curve}


def without_rates(params: Any) -> Any:
  """The same slow weights, with every inner rate at zero."""
  cms = dict(params['blocks']['cms'])
  cms['log_rate_factors'] = jnp.full_like(cms['log_rate_factors'], -jnp.inf)
  return {**params, 'blocks': {**params['blocks'], 'cms': cms}}


def halves(bits: jnp.ndarray) -> tuple[float, float, list[float]]:
  """Means of the first and of the second reading, and of every bin, over all texts."""
  bits = np.asarray(bits, np.float64).mean(axis=0)
  first, second = np.split(bits, 2)
  width = min(BIN, len(first))
  return float(first.mean()), float(second.mean()), bits.reshape(-1, width).mean(axis=1).tolist()


def plot(sizes: Sizes, found: list[dict[str, Any]]) -> Figure:
  """The gain of every model, and the losses along both readings as slower levels are added."""
  figure = Figure(figsize=(9, 3.8), layout='constrained')
  left, right = figure.subplots(1, 2)
  marks = ('o', 's', '^', 'v', 'D', 'P', 'X')
  for periods, mark in zip(sizes.periods, marks, strict=False):
    own = [one['row'] for one in found if one['periods'] == periods]
    count, label = levels({'periods': periods}), own[0]['periods']
    (line,) = left.plot([count] * len(own), [row['gain'] for row in own], mark, label=label)
    still = [row['gain_without_learning'] for row in own]
    left.plot([count] * len(own), still, mark, color=line.get_color(), fillstyle='none')
    if all(periods[:count]):
      curve = np.mean([one['curve'] for one in found if one['periods'] == periods], axis=0)
      tokens = (np.arange(len(curve)) + 0.5) * 2 * sizes.length / len(curve)
      right.plot(tokens, curve, color=line.get_color(), label=label)
  left.set(xlabel='levels that learn in context', ylabel='gain, bits per byte')
  left.set_xticks(sorted({levels(one) for one in found}))
  left.legend(title='periods; hollow: rates at zero', fontsize='small')
  right.axvline(sizes.length, color='gray', linewidth=1)
  right.set(xlabel='bytes read', ylabel='bits per byte')
  right.legend(title='periods', fontsize='small')
  for axes in (left, right):
    axes.grid(alpha=0.3)
  return figure
