import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlx import optim

SHAPE = (4, 6)
ORTHOGONALIZE = jax.jit(optim.newton_schulz)
OPTIONS = {'decay': 0.9, 'slow_decay': 0.8, 'slow_weight': 0.7, 'second_decay': 0.99}


def gradients(num_steps):
  return np.asarray(jax.random.normal(jax.random.key(0), (num_steps, *SHAPE)))


def run(tx, num_steps, factor=1.0):
  """Updates, and the states after each of them."""
  state, updates, states = jax.jit(tx.init)(jnp.zeros(SHAPE)), [], []
  for gradient in gradients(num_steps):
    update, state = jax.jit(tx.update)(factor * gradient, state)
    updates.append(update)
    states.append(state)
  return np.stack(updates), states


def reference(num_steps, periods, *, decay, slow_decay, slow_weight, second_decay, kind, literal):
  """Algorithm 1 line by line, for any number of slow levels."""

  def average(memory, new, decay):
    return (memory if literal else decay * memory) + (1 - decay) * new

  ns = lambda x: np.asarray(ORTHOGONALIZE(x))  # noqa: E731
  fast, second = np.zeros(SHAPE), np.zeros(SHAPE)
  slow = [np.zeros(SHAPE) for _ in periods]
  sums = [np.zeros(SHAPE) for _ in periods]
  updates = []
  for step, gradient in enumerate(gradients(num_steps), 1):
    fast = average(fast, gradient, decay)
    second = average(second, gradient**2, second_decay)
    update = ns(fast)
    for i, period in enumerate(periods):
      sums[i] = sums[i] + gradient
      if step % period == 0:
        slow[i] = average(slow[i], sums[i], slow_decay)
        sums[i] = np.zeros(SHAPE)
      update = update + slow_weight * ns(slow[i])
    root = np.sqrt(second)
    if kind == 'relative':
      seen = 1 - second_decay**step
      filled = second + (1 - seen) * np.mean(second) / seen  # What is not seen is the mean.
      root = np.sqrt(filled / np.mean(filled))
    updates.append(update if kind == 'none' else update / (root + 1e-8))
  return np.stack(updates)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('periods', [(1,), (3,), (2, 4, 8)])
@pytest.mark.parametrize('kind', ['relative', 'literal', 'none'])
def test_m3_is_its_algorithm(periods, kind):
  tx = optim.scale_by_m3(periods, second_moment=kind, **OPTIONS)
  want = reference(9, periods, kind=kind, literal=False, **OPTIONS)
  np.testing.assert_allclose(run(tx, 9)[0], want, rtol=1e-9, atol=1e-9)


def test_m3_takes_a_period_of_numpy():
  like = {'w': jnp.zeros((2, 3))}
  found, expected = (optim.scale_by_m3(slow_period=n).init(like) for n in (np.int64(4), 4))
  assert jax.tree.structure(found) == jax.tree.structure(expected)


@pytest.mark.usefixtures('float64')
def test_literal_m3_is_the_printed_algorithm():
  tx = optim.scale_by_m3(3, literal=True, **OPTIONS)
  want = reference(9, (3,), kind='literal', literal=True, **OPTIONS)
  np.testing.assert_allclose(run(tx, 9)[0], want, rtol=1e-9, atol=1e-9)


def test_m3_takes_no_leap_where_its_first_gradient_is_small():
  gradient = jnp.ones(SHAPE).at[0, 0].set(1e-6)
  tx = optim.scale_by_m3(second_decay=0.999)
  updates, _ = jax.jit(tx.update)(gradient, jax.jit(tx.init)(jnp.zeros(SHAPE)))
  assert jnp.abs(updates).max() < 1


def test_m3_without_slow_level_and_second_moment_is_muon():
  tx = optim.scale_by_m3(decay=0.95, slow_weight=0.0, second_moment='none')
  muon = optax.contrib.scale_by_muon(
    nesterov=False, weight_dimension_numbers=optax.contrib.MuonDimensionNumbers()
  )
  np.testing.assert_allclose(run(tx, 6)[0], run(muon, 6)[0], atol=1e-5)


def test_m3_orthogonalises_its_slow_memory_once_per_period():
  calls = []

  def counting(tree):
    jax.debug.callback(lambda: calls.append(0))
    return optim.newton_schulz(tree)

  tx = optim.scale_by_m3(4, orthogonalize=counting)
  jax.block_until_ready(run(tx, 8))
  jax.effects_barrier()
  assert len(calls) == 8 + 2


def test_m3_holds_its_slow_direction_within_a_period():
  _, states = run(optim.scale_by_m3(4), 9)
  outputs = [np.asarray(state.slow[0].held.output) for state in states]
  assert not outputs[2].any()
  np.testing.assert_array_equal(outputs[3], outputs[6])
  assert (outputs[6] != outputs[7]).any()


@pytest.mark.parametrize('kind, degree', [('relative', 0), ('none', 0), ('literal', -1)])
def test_m3_step_scales_with_the_gradient_as_documented(kind, degree):
  tx = optim.scale_by_m3(2, second_moment=kind)
  norms = [np.linalg.norm(run(tx, 4, factor)[0][-1]) for factor in (1.0, 1e3)]
  assert np.log10(norms[1] / norms[0]) / 3 == pytest.approx(degree, abs=0.01)


def test_m3_gives_adamw_what_is_no_matrix():
  params = {'w': jnp.ones((3, 3)), 'bias': jnp.ones(3), 'embedding': jnp.ones((5, 3))}
  grads = jax.tree.map(lambda p: jnp.arange(1.0, p.size + 1).reshape(p.shape), params)
  got, want = (
    jax.jit(lambda tx=tx: tx.update(grads, tx.init(params), params)[0])()
    for tx in (optim.m3(0.1), optax.adamw(0.1, weight_decay=0.0))
  )
  for name in ('bias', 'embedding'):
    np.testing.assert_allclose(got[name], want[name], rtol=1e-6)
  assert not np.allclose(got['w'], want['w'], rtol=1e-2)


def test_m3_takes_labels_and_options_of_adamw():
  params = {'w': jnp.ones((3, 3))}
  labels = functools.partial(jax.tree.map, lambda _: 'other')
  tx = optim.m3(0.1, labels=labels, adamw={'learning_rate': 1.0, 'b1': 0.5})
  adamw = optax.adamw(1.0, b1=0.5, weight_decay=0.0)
  grads = {'w': jnp.arange(9.0).reshape(3, 3)}
  got, want = (
    jax.jit(lambda tx=tx: tx.update(grads, tx.init(params), params)[0])() for tx in (tx, adamw)
  )
  np.testing.assert_allclose(got['w'], want['w'])


@pytest.mark.parametrize(
  'options, message',
  [
    ({'slow_period': (2, 0)}, '`slow_period` must be .* at least 1 step, got 0'),
    ({'decay': 1.0}, r'`decay` must be in \[0, 1\), got 1.0'),
    ({'slow_decay': -0.1}, '`slow_decay`'),
    ({'second_decay': 2}, '`second_decay`'),
    ({'second_moment': 'yes'}, '`second_moment`'),
    ({'second_moment': 'relative', 'literal': True}, '`second_moment` of `literal` sums'),
    ({'slow_weight': -1.0}, '`slow_weight`'),
  ],
)
def test_m3_refuses(options, message):
  with pytest.raises(ValueError, match=message):
    optim.scale_by_m3(**options)
