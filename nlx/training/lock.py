"""One run at a time in a folder."""

import contextlib
import pathlib
from typing import IO

from nlx import core

try:
  import fcntl
except ImportError:  # Not on Windows.
  fcntl = None  # type: ignore[assignment]

NAME = '.lock'


def lock(folder: pathlib.Path) -> IO[str] | None:
  """Keeps other processes out of a folder until the file that is returned is closed.

  The operating system opens the lock when the process ends, however it does.

  Args:
    folder: Made if missing.

  Returns:
    The file that holds the lock; None where there are no locks: in a bucket, on Windows, and on
    network disks that have none.

  Raises:
    ValueError: If another process has locked it.
  """
  core.make_folder(folder)
  if core.is_remote(folder) or fcntl is None:
    return None
  file = (folder / NAME).open('w', encoding='utf-8')
  with contextlib.ExitStack() as on_failure:
    on_failure.callback(file.close)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(
        f'`workdir` {str(folder)!r} is in use: another process trains there.'
      ) from None
    except OSError:
      return None
    on_failure.pop_all()
  return file
