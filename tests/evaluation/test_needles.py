import functools
import re
from typing import NamedTuple

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from nlx import evaluation
from nlx.evaluation import needle_codes

TASKS = evaluation.NEEDLE_TASKS
SYMBOLS = evaluation.symbol_code()
ESSAY = ' '.join(
  f'Sentence {i} says “{i * i}” of a thing{", and of another" * (i % 3)}.' for i in range(300)
)
CODES = {'symbols': SYMBOLS, 'bytes': evaluation.byte_code(ESSAY)}
LENGTH = {'symbols': 420, 'bytes': 1600}
NEEDLE, IS, END, QUERY, ANSWER, PAD = range(144, 150)
BOTH = pytest.mark.parametrize('code', CODES)
ALL = pytest.mark.parametrize('task', TASKS)


@functools.cache
def texts(task, code, split='train', seed=0):
  return evaluation.needle_texts(
    task, CODES[code], length=LENGTH[code], num_examples=12, split=split, seed=seed
  )


def whole(part):
  """Each text with the last token of its answer."""
  return [[*row, last] for row, last in zip(part.tokens.tolist(), part.targets[:, -1], strict=True)]


class Found(NamedTuple):
  """What a reader finds in one text."""

  needles: list  # (key, value, units of the haystack before it), in order
  straw: list  # units of the haystack
  queries: list
  answer: list


def read_symbols(tokens):
  tokens = list(map(int, tokens))
  question, needles, straw, at = tokens.index(QUERY), [], [], 0
  while at < question:
    if tokens[at] == NEEDLE:
      end = tokens.index(END, at)
      middle = tokens.index(IS, at)
      needles.append((tuple(tokens[at + 1 : middle]), tuple(tokens[middle + 1 : end]), len(straw)))
      at = end + 1
    else:
      straw.append(tokens[at])
      at += 1
  start = tokens.index(ANSWER)
  keys, answer = tokens[question + 1 : start], [[]]
  size = len(needles[0][0])
  for token in tokens[start + 1 :]:
    answer = [*answer, []] if token == END else [*answer[:-1], [*answer[-1], token]]
  assert answer.pop() == []
  queries = [tuple(keys[i : i + size]) for i in range(0, len(keys), size)]
  return Found(needles, straw, queries, [tuple(value) for value in answer])


def read_bytes(tokens):
  text = bytes(map(int, tokens)).decode()
  head, rest = text.split(' quiz you about the ')
  kind, rest = rest.split(' afterwards.\n', 1)
  straw, tail = rest.rsplit('\nWhat ', 1)
  match = re.fullmatch(
    r'(is|are all) the special magic (\w+) for (.*) mentioned in the provided text\? '
    r'The special magic (\w+) for (.*) mentioned in the provided text (is|are) (.*)\.',
    tail,
  )
  verb, kind_asked, keys, kind_again, keys_again, verb_again, answer = match.groups()
  assert keys == keys_again
  assert kind == kind_asked == kind_again
  many = verb == 'are all'
  assert many == kind.endswith('s') == (verb_again == 'are') == head.startswith('Some ')
  pattern = r'One of the special magic (\w+) for (\S+) is: (\S+)\.[ \n]'
  needles, units, begin = [], [], 0
  for needle in re.finditer(pattern, straw):
    units += sentences(straw[begin : needle.start()])
    assert needle[1] == f'{kind.removesuffix("s")}s'
    needles.append((needle[2], needle[3], len(units)))
    begin = needle.end()
  units += sentences(straw[begin:])
  return Found(needles, units, re.split(', and |, ', keys), answer.split(', '))


def sentences(text):
  """Of noise one is a line."""
  parts = re.split(r'(?<=\n)' if 'grass' in text else r'(?<=\. )', text)
  return [part for part in parts if part]


READ = {'symbols': read_symbols, 'bytes': read_bytes}


@BOTH
@ALL
def test_needles_are_asked_for_and_answered(task, code):
  """Keys differ, and the answer has the values of each key asked for, in the order of the text."""
  what, part = TASKS[task], texts(task, code)
  for tokens in whole(part):
    found = READ[code](tokens)
    value_of = {}
    for key, value, _ in found.needles:
      value_of.setdefault(key, []).append(value)
    sizes = sorted(map(len, value_of.values()))
    assert sizes[-what.num_keys :] == [what.num_values] * what.num_keys
    assert len(set(found.queries)) == what.num_queries
    assert found.answer == [value for key in found.queries for value in value_of[key]]
    assert what.haystack == 'needles' or len(value_of) == what.num_keys


@BOTH
@ALL
def test_needles_have_values_of_their_kind(task, code):
  what = TASKS[task]
  for values in texts(task, code).values:
    for value in values.tolist():
      if code == 'symbols':
        value = ''.join('0123456789abcdef'[i - 128] for i in value)
        uuid = '[0-9a-f]{32}'
      else:
        value, uuid = bytes(value).decode(), '-'.join(f'[0-9a-f]{{{n}}}' for n in (8, 4, 4, 4, 12))
      assert re.fullmatch(uuid if what.values == 'uuids' else '[1-9][0-9]{6}', value)


@BOTH
@ALL
def test_needles_ask_for_the_next_tokens_of_the_answer(task, code):
  part = texts(task, code)
  np.testing.assert_array_equal(part.tokens[:, 1:], part.targets[:, :-1])
  np.testing.assert_array_equal(part.prompts, part.tokens[:, : part.prompt_length])
  asked = np.arange(LENGTH[code]) >= part.prompt_length - 1
  np.testing.assert_array_equal(part.mask, np.tile(asked, (12, 1)))
  for tokens, answer in zip(whole(part), part.answers.tolist(), strict=True):
    assert tokens == [*tokens[: part.prompt_length], *answer]
    if code == 'symbols':
      assert tokens.index(ANSWER) == part.prompt_length - 1
    else:
      assert bytes(tokens[: part.prompt_length]).endswith((b' text is', b' text are'))
  assert [x.dtype for x in part[:5]] == [np.int32, np.int32, np.float32, np.int32, np.int32]
  assert part.tokens.max() < CODES[code].vocab_size


@BOTH
@ALL
def test_needles_are_at_their_depths(task, code):
  what, part = TASKS[task], texts(task, code)
  for tokens, values, depths in zip(whole(part), part.values, part.depths, strict=True):
    found = READ[code](tokens)
    asked = [decoded(code, value) for value in values]
    if what.haystack == 'needles':
      place_of = {value: i for i, (_, value, _) in enumerate(found.needles)}
      size = len(found.needles) - 1
    else:
      place_of = {value: units for _, value, units in found.needles}
      size = len(found.straw)
    assert [place_of[value] for value in asked] == [size * depth // 100 for depth in depths]
    assert len(set(depths)) == what.num_queries * what.num_values


def decoded(code, value):
  return tuple(value.tolist()) if code == 'symbols' else bytes(value.tolist()).decode()


def test_needle_depths_are_forty_percentages():
  expected = [round(100 * i / 39) for i in range(40)]
  assert evaluation.NEEDLE_DEPTHS.tolist() == expected
  assert len(set(expected)) == 40


def test_needles_are_as_often_at_every_depth():
  part = evaluation.needle_texts('multikey_1', SYMBOLS, length=80, num_examples=1000)
  counts = [(part.depths == depth).sum() for depth in evaluation.NEEDLE_DEPTHS]
  assert sum(counts) == 1000
  assert np.abs(np.array(counts) - 25).max() < 5 * np.sqrt(25)


def test_haystack_of_noise_repeats_itself():
  for tokens in whole(texts('single_1', 'symbols')):
    assert read_symbols(tokens).straw == [i % 20 for i in range(420 - 12 - 4 - 8 + 1)]
  for tokens in whole(texts('single_1', 'bytes')):
    *lines, last = read_bytes(tokens).straw
    assert len(set(lines)) == 1
    assert lines[0].startswith(last.rstrip())


def test_haystack_of_needles_has_nothing_else():
  for code, blank in (('symbols', {PAD}), ('bytes', {' '})):
    for tokens in whole(texts('multikey_2', code)):
      found = READ[code](tokens)
      assert len(found.needles) > 15
      assert {i for unit in found.straw for i in ([unit] if code == 'symbols' else unit)} <= blank
      keys = [key for key, *_ in found.needles]
      assert len(set(keys)) == len(keys)


def test_haystack_of_bytes_is_the_essay_from_any_sentence_on():
  twice = f'{ESSAY} {ESSAY} '
  starts = set()
  for task in ('single_2', 'multivalue'):
    for tokens in whole(texts(task, 'bytes')):
      straw = ''.join(read_bytes(tokens).straw)
      assert straw.rstrip() in twice
      starts.add(twice.index(straw.rstrip()))
  assert len(starts) > 12


def test_haystack_of_bytes_goes_on_with_the_beginning_of_a_short_essay():
  code = evaluation.byte_code('First. Second thing.\nThird!')
  part = evaluation.needle_texts('single_2', code, length=700, num_examples=9)
  for tokens in whole(part):
    straw = ''.join(read_bytes(tokens).straw)
    assert straw.rstrip() in 'First. Second thing. Third! ' * 30


def test_essay_of_symbols_is_a_chain_with_zipf_frequencies():
  joint = needle_codes.zipf_chain()
  frequency = 1 / np.arange(1, 65)
  frequency /= frequency.sum()
  for axis in (0, 1):
    np.testing.assert_allclose(joint.sum(axis=axis), frequency, rtol=1e-9)
  size, count = 500, 400
  essays = needle_codes._chains(count, size, np.random.default_rng(0))
  np.testing.assert_allclose(
    np.bincount(essays.ravel(), minlength=64) / essays.size, frequency, rtol=0.2, atol=0.001
  )
  pairs = np.zeros((64, 64))
  np.add.at(pairs, (essays[:, :-1], essays[:, 1:]), 1 / (count * (size - 1)))
  np.testing.assert_allclose(pairs, joint, atol=0.002)


@hypothesis.given(
  task=st.sampled_from(sorted(TASKS)), code=st.sampled_from(sorted(CODES)), more=st.integers(0, 150)
)
def test_needles_fit_any_length(task, code, more):
  with pytest.raises(ValueError, match='must be at least') as error:
    evaluation.needle_texts(task, CODES[code], length=1, num_examples=1)
  least = int(re.search(r'at least (\d+)', str(error.value))[1])
  part = evaluation.needle_texts(task, CODES[code], length=least + more, num_examples=2)
  assert part.tokens.shape == (2, least + more)
  for tokens in whole(part):
    assert len(READ[code](tokens).needles) >= TASKS[task].num_keys * TASKS[task].num_values
  with pytest.raises(ValueError, match=f'`length` of {task} must be at least {least}, got'):
    evaluation.needle_texts(task, CODES[code], length=least - 1, num_examples=1)


@BOTH
def test_needles_depend_on_seed_split_and_nothing_else(code):
  first = texts('multikey_1', code)
  for a, b in zip(first, texts.__wrapped__('multikey_1', code), strict=True):
    np.testing.assert_array_equal(a, b)
  seen = {bytes(row) for row in first.tokens}
  for other in (texts('multikey_1', code, 'test'), texts('multikey_1', code, seed=1)):
    assert not seen & {bytes(row) for row in other.tokens}


@BOTH
@ALL
def test_needle_recall_is_whole_for_the_answers_and_none_for_others(task, code):
  part = texts(task, code)
  assert evaluation.needle_recall(part.answers, part).mean == 1
  assert evaluation.needle_recall(np.roll(part.answers, 1, axis=0), part).mean == 0


def test_needle_recall_is_its_definition():
  part, random = texts('multivalue', 'bytes'), np.random.default_rng(0)
  answers = part.answers.copy()
  answers[random.random(answers.shape) < 0.08] = ord('x')
  answers[0] = np.roll(answers[0], 5)
  completions = np.concatenate([np.full((12, 3), ord('9')), answers], axis=1)
  found = evaluation.needle_recall(completions, part)
  hits = {depth: [] for depth in evaluation.NEEDLE_DEPTHS.tolist()}
  for completion, values, depths in zip(completions, part.values, part.depths, strict=True):
    text = bytes(completion.tolist())
    for value, depth in zip(values, depths, strict=True):
      hits[int(depth)].append(bytes(value.tolist()) in text)
  expected = [hit for at_depth in hits.values() for hit in at_depth]
  assert 0.2 < np.mean(expected) < 0.9
  assert found.mean == pytest.approx(np.mean(expected), abs=1e-12)
  assert found.num_values.tolist() == [len(at_depth) for at_depth in hits.values()]
  by_depth = [np.mean(at_depth) if at_depth else np.nan for at_depth in hits.values()]
  np.testing.assert_allclose(found.by_depth, by_depth, atol=1e-12)


def test_needle_tasks_are_those_of_ruler():
  expected = {
    'single_1': ('noise', 'words', 'numbers', 1, 1, 1),
    'single_2': ('essay', 'words', 'numbers', 1, 1, 1),
    'single_3': ('essay', 'words', 'uuids', 1, 1, 1),
    'multikey_1': ('essay', 'words', 'numbers', 4, 1, 1),
    'multikey_2': ('needles', 'words', 'numbers', 1, 1, 1),
    'multikey_3': ('needles', 'uuids', 'uuids', 1, 1, 1),
    'multivalue': ('essay', 'words', 'numbers', 1, 4, 1),
    'multiquery': ('essay', 'words', 'numbers', 4, 1, 4),
  }
  assert {name: tuple(task) for name, task in TASKS.items()} == expected


def test_words_of_needles_differ_and_have_five_letters():
  from nlx.evaluation.needles import ADJECTIVES, NOUNS

  words = [*ADJECTIVES, *NOUNS]
  assert len(ADJECTIVES) == len(NOUNS) == 32
  assert len(set(words)) == 64
  assert {len(word) for word in words} == {5}


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'task': 'single_4'}, r"`task` must be one of \['multikey_1', .* got 'single_4'"),
    ({'split': 'validation'}, r"`split` must be one of \['test', 'train'\], got 'validation'"),
    ({'length': 0}, '`length` must be an integer of at least 1'),
    ({'num_examples': 0}, '`num_examples` must be an integer of at least 1'),
    ({'seed': -1}, '`seed` must be an integer of at least 0, got -1'),
    (
      {'task': 'multikey_2', 'length': 12311},
      '`length` of multikey_2 must be at most 12310, for want of words, got 12311',
    ),
  ],
)
def test_needles_say_which_arguments_they_need(arguments, message):
  arguments = {'task': 'single_1', 'length': 100, 'num_examples': 1, **arguments}
  with pytest.raises(ValueError, match=message):
    evaluation.needle_texts(arguments.pop('task'), SYMBOLS, **arguments)


def test_needles_of_words_fit_up_to_the_greatest_length():
  part = evaluation.needle_texts('multikey_2', SYMBOLS, length=12310, num_examples=1)
  assert len(read_symbols(whole(part)[0]).needles) == 1024


def test_needle_recall_says_which_completions_it_needs():
  part = texts('single_1', 'symbols')
  with pytest.raises(ValueError, match=r'`completions` must be \[N, C\] = \(12, at least 7\), got'):
    evaluation.needle_recall(part.answers[:, :6], part)


def test_byte_code_says_which_essay_it_needs():
  with pytest.raises(ValueError, match='`essay` must be a text, got a blank one'):
    evaluation.byte_code(' \n')
