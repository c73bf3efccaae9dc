"""Many devices: processes, the mesh factory, and the rules by which arrays lie on a mesh."""

from nlx.parallel.mesh import AXES, make_mesh, place
from nlx.parallel.processes import start_processes
from nlx.parallel.sharding import (
  BATCH,
  MESH_AXES,
  RULES,
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
  'MESH_AXES',
  'RULES',
  'batch_sharding',
  'constrain_batch',
  'constrain_fast',
  'make_mesh',
  'place',
  'replicated',
  'shardings',
  'spec',
  'start_processes',
  'sum_over_sequences',
]
