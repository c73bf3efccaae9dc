import itertools

import numpy as np
import pytest

from nlx import data

TOKENS = np.arange(1000)
SAMPLING = ('epochs', 'random')


def batches(tokens=TOKENS, **changes):
  arguments = {'seq_len': 16, 'batch_size': 4, 'seed': 0, **changes}
  return data.train_batches(tokens, **arguments)


def take(iterator, count):
  return [batch['tokens'] for batch in itertools.islice(iterator, count)]


def validation(tokens, **changes):
  arguments = {'seq_len': 16, 'batch_size': 4, **changes}
  return list(data.validation_batches(data.Split(tokens, len(tokens)), **arguments))


def predicted(found):
  return np.concatenate([batch['targets'][batch['mask'] > 0] for batch in found])


@pytest.mark.parametrize('sampling', SAMPLING)
def test_batches_are_a_function_of_the_seed(sampling):
  first, second = (take(batches(sampling=sampling, seed=3), 40) for _ in range(2))
  np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize('sampling', SAMPLING)
def test_batches_differ_between_seeds(sampling):
  first, second = (take(batches(sampling=sampling, seed=seed), 4) for seed in (0, 1))
  assert not np.array_equal(first, second)


def test_targets_are_the_next_tokens():
  batch = next(batches())
  np.testing.assert_array_equal(batch['targets'], batch['tokens'] + 1)


def test_batch_has_the_shapes_and_types_that_a_model_takes():
  kinds = {name: (rows.shape, str(rows.dtype)) for name, rows in next(batches()).items()}
  assert kinds == {
    'tokens': ((4, 16), 'int32'),
    'targets': ((4, 16), 'int32'),
    'mask': ((4, 16), 'float32'),
  }


def test_an_epoch_shows_no_token_twice():
  epoch = np.concatenate(take(batches(batch_size=1), 61))  # (999 // 16) - 1 windows
  assert len(np.unique(epoch)) == epoch.size


def test_epochs_begin_at_different_offsets():
  firsts = [rows[0, 0] % 16 for rows in take(batches(batch_size=61), 8)]
  assert len(set(firsts)) > 4


@pytest.mark.parametrize('length', [17, 33, 49, 64, 1000])
def test_epochs_reach_every_token(length):
  tokens = np.arange(length)
  found = itertools.islice(batches(tokens, batch_size=1), 200 * max(1, length // 16))
  assert {0, *np.concatenate([batch['targets'].ravel() for batch in found])} == set(tokens)


def test_random_windows_reach_both_ends():
  begins = np.concatenate(take(batches(np.arange(20), sampling='random', batch_size=8), 20))[:, 0]
  assert (begins.min(), begins.max()) == (0, 3)


@pytest.mark.parametrize('sampling', SAMPLING)
@pytest.mark.parametrize('length', [17, 18, 32, 33, 34, 49])
def test_short_texts_fill_every_window(sampling, length):
  found = take(batches(np.arange(length), sampling=sampling), 10)
  assert max(rows.max() for rows in found) < length - 1


@pytest.mark.parametrize('consumed', [0, 7, 40])  # An epoch has 15 batches.
def test_iterator_resumes_where_it_was(consumed):
  original = batches()
  take(original, consumed)
  resumed = batches()
  resumed.set_state(original.get_state())
  np.testing.assert_array_equal(take(original, 20), take(resumed, 20))


def test_processes_share_each_batch():
  whole = take(batches(), 5)
  parts = [take(batches(process_index=i, process_count=2), 5) for i in range(2)]
  for both, one, two in zip(whole, *parts, strict=True):
    assert sorted(both[:, 0]) == sorted([*one[:, 0], *two[:, 0]])


def test_process_states_are_equal():
  both = [batches(process_index=i, process_count=2) for i in range(2)]
  for iterator in both:
    take(iterator, 3)
  assert both[0].get_state() == both[1].get_state()


@pytest.mark.parametrize('length', [1, 15, 16, 17, 64, 65, 200])
def test_validation_predicts_every_token_once(length):
  tokens = np.arange(1, length + 1)
  found = predicted(validation(tokens, context=np.array([9, 0])))
  np.testing.assert_array_equal(found, tokens)


def test_validation_covers_the_last_tenth_of_a_corpus(tmp_path):
  text = ''.join(f'{number} ' for number in range(500)).encode()
  (tmp_path / 'a.txt').write_bytes(text)
  corpus = data.load(str(tmp_path / 'a.txt'), data.byte_tokenizer())
  found = data.validation_batches(
    corpus.validation, seq_len=16, batch_size=4, context=corpus.train.tokens
  )
  assert bytes(predicted(found).tolist()) == text[len(text) * 9 // 10 :]


def test_validation_reads_the_context_before_the_first_token():
  first = validation(np.arange(1, 40), context=np.array([8, 7]))[0]
  assert first['tokens'][0, :3].tolist() == [7, 1, 2]


def test_validation_without_context_predicts_from_the_second_token():
  np.testing.assert_array_equal(predicted(validation(np.arange(40))), np.arange(1, 40))


def test_validation_can_be_read_again():
  found = data.validation_batches(data.Split(TOKENS, 1000), seq_len=16, batch_size=4)
  assert len(list(found)) == len(list(found)) == 16


def test_validation_is_divided_over_processes():
  parts = [validation(TOKENS, process_index=i, process_count=2) for i in range(2)]
  joined = [np.concatenate([a['tokens'], b['tokens']]) for a, b in zip(*parts, strict=True)]
  np.testing.assert_array_equal(joined, [batch['tokens'] for batch in validation(TOKENS)])


def test_digest_tells_texts_apart(tmp_path):
  digests = set()
  for text in ('first', 'second'):
    (tmp_path / 'a.txt').write_text(text * 9)
    digests.add(data.load(str(tmp_path / 'a.txt'), data.byte_tokenizer()).digest)
  assert len(digests) == 2


def test_text_shorter_than_a_window_is_an_error():
  with pytest.raises(ValueError, match='`seq_len` . 1 = 17 tokens, got 16'):
    batches(np.arange(16))


def test_nothing_to_validate_is_an_error():
  with pytest.raises(ValueError, match='at least 2 tokens, got 1'):
    validation(np.arange(1))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'seq_len': 0}, '`seq_len`.*got 0'),
    ({'batch_size': 0}, '`batch_size`.*got 0'),
    ({'batch_size': 3, 'process_count': 2}, '`batch_size`.*multiple of the 2 processes, got 3'),
    ({'process_index': 2, 'process_count': 2}, '`process_index`.*got 2 of 2'),
    ({'sampling': 'all'}, "`sampling`.*got 'all'"),
    ({'seed': -1}, '`seed` must be at least 0, got -1'),
  ],
)
def test_argument_out_of_range_is_an_error(changes, message):
  with pytest.raises(ValueError, match=message):
    batches(**changes)
