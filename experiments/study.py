"""Runs a study of optimizers, and leaves its records and its figure among the results.

  python -m experiments.study --name=curved_valley [--smoke]

Each study has a table in experiments/RESULTS.md, which
`python -m experiments.results --report_only` makes from the records, and most have a figure in
docs/images.
"""

import importlib
import json
import pathlib
from collections.abc import Sequence

from absl import app, flags

from experiments.reporting import provenance, tables

STUDIES = (
  'language',
  'curved_valley',
  'digits',
  'gradient_horizon',
  'orthogonal_tasks',
  'singular_values',
)
_NAME = flags.DEFINE_enum('name', None, STUDIES, 'Which study.', required=True)
_SMOKE = flags.DEFINE_bool('smoke', False, 'Toy sizes; written only where --folder says.')
_FOLDER = flags.DEFINE_string('folder', None, 'For results and figure, instead of their places.')


def main(argv: Sequence[str]) -> None:
  """Runs the study, prints its table and writes what it found."""
  if len(argv) > 1:
    raise app.UsageError(f'Unknown arguments: {argv[1:]}')
  # Here, so that --help need not wait for JAX.
  import absl.logging
  import jax

  absl.logging.set_verbosity(absl.logging.WARNING)
  device = f'1 x {jax.devices()[0].device_kind}'
  command = f'python -m experiments.study --name={_NAME.value}' + ' --smoke' * _SMOKE.value
  record = provenance.record(command, device)  # Of the code that runs, though it may change.
  study = importlib.import_module(f'experiments.studies.{_NAME.value}')
  found = study.run(study.SMOKE if _SMOKE.value else study.FULL)
  print(tables.markdown(found.rows))
  if _SMOKE.value and not _FOLDER.value:
    return
  folder = pathlib.Path(_FOLDER.value) if _FOLDER.value else None
  results, images = folder or provenance.RESULTS, folder or provenance.ROOT / 'docs' / 'images'
  result = {'title': study.TITLE, **record, 'caption': study.CAPTION, 'rows': found.rows}
  if found.figure is not None:
    result['figure'] = f'{_NAME.value}.png'
    images.mkdir(parents=True, exist_ok=True)
    found.figure.savefig(images / result['figure'], dpi=150)
  results.mkdir(parents=True, exist_ok=True)
  path = results / f'{_NAME.value}.json'
  path.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
  app.run(main)
