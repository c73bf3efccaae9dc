"""The caps of rates: what they bound, where they do not, and that they do nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx import memories
from nlx.memories.modules import unit_norm
from tests.compiling import quick_jit
from tests.memories import problems
from tests.memories.catalogue import CASES

WIDTH = 4
LITERAL = {'dgd': memories.dgd, 'gradient': memories.gradient}
every_rule = pytest.mark.parametrize('name', LITERAL)
# Rates, retentions and momenta, each [90].
GRID = [
  x.ravel()
  for x in np.meshgrid([0.1, 0.5, 1, 3, 30, 1e3], [0.05, 0.3, 0.6, 0.99, 1], [0.5, 0.9, 0.98])
]


def literal(name, **options):
  return LITERAL[name](literal=True, **options)


# ----- the hard cap


def sizes(rule, chunk_size, vary_keys=False, length=128):
  """Norms [90, T + 1] of a matrix at the start and after every token, whose values are zero.

  Along the same key all the time, of norm 1.5, or along a new one for every token.
  """
  layer = memories.layer(memories.matrix(), rule, chunk_size)
  keys = np.random.default_rng(0).normal(size=(length, WIDTH))
  keys = jnp.asarray(keys if vary_keys else 0 * keys + 1.5 * WIDTH**-0.5)
  start = jnp.eye(WIDTH) if vary_keys else jnp.full((WIDTH, WIDTH), 1 / WIDTH)

  def run(rate, retention, momentum):
    gates = memories.Gates(*(jnp.full(1, x) for x in (rate, jnp.log(retention), jnp.log(momentum))))

    def step(state, key):
      token = memories.Tokens(key[None], 0 * key[None], gates)
      _, state = layer.step(state, token, key[None])
      return state, jnp.linalg.norm(memories.weights_of(state.gathered)['w'])

    _, norms = jax.lax.scan(step, layer.level.init({'w': start}), keys)
    return jnp.concatenate([jnp.linalg.norm(start)[None], norms])

  return np.asarray(quick_jit(jax.vmap(run))(*map(jnp.asarray, GRID)))


def grows(norms):
  return (norms[:, 1:] > norms[:, :-1] * (1 + 1e-12)).any()


@pytest.mark.usefixtures('float64')
@every_rule
@pytest.mark.parametrize('vary_keys', [False, True], ids=['one_key', 'many_keys'])
def test_hard_cap_keeps_chunks_of_one_token_from_growing(name, vary_keys):
  """At any rate, whatever the keys."""
  assert not grows(sizes(literal(name, hard_cap=True), 1, vary_keys))


@pytest.mark.usefixtures('float64')
def test_hard_cap_keeps_the_proximal_rule_from_growing():
  """Whose steps are too large for a retention that is not open."""
  assert not grows(sizes(memories.dgd(hard_cap=True), 1))
  assert sizes(memories.dgd(), 1).max() > 1e6


@pytest.mark.usefixtures('float64')
@every_rule
def test_chunks_of_one_token_diverge_without_the_hard_cap(name):
  with np.errstate(all='ignore'):
    assert not sizes(literal(name), 1).max() < 1e6


@pytest.mark.usefixtures('float64')
@every_rule
def test_hard_cap_bounds_chunks_of_one_token_with_momentum(name):
  assert sizes(literal(name, momentum=True, hard_cap=True), 1).max() < 1.5


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  'rule',
  [
    memories.dgd(hard_cap=True),
    memories.dgd(literal=True, span=16, hard_cap=True),
    memories.gradient(literal=True, span=16, hard_cap=True),
  ],
  ids=['dgd', 'dgd_literal_span', 'gradient_literal_span'],
)
def test_hard_cap_keeps_long_chunks_from_growing_along_a_repeated_key(rule):
  assert not grows(sizes(rule, 16)[:, ::16])


@pytest.mark.usefixtures('float64')
@every_rule
def test_hard_cap_of_a_literal_rule_without_a_span_lets_long_chunks_diverge(name):
  """Errors that are taken once add up along the key."""
  assert sizes(literal(name, hard_cap=True), 16, length=256).max() > 1e3


# ----- the soft cap


@functools.cache
def largest(rule, chunk_size):
  """Of 4096 tokens, two keys that repeat: the largest norms of W2 [12], and at the start.

  Its inputs are the keys, of unit norm.
  """
  network, width, length = memories.mlp(32), 16, 4096
  layer = memories.layer(network, rule, chunk_size)
  keys = jax.random.split(jax.random.key(0), 3)
  symbols = jax.random.randint(keys[0], (length,), 0, 2)
  inputs, values = unit_norm(jax.random.normal(keys[1], (2, 2, width)))[:, symbols]
  weights = memories.init_weights(network, keys[2], width, width, scale=0.1)

  def run(rate, retention, momentum):
    gates = (jnp.full(length, x) for x in (rate, jnp.log(retention), jnp.log(momentum)))
    tokens = memories.Tokens(inputs, values, memories.Gates(*gates))

    def piece(state, signals):
      _, state = layer.unroll(state, *signals)
      return state, jnp.linalg.norm(memories.weights_of(state.held)['w2'])

    size = max(chunk_size, 16)
    split = lambda x: x.reshape(length // size, size, *x.shape[1:])  # noqa: E731
    signals = jax.tree.map(split, (tokens, inputs))
    _, norms = jax.lax.scan(piece, layer.level.init(weights), signals)
    return jnp.max(jnp.where(jnp.isfinite(norms), norms, jnp.inf))

  grid = np.meshgrid([1.0, 10.0, 1e3], [0.5, 0.99, 0.999, 1.0], [0.9])
  norms = quick_jit(jax.vmap(run))(*(jnp.asarray(x.ravel(), 'float32') for x in grid))
  return np.asarray(norms), float(jnp.linalg.norm(weights['w2']))


@every_rule
@pytest.mark.parametrize('chunk_size', [1, 16, 256])
def test_soft_cap_keeps_a_matrix_within_its_start_and_its_inputs(name, chunk_size):
  norms, start = largest(literal(name, soft_cap=True), chunk_size)
  assert norms.max() <= max(start, 1) + 1e-5


def test_soft_cap_with_an_average_momentum_has_the_same_bound():
  norms, start = largest(memories.dgd(momentum=True, soft_cap=True), 64)
  assert norms.max() <= max(start, 1) + 1e-5


def test_soft_cap_with_the_printed_momentum_has_a_larger_bound():
  norms, start = largest(memories.dgd(momentum=True, literal=True, soft_cap=True), 64)
  assert 2 < norms.max() <= max(start, 1 / (1 - 0.9)) + 1e-5


@every_rule
@pytest.mark.parametrize('chunk_size', [1, 16])
def test_matrices_diverge_without_the_soft_cap(name, chunk_size):
  assert largest(literal(name), chunk_size)[0].max() > 1e6


# ----- both


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('rule', [memories.dgd(momentum=True), literal('gradient')])
def test_caps_that_do_not_bind_change_nothing(rule):
  layer, capped = (
    memories.layer(problems.NETWORKS['mlp'], rule._replace(hard_cap=cap, soft_cap=cap), 8)
    for cap in (False, True)
  )
  weights, keys, values, gates, queries = problems.problem('mlp', 21)
  gates = gates._replace(rate=gates.rate / 1e3, log_retention=gates.log_retention - 0.1)
  args = (weights, keys, values, gates, queries)
  got, expected = (
    quick_jit(functools.partial(problems.run_layer, x))(*args) for x in (capped, layer)
  )
  jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.usefixtures('float64')
def test_capped_memory_step_by_step_equals_unroll():
  """The errors of a token are those of the chunk's start, whatever was read in one piece."""
  layer = CASES['dgd under both caps'].layer(8)
  weights, *args = problems.problem('matrix', 21)
  tokens = memories.Tokens(*args[:3])

  def step(state, token):
    outputs, state = layer.step(state, *jax.tree.map(lambda x: x[:, None], token))
    return state, outputs[:, 0]

  time_first = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (tokens, args[3]))
  state = layer.level.init(weights)
  _, outputs = quick_jit(lambda *args: jax.lax.scan(step, *args))(state, time_first)
  expected, _ = quick_jit(layer.unroll)(state, tokens, args[3])
  problems.assert_close(jnp.moveaxis(outputs, 0, 1), expected)


@pytest.mark.parametrize('retention', [-0.5, 0.0], ids=['gated', 'open'])
@pytest.mark.parametrize('size', [0.0, 1e-30, 1e-15, 1e15], ids=str)
def test_capped_rates_have_finite_derivatives_at_any_size(size, retention):
  """Of inputs and errors alike, in single precision."""
  rule = memories.dgd(hard_cap=True, soft_cap=True)

  def write(rate, log_retention, inputs, errors):
    gates = memories.Gates(rate, log_retention, log_retention)
    _, write = memories.rules.rates(rule, gates, inputs, errors)
    return jnp.sum(write[:, None] * errors)

  args = jnp.ones(3), jnp.full(3, retention), *jnp.full((2, 3, WIDTH), size)
  gradients = jax.grad(write, (0, 1, 2, 3))(*args)
  assert all(np.isfinite(x).all() for x in gradients)
