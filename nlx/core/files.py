"""Paths on the disk or in a bucket, and files that are there as a whole or not at all.

A bucket of Google Cloud Storage is no disk: it has no folders, and an object is written as a whole,
never appended to or renamed. What that asks for is done here; others call it and need not know.
"""

import contextlib
import glob
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, cast

BUCKETS = 'gs://'  # What a path in a bucket begins with.
_SCHEME = re.compile(r'[a-z][a-z0-9+.-]+:/')


def as_path(path: str | os.PathLike) -> pathlib.Path:
  """Returns the path of a file or folder on the disk or in a bucket.

  Args:
    path: As in `runs/tiny`, `~/runs/tiny` or `gs://bucket/runs/tiny`.

  Returns:
    A `pathlib.Path`; for a bucket an `etils.epath.Path`, which has the same methods to join, read
    and ask. Write with the functions of this file.

  Raises:
    ImportError: If it is in a bucket and the extra `gcs` is not installed.
    ValueError: If it is empty, or begins with another scheme, or with `gs:/`, as pathlib writes
      `gs://`.

  Example:
    >>> as_path('runs') / 'tiny' == pathlib.Path('runs/tiny')
    True
  """
  text = os.fspath(path)
  if not text:
    raise ValueError('`path` must name a file or folder, got an empty text.')
  if _SCHEME.match(text) is None:
    return pathlib.Path(path).expanduser()
  if not is_remote(text):
    raise ValueError(f'`path` must be on the disk or begin with {BUCKETS}, got {text!r}.')
  _bucket_class(text)
  from etils import epath

  return cast(pathlib.Path, epath.Path(text))


def is_remote(path: str | os.PathLike) -> bool:
  """Returns whether a path is in a bucket."""
  return os.fspath(path).startswith(BUCKETS)


def real_path(path: str | os.PathLike) -> pathlib.Path:
  """Returns the absolute path without links; one in a bucket is that already."""
  found = as_path(path)
  return found if is_remote(path) else pathlib.Path(os.path.realpath(found))


def find_files(pattern: str | os.PathLike) -> list[pathlib.Path]:
  """Returns the files that match a glob pattern, in order; `**` descends into folders."""
  if is_remote(pattern):
    found = _buckets().glob(str(pattern), detail=True)
    names = sorted(name for name, info in found.items() if info['type'] == 'file')
    return [as_path(BUCKETS + name) for name in names]
  names = sorted(glob.glob(str(pattern), recursive=True))
  return [path for path in map(pathlib.Path, names) if path.is_file()]


def make_folder(path: pathlib.Path) -> None:
  """Makes a folder, and those above it, if it is not there; a bucket needs none."""
  if not is_remote(path):
    path.mkdir(parents=True, exist_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a UTF-8 file, as `replace_file` does."""
  replace_file(path, lambda part: part.write_text(text, encoding='utf-8'))


def replace_file(path: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
  """Has `write` fill a file beside `path`, then gives it that name.

  Whenever this is interrupted, by an error, a kill or a loss of power, `path` is what it was before
  or complete.

  Args:
    path: Of the file; one that is there is replaced.
    write: Fills the file whose path it is given. It is on the disk, also if `path` is in a bucket.
  """
  if is_remote(path):
    with tempfile.TemporaryDirectory(prefix='nlx-') as folder:
      part = pathlib.Path(folder, path.name)
      write(part)
      _upload(part, path)
    return
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


@contextlib.contextmanager
def local_copy(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a file on the disk, for a library that reads no other.

  Args:
    path: Of the file; one in a bucket is copied to a temporary folder.

  Yields:
    `path`, or that of the copy.

  Raises:
    FileNotFoundError: If it is in a bucket, and not there.
  """
  if not is_remote(path):
    yield path
    return
  with tempfile.TemporaryDirectory(prefix='nlx-') as folder:
    copy = pathlib.Path(folder, path.name)
    _buckets().get_file(str(path), str(copy))
    yield copy


class Mirror:
  """A folder on the disk for files that grow, and that others may look for in a bucket.

  Attributes:
    path: Where to write: the folder itself, or a temporary one if it is in a bucket.
  """

  def __init__(self, folder: pathlib.Path):
    """Makes the temporary folder, if it needs one.

    Args:
      folder: As `as_path` returns it.
    """
    self._folder, self.path = folder, folder
    self._sizes: dict[pathlib.Path, int] = {}  # Of what was published.
    self._temporary = tempfile.TemporaryDirectory(prefix='nlx-') if is_remote(folder) else None
    if self._temporary is not None:
      self.path = pathlib.Path(self._temporary.name)

  def publish(self) -> None:
    """Copies each file that has grown to the bucket, as a whole; on the disk all is there."""
    if self._temporary is None:
      return
    for path in sorted(filter(pathlib.Path.is_file, self.path.rglob('*'))):
      size = path.stat().st_size
      if self._sizes.get(path) != size:
        _upload(path, self._folder / path.relative_to(self.path))
        self._sizes[path] = size

  def close(self) -> None:
    """Publishes, and removes the temporary folder."""
    try:
      self.publish()
    finally:
      if self._temporary is not None:
        self._temporary.cleanup()


def _upload(source: pathlib.Path, target: pathlib.Path) -> None:
  """Copies a file to a bucket; until the last byte is there, an object of before stays."""
  try:
    _buckets().put_file(str(source), str(target))
  except FileNotFoundError as error:
    raise FileNotFoundError(f'{str(target)!r} cannot be written: no such bucket.') from error


def _buckets() -> Any:
  """The file system of buckets, the same one that epath uses."""
  return _bucket_class(BUCKETS)(finalize_on_close=True)


def _bucket_class(path: str) -> Any:
  """Its class; `path` is who needs it."""
  try:
    import fsspec

    found = fsspec.get_filesystem_class('gcs')
  except ImportError as error:
    raise ImportError(
      f'{path!r} is in a bucket, which needs the extra `gcs`: make setup EXTRAS=dev,gcs'
    ) from error
  # Checkpoints are written by other means and by other processes: ask the bucket, not a memory.
  fsspec.config.conf.setdefault('gcs', {})['use_listings_cache'] = False
  return found


def _flush(path):
  """Waits until a file, or the names in a folder, are on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
