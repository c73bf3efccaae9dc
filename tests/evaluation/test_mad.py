import dataclasses
import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from nlx import evaluation
from nlx.evaluation import MADSetting

PAIRED = ('recall', 'noisy_recall')


def small(task, **changes):
  changes = {'num_train': 300, 'num_test': 100, **changes}
  return dataclasses.replace(evaluation.MAD_BASELINES[task], **changes)


def rows(part):
  """Lists of tokens, and of targets with None where the mask is 0."""
  for tokens, targets, mask in zip(*part, strict=True):
    asked = [t if m else None for t, m in zip(targets.tolist(), mask.tolist(), strict=True)]
    yield tokens.tolist(), asked


def check_pairs(pairs, keys, values):
  """What is asked for in a test, None elsewhere; a pair None is noise of two tokens."""
  value_of, asked = {}, []
  for pair in pairs:
    if pair is None:
      asked += [None, None]
      continue
    key, value = pair
    assert set(key) <= set(keys)
    assert set(value) <= set(values)
    known = key in value_of
    assert value_of.setdefault(key, value) == value
    asked += [None] * len(key) + [*(value if known else [None] * len(value))]
  assert pairs[-1][0] in {pair[0] for pair in pairs[:-1] if pair}
  return asked


def check_recall(setting):
  content = setting.vocab_size - setting.noise_vocab_size
  keys, values = range(content // 2), range(content // 2, content)
  train, test = evaluation.mad_task(setting, seed=3)
  assert train.mask.all()
  np.testing.assert_array_equal(train.tokens[:, 1:], train.targets[:, :-1])
  for part in (train, test):
    for tokens, targets in rows(part):
      text = [*tokens, targets[-1]]
      assert len(text) == setting.seq_len
      pairs = [
        None if min(pair) >= content else ((pair[0],), (pair[1],))
        for pair in zip(text[::2], text[1::2], strict=True)
      ]
      assert max(text) < setting.vocab_size
      asked = check_pairs(pairs, keys, values)
      if part is test:
        assert targets == asked[1:]


def check_fuzzy_recall(setting):
  pad = setting.vocab_size - 1
  keys, values = range(pad // 2), range(pad // 2, pad)
  train, test = evaluation.mad_task(setting, seed=3)
  assert train.mask.all()
  np.testing.assert_array_equal(train.tokens[:, 1:], train.targets[:, :-1])
  sizes = set()
  for part in (train, test):
    for tokens, targets in rows(part):
      text = [*tokens, targets[-1]]
      assert len(text) == setting.seq_len
      num_pads = sum(1 for _ in itertools.takewhile(lambda i: i == pad, text))
      assert num_pads < 4 * setting.motif_size  # Less than two of the longest pairs.
      runs = [tuple(run) for _, run in itertools.groupby(text[num_pads:], lambda i: i in keys)]
      assert all(len(set(run)) == len(run) <= setting.motif_size for run in runs)
      pairs = list(zip(runs[::2], runs[1::2], strict=True))
      asked = [None] * num_pads + check_pairs(pairs, keys, values)
      if part is test:
        assert targets == asked[1:]
        assert {len(key) for key, _ in pairs} == {setting.motif_size}
      else:
        sizes |= {(len(key), len(value)) for key, value in pairs}
  return sizes


@pytest.mark.parametrize('task', PAIRED)
def test_recall_is_its_definition(task):
  check_recall(small(task))


@hypothesis.given(
  vocab=st.integers(2, 9),
  length=st.integers(2, 12),
  noise=st.integers(1, 3),
  part=st.floats(0, 0.9),
)
def test_recall_is_its_definition_at_any_size(vocab, length, noise, part):
  sizes = {'seq_len': 2 * length, 'num_train': 3, 'num_test': 3}
  check_recall(MADSetting('recall', vocab_size=vocab, **sizes))
  noisy = {'vocab_size': vocab + noise, 'noise_vocab_size': noise, 'noise_fraction': part}
  check_recall(MADSetting('noisy_recall', **noisy, **sizes))


def test_recall_uses_all_keys_and_values_equally_often():
  train, _ = evaluation.mad_task(MADSetting('recall', num_train=2000, num_test=1))
  for symbols, first in ((train.tokens[:, 0], 0), (train.tokens[:, 1], 8)):
    counts = np.bincount(symbols - first, minlength=8)
    assert np.abs(counts - 250).max() < 5 * np.sqrt(250 * 7 / 8)


@pytest.mark.parametrize('fraction', [0.2, 0.8])
def test_noisy_recall_has_its_share_of_noise(fraction):
  setting = small('noisy_recall', noise_fraction=fraction, num_train=500)
  train, _ = evaluation.mad_task(setting)
  noise = train.tokens[:, ::2][:, :-1] >= 16
  assert (~noise).any(axis=1).all()
  slots = setting.seq_len // 2 - 1
  expected = fraction * (slots - 1) / slots
  assert abs(noise.mean() - expected) < 5 * np.sqrt(expected / noise.size)
  np.testing.assert_array_equal(np.unique(train.tokens[train.tokens >= 16]), np.arange(16, 32))


def test_fuzzy_recall_is_its_definition():
  assert check_fuzzy_recall(small('fuzzy_recall')) == set(itertools.product((1, 2, 3), repeat=2))


@hypothesis.given(motif=st.integers(1, 3), more_ids=st.integers(0, 3), more=st.integers(0, 9))
def test_fuzzy_recall_is_its_definition_at_any_size(motif, more_ids, more):
  sizes = {'vocab_size': 2 * motif + 1 + more_ids, 'seq_len': 4 * motif + more}
  check_fuzzy_recall(MADSetting('fuzzy_recall', motif_size=motif, num_train=3, num_test=3, **sizes))


@pytest.mark.parametrize('num_copied, seq_len', [(16, 256), (1, 4), (3, 8), (5, 30)])
def test_selective_copying_is_its_definition(num_copied, seq_len):
  setting = small('selective_copying', num_copied=num_copied, seq_len=seq_len)
  blank, copy = setting.vocab_size - 2, setting.vocab_size - 1
  for part in evaluation.mad_task(setting):
    for tokens, targets in rows(part):
      assert len(tokens) == seq_len
      before, after = tokens[: -1 - num_copied], tokens[-num_copied:]
      content = [i for i in before if i != blank]
      assert tokens[-1 - num_copied] == copy
      assert after == [blank] * num_copied
      assert len(content) == num_copied
      assert max(content) < blank
      assert targets == [None] * (seq_len - num_copied) + content


def test_selective_copying_spreads_blanks_evenly():
  setting = small('selective_copying', num_copied=4, seq_len=21, num_train=2000)
  train, _ = evaluation.mad_task(setting)
  places = np.stack([np.flatnonzero(row < 14) for row in train.tokens])
  gaps = np.diff(places, prepend=-1) - 1
  assert gaps.sum(axis=1).tolist() == [12] * 2000
  assert np.abs(gaps.mean(axis=0) - 3).max() < 5 * np.sqrt(12 * 3 / 16 / 2000)


def test_compression_asks_for_all_that_it_shows():
  for part in evaluation.mad_task(small('compression')):
    np.testing.assert_array_equal(part.tokens, part.targets)
    assert part.mask.all()
    assert (part.tokens[:, -1] == 15).all()
    assert set(part.tokens[:, :-1].ravel()) == set(range(15))
    assert part.tokens.shape[1] == 32


def mapping(part, insert):
  found = {}
  for tokens, targets in rows(part):
    assert tokens[1::2] == [insert] * (len(tokens) // 2)
    assert targets[::2] == [None] * (len(tokens) // 2)
    for key, value in zip(tokens[::2], targets[1::2], strict=True):
      assert found.setdefault(key, value) == value
  return found


@pytest.mark.parametrize('vocab_size', [256, 7, 8, 3])
def test_memorization_has_one_value_for_each_key(vocab_size):
  setting = small('memorization', vocab_size=vocab_size)
  train, test = (mapping(part, vocab_size - 1) for part in evaluation.mad_task(setting))
  assert train == test
  num_keys = (vocab_size - 1) // 2
  assert set(train) == set(range(num_keys))
  assert set(train.values()) <= set(range(num_keys, vocab_size - 1))
  assert len(set(train.values())) == num_keys


def test_memorization_draws_its_values_by_seed():
  setting = small('memorization')
  first, other = (mapping(evaluation.mad_task(setting, seed=s)[0], 255) for s in (0, 1))
  assert first != other


@pytest.mark.parametrize('task', evaluation.MAD_BASELINES)
def test_mad_tests_with_other_sequences_than_it_trains_on(task):
  train, test = evaluation.mad_task(small(task))
  assert len(train.tokens) == 300
  assert len(test.tokens) == 100
  assert not set(map(bytes, train.tokens)) & set(map(bytes, test.tokens))


@pytest.mark.parametrize('task', evaluation.MAD_BASELINES)
def test_mad_depends_on_setting_and_seed_alone(task):
  setting = small(task)
  first, again, other = (evaluation.mad_task(setting, seed=s) for s in (0, 0, 1))
  for i in range(2):
    for a, b in zip(first[i], again[i], strict=True):
      np.testing.assert_array_equal(a, b)
    assert (first[i].tokens != other[i].tokens).any()
    assert [x.dtype for x in first[i]] == [np.int32, np.int32, np.float32]
    assert not first[i].targets[first[i].mask == 0].any()


def test_mad_settings_are_those_of_the_benchmark():
  """V, S, N, then what the task has of its own: noise tokens and their share, motif, copies."""
  numbers = {'num_train': [6400, 3200, 1600, 800]}
  wide = {'vocab_size': [32, 64, 128]}
  long = {'seq_len': [256, 512, 1024]}
  expected = {
    'recall': ((16, 128, 12800, 0, 0, 1, 0), wide | long | numbers),
    'fuzzy_recall': ((16, 128, 12800, 0, 0, 3, 0), wide | long | numbers),
    'noisy_recall': (
      (32, 128, 12800, 16, 0.2, 1, 0),
      {'vocab_size': [48, 80, 144], 'noise_fraction': [0.4, 0.6, 0.8]} | long | numbers,
    ),
    'selective_copying': (
      (16, 256, 12800, 0, 0, 1, 16),
      wide | {'seq_len': [512, 1024], 'num_copied': [32, 64, 96]} | numbers,
    ),
    'compression': ((16, 32, 12800, 0, 0, 1, 0), wide | {'seq_len': [64, 128, 256]} | numbers),
    'memorization': ((256, 32, 256, 0, 0, 1, 0), {'vocab_size': [512, 1024, 2048, 4096, 8192]}),
  }
  assert set(expected) == set(evaluation.MAD_BASELINES)
  for task, (baseline, changes) in expected.items():
    first, *others = map(dataclasses.asdict, evaluation.mad_settings(task))
    assert first.pop('task') == task
    assert first.pop('num_test') == 1280
    assert tuple(first.values()) == baseline
    found = {}
    for other in others:
      [name] = [name for name in first if other[name] != first[name]]
      found.setdefault(name, []).append(other[name])
    assert found == changes


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'task': 'copying'}, r"`task` must be one of \['compression', .* got 'copying'"),
    ({'task': 'recall', 'num_copied': 3}, '`num_copied` is of selective_copying, not of recall'),
    ({'task': 'recall', 'seq_len': 9}, '`seq_len` of recall must be even, got 9'),
    ({'task': 'recall', 'vocab_size': 1}, '`vocab_size` of recall must be at least 2, got 1'),
    ({'task': 'recall', 'num_train': 0}, '`num_train` must be an integer of at least 1'),
    ({'task': 'noisy_recall'}, '`noise_vocab_size` must be an integer of at least 1'),
    (
      {'task': 'noisy_recall', 'noise_vocab_size': 15, 'noise_fraction': 0.1},
      '`vocab_size` of noisy_recall must be at least 17, got 16',
    ),
    (
      {'task': 'noisy_recall', 'noise_vocab_size': 4, 'noise_fraction': 1.0},
      r'`noise_fraction` must be in \[0, 1\), got 1.0',
    ),
    (
      {'task': 'fuzzy_recall', 'motif_size': 8},
      '`vocab_size` of fuzzy_recall must be at least 17, got 16',
    ),
    (
      {'task': 'selective_copying', 'num_copied': 64},
      '`seq_len` of selective_copying must be at least 130, got 128',
    ),
    ({'task': 'memorization', 'seq_len': 31}, '`seq_len` of memorization must be even, got 31'),
  ],
)
def test_mad_says_which_settings_it_needs(fields, message):
  with pytest.raises(ValueError, match=message):
    MADSetting(**fields)


def test_mad_says_which_tasks_and_seeds_there_are():
  with pytest.raises(ValueError, match="`task` must be one of .* got 'copying'"):
    evaluation.mad_settings('copying')
  with pytest.raises(ValueError, match='`seed` must be an integer of at least 0, got -1'):
    evaluation.mad_task(MADSetting('compression'), seed=-1)
