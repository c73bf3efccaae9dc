"""From text to batches: the same windows for the same seed, resumable at any batch."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import grain
import numpy as np

from nlx.data import corpora
from nlx.data.tokenizers import Tokenizer

Batch = dict[str, np.ndarray]  # tokens [B, T] int32, targets [B, T] int32, mask [B, T] float32

_READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)


class Split(NamedTuple):
  """A stretch of text as tokens."""

  tokens: np.ndarray  # [N] ids
  num_bytes: int  # Length of the text that the tokens stand for.

  @property
  def bytes_per_token(self) -> float:
    """Mean bytes of text per token, to turn a loss per token into one per byte."""
    return self.num_bytes / len(self.tokens)


class Corpus(NamedTuple):
  """A text, split in order and tokenized."""

  train: Split
  validation: Split
  digest: str  # First 12 hexadecimal digits of the SHA-256 of the whole text.


def load(corpus: str, tokenizer: Tokenizer, *, max_bytes: int | None = None) -> Corpus:
  """Loads a corpus: the first 9/10 of its bytes to train on, the last 1/10 to validate on.

  Args:
    corpus: Name, file or glob pattern, see `load_text`.
    tokenizer: Encodes each split on its own.
    max_bytes: Bytes to keep from the beginning of the text; None keeps all.

  Returns:
    Both splits, and a digest that tells one text from another.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If the text is unknown, empty, binary or not UTF-8.
  """
  text = corpora.load_text(corpus, max_bytes)
  train, validation = (
    Split(tokenizer.encode(part.decode('utf-8')), len(part)) for part in corpora.split_text(text)
  )
  return Corpus(train, validation, hashlib.sha256(text).hexdigest()[:12])


def train_batches(
  tokens: np.ndarray,
  *,
  seq_len: int,
  batch_size: int,
  seed: int,
  sampling: str = 'epochs',
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """Returns an endless iterator over training batches; a pure function of the seed.

  With `sampling='epochs'` an epoch visits non-overlapping windows once, in a new order and from a
  new offset each time. With `'random'` every window begins anywhere.

  Args:
    tokens: [N] ids of the whole training text.
    seq_len: Tokens to predict per sequence; a window holds one more.
    batch_size: Sequences per batch over all processes; a multiple of `process_count`.
    seed: Decides order and offsets.
    sampling: `'epochs'` or `'random'`.
    process_index: This process, or its part of a batch as `nlx.parallel.batch_part` has it; it
      receives every `process_count`-th sequence.
    process_count: Number of processes, or parts, that share each batch.

  Returns:
    An iterator over {tokens, targets, mask}, each [B / process_count, T]. `get_state()` is a
    small dict that is equal on all processes, and `set_state` continues from it exactly.

  Raises:
    ValueError: If the text is shorter than one window, or an argument is out of range.
  """
  _check(seq_len, batch_size, process_index, process_count)
  if len(tokens) <= seq_len:
    raise ValueError(
      f'The training text must hold at least `seq_len` + 1 = {seq_len + 1} tokens, '
      f'got {len(tokens)}; use a longer corpus or a smaller `seq_len`.'
    )
  if seed < 0:
    raise ValueError(f'`seed` must be at least 0, got {seed}.')
  if sampling not in ('epochs', 'random'):
    raise ValueError(f"`sampling` must be 'epochs' or 'random', got {sampling!r}.")
  begins = _epochs if sampling == 'epochs' else _anywhere
  windows = begins(len(tokens) - 1, seq_len, seed).map(
    lambda begin: _window(tokens, begin, seq_len)
  )
  mine = windows.slice(slice(process_index, None, process_count))
  batches = mine.batch(batch_size // process_count, drop_remainder=True)
  return iter(batches.to_iter_dataset(_READ))


def validation_batches(
  split: Split,
  *,
  seq_len: int,
  batch_size: int,
  context: np.ndarray | None = None,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterable[Batch]:
  """Returns the batches that predict every token of a split exactly once, in order.

  Windows do not overlap; the last one, and the rows that fill the last batch, have mask 0.

  Args:
    split: The text to predict.
    seq_len: Tokens to predict per sequence.
    batch_size: Sequences per batch over all processes; a multiple of `process_count`.
    context: Tokens that precede the split, at least one; only the last is read, as the input of
      the first prediction. Without it the first token is an input only.
    process_index: This process or its part, as in `train_batches`; it receives its contiguous rows
      of each batch.
    process_count: Number of processes, or parts, that share each batch.

  Returns:
    An iterable, to go through as often as needed, of {tokens, targets, mask}, each
    [B / process_count, T].

  Raises:
    ValueError: If there is nothing to predict, or an argument is out of range.
  """
  _check(seq_len, batch_size, process_index, process_count)
  first = split.tokens[:0] if context is None else np.asarray(context)[-1:]
  tokens = np.concatenate([first, split.tokens])
  if len(tokens) < 2:
    raise ValueError(f'The validation text must hold at least 2 tokens, got {len(tokens)}.')
  num_batches = -(-(len(tokens) - 1) // (seq_len * batch_size))
  rows = batch_size // process_count

  def window(index: int) -> Batch:
    batch, row = divmod(int(index), rows)
    return _window(tokens, (batch * batch_size + process_index * rows + row) * seq_len, seq_len)

  return grain.MapDataset.range(num_batches * rows).map(window).batch(rows).to_iter_dataset(_READ)


def _epochs(num_targets: int, seq_len: int, seed: int) -> grain.MapDataset:
  """Returns where windows begin: shuffled, disjoint within an epoch, with an offset per epoch."""
  count = max(1, num_targets // seq_len - 1)
  slack = num_targets - count * seq_len + 1  # The last window may end with the text.

  def begin(index: int, window: int) -> int:
    offset = np.random.default_rng((seed, index // count)).integers(slack)
    return int(offset) + int(window) * seq_len

  order = grain.MapDataset.range(count).seed(seed).shuffle().repeat()
  return order.map_with_index(begin)


def _anywhere(num_targets: int, seq_len: int, seed: int) -> grain.MapDataset:
  """Returns where windows begin: every begin is as likely as any other."""

  def begin(index: int, _: int) -> int:
    return int(np.random.default_rng((seed, index)).integers(num_targets - seq_len + 1))

  return grain.MapDataset.range(1).repeat().map_with_index(begin)


def _window(tokens: np.ndarray, begin: int, seq_len: int) -> Batch:
  """Returns the inputs and targets at `begin`, padded with mask 0 beyond the text."""
  window = np.asarray(tokens[begin : begin + seq_len + 1], np.int32)
  count = max(len(window) - 1, 0)
  padded = np.pad(window, (0, seq_len + 1 - len(window)))
  mask = np.arange(seq_len) < count
  targets = np.where(mask, padded[1:], 0)
  return {'tokens': padded[:-1], 'targets': targets, 'mask': mask.astype(np.float32)}


def _check(seq_len: int, batch_size: int, process_index: int, process_count: int) -> None:
  if seq_len < 1:
    raise ValueError(f'`seq_len` must be at least 1 token, got {seq_len}.')
  if process_count < 1 or not 0 <= process_index < process_count:
    raise ValueError(
      f'`process_index` must be in [0, `process_count`), got {process_index} of {process_count}.'
    )
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f'`batch_size` must be a positive multiple of the {process_count} processes, '
      f'got {batch_size}.'
    )
