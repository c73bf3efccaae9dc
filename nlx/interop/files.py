"""Folders of safetensors: one file or several with an index, read lazily and written at once."""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from nlx import core

CONFIG = 'config.json'
WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads a file that holds one JSON object.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If it holds anything else.
  """
  try:
    value = json.loads(path.read_bytes())
  except ValueError as error:
    raise ValueError(f'{path} must be JSON: {error}') from error
  if not isinstance(value, dict):
    raise ValueError(f'{path} must hold a JSON object, got {type(value).__name__}.')
  return value


@contextlib.contextmanager
def open_tensors(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Opens the tensors of a checkpoint; none is read before it is asked for.

  Args:
    folder: Holds model.safetensors, which comes first, or model.safetensors.index.json.

  Yields:
    For the name of each tensor the open file that has it, with `get_slice` and `get_tensor`.

  Raises:
    FileNotFoundError: If there is neither, or a file of the index is missing.
    ValueError: If a file is damaged or lacks a tensor that the index says it has.
  """
  import safetensors

  with contextlib.ExitStack() as stack:

    def open_file(name):
      try:
        path = stack.enter_context(core.local_copy(folder / name))
        return stack.enter_context(safetensors.safe_open(path, framework='numpy'))
      except safetensors.SafetensorError as error:
        raise ValueError(f'{folder / name} is no complete safetensors file: {error}') from error

    if (folder / WEIGHTS).exists():
      file = open_file(WEIGHTS)
      yield dict.fromkeys(file.keys(), file)
    elif (folder / INDEX).exists():
      places = read_json(folder / INDEX).get('weight_map', {})
      files = {name: open_file(name) for name in sorted(set(places.values()))}
      has = {name: set(file.keys()) for name, file in files.items()}
      for tensor, name in places.items():
        if tensor not in has[name]:
          raise ValueError(f'{INDEX} has {tensor!r} in {name}, which lacks it.')
      yield {tensor: files[name] for tensor, name in places.items()}
    else:
      raise FileNotFoundError(f'There is neither {WEIGHTS} nor {INDEX} in {folder}.')


def write_tensors(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
  """Writes a safetensors file; until it is complete, a file of before stays.

  Args:
    path: Of the file.
    tensors: Arrays, contiguous in memory.
  """
  import safetensors.numpy

  # Readers of the format want to know the order of the axes; 'pt' is that of torch.
  metadata = {'format': 'pt'}
  core.replace_file(path, lambda part: safetensors.numpy.save_file(tensors, part, metadata))


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  """Writes a JSON object; until it is complete, a file of before stays."""
  core.write_text(path, json.dumps(value, indent=2) + '\n')
