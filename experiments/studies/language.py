"""Optimizers on the small language models and English documentation, at equal tuning."""

from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.benchmarks import timing
from experiments.configs import lm
from experiments.studies import Found, records, short_run
from nlx import training

TITLE = 'Optimizers on language models'
CAPTION = (
  '`lm.py:transformer-tiny` and `lm.py:hope-tiny` on their corpus, 100 steps of 1,024 tokens. '
  'Every optimizer was tried at three learning rates on seed 0; the one with the lowest loss was '
  'run with two more seeds. All have the same warm-up, cosine, clipping and weight decay. Rules '
  'for matrices leave the rest to AdamW, at the same rate, but for delta and deep momentum, whose '
  'steps differ in size, at that of the middle of the grid of AdamW. `train loss` is the mean of '
  'the last 20 steps in nats per byte. Times are medians of the whole step, the optimizers taking '
  'turns.'
)


class Sizes(NamedTuple):
  """What is measured."""

  models: tuple[str, ...] = ('transformer-tiny', 'hope-tiny')
  steps: int = 100
  seeds: tuple[int, ...] = (0, 1, 2)
  contenders: tuple[str, ...] | None = None  # All if None.
  tries: int = 3  # Learning rates of each optimizer.
  turns: int = 7  # Timed steps of each optimizer.


Rates = tuple[float, float, float]

FULL = Sizes()
SMOKE = Sizes(('transformer-smoke',), 2, (0,), ('delta_momentum',), tries=1, turns=1)
# The rates at which each optimizer is tried, by family: about three times the one before, around
# the best of a first look.
RATES: dict[str, dict[str, Rates]] = {
  'transformer': {
    'adamw': (7e-4, 2e-3, 6e-3),
    'ademamix': (2e-3, 6e-3, 1.8e-2),
    'muon': (6e-3, 1.8e-2, 5.4e-2),
    'm3': (2e-3, 6e-3, 1.8e-2),
    'delta_momentum': (0.03, 0.1, 0.3),
    'deep_momentum': (5e-4, 1.5e-3, 4.5e-3),
  },
  'hope': {
    'adamw': (1.8e-2, 5.4e-2, 1.62e-1),
    'ademamix': (1.8e-2, 5.4e-2, 1.62e-1),
    'muon': (1.8e-2, 5.4e-2, 1.62e-1),
    'm3': (1.8e-2, 5.4e-2, 1.62e-1),
    'delta_momentum': (0.1, 0.3, 0.9),
    'deep_momentum': (1.5e-3, 4.5e-3, 1.35e-2),
  },
}
OWN_SCALE = ('delta_momentum', 'deep_momentum')  # Their rates are of no use to AdamW.

STYLES = ('-', '--', '-.', ':', (0, (5, 1)), (0, (1, 1)))


def run(sizes: Sizes) -> Found:
  """Returns a row for each model, optimizer and seed, and the mean curves."""
  rows, figure = [], Figure(figsize=(9, 3.8 * len(sizes.models)), layout='constrained')
  grid = figure.subplots(len(sizes.models), 2, squeeze=False)
  for model, axes in zip(sizes.models, grid, strict=True):
    tuned = {name: tune(sizes, model, name) for name in sizes.contenders or RATES['hope']}
    seconds = time_steps(sizes, model, {name: rate for name, (rate, _) in tuned.items()})
    for name, (rate, runs) in tuned.items():
      at_edge = rate != RATES[_family(model)][name][1]
      for seed, one in zip(sizes.seeds, runs, strict=True):
        rows.append(
          {
            'model': model,
            'optimizer': name,
            'rate': f'{rate:g}' + ', at the edge' * at_edge,
            'seed': seed,
            'train_loss': short_run.last_loss(one['losses']),
            'held_out_bits_per_byte': one['bits_per_byte'],
            'ms_per_step': 1e3 * seconds[name],
          }
        )
    curves = {name: [one['losses'] for one in runs] for name, (_, runs) in tuned.items()}
    _plot(axes, model, curves, seconds)
  return Found(rows, figure)


def tune(sizes: Sizes, model: str, name: str) -> tuple[float, list[dict[str, Any]]]:
  """Returns the best learning rate and its runs, one for each seed."""

  def run(rate, seed):
    key = (model, name, rate, seed, sizes.steps)
    return records.remember('language', key, lambda: train(sizes, model, name, rate, seed))

  rates = RATES[_family(model)][name][: sizes.tries]
  tried = {rate: run(rate, sizes.seeds[0]) for rate in rates}
  losses = {rate: short_run.last_loss(one['losses']) for rate, one in tried.items()}
  best = min(losses, key=lambda rate: losses[rate])
  print(model, name, losses, flush=True)
  return best, [tried[best], *(run(best, seed) for seed in sizes.seeds[1:])]


def train(sizes: Sizes, model: str, name: str, rate: float, seed: int) -> dict[str, Any]:
  """Trains once."""
  (trained,) = short_run.train([configure(sizes, model, name, rate, seed)])
  return {'losses': trained.losses, 'bits_per_byte': trained.bits_per_byte}


def time_steps(sizes: Sizes, model: str, rates: dict[str, float]) -> dict[str, float]:
  """Returns the seconds of a step of each optimizer, which take turns."""
  steps = []
  for name, rate in rates.items():
    task, language = short_run.prepare(configure(sizes, model, name, rate, 0))
    steps.append(Step(task, language.params, seed=0))
    steps[-1].advance()
  return dict(zip(rates, timing.medians(steps, sizes.turns), strict=True))


class Step:
  """A training step that goes on from its own last state."""

  def __init__(self, task: training.Task, params: Any, seed: int):
    """Compiles nothing yet."""
    self.state = training.init_state(params, task.tx, key=jax.random.key(seed))
    self.step, self.batches = training.make_step(task.loss_fn, task.tx), task.batches
    self.batch: Any = None

  def advance(self) -> float:
    """Takes one step on the next batch and returns its loss."""
    self.batch = jax.device_put(next(self.batches))
    return float(self())

  def __call__(self) -> jax.Array:
    """Takes one step, on the last batch again, and returns its loss."""
    self.state, metrics = self.step(self.state, self.batch)
    return metrics['loss']


def _family(model: str) -> str:
  return model.partition('-')[0]


def configure(sizes: Sizes, model: str, name: str, rate: float, seed: int) -> Any:
  """Returns the configuration of one run."""
  config = lm.get_config(model)
  config.seed = seed
  config.training.steps = sizes.steps
  config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, sizes.steps - 1)
  config.optimizer.name, config.optimizer.learning_rate = name, rate
  if name in OWN_SCALE:
    with config.unlocked():
      middle = RATES[_family(model)]['adamw'][1]
      config.optimizer[name].adamw.learning_rate = middle
  return config


def _plot(row: Any, model: str, curves: dict[str, list[list[float]]], seconds: dict) -> None:
  for axes, against in zip(row, ('steps', 'seconds'), strict=True):
    for (name, losses), style in zip(curves.items(), STYLES, strict=False):
      mean = np.mean([_smooth(one) for one in losses], axis=0)
      x = np.arange(1, len(mean) + 1) * (seconds[name] if against == 'seconds' else 1)
      axes.plot(x, mean, linestyle=style, label=name.replace('_', ' '))
    axes.set(xlabel=against, title=model)
    axes.grid(alpha=0.3)
  row[0].set_ylabel('training loss, nats per byte')
  row[0].legend()


def _smooth(losses: list[float], width: int = 10) -> np.ndarray:
  """The mean of each loss and those before it, of at most `width`."""
  sums = np.cumsum(np.insert(losses, 0, 0.0))
  ends = np.arange(1, len(losses) + 1)
  begins = np.maximum(ends - width, 0)
  return (sums[ends] - sums[begins]) / (ends - begins)
