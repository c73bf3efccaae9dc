"""What a function may say about the mesh that it is compiled for."""

import math

import jax
from jax.sharding import AxisType, PartitionSpec


def auto_axes() -> dict[str, int]:
  """The axes of the mesh here over which the compiler divides arrays, and their sizes above 1.

  There are none outside of `jax.set_mesh`; axes of a `jax.shard_map` around us are no longer the
  compiler's.
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
  return {name: size for name, size, kind in axes if size > 1 and kind == AxisType.Auto}


def constrain(x: jax.Array, axes: dict[int, str | tuple[str, ...] | None]) -> jax.Array:
  """Says over which axes of the mesh some axes of an array are divided.

  Args:
    x: Any array.
    axes: For axes of x, one or several axes of the mesh, or None: whole on every device, as is what
      the devices do not divide evenly. The compiler decides on the others.

  Returns:
    The same array.
  """
  auto = auto_axes()
  if not auto:
    return x
  entries: list = [PartitionSpec.UNCONSTRAINED] * x.ndim
  for axis, names in axes.items():
    names = (names,) if isinstance(names, str) else names or ()
    names = tuple(name for name in names if name in auto)
    divides = x.shape[axis] % math.prod(auto[name] for name in names) == 0
    entries[axis] = names if names and divides else None
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*entries))
