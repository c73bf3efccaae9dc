"""The one place that makes device meshes."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding

AXES = ('data', 'fsdp', 'model')


def make_mesh(data: int = -1, fsdp: int = 1, model: int = 1) -> Mesh:
  """Makes a mesh over all devices, with the compiler in charge of every axis.

  Args:
    data: Devices over which the sequences of a batch are divided.
    fsdp: Devices over which parameters are divided.
    model: Devices over which each layer is divided. One of the three sizes may be -1: all
      devices that the others leave.

  Returns:
    A mesh with the axes `data`, `fsdp` and `model`.

  Raises:
    ValueError: If a size is neither positive nor -1, or the sizes do not use every device.
  """
  sizes = {'data': data, 'fsdp': fsdp, 'model': model}
  for axis, size in sizes.items():
    if size < 1 and size != -1:
      raise ValueError(f'`{axis}` must be at least 1 device or -1, got {size}.')
  shape = _fill(sizes, jax.device_count())
  return jax.make_mesh(shape, AXES, (AxisType.Auto,) * len(AXES))


def place(tree: Any, shardings: Any) -> Any:
  """Lays a tree of arrays out over devices, also over those of other processes.

  Args:
    tree: Arrays and PRNG keys of this process, equal on all processes.
    shardings: Where they go: a `NamedSharding` for all, or a tree with one for each.

  Returns:
    The same tree of global arrays.
  """

  def put(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      data = jax.device_put(jax.random.key_data(leaf), sharding)
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jax.device_put(leaf, sharding)

  if isinstance(shardings, NamedSharding):
    return jax.tree.map(lambda leaf: put(leaf, shardings), tree)
  return jax.tree.map(put, tree, shardings)


def _fill(sizes: dict[str, int], num_devices: int) -> tuple[int, ...]:
  """Resolves -1 and checks that the sizes multiply to the number of devices."""
  free = [axis for axis, size in sizes.items() if size == -1]
  if len(free) > 1:
    raise ValueError(f'Only one of the mesh axes may be -1, got {" and ".join(free)}.')
  known = 1
  for size in sizes.values():
    known *= max(size, 1)
  remaining, excess = divmod(num_devices, known)
  if excess or (not free and remaining != 1):
    raise ValueError(f'The mesh {sizes} must use all {num_devices} devices.')
  return tuple(remaining if size == -1 else size for size in sizes.values())
