"""Trains a language model; run again with the same command, it resumes.

  python -m experiments.train --config=experiments/configs/lm.py:hope-tiny --workdir=runs/tiny

Any setting can be given on the command line, as in `--config.optimizer.learning_rate=1e-3`. Folders
and files may be in a bucket, as in `--workdir=gs://bucket/run`, with the extra `gcs`.
"""

import json
from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file('config', lock_config=True)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run, or gs://BUCKET/FOLDER; made if missing.', required=True
)


def main(argv: Sequence[str]) -> None:
  """Trains, writes the results into the folder and prints the summary as the last line."""
  if len(argv) > 1:
    raise app.UsageError(f'Unknown arguments: {argv[1:]}')
  # Here, so that --help need not wait for JAX.
  from experiments import common, language_model
  from nlx import core, training

  config, workdir = _CONFIG.value, core.as_path(_WORKDIR.value)
  common.start(config)
  common.join(config)
  try:
    summary = language_model.run(config, workdir)
  except training.Preempted as end:
    print(f'{end} The same command goes on from there.', flush=True)
    return
  print(json.dumps(summary), flush=True)


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
