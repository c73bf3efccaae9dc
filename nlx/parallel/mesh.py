"""The one place that makes device meshes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from nlx import core

AXES = ('data', 'fsdp', 'model')


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  model: int = 1,
  *,
  slices: int | None = None,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """Makes a mesh over all devices, with the compiler in charge of every axis.

  Slices are what a fast network connects: those of a TPU pod, or the GPUs of a host. `data` is the
  axis between them, as the one over which a step says the least: the devices of `fsdp` and `model`
  are of one slice.

  Args:
    data: Devices over which the sequences of a batch are divided.
    fsdp: Devices over which parameters are divided.
    model: Devices over which each layer is divided. One of the three sizes may be -1: all
      devices that the others leave.
    slices: How many slices there are; as the devices say if None. 1 to take all devices as they
      come. Where the devices say one, or know of none, processes may be taken for slices by giving
      their number.
    devices: All of them; those of this run if None.

  Returns:
    A mesh with the axes `data`, `fsdp` and `model`.

  Raises:
    ValueError: If a size is neither positive nor -1, the sizes do not use every device, or the
      slices are not those of the devices or do not divide `data`.
  """
  sizes = {'data': data, 'fsdp': fsdp, 'model': model}
  for axis, size in sizes.items():
    if size < 1 and size != -1:
      raise ValueError(f'`{axis}` must be at least 1 device or -1, got {size}.')
  devices = list(jax.devices() if devices is None else devices)
  grid = _arrange(_fill(sizes, len(devices)), slices, devices)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(shape: tuple[int, ...], slices: int | None, devices: list[Any]) -> np.ndarray:
  """The devices in the shape of the mesh, each where its network serves it best."""
  known = {getattr(device, 'slice_index', None) for device in devices}
  slices = len(known) if slices is None else slices
  core.check_positive('slices', slices)
  one = len(known) == 1
  any_shape = {'allow_split_physical_axes': True}  # Whatever that of the slice is.
  if slices == 1:
    if one:
      return mesh_utils.create_device_mesh(shape, devices, **any_shape)
    return np.asarray(devices).reshape(shape)
  found = len({device.process_index for device in devices}) if one else len(known)
  if slices != found:
    kind = 'processes' if one else 'slices'
    raise ValueError(f'`slices` must be 1 or the {found} {kind} of the devices, got {slices}.')
  core.check_divides('slices', slices, 'data', shape[0])
  within, between = (shape[0] // slices, *shape[1:]), (slices, 1, 1)
  return mesh_utils.create_hybrid_device_mesh(
    within, between, devices, process_is_granule=one, **any_shape
  )


def place(tree: Any, layout: Any) -> Any:
  """Lays a tree of arrays out over devices, also over those of other processes.

  Args:
    tree: Arrays and PRNG keys of this process, equal on all processes.
    layout: Where they go: a `NamedSharding` for all, or a tree with one for each.

  Returns:
    The same tree of global arrays.
  """

  def put(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      data = jax.device_put(jax.random.key_data(leaf), sharding)
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jax.device_put(leaf, sharding)

  if isinstance(layout, NamedSharding):
    return jax.tree.map(lambda leaf: put(leaf, layout), tree)
  return jax.tree.map(put, tree, layout)


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
