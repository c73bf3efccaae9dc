"""Memory layers against what their papers print, their initial gates, their tables and errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx import levels, memories, models
from nlx.memories import MemoryConfig
from tests.compiling import quick_jit, quick_make
from tests.memories import reference_mixer

BATCH, LENGTH, CHUNK, HEADS, WIDTH, HIDDEN = 2, 11, 4, 3, 4, 5
DIM = HEADS * WIDTH
SIZES = {'vocab_size': 2, 'model_dim': DIM, 'num_layers': 1, 'num_heads': HEADS}
DOUBLE = {'dtype': jnp.float64, 'param_dtype': jnp.float64}
DEEP = ('titans', 'atlas')


def config(name, **options):
  """The memory of a family."""
  hidden = {'memory_hidden': HIDDEN} if name in DEEP else {}
  return models.FAMILIES[name](**SIZES, chunk_size=CHUNK, **hidden, **options).mixer


@functools.cache
def layer(name):
  """In float64, with noise on parameters that begin with equal numbers."""
  return quick_make(config(name, **DOUBLE), noise=0.3)


@functools.cache
def initial(name):
  """As users get it."""
  return quick_make(config(name))


def shapes(name, **options):
  """Without numbers."""
  return nnx.eval_shape(lambda: config(name, **options).make(rngs=nnx.Rngs(0)))


def inputs():
  """Small ones, because a retention that is as good as shut has a bound, which no paper prints."""
  return 0.5 * np.random.default_rng(0).normal(size=(BATCH, LENGTH, DIM))


@functools.cache
def call(name):
  return quick_jit(layer(name))


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('name', reference_mixer.FORMULAS)
def test_mixer_is_what_its_paper_prints(name):
  got, _ = call(name)(inputs(), layer(name).init_state(BATCH))
  formula = reference_mixer.FORMULAS[name]
  expected = [reference_mixer.run(formula, layer(name), x)[0] for x in inputs()]
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


# ----- a stream


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('cut', [CHUNK, 2 * CHUNK])
def test_mixer_rotary_positions_go_on_in_a_second_piece(cut):
  retnet, x = layer('retnet'), inputs()
  whole, _ = call('retnet')(x, retnet.init_state(BATCH))
  first, state = call('retnet')(x[:, :cut], retnet.init_state(BATCH))
  second, _ = call('retnet')(x[:, cut:], state)
  got = np.concatenate([first, second], axis=1)
  np.testing.assert_allclose(got, whole, rtol=0, atol=1e-10)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('valid', [0, 6, LENGTH])
def test_mixer_rotary_positions_count_valid_tokens_only(valid):
  _, state = call('retnet')(inputs(), layer('retnet').init_state(BATCH), valid)
  assert state.position.dtype == jnp.int32
  assert state.position.tolist() == BATCH * [valid]


@pytest.mark.usefixtures('float64')
def test_mixer_recalls_with_the_memory_of_the_last_boundary():
  """And not with what the chunk has written since."""
  titans, x = layer('titans'), inputs()
  _, state = call('titans')(x[:, : CHUNK + 2], titans.init_state(BATCH))
  queries = np.random.default_rng(2).normal(size=(BATCH, HEADS, 5, WIDTH))
  got, formula = quick_jit(titans.recall)(queries, state), reference_mixer.FORMULAS['titans']
  for b in range(BATCH):
    _, heads = reference_mixer.run(formula, titans, x[b, :CHUNK])
    for h, memory in enumerate(heads):
      asked = reference_mixer.unit(reference_mixer.silu(queries[b, h]))
      expected = [reference_mixer.mlp(memory, query) for query in asked]
      np.testing.assert_allclose(got[b, h], expected, rtol=0, atol=1e-10)


# ----- what a layer begins with


def test_mixer_rate_begins_with_its_bias():
  got = quick_make(config('deltanet', rate_bias=-1.25)).gate_biases[...]
  np.testing.assert_array_equal(got, np.full((1, HEADS), -1.25))


def test_mixer_rates_of_atlas_begin_below_a_tenth():
  atlas = initial('atlas')
  rates = atlas.config.rate_scale * jax.nn.sigmoid(atlas.gate_biases[0])
  assert np.all((rates > 0.01) & (rates < 0.1))


def test_mixer_retention_begins_with_horizons_from_256_to_4096_tokens():
  """Equally far apart, each the tokens after which 1 / e is left."""
  retention = jax.nn.sigmoid(initial('titans').gate_biases[1])
  horizons = -1 / np.log(retention)
  np.testing.assert_allclose(horizons, np.geomspace(256, 4096, HEADS), rtol=0.01)


def test_mixer_softplus_retention_begins_with_steps_from_a_thousandth_to_a_tenth():
  """The inverse of softplus is their bias, and their speeds go from 1 to 16, one per head."""
  gated = initial('gated_deltanet')
  steps, speeds = jax.nn.softplus(gated.gate_biases[1]), jnp.exp(gated.log_retention_rates[...])
  np.testing.assert_allclose(steps, np.geomspace(1e-3, 1e-1, HEADS), rtol=1e-4)
  np.testing.assert_allclose(speeds, np.linspace(1, 16, HEADS), rtol=1e-5)


@pytest.mark.parametrize(
  ('name', 'gates'),
  [('linear_attention', 0), ('retnet', 0), ('deltanet', 1), ('gated_deltanet', 2), ('oja', 2)]
  + [('ttt_linear', 1), ('titans', 3), ('moneta', 2), ('yaad', 2), ('atlas', 3)],
)
def test_mixer_makes_only_the_gates_that_its_rule_has(name, gates):
  made = shapes(name)
  width = (3 + made.config.output_gate) * DIM + gates * HEADS
  assert made.projection.kernel.shape == (DIM, width)
  biases = getattr(made, 'gate_biases', None)
  assert (0 if biases is None else biases.shape[0]) == gates


@pytest.mark.parametrize(
  'name', ['linear_attention', 'retnet', 'deltanet', 'gated_deltanet', 'oja']
)
def test_mixer_without_a_learned_start_begins_with_zeros(name):
  assert not hasattr(shapes(name), 'weights')
  begin = initial(name)
  state = quick_jit(lambda: begin.init_state(BATCH))()
  for matrix in jax.tree.leaves(memories.weights_of(state.memory.held)):
    np.testing.assert_array_equal(matrix, np.zeros((BATCH, HEADS, WIDTH, WIDTH)))


def test_mixer_with_a_learned_start_begins_with_it_in_every_sequence():
  titans = initial('titans')
  held = memories.weights_of(titans.init_state(BATCH).memory.held)
  for name, matrix in held.items():
    np.testing.assert_array_equal(matrix, np.stack([titans.weights[name][...]] * BATCH))


@pytest.mark.parametrize('param_dtype', ['bfloat16', 'float32'])
def test_mixer_computes_its_memory_in_float32_at_least(param_dtype):
  """Slow products have their own dtype, and so have parameters."""
  half = config('titans', dtype=jnp.bfloat16, param_dtype=jnp.dtype(param_dtype))

  def run(x):
    mixer = half.make(rngs=nnx.Rngs(0))
    return *mixer(x, mixer.init_state(BATCH)), nnx.state(mixer)

  out, state, params = nnx.eval_shape(run, jnp.zeros((BATCH, LENGTH, DIM), jnp.bfloat16))
  assert out.dtype == state.conv.dtype == jnp.bfloat16
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(param_dtype)}
  matrices = jax.tree.leaves(state.memory.gathered.matrices)
  assert {matrix.dtype for matrix in matrices} == {jnp.dtype('float32')}


# ----- tables


@pytest.mark.parametrize(
  ('name', 'objective', 'rule', 'parameters', 'transfer'),
  [
    ('linear_attention', 'dot product', 'gradient', WIDTH**2, 'weights'),
    ('retnet', 'dot product', 'gradient, retention', WIDTH**2, 'weights'),
    ('deltanet', 'L2', 'delta', WIDTH**2, 'weights'),
    ('gated_deltanet', 'L2', 'delta, retention', WIDTH**2, 'weights'),
    ('oja', 'dot product', 'Oja, retention', WIDTH**2, 'weights'),
    ('ttt_linear', 'L2', 'gradient', WIDTH**2 + WIDTH, 'weights, initial state'),
    (
      'titans',
      'L2',
      'gradient, momentum, retention',
      2 * HIDDEN * WIDTH,
      'weights, initial state',
    ),
  ],
)
def test_mixer_is_one_level_of_the_table(name, objective, rule, parameters, transfer):
  """It counts the numbers of all heads; its chunk is its period where errors are taken at one."""
  period = CHUNK if name in ('ttt_linear', 'titans') else 1
  expected = levels.LevelInfo(
    'memory', period, 'token', objective, rule, HEADS * parameters, transfer
  )
  assert shapes(name).level_infos() == [expected]


def test_mixer_gives_the_state_of_its_level():
  deltanet = initial('deltanet')
  state = deltanet.init_state(BATCH)
  assert deltanet.level_states(state) == [state.memory]


# ----- errors


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'model_dim': 0}, '`model_dim` must be an integer of at least 1, got 0'),
    ({'num_heads': 0}, '`num_heads` must be an integer of at least 1, got 0'),
    ({'num_heads': 5}, '`model_dim` must be a multiple of `num_heads`, got 12 and 5'),
    ({'chunk_size': 2.0}, '`chunk_size` must be an integer of at least 1, got 2.0'),
    (
      {'keys': 'rotary', 'num_heads': 4},
      r'`head_dim` must be a multiple of `2 \(rotary pairs\)`, got 3 and 2',
    ),
    ({'conv_width': -1}, '`conv_width` must be at least 0 taps, got -1'),
    ({'rate_scale': 0.0}, '`rate_scale` must be a finite number above 0, got 0.0'),
    ({'reads': 'late'}, r"`reads` must be one of \['chunk', 'token'\], got 'late'"),
    ({'keys': 'cosine'}, "`keys` must be one of .*'silu_unit'.*, got 'cosine'"),
    ({'rate_gate': 'tanh'}, "`rate_gate` must be one of .*'position'.*, got 'tanh'"),
    ({'retention_gate': 'none'}, "`retention_gate` must be one of .*'softplus'.*, got 'none'"),
    (
      {'rule': memories.delta_rule(retention=False), 'retention_gate': 'fixed'},
      "`retention_gate` must be left out for a rule without retention, got 'fixed'",
    ),
    ({'keys': 'elu'}, "`keys` of the rule delta must be of .*'silu_unit'.*, got 'elu'"),
    (
      {'network': memories.mlp(4), 'rule': memories.dgd(), 'learned_start': False},
      '`learned_start` must be True unless the memory is one matrix',
    ),
    ({'network': memories.mlp(4)}, 'the rule delta needs a memory that is one matrix'),
    ({'inner_norm': True}, 'the rule delta needs a memory that is one matrix'),
    (
      {'objective': memories.dot_product()},
      'the rule delta needs the objective L2, got dot product',
    ),
  ],
)
def test_mixer_names_a_wrong_argument(options, message):
  with pytest.raises(ValueError, match=message):
    MemoryConfig(**{'model_dim': DIM, 'num_heads': HEADS, 'chunk_size': CHUNK, **options})
