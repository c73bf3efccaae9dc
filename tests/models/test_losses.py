"""The loss of long sequences, in pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx import models
from nlx.models import losses
from tests.compiling import quick_jit

BATCH, LENGTH, DIM, VOCAB = 2, 13, 4, 11


def problem():
  random = np.random.default_rng(0)
  hidden, kernel = random.normal(size=(BATCH, LENGTH, DIM)), random.normal(size=(DIM, VOCAB))
  return hidden, kernel, random.integers(VOCAB, size=(BATCH, LENGTH))


def gradients_and_losses(*args):
  def total(hidden, kernel, targets):
    found = models.head_losses(lambda x: x @ kernel, hidden, targets, VOCAB)
    return jnp.sum(found * jnp.arange(1.0, LENGTH + 1)[None]), found

  return quick_jit(jax.grad(total, (0, 1), has_aux=True))(*args)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('tokens', [1, 4, 5, 12])
def test_losses_in_pieces_are_those_of_all_logits(tokens, monkeypatch):
  """Forward and backward, whether the pieces divide the sequence or not."""
  monkeypatch.setattr(losses, 'MAX_LOGITS', tokens * VOCAB)
  hidden, kernel, targets = problem()
  gradients, found = gradients_and_losses(hidden, kernel, targets)
  monkeypatch.undo()
  expected_gradients, expected = gradients_and_losses(hidden, kernel, targets)
  plain = quick_jit(models.token_losses)(hidden @ kernel, targets)
  np.testing.assert_allclose(found, plain, rtol=1e-12)
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10), gradients, expected_gradients
  )


def test_targets_may_be_of_fewer_bits_than_the_vocabulary():
  logits = jnp.zeros((1, 300)).at[0, 256].set(5)
  targets = jnp.zeros((1,), jnp.uint8)
  np.testing.assert_array_equal(
    models.token_losses(logits, targets), models.token_losses(logits, targets.astype(int))
  )


@pytest.mark.parametrize('learns', [False, True])
def test_no_array_of_a_long_sequence_is_as_large_as_its_logits(learns, monkeypatch):
  """In the gradient of a model, which may read it as one base chunk."""
  length, vocab = 64, 512
  options = {'vocab_size': vocab, 'model_dim': 8, 'num_layers': 1, 'num_heads': 2}
  periods = {'cms_periods': (64,)} if learns else {}
  config = (models.hope_attention if learns else models.transformer)(**options, **periods)
  model = models.create(config, rngs=nnx.Rngs(0))
  graph, params = nnx.split(model)
  tokens = jnp.zeros((1, length), jnp.int32)

  def loss(params):
    return nnx.merge(graph, params).loss(tokens, tokens, jnp.ones((1, length)))[0]

  def has_all_logits():
    return f'1x{length}x{vocab}xf32' in jax.jit(jax.grad(loss)).lower(params).as_text()

  assert has_all_logits()
  monkeypatch.setattr(losses, 'MAX_LOGITS', 16 * vocab)
  assert not has_all_logits()


@pytest.mark.parametrize('target', [-100, -1, VOCAB])
def test_loss_of_a_target_outside_of_the_vocabulary_is_nan(target):
  assert np.isnan(models.token_losses(jnp.zeros((1, VOCAB)), jnp.array([target]))).all()
  assert np.isfinite(models.token_losses(jnp.zeros((1, VOCAB)), jnp.array([VOCAB - 1]))).all()
