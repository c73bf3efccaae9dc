"""Every rule at the ends of its gates, over long texts and with inputs of half precision."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx import memories
from nlx.memories.modules import unit_norm
from tests.compiling import quick_jit
from tests.memories import problems
from tests.memories.catalogue import CASES

LENGTH, SHORT, CHUNK, WIDTH = 8192, 16, 8, problems.WIDTH
# Rate, retention and momentum: as good as shut, and open.
ENDS = jnp.array(list(itertools.product((-1e4, 1e4), repeat=3)))
# Of rules that differ in a gate only, the one with all; the literal ones have no bound.
NAMES = [
  *(f'{rule} {net} momentum=True retention=True' for rule in ('gradient', 'dgd') for net in
    ('matrix', 'mlp')),
  *('hebbian', 'delta', 'oja', 'omega', 'atlas', 'moneta', 'memora', 'yaad'),
  'dgd under both caps',
]  # fmt: skip
every_name = pytest.mark.parametrize('name', NAMES)


@functools.cache
def tokens(length):
  """Keys, values and queries of unit norm, the same for all gates, [8, T, K]."""
  keys = jax.random.split(jax.random.key(0), 3)
  drawn = [unit_norm(jax.random.normal(key, (length, WIDTH))) for key in keys]
  return [jnp.broadcast_to(x, (len(ENDS), *x.shape)) for x in drawn]


def run(name, logits, keys, values, queries):
  layer = CASES[name].layer(CHUNK)
  weights = memories.init_weights(
    layer.memory.network, jax.random.key(1), WIDTH, WIDTH, (len(ENDS),)
  )
  logits = jnp.broadcast_to(logits[:, :, None], (*logits.shape, keys.shape[1]))
  # An orthogonalised write has the size of its rate, however small the error: at larger rates the
  # answers stay bounded, but what they are depends on all before, and gradients grow without end.
  rate = jax.nn.sigmoid(logits[:, 0]) * (0.02 if layer.memory.rule.orthogonal else 1)
  gates = memories.Gates(rate, *(memories.log_gate(logits[:, i]) for i in (1, 2)))
  return problems.run_layer(layer, weights, keys, values, gates, queries)


@functools.cache
def long_run(name):
  """Outputs and last weights of 8192 tokens, and gradients of the outputs' squares."""

  def loss(args):
    results = run(name, *args)
    return jnp.mean(results[0] ** 2), results

  return quick_jit(jax.grad(loss, has_aux=True))((ENDS, *tokens(LENGTH)))


@functools.cache
def program(name):
  """The compiled `run`."""
  return quick_jit(functools.partial(run, name))


@every_name
def test_long_text_is_finite_at_the_ends_of_all_gates(name):
  gradients, results = long_run(name)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((gradients, results)))


@every_name
def test_shut_rate_writes_nothing_and_open_retention_keeps_it(name):
  """The first answers of a memory that is shut are its last."""
  _, (outputs, *_) = long_run(name)
  shut = outputs[2]  # Rate shut, retention open, momentum shut.
  expected = program(name)(ENDS, *(x[:, -SHORT:] for x in tokens(LENGTH)))[0][2]
  np.testing.assert_allclose(shut[-SHORT:], expected, rtol=0, atol=1e-3)


@every_name
def test_half_precision_inputs_are_computed_in_single(name):
  """State and answers are those of the rounded inputs."""
  halves = [x.astype(jnp.bfloat16) for x in tokens(SHORT)]
  got = program(name)(ENDS / 1e4, *halves)
  expected = program(name)(ENDS / 1e4, *(x.astype(jnp.float32) for x in halves))
  assert {x.dtype for x in jax.tree.leaves(got)} == {np.dtype('float32')}
  problems.assert_close(got, expected, tolerance=1e-6)
