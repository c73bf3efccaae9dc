"""The runs whose numbers are reported, and the results file that they make."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from experiments import provenance
from experiments.configs import lm

MODELS = ('hope', 'transformer')
CONFIGS = 'experiments/configs/lm.py'
FIELDS = ('parameters', 'tokens', 'val_bits_per_byte', 'tokens_per_second', 'wall_seconds')
CAPTION = (
  'Bits per byte on the held-out text of `{config}:hope-{size}` and `{config}:transformer-{size}`, '
  'trained on equal batches of equal tokens. Speed is of training alone; wall time adds '
  'compilation, evaluation and checkpoints.'
)
# What may not change between a finished run and what is reported now.
_FIXED = ('seed', 'model', 'data', 'optimizer', 'training')


def train(name: str, seed: int, runs: pathlib.Path) -> None:
  """Trains `lm.py:name` in a process of its own, unless that is done.

  Raises:
    ValueError: If the finished run is of another configuration.
  """
  workdir = _workdir(name, seed, runs)
  if (workdir / 'summary.json').exists():
    _check_current(name, seed, workdir)
    return
  workdir.mkdir(parents=True, exist_ok=True)
  # At the first start: a resumed run counts as one of the code that it began with.
  if not (workdir / 'commit').exists():
    (workdir / 'commit').write_text(provenance.commit() + '\n', encoding='utf-8')
  config = [f'--config={CONFIGS}:{name}', f'--config.seed={seed}']
  command = [sys.executable, '-m', 'experiments.train', *config, f'--workdir={workdir}']
  subprocess.run(command, cwd=provenance.ROOT, check=True)


def write(size: str, runs: pathlib.Path, path: pathlib.Path) -> None:
  """Writes the results file from all finished runs of a size."""
  summaries = dict(_finished(size, runs))
  rows = [_row(workdir, summary) for workdir, summary in summaries.items()]
  first = next(iter(summaries.values()))
  result = {
    'title': 'Language models',
    **provenance.record('python -m experiments.results', first['device']),
    'versions': first['versions'],
    'commit': ', '.join(sorted({row['commit'] for row in rows})),
    'caption': CAPTION.format(config='lm.py', size=size),
    'rows': [{name: value for name, value in row.items() if name != 'commit'} for row in rows],
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


def _finished(size: str, runs: pathlib.Path) -> Iterator[tuple[pathlib.Path, dict[str, Any]]]:
  """Yields the folder and the summary of every finished run, by model, then seed."""
  for model in MODELS:
    folders = runs.glob(f'{model}-{size}-seed*')
    for workdir in sorted(folders, key=lambda path: int(path.name.rpartition('seed')[2])):
      if (workdir / 'summary.json').exists():
        summary = json.loads((workdir / 'summary.json').read_text(encoding='utf-8'))
        _check_current(f'{model}-{size}', summary['config']['seed'], workdir)
        yield workdir, summary


def _row(workdir: pathlib.Path, summary: dict[str, Any]) -> dict[str, Any]:
  numbers = {name: summary[name] for name in FIELDS}
  commit = (workdir / 'commit').read_text(encoding='utf-8').strip()
  return {'model': summary['name'], 'seed': summary['config']['seed'], **numbers, 'commit': commit}


def _check_current(name: str, seed: int, workdir: pathlib.Path) -> None:
  """Raises if a finished run is not what the configuration now says."""
  config = lm.get_config(name)
  config.seed = seed
  now = json.loads(json.dumps(config.to_dict()))
  then = json.loads((workdir / 'summary.json').read_text(encoding='utf-8'))['config']
  changed = [key for key in _FIXED if then[key] != now[key]]
  if changed:
    raise ValueError(
      f'the finished run in {workdir} was made with another `{changed[0]}` than {CONFIGS}:{name} '
      'has now: move it away to train anew.'
    )


def _workdir(name: str, seed: int, runs: pathlib.Path) -> pathlib.Path:
  return runs / f'{name}-seed{seed}'
