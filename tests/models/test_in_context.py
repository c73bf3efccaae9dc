"""Learning in context, against one flat loop over base chunks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx import memories
from tests.compiling import quick_jit
from tests.models import problems, reference

METAS = ('full', 'first', 'detached')
# Two layers, so that a mixer stands between blocks that learn, and in HOPE-Attention also one that
# never does. Of the gradients below, about half have a norm over 0.7, and these are clipped.
HOPE = problems.with_mixer(problems.HOPE, chunk_size=8, rule=memories.dgd(), adaptive=('k',))
HOPE = problems.in_float64(problems.with_cms(HOPE, periods=(8, 16), max_norm=0.7))
ATTENTION = problems.in_float64(problems.with_cms(problems.CONFIGS['hope-attention'], max_norm=0.7))
CASES = {'hope-full': (HOPE, 'full'), **{f'attention-{m}': (ATTENTION, m) for m in METAS}}
every_case = pytest.mark.parametrize(('config', 'meta'), CASES.values(), ids=CASES)


def texts():
  """Tokens, targets and a mask with holes, one as long as a base chunk."""
  tokens, targets, mask = problems.texts(length=48)
  holes = jax.random.bernoulli(jax.random.key(2), 0.8, mask.shape)
  return tokens, targets, (mask * holes).at[1, 16:24].set(0)


def losses_and_gradient(losses, params):
  """Of a function `params -> losses [B, n]`, and of a sum of the losses with different weights."""

  def loss(params):
    values = losses(params)
    return jnp.sum(values * jnp.arange(1.0, values.size + 1).reshape(values.shape)), values

  gradient, values = jax.grad(loss, has_aux=True)(params)
  return values, gradient


@functools.cache
def nested(config, meta):
  graph, params = problems.split(dataclasses.replace(config, meta=meta))

  def losses(params):
    return nnx.merge(graph, params).run(*texts(), lambda reading: ()).loss.T

  return quick_jit(functools.partial(losses_and_gradient, losses))(params)


@functools.cache
def flat_program(config):
  """One program for all kinds of outer gradients."""
  graph, _ = problems.split(config)

  def run(params, first, detached):
    def losses(params):
      return reference.batch_losses(nnx.merge(graph, params), *texts(), first, detached)

    return losses_and_gradient(losses, params)

  return quick_jit(run)


def flat(config, meta):
  _, params = problems.split(config)
  return flat_program(config)(params, meta == 'first', meta == 'detached')


@pytest.mark.usefixtures('float64')
@every_case
def test_losses_equal_those_of_the_flat_loop(config, meta):
  np.testing.assert_allclose(nested(config, meta)[0], flat(config, meta)[0], rtol=1e-10)


@pytest.mark.usefixtures('float64')
@every_case
def test_outer_gradient_equals_that_of_the_flat_loop(config, meta):
  def close(x, y):
    scale = 1 + np.abs(y).max()
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-10 * scale)

  jax.tree.map(close, nested(config, meta)[1], flat(config, meta)[1])


@pytest.mark.usefixtures('float64')
def test_outer_gradients_of_different_meta_differ():
  full, first, detached = (
    np.concatenate([np.ravel(x) for x in jax.tree.leaves(nested(ATTENTION, meta)[1])])
    for meta in METAS
  )
  for one, other in ((full, first), (first, detached), (full, detached)):
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.usefixtures('float64')
def test_nested_blocks_differ_from_sequential_ones_once_the_slower_period_has_ended():
  """The faster block, of period 8, restarts after 16 tokens from what the slower one learned."""
  model = problems.make(problems.with_cms(ATTENTION, form='nested'))
  losses = quick_jit(lambda: model.run(*texts(), lambda *_: ()).loss.T)()
  sequential = nested(ATTENTION, 'full')[0]
  np.testing.assert_allclose(losses[:, :2], sequential[:, :2], rtol=1e-10)
  assert float(jnp.abs(losses - sequential)[:, 3:].min()) > 1e-6  # A chunk has no targets.
