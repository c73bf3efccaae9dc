"""Runs studies, and leaves their records and figures among the results.

  python -m experiments.study --name=curved_valley [--smoke]
  python -m experiments.study --name=second_reading --name=long_context
  python -m experiments.study --name=all

Each study has a table in experiments/RESULTS.md, which
`python -m experiments.results --report_only` makes from the records, and most have a figure in
docs/images.
"""

import importlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from experiments import studies
from experiments.reporting import provenance, tables

STUDIES = (
  'minute',
  'all_models',
  'equal_time',
  'language',
  'ablation',
  'second_reading',
  'long_context',
  'domains',
  'what_is_forgotten',
  'formal_languages',
  'mad',
  'needles',
  'byte_needles',
  'meshes',
  'plans',
  'one_gpu',
  'continual_digits',
  'curved_valley',
  'digits',
  'gradient_horizon',
  'orthogonal_tasks',
  'singular_values',
)
GPU_STUDIES = ('one_gpu',)
_NAMES = flags.DEFINE_multi_enum(
  'name',
  None,
  [*STUDIES, 'all'],
  'Which studies; those in one call share models. All, without a GPU, leaves out what needs one.',
  required=True,
)
_SMOKE = flags.DEFINE_bool('smoke', False, 'Toy sizes; written only where --folder says.')
_FOLDER = flags.DEFINE_string('folder', None, 'For results and figure, instead of their places.')


def main(argv: Sequence[str]) -> None:
  """Runs the studies, prints their tables and writes what they found."""
  if len(argv) > 1:
    raise app.UsageError(f'Unknown arguments: {argv[1:]}')
  # Here, so that --help need not wait for JAX.
  import absl.logging
  import jax

  absl.logging.set_verbosity(absl.logging.WARNING)
  device = f'1 x {jax.devices()[0].device_kind}'
  names = STUDIES if 'all' in _NAMES.value else _NAMES.value
  if 'all' in _NAMES.value and jax.default_backend() != 'gpu':
    names = [name for name in STUDIES if name not in GPU_STUDIES]
    print(f'Left out, as there is no GPU: {", ".join(GPU_STUDIES)}.', flush=True)
  for name in names:
    command = f'python -m experiments.study --name={name}' + ' --smoke' * _SMOKE.value
    record = provenance.record(command, device)  # Of the code that runs, though it may change.
    study = importlib.import_module(f'experiments.studies.{name}')
    found = study.run(study.SMOKE if _SMOKE.value else study.FULL)
    print(tables.markdown(found.rows), flush=True)
    if _FOLDER.value or not _SMOKE.value:
      write(name, {'title': study.TITLE, **record, 'caption': study.CAPTION}, found)


def write(name: str, result: dict[str, Any], found: studies.Found) -> None:
  """Writes the records of a study, and its figure."""
  folder = pathlib.Path(_FOLDER.value) if _FOLDER.value else None
  results, images = folder or provenance.RESULTS, folder or provenance.ROOT / 'docs' / 'images'
  if found.figure is not None:
    result['figure'] = f'{name}.png'
    images.mkdir(parents=True, exist_ok=True)
    found.figure.savefig(images / result['figure'], dpi=150)
  result['rows'] = found.rows
  results.mkdir(parents=True, exist_ok=True)
  (results / f'{name}.json').write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
  app.run(main)
