"""The runs whose numbers are reported, and the results files that they make."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import ml_collections

from experiments.configs import lm
from experiments.reporting import provenance

MODELS = ('hope', 'transformer')
CONFIGS = 'experiments/configs/lm.py'
# Peak learning rates that every model of a size is tried with, on seed 0.
RATES = {'smoke': (3e-3,), 'tiny': (1.5e-3, 3e-3, 8e-3, 1.6e-2)}
FIELDS = ('parameters', 'tokens', 'val_bits_per_byte', 'tokens_per_second', 'wall_seconds')
RATE_FIELDS = ('learning_rate', 'val_bits_per_byte')
_CAPTION = (
  'Bits per byte on the held-out text of `lm.py:hope-{size}` and `lm.py:transformer-{size}`, '
  'trained on equal batches of equal tokens, each at the best of its learning rates below, or '
  'within 0.003 bits of it. Speed is of training alone; wall time adds compilation, evaluation and '
  'checkpoints.'
)
_RATE_CAPTION = 'The same models and tokens at other peak learning rates, seed 0.'
# What may not change between a finished run and what is reported now.
_FIXED = ('seed', 'model', 'data', 'optimizer', 'training')


class Run(NamedTuple):
  """A reported run of `lm.py:name`."""

  name: str
  seed: int
  learning_rate: float | None = None  # That of the configuration if None.

  @property
  def config(self) -> ml_collections.ConfigDict:
    """The whole configuration."""
    config = lm.get_config(self.name)
    config.seed = self.seed
    if self.learning_rate is not None:
      config.optimizer.learning_rate = self.learning_rate
    return config

  def workdir(self, runs: pathlib.Path) -> pathlib.Path:
    """The folder of the run below the folder of all runs."""
    rate = '' if self.learning_rate is None else f'-lr{self.learning_rate:g}'
    return runs / f'{self.name}-seed{self.seed}{rate}'


def with_seeds(size: str, seeds: Iterable[int]) -> list[Run]:
  """Returns the runs of every model of a size, one per seed."""
  return [Run(f'{model}-{size}', seed) for seed in seeds for model in MODELS]


def with_rates(size: str) -> list[Run]:
  """Returns the runs of every model of a size, one per learning rate."""

  def run(name, rate):
    is_default = rate == lm.get_config(name).optimizer.learning_rate
    return Run(name, 0, None if is_default else rate)

  return [run(f'{model}-{size}', rate) for model in MODELS for rate in RATES[size]]


def train(run: Run, runs: pathlib.Path) -> None:
  """Trains in a process of its own, unless that is done.

  Raises:
    ValueError: If the finished run is of another configuration.
  """
  workdir = run.workdir(runs)
  if (workdir / 'summary.json').exists():
    _check_current(run, workdir)
    return
  workdir.mkdir(parents=True, exist_ok=True)
  # At the first start: a resumed run counts as one of the code that it began with.
  if not (workdir / 'commit').exists():
    (workdir / 'commit').write_text(provenance.commit() + '\n', encoding='utf-8')
  config = [f'--config={CONFIGS}:{run.name}', f'--config.seed={run.seed}']
  if run.learning_rate is not None:
    config.append(f'--config.optimizer.learning_rate={run.learning_rate}')
  command = [sys.executable, '-m', 'experiments.train', *config, f'--workdir={workdir}']
  subprocess.run(command, cwd=provenance.ROOT, check=True)


def write(size: str, seeds: Iterable[int], runs: pathlib.Path, results: pathlib.Path) -> None:
  """Writes language_model.json and learning_rates.json from finished runs."""
  rows = [_row(run, runs, FIELDS) for run in with_seeds(size, seeds)]
  _write(results / 'language_model.json', 'Language models', _CAPTION.format(size=size), rows)
  rows = [_row(run, runs, RATE_FIELDS) for run in with_rates(size)]
  _write(results / 'learning_rates.json', 'Learning rates', _RATE_CAPTION, rows)


def _write(path, title, caption, rows):
  origins = [row.pop('origin') for row in rows]
  result = {
    'title': title,
    **provenance.record('python -m experiments.results', origins[0]['device']),
    'versions': origins[0]['versions'],
    'commit': ', '.join(sorted({origin['commit'] for origin in origins})),
    'caption': caption,
    'rows': sorted(rows, key=lambda row: MODELS.index(row['model'].split('-')[0])),
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


def _row(run: Run, runs: pathlib.Path, fields: Iterable[str]) -> dict[str, Any]:
  """One record, with where it comes from as `origin`."""
  workdir = run.workdir(runs)
  summary = json.loads((workdir / 'summary.json').read_text(encoding='utf-8'))
  _check_current(run, workdir)
  known = {**summary, 'learning_rate': summary['config']['optimizer']['learning_rate']}
  origin = {name: summary[name] for name in ('device', 'versions')}
  origin['commit'] = (workdir / 'commit').read_text(encoding='utf-8').strip()
  numbers = {name: known[name] for name in fields}
  return {'model': run.name, 'seed': run.seed, **numbers, 'origin': origin}


def _check_current(run: Run, workdir: pathlib.Path) -> None:
  """Raises if a finished run is not what the configuration now says."""
  now = _effective(json.loads(json.dumps(run.config.to_dict())))
  then = _effective(json.loads((workdir / 'summary.json').read_text(encoding='utf-8'))['config'])
  changed = [key for key in _FIXED if then[key] != now[key]]
  if changed:
    raise ValueError(
      f'the finished run in {workdir} was made with another `{changed[0]}` than '
      f'{CONFIGS}:{run.name} has now: move it away to train anew.'
    )


def _effective(config: dict[str, Any]) -> dict[str, Any]:
  """A configuration without means, what a run notes, and options of other optimizers."""
  optimizer = config['optimizer']
  others = [key for key, value in optimizer.items() if isinstance(value, dict)]
  others = [key for key in others if key != optimizer['name']]
  return {
    **config,
    'data': {k: v for k, v in config['data'].items() if k not in lm.NOTED},
    'model': {k: v for k, v in config['model'].items() if k not in lm.MEANS},
    'optimizer': {k: v for k, v in optimizer.items() if k not in others},
  }
