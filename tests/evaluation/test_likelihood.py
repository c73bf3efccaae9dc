"""Passages read side by side have the likelihoods that they have alone."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx import evaluation
from nlx.evaluation import Likelihood, Passage, likelihood
from tests.evaluation import reference
from tests.models import problems

# From shorter than a base chunk of 8 to many stretches of 16; all tokens scored, some, one, none.
SIZES = ((40, 5), (9, 8), (23, 1), (2, 1), (34, 33), (5, 0))
every_model = pytest.mark.parametrize('name', reference.CONFIGS)


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch):
  """One program reads all lengths."""
  monkeypatch.setattr(likelihood, 'MAX_STRETCH', 16)
  monkeypatch.setattr(likelihood, 'MIN_CHUNKS', 1)


def model(name):
  return problems.make(reference.CONFIGS[name])


def passages():
  return [
    Passage(np.asarray(problems.tokens(1, length, seed=i)[0]), num_scored)
    for i, (length, num_scored) in enumerate(SIZES)
  ]


def likelihoods(model, passages, batch_size=4, **options):
  found = list(evaluation.likelihoods(model, passages, batch_size=batch_size, **options))
  assert sorted(place for place, _ in found) == list(range(len(passages)))
  return [score for _, score in sorted(found)]


def alone(config, passage, **options):
  """The likelihood of a passage that is read alone, token by token."""
  if not passage.num_scored:
    return Likelihood(0.0, True)
  chosen, hits = reference.log_probs(config, passage.tokens, **options)
  scored = slice(len(chosen) - passage.num_scored, None)
  return Likelihood(chosen[scored].sum(), hits[scored].all())


def assert_close(got, expected):
  got, expected = np.array(got), np.array(expected)
  np.testing.assert_allclose(got[:, 0], expected[:, 0], rtol=1e-5)
  np.testing.assert_array_equal(got[:, 1], expected[:, 1])


@every_model
def test_likelihoods_of_a_batch_are_those_of_each_passage_alone(name):
  config = reference.CONFIGS[name]
  got = likelihoods(model(name), passages())
  assert_close(got, [alone(config, passage) for passage in passages()])


@pytest.mark.parametrize('name', ['hope', 'hope-attention'])
def test_likelihoods_are_those_of_a_model_that_learns_while_it_reads(name):
  config, [longest, *_] = reference.CONFIGS[name], passages()
  unlearned = alone(config, longest, learns=False)
  [learned, *_] = likelihoods(model(name), passages())
  assert abs(learned.log_likelihood - unlearned.log_likelihood) > 1e-3


def test_likelihoods_tell_what_a_greedy_reader_would_have_written():
  config, tokens = reference.CONFIGS['transformer'], [3, 1, 4]
  written = reference.continuation(config, tokens, 6)
  other = [*written[:-1], (written[-1] + 1) % problems.VOCAB]
  asked = [Passage(np.array([*tokens, *after]), 6) for after in (written, other)]
  scores = likelihoods(model('transformer'), asked)
  assert [score.is_greedy for score in scores] == [True, False]


def test_windows_are_passages_of_their_own():
  config, [passage, *_] = reference.CONFIGS['transformer'], passages()
  passage = passage._replace(num_scored=39)
  cut = likelihood.windows(passage, 15)
  assert [window.num_scored for window in cut] == [15, 15, 9]
  expected = sum(alone(config, window).log_likelihood for window in cut)
  [got] = likelihoods(model('transformer'), [passage], max_length=15)
  np.testing.assert_allclose(got.log_likelihood, expected, rtol=1e-5)


@pytest.mark.parametrize('max_length', [1, 2, 5, 19, 20, None])
@pytest.mark.parametrize('num_scored', [0, 1, 7, 19])
def test_windows_score_every_token_once_with_as_much_context_as_fits(max_length, num_scored):
  passage = Passage(np.arange(20), num_scored)
  scored = []
  for window in likelihood.windows(passage, max_length):
    scored += window.tokens[len(window.tokens) - window.num_scored :].tolist()
    end = int(window.tokens[-1])
    size = end if max_length is None else min(end, max_length)
    np.testing.assert_array_equal(window.tokens, np.arange(end - size, end + 1))
  assert scored == list(range(20 - num_scored, 20))


@pytest.mark.parametrize(
  ('tokens', 'num_scored', 'message'),
  [
    ([], 0, r'`passages\[1\].tokens` must hold at least one token, got none'),
    ([3, 4], 2, r'`passages\[1\].num_scored` must be from 0 to 1, .* got 2'),
    ([3, 4], -1, 'got -1'),
    ([3, 32], 1, r'`passages\[1\].tokens` must lie in 0..31, got 32'),
    ([-1, 3], 1, r'`passages\[1\].tokens` must lie in 0..31, got -1'),
  ],
  ids=['empty', 'too-many', 'negative', 'above', 'below'],
)
def test_passage_that_cannot_be_scored_is_named(tokens, num_scored, message):
  wrong = [Passage(np.array([1, 2]), 1), Passage(np.array(tokens, int), num_scored)]
  with pytest.raises(ValueError, match=message):
    evaluation.likelihoods(model('transformer'), wrong)


def test_tokens_that_are_no_integers_are_an_error():
  with pytest.raises(ValueError, match=r'`passages\[0\].tokens` must be integers, got float64'):
    evaluation.likelihoods(model('transformer'), [Passage(np.array([1.5, 2.0]), 1)])


@pytest.mark.parametrize('name', ['batch_size', 'max_length'])
def test_likelihoods_names_a_size_that_is_none(name):
  with pytest.raises(ValueError, match=f'`{name}` must be an integer of at least 1'):
    evaluation.likelihoods(model('transformer'), [], **{name: 0})


def test_likelihoods_name_the_passage_on_which_a_model_diverges():
  graph, params = problems.split(reference.CONFIGS['transformer'])
  token = int(passages()[2].tokens[-2])
  broken = nnx.merge(graph, params)
  broken.embedding[...] = broken.embedding[...].at[token].set(jnp.nan)
  clean = Passage(np.full(4, (token + 1) % problems.VOCAB), 2)
  with pytest.raises(FloatingPointError, match=r'`passages\[1\]` has a token without'):
    likelihoods(broken, [clean, passages()[2]])
