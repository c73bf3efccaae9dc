"""What the comparisons with other programs share: tokens, logits, the gated delta rule, files."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from nlx import memories
from tests.compiling import quick_jit

GOLDEN = pathlib.Path(__file__).with_name('golden')
LLAMA = GOLDEN / 'llama'
LLAMA_LOGITS = GOLDEN / 'llama_logits.safetensors'
GATED_DELTA = GOLDEN / 'gated_delta.safetensors'
TOLERANCE = 1e-4
DELTA_TOLERANCE = 2e-5


def tokens(vocab_size, length=12, seed=0):
  """Token ids [2, T]."""
  return np.random.default_rng(seed).integers(vocab_size, size=(2, length))


def logits(model, ids):
  """All logits [B, T, V] of a model of nlx, read in parallel."""
  carry = model.init_carry(ids.shape[0])
  return quick_jit(lambda ids: model.apply(ids, (), carry)[0])(jnp.asarray(ids, jnp.int32))


def gated_delta_inputs(length, batch=2, heads=2, keys=8, values=6, seed=0):
  """Queries, unit keys, values [B, T, H, .], log retentions and rates [B, T, H] in float32."""
  rng = np.random.default_rng(seed)
  shape = (batch, length, heads)
  inputs = {name: rng.standard_normal((*shape, keys)) for name in ('query', 'key')}
  inputs['key'] /= np.linalg.norm(inputs['key'], axis=-1, keepdims=True)
  inputs['value'] = rng.standard_normal((*shape, values))
  # From what keeps nothing to what keeps everything, and rates from 0 to 1.
  inputs['g'] = -np.exp(rng.uniform(-6, 2, shape))
  inputs['beta'] = rng.uniform(0, 1, shape)
  return {name: x.astype(np.float32) for name, x in inputs.items()}


@functools.cache
def _layer(chunk_size):
  layer = memories.layer(memories.matrix(), memories.delta_rule(), chunk_size=chunk_size)

  @jax.jit
  def run(weights, tokens, queries):
    outputs, state = layer.unroll(layer.level.init(weights), tokens, queries)
    # The last chunk may be incomplete: what it wrote so far belongs to the state.
    return outputs, layer.level.read(layer.level.flush(state))

  return run


def gated_delta(query, key, value, g, beta, chunk_size=64):
  """The memory of nlx on inputs [B, T, H, ...]: outputs [B, T, H, V] and its state [B, H, K, V].

  It starts at zero, and queries are divided by the root of K, as in the reference.
  """
  query, key, value, g, beta = (jnp.swapaxes(x, 1, 2) for x in (query, key, value, g, beta))
  gates = memories.Gates(rate=beta, log_retention=g, log_momentum=jnp.zeros_like(g))
  weights = {'w': jnp.zeros((*value.shape[:2], value.shape[-1], key.shape[-1]))}
  tokens, queries = memories.Tokens(key, value, gates), query * key.shape[-1] ** -0.5
  outputs, weights = _layer(chunk_size)(weights, tokens, queries)
  return jnp.swapaxes(outputs, 1, 2), jnp.swapaxes(weights['w'], -1, -2)
