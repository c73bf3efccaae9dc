"""Checkpoints: everything an exact resume needs, written beside the run."""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from nlx import core
from nlx.training.step import Params, TrainState


class CheckpointError(RuntimeError):
  """A checkpoint could not be written or read."""


class Restored(NamedTuple):
  """What a checkpoint held."""

  state: TrainState
  data: dict[str, Any]  # State of the data iterator.
  meta: dict[str, Any]  # What the caller saved beside it.
  unreadable: dict[int, str]  # Later steps that could not be read, and why.


class Checkpoints:
  """Saves in the background and keeps the last few.

  A save that fails leaves earlier checkpoints intact: none is deleted before a later one is
  complete.

  Attributes:
    restored_step: Step of the checkpoint that was restored last; None if none was.
    unreadable: Later steps that could not be read then, and why.
  """

  def __init__(self, folder: str | os.PathLike, *, keep: int = 3, read_only: bool = False):
    """Opens a folder of checkpoints.

    Args:
      folder: On the disk or in a bucket; made if missing, unless `read_only`.
      keep: Checkpoints to keep, at least 1.
      read_only: Refuse to write.

    Raises:
      ValueError: If `keep` is smaller than 1, or a folder to write to has a bracket in its path.
    """
    if keep < 1:
      raise ValueError(f'`keep` must be at least 1 checkpoint, got {keep}.')
    self._folder = core.real_path(folder)
    if not read_only and '[' in str(self._folder):  # A pattern in Orbax, which would lose arrays.
      raise ValueError(f'`folder` must have no "[" in its path, got {str(self._folder)!r}.')
    limits = {} if read_only else {'max_to_keep': keep, 'cleanup_tmp_directories': True}
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(read_only=read_only, create=not read_only, **limits),
      item_names=('params', 'rest', 'data', 'meta'),
    )
    self.unreadable: dict[int, str] = {}
    self.restored_step: int | None = None

  def steps(self) -> list[int]:
    """Returns the steps of the complete checkpoints in the folder, in order."""
    return sorted(ocp.utils.checkpoint_steps(self._folder))

  def save(self, state: TrainState, data: dict[str, Any], meta: dict[str, Any]) -> None:
    """Begins to save a state under its step; an earlier save must have ended well.

    Args:
      state: The training state; copied before this returns.
      data: State of the data iterator, as JSON.
      meta: Anything else, as JSON.

    Raises:
      CheckpointError: If this or the save before it failed.
      ValueError: If two leaves have one name once paths are joined by dots, as they are on disk.
    """
    step = int(state.step)
    params, rest = _split(state)
    shapes = {'params': _shapes(params), 'rest': _shapes(rest)}
    args = ocp.args.Composite(
      params=ocp.args.StandardSave(_without_empty(params)),
      rest=ocp.args.StandardSave(_without_empty(rest)),
      data=ocp.args.JsonSave(data),
      meta=ocp.args.JsonSave({'caller': meta, 'shapes': shapes}),
    )
    self.wait()
    try:
      for broken in self.unreadable:
        self._manager.delete(broken)
      self.unreadable = {}
      if step in self.steps():
        raise FileExistsError(f'there is a checkpoint of step {step} already')
      self._manager.save(step, args=args, force=True)
    except Exception as error:
      raise self._failure(error) from error

  def wait(self) -> None:
    """Waits until the last save is complete.

    Raises:
      CheckpointError: If it failed.
    """
    try:
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
    except Exception as error:
      raise self._failure(error) from error

  def restore(self, like: TrainState) -> Restored | None:
    """Restores the latest checkpoint that can be read.

    Args:
      like: A state of the expected structure; its arrays say shapes, dtypes and shardings.

    Returns:
      What it held, or None if there is no checkpoint.

    Raises:
      CheckpointError: If there are checkpoints, but none can be read.
      ValueError: If its shapes are not those of `like`; names the first leaf that differs.
    """
    params, rest = _split(like)
    read = self._latest({'params': params, 'rest': rest})
    if read is None:
      return None
    state = _join(read['params'], read['rest'], like)
    return Restored(state, read['data'], read['meta']['caller'], dict(self.unreadable))

  def restore_params(self, like: Params) -> Params:
    """Restores only the parameters of the latest checkpoint that can be read.

    Args:
      like: A tree of the expected structure; its arrays, or their shapes, say shapes, dtypes and
        shardings.

    Returns:
      The parameters.

    Raises:
      CheckpointError: If there is no checkpoint that can be read.
      ValueError: If its shapes are not those of `like`; names the first leaf that differs.
    """
    read = self._latest({'params': like})
    if read is None:
      raise CheckpointError(f'There is no checkpoint in {self._folder}.')
    return read['params']

  def close(self) -> None:
    """Waits for the last save and frees the resources.

    Raises:
      CheckpointError: If the last save failed.
    """
    try:
      self.wait()
    finally:
      self._manager.close()

  def _latest(self, like: dict[str, Any]) -> dict[str, Any] | None:
    """Reads the items of the latest readable step and notes those that are not."""
    unreadable = {}
    for step in reversed(self.steps()):
      for is_last in (False, True):  # What cannot be read is deleted: a network may fail once.
        try:
          read = self._read(step, like)
        except _ShapeError as error:
          raise ValueError(f'Checkpoint {step} in {self._folder} does not fit: {error}') from None
        except Exception as error:  # Truncated or missing files raise many types.
          if is_last:
            unreadable[step] = f'{type(error).__name__}: {error}'
        else:
          self.unreadable, self.restored_step = unreadable, step
          return read
    if unreadable:
      step, reason = next(iter(unreadable.items()))
      raise CheckpointError(
        f'None of the checkpoints {sorted(unreadable)} in {self._folder} can be read; '
        f'step {step}: {reason}'
      )
    return None

  def _read(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
    notes = self._manager.restore(
      step, args=ocp.args.Composite(data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
    )
    for item, tree in like.items():
      _check_shapes(notes['meta']['shapes'][item], _shapes(tree))
    targets = jax.tree.map(ocp.utils.to_shape_dtype_struct, _without_empty(like))
    arrays = self._manager.restore(
      step,
      args=ocp.args.Composite(
        **{item: ocp.args.StandardRestore(target) for item, target in targets.items()}
      ),
    )
    return {
      **{item: _with_empty(arrays[item], tree) for item, tree in like.items()},
      'data': notes['data'],
      'meta': notes['meta'],
    }

  def _failure(self, error: Exception) -> CheckpointError:
    end = '.' if isinstance(error, FileExistsError) else '; is the disk full?'
    return CheckpointError(
      f'A checkpoint could not be written to {self._folder}{end} Complete checkpoints: '
      f'{self.steps()}. {type(error).__name__}: {error}'
    )


class _ShapeError(Exception):
  """The checkpoint is fine, but belongs to another model."""


def _split(state: TrainState) -> tuple[Params, dict[str, Any]]:
  """Divides a state into its parameters and the rest, with the key as plain integers."""
  rest = {
    'opt_state': state.opt_state,
    'step': state.step,
    'failed_step': state.failed_step,
    'key': jax.random.key_data(state.key),
  }
  return state.params, rest


def _join(params: Params, rest: dict[str, Any], like: TrainState) -> TrainState:
  key = rest['key']
  if jnp.issubdtype(like.key.dtype, jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(key, impl=jax.random.key_impl(like.key))
  return TrainState(params, rest['opt_state'], rest['step'], key, rest['failed_step'])


def _without_empty(tree: Any) -> Any:
  """Leaves out arrays without elements, which Orbax refuses."""
  return jax.tree.map(lambda leaf: leaf if leaf.size else None, tree)


def _with_empty(tree: Any, like: Any) -> Any:
  """Puts arrays without elements back."""
  return jax.tree.map(lambda leaf, found: found if leaf.size else jnp.copy(leaf), like, tree)


def _shapes(tree: Any) -> dict[str, list]:
  """Returns path -> [shape, dtype] of every leaf."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  names = [jax.tree_util.keystr(path, simple=True, separator='.') for path, _ in leaves]
  if twice := [name for name in names if names.count(name) > 1]:
    raise ValueError(f'leaves must have names of their own, but two are {twice[0]!r}.')
  return {jax.tree_util.keystr(path): [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves}


def _check_shapes(saved: dict[str, list], expected: dict[str, list]) -> None:
  """Names the first leaf that is missing, superfluous or of another shape or dtype."""
  for path in [*expected, *saved]:
    if saved.get(path) != expected.get(path):
      has, wants = _leaf(saved, path), _leaf(expected, path)
      raise _ShapeError(f'leaf {path} is {has} in the checkpoint, but {wants} here.')


def _leaf(shapes: dict[str, list], path: str) -> str:
  if path not in shapes:
    return 'missing'
  shape, dtype = shapes[path]
  return f'{dtype}{shape}'
