"""Every rule: the chunk-parallel form against the recurrence, token by token."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from nlx import memories
from tests.compiling import quick_jit
from tests.memories import problems
from tests.memories.catalogue import CASES

# All but two, whose rule, momentum and retention meet in other cases, two at a time.
LEFT_OUT = ('gradient mlp momentum=True retention=False', 'dgd mlp momentum=False retention=True')
every_case = pytest.mark.parametrize('name', [name for name in CASES if name not in LEFT_OUT])
LENGTH = 21
# The cases that end within a chunk, which has to be compiled as well: one of every form, and all
# rules whose windows reach beyond a chunk.
RAGGED = (
  'gradient mlp momentum=True retention=True',
  'dgd matrix momentum=True retention=True',
  'dgd mlp momentum=True retention=False',
  'gradient over a span',
  'delta',
  'oja',
  *(name for name, case in CASES.items() if case.rule.window > 1),
  'moneta',
  'memora',
  'dgd under both caps',
)


def chunk_size_of(name):
  return 8 if name in RAGGED else 7


def parallel(name, chunk_size):
  """Results and gradients of the chunk-parallel form."""
  rule, network, objective = CASES[name]
  return problems.parallel(network, rule, chunk_size, LENGTH, objective=objective)


def both(name, chunk_size):
  """The same, and those of the recurrence."""
  rule, network, _ = CASES[name]
  plain = problems.recurrence(network, rule, LENGTH, objective=CASES[name].written_objective)
  return parallel(name, chunk_size), plain(chunk_size)


@pytest.mark.usefixtures('float64')
@every_case
def test_chunk_form_equals_the_recurrence(name):
  (got, _), (expected, _) = both(name, chunk_size_of(name))
  problems.assert_close(got, expected)


@pytest.mark.usefixtures('float64')
@every_case
def test_chunk_form_has_the_gradient_of_the_recurrence(name):
  (_, got), (_, expected) = both(name, chunk_size_of(name))
  problems.assert_close(got, expected)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  'name',
  [
    'delta',
    'oja',
    'omega',
    'omega without momentum',
    'atlas',
    'memora',
  ],
)
def test_padding_leaves_no_trace(name):
  """In a chunk that it ends, from which the layer reads on as if it had not been there."""
  layer = CASES[name].layer(chunk_size=8)
  weights, *args = problems.problem(CASES[name].network, LENGTH)
  tokens = memories.Tokens(*args[:3])
  take = lambda end: jax.tree.map(lambda x: x[:, :end], (tokens, args[3]))  # noqa: E731
  state = layer.level.init(weights)
  _, padded = quick_jit(layer.unroll)(state, *take(16), 13)
  following = jax.tree.map(lambda x: x[:, 13:15], (tokens, args[3]))
  out, _ = quick_jit(layer.step)(padded, *following)
  (whole, *_), _ = parallel(name, 8)
  problems.assert_close(out, whole[:, 13:15])


@hypothesis.settings(max_examples=6)
@hypothesis.given(st.sampled_from(sorted(CASES)), st.sampled_from([1, 3, 16, 32]))
def test_chunk_form_of_any_size_equals_the_recurrence(name, chunk_size):
  with jax.enable_x64(True):
    problems.assert_close(*both(name, chunk_size))


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('name', ['dgd', 'gradient'])
def test_chunk_form_of_the_literal_rule_equals_the_recurrence(name):
  rule = getattr(memories, name)(momentum=True, literal=True)
  got, _ = problems.parallel('mlp', rule, 7, LENGTH)
  problems.assert_close(got, problems.recurrence('mlp', rule, LENGTH)(7)[0])


@pytest.mark.usefixtures('float64')
def test_chunk_form_starts_from_any_momentum():
  """The momentum of one chunk is carried into the next, and into a part of a chunk."""
  memory = memories.Memory(memories.mlp(problems.HIDDEN), memories.dgd(momentum=True))
  weights, keys, values, gates, _ = problems.problem('mlp', 12)
  tokens = memories.Tokens(keys, values, gates)
  state = memories.init_state(memory, weights)
  absorb = quick_jit(functools.partial(memories.absorb, memory))
  whole, _ = absorb(state, state, tokens)
  take = lambda begin, end: jax.tree.map(lambda x: x[:, begin:end], tokens)  # noqa: E731
  first, _ = absorb(state, state, take(0, 5))
  second, _ = absorb(first, state, take(5, 12))
  problems.assert_close(second, whole)


@pytest.mark.usefixtures('float64')
def test_surprise_is_the_gradient_of_the_objective():
  memory = memories.Memory(memories.mlp(problems.HIDDEN), memories.dgd(literal=True), memories.l2())
  weights, keys, values, *_ = problems.problem('mlp', 6)

  def loss(weights):
    return 0.5 * jnp.sum((memories.apply(memory.network, weights, keys) - values) ** 2)

  inputs, errors = memories.surprise(memory, weights, keys, values)
  got = {name: errors[name].mT @ inputs[name] for name in weights}
  problems.assert_close(got, jax.grad(loss)(weights))


@pytest.mark.usefixtures('float64')
def test_surprise_is_divided_by_the_number_of_matrices():
  weights, keys, values, *_ = problems.problem('mlp', 6)
  undivided, divided = (
    memories.surprise(memories.Memory(problems.NETWORKS['mlp'], rule), weights, keys, values)[1]
    for rule in (memories.dgd(literal=True), memories.dgd())
  )
  problems.assert_close(divided, jax.tree.map(lambda x: x / 2, undivided))


@pytest.mark.parametrize('network', [memories.matrix(), memories.mlp(32)], ids=['matrix', 'mlp'])
def test_chunk_form_builds_no_weight_per_token(network):
  size, width = 32, 32
  layer = memories.layer(network, memories.dgd(momentum=True), size)
  x, gate = jnp.ones((size, width)), jnp.full(size, -0.1)
  weights = memories.init_weights(network, jax.random.key(0), width, width)
  program = jax.make_jaxpr(layer.unroll)(
    layer.level.init(weights), memories.Tokens(x, x, memories.Gates(-gate, gate, gate)), x
  )
  largest = max(_sizes(program.jaxpr))
  assert largest <= 4 * max(size * size, size * width, width * width)


def _sizes(jaxpr):
  """The sizes of all intermediate arrays, those of inner programs included."""
  for equation in jaxpr.eqns:
    yield from (np.prod(x.aval.shape, dtype=int) for x in equation.outvars)
    for inner in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
    ):
      inner = getattr(inner, 'jaxpr', inner)
      if hasattr(inner, 'eqns'):
        yield from _sizes(inner)
