"""Domains of text in sequence: what a language model forgets of the first."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import language_model
from experiments.studies import Found, records, short_run
from nlx import data, evaluation

TITLE = 'One domain of text after another'
CAPTION = (
  'Language models of width 64 and equally many parameters learn English documentation, then '
  'Python, C headers and JSON (of each at most 400,000 bytes, less a tenth that is held out), '
  'then the documentation again: 75 steps of 1,024 tokens each, one optimizer throughout, at a '
  'constant rate, of four the best for each of the two families at size tiny, or within 0.003 '
  'bits of it (see learning rates). Columns `after ...` are bits per byte on 8,192 held-out bytes '
  'of the documentation, read in windows of 512, after each phase; `forgotten` is the rise from '
  'the first phase to the worst of the next three, and `forgotten_in_one_stream` the same where '
  'all 8,192 bytes are read as one text, in which HOPE learns as it goes. `average`, `forgetting` '
  'and `forward transfer` are those of `nlx.evaluation.continual_scores` over the four domains; C '
  'headers and JSON repeat themselves, so that what is held out of them is in part known. `HOPE, '
  '1 level` has three MLP blocks per layer, of which one learns in context, every 64 tokens; with '
  '3 levels they learn every 64, 128 and 256, at rates that begin in proportion, 0.4 for 64. Slow '
  'weights learn every step, but for `1-4-16 steps` and `1-16-128 steps`: there the second and '
  'the third block of every layer take a step, with the mean gradient, once in so many; 128 is '
  'longer than a phase.'
)


class Sizes(NamedTuple):
  """What is trained."""

  steps: int = 75  # of each phase
  seeds: tuple[int, ...] = (0, 1, 2)
  held_out: int = 8192  # bytes of each domain
  smoke: bool = False


FULL = Sizes()
SMOKE = Sizes(2, (0,), held_out=512, smoke=True)
DOMAINS = ('documentation', 'python_source', 'c_headers', 'configuration')
PHASES = (*DOMAINS, DOMAINS[0])
MAX_BYTES = 400_000


class Contender(NamedTuple):
  """A model, and how often its MLP blocks learn across steps."""

  family: str
  fields: dict[str, Any] = {}  # of `config.model`
  periods: tuple[int, ...] = ()  # in steps, of each MLP block of a layer; every step if not given


ONE_LEVEL, THREE_LEVELS = short_run.levels(64, 0, 0), short_run.levels(64, 128, 256)
CONTENDERS = {
  'Transformer++': Contender('transformer'),
  'HOPE, 1 level': Contender('hope', ONE_LEVEL),
  'HOPE, 3 levels': Contender('hope', THREE_LEVELS),
  'HOPE, 1 level, 1-4-16 steps': Contender('hope', ONE_LEVEL, (1, 4, 16)),
  'HOPE, 3 levels, 1-4-16 steps': Contender('hope', THREE_LEVELS, (1, 4, 16)),
  'HOPE, 3 levels, 1-16-128 steps': Contender('hope', THREE_LEVELS, (1, 16, 128)),
}


def run(sizes: Sizes) -> Found:
  """Returns a row for each model and seed, and the curves."""
  rows: list[dict[str, Any]] = []
  curves: dict[str, list[np.ndarray]] = {}
  for name in list(CONTENDERS)[:1] if sizes.smoke else CONTENDERS:
    for seed, found in zip(sizes.seeds, remembered(sizes, name), strict=True):
      table = np.asarray(found['bits_per_byte'])
      curves.setdefault(name, []).append(table)
      streams = np.asarray(found['in_one_stream'])
      columns = {**summary(found['initial'], table, streams), 'diverged': found['diverged']}
      rows.append({'model': name, 'seed': seed, **columns})
      print(rows[-1], flush=True)
  return Found(rows, plot(curves))


def remembered(sizes: Sizes, name: str) -> list[dict[str, Any]]:
  """What the runs of a model leave, one for each seed."""
  return records.remember('domains', (name, sizes), lambda: learn(sizes, name))


def learn(sizes: Sizes, name: str) -> list[dict[str, Any]]:
  """Learns domain after domain; scores [phases, domains] on each after each."""
  configs = [configure(sizes, name, seed) for seed in sizes.seeds]
  runs = short_run.SideBySide(configs)
  language = runs.languages[0]
  corpora = {
    domain: data.load(domain, language.tokenizer, max_bytes=MAX_BYTES) for domain in DOMAINS
  }
  held_out = {
    domain: jnp.asarray(corpus.validation.tokens[None, : sizes.held_out + 1], jnp.int32)
    for domain, corpus in corpora.items()
  }

  def score(run):
    params = runs.params(run)
    return [bits(language, params, held_out[domain]) for domain in DOMAINS]

  found: list[dict[str, Any]] = [
    {'initial': score(run), 'bits_per_byte': [], 'in_one_stream': []}
    for run in range(len(sizes.seeds))
  ]
  for phase, domain in enumerate(PHASES):
    for i, seed in enumerate(sizes.seeds):
      configs[i].seed = seed * len(PHASES) + phase  # Of the order of the batches.
      runs.streams[i] = language_model.make_task(configs[i], language, corpora[domain]).batches
    for _ in range(sizes.steps):
      runs.advance()
    for i, record in enumerate(found):
      record['bits_per_byte'].append(score(i))
      stream = bits(language, runs.params(i), held_out[DOMAINS[0]], sizes.held_out)
      record['in_one_stream'].append(stream)
      record['diverged'] = bool(runs.state.failed_step[i])
  return found


def configure(sizes: Sizes, name: str, seed: int) -> Any:
  """Returns the configuration of one run."""
  contender = CONTENDERS[name]
  total, model = sizes.steps * len(PHASES), contender.fields
  config = short_run.small(contender.family, smoke=sizes.smoke, seed=seed, steps=total, **model)
  config.optimizer.floor = 1.0
  if contender.periods:
    config.optimizer.name = 'multi_rate'
    config.optimizer.multi_rate.periods = {
      rf"\['blocks'\]\[{i}\]": period for i, period in enumerate(contender.periods)
    }
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
  figure = Figure(figsize=(10, 3.8), layout='constrained')
  styles = ('-', '--', '-.', ':', (0, (5, 1)), (0, (1, 3)))
  for j, (axes, domain) in enumerate(zip(figure.subplots(1, len(DOMAINS)), DOMAINS, strict=True)):
    for (name, tables), style in zip(curves.items(), styles[: len(curves)], strict=True):
      scores = np.asarray(tables)[:, :, j]
      phases = np.arange(1, scores.shape[1] + 1)
      axes.plot(phases, scores.mean(axis=0), linestyle=style, marker='.', label=name)
    axes.set(title=domain.replace('_', ' '), xlabel='phase')
    axes.grid(alpha=0.3)
  figure.axes[0].set_ylabel('bits per byte')
  handles, labels = figure.axes[0].get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside lower center', ncols=3, fontsize='small')
  return figure
