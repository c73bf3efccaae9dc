"""Domains of text in sequence: what a language model forgets of the first."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import language_model
from experiments.studies import Found, short_run
from nlx import data, evaluation

TITLE = 'One domain of text after another'
CAPTION = (
  'Language models of width 64 and equally many parameters learn English documentation, then '
  'Python, C headers and JSON (of each at most 400,000 bytes, less a tenth that is held out), '
  'then the documentation again: 75 steps of 1,024 tokens each, one optimizer throughout, at a '
  'constant rate. Columns `after ...` are bits per byte on 8,192 held-out bytes of the '
  'documentation, read in windows of 512, after each phase; `forgotten` is the rise from the '
  'first phase to the worst of the next three, and `forgotten_in_one_stream` the same where all '
  '8,192 bytes are read as one text, in which HOPE learns as it goes. `average`, `forgetting` and '
  '`forward transfer` are those of `nlx.evaluation.continual_scores` over the four domains; C '
  'headers and JSON repeat themselves, so that what is held out of them is in part known. `HOPE, '
  '1 level` has three MLP blocks per layer, of which one learns in context, every 64 tokens; with '
  '3 levels they learn every 64, 128 and 256, at rates that begin in proportion, 0.4 for 64. With '
  '`slow steps` the second and third block also take a training step only every 4 and 16 steps, '
  'with the mean gradient, so that they move less in all. Each model had three learning rates on '
  'the first phase of seed 0; `rate_at_edge` says where the best is the smallest or the largest.'
)


class Sizes(NamedTuple):
  """What is trained."""

  steps: int = 75  # of each phase
  seeds: tuple[int, ...] = (0, 1, 2)
  tries: int = 3  # learning rates
  held_out: int = 8192  # bytes of each domain
  smoke: bool = False


FULL = Sizes()
SMOKE = Sizes(2, (0,), tries=1, held_out=512, smoke=True)
DOMAINS = ('documentation', 'python_source', 'c_headers', 'configuration')
PHASES = (*DOMAINS, DOMAINS[0])
Run = tuple[float, int]  # Learning rate and seed.
MAX_BYTES = 400_000
SLOW_STEPS = {r"\['blocks'\]\[1\]": 4, r"\['blocks'\]\[2\]": 16}  # Of parameters' paths.


class Contender(NamedTuple):
  """A model, the rates it is tried at, and the periods of its parameters in steps."""

  family: str
  fields: dict[str, Any]
  rates: tuple[float, ...]
  periods: dict[str, int] = {}


ONE_LEVEL, THREE_LEVELS = short_run.levels(64, 0, 0), short_run.levels(64, 128, 256)
RATES = (5e-3, 1.6e-2, 4.8e-2)
CONTENDERS = {
  'Transformer++': Contender('transformer', {}, (1.5e-3, 4.5e-3, 1.35e-2)),
  'HOPE, 1 level': Contender('hope', ONE_LEVEL, RATES),
  'HOPE, 3 levels': Contender('hope', THREE_LEVELS, RATES),
  'HOPE, 1 level, slow steps': Contender('hope', ONE_LEVEL, RATES, SLOW_STEPS),
  'HOPE, 3 levels, slow steps': Contender('hope', THREE_LEVELS, RATES, SLOW_STEPS),
}


def run(sizes: Sizes) -> Found:
  """Returns a row for each model and seed, and the curves."""
  rows: list[dict[str, Any]] = []
  curves: dict[str, list[np.ndarray]] = {}
  names = list(CONTENDERS)[:1] if sizes.smoke else list(CONTENDERS)
  for name in names:
    rate = tune(sizes, name)
    runs = [(rate, seed) for seed in sizes.seeds]
    for seed, found in zip(sizes.seeds, remembered(sizes, name, runs, len(PHASES)), strict=True):
      table = np.asarray(found['bits_per_byte'])
      curves.setdefault(name, []).append(table)
      rows.append(
        {
          'model': name,
          'rate': rate,
          'rate_at_edge': rate in (CONTENDERS[name].rates[0], CONTENDERS[name].rates[-1]),
          'seed': seed,
          **summary(found['initial'], table, np.asarray(found['in_one_stream'])),
        }
      )
      print(rows[-1], flush=True)
  return Found(rows, plot(curves))


def tune(sizes: Sizes, name: str) -> float:
  """The rate with the lowest loss at the end of the first phase."""
  rates = CONTENDERS[name].rates[-sizes.tries :]
  tried = remembered(sizes, name, [(rate, sizes.seeds[0]) for rate in rates], 1)
  losses = {rate: one['first_loss'] for rate, one in zip(rates, tried, strict=True)}
  print(name, losses, flush=True)
  return min(losses, key=lambda rate: losses[rate])


def remembered(sizes: Sizes, name: str, runs: list[Run], phases: int) -> list[dict[str, Any]]:
  """What runs of a model through the first phases leave."""
  key = (name, runs, phases, sizes)
  return short_run.remember('domains', key, lambda: learn(sizes, name, runs, phases))


def learn(sizes: Sizes, name: str, runs: list[Run], phases: int) -> list[dict[str, Any]]:
  """Learns domain after domain; scores [phases, domains] on each after each."""
  configs = [configure(sizes, name, *run) for run in runs]
  side_by_side = short_run.SideBySide(configs)
  language = side_by_side.languages[0]
  corpora = {
    domain: data.load(domain, language.tokenizer, max_bytes=MAX_BYTES) for domain in DOMAINS
  }
  held_out = {
    domain: jnp.asarray(corpus.validation.tokens[None, : sizes.held_out + 1], jnp.int32)
    for domain, corpus in corpora.items()
  }
  found: list[dict[str, Any]] = [{'bits_per_byte': [], 'in_one_stream': []} for _ in runs]

  def score(run):
    params = side_by_side.params(run)
    return [bits(language, params, held_out[domain]) for domain in DOMAINS]

  if phases > 1:
    for i, record in enumerate(found):
      record['initial'] = score(i)
  for phase, domain in enumerate(PHASES[:phases]):
    for i, config in enumerate(configs):
      config.seed = runs[i][1] * len(PHASES) + phase  # Of the order of the batches.
      task = language_model.make_task(config, language, corpora[domain])
      side_by_side.streams[i] = task.batches
    losses = np.stack([side_by_side.advance() for _ in range(sizes.steps)], axis=1)
    for i, record in enumerate(found):
      record.setdefault('first_loss', short_run.last_loss(losses[i].tolist()))
      if phases > 1:
        stream = bits(language, side_by_side.params(i), held_out[DOMAINS[0]], sizes.held_out)
        record['bits_per_byte'].append(score(i))
        record['in_one_stream'].append(stream)
  return found


def configure(sizes: Sizes, name: str, rate: float, seed: int) -> Any:
  """Returns the configuration of one run."""
  contender, total = CONTENDERS[name], sizes.steps * len(PHASES)
  config = short_run.small(
    contender.family, smoke=sizes.smoke, seed=seed, steps=total, **contender.fields
  )
  config.optimizer.learning_rate, config.optimizer.floor = rate, 1.0
  if contender.periods:
    config.optimizer.name = 'multi_rate'
    with config.unlocked():
      config.optimizer.multi_rate.periods = contender.periods
  return config


def bits(language: Any, params: Any, text: jax.Array, window: int = 512) -> float:
  """Mean bits per byte of a text [1, T + 1], read in windows from fresh states."""
  length = (text.shape[1] - 1) // window * window
  begins = np.arange(0, length, window)
  texts = jnp.concatenate([text[:, begin : begin + window + 1] for begin in begins])
  return float(short_run.read(language.graph, params, texts).mean())


def summary(initial: list[float], table: np.ndarray, streams: np.ndarray) -> dict[str, float]:
  """The documentation after each phase, and what was kept of all domains before it returned."""
  first, count = table[:, 0], len(DOMAINS)
  scores = evaluation.continual_scores(table[:count], initial, higher_is_better=False)
  columns = {f'after_{i + 1}_{domain}': float(first[i]) for i, domain in enumerate(PHASES)}
  return columns | {
    'forgotten': float(first[1:count].max() - first[0]),
    'forgotten_in_one_stream': float(streams[1:count].max() - streams[0]),
    'average': float(scores.average),
    'forgetting': float(scores.forgetting),
    'forward_transfer': float(scores.forward_transfer),
  }


def plot(curves: dict[str, list[np.ndarray]]) -> Figure:
  """Bits per byte on each domain after each phase, the mean over seeds."""
  figure = Figure(figsize=(10, 3.2), layout='constrained')
  for j, (axes, domain) in enumerate(zip(figure.subplots(1, len(DOMAINS)), DOMAINS, strict=True)):
    for (name, tables), style in zip(curves.items(), ('-', '--', '-.', ':'), strict=False):
      scores = np.asarray(tables)[:, :, j]
      phases = np.arange(1, scores.shape[1] + 1)
      axes.plot(phases, scores.mean(axis=0), linestyle=style, marker='.', label=name)
    axes.set(title=domain.replace('_', ' '), xlabel='phase')
    axes.grid(alpha=0.3)
  figure.axes[0].set_ylabel('bits per byte')
  figure.axes[0].legend(fontsize='small')
  return figure
