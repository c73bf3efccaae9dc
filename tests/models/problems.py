"""Small models of every family, tokens for them, and compiled ways to read."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nlx import models
from tests.compiling import quick_jit

VOCAB, BATCH, LENGTH, MAX_LENGTH = 32, 2, 45, 64
SIZES = {'vocab_size': VOCAB, 'model_dim': 16, 'num_layers': 2, 'num_heads': 2}
MEMORIES = {'chunk_size': 4, 'projection_chunk_size': 8, 'memory_hidden': 8}

# A block that never learns between blocks that learn fast and slowly. Memories are matrices, with
# which everything compiles sooner.
HOPE = models.hope(
  **SIZES, **MEMORIES | {'memory_hidden': 0}, cms_periods=(8, 0, 16), cms_hidden=12, cms_rate=0.5
)
CONFIGS = {
  'hope': HOPE,
  'hope-attention': models.hope_attention(
    **SIZES, cms_periods=(8, 0, 16), cms_hidden=12, cms_rate=0.5
  ),
  'transformer': models.transformer(**SIZES),
}


def with_mixer(config, **changes):
  """A configuration whose mixer differs in some fields."""
  return dataclasses.replace(config, mixer=dataclasses.replace(config.mixer, **changes))


def with_cms(config, **changes):
  """A configuration whose continuum memory system differs in some fields."""
  return dataclasses.replace(config, cms=dataclasses.replace(config.cms, **changes))


def in_float64(config):
  """The same configuration in double precision, where a difference is more than rounding."""
  double = {'dtype': jnp.float64, 'param_dtype': jnp.float64}
  return dataclasses.replace(with_cms(with_mixer(config, **double), **double), **double)


ONE_LAYER = dataclasses.replace(with_cms(HOPE, periods=(8, 16)), num_layers=1)


@functools.cache
def make(config):
  """A model at its initialisation, draw by draw: models of one size share the compiled draws."""
  return models.create(config, rngs=nnx.Rngs(0))


def model(name):
  return make(CONFIGS[name])


def split(config):
  """The graph of a model and a copy of its parameters."""
  graph, params = nnx.split(make(config))
  return graph, jax.tree.map(lambda x: x, params)


def tokens(batch_size=BATCH, length=LENGTH, seed=1):
  return jax.random.randint(jax.random.key(seed), (batch_size, length), 0, VOCAB)


def texts(batch_size=BATCH, length=LENGTH):
  """Tokens, targets, and a mask of all targets but the last, which is not known."""
  read = tokens(batch_size, length)
  mask = jnp.ones(read.shape).at[:, -1].set(0)
  return read, jnp.roll(read, -1, axis=1), mask


@functools.cache
def call(config):
  """The compiled model, `(tokens, state, learns=True) -> (logits, state)`."""
  return quick_jit(make(config))


@functools.cache
def fresh(config, batch_size=BATCH):
  """The state before the first token."""
  model = make(config)
  return quick_jit(lambda: model.init_state(batch_size, MAX_LENGTH))()


def read(config, read, pieces, state=None, learns=None):
  """Logits and state after reading tokens in pieces of some lengths, in one call each."""
  state = fresh(config, read.shape[0]) if state is None else state
  learns = np.ones(read.shape, np.float32) if learns is None else np.asarray(learns)
  begin, logits, read = 0, [], np.asarray(read)
  for size in pieces:
    piece = slice(begin, begin + size)
    out, state = call(config)(read[:, piece], state, learns=learns[:, piece])
    logits.append(out)
    begin += size
  return np.concatenate(logits, axis=1), state
