"""The blocks of a continuum memory system, in series and side by side."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nlx import cms
from tests.compiling import quick_jit

BATCH, LENGTH, DIM, HIDDEN, RATE = 3, 5, 8, 12, 0.3
PERIODS = (0, 4, 0, 8)


def inputs():
  return jax.random.normal(jax.random.key(1), (BATCH, LENGTH, DIM))


@functools.cache
def chain(periods=PERIODS, hidden=HIDDEN, **options):
  config = cms.CMSConfig(DIM, hidden, periods, rate=RATE, **options)
  return cms.ContinuumMemory(config, rngs=nnx.Rngs(0))


def written_out(norm_scale, up, down, x):
  """x + MLP(norm(x)) with SwiGLU for one sequence x [C, D]."""
  normed = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * norm_scale
  gate, value = np.split(normed @ up, 2, axis=-1)
  return x + (gate / (1 + np.exp(-gate)) * value) @ down


def parts(block):
  """The norm's scale, 'up' and 'down' as NumPy arrays."""
  return [np.asarray(p[...]) for p in (block.norm.scale, block.up.kernel, block.down.kernel)]


def copies(weights):
  """The same weights for every sequence."""
  return jax.tree.map(lambda w: jnp.repeat(w[None], BATCH, axis=0), weights)


def test_block_of_period_0_is_a_swiglu_mlp():
  got = quick_jit(chain((0,)))(inputs(), ())
  expected = written_out(*parts(chain((0,)).blocks[0]), np.asarray(inputs()))
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_chain_applies_its_blocks_in_order():
  got = quick_jit(chain())(inputs(), copies(chain().initial_weights()))
  expected = np.asarray(inputs())
  for block in chain().blocks:
    expected = written_out(*parts(block), expected)
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_chain_gives_fast_weights_to_the_blocks_that_learn():
  """In the order of the blocks, and to every sequence its own."""
  weights = chain().initial_weights()
  numbers = jnp.arange(1.0, BATCH + 1).reshape(BATCH, 1, 1)
  fast = tuple(
    jax.tree.map(lambda w, i=i: (i + numbers) * w[None], block) for i, block in enumerate(weights)
  )
  got = quick_jit(chain())(inputs(), fast)
  expected, learning = np.array(inputs()), iter(fast)
  for block, period in zip(chain().blocks, PERIODS, strict=True):
    scale, up, down = parts(block)
    own = next(learning) if period else None
    for b in range(BATCH):
      up, down = (own['up'][b], own['down'][b]) if period else (up, down)
      expected[b] = written_out(scale, np.asarray(up), np.asarray(down), expected[b])
  np.testing.assert_allclose(got, expected, atol=2e-4)


def test_chain_lists_initial_weights_of_blocks_that_learn():
  blocks = [chain().blocks[i] for i, period in enumerate(PERIODS) if period]
  for weights, block in zip(chain().initial_weights(), blocks, strict=True):
    np.testing.assert_array_equal(weights['up'], block.up.kernel[...])
    np.testing.assert_array_equal(weights['down'], block.down.kernel[...])


def test_chain_learns_one_rate_per_block_that_learns():
  rates = chain(proportional_rates=False).rates()
  np.testing.assert_allclose(rates, [RATE, RATE], rtol=1e-6)


def test_proportional_rates_grow_with_the_period():
  assert PERIODS == (0, 4, 0, 8)
  np.testing.assert_allclose(chain().rates(), [RATE, 2 * RATE], rtol=1e-6)


def test_chain_that_never_learns_has_no_rates():
  assert chain((0, 0)).log_rate_factors is None


def test_block_computes_in_the_dtype_of_its_input():
  """Fast weights stay float32 and are cast for the product."""
  block = cms.MLPBlock(DIM, HIDDEN, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
  out = quick_jit(block)(inputs().astype(jnp.bfloat16), copies(block.weights()))
  assert out.dtype == jnp.bfloat16
  expected = quick_jit(block)(inputs(), copies(block.weights()))
  np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.05)


def test_independent_blocks_add_up_with_their_weights():
  """Each reads the same x, with its own norm."""
  system = nnx.clone(chain((0, 4), form='independent'))
  factors = jnp.array([0.5, -2.0])
  system.aggregation[...] = factors
  got = quick_jit(system)(inputs(), copies(system.initial_weights()))
  x = np.asarray(inputs())
  added = [written_out(*parts(block), x) - x for block in system.blocks]
  expected = x + sum(np.asarray(f) * one for f, one in zip(factors, added, strict=True))
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_independent_blocks_begin_as_their_sum():
  np.testing.assert_array_equal(chain((0, 4), form='independent').aggregation[...], jnp.ones(2))


def test_nested_blocks_are_a_chain():
  nested, sequential = chain(form='nested'), chain()
  fast = copies(sequential.initial_weights())
  np.testing.assert_array_equal(
    quick_jit(nested)(inputs(), fast), quick_jit(sequential)(inputs(), fast)
  )


def test_blocks_have_the_widths_that_they_are_given():
  shapes = [block.down.kernel.shape for block in chain((0, 4), hidden=(6, 17)).blocks]
  assert shapes == [(6, DIM), (17, DIM)]


def test_blocks_that_capture_have_the_moments_of_their_inputs_as_gradients():
  """Summed over the tokens of each sequence that count, like the gradients of the weights."""
  system = chain((4,), rule=cms.DELTA_GRADIENT_DESCENT)
  fast = copies(system.initial_weights())
  mask = jnp.ones((BATCH, LENGTH)).at[0, 1].set(0).at[2].set(0)

  def loss(fast):
    return jnp.sum(jnp.sin(system(inputs(), fast, mask)) * mask[..., None])

  def plain_loss(fast):
    return jnp.sum(jnp.sin(chain((4,))(inputs(), fast)) * mask[..., None])

  gradient = quick_jit(jax.grad(loss))(fast)[0]
  expected = quick_jit(jax.grad(plain_loss))(copies(chain((4,)).initial_weights()))[0]
  block = system.blocks[0]
  normed = block.norm(inputs())
  gate, value = jnp.split(normed @ block.up.kernel[...], 2, axis=-1)
  for name, x in (('up', normed), ('down', jax.nn.silu(gate) * value)):
    np.testing.assert_allclose(gradient[name].weight, expected[name], atol=1e-5)
    moment = jnp.einsum('bc,bci,bcj->bij', mask, x, x)
    np.testing.assert_allclose(gradient[name].moment, moment, atol=1e-4)
