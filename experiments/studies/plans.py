"""HOPE at its large sizes on TPU slices, compiled without a TPU."""

import functools
import json
import subprocess
import sys
from typing import Any, NamedTuple

from experiments import planning
from experiments.reporting import provenance
from experiments.studies import Found, records

TITLE = 'Training steps compiled for TPU slices'
CAPTION = (
  'The training step of HOPE, 128 sequences of 4096 tokens with a vocabulary of 32,000, as XLA '
  'compiles it for TPUs (`tpu/plan.sh`); nothing ran on a TPU. `mesh` is data x fsdp x model, '
  '`accumulation` the number of microbatches, `gib` what a chip needs, `gib_to_spare` what it has '
  'beside that. `flops_per_token` are those of matrix products, with what the backward pass '
  'computes anew; `over_6_n` compares them with six for each parameter. At the peaks of the chip a '
  'step takes at least the longest of its three times; the latency of its `collectives` is in none '
  'of them. What does not fit is refused, and has no times.'
)


class Case(NamedTuple):
  """One step; the batch decides the mesh if there is none."""

  config: str
  topology: str
  mesh: tuple[int, int, int] | None = None  # data, fsdp, model
  accumulation: int = 1

  def flags(self) -> list[str]:
    """Those of `experiments.plan`."""
    flags = ['--json', f'--config.training.accumulation={self.accumulation}']
    axes = zip(('data', 'fsdp', 'model'), self.mesh or (), strict=bool(self.mesh))
    return [*flags, *(f'--config.mesh.{axis}={size}' for axis, size in axes)]


class Sizes(NamedTuple):
  """What is compiled."""

  cases: tuple[Case, ...]


# As many devices for a sequence, along `model`, as its state needs memory.
FULL = Sizes(
  (
    Case('hope-340m', 'v5e:4x4', (1, 8, 2), 16),
    Case('hope-760m', 'v5e:4x4', (1, 4, 4), 32),
    Case('hope-1b', 'v5e:4x4', (1, 2, 8), 64),
    Case('hope-340m', 'v5e:16x16', (1, 128, 2)),
    Case('hope-760m', 'v5e:16x16', (1, 64, 4), 2),
    Case('hope-1b', 'v5e:16x16', (1, 32, 8), 4),
    Case('hope-340m', 'v6e:16x16', (1, 128, 2)),
    Case('hope-760m', 'v6e:16x16', (1, 128, 2)),
    Case('hope-1b', 'v6e:16x16', (1, 64, 4), 2),
    Case('hope-340m', 'v5p:8x8x8', (1, 128, 4)),
    Case('hope-760m', 'v5p:8x8x8', (1, 128, 4)),
    Case('hope-1b', 'v5p:8x8x8', (1, 128, 4)),
    Case('hope-340m', 'v5e:4x4'),  # Does not fit.
  )
)
SMOKE = Sizes((Case('linear_attention-smoke', planning.LOCAL),))


def run(sizes: Sizes) -> Found:
  """Returns a row for each case; compiles each in a process of its own."""
  rows = []
  for case in sizes.cases:
    rows.append(records.remember('plans', case, functools.partial(compiled, case)))
    print(rows[-1], flush=True)
  return Found(rows, None)


def compiled(case: Case) -> dict[str, Any]:
  """The record of one case, whether it fits or not."""
  config = f'experiments/configs/lm.py:{case.config}'
  if case.topology == planning.LOCAL:
    command = [sys.executable, '-m', 'experiments.plan', f'--config={config}', '--topology=local']
  else:
    command = ['tpu/plan.sh', config, case.topology]
  result = subprocess.run(
    [*command, *case.flags()], cwd=provenance.ROOT, stdout=subprocess.PIPE, text=True
  )
  if not result.stdout:
    raise RuntimeError(f'{case.config} on {case.topology} was not compiled: see above.')
  return json.loads(result.stdout)
