"""Documents one after the other in a sequence: what came before one is forgotten."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx import models
from tests.compiling import quick_jit
from tests.models import problems

CHUNK, LENGTH = 8, 48
# Documents of 16, 8 and 24 tokens in one sequence, of 32 and 16 in the other.
STARTS = jnp.array([[1, 0, 1, 1, 0, 0], [1, 0, 0, 0, 1, 0]], bool)
ATTENTION = problems.CONFIGS['hope-attention']
CONFIGS = {
  'hope': problems.with_cms(problems.ONE_LAYER, periods=(8,)),
  'nested': dataclasses.replace(
    problems.with_cms(ATTENTION, periods=(8, 16, 0), form='nested'), num_layers=1
  ),
  'transformer': models.transformer(**problems.SIZES),
  'retnet': models.retnet(
    **problems.SIZES | {'num_layers': 2}, chunk_size=CHUNK, learned_start=True
  ),
  'window': models.transformer(**problems.SIZES | {'num_layers': 1}, window=6, num_persistent=2),
}
CONFIGS = {name: problems.in_float64(config) for name, config in CONFIGS.items()}
pytestmark = pytest.mark.usefixtures('float64')
every_model = pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)


@functools.cache
def programs(config):
  """Losses [B, n] of a batch, and they and the gradient of those of the last chunk."""
  graph, params = problems.split(config)

  def losses(params, tokens, starts):
    mask = jnp.ones(tokens.shape).at[:, -1].set(0)
    text = (tokens, jnp.roll(tokens, -1, axis=1), mask)
    return nnx.merge(graph, params).run(*text, lambda *_: (), starts).loss.T

  def last(*args):
    values = losses(*args)
    return values[:, -1].sum(), values

  both = quick_jit(jax.grad(last, has_aux=True))
  one = functools.partial(quick_jit(losses), params)
  return one, lambda *text: both(params, *text)[::-1]


def losses(config, tokens, starts):
  return np.asarray(programs(config)[0](tokens, starts))


@every_model
def test_document_does_not_know_what_came_before_it(config):
  """Losses and gradients of what follows are the same, to the last bit."""
  tokens, other = problems.tokens(length=LENGTH), problems.tokens(length=LENGTH, seed=7)
  changed = tokens.at[0, :24].set(other[0, :24]).at[1, :32].set(other[1, :32])
  got, expected = (programs(config)[1](text, STARTS) for text in (changed, tokens))
  for sequence, chunk in ((0, 3), (1, 4)):
    np.testing.assert_array_equal(got[0][sequence, chunk:], expected[0][sequence, chunk:])
    assert np.abs(got[0] - expected[0])[sequence, :2].min() > 1e-3
  jax.tree.map(np.testing.assert_array_equal, got[1], expected[1])


@every_model
def test_document_is_read_as_if_it_were_alone(config):
  """Those that begin where a period of every level does."""
  tokens = problems.tokens(length=LENGTH)
  together = losses(config, tokens, STARTS)
  first = jnp.zeros_like(STARTS).at[:, 0].set(True)
  alone = losses(config, jnp.roll(tokens, -32, axis=1), first)
  np.testing.assert_allclose(together[1, 4:-1], alone[1, :1], rtol=1e-10)
  begun = losses(config, tokens, first)
  np.testing.assert_allclose(together[0, :2], begun[0, :2], rtol=1e-10)
  np.testing.assert_allclose(together[1, :4], begun[1, :4], rtol=1e-10)
  assert np.abs(together - begun)[1, 4] > 1e-3


@every_model
def test_one_document_is_a_sequence_without_starts(config):
  tokens = problems.tokens(length=LENGTH)
  first = jnp.zeros_like(STARTS).at[:, 0].set(True)
  got = losses(config, tokens, first)
  expected = losses(config, tokens, None)
  np.testing.assert_allclose(got.sum(axis=1), expected.sum(axis=1), rtol=1e-10)


def test_documents_may_end_within_a_chunk():
  """At a length that no chunk divides."""
  tokens, short = problems.tokens(length=LENGTH), LENGTH - 3
  got = losses(CONFIGS['hope'], tokens[:, :short], STARTS)
  np.testing.assert_allclose(
    got[:, :-1], losses(CONFIGS['hope'], tokens, STARTS)[:, :-1], rtol=1e-10
  )
  assert got.shape == STARTS.shape


@pytest.mark.parametrize(
  ('name', 'length', 'entries'),
  [('hope', 48, 5), ('hope', 41, 5), ('hope', 40, 6), ('window', 8, 0), ('window', 9, 2)],
)
def test_starts_that_do_not_fit_are_an_error(name, length, entries):
  starts = jnp.ones((problems.BATCH, entries), bool)
  with pytest.raises(ValueError, match='`starts` must have one entry for every base chunk of'):
    problems.make(CONFIGS[name]).loss(*problems.texts(length=length), starts)


def test_starts_of_another_number_of_sequences_are_an_error():
  with pytest.raises(
    ValueError, match=r'`starts` must be \[B, n\] with the 2 sequences .* got \(1, 6'
  ):
    problems.make(CONFIGS['hope']).loss(*problems.texts(length=LENGTH), STARTS[:1])
