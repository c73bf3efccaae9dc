import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlx.optim.delta_momentum import delta_momentum, scale_by_delta_momentum
from nlx.optim.preconditioners import diagonal


def gradients(shape, num_steps=6, scale=1.0):
  """[num_steps, *shape]."""
  return scale * np.random.default_rng(0).normal(size=(num_steps, *shape))


def run(tx, signals):
  state, all_updates = jax.jit(tx.init)(signals[0]), []
  for signal in signals:
    updates, state = jax.jit(tx.update)(signal, state)
    all_updates.append(updates)
  return np.stack(all_updates)


def plain_loop(signals, decay, delta, saturate, written=lambda g: g):
  """Eq. 48 with numpy, one matrix."""
  m, all_memories = np.zeros(signals[0].shape), []
  for g in signals:
    strength = delta / (1 + delta * np.sum(g**2)) if saturate else delta
    m = m @ (decay * np.eye(g.shape[1]) - strength * g.T @ g) + written(g)
    all_memories.append(m)
  return all_memories


def test_delta_momentum_without_delta_is_trace():
  signals = gradients((3, 4))
  want = run(optax.trace(0.9), signals)
  got = run(scale_by_delta_momentum(0.9, delta=0.0), signals)
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('saturate', [True, False])
@pytest.mark.parametrize('shape', [(3, 5), (5, 3), (1, 4)])
def test_delta_momentum_equals_a_plain_loop(shape, saturate):
  """Wide and tall matrices take the two orders of the product."""
  signals = gradients(shape, scale=0.5)
  got = run(scale_by_delta_momentum(0.8, delta=0.1, saturate=saturate), signals)
  np.testing.assert_allclose(got, plain_loop(signals, 0.8, 0.1, saturate), rtol=1e-12)


@pytest.mark.usefixtures('float64')
def test_delta_momentum_preconditions_what_it_writes_only():
  signals = gradients((3, 4))
  adagrad = diagonal(decay=None, eps=0.0)
  got = run(scale_by_delta_momentum(0.8, delta=0.1, preconditioner=adagrad), signals)
  sums = iter(np.cumsum(np.square(signals), axis=0))
  want = plain_loop(signals, 0.8, 0.1, True, lambda g: g / np.sqrt(next(sums)))
  np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('shape', [(), (4,)])
def test_delta_momentum_takes_vectors_as_rows(shape):
  signals = gradients(shape)
  want = plain_loop([g.reshape(1, -1) for g in signals], 0.9, 0.1, True)
  got = run(scale_by_delta_momentum(0.9, delta=0.1), signals)
  np.testing.assert_allclose(got, [w.reshape(shape) for w in want], rtol=1e-12)


def test_delta_momentum_takes_leading_axes_as_a_batch():
  signals = gradients((2, 3, 4))
  tx = scale_by_delta_momentum(0.9, delta=0.1)
  each = [run(tx, signals[:, i]) for i in range(2)]
  np.testing.assert_allclose(run(tx, signals), np.stack(each, axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('delta', [1e-4, 1.0, 1e4])
def test_saturated_delta_momentum_is_bounded_for_any_delta(delta):
  """No larger than the sum of a decaying series, though without saturation it diverges."""
  signals = gradients((3, 4), 100, 10.0)
  memories = run(scale_by_delta_momentum(0.9, delta=delta), signals)
  largest, bound = (np.linalg.norm(x, axis=(1, 2)).max() for x in (memories, signals))
  assert largest < bound / (1 - 0.9)


def curved_valley(tx, num_steps=1500, rate=1e-3):
  """psi after every step, from (-3.5, 2)."""

  def psi(point):
    r, theta = point
    return r**2 + 5 * (r - theta + 0.5 * jnp.sin(2 * r)) ** 2

  def step(carry, _):
    point, state = carry
    updates, state = tx.update(jax.grad(psi)(point), state)
    point = point - rate * updates
    return (point, state), psi(point)

  @jax.jit
  def run(start):
    return jax.lax.scan(step, (start, tx.init(start)), length=num_steps)[1]

  return np.asarray(run(jnp.array([-3.5, 2.0])))


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  'delta, saturate, reached, settled',
  [(0.0, False, 653, 1213), (1e-4, False, 532, 954), (1e-2, True, 176, 459)],
)
def test_delta_momentum_settles_sooner_in_the_curved_valley(delta, saturate, reached, settled):
  """The first step with psi <= 1e-3, and the first from which on it stays there; decay 0.99."""
  psi = curved_valley(scale_by_delta_momentum(0.99, delta=delta, saturate=saturate))
  below = psi <= 1e-3
  assert np.argmax(below) + 1 == reached
  assert np.flatnonzero(~below)[-1] + 2 == settled


def test_delta_momentum_is_for_matrices_and_adamw_for_the_rest():
  params = {'w': jnp.ones((2, 3)), 'bias': jnp.ones(3)}
  gradient = {'w': jnp.full((2, 3), 0.5), 'bias': jnp.full(3, 0.5)}
  tx = delta_momentum(0.1, weight_decay=0.01)
  updates, _ = jax.jit(tx.update)(gradient, jax.jit(tx.init)(params), params)
  adamw = optax.adamw(0.1, weight_decay=0.01)
  want, _ = adamw.update(gradient['bias'], adamw.init(params['bias']), params['bias'])
  np.testing.assert_allclose(updates['w'], -0.1 * (0.5 + 0.01), rtol=1e-6)
  np.testing.assert_allclose(updates['bias'], want, rtol=1e-6)


def test_delta_momentum_keeps_a_float32_state_of_bfloat16_gradients():
  tx, params = scale_by_delta_momentum(), jnp.ones((2, 3), jnp.bfloat16)
  updates, state = jax.eval_shape(lambda: tx.update(params, tx.init(params)))
  assert (updates.dtype, state.memory.dtype) == (jnp.bfloat16, jnp.float32)


def test_delta_momentum_takes_injected_numbers():
  factory = optax.inject_hyperparams(delta_momentum)
  injected = factory(learning_rate=0.1, decay=0.8, delta=0.1)
  params = {'w': jnp.ones((2, 3))}
  got, want = (
    jax.jit(lambda tx=tx: tx.update(params, tx.init(params), params)[0])()
    for tx in (injected, delta_momentum(0.1, 0.8, delta=0.1))
  )
  np.testing.assert_allclose(got['w'], want['w'], rtol=1e-6)


@pytest.mark.parametrize('options, message', [({'decay': 1.0}, 'decay'), ({'delta': -1}, 'delta')])
def test_delta_momentum_refuses(options, message):
  with pytest.raises(ValueError, match=f'`{message}`'):
    scale_by_delta_momentum(**options)
