import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx import levels
from tests.compiling import quick_jit, temp_bytes


def drift(live, held, signal):
  """A recurrence that tells the live state, the held state and the order of signals apart."""
  return 0.9 * live + jnp.tanh(signal - held)


def make_level(period):
  inner = levels.Level(jnp.asarray, lambda held, live: live)
  return levels.periodic(inner, period, levels.fold(drift))


def token_read(state, signal):
  return state.gathered * signal


def chunk_read(state, signal):
  return state.held * signal


def loop(period, read, init, signals):
  """The definition, in plain Python."""
  live = held = init
  outputs = []
  for t, signal in enumerate(signals):
    live = drift(live, held, signal)
    held = live if (t + 1) % period == 0 else held
    outputs.append((live if read is token_read else held) * signal)
  return jnp.stack(outputs), live, held


def problem(length):
  return np.array([0.3, -0.2]), np.random.default_rng(length).normal(size=(length, 2))


def unroll(period, read, remat=True):
  """The compiled `levels.unroll`, `(state, signals) -> (outputs, state)`."""
  level = make_level(period)
  return quick_jit(lambda *args: levels.unroll(level, read, *args, remat=remat))


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('remat', [False, True])
@pytest.mark.parametrize('read', [token_read, chunk_read])
@pytest.mark.parametrize('period, length', [(1, 3), (4, 8), (4, 11), (4, 3)])
def test_unroll_equals_a_plain_loop(period, length, read, remat):
  init, signals = problem(length)
  outputs, state = unroll(period, read, remat)(make_level(period).init(init), signals)
  expected, live, held = quick_jit(functools.partial(loop, period, read))(init, signals)
  np.testing.assert_allclose(outputs, expected, rtol=1e-12)
  np.testing.assert_allclose(state.gathered, live, rtol=1e-12)
  np.testing.assert_allclose(state.held, held, rtol=1e-12)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('remat', [False, True])
def test_unroll_has_the_gradient_of_a_plain_loop(remat):
  level = make_level(4)

  def ours(init, signals):
    outputs, _ = levels.unroll(level, token_read, level.init(init), signals, remat=remat)
    return jnp.sum(outputs**2)

  def plain(init, signals):
    return jnp.sum(loop(4, token_read, init, signals)[0] ** 2)

  got, expected = (quick_jit(jax.grad(loss, (0, 1)))(*problem(11)) for loss in (ours, plain))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10), got, expected)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('cut', [1, 4, 6, 10])
def test_unroll_of_two_pieces_equals_one(cut):
  init, signals = problem(11)
  run, start = unroll(4, token_read), make_level(4).init(init)
  expected, last = run(start, signals)
  first, state = run(start, signals[:cut])
  second, state = run(state, signals[cut:])
  np.testing.assert_allclose(np.concatenate([first, second]), expected, rtol=1e-12)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), state, last)


def test_unroll_with_remat_keeps_one_state_per_period():
  level = make_level(32)

  def memory(remat):
    def loss(init, signals):
      outputs, _ = levels.unroll(
        level, lambda state, _: jnp.sum(state.gathered), level.init(init), signals, remat=remat
      )
      return jnp.sum(outputs)

    return temp_bytes(jax.grad(loss), jnp.ones(256), jnp.ones((1024, 256)))

  assert memory(True) < memory(False) / 4
