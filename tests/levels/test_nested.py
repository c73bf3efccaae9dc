"""Levels that learn the initial weights of faster ones, against a loop from the definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlx import levels
from tests.compiling import quick_jit
from tests.levels.test_nest import CHUNK, assert_close, cell, make_levels, problem

PERIODS = (2, 4, 12)
LENGTH = 14  # chunks: the slowest level is updated twice, and two chunks are left over
COUNT = 2.0  # what the cell counts in a chunk
pytestmark = pytest.mark.usefixtures('float64')


def plain_loop(slow, fast, carry, xs, meta='full'):
  """Losses [LENGTH] and the last weights, and initial weights, of every level."""
  rates = [0.05 * (i + 1) for i in range(len(fast))]
  own, initial = list(fast), list(fast)  # initial[i]: where level i restarts
  velocity = [jnp.zeros_like(w) for w in fast]  # of own[i]
  velocity_of_initial = [jnp.zeros_like(w) for w in fast]  # of initial[i], by level i + 1
  total = [jnp.zeros_like(w) for w in fast]  # gradients since the last update of level i
  total_for_initial = [jnp.zeros_like(w) for w in fast]  # the same since that of level i + 1
  seen, losses = [0.0] * len(fast), []
  for t in range(1, LENGTH + 1):
    x = xs[t - 1]
    loss, count, new_carry, _ = cell(slow, tuple(own), carry, x)
    gradients = jax.grad(lambda w, c=carry, x=x: cell(slow, w, c, x)[0])(tuple(own))
    gradients = jax.lax.stop_gradient(gradients) if meta == 'first' else gradients
    carry = new_carry
    losses.append(loss)
    for i, gradient in enumerate(gradients):
      total[i], seen[i] = total[i] + gradient, seen[i] + count
      total_for_initial[i] = total_for_initial[i] + gradient
    for i, period in enumerate(PERIODS):
      if t * CHUNK % period:
        continue
      velocity[i] = 0.5 * velocity[i] + total[i] / seen[i]
      own[i] = own[i] - rates[i] * velocity[i]
      if i > 0:
        mean = total_for_initial[i - 1] / seen[i]
        velocity_of_initial[i - 1] = 0.5 * velocity_of_initial[i - 1] + mean
        initial[i - 1] = initial[i - 1] - rates[i] * velocity_of_initial[i - 1]
        own[i - 1], velocity[i - 1] = initial[i - 1], jnp.zeros_like(own[i - 1])
        total_for_initial[i - 1] = jnp.zeros_like(own[i - 1])
        if i > 1:
          velocity_of_initial[i - 2] = jnp.zeros_like(own[i - 2])  # A fresh optimizer.
      total[i], seen[i] = jnp.zeros_like(own[i]), 0.0
  return jnp.stack(losses), own, initial


def nested_loop(slow, fast, carry, xs, meta='full'):
  """The same from `nest`."""
  system = make_levels(PERIODS)
  states = [level.init(w) for level, w in zip(system, levels.nested(fast), strict=True)]
  result = levels.nest(system, cell, chunk=CHUNK, meta=meta)(slow, states, carry, xs)
  weights = [level.read(state) for level, state in zip(system, result.states, strict=True)]
  initial = [*(w.initial for w in weights[1:]), fast[-1]]
  return result.loss, [levels.own(w) for w in weights], initial


@functools.cache
def results(loop, meta='full'):
  """What a loop returns, and the gradient of a function of it for all arguments."""

  def loss(*args):
    losses, own, initial = loop(*args, meta=meta)
    return jnp.sum(losses**2) + sum(map(jnp.sum, own)), (losses, own, initial)

  gradient, result = quick_jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))(*problem(3, LENGTH))
  return result, gradient


@pytest.mark.parametrize('meta', ['full', 'first'])
def test_nested_levels_have_the_losses_and_weights_of_a_plain_loop(meta):
  assert_close(results(nested_loop, meta)[0], results(plain_loop, meta)[0])


@pytest.mark.parametrize('meta', ['full', 'first'])
def test_nested_levels_have_the_meta_gradients_of_a_plain_loop(meta):
  assert_close(results(nested_loop, meta)[1], results(plain_loop, meta)[1])


def test_nested_levels_advance_in_a_stream_as_in_nest():
  """One chunk at a time, with periods that end wherever they end."""
  system, (slow, fast, carry, xs) = make_levels(PERIODS), problem(3, LENGTH)
  states = tuple(level.init(w) for level, w in zip(system, levels.nested(fast), strict=True))

  def one_chunk(live, x):
    states, carry = live
    results, signals = levels.gradient_step(cell, system, slow, states, carry, x)
    return (levels.advance(system, states, signals, CHUNK), results[2]), results[0]

  (states, _), losses = quick_jit(lambda live: jax.lax.scan(one_chunk, live, xs))((states, carry))
  expected = results(nested_loop)[0]
  assert_close(losses, expected[0])
  own = [levels.own(level.read(state)) for level, state in zip(system, states, strict=True)]
  assert_close(own, expected[1])


def test_nested_restarts_the_faster_level_from_what_the_slower_one_learned():
  system = tuple(levels.from_optax(optax.sgd(0.1, momentum=0.9), period) for period in (2, 4))
  weights = levels.nested((jnp.ones(3), jnp.zeros(3)))
  states = tuple(level.init(w) for level, w in zip(system, weights, strict=True))
  for _ in range(2):
    gradients = (jnp.full(3, 2.0), jnp.ones(3))
    signals = (
      levels.Weighted(gradients[0], 1.0),
      levels.Weighted(levels.Nested(*gradients[::-1]), 1.0),
    )
    states = levels.advance(system, states, signals, 2)
  initial = system[1].read(states[1]).initial
  np.testing.assert_allclose(initial, 1 - 0.1 * 2.0)
  np.testing.assert_array_equal(system[0].read(states[0]), initial)
  momenta = jax.tree.leaves(states[0].held.optimizer)
  assert all(float(jnp.abs(momentum).max()) == 0 for momentum in momenta)


def test_nested_gives_every_level_but_the_fastest_the_weights_of_the_next_faster():
  assert levels.nested(('a', 'b')) == ('a', levels.Nested('b', 'a'))
  assert levels.nested(()) == ()


def test_nested_weights_of_the_fastest_level_are_an_error():
  level = levels.from_optax(optax.sgd(0.1))
  states = (level.init(levels.Nested(jnp.ones(()), jnp.ones(()))),)
  run = levels.nest((level,), lambda slow, fast, carry, x: (fast[0] * x, 1, carry, ()))
  with pytest.raises(ValueError, match='the fastest level must have no `Nested` weights'):
    run((), states, (), jnp.ones(3))
