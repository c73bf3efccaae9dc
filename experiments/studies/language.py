"""Optimizers on the small Transformer++ and English documentation, at equal tuning."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments import common, language_model
from experiments.configs import lm
from experiments.studies import Found
from nlx import data, training

TITLE = 'Optimizers on a language model'
CAPTION = (
  '`lm.py:transformer-tiny` on its corpus, 100 steps of 1,024 tokens. Every optimizer was tried at '
  'three learning rates on seed 0; the one with the lowest loss was run with two more seeds. All '
  'have the same warm-up, cosine, clipping and weight decay. Rules for matrices leave the rest to '
  'AdamW, at the same rate, but at 6e-3 for delta and deep momentum, whose steps differ in size. '
  '`train loss` is the mean of the last 20 steps in nats per byte; seconds are of the whole step.'
)


class Sizes(NamedTuple):
  """What is measured."""

  model: str = 'transformer-tiny'
  steps: int = 100
  seeds: tuple[int, ...] = (0, 1, 2)
  contenders: tuple[str, ...] | None = None  # All if None.


class Contender(NamedTuple):
  """An optimizer, the rates that it is tried at, and options beyond those of the configuration."""

  rates: tuple[float, float, float]
  adamw_rate: float | None = None  # For what is no matrix; the same if None.


FULL = Sizes()
SMOKE = Sizes('transformer-smoke', 2, (0,), ('delta_momentum',))
CONTENDERS = {
  'adamw': Contender((2e-3, 6e-3, 1.8e-2)),
  'ademamix': Contender((2e-3, 6e-3, 1.8e-2)),
  'muon': Contender((2e-3, 6e-3, 1.8e-2)),
  'm3': Contender((2e-3, 6e-3, 1.8e-2)),
  'delta_momentum': Contender((0.1, 0.3, 0.9), adamw_rate=6e-3),
  'deep_momentum': Contender((5e-4, 1.5e-3, 4.5e-3), adamw_rate=6e-3),
}

STYLES = ('-', '--', '-.', ':', (0, (5, 1)), (0, (1, 1)))


class Curve(NamedTuple):
  """One run."""

  losses: np.ndarray  # [steps] nats per byte
  bits_per_byte: float  # held out
  seconds: float  # of a step

  @property
  def train_loss(self) -> float:
    """The mean over the last steps; infinite if the run diverged."""
    last = float(np.mean(self.losses[-20:]))
    return last if np.isfinite(last) else float('inf')


def run(sizes: Sizes) -> Found:
  """Returns a row for each optimizer and seed, and the mean curves."""
  rows, curves = [], {}
  for name in sizes.contenders or CONTENDERS:
    contender = CONTENDERS[name]
    tried = {rate: train(sizes, name, rate, sizes.seeds[0]) for rate in contender.rates}
    best = min(tried, key=lambda rate: tried[rate].train_loss)
    rest = [train(sizes, name, best, seed) for seed in sizes.seeds[1:]]
    curves[name] = [tried[best], *rest]
    for seed, curve in zip(sizes.seeds, curves[name], strict=True):
      rows.append(
        {
          'optimizer': name,
          'rate': f'{best:g}' + ('' if best == contender.rates[1] else ', at the edge'),
          'seed': seed,
          'train_loss': curve.train_loss,
          'held_out_bits_per_byte': curve.bits_per_byte,
          'ms_per_step': 1e3 * curve.seconds,
        }
      )
    print(rows[-1], flush=True)
  return Found(rows, _plot(curves))


def train(sizes: Sizes, name: str, rate: float, seed: int) -> Curve:
  """Trains once."""
  config = configure(sizes, name, rate, seed)
  language = common.create(config)
  corpus = data.load(config.data.corpus, language.tokenizer, max_bytes=config.data.max_bytes)
  task = language_model.make_task(config, language, corpus)
  step = training.make_step(task.loss_fn, task.tx)
  state = training.init_state(language.params, task.tx, key=jax.random.key(seed))
  losses, seconds = [], []
  for _ in range(sizes.steps):
    batch = jax.device_put(next(task.batches))
    start = time.perf_counter()
    state, metrics = step(state, batch)
    losses.append(float(metrics['loss']))
    seconds.append(time.perf_counter() - start)
  validation = map(jax.device_put, task.validation)
  loss, _ = training.evaluate(training.make_eval(task.loss_fn), state.params, validation)
  bits = training.bits_per_byte(loss, task.validation_bytes_per_token)
  return Curve(np.array(losses), bits, float(np.median(seconds)))


def configure(sizes: Sizes, name: str, rate: float, seed: int) -> Any:
  """Returns the configuration of one run."""
  config = lm.get_config(sizes.model)
  config.seed = seed
  config.training.steps = sizes.steps
  config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, sizes.steps - 1)
  config.optimizer.name, config.optimizer.learning_rate = name, rate
  adamw_rate = CONTENDERS[name].adamw_rate
  if adamw_rate is not None:
    with config.unlocked():
      config.optimizer[name].adamw.learning_rate = adamw_rate
  return config


def _plot(curves: dict[str, list[Curve]]) -> Figure:
  figure = Figure(figsize=(9, 3.8), layout='constrained')
  for axes, against in zip(figure.subplots(1, 2, sharey=True), ('steps', 'seconds'), strict=True):
    for (name, runs), style in zip(curves.items(), STYLES, strict=False):
      mean = np.mean([_smooth(curve.losses) for curve in runs], axis=0)
      x = np.arange(1, len(mean) + 1)
      if against == 'seconds':
        x = x * np.mean([curve.seconds for curve in runs])
      axes.plot(x, mean, linestyle=style, label=name.replace('_', ' '))
    axes.set(xlabel=against)
    axes.grid(alpha=0.3)
  figure.axes[0].set_ylabel('training loss, nats per byte')
  figure.axes[0].legend()
  return figure


def _smooth(losses: np.ndarray, width: int = 10) -> np.ndarray:
  """The mean of each loss and those before it, of at most `width`."""
  sums = np.cumsum(np.insert(losses, 0, 0.0))
  ends = np.arange(1, len(losses) + 1)
  begins = np.maximum(ends - width, 0)
  return (sums[ends] - sums[begins]) / (ends - begins)
