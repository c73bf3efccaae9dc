"""Levels given to a trained model: the same function until it learns in context."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx import cms, models
from tests.compiling import quick_jit
from tests.models import problems

TRANSFORMER = models.transformer(**problems.SIZES, num_kv_heads=1, mlp_hidden=27)
MEMORY = models.deltanet(**problems.SIZES, chunk_size=8, mlp_hidden=27)
CASES = {
  'independent': (TRANSFORMER, {'periods': (4, 0, 16)}),
  'independent, of widths': (MEMORY, {'periods': (8, 16), 'hidden': (20, 7)}),
  'sequential': (TRANSFORMER, {'periods': (4, 16), 'form': 'sequential', 'hidden': 5}),
  'nested': (TRANSFORMER, {'periods': (4, 8, 16), 'form': 'nested', 'pretrained': 1}),
  'of another rule': (TRANSFORMER, {'periods': (4, 8), 'rule': cms.DELTA_GRADIENT_DESCENT}),
}
BOTH = ('independent', 'sequential')
every_case = pytest.mark.parametrize(('config', 'options'), CASES.values(), ids=CASES)
either_case = pytest.mark.parametrize(('config', 'options'), [CASES[c] for c in BOTH], ids=BOTH)


@functools.cache
def base(config):
  """A model that looks trained: no two parameters of a layer are equal."""
  random = np.random.default_rng(1)
  graph, params = problems.split(config)
  noisy = lambda x: np.asarray(x) + 0.1 * random.normal(size=x.shape).astype(x.dtype)  # noqa: E731
  return nnx.merge(graph, jax.tree.map(noisy, params))


def stack(config, *, periods, **options):
  return models.stack_levels(base(config), periods, rngs=nnx.Rngs(2), **options)


def nothing(reading):
  del reading


def whole(model):
  """Logits [B, T, V] of whole sequences, in the way of training."""
  tokens, targets, mask = problems.texts()

  def run(params):
    read = nnx.merge(graph, params).run(tokens, targets, mask, lambda reading: reading.logits)
    return jnp.concatenate(list(read.outputs), axis=1)[:, : tokens.shape[1]]

  graph, params = nnx.split(model)
  return np.asarray(quick_jit(run)(params))


@functools.cache
def expected(config):
  return whole(base(config))


@pytest.mark.usefixtures('float64')
@every_case
def test_stacked_model_computes_what_the_model_did(config, options):
  config = problems.in_float64(config)
  got = whole(stack(config, rate=0.0, **options))
  np.testing.assert_allclose(got, expected(config), rtol=0, atol=1e-12)


@pytest.mark.usefixtures('float64')
@either_case
def test_stacked_model_streams_what_the_model_did(config, options):
  config = problems.in_float64(config)
  model = stack(config, rate=0.0, **options)
  read, logits = quick_jit(model), []
  state = model.init_state(problems.BATCH, problems.MAX_LENGTH)
  for piece in jnp.split(problems.tokens()[:, :42], (20, 21, 41), axis=1):
    out, state = read(piece, state)
    logits.append(out)
  got = np.concatenate(logits, axis=1)
  np.testing.assert_allclose(got, expected(config)[:, :42], rtol=0, atol=1e-12)


@pytest.mark.usefixtures('float64')
@either_case
def test_stacked_model_departs_from_the_model_at_its_first_update(config, options):
  config = problems.in_float64(config)
  difference = np.abs(whole(stack(config, rate=0.5, **options)) - expected(config))
  first = options['periods'][0]
  assert difference[:, :first].max() < 1e-12
  assert difference[:, first].max() > 1e-4


@pytest.mark.parametrize(('case', 'meta'), [('independent', 'first'), ('sequential', 'full')])
def test_every_parameter_of_every_layer_receives_a_gradient(case, meta):
  config, options = CASES[case]
  graph, params = nnx.split(stack(config, rate=0.5, meta=meta, **options))
  loss = lambda params: nnx.merge(graph, params).loss(*problems.texts())[0]  # noqa: E731
  gradient = jax.device_get(quick_jit(jax.grad(loss))(params))
  for path, x in jax.tree_util.tree_leaves_with_path(gradient):
    name = jax.tree_util.keystr(path)
    assert np.isfinite(x).all(), name
    layers = x.reshape((config.num_layers if 'blocks' in name else 1, -1))
    assert (np.abs(layers).max(axis=1) > 0).all(), name


@either_case
def test_stacked_model_learns_a_text_that_repeats(config, options):
  model = stack(config, **options)
  text = np.tile(problems.tokens(length=4), (1, 12))
  graph, params = nnx.split(model)

  @quick_jit
  def last_loss(params):
    read = nnx.merge(graph, params).run(text, np.roll(text, -1, 1), np.ones(text.shape), nothing)
    return read.loss[-1]

  def at(rate):
    factors = params['blocks']['cms']['log_rate_factors']
    factors[...] = np.full(factors.shape, np.log(rate / 0.1), np.float32)
    return np.asarray(last_loss(params))

  assert (at(1.0) < 0.7 * at(1e-9)).all()


def test_model_stays_as_it_is():
  before = jax.tree.map(np.asarray, nnx.state(base(TRANSFORMER)))
  stack(TRANSFORMER, periods=(4, 8))
  jax.tree.map(np.testing.assert_array_equal, nnx.state(base(TRANSFORMER)), before)
  assert base(TRANSFORMER).config == TRANSFORMER


def test_new_blocks_of_all_layers_differ():
  blocks = stack(TRANSFORMER, periods=(4, 8, 16), form='sequential').blocks.cms.blocks
  ups = [up for block in list(blocks)[:2] for up in block.up.kernel[...]]
  assert len({float(up[0, 0]) for up in ups}) == 4


@pytest.mark.parametrize(
  ('options', 'widths'),
  [
    ({'periods': (4, 8, 16, 0)}, (7, 7, 7, 6)),
    ({'periods': (8,)}, (27,)),
    ({'periods': (4, 8, 16), 'form': 'sequential'}, (16, 16, 27)),
    ({'periods': (4, 8), 'form': 'nested', 'hidden': 3, 'pretrained': 0}, (27, 3)),
  ],
)
def test_blocks_have_exact_widths(options, widths):
  assert stack(TRANSFORMER, **options).config.cms.widths == widths


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'form': 'parallel'}, "`form` must be one of .*, got 'parallel'"),
    ({'hidden': [20, 6]}, r'`hidden` of independent blocks must be 2 widths .* 27 .*\(20, 6\)'),
    ({'hidden': (20, 6)}, r'`hidden` of independent blocks must be 2 widths .* 27 .*\(20, 6\)'),
    ({'hidden': 27}, '`hidden` of independent blocks must be 2 widths that add up .*, got 27'),
    ({'form': 'nested', 'hidden': 0}, '`hidden` must be an integer of at least 1, got 0'),
    ({'form': 'nested', 'pretrained': 2}, '`pretrained` must be one of the 2 blocks, got 2'),
    ({'form': 'sequential', 'rngs': None}, '`rngs` must be given: new blocks in series'),
    ({'periods': ()}, '`periods` must name at least one block, got none'),
    ({'hidden': (28, -1)}, r'`hidden\[1\]` must be an integer of at least 1, got -1'),
    ({'periods': (8, 12)}, r'`periods\[1\]` must be a multiple of `periods\[0\]`, got 12 and 8'),
    ({'meta': 'third'}, "`meta` must be one of .*, got 'third'"),
  ],
  ids=str,
)
def test_wrong_options_are_errors(options, message):
  options = {'periods': (4, 8), 'rngs': nnx.Rngs(0), **options}
  with pytest.raises(ValueError, match=message):
    models.stack_levels(base(TRANSFORMER), **options)


def test_mixer_must_fit_into_the_first_period():
  with pytest.raises(ValueError, match='must be a multiple of `chunk of the mixer`, got 4 and 8'):
    stack(MEMORY, periods=(4, 8))


def test_model_with_levels_is_an_error():
  with pytest.raises(ValueError, match=r'one block .* got \(4, 8\)'):
    models.stack_levels(stack(TRANSFORMER, periods=(4, 8)), (4, 8))


def test_model_that_scales_its_mlp_is_an_error():
  config = problems.with_cms(TRANSFORMER, form='independent')
  with pytest.raises(ValueError, match="`model` must add its MLP as it is.* 'independent'"):
    stack(config, periods=(4, 8))
