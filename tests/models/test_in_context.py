"""Learning in context, against one flat loop over base chunks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.compiling import quick_jit
from tests.models import problems, reference

METAS = ('full', 'first', 'detached')
DOUBLE = {'dtype': jnp.float64, 'param_dtype': jnp.float64}
ONE_LAYER = dataclasses.replace(problems.ONE_LAYER, chunk_size=8, **DOUBLE)


def texts(length=48):
  """Tokens, targets and a mask with holes, one as long as a base chunk."""
  tokens, targets, mask = problems.texts(length=length)
  holes = jax.random.bernoulli(jax.random.key(2), 0.8, mask.shape)
  return tokens, targets, (mask * holes).at[1, 16:24].set(0)


def losses(model, *text):
  """Of every sequence and base chunk [B, n]."""
  return model.run(*text, lambda fast, carry, logits: ()).loss.T


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('max_norm', [0.1, 100.0], ids=['clipped', 'unclipped'])
def test_losses_equal_the_flat_loop(max_norm):
  """With two layers and a block that never learns between those that do."""
  config = dataclasses.replace(problems.HOPE, cms_max_norm=max_norm, **DOUBLE)
  got, expected = (
    quick_jit(functools.partial(each, problems.make(config)))(*texts())
    for each in (losses, reference.batch_losses)
  )
  np.testing.assert_allclose(got, expected, rtol=1e-10)


def weighted(values):
  return jnp.sum(values * jnp.arange(1.0, values.size + 1).reshape(values.shape))


@functools.cache
def flat_gradient():
  """`(params, meta) -> gradient`, compiled once for every meta."""
  graph = nnx.graphdef(problems.make(ONE_LAYER))

  def loss(params, first, detached):
    model = nnx.merge(graph, params)
    return weighted(reference.batch_losses(model, *texts(), first, detached))

  gradient = quick_jit(jax.grad(loss))
  return lambda params, meta: gradient(params, meta == 'first', meta == 'detached')


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('meta', METAS)
def test_outer_gradient_equals_that_of_the_flat_loop(meta):
  graph, params = nnx.split(problems.make(dataclasses.replace(ONE_LAYER, meta=meta)))
  loss = lambda params: weighted(losses(nnx.merge(graph, params), *texts()))  # noqa: E731
  got, expected = quick_jit(jax.grad(loss))(params), flat_gradient()(params, meta)

  def close(x, y):
    scale = 1 + jnp.abs(y).max()
    np.testing.assert_allclose(x / scale, y / scale, rtol=0, atol=1e-10)

  jax.tree.map(close, got, expected)


@pytest.mark.usefixtures('float64')
def test_outer_gradients_of_different_meta_differ():
  params = nnx.state(problems.make(ONE_LAYER))
  full, first, detached = (
    jnp.concatenate([x.ravel() for x in jax.tree.leaves(flat_gradient()(params, meta))])
    for meta in METAS
  )
  for one, other in ((full, first), (first, detached), (full, detached)):
    assert float(jnp.abs(one - other).max()) > 1e-3
