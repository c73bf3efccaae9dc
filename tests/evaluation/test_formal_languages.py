import collections
import functools
import re
from unittest import mock

import numpy as np
import pytest

from nlx import evaluation
from nlx.evaluation import formal_languages

LANGUAGES = evaluation.FORMAL_LANGUAGES
PARITY, SHUFFLES = 'parity', ('shuffle_2', 'shuffle_2_interleaved')
RANDOM = (PARITY, *SHUFFLES)
NUMBERED = {'(aa)*': 2, '(abab)*': 4, 'a^n b^n': 2, 'a^n b^n c^n': 3}  # and their periods


@functools.cache
def sets(name, seed=0):
  """The sets of a language, with fewer strings of those that have many."""
  language = LANGUAGES[name]
  if name in RANDOM:
    language = language._replace(num_train=800, num_test=150)
  with mock.patch.dict(LANGUAGES, {name: language}):
    return evaluation.formal_language(name, seed=seed)


def strings(name, part):
  alphabet = LANGUAGES[name].alphabet
  lengths = part.mask.sum(axis=1).astype(int)
  return [
    ''.join(alphabet[i] for i in row[:length])
    for row, length in zip(part.tokens, lengths, strict=True)
  ]


def balanced(text, *pairs):
  """Whether nothing remains when neighbours that match are deleted again and again."""
  while any(pair in text for pair in pairs):
    for pair in pairs:
      text = text.replace(pair, '')
  return not text


def in_language(name, text):
  if name == PARITY:
    return text.count('1') % 2 == 0
  if name.endswith('*'):
    return bool(re.fullmatch(name, text))
  if name in NUMBERED:
    symbols = LANGUAGES[name].alphabet
    return text == ''.join(symbol * text.count('a') for symbol in symbols)
  return balanced(re.sub(r'[\[\]]', '', text), '()') and balanced(re.sub('[()]', '', text), '[]')


def can_follow(name, prefix):
  """Symbols after which some string of the language goes on, and T if it may end."""
  if name in NUMBERED:
    members = [
      ''.join(symbol * n for symbol in LANGUAGES[name].alphabet) for n in range(1, len(prefix) + 2)
    ]
    more = {m[len(prefix)] for m in members if m.startswith(prefix) and len(m) > len(prefix)}
    return more | ({'T'} if prefix in members else set())
  closers = {c for o, c in ('()', '[]') if prefix.count(o) > prefix.count(c)}
  return {'(', '['} | closers


def answer(name, prefix):
  if LANGUAGES[name].labels == ('no', 'yes'):
    return 'yes' if in_language(name, prefix) else 'no'
  return can_follow(name, prefix)


@pytest.mark.parametrize('name', LANGUAGES)
def test_formal_languages_hold_only_their_strings(name):
  for part in sets(name):
    assert all(in_language(name, text) for text in strings(name, part))


@pytest.mark.parametrize('name', LANGUAGES)
def test_formal_languages_label_every_prefix(name):
  language = LANGUAGES[name]
  for part in sets(name):
    texts = strings(name, part)
    shortest = sorted(range(len(texts)), key=lambda i: len(texts[i]))[:3]
    for i in {*shortest, 0, 1}:
      for end in range(1, len(texts[i]) + 1):
        label = language.labels[part.targets[i, end - 1]]
        expected = answer(name, texts[i][:end])
        assert (set(label) if isinstance(expected, set) else label) == expected


@pytest.mark.parametrize('name', LANGUAGES)
def test_formal_languages_use_every_label_in_training(name):
  train = sets(name)[0]
  assert set(train.targets[train.mask > 0]) == set(range(len(LANGUAGES[name].labels)))


@pytest.mark.parametrize('name', LANGUAGES)
def test_formal_languages_keep_to_their_lengths(name):
  language = LANGUAGES[name]
  for part, (least, most) in zip(
    sets(name), (language.short, language.short, language.long), strict=True
  ):
    lengths = part.mask.sum(axis=1)
    assert least <= lengths.min() <= lengths.max() <= most
    np.testing.assert_array_equal(part.mask, np.arange(most) < lengths[:, None])
    assert not part.tokens[part.mask == 0].any()
    assert not part.targets[part.mask == 0].any()
    assert [x.dtype for x in part] == [np.int32, np.int32, np.float32]


@pytest.mark.parametrize('name', LANGUAGES)
def test_formal_languages_test_with_nothing_they_train_on(name):
  train, bin0, bin1 = (strings(name, part) for part in sets(name))
  assert not {*bin0, *bin1} & {*train}
  assert len({*bin0, *bin1}) == len(bin0) + len(bin1)


@pytest.mark.parametrize('name', RANDOM)
def test_formal_languages_of_random_strings_repeat_none(name):
  parts = [strings(name, part) for part in sets(name)]
  assert [len(set(part)) for part in parts] == [len(part) for part in parts] == [800, 150, 150]


@pytest.mark.parametrize('name', NUMBERED)
def test_formal_languages_of_numbered_strings_test_with_all_that_are_left(name):
  language, period, (train, bin0, bin1) = LANGUAGES[name], NUMBERED[name], sets(name)
  possible = range(language.short[0], language.short[1] + 1, period)
  seen = set(train.mask.sum(axis=1))
  assert len(train.tokens) == language.num_train
  assert len(bin0.tokens) == min(language.num_test, len(possible) - len(seen))
  longer = range(language.long[0], language.long[1] + 1, period)
  assert sorted(bin1.mask.sum(axis=1)) == list(longer)
  assert len(longer) == language.num_test


def test_formal_languages_are_those_of_the_table():
  found = {
    name: (x.alphabet, x.short, x.num_train, x.long, x.num_test) for name, x in LANGUAGES.items()
  }
  shuffle = ('()[]', (2, 50), 10000, (52, 100), 2000)
  assert found == {
    'parity': ('01', (2, 50), 10000, (51, 100), 2000),
    '(aa)*': ('a', (2, 500), 250, (502, 600), 50),
    '(abab)*': ('ab', (4, 500), 125, (504, 600), 25),
    'a^n b^n': ('ab', (2, 100), 50, (102, 200), 50),
    'a^n b^n c^n': ('abc', (3, 150), 50, (153, 300), 50),
    'shuffle_2': shuffle,
    'shuffle_2_interleaved': shuffle,
  }


def lengths_drawn(sample, shortest, longest, count):
  words = sample(np.random.default_rng(0), shortest, longest)
  return collections.Counter(len(next(words)) for _ in range(count))


def assert_drawn(counts, probabilities):
  """Each count is within five standard deviations of its mean."""
  total, norm = sum(counts.values()), sum(probabilities.values())
  assert set(counts) <= set(probabilities)
  for value, probability in probabilities.items():
    p = probability / norm
    assert abs(counts[value] - total * p) < 5 * np.sqrt(total * p * (1 - p)) + 1


def test_parity_stops_with_a_constant_probability():
  shortest, longest, middle = 2, 10, 6
  expected = collections.Counter()
  for length in range(shortest, longest + 1):
    going_on = (middle / (1 + middle)) ** length
    p = going_on * (1 / (1 + middle) if length < longest else 1)
    expected[length] += p / 2
    if length < longest:
      expected[length + 1] += p / 2
  counts = lengths_drawn(formal_languages._parity_words, shortest, longest, 4000)
  assert_drawn(counts, expected)


def test_parity_tosses_a_fair_coin():
  train = sets(PARITY)[0]
  symbols = train.tokens[train.mask > 0]
  # The last symbol makes the ones even.
  assert abs(symbols.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(symbols)) + 0.5 * 800 / len(symbols)


@pytest.mark.parametrize('name', NUMBERED)
def test_numbered_strings_are_drawn_uniformly(name):
  language, period = LANGUAGES[name]._replace(num_train=50_000), NUMBERED[name]
  words = language.draw(language, [np.random.default_rng(i) for i in range(3)])[0]
  least, most = language.short
  # Lengths of (aa)* and (abab)* are uniform before they are rounded down; elsewhere n is.
  drawn = range(least, most + 1, 1 if name.endswith('*') else period)
  expected = collections.Counter(length // period * period for length in drawn)
  assert_drawn(collections.Counter(map(len, words)), expected)


def test_brackets_have_the_lengths_of_the_grammar():
  """With f_k the probability of k pairs: f_0 = (1 + f_0^2) / 4, f_k = f_(k-1)/2 + sum/4."""
  f = [2 - np.sqrt(3)]
  for k in range(1, 7):
    inner = sum(f[i] * f[k - i] for i in range(1, k))
    f.append((f[k - 1] / 2 + inner / 4) / (1 - f[0] / 2))
  counts = lengths_drawn(formal_languages._bracket_words, 4, 12, 3000)
  assert_drawn(counts, {2 * k: f[k] for k in range(2, 7)})


def test_brackets_of_the_grammar_are_nested_and_the_interleaved_mostly_not():
  nested, mixed = (
    [balanced(text, '()', '[]') for text in strings(name, sets(name)[2])] for name in SHUFFLES
  )
  assert all(nested)
  assert sum(mixed) < 0.1 * len(mixed)


def test_brackets_keep_their_kinds_when_they_are_interleaved():
  plain, mixed = (
    sample(np.random.default_rng(0), 2, 30)
    for sample in (formal_languages._bracket_words, formal_languages._interleaved_words)
  )
  assert sorted(next(plain)) == sorted(next(mixed))


@pytest.mark.parametrize('name', ['parity', 'a^n b^n'])
def test_formal_languages_depend_on_the_seed_alone(name):
  first, again, other = sets(name), sets.__wrapped__(name), sets(name, seed=1)
  for i in range(3):
    np.testing.assert_array_equal(first[i].tokens, again[i].tokens)
    assert strings(name, first[i]) != strings(name, other[i])


def test_formal_languages_say_which_names_there_are():
  with pytest.raises(ValueError, match=r"`name` must be one of \['\(aa\)\*', .* got 'dyck'"):
    evaluation.formal_language('dyck')
  with pytest.raises(ValueError, match='`seed` must be an integer of at least 0, got -1'):
    evaluation.formal_language('parity', seed=-1)
