"""Random problems for memories, solved in parallel and token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from nlx import memories
from tests.compiling import quick_jit
from tests.memories import reference

WIDTH, HIDDEN, SEEDS = 4, 6, 5
NETWORKS = {
  'matrix': memories.matrix(),
  'mlp': memories.mlp(HIDDEN),
  'biased': memories.mlp(HIDDEN, residual=False, bias=True),
}


@functools.cache
def problem(network, length, dtype='float64'):
  """Weights [S, out, in], keys, values, gates and queries [S, T, ...] of S sequences."""

  @quick_jit
  def draw():
    keys = jax.random.split(jax.random.key(length), 7)
    vectors = [jax.random.normal(key, (SEEDS, length, WIDTH), dtype) for key in keys[:3]]
    logits = [jax.random.normal(key, (SEEDS, length), dtype) for key in keys[3:6]]
    gates = memories.Gates(
      rate=jax.nn.sigmoid(logits[0]),
      log_retention=memories.log_gate(logits[1] + 2),
      log_momentum=memories.log_gate(logits[2]),
    )
    network_weights = memories.init_weights(
      NETWORKS[network], keys[6], WIDTH, WIDTH, (SEEDS,), dtype=dtype
    )
    return network_weights, 0.6 * vectors[0], vectors[1], gates, vectors[2]

  return draw()


def run_layer(layer, weights, keys, values, gates, queries, num_valid=None):
  """Outputs, and the last weights and momenta, as the reference returns them."""
  tokens = memories.Tokens(keys, values, gates)
  outputs, state = layer.unroll(layer.level.init(weights), tokens, queries, num_valid)
  return outputs, *live_of(layer, state)


def live_of(layer, state):
  """The live weights and momenta of a state; no momenta for a rule without."""
  weights = memories.weights_of(state.gathered)
  if not layer.memory.rule.momentum:
    return weights, None
  return weights, {name: matrix.momentum for name, matrix in state.gathered.matrices.items()}


def results_and_gradients(run, args):
  """Outputs and last state, and the gradients of a loss of the outputs for all arguments."""

  def loss(args):
    outputs, *state = run(*args)
    weights = jnp.arange(1, outputs.size + 1).reshape(outputs.shape)
    return jnp.sum(jnp.sin(outputs) * weights), (outputs, *state)

  gradients, results = jax.grad(loss, has_aux=True)(args)
  return results, gradients


@functools.cache
def parallel(network, rule, chunk_size, length, dtype='float64', **kwargs):
  """`results_and_gradients` of the chunk-parallel form."""
  layer = memories.layer(NETWORKS[network], rule, chunk_size, widths=(WIDTH, WIDTH), **kwargs)
  run = functools.partial(run_layer, layer)
  jitted = quick_jit(functools.partial(results_and_gradients, run))
  return jitted(problem(network, length, dtype))


@functools.cache
def recurrence_program(network, rule, objective, reads):
  """`(switches, chunk size, arguments) -> results_and_gradients`: many rules are one program."""

  @quick_jit
  def run(switches, chunk_size, args):
    memory = memories.Memory(NETWORKS[network], rule._replace(**switches), objective)
    one = functools.partial(reference.run, memory, chunk_size=chunk_size, reads=reads)
    return results_and_gradients(jax.vmap(one), args)

  return run


@functools.cache
def recurrence(network, rule, length, dtype='float64', reads='token', objective=None):
  """`results_and_gradients` of the recurrence, as a function of the chunk size."""
  switches = {name: getattr(rule, name) for name in reference.SWITCHES}
  rest = rule._replace(name='', **dict.fromkeys(reference.SWITCHES))
  run = recurrence_program(network, rest, objective or memories.l2(), reads)

  @functools.cache
  def at(chunk_size):
    results, gradients = run(switches, chunk_size, problem(network, length, dtype))
    return (*results[:2], results[2] if rule.momentum else None), gradients

  return at


def assert_close(got, expected, tolerance=1e-10):
  """Every leaf equals, relative to the largest number in it."""

  def leaf(x, y):
    scale = 1 + np.abs(y).max(initial=0)
    np.testing.assert_allclose(np.asarray(x) / scale, np.asarray(y) / scale, rtol=0, atol=tolerance)

  jax.tree.map(leaf, got, expected)
