"""Small models, and sessions that have read and written with them, each made once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx.models import Sampling, sessions
from tests.models import problems

# Sessions are read in pieces of 3: after 3, 6 and 9 tokens they are at 3, 6 and 1 of chunks of 8.
PIECE, LENGTHS, WRITTEN = 3, (3, 6, 9), 10
# Without a memory of tokens but its levels: its convolution sees one token.
HOPE = problems.in_float64(problems.with_mixer(problems.ONE_LAYER, chunk_size=8, conv_width=1))
TRANSFORMER = problems.in_float64(problems.CONFIGS['transformer'])
NUCLEUS = Sampling(temperature=2.0, top_k=20, top_p=0.9)
both_models = pytest.mark.parametrize('config', [HOPE, TRANSFORMER], ids=['hope', 'transformer'])


def read(config, session, tokens, learns=True):
  """Reads piece by piece."""
  model = problems.make(config)
  for begin in range(0, tokens.shape[-1], PIECE):
    session = sessions.read(model, session, tokens[..., begin : begin + PIECE], learns=learns)
  return session


def write(config, session, num_tokens=WRITTEN, **options):
  options = {'sampling': NUCLEUS, **options}
  return sessions.write(problems.make(config), session, num_tokens, **options)


@functools.cache
def started(config, seed=7):
  key = jax.random.key(seed)
  return sessions.start(problems.make(config), problems.BATCH, max_length=64, key=key)


@functools.cache
def session(config, length=9, seed=7):
  """One that has read so many tokens, at most 12, of a text of its own."""
  return read(config, started(config, seed), problems.tokens(length=12, seed=seed)[:, :length])


@functools.cache
def written(config):
  return write(config, session(config))


def plain(value):
  """Its arrays, with random keys as numbers."""
  numbers = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
  return jax.tree.map(lambda x: np.array(numbers(x)), value)


def assert_equal(got, expected):
  jax.tree.map(np.testing.assert_array_equal, plain(got), plain(expected))


def assert_close(got, expected, tolerance=1e-10):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=0, atol=tolerance),
    plain(got),
    plain(expected),
  )


def several(config):
  """Sessions at different places of their chunks, in different texts, with keys of their own."""
  return [session(config, length, seed=length) for length in LENGTHS]


@functools.cache
def stacked(config):
  return sessions.stack(several(config))


def diverging():
  """The model with inner rates that are infinite: its fastest block is lost after 8 tokens."""
  graph, params = problems.split(HOPE)
  params['blocks']['cms']['log_rate_factors'][...] += 800
  return nnx.merge(graph, params)
