"""Six formal languages: short strings to learn from, and longer ones to see what was learned.

After each symbol of a string the question is what is true of the prefix that ends there: whether it
is in the language, or which symbols can come next (T: the string may end).
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from nlx import core
from nlx.evaluation.sequences import LabelledSequences, stream

Generators = Sequence[np.random.Generator]
Words = list[bytes]  # A word is one byte, a token id, for each symbol.


class FormalLanguage(NamedTuple):
  """A language, what is asked of its prefixes, and how many of its strings."""

  alphabet: str  # token i is alphabet[i]
  labels: tuple[str, ...]  # label i means labels[i]: 'yes', or a set of symbols that can come next
  short: tuple[int, int]  # least and largest length to train on, and of Bin0
  long: tuple[int, int]  # the same of Bin1
  num_train: int  # strings
  num_test: int  # strings of each bin, at most
  label: Callable[[np.ndarray], np.ndarray]  # [..., A] counts of the symbols so far to [...] ids
  draw: Callable[['FormalLanguage', Generators], list[Words]]  # the words of the three sets


def formal_language(
  name: str, *, seed: int = 0
) -> tuple[LabelledSequences, LabelledSequences, LabelledSequences]:
  """Strings of a language to train on, unseen ones of the same lengths, and longer ones.

  Every string is in the language, so that it has as many tokens as targets: one label after each
  symbol. Where the label is a set of symbols, its id stands for the whole set.

  For parity and Shuffle-2 all strings of the three sets differ; those that are short are few and
  mostly end in the training set. The strings of the other languages are given by a number, and
  those to train on are drawn with repetition, as many as there are. Bin0 then has strings that
  were not drawn, and Bin1 all of its range. For the two counter languages fewer than `num_test` are
  left for Bin0, about 18. In (aa)* and (abab)* all strings begin alike: Bin0 is new in its lengths
  alone, and only Bin1 asks for more than was shown. In the original their Bin0 may repeat strings
  of the training set, and Shuffle-2 cuts derivations that grow too long; here they are drawn anew.

  Args:
    name: A key of `FORMAL_LANGUAGES`.
    seed: Decides which strings, from a stream for each set.

  Returns:
    The sets train, Bin0 and Bin1. T is the largest length of each range; shorter strings are
    followed by token 0 where the mask is 0, which changes nothing for a causal model.

  Raises:
    ValueError: If the name is unknown or the seed no integer of at least 0.

  Example:
    >>> import nlx
    >>> train, bin0, bin1 = nlx.evaluation.formal_language('a^n b^n')
    >>> shortest = bin1.mask.sum(axis=1).argmin()
    >>> language = nlx.evaluation.FORMAL_LANGUAGES['a^n b^n']
    >>> [language.labels[i] for i in bin1.targets[shortest, [0, 50, 51, 100, 101]]]
    ['ab', 'ab', 'b', 'b', 'T']

  References:
    Bhattamishra et al., On the Ability and Limitations of Transformers to Recognize Formal
    Languages, arXiv 2009.11264.
  """
  core.check_choice('name', name, FORMAL_LANGUAGES)
  language = FORMAL_LANGUAGES[name]
  words = language.draw(language, [stream(seed, i) for i in range(3)])
  train, bin0, bin1 = (
    _labelled(language, part, longest)
    for part, (_, longest) in zip(words, _ranges(language), strict=True)
  )
  return train, bin0, bin1


def _ranges(language: FormalLanguage) -> tuple[tuple[int, int], ...]:
  return language.short, language.short, language.long


def _labelled(language: FormalLanguage, words: Words, longest: int) -> LabelledSequences:
  tokens = np.zeros((len(words), longest), np.int32)
  mask = np.zeros((len(words), longest), np.float32)
  for i, word in enumerate(words):
    tokens[i, : len(word)] = np.frombuffer(word, np.uint8)
    mask[i, : len(word)] = 1
  ids = np.arange(len(language.alphabet))
  targets = language.label((tokens[..., None] == ids).cumsum(axis=1, dtype=np.int32))
  return LabelledSequences(tokens, np.where(mask > 0, targets, 0).astype(np.int32), mask)


# Languages with too many strings to list.


def _distinct(language: FormalLanguage, generators: Generators, *, sample) -> list[Words]:
  """Words that differ within and between the sets; `sample` yields words of a range for ever."""
  seen: set[bytes] = set()
  counts = (language.num_train, language.num_test, language.num_test)
  sets = []
  for generator, lengths, count in zip(generators, _ranges(language), counts, strict=True):
    words: Words = []
    drawn = sample(generator, *lengths)
    while len(words) < count:
      if (word := next(drawn)) not in seen:
        seen.add(word)
        words.append(word)
    sets.append(words)
  return sets


def _parity_words(generator, shortest: int, longest: int) -> Iterator[bytes]:
  """Fair bits that stop with probability 1 / (1 + L), and another 1 if their number is odd."""
  middle = (shortest + longest) // 2
  while True:
    lengths = np.minimum(generator.geometric(1 / (1 + middle), size=256) - 1, longest)
    bits = generator.integers(2, size=(256, longest), dtype=np.uint8)
    for length, row in zip(lengths.tolist(), bits, strict=True):
      word = row[:length].tobytes()
      odd = word.count(1) % 2
      if shortest <= length <= longest - odd:
        yield word + b'\1' * odd


def _bracket_words(generator, shortest: int, longest: int) -> Iterator[bytes]:
  """Words of the grammar S -> (S) or [S], 1/4 each, or SS, 1/4, or nothing, 1/4."""
  # Last symbol first; S is -1.
  rules: tuple[list[int], ...] = ([1, -1, 0], [3, -1, 2], [-1, -1], [])
  sizes = (2, 2, 0, 0)
  blocks = iter(lambda: generator.integers(4, size=1024).tolist(), None)
  choices = itertools.chain.from_iterable(blocks)
  while True:
    word, pending, length = [], [-1], 0
    while pending and length <= longest:
      symbol = pending.pop()
      if symbol >= 0:
        word.append(symbol)
      else:
        choice = next(choices)
        pending += rules[choice]
        length += sizes[choice]
    if shortest <= length <= longest:
      yield bytes(word)


def _interleaved_words(generator, shortest: int, longest: int) -> Iterator[bytes]:
  """Words of the grammar whose round and square brackets are put in a new order, each kept in its.

  The grammar nests the two kinds; here one may close while the other is open.
  """
  for word in _bracket_words(generator, shortest, longest):
    symbols = np.frombuffer(word, np.uint8)
    square = symbols > 1
    now_square = generator.permutation(square)
    mixed = np.empty_like(symbols)
    mixed[now_square], mixed[~now_square] = symbols[square], symbols[~square]
    yield mixed.tobytes()


# Languages of one string for each n = 1, 2, ...


def _numbered(
  language: FormalLanguage, generators: Generators, *, word, period: int, by_length: bool
) -> list[Words]:
  """`word(n)` has n periods. Random n to train on, uniform in length or in n; else all unseen n."""
  (least, most), (least_long, most_long) = language.short, language.long
  if by_length:  # Rounded down to whole periods.
    train = generators[0].integers(least, most + 1, size=language.num_train) // period
  else:
    train = generators[0].integers(least // period, most // period + 1, size=language.num_train)
  unseen = np.setdiff1d(np.arange(least // period, most // period + 1), train)
  longer = np.arange(least_long // period, most_long // period + 1)
  bins = [
    generator.permutation(numbers)[: language.num_test]
    for generator, numbers in zip(generators[1:], (unseen, longer), strict=True)
  ]
  return [[word(int(n)) for n in numbers] for numbers in (train, *bins)]


def _by_length(unit: bytes) -> Callable[[FormalLanguage, Generators], list[Words]]:
  """Repetitions of a unit."""
  word = lambda n: unit * n  # noqa: E731
  return functools.partial(_numbered, word=word, period=len(unit), by_length=True)


def _by_number(num_symbols: int) -> Callable[[FormalLanguage, Generators], list[Words]]:
  """Every symbol n times, one symbol after another."""
  word = lambda n: b''.join(bytes([symbol]) * n for symbol in range(num_symbols))  # noqa: E731
  return functools.partial(_numbered, word=word, period=num_symbols, by_length=False)


# Labels, all of which the counts of the symbols so far decide.


def _multiple(period: int, counts: np.ndarray) -> np.ndarray:
  return counts.sum(axis=-1) % period == 0


def _even_ones(counts: np.ndarray) -> np.ndarray:
  return counts[..., 1] % 2 == 0


def _next_letter(counts: np.ndarray) -> np.ndarray:
  """0 as long as all are a, then how many letters are as frequent as a."""
  others, a = counts[..., 1:], counts[..., :1]
  return np.where(others[..., 0] > 0, 1 + (others == a).sum(axis=-1), 0)


def _open_brackets(counts: np.ndarray) -> np.ndarray:
  is_open = counts[..., ::2] > counts[..., 1::2]
  return is_open[..., 0] + 2 * is_open[..., 1]


def _shuffle(sample) -> FormalLanguage:
  return FormalLanguage(
    alphabet='()[]',
    labels=('([', '([)', '([]', '([)]'),
    short=(2, 50),
    long=(52, 100),
    num_train=10_000,
    num_test=2000,
    label=_open_brackets,
    draw=functools.partial(_distinct, sample=sample),
  )


FORMAL_LANGUAGES = {
  'parity': FormalLanguage(
    alphabet='01',
    labels=('no', 'yes'),
    short=(2, 50),
    long=(51, 100),
    num_train=10_000,
    num_test=2000,
    label=_even_ones,
    draw=functools.partial(_distinct, sample=_parity_words),
  ),
  '(aa)*': FormalLanguage(
    alphabet='a',
    labels=('no', 'yes'),
    short=(2, 500),
    long=(502, 600),
    num_train=250,
    num_test=50,
    label=functools.partial(_multiple, 2),
    draw=_by_length(b'\0\0'),
  ),
  '(abab)*': FormalLanguage(
    alphabet='ab',
    labels=('no', 'yes'),
    short=(4, 500),
    long=(504, 600),
    num_train=125,
    num_test=25,
    label=functools.partial(_multiple, 4),
    draw=_by_length(b'\0\1\0\1'),
  ),
  'a^n b^n': FormalLanguage(
    alphabet='ab',
    labels=('ab', 'b', 'T'),
    short=(2, 100),
    long=(102, 200),
    num_train=50,
    num_test=50,
    label=_next_letter,
    draw=_by_number(2),
  ),
  'a^n b^n c^n': FormalLanguage(
    alphabet='abc',
    labels=('ab', 'b', 'c', 'T'),
    short=(3, 150),
    long=(153, 300),
    num_train=50,
    num_test=50,
    label=_next_letter,
    draw=_by_number(3),
  ),
  # As in the original, whose grammar nests the brackets, and with brackets of both kinds mixed.
  'shuffle_2': _shuffle(_bracket_words),
  'shuffle_2_interleaved': _shuffle(_interleaved_words),
}
