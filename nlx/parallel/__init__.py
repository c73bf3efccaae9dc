"""Many devices: processes, the mesh factory, how arrays lie on a mesh, and plans ahead of time."""

from nlx.parallel.chips import Chip, local_chip, tpu_slice
from nlx.parallel.flops import count_flops
from nlx.parallel.mesh import AXES, make_mesh, place
from nlx.parallel.plan import Plan, plan
from nlx.parallel.processes import start_processes
from nlx.parallel.sharding import (
  BATCH,
  MESH_AXES,
  RULES,
  batch_part,
  batch_sharding,
  constrain_batch,
  constrain_fast,
  replicated,
  shardings,
  spec,
  sum_over_sequences,
)

__all__ = [
  'AXES',
  'BATCH',
  'Chip',
  'MESH_AXES',
  'Plan',
  'RULES',
  'batch_part',
  'batch_sharding',
  'constrain_batch',
  'constrain_fast',
  'count_flops',
  'local_chip',
  'make_mesh',
  'place',
  'plan',
  'replicated',
  'shardings',
  'spec',
  'start_processes',
  'sum_over_sequences',
  'tpu_slice',
]
