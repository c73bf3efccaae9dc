"""The loss of long sequences, in pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx import models
from nlx.models import losses

BATCH, LENGTH, DIM, VOCAB = 2, 13, 4, 11


def problem():
  keys = jax.random.split(jax.random.key(0), 3)
  hidden = jax.random.normal(keys[0], (BATCH, LENGTH, DIM), jnp.float64)
  kernel = jax.random.normal(keys[1], (DIM, VOCAB), jnp.float64)
  return hidden, kernel, jax.random.randint(keys[2], (BATCH, LENGTH), 0, VOCAB)


def total(hidden, kernel, targets):
  found = models.head_losses(lambda x: x @ kernel, hidden, targets, VOCAB)
  return jnp.sum(found * jnp.arange(1.0, LENGTH + 1)[None]), found


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('tokens', [1, 4, 5, 12])
def test_losses_in_pieces_are_those_of_all_logits(tokens, monkeypatch):
  """Forward and backward, whether the pieces divide the sequence or not."""
  monkeypatch.setattr(losses, 'MAX_LOGITS', tokens * VOCAB)
  hidden, kernel, targets = problem()
  gradients, found = jax.grad(total, (0, 1), has_aux=True)(hidden, kernel, targets)
  monkeypatch.undo()
  expected_gradients, expected = jax.grad(total, (0, 1), has_aux=True)(hidden, kernel, targets)
  np.testing.assert_allclose(found, models.token_losses(hidden @ kernel, targets), rtol=1e-12)
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10), gradients, expected_gradients
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
