"""Blocks that are updated every so many training steps: the same periods, with steps for tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from nlx import cms, optim
from tests.compiling import quick_jit

STEPS = {0: 1, 1: 4, 2: 8}  # Of each block.
PERIODS = {rf"\['blocks'\]\[{block}\]": steps for block, steps in STEPS.items()}


def make_params():
  system = cms.ContinuumMemory(cms.CMSConfig(4, 3, (0, 0, 0)), rngs=nnx.Rngs(0))
  return nnx.to_pure_dict(nnx.state(system, nnx.Param))


def run(tx, num_steps=18):
  """Parameters after each step of noisy gradients."""
  params = make_params()
  keys = jax.random.split(jax.random.key(1), num_steps)

  def step(carry, key):
    params, state = carry
    noise = [jax.random.normal(key, x.shape) for x in jax.tree.leaves(params)]
    gradients = jax.tree.unflatten(jax.tree.structure(params), noise)
    updates, state = tx.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    return (params, state), params

  return quick_jit(lambda: jax.lax.scan(step, (params, tx.init(params)), keys)[1])()


@pytest.mark.parametrize('inner', [optax.sgd, optax.adam])
def test_blocks_across_steps_are_multi_steps_per_block(inner):
  groups = {
    block: optax.MultiSteps(inner(0.1), steps).gradient_transformation()
    for block, steps in STEPS.items()
  }
  labels = lambda params: {  # noqa: E731
    'blocks': {i: jax.tree.map(lambda _, i=i: i, block) for i, block in params['blocks'].items()}
  }
  expected = run(optax.partition(groups, labels))
  got = run(optim.multi_rate(0.1, PERIODS, inner=lambda learning_rate, **_: inner(learning_rate)))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), got, expected)


def test_blocks_across_steps_move_at_the_end_of_their_period_only():
  trail = run(optim.multi_rate(0.1, PERIODS))
  for block, steps in STEPS.items():
    kernel = trail['blocks'][block]['down']['kernel']
    moved = jnp.any(kernel[1:] != kernel[:-1], axis=(1, 2))
    assert [i + 2 for i in range(len(moved)) if moved[i]] == [
      step for step in range(2, 19) if step % steps == 0
    ]
