"""The self-modifying layer: against the recurrence, at any cut, and what it reduces to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx import memories
from nlx.memories.self_modifying import ROLES, SelfModifying, SelfModifyingConfig
from tests.compiling import quick_jit
from tests.memories import problems
from tests.memories import reference_self_modifying as reference

BATCH, LENGTH, DIM, HEADS, HIDDEN, CHUNK, PROJECTION = 2, 21, 8, 2, 5, 4, 8
DEFAULT = ('k', 'v', 'eta', 'alpha')
DGD, MOMENTUM = memories.dgd(), memories.dgd(momentum=True)
VARIANTS = {
  'dgd-momentum': {},
  'dgd-chunk_read-adaptive_q': {'rule': DGD, 'reads': 'chunk', 'adaptive': ROLES},
  'gradient-momentum-exponential': {
    'rule': memories.gradient(momentum=True),
    'adaptive': ('q', 'alpha', 'k'),
    'rate_gate': 'exponential',
  },
  'gradient-chunk_read-no_retention': {
    'rule': memories.gradient(retention=False),
    'reads': 'chunk',
    'adaptive': ('v',),
  },
  'dgd-nothing_adaptive': {'rule': DGD, 'adaptive': ()},
  'dgd-momentum-chunk_1-literal': {
    'rule': memories.dgd(momentum=True, literal=True),
    'chunk_size': 1,
    'conv_width': 1,
  },
}


def make_layer(**options):
  """A small layer whose parameters, gates included, have no symmetry."""
  sizes = {'chunk_size': CHUNK, 'projection_chunk_size': PROJECTION}
  config = SelfModifyingConfig(DIM, HEADS, HIDDEN, **(sizes | options))
  layer = SelfModifying(config, rngs=nnx.Rngs(0))
  params = nnx.state(layer)
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  noisy = [
    x + 0.1 * jax.random.normal(key, x.shape, x.dtype) for key, x in zip(keys, leaves, strict=True)
  ]
  nnx.update(layer, jax.tree.unflatten(treedef, noisy))
  return layer


def inputs(dtype='float32', length=LENGTH):
  return jax.random.normal(jax.random.key(2), (BATCH, length, DIM), dtype)


def fresh(layer, x):
  return layer(x, layer.init_state(x.shape[0]))[0]


def outputs_and_gradients(layer, run):
  """Outputs of `run(layer, x)`, and the gradients of a loss of them for parameters and x."""
  graph, params = nnx.split(layer)

  def loss(params, x):
    outputs = run(nnx.merge(graph, params), x)
    weights = jnp.arange(1, outputs.size + 1).reshape(outputs.shape)
    return jnp.sum(jnp.sin(outputs) * weights) / outputs.size, outputs

  x = inputs(layer.config.param_dtype)
  gradients, outputs = quick_jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
  return outputs, gradients


@functools.cache
def both(variant):
  """`outputs_and_gradients` of the layer and of the recurrence."""
  options = {'dtype': jnp.float64, 'param_dtype': jnp.float64, **VARIANTS[variant]}
  layer = make_layer(**options)
  return outputs_and_gradients(layer, fresh), outputs_and_gradients(layer, reference.run)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('variant', VARIANTS)
def test_layer_equals_the_recurrence(variant):
  (got, _), (expected, _) = both(variant)
  problems.assert_close(got, expected)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('variant', VARIANTS)
def test_layer_has_the_gradient_of_the_recurrence(variant):
  (_, got), (_, expected) = both(variant)
  problems.assert_close(got, expected, 1e-9)
