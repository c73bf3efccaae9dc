"""Where text comes from: corpora that ship with Python, files and glob patterns."""

import pathlib
import sysconfig
from collections.abc import Callable

from nlx import core

_SKIPPED_FOLDERS = frozenset(
  {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__'}
)


def documentation() -> bytes:
  """Returns the language documentation that ships with Python, about 465 KB of English."""
  from pydoc_data import topics

  return '\n'.join(topics.topics[name] for name in sorted(topics.topics)).encode('utf-8')


def python_source() -> bytes:
  """Returns the source of the standard library without its tests, about 12 MB of Python.

  Files are in the order of their paths, so that the text is the same on every run of one Python.
  Build settings (`_sysconfigdata*`) are left out: they differ between machines.
  """
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  paths = sorted(root.rglob('*.py'), key=lambda path: path.relative_to(root).as_posix())
  return b'\n'.join(path.read_bytes() for path in paths if _is_library(path, root))


def c_headers() -> bytes:
  """Returns the C headers of NumPy, about 380 KB."""
  import numpy

  return _join(pathlib.Path(numpy.get_include()), ('*.h',))


def configuration() -> bytes:
  """Returns the JSON and TOML files of the installed packages; another text on another machine."""
  return _join(pathlib.Path(sysconfig.get_path('purelib')), ('*.json', '*.toml'))


def _join(root: pathlib.Path, patterns: tuple[str, ...]) -> bytes:
  """The files below a folder, in the order of their paths, that are UTF-8."""
  paths = [path for pattern in patterns for path in root.rglob(pattern) if path.is_file()]
  paths.sort(key=lambda path: path.relative_to(root).as_posix())
  return b'\n'.join(text for path in paths if _is_utf8(text := path.read_bytes()))


def _is_utf8(text: bytes) -> bool:
  try:
    text.decode('utf-8')
  except UnicodeDecodeError:
    return False
  return True


def _is_library(path: pathlib.Path, root: pathlib.Path) -> bool:
  if _SKIPPED_FOLDERS & set(path.relative_to(root).parts):
    return False
  return not path.name.startswith('_sysconfigdata')


CORPORA: dict[str, Callable[[], bytes]] = {
  'documentation': documentation,
  'python_source': python_source,
  'c_headers': c_headers,
  'configuration': configuration,
}


def load_text(corpus: str, max_bytes: int | None = None) -> bytes:
  """Reads a corpus as one UTF-8 text.

  Args:
    corpus: A name in `CORPORA`, the path of a text file, or a glob pattern (`**` descends); the
      files of a pattern are joined by newlines in the order of their paths. All may be in buckets.
    max_bytes: Bytes to keep from the beginning, at least 1, and those that complete the last
      character; None keeps all.

  Returns:
    The text, cut between two characters if `max_bytes` is given.

  Raises:
    FileNotFoundError: If the path does not exist or the pattern matches no file.
    ValueError: If the name is unknown, or the text is empty, binary or not UTF-8.
  """
  if max_bytes is not None and max_bytes < 1:
    raise ValueError(f'`max_bytes` must be at least 1 byte or None, got {max_bytes}.')
  if corpus in CORPORA:
    text = CORPORA[corpus]()
  else:
    text = b'\n'.join(_read(path) for path in _find(corpus))
  if max_bytes is not None and len(text) > max_bytes:
    text = text[: character_boundary(text, max_bytes)]
  if not text.strip():
    raise ValueError(f'`corpus` must not be empty, but {corpus!r} holds no text.')
  return text


def character_boundary(text: bytes, index: int) -> int:
  """Returns the first index at or after `index` where a UTF-8 character of `text` begins."""
  while index < len(text) and text[index] & 0xC0 == 0x80:
    index += 1
  return index


def split_text(text: bytes) -> tuple[bytes, bytes]:
  """Splits a text, in order, into nine tenths to train on and one tenth to validate on.

  Args:
    text: UTF-8 bytes.

  Returns:
    The first 9/10 and the last 1/10 of the bytes; the cut moves forward to a whole character.
  """
  cut = character_boundary(text, len(text) * 9 // 10)
  return text[:cut], text[cut:]


def _find(corpus: str) -> list[pathlib.Path]:
  """Returns the files that a path or a pattern names, in order."""
  path = core.as_path(corpus)
  if path.is_file():
    return [path]
  if any(mark in corpus for mark in '*?['):
    paths = core.find_files(path)
    if not paths:
      raise FileNotFoundError(f'`corpus` pattern {corpus!r} matches no file.')
    return paths
  if path.is_dir():
    raise ValueError(
      f'`corpus` must be a file, but {corpus!r} is a folder; use a pattern, as in '
      f'{str(path / "**" / "*.txt")!r}.'
    )
  if path.suffix or len(path.parts) > 1:
    raise FileNotFoundError(f'`corpus` file {corpus!r} does not exist.')
  raise ValueError(
    f'`corpus` {corpus!r} is unknown; use one of {sorted(CORPORA)}, a file or a glob pattern.'
  )


def _read(path: pathlib.Path) -> bytes:
  """Reads one text file, or says why it is none."""
  text = path.read_bytes()
  if b'\0' in text:
    raise ValueError(
      f'`corpus` must be text, but {str(path)!r} is binary: byte {text.index(0)} is NUL.'
    )
  try:
    text.decode('utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(
      f'`corpus` must be UTF-8, but {str(path)!r} is not at byte {error.start}: {error.reason}.'
    ) from error
  return text
