"""Many devices: the mesh factory and the shardings of batches."""

from nlx.parallel.mesh import AXES, batch_sharding, make_mesh, place, replicated

__all__ = ['AXES', 'batch_sharding', 'make_mesh', 'place', 'replicated']
