"""Choosing the next token, against plain definitions of which tokens are kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx.models import GREEDY, Sampling
from nlx.models.sampling import choose
from tests.compiling import quick_jit

VOCAB, DRAWS = 7, 400
LOGITS = np.array([1.0, 3.0, -2.0, 3.0, 0.5, 2.0, -9.0], np.float32)  # 1 and 3 are equally likely.
ORDER = [1, 3, 5, 0, 4, 2, 6]


def probabilities(logits, temperature=1.0):
  odds = np.exp((logits - logits.max()).astype(np.float64) / temperature)
  return odds / odds.sum()


def kept(logits, top_k=None, top_p=1.0, temperature=1.0):
  """The tokens that may be chosen: the first `top_k` of the order, then the nucleus of these."""
  order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:top_k]
  if top_p == 1:
    return set(order)
  odds, nucleus, mass = probabilities(logits[order], temperature), [], 0.0
  for token, probability in zip(order, odds, strict=True):
    nucleus.append(token)
    mass += probability
    if mass >= top_p:
      break
  return set(nucleus)


@functools.cache
def draws(sampling, logits=tuple(LOGITS), dtype=jnp.float32):
  """Many choices from the same logits, one for each row."""
  rows = jnp.tile(jnp.asarray(logits, dtype), (DRAWS, 1))
  return np.asarray(
    quick_jit(lambda rows, key: choose(rows, key, sampling))(rows, jax.random.key(0))
  )


@pytest.mark.parametrize('top_k', [1, 2, 3, VOCAB])
def test_top_k_keeps_the_first_k_of_the_order(top_k):
  """Of two that are equally likely, the one with the lower id comes first."""
  assert set(draws(Sampling(temperature=5.0, top_k=top_k))) == set(ORDER[:top_k])


@pytest.mark.parametrize('temperature', [0.5, 4.0])
@pytest.mark.parametrize('top_p', [0.3, 0.45, 0.8, 0.95])
def test_top_p_keeps_the_nucleus(top_p, temperature):
  expected = kept(LOGITS, top_p=top_p, temperature=temperature)
  assert set(draws(Sampling(temperature, top_p=top_p))) == expected


@pytest.mark.parametrize('top_p', [0.5, 0.9])
def test_top_p_divides_the_probability_of_what_top_k_keeps(top_p):
  got = set(draws(Sampling(4.0, top_k=4, top_p=top_p)))
  assert got == kept(LOGITS, 4, top_p, 4.0) != kept(LOGITS, None, top_p, 4.0)


@pytest.mark.parametrize('top_p', [1e-50, 1e-6])
def test_top_p_always_keeps_the_most_likely_token(top_p):
  assert set(draws(Sampling(top_p=top_p))) == {ORDER[0]}


def test_top_p_of_1_keeps_all_tokens():
  """Those as well that are behind a sum of probabilities that rounds to 1."""
  logits = (20.0, *(0.0,) * 6)
  assert set(draws(Sampling(5.0, top_p=1.0), logits)) == set(range(VOCAB))
  assert (draws(Sampling(5.0)) == draws(Sampling(5.0, top_p=1.0))).all()


def test_tokens_are_chosen_by_their_probabilities():
  many = np.concatenate([draws(Sampling(2.0, top_k=VOCAB)), draws(Sampling(2.0))])
  frequencies = np.bincount(many, minlength=VOCAB) / many.size
  np.testing.assert_allclose(frequencies, probabilities(LOGITS, 2.0), atol=0.05)


@pytest.mark.parametrize(
  'sampling', [GREEDY, Sampling(1e-30), Sampling(1e-50), Sampling(top_k=1)], ids=str
)
def test_greedy_choice_is_the_first_of_the_most_likely(sampling):
  logits = (1.0, 3.0, -2.0, 2.9, 0.5, 2.0, -9.0)
  assert set(draws(sampling, logits)) == {1}
  if sampling in (GREEDY, Sampling(top_k=1)):
    assert set(draws(sampling)) == {1}


def test_tokens_equally_likely_are_chosen_equally_often_at_any_temperature():
  assert 0.4 < (draws(Sampling(1e-30)) == 1).mean() < 0.6


def test_impossible_tokens_are_never_chosen():
  logits = (-np.inf, 0.0, -np.inf, 0.0, 0.0, -np.inf, -np.inf)
  assert set(draws(Sampling(3.0, top_k=6, top_p=0.999), logits)) == {1, 3, 4}


def test_large_logits_of_few_bits_are_no_problem():
  assert set(draws(Sampling(0.5, top_p=0.9), (3e38, 3e38, -3e38), jnp.bfloat16)) == {0, 1}


@pytest.mark.parametrize('sampling', [Sampling(), GREEDY, Sampling(top_k=3, top_p=0.9)], ids=str)
def test_choices_are_token_ids(sampling):
  assert draws(sampling).dtype == np.int32


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'temperature': -1.0}, '`temperature` must be a finite number of at least 0, got -1.0'),
    ({'temperature': float('inf')}, '`temperature` must be a finite number .*, got inf'),
    ({'temperature': float('nan')}, '`temperature` must be a finite number .*, got nan'),
    ({'top_k': 0}, '`top_k` must be an integer of at least 1 token, got 0'),
    ({'top_k': 2.0}, '`top_k` must be an integer of at least 1 token, got 2.0'),
    ({'top_p': 0.0}, '`top_p` must be above 0 and at most 1, got 0.0'),
    ({'top_p': 1.1}, '`top_p` must be above 0 and at most 1, got 1.1'),
    ({'top_p': float('nan')}, '`top_p` must be above 0 and at most 1, got nan'),
  ],
  ids=str,
)
def test_sampling_names_a_wrong_argument(options, message):
  with pytest.raises(ValueError, match=message):
    Sampling(**options)


def test_top_k_beyond_the_vocabulary_is_an_error():
  with pytest.raises(ValueError, match='`top_k` must be at most the 7 tokens .*, got 8'):
    draws(Sampling(top_k=8))
