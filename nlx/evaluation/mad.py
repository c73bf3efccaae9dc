"""MAD, mechanistic architecture design: six small tasks that ask what a token mixer can do."""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlx import core
from nlx.evaluation.sequences import LabelledSequences, stream

# Fields that only one task has.
_TASK_WITH = {
  'noise_vocab_size': 'noisy_recall',
  'noise_fraction': 'noisy_recall',
  'motif_size': 'fuzzy_recall',
  'num_copied': 'selective_copying',
}


@dataclass(frozen=True)
class MADSetting:
  """A task and how hard it is.

  Attributes:
    task: A key of `MAD_BASELINES`.
    vocab_size: V, number of token ids, noise and special ones included.
    seq_len: S, tokens of a sequence.
    num_train: Sequences to train on.
    num_test: Sequences to test with.
    noise_vocab_size: How many of the V ids, the last, are noise; noisy recall alone.
    noise_fraction: Probability in [0, 1) that two tokens are noise; noisy recall alone.
    motif_size: Tokens of the longest keys and values; fuzzy recall alone.
    num_copied: Tokens to be copied; selective copying alone.
  """

  task: str
  vocab_size: int = 16
  seq_len: int = 128
  num_train: int = 12_800
  num_test: int = 1280
  noise_vocab_size: int = 0
  noise_fraction: float = 0.0
  motif_size: int = 1
  num_copied: int = 0

  def __post_init__(self):
    core.check_choice('task', self.task, _MAKE)
    for field in dataclasses.fields(self):
      value, task = getattr(self, field.name), _TASK_WITH.get(field.name, self.task)
      if self.task != task and value != field.default:
        raise ValueError(f'`{field.name}` is of {task}, not of {self.task}, got {value!r}.')
      if self.task == task and field.name not in ('task', 'noise_fraction'):
        core.check_positive(field.name, value)
    if not 0 <= self.noise_fraction < 1:
      raise ValueError(f'`noise_fraction` must be in [0, 1), got {self.noise_fraction!r}.')
    least_vocab, least_length = _least(self)
    for name, least in (('vocab_size', least_vocab), ('seq_len', least_length)):
      if getattr(self, name) < least:
        raise ValueError(
          f'`{name}` of {self.task} must be at least {least}, got {getattr(self, name)!r}.'
        )
    if self.task in ('recall', 'noisy_recall', 'memorization') and self.seq_len % 2:
      raise ValueError(f'`seq_len` of {self.task} must be even, got {self.seq_len}.')


def _least(setting: MADSetting) -> tuple[int, int]:
  """The smallest vocabulary and length that a task is possible with."""
  longest_pair = 2 * setting.motif_size
  return {
    'recall': (2, 4),
    'noisy_recall': (2 + setting.noise_vocab_size, 4),
    'fuzzy_recall': (1 + longest_pair, 2 * longest_pair),
    'selective_copying': (3, 2 * setting.num_copied + 2),
    'compression': (2, 2),
    'memorization': (3, 2),
  }[setting.task]


def mad_settings(task: str) -> tuple[MADSetting, ...]:
  """The settings over which a task is scored.

  Args:
    task: A key of `MAD_BASELINES`.

  Returns:
    The baseline, then it with one field at a time changed to each value in `MAD_VARIATIONS`.

  Raises:
    ValueError: If the task is unknown.

  Example:
    >>> import nlx
    >>> [setting.vocab_size for setting in nlx.evaluation.mad_settings('memorization')]
    [256, 512, 1024, 2048, 4096, 8192]
  """
  core.check_choice('task', task, MAD_BASELINES)
  baseline = MAD_BASELINES[task]
  changes: list[dict[str, Any]] = [
    {name: value} for name, values in MAD_VARIATIONS[task].items() for value in values
  ]
  return (baseline, *(dataclasses.replace(baseline, **change) for change in changes))


def mad_task(setting: MADSetting, *, seed: int = 0) -> tuple[LabelledSequences, LabelledSequences]:
  """Sequences of a task, to train on and to test with.

  Recall: keys are ids of the first half of the vocabulary and values of the second. A key has the
  value that it was first shown with in the sequence, where that is drawn; the last key was shown
  before. In training every next token is asked for; in tests the values of keys that were shown.
  Noisy recall: two tokens of noise take the place of a pair with probability `noise_fraction`, but
  for one pair. Fuzzy recall: keys and values are tuples of 1 to `motif_size` different tokens, keys
  in tests of `motif_size`; token V - 1 fills the beginning.

  Selective copying: tokens with blanks, V - 2, anywhere before them, then V - 1 and a blank for
  each token, where it is asked for. Compression: random tokens, then V - 1, and every token of the
  sequence is asked for; the model has to put them into what it makes of the last one.
  Memorization: keys, each followed by V - 1, where the value is asked for that this key has in all
  sequences of this seed.

  Sequences of all kinds of recall have S tokens, of which the last is only asked for: T = S - 1.
  Others have T = S. In the original fuzzy recall has one token more, and a last key that is drawn
  first and in rare cases not shown before.

  Args:
    setting: The task and how hard it is.
    seed: Decides the sequences, from a stream for each set, and the values to be memorized.

  Returns:
    The training set and the test set.

  Raises:
    ValueError: If the seed is no integer of at least 0.

  Example:
    >>> import nlx
    >>> setting = nlx.evaluation.MADSetting('memorization', vocab_size=7, seq_len=6, num_train=1)
    >>> train, test = nlx.evaluation.mad_task(setting)
    >>> train.tokens[0, 1::2].tolist(), train.mask[0].tolist()
    ([6, 6, 6], [0.0, 1.0, 0.0, 1.0, 0.0, 1.0])

  References:
    Poli et al., Mechanistic Design and Scaling of Hybrid Architectures, arXiv 2403.17844.
  """
  make = _MAKE[setting.task]
  train = make(setting, setting.num_train, True, stream(seed, 0), seed)
  test = make(setting, setting.num_test, False, stream(seed, 1), seed)
  return train, test


def _recall(setting, count, training, generator, seed):
  content = setting.vocab_size - setting.noise_vocab_size
  num_keys, slots, rows = content // 2, setting.seq_len // 2 - 1, np.arange(count)
  values = generator.integers(num_keys, content, size=(count, num_keys))
  keys = generator.integers(num_keys, size=(count, slots))
  noisy = generator.random((count, slots)) < setting.noise_fraction
  noisy[rows, generator.integers(slots, size=count)] = False

  first = np.full((count, num_keys), slots)  # slot where a key is shown first
  for slot in reversed(range(slots)):
    shown = rows[~noisy[:, slot]]
    first[shown, keys[shown, slot]] = slot
  last = np.where(first < slots, generator.random(first.shape), -1).argmax(axis=1)
  keys = np.append(keys, last[:, None], axis=1)
  known = np.arange(slots + 1) > first[rows[:, None], keys]

  noisy = np.append(noisy, np.zeros((count, 1), bool), axis=1)
  pairs = np.stack([keys, values[rows[:, None], keys]], axis=-1)
  noise = content + generator.integers(max(setting.noise_vocab_size, 1), size=pairs.shape)
  tokens = np.where(noisy[..., None], noise, pairs).reshape(count, -1)
  asked = np.stack([np.zeros_like(known), known & ~noisy], axis=-1).reshape(count, -1)
  return _next_tokens(tokens, asked | training)


def _next_tokens(tokens, asked):
  """[N, S] tokens and which of them are asked for to sets of S - 1."""
  return _labelled(tokens[:, :-1], tokens[:, 1:], asked[:, 1:])


def _labelled(tokens, targets, asked):
  return LabelledSequences(
    tokens.astype(np.int32), np.where(asked, targets, 0).astype(np.int32), asked.astype(np.float32)
  )


def _fuzzy_recall(setting, count, training, generator, seed):
  num_keys, most = (setting.vocab_size - 1) // 2, setting.motif_size
  sizes = range(1, most + 1)
  keys, values = (
    [list(itertools.permutations(range(*ids), size)) for size in sizes]
    for ids in ((0, num_keys), (num_keys, setting.vocab_size - 1))
  )
  if not training:
    keys = keys[-1:]
  tokens = np.full((count, setting.seq_len), setting.vocab_size - 1)
  asked = np.zeros(tokens.shape, bool)
  for i in range(count):
    row, known = _fuzzy_pairs(keys, values, setting.seq_len, 2 * most, generator)
    tokens[i, -len(row) :], asked[i, -len(row) :] = row, known
  return _next_tokens(tokens, asked | training)


def _fuzzy_pairs(keys, values, seq_len, longest_pair, generator):
  """As many pairs as surely fit, then one of a key among them; which tokens follow from others."""
  numbers = iter(generator.random(2 * seq_len + 5).tolist())

  def one(options):
    return options[int(next(numbers) * len(options))]

  tokens: list[int] = []
  known: list[bool] = []
  value_of: dict[tuple[int, ...], tuple[int, ...]] = {}
  while len(tokens) + 2 * longest_pair <= seq_len:
    key, value = one(one(keys)), one(one(values))
    known += [False] * len(key) + [key in value_of] * len(value_of.setdefault(key, value))
    tokens += key + value_of[key]
  key = one(list(value_of))
  known += [False] * len(key) + [True] * len(value_of[key])
  return tokens + list(key + value_of[key]), known


def _selective_copying(setting, count, training, generator, seed):
  copy, blank, length = setting.vocab_size - 1, setting.vocab_size - 2, setting.num_copied
  num_blanks = setting.seq_len - 2 * length - 1
  copied = generator.integers(blank, size=(count, length))
  before = generator.integers(length, size=(count, num_blanks))  # which token a blank precedes
  rows = np.arange(count)[:, None]
  blanks = np.bincount((rows * length + before).ravel(), minlength=count * length)
  places = blanks.reshape(count, length).cumsum(axis=1) + np.arange(length)
  tokens = np.full((count, setting.seq_len), blank)
  tokens[rows, places], tokens[:, -1 - length] = copied, copy
  targets, asked = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
  targets[:, -length:], asked[:, -length:] = copied, True
  return _labelled(tokens, targets, asked)


def _compression(setting, count, training, generator, seed):
  end = setting.vocab_size - 1
  tokens = generator.integers(end, size=(count, setting.seq_len))
  tokens[:, -1] = end
  return _labelled(tokens, tokens, tokens >= 0)


def _memorization(setting, count, training, generator, seed):
  insert, num_keys = setting.vocab_size - 1, (setting.vocab_size - 1) // 2
  values = num_keys + stream(seed, 2).permutation(insert - num_keys)[:num_keys]
  keys = generator.integers(num_keys, size=(count, setting.seq_len // 2))
  tokens = np.stack([keys, np.full_like(keys, insert)], axis=-1).reshape(count, -1)
  targets = np.repeat(values[keys], 2, axis=1)
  return _labelled(tokens, targets, tokens == insert)


_MAKE = {
  'recall': _recall,
  'fuzzy_recall': _fuzzy_recall,
  'noisy_recall': _recall,
  'selective_copying': _selective_copying,
  'compression': _compression,
  'memorization': _memorization,
}

MAD_BASELINES = {
  'recall': MADSetting('recall'),
  'fuzzy_recall': MADSetting('fuzzy_recall', motif_size=3),
  'noisy_recall': MADSetting(
    'noisy_recall', vocab_size=32, noise_vocab_size=16, noise_fraction=0.2
  ),
  'selective_copying': MADSetting('selective_copying', seq_len=256, num_copied=16),
  'compression': MADSetting('compression', seq_len=32),
  'memorization': MADSetting('memorization', vocab_size=256, seq_len=32, num_train=256),
}

_VOCABULARIES: dict[str, tuple[Any, ...]] = {'vocab_size': (32, 64, 128)}
_LENGTHS: dict[str, tuple[Any, ...]] = {'seq_len': (256, 512, 1024)}
_NUMBERS: dict[str, tuple[Any, ...]] = {'num_train': (6400, 3200, 1600, 800)}
MAD_VARIATIONS = {
  'recall': _VOCABULARIES | _LENGTHS | _NUMBERS,
  'fuzzy_recall': _VOCABULARIES | _LENGTHS | _NUMBERS,
  # 32, 64 and 128 ids besides those of the noise.
  'noisy_recall': {'vocab_size': (48, 80, 144), **_LENGTHS, **_NUMBERS}
  | {'noise_fraction': (0.4, 0.6, 0.8)},
  'selective_copying': _VOCABULARIES
  | {'seq_len': (512, 1024), **_NUMBERS, 'num_copied': (32, 64, 96)},
  'compression': _VOCABULARIES | {'seq_len': (64, 128, 256)} | _NUMBERS,
  'memorization': {'vocab_size': (512, 1024, 2048, 4096, 8192)},
}
