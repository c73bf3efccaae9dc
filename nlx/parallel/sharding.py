"""Where arrays lie on the mesh: rules as data, for every model, optimizer and fast weight.

A rule names the last axes of all parameters whose path ends alike; a table says over which axis of
the mesh each name is divided. The state of an optimizer holds trees like the parameters, so that
its paths end as theirs do and the same rules serve it.

  from nlx import parallel
  mesh = parallel.make_mesh(fsdp=4, model=2)
  state = parallel.place(state, parallel.shardings(state, mesh))
  with jax.set_mesh(mesh):
    state, metrics = step(state, batch)
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from nlx import core

BATCH = ('data', 'fsdp')  # The axes of the mesh over which sequences are divided.

# Of the last axes; those before, such as layers, are never divided.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
  (r'embedding', ('vocab', 'embed')),
  (r'head/kernel', ('embed', 'vocab')),
  (r'up(/kernel)?', ('embed', 'mlp')),
  (r'down(/kernel)?', ('mlp', 'embed')),
  (r'output/kernel', ('heads', 'embed')),
  (r'selection/kernel|log_decays', ('channels', None)),
  (r'rates/kernel', (None, 'channels')),
  (r'(projection|queries|context|recall)/kernel', ('embed', None)),  # Not one head after another.
  (r'\w*weights/[wb]\d?', ('heads', None, None)),
)
MESH_AXES = {
  'embed': 'fsdp',
  'vocab': 'model',
  'mlp': 'model',
  'heads': 'model',
  'channels': 'model',
}
_PATTERNS = tuple(
  (re.compile(rf'(?:.*/)?(?:{pattern})(?:/value|/weight)?'), axes) for pattern, axes in RULES
)


def spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
  """The axes of the mesh over which one array is divided.

  Args:
    path: Its place in a tree, as in 'blocks/cms/blocks/0/up/kernel'.
    shape: Of the array.
    mesh: As `make_mesh` makes it, or one with some of its axes.

  Returns:
    One entry for each axis of the array. None for an axis that no rule names, that the mesh does
    not have, or that the devices do not divide evenly.
  """
  names: tuple[str | None, ...] = ()
  for pattern, axes in _PATTERNS:
    if pattern.fullmatch(path) and len(shape) >= len(axes):
      names = axes
      break
  names = (None,) * (len(shape) - len(names)) + names
  divided = zip(shape, (MESH_AXES[name] if name else None for name in names), strict=True)
  return PartitionSpec(
    *(
      axis if axis in mesh.shape and size % mesh.shape[axis] == 0 else None
      for size, axis in divided
    )
  )


def shardings(tree: Any, mesh: Mesh) -> Any:
  """Where every array of a tree lies.

  Args:
    tree: Arrays or their shapes: parameters, an optimizer's state, or a whole training state.
    mesh: As `make_mesh` makes it.

  Returns:
    A tree of `NamedSharding`, for `place`, or for the shapes that a checkpoint is restored to.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, x: NamedSharding(mesh, spec(_text(path), x.shape, mesh)), tree
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding that divides the leading axis, that of sequences, over `data` and `fsdp`."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def batch_part(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
  """Which part of every batch a process reads, and how many parts there are.

  There is one for each process, but where an axis that divides no sequences, such as `model`, spans
  several: their devices hold the same sequences, and they read the same part.

  Args:
    mesh: As `make_mesh` makes it.
    process: Its index; that of this one if None.

  Returns:
    What `nlx.data.train_batches` takes as `process_index` and `process_count`.

  Raises:
    ValueError: If two processes have some sequences in common, and others not.
  """
  shares = math.prod(mesh.shape[axis] for axis in BATCH)
  held: dict[int, set[int]] = {}
  placed: dict[Any, Any] = dict(batch_sharding(mesh).devices_indices_map((shares,)))
  for device, (rows,) in placed.items():
    held.setdefault(device.process_index, set()).update(range(*rows.indices(shares)))
  parts = sorted({tuple(sorted(rows)) for rows in held.values()})
  if any(len(part) * len(parts) != shares for part in parts):
    raise ValueError(
      f'`mesh` {dict(mesh.shape)} must give the devices of any two processes the same shares of a '
      f'batch, or none in common; got {parts} of {shares}.'
    )
  own = held[jax.process_index() if process is None else process]
  return parts.index(tuple(sorted(own))), len(parts)


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding that keeps a copy on every device of the mesh."""
  return NamedSharding(mesh, PartitionSpec())


def sum_over_sequences(function: Callable[[Any, Any], Any], params: Any, batch: Any) -> Any:
  """A sum over a batch, each device summing over its own sequences.

  Parameters are gathered over `fsdp` before, and gradients are summed after, all that `function`
  does: a loop over time in it holds no communication over `data` and `fsdp`, whatever it learns;
  `model` is left to the compiler. Outside of `jax.set_mesh`, `function` is called as it is.

  Args:
    function: `(params, batch) -> sums`; each sequence for itself.
    params: A tree of arrays.
    batch: A tree of arrays [B, ...].

  Returns:
    What `function` returns for the whole batch.

  Raises:
    ValueError: If the devices do not divide the sequences evenly.
  """
  axes = tuple(axis for axis in BATCH if axis in core.auto_axes())
  if not axes:
    return function(params, batch)
  # Axes of one device divide nothing. JAX constrains the result of every operation where it leaves
  # any axis to the compiler, which nearly doubles the program.
  alone = {axis for axis, size in jax.sharding.get_abstract_mesh().shape.items() if size == 1}
  return jax.shard_map(
    lambda params, batch: jax.lax.psum(function(params, batch), axes),
    in_specs=(PartitionSpec(), PartitionSpec(axes)),
    out_specs=PartitionSpec(),
    axis_names={*axes, *alone},
    check_vma=False,  # Loops begin with constants and go on with what varies over devices.
  )(params, batch)


def constrain_batch(tree: Any) -> Any:
  """Divides the sequences of activations over the devices, inside a jitted function.

  Args:
    tree: Arrays [B, ...].

  Returns:
    The same tree; as it is outside of `jax.set_mesh`.
  """
  return jax.tree.map(lambda x: core.constrain(x, {0: BATCH}), tree)


def constrain_fast(tree: Any, axis: int) -> Any:
  """Lays fast weights out over sequences and as their initial weights lie, but for `fsdp`.

  Args:
    tree: Fast weights, at the paths of the parameters that they begin as.
    axis: Their axis of sequences.

  Returns:
    The same tree; as it is outside of `jax.set_mesh`.
  """
  if not core.auto_axes():
    return tree

  def one(path, x):
    found = spec(_text(path), x.shape, jax.sharding.get_abstract_mesh())
    entries = {i: None if entry == 'fsdp' else entry for i, entry in enumerate(found)}
    return core.constrain(x, entries | {axis: BATCH})

  return jax.tree_util.tree_map_with_path(one, tree)


def _text(path) -> str:
  """The path of a leaf, joined by slashes."""
  return jax.tree_util.keystr(path, simple=True, separator='/')
