"""Every rule: the chunk-parallel form against the recurrence, token by token."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx import memories
from tests.memories import problems

WINDOW = 5
MAKERS = {'gradient': memories.gradient, 'dgd': memories.dgd}
RULES = {
  f'{name}-{momentum=}-{retention=}': MAKERS[name](momentum=momentum, retention=retention)
  for name, momentum, retention in itertools.product(MAKERS, (False, True), (False, True))
}
# Beside them: rule, network and objective. Windows reach beyond chunks; mirrors need momentum too.
OTHERS = {
  'delta': (memories.delta_rule(), 'matrix', None),
  'delta without retention': (memories.delta_rule(retention=False), 'matrix', None),
  'oja': (memories.oja(), 'matrix', None),
  'oja without retention': (memories.oja(retention=False), 'matrix', None),
  'omega': (memories.omega(window=WINDOW), 'mlp', None),
  'omega without momentum': (memories.omega(window=11, momentum=False), 'matrix', None),
  'omega, literal': (memories.omega(window=2, literal=True), 'matrix', None),
  'atlas': (memories.omega(window=WINDOW, orthogonal=3), 'mlp', None),
  'muon without retention': (
    memories.omega(window=1, retention=False, momentum=False, orthogonal=2), 'matrix', None
  ),
  'moneta': (memories.gradient(mirror=memories.lq_retention(4, 0.5)), 'mlp', memories.lp(3.0)),
  'memora': (memories.gradient(momentum=True, mirror=memories.kl_retention()), 'matrix', None),
  'yaad': (memories.gradient(), 'mlp', memories.huber()),
  'hebbian': (memories.gradient(literal=True), 'matrix', memories.dot_product()),
  'mlp with biases': (memories.dgd(), 'biased', None),
}  # fmt: skip
every_other = pytest.mark.parametrize('case', OTHERS)
every_rule = pytest.mark.parametrize('rule', RULES.values(), ids=RULES)
every_network = pytest.mark.parametrize('network', ['matrix', 'mlp'])


@pytest.mark.usefixtures('float64')
@every_rule
@every_network
def test_chunk_form_equals_the_recurrence(network, rule):
  got, _ = problems.parallel(network, rule, chunk_size=8, length=21)
  problems.assert_close(got, problems.recurrence(network, rule, length=21)(8)[0])


@pytest.mark.usefixtures('float64')
@every_rule
@every_network
def test_chunk_form_has_the_gradient_of_the_recurrence(network, rule):
  _, got = problems.parallel(network, rule, chunk_size=8, length=21)
  problems.assert_close(got, problems.recurrence(network, rule, length=21)(8)[1])


def other(case):
  """Chunk form and recurrence of a case: results and gradients of each."""
  rule, network, objective = OTHERS[case]
  needed = memories.dot_product() if rule.transposed else objective
  got = problems.parallel(network, rule, chunk_size=8, length=21, objective=objective)
  return got, problems.recurrence(network, rule, length=21, objective=needed)(8)


@pytest.mark.usefixtures('float64')
@every_other
def test_chunk_form_of_another_rule_equals_the_recurrence(case):
  (got, _), (expected, _) = other(case)
  problems.assert_close(got, expected)


@pytest.mark.usefixtures('float64')
@every_other
def test_chunk_form_of_another_rule_has_the_gradient_of_the_recurrence(case):
  (_, got), (_, expected) = other(case)
  problems.assert_close(got, expected)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('name', ['dgd', 'gradient'])
def test_chunk_form_of_the_literal_rule_equals_the_recurrence(name):
  rule = getattr(memories, name)(momentum=True, literal=True)
  got, _ = problems.parallel('mlp', rule, chunk_size=4, length=10)
  problems.assert_close(got, problems.recurrence('mlp', rule, length=10)(4)[0])


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('begin', ['start', 'middle'])
def test_chunk_form_starts_from_any_momentum(begin):
  """The momentum of one chunk is carried into the next, and into a part of a chunk."""
  memory = memories.Memory(memories.mlp(problems.HIDDEN), memories.dgd(momentum=True))
  weights, keys, values, gates, _ = problems.problem('mlp', 12)
  tokens = memories.Tokens(keys, values, gates)
  state = memories.init_state(memory, weights)
  cut = {'start': 0, 'middle': 5}[begin]
  whole, _ = memories.absorb(memory, state, state, tokens)
  take = lambda begin, end: jax.tree.map(lambda x: x[:, begin:end], tokens)  # noqa: E731
  first, _ = memories.absorb(memory, state, state, take(0, cut)) if cut else (state, None)
  second, _ = memories.absorb(memory, first, state, take(cut, 12))
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
