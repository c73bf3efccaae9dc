"""Compiles a training step for devices that need not be there: does it fit, and how long at least?

  python -m experiments.plan --config=experiments/configs/lm.py:hope-340m --topology=v5e:16x16

The step is that of `experiments.train` with the same settings; the mesh follows from the batch
unless it is given, as in `--config.mesh.data=1 --config.mesh.fsdp=64 --config.mesh.model=4`. A
topology is a TPU slice, such as v5e:4x4, v6e:16x16 or v5p:8x8x8, for which libtpu must be installed
(`tpu/plan.sh` does that), or `local`: the devices here. Nothing runs, and no text is read. The exit
code is 1 if the step does not fit.
"""

import functools
import json
import sys
from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file('config', lock_config=True)
_TOPOLOGY = flags.DEFINE_string('topology', None, 'A TPU slice, or local.', required=True)
_VOCAB_SIZE = flags.DEFINE_integer(
  'vocab_size',
  None,
  'Ids of the tokenizer. If not given, those of config.data.tokenizer, or 32000 where a model of '
  '100M parameters or more has no better one than bytes.',
  lower_bound=1,
)
_JSON = flags.DEFINE_bool('json', False, 'Print one line of JSON instead of a report.')


def main(argv: Sequence[str]) -> None:
  """Prints the report; exits with 1 if the step does not fit."""
  if len(argv) > 1:
    raise app.UsageError(f'Unknown arguments: {argv[1:]}')
  # Here, so that --help need not wait for JAX.
  from experiments import planning

  say = functools.partial(print, file=sys.stderr if _JSON.value else sys.stdout, flush=True)
  found = planning.run(_CONFIG.value, _TOPOLOGY.value, _VOCAB_SIZE.value, say=say)
  if _JSON.value:
    print(json.dumps(planning.record(found)), flush=True)
  sys.exit(not found.plan.fits)


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
