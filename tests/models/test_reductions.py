"""Models that are special cases of each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx import memories, models
from nlx.memories.mixer import MemoryConfig
from nlx.memories.self_modifying import ROLES, SelfModifyingConfig
from tests.compiling import quick_jit, quick_make
from tests.models import problems

DIM, HEADS, WIDTH, HIDDEN, CHUNK, LENGTH = 16, 2, 8, 6, 4, 13
DOUBLE = {'dtype': jnp.float64, 'param_dtype': jnp.float64}


def inputs():
  return jax.random.normal(jax.random.key(3), (2, LENGTH, DIM), jnp.float64)


@quick_jit
def outputs(layer, x):
  """What a layer answers from its initial state."""
  return layer(x, layer.init_state(x.shape[0]))[0]


@functools.cache
def titans():
  config = MemoryConfig(
    DIM,
    HEADS,
    CHUNK,
    network=memories.mlp(HIDDEN),
    rule=memories.dgd(momentum=True),
    unit_values=True,
    **DOUBLE,
  )
  return quick_make(config)


@functools.cache
def self_modifying(chunk, own_targets):
  """Whose roles are the identity: W1 = 0."""
  config = SelfModifyingConfig(DIM, HEADS, HIDDEN, CHUNK, chunk, own_targets=own_targets, **DOUBLE)
  layer = quick_make(config)
  layer.role_weights['w1'][...] *= 0
  return layer


def copy_into_titans(layer):
  """Titans with the projections, gates and memory of a self-modifying layer."""
  other = titans()
  columns = jnp.split(layer.projection.kernel[...][:, :-DIM], len(ROLES), axis=1)
  parts = dict(zip(ROLES, columns, strict=True))
  gate = layer.projection.kernel[...][:, -DIM:]
  logits = [
    jnp.einsum('dhk,hk->dh', parts[role].reshape(DIM, HEADS, WIDTH), layer.gate_weights[...][i])
    for i, role in enumerate(('eta', 'alpha'))
  ]
  constant = jnp.zeros((DIM, HEADS))  # Momentum there is a scalar per head.
  kernel = [parts['k'], parts['v'], parts['q'], gate, *logits, constant]
  other.projection.kernel[...] = jnp.concatenate(kernel, axis=1)
  biases = [*layer.gate_biases[...], layer.momentum_logits[...]]
  other.gate_biases[...] = jnp.stack(biases)
  other.conv.kernel[...] = layer.conv.kernel[...]
  other.output.kernel[...] = layer.output.kernel[...]
  other.output_scale[...] = layer.output_scale[...]
  for name, weight in layer.memory_weights.items():
    other.weights[name][...] = weight[...]
  return other


@pytest.mark.usefixtures('float64')
def test_hope_without_w1_and_updates_of_roles_is_titans_with_static_projections():
  layer = self_modifying(chunk=CHUNK * 8, own_targets=False)  # Longer than the text.
  np.testing.assert_allclose(
    outputs(layer, inputs()), outputs(copy_into_titans(layer), inputs()), rtol=0, atol=1e-10
  )


@pytest.mark.usefixtures('float64')
def test_hope_whose_roles_are_updated_is_not_titans():
  layer = self_modifying(chunk=CHUNK, own_targets=False)
  assert np.abs(outputs(layer, inputs()) - outputs(copy_into_titans(layer), inputs())).max() > 1e-4


@pytest.mark.usefixtures('float64')
def test_hope_with_own_targets_is_not_titans():
  layer = self_modifying(chunk=CHUNK * 8, own_targets=True)
  assert np.abs(outputs(layer, inputs()) - outputs(copy_into_titans(layer), inputs())).max() > 1e-3


def test_one_cms_block_of_period_zero_is_the_mlp_of_a_transformer():
  transformer = models.transformer(**problems.SIZES, mlp_hidden=24)
  attention = models.hope_attention(**problems.SIZES, cms_hidden=24, cms_periods=(0,))
  tokens = problems.tokens()
  got, expected = (
    problems.call(config)(tokens, problems.fresh(config))[0] for config in (attention, transformer)
  )
  np.testing.assert_array_equal(got, expected)


# ----- layers against what their papers print, token by token


def ttt_reference(layer, x, activation):
  """TTT, arXiv 2407.04620: W_t = W_{t-1} - eta_t grad 1/2 ||f(k_t) - v_t||^2 at the chunk's start.

  One head, no convolution and no gate of the output; f(k) = k + LayerNorm(...).
  """
  dim = x.shape[-1]
  k, v, q, logit = jnp.split(x @ layer.projection.kernel[...], [dim, 2 * dim, 3 * dim], axis=-1)
  k, q = (x / jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-6) for x in (k, q))
  scale, offset = layer.inner_scale[...][0, 0], layer.inner_offset[...][0, 0]

  def f(w, x):
    if 'w' in w:
      z = w['w'] @ x + w['b'][:, 0]
    else:
      z = w['w1'] @ activation(w['w2'] @ x + w['b2'][:, 0]) + w['b1'][:, 0]
    z = (z - z.mean()) / jnp.sqrt(z.var() + 1e-6)
    return x + scale * z + offset

  def loss(w, k, v):
    return 0.5 * jnp.sum((f(w, k) - v) ** 2)

  w = held = {name: weight[...][0] for name, weight in layer.weights.items()}
  out = []
  for t in range(x.shape[0]):
    held = w if t % CHUNK == 0 else held
    place = 1 / (t % CHUNK + 1) + layer.rate_offsets[...][t % CHUNK]
    rate = jax.nn.sigmoid(logit[t, 0] + layer.gate_biases[...][0, 0]) * place / dim
    gradient = jax.grad(loss)(held, k[t], v[t])
    step = layer.config.rate_scale * rate
    w = jax.tree.map(lambda w, g, step=step: w - step * g, w, gradient)
    out.append(f(w, q[t]))
  out = jnp.stack(out)
  out /= jnp.sqrt(jnp.mean(out**2, axis=-1, keepdims=True) + 1e-6)
  return out @ layer.output.kernel[...]


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('name', ['ttt_linear', 'ttt_mlp'])
def test_ttt_is_what_its_paper_prints(name):
  sizes = {'vocab_size': 2, 'model_dim': WIDTH, 'num_layers': 1, 'num_heads': 1}
  options = {'chunk_size': CHUNK, 'conv_width': 0, 'output_gate': False, **DOUBLE}
  layer = quick_make(models.FAMILIES[name](**sizes, **options).mixer)
  layer.rate_offsets[...] += jnp.arange(CHUNK) / 10
  layer.inner_offset[...] += 0.1
  for weight in layer.weights.values():
    weight[...] += 0.1
  x = inputs()[..., :WIDTH]
  expected = quick_jit(lambda x: ttt_reference(layer, x, jax.nn.gelu))(x[0])
  np.testing.assert_allclose(outputs(layer, x)[0], expected, rtol=0, atol=1e-10)
