import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx import core
from tests.compiling import temp_bytes


def body(carry, x):
  carry = jnp.tanh(carry + x['a'])
  return carry, {'sum': carry + x['b'], 'carry': carry}


def inputs(length):
  a, b = np.random.default_rng(length).normal(size=(2, length, 3)).astype(np.float32)
  return np.ones(3, np.float32), {'a': a, 'b': b}


@pytest.mark.parametrize('remat', [False, True])
@pytest.mark.parametrize('length', [1, 2, 5])
def test_scan_chunks_equals_lax_scan(length, remat):
  ours = functools.partial(core.scan_chunks, body, remat=remat)
  got, expected = (
    jax.jit(scan)(*inputs(length)) for scan in (ours, functools.partial(jax.lax.scan, body))
  )
  jax.tree.map(np.testing.assert_allclose, got, expected)


@pytest.mark.parametrize('remat', [False, True])
@pytest.mark.parametrize('length', [1, 5])
def test_scan_chunks_has_the_gradient_of_lax_scan(length, remat):
  def loss(scan, args):
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(scan(body, *args)))

  def ours(*args):
    return core.scan_chunks(*args, remat=remat)

  gradient = jax.jit(jax.grad(loss, 1), static_argnums=0)
  got, expected = (gradient(scan, inputs(length)) for scan in (ours, jax.lax.scan))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), got, expected)


def test_scan_chunks_makes_no_loop_of_one_step():
  program = jax.make_jaxpr(lambda *args: core.scan_chunks(body, *args))(*inputs(1))
  assert 'scan' not in {equation.primitive.name for equation in program.eqns}


def test_scan_chunks_with_remat_keeps_only_the_carries():
  def loss(remat, carry, xs):
    def wide(carry, x):
      wider = jnp.tile(carry[None], (64, 1)) + x['b'][None]
      return jnp.sum(jnp.sin(jnp.sin(wider)), 0) + x['a'], ()

    return jnp.sum(core.scan_chunks(wide, carry, xs, remat=remat)[0])

  def memory(remat):
    return temp_bytes(jax.grad(lambda *args: loss(remat, *args)), *inputs(256))

  assert memory(True) < memory(False) / 10


@pytest.mark.parametrize('axis', [-1, -2, -3])
def test_join_time_inverts_split_time(axis):
  x = jnp.arange(2 * 12 * 12 * 12).reshape(2, 12, 12, 12)
  np.testing.assert_array_equal(core.join_time(core.split_time(x, 4, axis), axis), x)


def test_split_time_moves_chunks_to_the_front():
  x = jnp.arange(2 * 6 * 5).reshape(2, 6, 5)
  chunks = core.split_time(x, 2, axis=-2)
  assert chunks.shape == (3, 2, 2, 5)
  np.testing.assert_array_equal(chunks[1], x[:, 2:4])
