"""Tokenizers: text to ids and back, with a known number of ids."""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from nlx import core


class Tokenizer(NamedTuple):
  """A reversible map between text and token ids."""

  vocab_size: int  # Ids are in [0, vocab_size).
  encode: Callable[[str], np.ndarray]  # text -> [N] ids
  decode: Callable[[Sequence[int]], str]  # [N] ids -> text
  digest: str = ''  # First 12 hexadecimal digits of the SHA-256 of its file; '' if it has none.


def byte_tokenizer() -> Tokenizer:
  """Returns the tokenizer whose ids are the bytes of the UTF-8 text.

  Returns:
    A tokenizer of 256 ids. Bytes that are no UTF-8 decode to U+FFFD.

  Example:
    >>> tokenizer = byte_tokenizer()
    >>> tokenizer.encode('hé').tolist()
    [104, 195, 169]
    >>> tokenizer.decode([104, 195, 169])
    'hé'
  """

  def encode(text: str) -> np.ndarray:
    return np.frombuffer(text.encode('utf-8'), np.uint8)

  def decode(tokens: Sequence[int]) -> str:
    return bytes(int(token) for token in tokens).decode('utf-8', errors='replace')

  return Tokenizer(256, encode, decode)


def json_tokenizer(path: str) -> Tokenizer:
  """Returns the tokenizer that a `tokenizers` JSON file describes.

  Special tokens are not added. Bits per byte mean something only if the tokenizer is lossless.

  Args:
    path: The file that `tokenizers.Tokenizer.save` wrote, often named `tokenizer.json`, on the disk
      or in a bucket.

  Returns:
    A tokenizer of as many ids as the file's vocabulary, added tokens included, and those that it
    leaves out between them.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If the file does not describe a tokenizer.
  """
  file = core.as_path(path)
  if not file.is_file():
    raise FileNotFoundError(f'`path` of the tokenizer {path!r} does not exist.')
  import tokenizers

  content = file.read_bytes()
  try:
    inner = tokenizers.Tokenizer.from_buffer(content)
  except Exception as error:  # The Rust library raises a bare Exception.
    raise ValueError(f'`path` {path!r} does not describe a tokenizer: {error}.') from error

  inner.no_truncation()  # Both are for batches of a model, and may be in the file.
  inner.no_padding()

  def encode(text: str) -> np.ndarray:
    return np.asarray(inner.encode(text, add_special_tokens=False).ids, np.int32)

  def decode(tokens: Sequence[int]) -> str:
    return inner.decode([int(token) for token in tokens], skip_special_tokens=False)

  ids = inner.get_vocab(with_added_tokens=True).values()
  digest = hashlib.sha256(content).hexdigest()[:12]
  return Tokenizer(1 + max(ids, default=-1), encode, decode, digest)


def tokenizer(name: str) -> Tokenizer:
  """Returns the byte tokenizer for `'bytes'`, or that of a `tokenizers` JSON file.

  Args:
    name: `'bytes'` or a path that ends in `.json`.

  Returns:
    The tokenizer.

  Raises:
    FileNotFoundError: If the file does not exist.
    ValueError: If the name is neither, or the file does not describe a tokenizer.
  """
  if name == 'bytes':
    return byte_tokenizer()
  if name.endswith('.json'):
    return json_tokenizer(name)
  raise ValueError(f"`tokenizer` must be 'bytes' or a .json file, got {name!r}.")
