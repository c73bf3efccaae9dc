"""The self-modifying layer: against the recurrence, at any cut, and what it reduces to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx import memories
from nlx.memories.modules import unit_norm
from nlx.memories.self_modifying import ROLES, SelfModifying, SelfModifyingConfig
from tests.compiling import quick_jit
from tests.memories import problems
from tests.memories import reference_self_modifying as reference

BATCH, LENGTH, DIM, HEADS, HIDDEN, CHUNK, PROJECTION = 2, 21, 8, 2, 5, 4, 8
VARIANTS = {
  'dgd-momentum': {},
  'dgd-capped-chunk_read-adaptive_q': {
    'rule': memories.dgd(hard_cap=True, soft_cap=True),
    'reads': 'chunk',
    'adaptive': ROLES,
  },
  'gradient-momentum-exponential': {
    'rule': memories.gradient(momentum=True),
    'memory_hidden': 0,
    'adaptive': ('q', 'alpha', 'k'),
    'rate_gate': 'exponential',
  },
  'dgd-literal-chunk_1-nothing_adaptive': {
    'rule': memories.dgd(momentum=True, literal=True),
    'memory_hidden': 0,
    'chunk_size': 1,
    'adaptive': (),
    'conv_width': 1,
  },
  'dot_product-matrices-chunk_1-no_retention': {
    'rule': memories.gradient(retention=False),
    'objective': memories.dot_product(),
    'memory_hidden': 0,
    'chunk_size': 1,
    'adaptive': ('v',),
    'rate_gate': 'exponential',
  },
}


def make_layer(**options):
  """A small layer whose parameters, gates included, are all random: no symmetry hides a mistake.

  Only retention is moved: it starts near 1.
  """
  sizes = {'memory_hidden': HIDDEN, 'chunk_size': CHUNK, 'projection_chunk_size': PROJECTION}
  config = SelfModifyingConfig(DIM, HEADS, **(sizes | options))
  graph, shapes = nnx.split(nnx.eval_shape(lambda: SelfModifying(config, rngs=nnx.Rngs(0))))
  random = np.random.default_rng(0)
  params = jax.tree.map(lambda x: jnp.asarray(0.4 * random.normal(size=x.shape), x.dtype), shapes)
  params['gate_biases'][...] += jnp.full((2, HEADS), jnp.array([[0], [3]]), config.param_dtype)
  return nnx.merge(graph, params)


def inputs(dtype='float32', length=LENGTH):
  return jax.random.normal(jax.random.key(2), (BATCH, length, DIM), dtype)


def fresh(layer, x):
  return layer(x, layer.init_state(x.shape[0]))[0]


def outputs_and_gradients(layer, run, length):
  """Outputs of `run(layer, x)`, and the gradients of a loss of them for parameters and x."""
  graph, params = nnx.split(layer)

  def loss(params, x):
    outputs = run(nnx.merge(graph, params), x)
    weights = jnp.arange(1, outputs.size + 1).reshape(outputs.shape)
    return jnp.sum(jnp.sin(outputs) * weights) / outputs.size, outputs

  x = inputs(layer.config.param_dtype, length)
  gradients, outputs = quick_jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
  return outputs, gradients


@functools.cache
def both(variant):
  """`outputs_and_gradients` of the layer and of the recurrence.

  One variant ends within a chunk of either size: the part of a chunk has to be compiled as well.
  """
  options = {'dtype': jnp.float64, 'param_dtype': jnp.float64, **VARIANTS[variant]}
  length = LENGTH if variant == 'gradient-momentum-exponential' else 2 * PROJECTION
  layer = make_layer(**options)
  return tuple(outputs_and_gradients(layer, run, length) for run in (fresh, reference.run))


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


# ----- along a sequence


@functools.cache
def default_layer():
  return make_layer()


@functools.cache
def call_with():
  """`(params, x, state) -> (outputs, state)`, compiled."""
  graph = nnx.graphdef(default_layer())
  return quick_jit(lambda params, x, state: nnx.merge(graph, params)(x, state))


def call():
  return functools.partial(call_with(), nnx.state(default_layer()))


def outputs_of(layer):
  """Of one pass, of a layer that differs from the default in its parameters."""
  return call_with()(nnx.state(layer), inputs(), layer.init_state(BATCH))[0]


@functools.cache
def whole():
  """Outputs and the last state of one pass."""
  return call()(inputs(), default_layer().init_state(BATCH))


@functools.cache
def stepped():
  """Outputs, and the states before the first token and after each, one token at a time."""
  layer = default_layer()
  first = layer.init_state(BATCH)

  def step(state, x):
    out, state = layer.step(x[:, None], state)
    return state, (out[:, 0], state)

  x = jnp.moveaxis(inputs(), 1, 0)
  _, (outputs, states) = quick_jit(lambda state, x: jax.lax.scan(step, state, x))(first, x)
  states = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, states)
  return jnp.moveaxis(outputs, 0, 1), states


def state_after(length):
  return jax.tree.map(lambda x: x[length], stepped()[1])


def test_layer_step_by_step_equals_one_pass():
  problems.assert_close((stepped()[0], state_after(LENGTH)), whole(), 1e-5)


@pytest.mark.parametrize('cut', [5, 13])
def test_layer_leaves_the_state_of_steps_at_any_cut(cut):
  _, state = call()(inputs()[:, :cut], default_layer().init_state(BATCH))
  problems.assert_close(state, state_after(cut), 1e-5)


@pytest.mark.parametrize('cut', [8, 16])
def test_layer_continues_at_a_boundary(cut):
  outputs, state = call()(inputs()[:, cut:], state_after(cut))
  problems.assert_close((outputs, state), (whole()[0][:, cut:], whole()[1]), 1e-5)


def test_layer_leaves_no_trace_of_tokens_that_are_not_valid():
  layer, lengths = default_layer(), jnp.arange(LENGTH + 1)
  call = jax.vmap(layer, (None, None, 0))
  outputs, states = quick_jit(call)(inputs(), layer.init_state(BATCH), lengths)
  problems.assert_close(states, stepped()[1], 1e-5)
  valid = (jnp.arange(LENGTH)[None] < lengths[:, None])[:, None, :, None]
  masked = jnp.where(valid, outputs - whole()[0][None], 0)
  np.testing.assert_allclose(masked, 0, atol=1e-5)


def test_layer_keeps_structure_and_dtypes_of_its_state():
  layer = make_layer(dtype=jnp.bfloat16)
  first = jax.eval_shape(lambda: layer.init_state(BATCH))
  for num_valid in (None, 5):
    for length in (3, PROJECTION, LENGTH):
      x = jax.ShapeDtypeStruct((BATCH, length, DIM), jnp.bfloat16)
      assert jax.eval_shape(layer, x, first, num_valid)[1] == first
  token = jax.ShapeDtypeStruct((BATCH, 1, DIM), jnp.bfloat16)
  assert jax.eval_shape(layer.step, token, first)[1] == first


@pytest.mark.parametrize('dtypes', [('dtype',), ('dtype', 'param_dtype')])
def test_layer_memories_are_float32_under_bfloat16(dtypes):
  layer = make_layer(**dict.fromkeys(dtypes, jnp.bfloat16))
  x = jax.ShapeDtypeStruct((BATCH, LENGTH, DIM), jnp.bfloat16)
  out, state = jax.eval_shape(lambda x: layer(x, layer.init_state(BATCH)), x)
  assert out.dtype == jnp.bfloat16
  floating = [x for x in jax.tree.leaves((state.roles, state.memory)) if x.ndim]
  assert {x.dtype for x in floating} == {np.dtype('float32')}


def test_layer_is_causal():
  """Row t of the batch changes token t: everything before is as it was, token t is not."""
  x = inputs()[:1] + jnp.eye(LENGTH + 1)[:, :LENGTH, None]
  first = default_layer().init_state(BATCH)
  pieces = [call()(rows, first)[0] for rows in jnp.split(x, len(x) // BATCH)]
  outputs = jnp.concatenate(pieces)[:LENGTH]
  change = jnp.abs(outputs - jnp.repeat(whole()[0][:1], LENGTH, axis=0)).max(-1)
  before = jnp.tril(jnp.ones((LENGTH, LENGTH)), -1)
  assert float(jnp.max(change * before)) < 1e-6
  assert float(jnp.min(jnp.diagonal(change))) > 1e-3


def test_layer_keeps_sequences_apart():
  outputs, _ = call()(inputs().at[1].add(1.0), default_layer().init_state(BATCH))
  np.testing.assert_array_equal(outputs[0], whole()[0][0])


@pytest.mark.parametrize('size', ['chunk_size', 'projection_chunk_size'])
def test_layer_surprise_of_later_chunks_depends_on_the_first(size):
  """At given keys and values, through what the first chunk wrote."""
  layer = default_layer()
  change = inputs().at[:, 1].add(1.0)

  def errors(x):
    _, state = call()(x, layer.init_state(BATCH))
    periodic = {'chunk_size': state.memory, 'projection_chunk_size': state.roles}[size]
    weights = memories.weights_of(periodic.held)
    probes = jnp.ones((*weights['w2'].shape[:-2], 3, DIM // HEADS)) / 2
    memory = memories.Memory(layer.config.network, layer.config.rule)
    return jax.tree.leaves(memories.surprise(memory, weights, probes, -probes)[1])

  for before, after in zip(errors(inputs()), errors(change), strict=True):
    assert np.abs(before - after).max(axis=(-1, -2)).min() > 1e-5


# ----- what it reduces to


def test_layer_without_role_matrices_has_static_projections():
  """With W1 = 0, roles are the projections until their first update, while the memory learns."""
  layer, static = make_layer(), make_layer(adaptive=())
  layer.role_weights['w1'][...] = 0 * layer.role_weights['w1'][...]
  got, params = outputs_of(layer), nnx.state(layer)
  del params['role_weights']
  nnx.update(static, params)
  expected = quick_jit(functools.partial(fresh, static))(inputs())
  np.testing.assert_allclose(got[:, :PROJECTION], expected[:, :PROJECTION], atol=1e-5)
  assert float(jnp.abs(got - expected)[:, PROJECTION:].max()) > 1e-4


def test_roles_that_are_matrices_begin_as_static_projections():
  sizes = {'memory_hidden': 0, 'chunk_size': CHUNK, 'projection_chunk_size': PROJECTION}
  layer = SelfModifyingConfig(DIM, HEADS, **sizes).make(rngs=nnx.Rngs(0))
  static = SelfModifyingConfig(DIM, HEADS, **sizes, adaptive=()).make(rngs=nnx.Rngs(1))
  params = nnx.state(layer)
  del params['role_weights']
  nnx.update(static, params)
  got, expected = (quick_jit(functools.partial(fresh, each))(inputs()) for each in (layer, static))
  np.testing.assert_allclose(got[:, :PROJECTION], expected[:, :PROJECTION], atol=1e-5)
  assert float(jnp.abs(got - expected)[:, PROJECTION:].max()) > 1e-4


def test_layer_that_never_updates_is_a_projection_of_its_queries():
  """W1 = 0, rates at 0 and retention at 1: o = norm(q) gated and projected, without any memory."""
  layer = make_layer()
  for weights in (layer.role_weights, layer.memory_weights):
    weights['w1'][...] = 0 * weights['w1'][...]
  layer.gate_weights[...] = 0 * layer.gate_weights[...]
  layer.gate_biases[...] = jnp.array([[-90.0], [90.0]]) * jnp.ones((1, HEADS))
  x = np.stack([reference.convolved(layer.conv.kernel[...], x) for x in inputs()])
  projected = (x @ layer.projection.kernel[...]).reshape(BATCH, LENGTH, len(ROLES) + 1, DIM)
  queries = projected[:, :, ROLES.index('q')].reshape(BATCH, LENGTH, HEADS, -1)
  queries = queries / jnp.sqrt(jnp.sum(queries**2, axis=-1, keepdims=True) + 1e-6)
  size = jnp.sqrt(jnp.mean(queries**2, axis=-1, keepdims=True) + 1e-6)
  out = (queries / size * layer.output_scale[...].reshape(1, 1, 1, -1)).reshape(x.shape)
  expected = (out * jax.nn.silu(projected[:, :, -1])) @ layer.output.kernel[...]
  np.testing.assert_allclose(outputs_of(layer), expected, atol=1e-5)


# ----- errors


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'num_heads': 3}, '`model_dim` must be a multiple of `num_heads`, got 8 and 3'),
    ({'num_heads': 0}, '`num_heads` must be an integer of at least 1, got 0'),
    ({'memory_hidden': -1}, '`memory_hidden` must be an integer of at least 0, got -1'),
    ({'chunk_size': 0}, '`chunk_size` must be an integer of at least 1, got 0'),
    (
      {'projection_chunk_size': 0},
      '`projection_chunk_size` must be an integer of at least 1 token',
    ),
    (
      {'projection_chunk_size': 6},
      '`projection_chunk_size` must be a multiple of `chunk_size`, got 6 and 4',
    ),
    ({'conv_width': 0}, '`conv_width` must be an integer of at least 1, got 0'),
    ({'rate_gate': 'tanh'}, r"`rate_gate` must be one of \['exponential', 'sigmoid'\], got 'tanh'"),
    ({'adaptive': ('k', 'o')}, "`adaptive` must be one of .*'k', 'q', 'v'.*, got 'o'"),
    ({'reads': 'last'}, r"`reads` must be one of \['chunk', 'token'\], got 'last'"),
  ],
  ids=lambda value: next(iter(value.items()))[0] if isinstance(value, dict) else '',
)
def test_config_names_a_wrong_argument(options, message):
  sizes = {
    'model_dim': DIM,
    'num_heads': HEADS,
    'memory_hidden': HIDDEN,
    'chunk_size': CHUNK,
    'projection_chunk_size': PROJECTION,
  }
  with pytest.raises(ValueError, match=message):
    SelfModifyingConfig(**(sizes | options))


def test_first_rates_are_spread_over_the_heads():
  config = SelfModifyingConfig(DIM, 4, HIDDEN, CHUNK, PROJECTION, rate_bias=(-2.0, 4.0))
  layer = config.make(rngs=nnx.Rngs(0))
  rates, retentions = layer.gate_biases[...]
  np.testing.assert_allclose(rates, [-2, 0, 2, 4], atol=1e-6)
  assert np.all(retentions > 0)


def test_matrix_at_a_high_rate_turns_over_what_a_key_holds():
  """What tracking a parity takes: with a target of no size, what is stored changes its sign."""
  rule = memories.dgd(retention=False)
  memory = memories.Memory(memories.matrix(), rule)
  key, weight = jnp.array([[1.0, 0.0]]), jnp.array([[0.3, 0.7], [-0.2, 0.1]])
  gates = memories.Gates(jnp.array([np.exp(8.0)]), jnp.zeros(1), jnp.zeros(1))
  state = memories.init_state(memory, {'w': weight})
  live, _ = memories.absorb(memory, state, state, memories.Tokens(key, 0 * key, gates))
  expected = weight.at[:, 0].multiply(-1)
  np.testing.assert_allclose(live.matrices['w'].weight, expected, atol=1e-3)


# ----- what a matrix can follow whose targets are its own, under the dot product


def followed(values, keys, queries, start):
  """Answers of one matrix [2, 2] that writes with gates of 1/2 at every token."""
  own = lambda weights, values: unit_norm(memories.apply(memories.matrix(), weights, values))  # noqa: E731
  layer = memories.layer(
    memories.matrix(),
    memories.gradient(retention=False),
    chunk_size=1,
    objective=memories.dot_product(),
    target=own,
  )
  ones = jnp.ones(len(keys))
  tokens = memories.Tokens(keys, values, memories.Gates(ones, 0 * ones, 0 * ones))
  return jax.jit(layer.unroll)(layer.level.init({'w': start}), tokens, queries)[0]


def test_a_value_opposite_to_its_key_turns_a_state_over():
  flips = np.random.default_rng(0).integers(2, size=1000)
  key = jnp.tile(jnp.array([1.0, 0.0]), (1000, 1))
  other = jnp.array([0.0, 1.0])
  # Without a flip the token writes to the other key.
  keys = jnp.where(flips[:, None] == 1, key, other[None])
  answers = followed(-keys, keys, key, jnp.diag(jnp.array([0.2, 0.1])))
  parity = np.cumsum(flips) % 2
  np.testing.assert_array_equal(answers[:, 0] < 0, parity == 1)
  assert jnp.all(jnp.abs(answers[:, 0]) > 0.1)


def test_a_value_that_no_key_writes_to_counts():
  signs = np.random.default_rng(0).choice([-1.0, 1.0], size=1000)
  key, value = jnp.tile(jnp.array([[1.0, 0.0]]), (1000, 1)), jnp.array([0.0, 1.0])
  start = jnp.array([[0.0, 0.3], [0.0, 0.0]])
  answers = followed(signs[:, None] * value[None], key, key, start)
  np.testing.assert_allclose(answers[:, 0], np.cumsum(signs) / 2, rtol=1e-4, atol=1e-3)
