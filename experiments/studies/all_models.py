"""Every model on English documentation, at equal parameters, tokens and tuning."""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.configs import lm
from experiments.studies import Found, records, short_run

TITLE = 'All models at equal tokens'
CAPTION = (
  'Every model of `experiments/configs/lm.py` at size tiny, a million parameters, on its corpus, '
  'English documentation, for equally many tokens. Each was trained at the same three learning '
  'rates on seed 0; the one with the least held-out loss was run with two more seeds. '
  '`bits_per_byte` is of the last tenth, held out, the mean over seeds, with the `least` and the '
  '`greatest`; a rate at the edge of those tried is named so.'
)


class Sizes(NamedTuple):
  """What is trained."""

  models: tuple[str, ...] = lm.MODELS  # The slowest first.
  size: str = 'tiny'
  steps: int = 300
  rates: tuple[float, ...] = (2e-3, 5e-3, 1.2e-2)
  seeds: tuple[int, ...] = (0, 1, 2)
  processes: int | None = None  # As many as there are cores if None.


class Job(NamedTuple):
  """One run."""

  model: str
  rate: float
  seed: int
  size: str
  steps: int


FULL = Sizes()
SMOKE = Sizes(('linear_attention',), 'smoke', 2, (3e-3,), (0,), processes=1)


def run(sizes: Sizes) -> Found:
  """Returns a row for each model."""
  return compare(
    'all_models',
    sizes.size,
    dict.fromkeys(sizes.models, sizes.steps),
    sizes.rates,
    sizes.seeds,
    sizes.processes or records.cores(),
  )


def compare(
  study: str,
  size: str,
  steps: dict[str, int],
  rates: tuple[float, ...],
  seeds: tuple[int, ...],
  processes: int,
) -> Found:
  """Trains models for given numbers of steps, all tuned alike.

  Args:
    study: What records are kept for.
    size: Of all models.
    steps: Of each model by name; the slowest first.
    rates: Tried on the first seed.
    seeds: Of the runs at the best rate.
    processes: How many runs go on at a time.

  Returns:
    A row for each model, the best first, and their figure.
  """

  def made(keys):
    jobs = [Job(model, rate, seed, size, steps[model]) for model, rate, seed in keys]
    found = records.remember_all(study, jobs, measure, processes=processes)
    return dict(zip(keys, found, strict=True))

  first, *others = seeds
  tried = made([(model, rate, first) for model in steps for rate in rates])
  best = {
    model: min(rates, key=lambda rate: tried[model, rate, first]['bits_per_byte'])
    for model in steps
  }
  tried |= made([(model, best[model], seed) for model in steps for seed in others])
  runs = {model: [tried[model, best[model], seed] for seed in seeds] for model in steps}
  bits = {model: np.array([one['bits_per_byte'] for one in runs[model]]) for model in runs}
  order = sorted(bits, key=lambda model: bits[model].mean())
  edges = (min(rates), max(rates))
  rows = [
    {
      'model': model,
      'parameters': runs[model][0]['parameters'],
      'steps': steps[model],
      'tokens': runs[model][0]['tokens'],
      'rate': f'{best[model]:g}' + ', at the edge' * (best[model] in edges),
      'bits_per_byte': float(bits[model].mean()),
      'least': float(bits[model].min()),
      'greatest': float(bits[model].max()),
    }
    for model in order
  ]
  return Found(rows, plot({model: bits[model] for model in order}))


def measure(job: Job) -> dict[str, Any]:
  """Trains once; a run that diverges has infinitely many bits."""
  config = configure(job)
  (trained,) = short_run.train([config])
  bits = trained.bits_per_byte
  return {
    'bits_per_byte': bits if np.isfinite(bits) else float('inf'),
    'parameters': trained.language.model.num_parameters(),
    'tokens': job.steps * config.data.batch_size * config.data.seq_len,
  }


def configure(job: Job) -> Any:
  """The configuration of a run."""
  config = lm.get_config(f'{job.model}-{job.size}')
  config.seed = job.seed
  config.training.steps = job.steps
  config.optimizer.learning_rate = job.rate
  config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, job.steps - 1)
  return config


def plot(bits: dict[str, np.ndarray]) -> Figure:
  """A row for each model, the best first, with a point for each seed."""
  figure = Figure(figsize=(7, 0.6 + 0.3 * len(bits)), layout='constrained')
  axes = figure.add_subplot()
  for row, values in enumerate(bits.values()):
    axes.plot(values, np.full(len(values), row), 'o', color='black', alpha=0.6, markersize=4)
    axes.plot(values.mean(), row, '|', color='black', markersize=14)
  axes.set_yticks(range(len(bits)), list(bits))
  axes.invert_yaxis()
  axes.set_xlabel('bits per byte, held out')
  axes.grid(alpha=0.3)
  return figure
