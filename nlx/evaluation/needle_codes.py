"""Two ways to write needles and haystacks: symbols, for small models, and English in bytes."""

import functools
import itertools
import re
from collections.abc import Iterator, Sequence

import numpy as np

from nlx.evaluation.needles import ADJECTIVES, NOUNS, Haystack, NeedleCode, NeedleTask

# Symbols in the order of their ids.
_NUM_FILLERS, _NOISE = 64, range(20)  # Noise is the first twenty fillers again and again.
_WORDS = {word: _NUM_FILLERS + i for i, word in enumerate((*ADJECTIVES, *NOUNS))}
_DIGITS = {digit: _NUM_FILLERS + len(_WORDS) + i for i, digit in enumerate('0123456789abcdef')}
_NEEDLE, _IS, _END, _QUERY, _ANSWER, _PAD = range(144, 150)


def symbol_code() -> NeedleCode:
  """Texts of 150 symbols, 64 of which are filler.

  A word is two symbols, a number one for each digit, a uuid 32. A needle is NEEDLE key IS value
  END, a question QUERY keys ANSWER, an answer the values, each before an END. The essay is a Markov
  chain of first order, the same for all seeds, in which the n-th filler has a frequency in
  proportion to 1 / n; noise is a block of 20 fillers that repeats itself.

  Returns:
    The code.

  Example:
    >>> import nlx
    >>> code = nlx.evaluation.symbol_code()
    >>> code.needle(nlx.evaluation.NEEDLE_TASKS['single_1'], 'blunt-apple', '1234567')
    [144, 64, 96, 145, 129, 130, 131, 132, 133, 134, 135, 146]
  """
  return NeedleCode(
    vocab_size=150,
    pad=_PAD,
    value=_symbols,
    needle=lambda _, key, value: [_NEEDLE, *_symbols(key), _IS, *_symbols(value), _END],
    before=lambda _: [],
    question=lambda _, keys: [_QUERY, *(i for key in keys for i in _symbols(key)), _ANSWER],
    answer=lambda _, values: [i for value in values for i in (*_symbols(value), _END)],
    filler=_symbol_filler,
  )


def _symbols(text: str) -> list[int]:
  """Of a word, a number or a uuid."""
  parts = text.split('-')
  if parts[0] in _WORDS:
    return [_WORDS[part] for part in parts]
  return [_DIGITS[digit] for part in parts for digit in part]


def _symbol_filler(
  haystack: str, count: int, size: int, generator: np.random.Generator
) -> list[Haystack]:
  places = range(size + 1)
  if haystack == 'noise':
    noise = [_NOISE[i % len(_NOISE)] for i in range(size)]
    return [(noise, places)] * count
  return [(essay, places) for essay in _chains(count, size, generator).tolist()]


def _chains(count: int, size: int, generator: np.random.Generator) -> np.ndarray:
  """[count, size] fillers."""
  joint = zipf_chain()
  rows = np.cumsum(joint / joint.sum(axis=1, keepdims=True), axis=1)
  ends = (rows + np.arange(_NUM_FILLERS)[:, None]).ravel()  # increasing: row i ends at i + 1
  chains = np.empty((size, count), np.int64)
  state = generator.choice(_NUM_FILLERS, size=count, p=joint.sum(axis=1))
  for i, number in enumerate(generator.random((size, count))):
    chains[i] = state
    next_state = np.searchsorted(ends, state + number, side='right') - _NUM_FILLERS * state
    state = np.minimum(next_state, _NUM_FILLERS - 1)  # A sum may be rounded up to the end.
  return chains.T


@functools.cache
def zipf_chain() -> np.ndarray:
  """[64, 64] probabilities of two neighbours, whose marginals are both in proportion to 1 / n.

  Random numbers that vary much are scaled by rows and columns in turn (Sinkhorn).
  """
  marginal = 1 / np.arange(1, _NUM_FILLERS + 1)
  marginal /= marginal.sum()
  joint = np.random.default_rng(0).exponential(size=(_NUM_FILLERS, _NUM_FILLERS)) ** 4
  for _ in range(1000):
    joint *= marginal / joint.sum(axis=0)
    joint *= (marginal / joint.sum(axis=1))[:, None]
  return joint


# English, in the words of RULER.
_BEFORE = (
  'Some special magic {kind} are hidden within the following text. Make sure to memorize it. '
  'I will quiz you about the {kind} afterwards.\n'
)
_QUESTION = (
  '\nWhat are all the special magic {kind} for {keys} mentioned in the provided text? '
  'The special magic {kind} for {keys} mentioned in the provided text are'
)
_BYTE_NEEDLE = 'One of the special magic {kind} for {key} is: {value}.'
_SENTENCE = (
  'The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n'
)


def byte_code(essay: str) -> NeedleCode:
  """English texts as bytes of UTF-8, in the words of RULER.

  Needles are between the sentences of a haystack. Essays begin with any sentence of the text that
  is given and, where it is too short, go on with its first one; the last sentence is cut to the
  length. So that texts are of equal lengths, words have five letters, and any 128 bits are a uuid.

  Args:
    essay: An English text, such as the first part of
      `nlx.data.split_text(nlx.data.load_text('documentation'))` to train on and the second for
      tests.

  Returns:
    The code, of 256 ids.

  Raises:
    ValueError: If the essay is blank.
  """
  sentences = re.split(r'(?<=[.!?]) ', ' '.join(essay.split()))
  if not sentences[0]:
    raise ValueError('`essay` must be a text, got a blank one.')
  encoded = [f'{sentence} '.encode() for sentence in sentences]
  return NeedleCode(
    vocab_size=256,
    pad=ord(' '),
    value=str.encode,
    needle=_byte_needle,
    before=lambda task: _frame(task, _BEFORE),
    question=lambda task, keys: _frame(task, _QUESTION, keys),
    answer=lambda _, values: f' {", ".join(values)}.'.encode(),
    filler=functools.partial(_byte_filler, encoded),
  )


def _byte_needle(task: NeedleTask, key: str, value: str) -> bytes:
  end = ' ' if task.haystack == 'essay' else '\n'
  return (_BYTE_NEEDLE.format(kind=task.values, key=key, value=value) + end).encode()


def _frame(task: NeedleTask, template: str, keys: Sequence[str] = ()) -> bytes:
  kind = task.values
  if task.num_queries * task.num_values == 1:
    template = template.replace('Some', 'A').replace('are all', 'is').replace('are', 'is')
    kind = kind.removesuffix('s')
  names = ', '.join(keys[:-1]) + ', and ' * (len(keys) > 1) + ''.join(keys[-1:])
  return template.format(kind=kind, keys=names).encode()


def _byte_filler(
  essay: list[bytes], haystack: str, count: int, size: int, generator: np.random.Generator
) -> Iterator[Haystack]:
  for _ in range(count):
    if haystack == 'noise':
      yield _cut(itertools.repeat(_SENTENCE.encode()), size)
    else:
      first = int(generator.integers(len(essay)))
      yield _cut(itertools.chain(essay[first:], itertools.cycle(essay)), size)


def _cut(sentences: Iterator[bytes], size: int) -> Haystack:
  """As many sentences as fill so many bytes, the last one cut, and the places between them."""
  text, places = b'', [0]
  while len(text) < size:
    text += next(sentences)
    places.append(len(text))
  # Without the last byte, nor a part of a character before it.
  whole = text[: size - 1].decode('utf-8', errors='ignore').encode()
  return whole.ljust(size), [*places[:-1], size]
