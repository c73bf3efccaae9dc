"""Files that are there as a whole or not at all."""

import os
import pathlib
from collections.abc import Callable
from typing import Any


def replace_file(path: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
  """Has `write` fill a file beside `path`, then gives it that name.

  Whenever this is interrupted, by an error, a kill or a loss of power, `path` is what it was before
  or complete.

  Args:
    path: Of the file; one that is there is replaced.
    write: Fills the file whose path it is given.
  """
  part = path.with_name(f'{path.name}.part')
  try:
    part.touch()
    mode = part.stat().st_mode  # That of any new file; some writers let only the owner read.
    write(part)
    part.chmod(mode)
    _flush(part)  # The name must not outlive a crash that the contents do not.
    os.replace(part, path)
    _flush(path.parent)
  finally:
    part.unlink(missing_ok=True)


def _flush(path):
  """Waits until a file, or the names in a folder, are on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
