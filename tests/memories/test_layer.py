"""A memory along a sequence: cuts, padding, targets and gates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx import levels, memories
from nlx.memories.chunk import running_products
from tests.compiling import quick_jit
from tests.memories import problems, reference

RULE = memories.dgd(momentum=True)
LENGTH, CHUNK = 21, 8


@functools.cache
def mlp_layer(**kwargs):
  return memories.layer(problems.NETWORKS['mlp'], RULE, CHUNK, **kwargs)


def arguments():
  """The first state, tokens and queries of a problem."""
  weights, keys, values, gates, queries = problems.problem('mlp', LENGTH)
  tokens = memories.Tokens(keys, values, gates)
  return mlp_layer().level.init(weights), tokens, queries


def piece(begin, end, tokens, queries):
  return jax.tree.map(lambda x: x[:, begin:end], (tokens, queries))


@functools.cache
def unrolled(end=LENGTH):
  """Outputs and the last state of the first tokens."""
  state, *args = arguments()
  return quick_jit(mlp_layer().unroll)(state, *piece(0, end, *args))


@functools.cache
def stepped():
  """Outputs, and the states before the first token and after each, one token at a time."""
  first, *args = arguments()

  def step(state, token):
    tokens, queries = jax.tree.map(lambda x: x[:, None], token)
    outputs, state = mlp_layer().step(state, tokens, queries)
    return state, (outputs[:, 0], state)

  time_first = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tuple(args))
  _, (outputs, states) = quick_jit(lambda *args: jax.lax.scan(step, *args))(first, time_first)
  states = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, states)
  return jnp.moveaxis(outputs, 0, 1), states


@pytest.mark.usefixtures('float64')
def test_layer_step_by_step_equals_unroll():
  outputs, states = stepped()
  last = jax.tree.map(lambda x: x[-1], states)
  problems.assert_close((outputs, last), unrolled())


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('cut', [3, 8, 11, 16, 20])
def test_layer_unroll_leaves_the_state_of_steps_at_any_cut(cut):
  expected = jax.tree.map(lambda x: x[cut], stepped()[1])
  problems.assert_close(unrolled(cut)[1], expected)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('cut', [8, 16])
def test_layer_unroll_continues_at_a_chunk_boundary(cut):
  _, *args = arguments()
  unroll = quick_jit(mlp_layer().unroll)
  outputs, state = unroll(unrolled(cut)[1], *piece(cut, LENGTH, *args))
  expected, last = unrolled()
  problems.assert_close((outputs, state), (expected[:, cut:], last))


@pytest.mark.usefixtures('float64')
def test_layer_step_takes_several_tokens_of_one_chunk():
  state, *args = arguments()
  step, outputs = quick_jit(mlp_layer().step), []
  for begin, end in ((0, 3), (3, 8), (8, 16), (16, 17), (17, 21)):
    out, state = step(state, *piece(begin, end, *args))
    outputs.append(out)
  problems.assert_close((jnp.concatenate(outputs, axis=1), state), unrolled())


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('remat', [False, True])
def test_layer_leaves_no_trace_of_tokens_that_are_not_valid(remat):
  state, *args = arguments()
  lengths = jnp.arange(LENGTH + 1)
  unroll = jax.vmap(mlp_layer(remat=remat).unroll, (None, None, None, 0))
  outputs, states = quick_jit(unroll)(state, *args, lengths)
  expected, expected_states = stepped()
  problems.assert_close(states, expected_states)
  valid = jnp.arange(LENGTH)[None] < lengths[:, None]
  masked = jnp.where(valid[:, None, :, None], outputs - expected[None], 0)
  np.testing.assert_allclose(masked, 0, atol=1e-10)


@pytest.mark.usefixtures('float64')
def test_layer_step_leaves_no_trace_of_tokens_that_are_not_valid():
  state, *args = arguments()
  _, got = quick_jit(mlp_layer().step)(state, *piece(0, 6, *args), 4)
  problems.assert_close(got, jax.tree.map(lambda x: x[4], stepped()[1]))


def test_layer_padding_has_finite_gradients():
  layer = memories.layer(memories.matrix(), RULE, CHUNK)
  weights, keys, values, gates, queries = problems.problem('matrix', LENGTH, dtype='float32')

  def loss(args):
    return jnp.sum(problems.run_layer(layer, *args, num_valid=0)[0] ** 2)

  gradients = quick_jit(jax.grad(loss))((weights, keys, values, gates, queries))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


@pytest.mark.usefixtures('float64')
def test_layer_keeps_dtypes_of_its_state():
  first, *args = arguments()
  padded = jax.eval_shape(mlp_layer().unroll, first, *args, 3)
  for _, state in (unrolled(), unrolled(16), unrolled(3), padded):
    jax.tree.map(lambda x, y: np.testing.assert_equal(x.dtype, y.dtype), state, first)


@pytest.mark.usefixtures('float64')
def test_layer_is_a_level():
  """Signal by signal, through the contract of `levels`."""
  weights, keys, values, gates, queries = (
    jax.tree.map(lambda x: x[0], x) for x in problems.problem('mlp', LENGTH)
  )
  memory = mlp_layer().memory
  level = memories.level(memory, CHUNK)

  def token_read(state, signal):
    live = memories.weights_of(state.gathered)
    return memories.apply(memory.network, live, signal[1])[0]

  tokens = jax.tree.map(lambda x: x[:, None], memories.Tokens(keys, values, gates))
  fed = level._replace(update=lambda state, signal: level.update(state, signal[0]))
  outputs, state = quick_jit(functools.partial(levels.unroll, fed, token_read))(
    level.init(weights), (tokens, queries[:, None])
  )
  expected, last = unrolled()
  problems.assert_close(outputs, expected[0])
  problems.assert_close(state.gathered, jax.tree.map(lambda x: x[0], last.gathered))


@pytest.mark.usefixtures('float64')
def test_layer_writes_what_its_target_makes_of_values():
  """In the first chunk: targets come from the state at its start, also in the outer gradient."""

  def target(weights, values):
    return jnp.tanh(memories.apply(problems.NETWORKS['mlp'], weights, values))

  layer = mlp_layer(target=target)
  args = jax.tree.map(lambda x: x[:, :CHUNK], problems.problem('mlp', LENGTH)[1:])
  args = (problems.problem('mlp', LENGTH)[0], *args)

  def explicit(weights, keys, values, *rest):
    return problems.run_layer(mlp_layer(), weights, keys, target(weights, values), *rest)

  got, expected = (
    quick_jit(functools.partial(problems.results_and_gradients, run))(args)
    for run in (functools.partial(problems.run_layer, layer), explicit)
  )
  problems.assert_close(got, expected)


@pytest.mark.usefixtures('float64')
def test_layer_of_a_network_of_the_users_own_equals_the_recurrence():
  gated = memories.Network(
    shapes=lambda key_dim, value_dim: {
      'gate': (5, key_dim), 'up': (5, key_dim), 'down': (value_dim, 5)
    },
    apply=lambda linear, x: linear('down', jax.nn.silu(linear('gate', x)) * linear('up', x)),
  )  # fmt: skip
  args = problems.problem('mlp', LENGTH)[1:]
  leading, dtype = (problems.SEEDS,), args[0].dtype
  args = (memories.init_weights(gated, jax.random.key(0), 4, 4, leading, dtype=dtype), *args)
  layer = memories.layer(gated, RULE, CHUNK)
  plain = functools.partial(reference.run, layer.memory, chunk_size=CHUNK)
  got = quick_jit(functools.partial(problems.run_layer, layer))(*args)
  problems.assert_close(got, quick_jit(jax.vmap(plain))(*args))


@pytest.mark.usefixtures('float64')
def test_layer_writes_the_same_tokens_into_many_memories():
  """Also under the dot product, whose error alone does not know how many there are."""
  rule = memories.gradient(literal=True)
  layer = memories.layer(
    memories.matrix(), rule, CHUNK, objective=memories.dot_product(), remat=False
  )
  _, keys, values, gates, queries = problems.problem('matrix', LENGTH)
  start = jnp.zeros((*keys.shape[:-2], values.shape[-1], keys.shape[-1]))
  weights = {'w': jnp.stack([start, start + 1], axis=-3)}
  one = jax.tree.map(lambda x: x[..., None, :, :], (keys, values, queries))
  gates = jax.tree.map(lambda x: x[..., None, :], gates)
  tokens = memories.Tokens(*one[:2], gates)
  each = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=1), (tokens, one[2]))
  got, _ = layer.unroll(layer.level.init(weights), tokens, one[2])
  expected, _ = layer.unroll(layer.level.init(weights), each[0], each[1])
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures('float64')
def test_layer_surprise_of_later_chunks_depends_on_the_first():
  _, *args = arguments()
  weights = problems.problem('mlp', LENGTH)[0]
  tokens, queries = args
  late = jax.tree.map(lambda x: x[:, 16:], tokens)

  @quick_jit
  def late_errors(values):
    layer = mlp_layer()
    _, state = layer.unroll(
      layer.level.init(weights), *piece(0, 16, tokens._replace(values=values), queries)
    )
    held = memories.weights_of(state.held)
    return memories.surprise(layer.memory, held, late.keys, late.values)[1]

  changed = tokens.values.at[:, 2].add(1.0)
  for before, after in zip(
    jax.tree.leaves(late_errors(tokens.values)), jax.tree.leaves(late_errors(changed)), strict=True
  ):
    assert np.abs(before - after).max(axis=(1, 2)).min() > 1e-4


@pytest.mark.usefixtures('float64')
def test_layer_is_causal():
  state, tokens, queries = arguments()
  changed = jax.tree.map(lambda x: x.at[:, 13:].add(1.0), (tokens.keys, tokens.values))
  changed = memories.Tokens(*changed, tokens.gates)
  outputs, _ = quick_jit(mlp_layer().unroll)(state, changed, queries)
  problems.assert_close(outputs[:, :13], unrolled()[0][:, :13])


@functools.cache
def with_logits(network):
  """`(weights, keys, values, logits of gates, queries) -> results_and_gradients`."""
  layer = memories.layer(problems.NETWORKS[network], RULE, chunk_size=64)

  def run(weights, keys, values, logits, queries):
    gates = memories.Gates(
      jax.nn.sigmoid(logits), memories.log_gate(logits), memories.log_gate(-logits)
    )
    return problems.run_layer(layer, weights, keys, values, gates, queries)

  return quick_jit(functools.partial(problems.results_and_gradients, run))


@pytest.mark.parametrize('logit', [-1e4, -30.0, 30.0, 1e4])
@pytest.mark.parametrize('network', ['matrix', 'mlp'])
def test_layer_with_gates_shut_or_open_has_finite_gradients(network, logit):
  weights, keys, values, _, queries = problems.problem(network, 70, dtype='float32')
  signs = np.array([[1.0], [1.0], [1.0], [-1.0], [0.0]], np.float32)
  logits = logit * np.broadcast_to(signs, keys.shape[:2])
  found = with_logits(network)((weights, keys, values, logits, queries))
  finite = jax.tree.map(lambda x: np.isfinite(x).all(), found)
  assert all(jax.tree.leaves(finite)), finite


def test_layer_forgets_no_digits_after_a_gate_that_shut():
  """Gates are multiplied in log space, where one huge logit would swallow those after it."""
  weights, keys, values, gates, queries = problems.problem('mlp', 64, dtype='float32')
  shut = memories.log_gate(jnp.full(problems.SEEDS, -1e30))
  gates = memories.Gates(gates.rate, *(gate.at[:, 7].set(shut) for gate in gates[1:3]))
  args = weights, keys, values, gates, queries
  layer = memories.layer(problems.NETWORKS['mlp'], RULE, chunk_size=64)
  plain = functools.partial(reference.run, layer.memory, chunk_size=64)
  got = quick_jit(functools.partial(problems.run_layer, layer))(*args)
  problems.assert_close(got, quick_jit(jax.vmap(plain))(*args), tolerance=1e-5)


@pytest.mark.parametrize('num_shut', [1, 100])
def test_products_of_open_gates_keep_their_digits_after_gates_that_shut(num_shut):
  logs = np.where(np.arange(256) < num_shut, -15, np.random.default_rng(0).uniform(-0.3, 0, 256))
  logs = jnp.asarray(logs, jnp.float32)
  running, between = quick_jit(running_products)(logs)
  exact = np.cumsum(np.asarray(logs, np.float64))
  np.testing.assert_allclose(running, np.exp(exact), rtol=0, atol=1e-6)
  np.testing.assert_allclose(
    between, np.tril(np.exp(np.tril(exact[:, None] - exact))), rtol=0, atol=1e-6
  )


@pytest.mark.usefixtures('float64')
def test_products_of_gates_have_the_gradients_of_products():
  alpha = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, 6))

  def plain(alpha):
    products = jnp.cumprod(alpha)
    return jnp.tril(products[:, None] / products[None])

  def ours(alpha):
    return running_products(jnp.log(alpha))[1]

  got, want = (quick_jit(jax.jacrev(function))(alpha) for function in (ours, plain))
  np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def test_layer_of_weights_in_half_precision_has_a_state_in_single():
  weights, keys, values, gates, queries = problems.problem('mlp', LENGTH, dtype='float32')
  weights = jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights)
  layer = memories.layer(problems.NETWORKS['mlp'], RULE, CHUNK)
  run = lambda: problems.run_layer(layer, weights, keys, values, gates, queries)  # noqa: E731
  assert {x.dtype for x in jax.tree.leaves(jax.eval_shape(run))} == {jnp.dtype('float32')}


def test_layer_names_an_objective_that_is_none():
  with pytest.raises(ValueError, match="`objective` must be one such as `l2\\(\\)`, got 'l2'"):
    memories.layer(memories.matrix(), RULE, CHUNK, objective='l2')


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [((memories.matrix, RULE), '`network`'), ((memories.matrix(), memories.dgd), '`rule`')],
)
def test_layer_names_a_part_that_was_not_made(arguments, message):
  with pytest.raises(ValueError, match=f'{message} must be one such as'):
    memories.layer(*arguments, CHUNK)


def test_tokens_of_a_batch_that_the_weights_have_not_are_an_error():
  layer = memories.layer(memories.matrix(), memories.delta_rule(), 4)
  state = layer.level.init({'w': jnp.zeros((3, 3))})
  x = jnp.zeros((2, 8, 3))
  tokens = memories.Tokens(x, x, memories.Gates(*jnp.zeros((3, 2, 8))))
  with pytest.raises(
    ValueError, match=r'leading axes of the weights, \(\), got keys of \(2, 8, 3\)'
  ):
    layer.unroll(state, tokens, x)


def test_step_is_for_the_tokens_of_one_chunk():
  layer = memories.layer(memories.matrix(), memories.delta_rule(), 4)
  state, x = layer.level.init({'w': jnp.zeros((3, 3))}), jnp.zeros((6, 3))
  tokens = memories.Tokens(x, x, memories.Gates(*jnp.zeros((3, 6))))
  with pytest.raises(
    ValueError, match='`queries` must have at most the 4 tokens of a chunk, got 6'
  ):
    layer.step(state, tokens, x)


def test_layer_needs_a_token():
  weights, *args = problems.problem('mlp', 0, dtype='float32')
  layer = memories.layer(problems.NETWORKS['mlp'], RULE, CHUNK)
  with pytest.raises(ValueError, match='`T` must be an integer of at least 1 token, got 0'):
    problems.run_layer(layer, weights, *args)


def test_network_that_applies_a_matrix_twice_is_an_error():
  twice = memories.Network(
    shapes=lambda key_dim, value_dim: {'w': (value_dim, key_dim)},
    apply=lambda linear, x: linear('w', jnp.tanh(linear('w', x))),
  )
  weights, *args = problems.problem('mlp', LENGTH, dtype='float32')
  weights = memories.init_weights(twice, jax.random.key(0), 4, 4, (problems.SEEDS,))
  with pytest.raises(ValueError, match="must apply each matrix once, and applies 'w' twice"):
    problems.run_layer(memories.layer(twice, RULE, CHUNK), weights, *args)


def test_network_that_does_not_apply_a_matrix_is_an_error():
  idle = memories.Network(
    shapes=lambda key_dim, value_dim: {'w': (value_dim, key_dim), 'z': (value_dim, key_dim)},
    apply=lambda linear, x: jnp.tanh(linear('w', x)),
  )
  weights, *args = problems.problem('mlp', LENGTH, dtype='float32')
  weights = memories.init_weights(idle, jax.random.key(0), 4, 4, (problems.SEEDS,))
  with pytest.raises(ValueError, match="must apply each matrix once, and does not apply 'z'"):
    problems.run_layer(memories.layer(idle, RULE, CHUNK), weights, *args)


@pytest.mark.usefixtures('float64')
def test_first_state_of_a_layer_holds_no_array_twice():
  state, *_ = arguments()
  buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
  assert len(set(buffers)) == len(buffers)


def test_layer_names_a_wrong_chunk_size():
  with pytest.raises(ValueError, match='`period` must be an integer of at least 1 tick, got 0'):
    memories.layer(memories.matrix(), RULE, chunk_size=0)


def test_layer_names_an_unknown_read():
  with pytest.raises(ValueError, match=r"`reads` must be one of \['chunk', 'token'\], got 'last'"):
    memories.layer(memories.matrix(), RULE, chunk_size=2, reads='last')
