"""Norms, projections and the causal convolution, against their formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx.memories import modules
from tests.compiling import quick_jit

BATCH, LENGTH, DIM, WIDTH = 2, 9, 5, 4


rms_norm, unit_norm = quick_jit(modules.rms_norm), quick_jit(modules.unit_norm)


def inputs(*shape, dtype='float32'):
  return np.random.default_rng(1).normal(size=shape).astype(dtype)


@functools.cache
def convolution(width=WIDTH):
  return modules.CausalConv(DIM, width, rngs=nnx.Rngs(0))


@functools.cache
def convolve():
  return quick_jit(convolution())


@pytest.mark.usefixtures('float64')
def test_rms_norm_divides_by_the_root_mean_square():
  x, scale = inputs(3, DIM, dtype='float64'), np.arange(1.0, DIM + 1)
  expected = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True)) * scale
  np.testing.assert_allclose(rms_norm(x, scale), expected, rtol=1e-5)


def test_rms_norm_takes_its_statistics_in_float32():
  x = (1 + inputs(3, 512) / 8).astype(jnp.bfloat16)
  got, expected = (rms_norm(x, np.ones(512, 'float32')) for x in (x, x.astype('float32')))
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got, expected.astype(jnp.bfloat16))


def test_rms_norm_module_starts_with_a_scale_of_one():
  x = inputs(3, DIM)
  expected = rms_norm(x, np.ones(DIM, 'float32'))
  np.testing.assert_array_equal(quick_jit(modules.RMSNorm(DIM))(x), expected)


def test_unit_norm_has_unit_length():
  np.testing.assert_allclose(np.linalg.norm(unit_norm(inputs(7, DIM)), axis=-1), 1, 1e-5)


def test_unit_norm_of_zero_is_zero_with_a_finite_derivative():
  zero = np.zeros(DIM, 'float32')
  jacobian = quick_jit(jax.jacobian(modules.unit_norm))(zero)
  np.testing.assert_array_equal(unit_norm(zero), zero)
  assert np.isfinite(jacobian).all()


def test_projection_keeps_the_size_of_its_inputs():
  projection = modules.Projection(256, 256, rngs=nnx.Rngs(0))
  x = inputs(8, 256)
  assert np.std(quick_jit(projection)(x)) / np.std(x) == pytest.approx(1, abs=0.1)


def test_projection_scale_multiplies_its_kernel():
  plain, scaled = (modules.Projection(4, 3, rngs=nnx.Rngs(0), scale=s) for s in (1.0, 0.5))
  np.testing.assert_allclose(scaled.kernel[...], 0.5 * plain.kernel[...], rtol=1e-6)


def test_projection_computes_in_dtype_and_keeps_parameters_in_param_dtype():
  projection = modules.Projection(4, 3, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
  assert jax.eval_shape(projection, inputs(2, 4)).dtype == jnp.bfloat16
  assert projection.kernel[...].dtype == jnp.float32


@pytest.mark.parametrize('width', [1, 2, WIDTH])
def test_convolution_equals_a_plain_loop(width):
  conv, x = convolution(width), inputs(BATCH, LENGTH, DIM)
  out, _ = quick_jit(conv)(x, conv.init_state(BATCH))
  kernel = np.asarray(conv.kernel[...])
  expected = np.zeros(x.shape)
  for t in range(LENGTH):
    for back in range(min(width, t + 1)):
      expected[:, t] += kernel[width - 1 - back] * x[:, t - back]
  np.testing.assert_allclose(out, expected, atol=1e-6)


def test_convolution_starts_near_the_identity():
  conv, x = convolution(), inputs(BATCH, LENGTH, DIM)
  out, _ = convolve()(x, conv.init_state(BATCH))
  assert np.max(np.abs(np.asarray(out) - x)) < 0.3


@pytest.mark.parametrize('pieces', [(1,) * LENGTH, (2, 7), (7, 2), (1, 1, 7)])
def test_convolution_continues_from_its_state(pieces):
  conv, x = convolve(), inputs(BATCH, LENGTH, DIM)
  whole, last = conv(x, convolution().init_state(BATCH))
  state, outs, begin = convolution().init_state(BATCH), [], 0
  for size in pieces:
    out, state = conv(x[:, begin : begin + size], state)
    outs.append(out)
    begin += size
  np.testing.assert_allclose(np.concatenate(outs, axis=1), whole, atol=1e-6)
  np.testing.assert_array_equal(state, last)


@pytest.mark.parametrize('valid', range(LENGTH + 1))
def test_convolution_state_holds_valid_inputs_only(valid):
  x, start = inputs(BATCH, LENGTH, DIM), inputs(BATCH, WIDTH - 1, DIM) + 1
  _, state = convolve()(x, start, valid)
  expected = np.concatenate([start, x[:, :valid]], axis=1)[:, -(WIDTH - 1) :]
  np.testing.assert_array_equal(state, expected)


def test_convolution_keeps_the_dtype_of_its_state():
  conv = convolution()
  _, state = jax.eval_shape(conv, inputs(BATCH, LENGTH, DIM), conv.init_state(BATCH, jnp.bfloat16))
  assert state.dtype == jnp.bfloat16
