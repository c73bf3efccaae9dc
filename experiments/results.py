"""Trains the models whose numbers are reported, and writes experiments/RESULTS.md.

  python -m experiments.results [--seeds=0,1,2] [--report_only] [--smoke]

Takes hours. Every run has a folder of its own below runs/results; run again with the same command,
this goes on where it was. RESULTS.md is made from all of experiments/results/*.json and
experiments/results/notes.md.
"""

import pathlib
import tempfile
from collections.abc import Sequence

from absl import app, flags

from experiments.reporting import page, provenance, runs

_SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds to train with.')
_REPORT_ONLY = flags.DEFINE_bool('report_only', False, 'Train nothing; write RESULTS.md.')
_SMOKE = flags.DEFINE_bool('smoke', False, 'A few steps of toys; a new folder if none is given.')
_FOLDER = flags.DEFINE_string('folder', None, 'With --smoke: where everything is written.')
flags.register_validator(
  'seeds', lambda seeds: all(seed.isdigit() for seed in seeds), '--seeds takes integers.'
)


def main(argv: Sequence[str]) -> None:
  """Trains what is missing, writes language_model.json, learning_rates.json and RESULTS.md."""
  if len(argv) > 1:
    raise app.UsageError(f'Unknown arguments: {argv[1:]}')
  if _FOLDER.value and not _SMOKE.value:
    raise app.UsageError('--folder is for --smoke.')
  size, root, results = 'tiny', provenance.ROOT / 'runs' / 'results', provenance.RESULTS
  if _SMOKE.value:
    folder = pathlib.Path(_FOLDER.value or tempfile.mkdtemp(prefix='nlx-results-'))
    size, root, results = 'smoke', folder / 'runs', folder / 'results'
  if not _REPORT_ONLY.value:
    seeds = [int(seed) for seed in _SEEDS.value]
    for run in [*runs.with_seeds(size, seeds), *runs.with_rates(size)]:
      runs.train(run, root)
    runs.write(size, seeds, root, results)
  print(f'Wrote {page.write(results, provenance.RESULTS / "notes.md")}.')


if __name__ == '__main__':
  app.run(main)
