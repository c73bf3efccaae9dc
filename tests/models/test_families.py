"""Every named model: reads in any pieces, sees no future and no neighbour, learns everywhere.

That is tested of HOPE and HOPE-Attention, in more ways, in the files beside this one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx import memories, models
from tests.compiling import quick_jit
from tests.models import problems

BATCH, LENGTH, CHANGED = 4, 21, 10
SIZES = {**problems.SIZES, 'num_layers': 1, 'mlp_hidden': 16}
# Chunks of 7 fill the text; of 8 a part remains, which has to be compiled as well. MLPs take longer
# than matrices.
SHORT = {'chunk_size': 7}
DEEP = {'chunk_size': 8, 'memory_hidden': 8}
MATRIX = {'chunk_size': 8, 'network': memories.matrix()}
OPTIONS = {
  'transformer': {'num_kv_heads': 1},
  'linear_attention': SHORT,
  'retnet': SHORT,
  'deltanet': SHORT,
  'gated_deltanet': SHORT,
  'oja': SHORT,
  'ttt_linear': SHORT,
  'ttt_mlp': SHORT,
  'titans': DEEP,
  'titans_mac': MATRIX,
  'titans_mag': {**MATRIX, 'window': 6},
  'titans_mal': {**MATRIX, 'window': 6},
  'moneta': DEEP,
  'yaad': DEEP,
  'atlas': DEEP,
  'samba': {'window': 6, 'num_layers': 2},
}
# From a boundary and from inside of a chunk; over none, one and many.
CUTS = {'from_a_boundary': (9, 1, 1, 9, 1), 'from_inside': (1, 9, 9, 1, 1), 'short': (1,) * 21}
every_family = pytest.mark.parametrize('name', OPTIONS)


@functools.cache
def config(name):
  return models.FAMILIES[name](**{**SIZES, **OPTIONS[name]})


def text():
  """Tokens [B, T]; the second sequence is the first with another token in one place."""
  tokens = problems.tokens(BATCH, LENGTH)
  return tokens.at[1].set(tokens[0].at[CHANGED].add(1) % problems.VOCAB)


@functools.cache
def program(name):
  """`tokens -> (logits [B, T, V], gradient of a loss)`, as training computes them."""
  graph, params = nnx.split(problems.make(config(name)))

  def loss(params, tokens):
    mask = jnp.ones(tokens.shape)
    run = nnx.merge(graph, params).run
    result = run(tokens, jnp.roll(tokens, -1, axis=1), mask, lambda reading: reading.logits)
    logits = jnp.moveaxis(result.outputs, 0, 1).reshape((BATCH, -1, problems.VOCAB))
    return jnp.mean(result.loss), logits[:, :LENGTH]

  jitted = quick_jit(jax.grad(loss, has_aux=True))
  return lambda tokens: jitted(params, tokens)


@functools.cache
def usual(name):
  gradient, logits = program(name)(text())
  return logits, gradient


def test_options_name_every_family():
  assert {*OPTIONS, 'hope', 'hope_attention'} == set(models.FAMILIES)
  assert [config(name).name for name in OPTIONS] == list(OPTIONS)


@every_family
@pytest.mark.parametrize('cut', CUTS)
def test_family_streams_in_any_pieces(name, cut):
  """Through the state that it carries, it gives the logits of training."""
  got, _ = problems.read(config(name), text(), CUTS[cut])
  np.testing.assert_allclose(got, usual(name)[0], rtol=0, atol=1e-5)


@every_family
def test_family_is_causal(name):
  first, second = usual(name)[0][:2]
  np.testing.assert_allclose(second[:CHANGED], first[:CHANGED], rtol=0, atol=1e-6)
  assert np.abs(second - first)[CHANGED:].max(axis=-1).min() > 1e-7


@every_family
def test_family_keeps_sequences_apart(name):
  others = text().at[1:].set(problems.tokens(BATCH, LENGTH, seed=9)[1:])
  _, logits = program(name)(others[::-1])
  np.testing.assert_allclose(logits[-1], usual(name)[0][0], rtol=0, atol=1e-6)
  assert float(jnp.abs(logits[::-1][2:] - usual(name)[0][2:]).max()) > 1e-3


@every_family
def test_family_has_a_gradient_in_every_parameter(name):
  """But for tokens that do not occur, places of a chunk that are no read, and forgotten starts."""
  for path, gradient in jax.tree.leaves_with_path(usual(name)[1]):
    assert np.isfinite(gradient).all(), path
    assert np.abs(gradient).max() > 0, jax.tree_util.keystr(path)


@every_family
def test_family_has_a_state_of_constant_size(name):
  """Unless it keeps every token."""
  model = problems.make(config(name))
  sizes = [
    sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    for length in (64, 4096)
    for state in [jax.eval_shape(lambda length=length: model.init_state(1, length))]
  ]
  grows = name == 'transformer'
  assert (sizes[1] > 10 * sizes[0]) if grows else sizes[1] == sizes[0]


@every_family
def test_family_describes_its_levels(name):
  model = problems.make(config(name))
  names = []
  jax.eval_shape(lambda *text: names.extend(model.diagnose(*text)), *problems.texts())
  assert names == [info.name for info in model.level_infos()]


@pytest.mark.parametrize('family', [models.hope, models.hope_attention])
def test_width_of_blocks_is_that_of_mlps_if_given(family):
  config = family(**problems.SIZES, cms_periods=(256,), mlp_hidden=20)
  assert config.cms.widths == (20,)


def test_parts_may_have_dtypes_of_their_own():
  config = models.transformer(**problems.SIZES, dtype=jnp.bfloat16, cms_dtype=jnp.float32)
  assert (config.mixer.dtype, config.cms.dtype) == (jnp.bfloat16, jnp.float32)
