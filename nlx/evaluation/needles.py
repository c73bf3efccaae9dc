"""Needles in a haystack: keys and values hidden in a long text, and a question for some of them.

These are the eight tasks of RULER, in any code: see `symbol_code` and `byte_code`.
"""

import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from nlx import core
from nlx.evaluation.sequences import stream

SPLITS = ('train', 'test')
Haystack = tuple[Sequence[int], Sequence[int]]  # tokens, and the places between its units

# Words are an adjective and a noun of five letters each, so that all needles are of one length.
ADJECTIVES, NOUNS = (
  words.split()
  for words in (
    'blunt brave brief brown clean clear crisp eager early empty fancy fresh giant grand great '
    'green happy heavy jolly large light lucky merry noble plain proud quick quiet rapid sharp '
    'solid tough',
    'apple beach bread brick chair cloud coast crown eagle field flute glass grape horse house '
    'knife lemon maple metal night ocean piano plant river robot sheep stone table tiger train '
    'wheel world',
  )
)


class NeedleTask(NamedTuple):
  """What is hidden where, and what is asked for."""

  haystack: str  # 'noise', one sentence again and again; 'essay'; or 'needles', none asked for
  keys: str = 'words'  # or 'uuids'
  values: str = 'numbers'  # of seven digits, or 'uuids'
  num_keys: int = 1
  num_values: int = 1  # of each key
  num_queries: int = 1  # keys whose values are asked for


NEEDLE_TASKS = {
  'single_1': NeedleTask('noise'),
  'single_2': NeedleTask('essay'),
  'single_3': NeedleTask('essay', values='uuids'),
  'multikey_1': NeedleTask('essay', num_keys=4),
  'multikey_2': NeedleTask('needles'),
  'multikey_3': NeedleTask('needles', keys='uuids', values='uuids'),
  'multivalue': NeedleTask('essay', num_values=4),
  'multiquery': NeedleTask('essay', num_keys=4, num_queries=4),
}

# Where needles are: percent of the haystack before them.
NEEDLE_DEPTHS = np.round(np.linspace(0, 100, 40)).astype(np.int32)


class NeedleCode(NamedTuple):
  """How the parts of a text are written; the length of each depends on nothing but the task."""

  vocab_size: int  # Tokens are in [0, vocab_size).
  pad: int  # fills what no whole needle fits in
  value: Callable[[str], Sequence[int]]
  needle: Callable[[NeedleTask, str, str], Sequence[int]]  # of a key and a value
  before: Callable[[NeedleTask], Sequence[int]]
  question: Callable[[NeedleTask, Sequence[str]], Sequence[int]]  # for some keys
  answer: Callable[[NeedleTask, Sequence[str]], Sequence[int]]  # some values
  # `filler('noise' or 'essay', count, size, generator)`: `count` haystacks of `size` tokens, with
  # places from 0 to `size`.
  filler: Callable[[str, int, int, np.random.Generator], Iterable[Haystack]]


class Needles(NamedTuple):
  """N texts of T tokens, in each of which R values of L tokens are asked for."""

  tokens: np.ndarray  # int32 [N, T], haystack, question and answer
  targets: np.ndarray  # int32 [N, T], the next token of each
  mask: np.ndarray  # float32 [N, T], 1 where that is of the answer, else 0
  values: np.ndarray  # int32 [N, R, L], what is asked for, in the order of the answer
  depths: np.ndarray  # int32 [N, R], where each is: percent of the haystack before it
  prompt_length: int  # P, tokens up to the answer

  @property
  def prompts(self) -> np.ndarray:
    """int32 [N, P], what to continue."""
    return self.tokens[:, : self.prompt_length]

  @property
  def answers(self) -> np.ndarray:
    """int32 [N, T - P + 1], how to continue it."""
    return self.targets[:, self.prompt_length - 1 :]


class NeedleRecall(NamedTuple):
  """The share of the values that were found, in [0, 1]."""

  mean: float
  by_depth: np.ndarray  # float64 [40], at each of `NEEDLE_DEPTHS`; NaN where no value was
  num_values: np.ndarray  # int64 [40], how many were there


def needle_texts(
  task: str,
  code: NeedleCode,
  *,
  length: int,
  num_examples: int,
  seed: int = 0,
  split: str = 'train',
) -> Needles:
  """Texts with needles in them, all of one length.

  All keys of a text differ. Each needle has a depth of its own among `NEEDLE_DEPTHS`, at random: of
  the units of the haystack (sentences, needles, single symbols) this share, rounded down, is before
  it. Values of one key are asked for in the order of the text; of several, in that of the question.
  In RULER keys may repeat, and needles in noise or among needles are anywhere.

  Args:
    task: A key of `NEEDLE_TASKS`.
    code: How texts are written.
    length: T, tokens of a text, the last token of the answer not counted.
    num_examples: N.
    seed: Decides the texts, from a stream for each split and length.
    split: 'train' or 'test'. What keys and values there are is the same in both.

  Returns:
    The texts, their prompts and answers. To train on every token, take a mask of ones.

  Raises:
    ValueError: If an argument is out of range, the length leaves no room for a haystack, or there
      are not enough words for one of needles.

  Example:
    >>> import nlx
    >>> code = nlx.evaluation.symbol_code()
    >>> texts = nlx.evaluation.needle_texts('multikey_1', code, length=256, num_examples=8)
    >>> texts.prompts.shape, texts.answers.shape, texts.values.shape
    ((8, 249), (8, 8), (8, 1, 7))
    >>> nlx.evaluation.needle_recall(texts.answers, texts).mean
    1.0

  References:
    Hsieh et al., RULER: What's the Real Context Size of Your Long-Context Language Models?, arXiv
    2404.06654, Sec. 3.1.
  """
  core.check_choice('task', task, NEEDLE_TASKS)
  core.check_choice('split', split, SPLITS)
  for name, number in (('length', length), ('num_examples', num_examples)):
    core.check_positive(name, number)
  what = NEEDLE_TASKS[task]
  size, num_others = _sizes(task, code, length)
  generator = stream(seed, SPLITS.index(split), length)
  hidden = [_hide(what, num_others, generator) for _ in range(num_examples)]
  if what.haystack == 'needles':
    haystacks = [_of_needles(what, code, one, size, generator) for one in hidden]
  else:
    haystacks = list(code.filler(what.haystack, num_examples, size, generator))
  texts = np.array(
    [_write(what, code, *both) for both in zip(hidden, haystacks, strict=True)], np.int32
  )
  mask = np.zeros((num_examples, length), np.float32)
  prompt_length = length + 1 - len(code.answer(what, _asked(what, hidden[0])))
  mask[:, prompt_length - 1 :] = 1
  return Needles(
    tokens=texts[:, :-1],
    targets=texts[:, 1:],
    mask=mask,
    values=np.array([[list(code.value(v)) for v in _asked(what, one)] for one in hidden], np.int32),
    depths=np.array([one.depths[one.queries].ravel() for one in hidden], np.int32),
    prompt_length=prompt_length,
  )


def needle_recall(completions: np.ndarray, texts: Needles) -> NeedleRecall:
  """How many of the values that were asked for are somewhere in a completion.

  Args:
    completions: Integers [N, C], what a model wrote after the prompts, by its most probable tokens;
      C is best the length of `texts.answers`.
    texts: What was asked.

  Returns:
    The mean over texts and their values, and that at each depth. All texts of a set are of one
    length: for a table by depth and length, read a set of each.

  Raises:
    ValueError: If there is not one completion for each text, or they are shorter than a value.

  References:
    Hsieh et al., RULER, arXiv 2404.06654.
  """
  completions = np.asarray(completions)
  count, _, size = texts.values.shape
  if completions.ndim != 2 or len(completions) != count or completions.shape[1] < size:
    raise ValueError(
      f'`completions` must be [N, C] = ({count}, at least {size}), got {completions.shape}.'
    )
  windows = np.lib.stride_tricks.sliding_window_view(completions, size, axis=1)  # [N, W, L]
  found = (windows[:, None] == texts.values[:, :, None]).all(axis=-1).any(axis=-1)  # [N, R]
  at_depth = texts.depths[..., None] == NEEDLE_DEPTHS  # [N, R, 40]
  num = at_depth.sum(axis=(0, 1))
  hits = (at_depth & found[..., None]).sum(axis=(0, 1))
  by_depth = np.divide(hits, num, out=np.full(len(num), np.nan), where=num > 0)
  return NeedleRecall(float(found.mean()), by_depth, num)


class _Hidden(NamedTuple):
  """What one text hides and asks for."""

  keys: list[str]  # those of needles first that nobody asks for come last
  values: list[list[str]]  # of each key but those
  depths: np.ndarray  # int32 [num_keys, num_values], each row in order
  queries: np.ndarray  # [num_queries]


def _hide(what: NeedleTask, num_others: int, generator: np.random.Generator) -> _Hidden:
  shape = (what.num_keys, what.num_values)
  depths = generator.choice(NEEDLE_DEPTHS, shape, replace=False)
  return _Hidden(
    keys=_draw(what.keys, what.num_keys + num_others, generator),
    values=[_draw(what.values, what.num_values, generator) for _ in range(what.num_keys)],
    depths=np.sort(depths, axis=1),
    queries=generator.choice(what.num_keys, what.num_queries, replace=False),
  )


def _draw(kind: str, count: int, generator: np.random.Generator) -> list[str]:
  """Words that differ, numbers of seven digits, or 128 random bits each."""
  if kind == 'words':
    chosen = generator.choice(len(ADJECTIVES) * len(NOUNS), count, replace=False).tolist()
    return [f'{ADJECTIVES[i // len(NOUNS)]}-{NOUNS[i % len(NOUNS)]}' for i in chosen]
  if kind == 'numbers':
    return [str(i) for i in generator.integers(10**6, 10**7, size=count).tolist()]
  return [str(uuid.UUID(bytes=generator.bytes(16))) for _ in range(count)]


def _sizes(task: str, code: NeedleCode, length: int) -> tuple[int, int]:
  """Tokens of the haystack, and needles in it that nobody asks for."""
  what, sample = NEEDLE_TASKS[task], np.random.default_rng(0)
  keys = _draw(what.keys, what.num_queries, sample)
  values = _draw(what.values, what.num_queries * what.num_values, sample)
  needle = len(code.needle(what, keys[0], values[0]))
  rest = needle * what.num_keys * what.num_values
  rest += len(code.before(what)) + len(code.question(what, keys)) + len(code.answer(what, values))
  is_of_needles = what.haystack == 'needles'
  size, unit = length + 1 - rest, needle if is_of_needles else 1
  if size < unit:
    raise ValueError(f'`length` of {task} must be at least {rest + unit - 1}, got {length}.')
  num_others = size // unit if is_of_needles else 0
  most = len(ADJECTIVES) * len(NOUNS) - what.num_keys
  if what.keys == 'words' and num_others > most:
    most_tokens = rest + (most + 1) * unit - 2
    raise ValueError(
      f'`length` of {task} must be at most {most_tokens}, for want of words, got {length}.'
    )
  return size, num_others


def _of_needles(
  what: NeedleTask, code: NeedleCode, hidden: _Hidden, size: int, generator: np.random.Generator
) -> Haystack:
  """A haystack of needles, after what is left over."""
  others = hidden.keys[what.num_keys :]
  values = _draw(what.values, len(others), generator)
  needles = [code.needle(what, *both) for both in zip(others, values, strict=True)]
  unit = len(needles[0])
  pads = [code.pad] * (size % unit)
  return pads + [i for needle in needles for i in needle], range(len(pads), size + 1, unit)


def _asked(what: NeedleTask, hidden: _Hidden) -> list[str]:
  return [value for i in hidden.queries for value in hidden.values[i]]


def _write(what: NeedleTask, code: NeedleCode, hidden: _Hidden, haystack: Haystack) -> list[int]:
  """The text, answer included."""
  straw, places = haystack
  tokens, begin = list(code.before(what)), 0
  for i in np.argsort(hidden.depths, axis=None).tolist():
    key, j = divmod(i, what.num_values)
    end = places[(len(places) - 1) * int(hidden.depths[key, j]) // 100]
    tokens += straw[begin:end]
    tokens += code.needle(what, hidden.keys[key], hidden.values[key][j])
    begin = end
  tokens += straw[begin:]
  tokens += code.question(what, [hidden.keys[i] for i in hidden.queries])
  tokens += code.answer(what, _asked(what, hidden))
  return tokens
