"""The loss, its precision, and the levels of a model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import nlx
from nlx import memories, models, training
from tests.compiling import quick_jit
from tests.models import problems

TOKENS = problems.tokens()

every_model = pytest.mark.parametrize('config', problems.CONFIGS.values(), ids=problems.CONFIGS)


@functools.cache
def loss(config):
  """`(params, *text) -> (sum, count)`."""
  graph, _ = problems.split(config)
  return quick_jit(lambda params, *text: nnx.merge(graph, params).loss(*text))


def initial_loss(config, *text):
  return loss(config)(problems.split(config)[1], *text)


def without_rates(params):
  """Parameters at which nothing is learned in context."""
  params['blocks']['cms']['log_rate_factors'][...] -= 100
  return params


# ----- the loss


@every_model
def test_loss_counts_the_targets_of_the_mask(config):
  _, _, mask = text = problems.texts()
  assert float(initial_loss(config, *text)[1]) == float(mask.sum())


@every_model
def test_loss_of_a_new_model_is_near_that_of_guessing(config):
  total, count = initial_loss(config, *problems.texts())
  assert float(total / count) == pytest.approx(np.log(problems.VOCAB), rel=0.2)


def test_loss_ignores_targets_outside_of_the_mask():
  tokens, targets, mask = problems.texts()
  mask = mask.at[:, 10:20].set(0)
  changed = jnp.where(mask > 0, targets, 0)
  got, expected = (initial_loss(problems.HOPE, tokens, x, mask)[0] for x in (changed, targets))
  assert float(got) == float(expected)


def test_loss_with_vanishing_rates_is_that_of_blocks_that_never_learn():
  static = problems.with_cms(problems.HOPE, periods=(0, 0, 0))
  params = without_rates(problems.split(problems.HOPE)[1])
  got, _ = loss(problems.HOPE)(params, *problems.texts())
  del params['blocks']['cms']['log_rate_factors']
  expected, _ = loss(static)(params, *problems.texts())
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_loss_falls_by_learning_in_context():
  """On texts that repeat themselves."""
  tokens = jnp.tile(problems.tokens(length=9), 5)
  text = (tokens, jnp.roll(tokens, -1, axis=1), jnp.ones(tokens.shape))
  graph, params = problems.split(problems.HOPE)
  learning, _ = loss(problems.HOPE)(params, *text)
  static, count = loss(problems.HOPE)(without_rates(params), *text)
  assert float((static - learning) / count) > 0.05


def test_token_losses_are_negative_log_probabilities():
  logits = 5 * jax.random.normal(jax.random.key(3), (2, 7, problems.VOCAB))
  targets = problems.tokens(2, 7)
  expected = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
  np.testing.assert_allclose(models.token_losses(logits, targets), expected, rtol=1e-5)


def test_token_losses_of_huge_logits_are_finite():
  logits = jnp.array([[1e4, -1e4, 0.0]])
  np.testing.assert_allclose(models.token_losses(logits, jnp.array([1])), [2e4])


@pytest.mark.parametrize(('tokens', 'shape'), [(TOKENS[0], r'\(45,\)'), (TOKENS[:1], r'\(1, 45\)')])
def test_call_names_tokens_of_a_wrong_shape(tokens, shape):
  model = problems.make(problems.HOPE)
  with pytest.raises(ValueError, match=f'`tokens` must be .* the 2 sequences .* got {shape}'):
    model(tokens, problems.fresh(problems.HOPE))


@pytest.mark.parametrize('token', [-1, problems.VOCAB])
def test_what_is_no_token_gives_nan(token):
  model = problems.make(problems.HOPE)
  logits, _ = model(TOKENS[:, :2].at[1, 1].set(token), problems.fresh(problems.HOPE))
  assert np.isnan(logits[1, 1]).all() and np.isfinite(logits[0]).all()


@pytest.mark.parametrize('changed', ['tokens', 'targets', 'mask'])
def test_loss_names_texts_of_different_shapes(changed):
  text = dict(zip(('tokens', 'targets', 'mask'), problems.texts(), strict=True))
  text[changed] = text[changed][:1]
  with pytest.raises(ValueError, match=r'`mask` must have one shape .* \(1, 45\)'):
    problems.make(problems.HOPE).run(**text, outputs=lambda reading: ())


def test_loss_needs_a_token():
  with pytest.raises(ValueError, match='at least one token'):
    problems.make(problems.HOPE).loss(*(x[:, :0] for x in problems.texts()))


# ----- precision


HALF = dataclasses.replace(
  problems.with_cms(problems.with_mixer(problems.HOPE, dtype=jnp.bfloat16), dtype=jnp.bfloat16),
  dtype=jnp.bfloat16,
)


def test_bfloat16_has_nearly_the_loss_of_float32():
  _, params = problems.split(problems.HOPE)
  (got, _), (expected, _) = (
    loss(config)(params, *problems.texts()) for config in (HALF, problems.HOPE)
  )
  np.testing.assert_allclose(got, expected, rtol=0.02)


def test_bfloat16_keeps_parameters_and_fast_state_in_float32():
  """Of the fast state, only the last inputs of the convolutions are not float32."""
  model = problems.make(HALF)
  state = jax.eval_shape(lambda: model.init_state(1))
  leaves = jax.tree.leaves_with_path((state.levels, state.live, nnx.state(model)))
  floating = [leaf for leaf in leaves if jnp.issubdtype(leaf[1].dtype, jnp.floating)]
  fast = [x.dtype for path, x in floating if '.conv' not in jax.tree_util.keystr(path)]
  assert set(fast) == {np.dtype('float32')}


def test_bfloat16_gives_logits_in_float32():
  model = problems.make(HALF)
  first = jax.eval_shape(lambda: model.init_state(problems.BATCH))
  tokens = jax.ShapeDtypeStruct((problems.BATCH, 1), jnp.int32)
  assert jax.eval_shape(model, tokens, first)[0].dtype == jnp.float32


# ----- its levels


@every_model
def test_diagnose_names_the_levels_in_their_order(config):
  model, names = problems.make(config), []
  jax.eval_shape(lambda *text: names.extend(model.diagnose(*text)), *problems.texts())
  assert names == [info.name for info in model.level_infos()]


@functools.cache
def diagnosis(literal):
  rule = memories.dgd(momentum=True, literal=literal)
  deep = {'memory_hidden': problems.MEMORIES['memory_hidden']}  # Matrices stay small for longer.
  config = problems.with_mixer(problems.ONE_LAYER, chunk_size=8, rule=rule, **deep)
  return quick_jit(problems.make(config).diagnose)(*problems.texts(length=512))


def test_diagnose_measures_every_base_chunk():
  for size in diagnosis(literal=False).values():
    assert size.shape == (512 // 8,)
    assert np.isfinite(size).all() and (size > 0).all()


def test_diagnose_names_a_block_by_the_chunk_after_which_it_was_wrong():
  """And not the memory that its outputs reach a chunk later."""
  model = nnx.clone(problems.make(problems.ONE_LAYER))
  factors = model.blocks.cms.log_rate_factors
  factors[...] = factors[...].at[0].set(1000.0)
  texts = problems.texts(length=32)
  sizes = quick_jit(model.diagnose)(*texts)
  assert training.first_non_finite(sizes) == ('CMS 8', 0)
  sizes = quick_jit(model.diagnose)(*(x[:, :8] for x in texts))
  assert training.first_non_finite(sizes) == ('CMS 8', 0)


def test_diagnose_measures_every_chunk_of_memories_alone():
  """Where no block learns in context, which reads whole texts at once."""
  model = problems.make(models.deltanet(**problems.SIZES, chunk_size=4))
  tokens, targets, mask = problems.texts(length=18)
  sizes = quick_jit(model.diagnose)(tokens.at[0, 13].set(99), targets, mask)
  assert sizes['memory'].shape == (5,)
  assert training.first_non_finite(sizes) == ('memory', 3)


def test_diagnose_shows_which_level_diverges_first():
  """Under the printed rule, whose memories have no bound."""
  sizes = diagnosis(literal=True)
  finite = {name: np.isfinite(size) for name, size in sizes.items()}
  assert finite.pop('slow weights').all()
  first = {name: int(np.argmin(each)) for name, each in finite.items() if not each.all()}
  assert min(first, key=first.get).startswith(('memory', 'roles')), first
  assert first['CMS 8'] >= first['memory']


@every_model
def test_describe_mentions_every_level(config):
  model = problems.make(config)
  table = nlx.describe(model)
  assert len(table.splitlines()) == 2 + len(model.level_infos())
  for info in model.level_infos():
    assert info.name in table


def test_level_infos_count_all_parameters_of_each_level():
  model = problems.make(problems.HOPE)
  infos = {info.name: info for info in model.level_infos()}
  fast = jax.eval_shape(lambda: model.init_state(1))
  sizes = [sum(x.size for x in jax.tree.leaves(level.held)) for level in fast.levels]
  assert [infos[name].parameters for name in ('CMS 8', 'CMS 16')] == sizes
  assert infos['slow weights'].parameters == sum(x.size for x in jax.tree.leaves(nnx.state(model)))


def test_level_infos_have_the_periods_of_the_configuration():
  infos = problems.make(problems.HOPE).level_infos()
  assert [(info.period, info.unit) for info in infos] == [
    (4, 'token'),
    (8, 'token'),
    (8, 'token'),
    (16, 'token'),
    (1, 'step'),
  ]


def test_targets_where_the_mask_is_zero_may_be_anything():
  graph, params = problems.split(problems.ONE_LAYER)
  tokens, targets, mask = problems.texts(length=20)
  mask = mask.at[:, 7:12].set(0)
  ignored = jnp.where(mask > 0, targets, -100)
  gradient = quick_jit(
    jax.value_and_grad(lambda params, *text: nnx.merge(graph, params).loss(*text)[0])
  )
  found, expected = (gradient(params, tokens, x, mask) for x in (ignored, targets))
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert np.isnan(gradient(params, tokens, targets.at[0, 0].set(-1), mask)[0])


def test_parts_of_other_dtypes_do_not_change_that_of_the_stream():
  """Three layers are a loop, whose carry has one dtype."""
  config = dataclasses.replace(problems.CONFIGS['transformer'], num_layers=3, dtype=jnp.bfloat16)
  model = problems.make(config)
  loss, _ = jax.eval_shape(model.loss, *problems.texts(length=8))
  assert loss.dtype == jnp.float32
