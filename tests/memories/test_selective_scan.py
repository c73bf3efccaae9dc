"""The selective scan against a plain loop, its cuts, its padding and its extremes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx.memories.selective_scan import SelectiveScanConfig
from tests.compiling import quick_jit, temp_bytes

BATCH, LENGTH, DIM, STATE, RANK = 2, 11, 6, 3, 2


def config(**options):
  sizes = {'state_dim': STATE, 'rate_rank': RANK, 'scan_chunk': 4}
  return SelectiveScanConfig(model_dim=DIM, **{**sizes, **options})


def graph(cfg):
  """The structure of a layer."""
  return nnx.split(nnx.eval_shape(lambda: cfg.make(rngs=nnx.Rngs(0))))[0]


def initial(cfg):
  """A layer, compiled at once rather than draw by draw."""
  return nnx.merge(graph(cfg), quick_jit(lambda: nnx.state(cfg.make(rngs=nnx.Rngs(0))))())


@functools.cache
def layer():
  return initial(config())


def inputs(length=LENGTH, dtype='float32'):
  return np.random.default_rng(1).normal(size=(BATCH, length, DIM)).astype(dtype)


@functools.cache
def call():
  return quick_jit(layer())


@functools.cache
def whole():
  """Outputs and the last state, without a past."""
  return call()(inputs(), layer().init_state(BATCH))


def plain(parameters, x, hidden):
  """The recurrence one token at a time: [B, T, D] and h [B, E, N] to the same."""
  value = lambda name: parameters[name][...]  # noqa: E731
  kernel = lambda name: parameters[name]['kernel'][...]  # noqa: E731
  conv, decays, length = kernel('conv'), -jnp.exp(value('log_decays'))[None], x.shape[1]
  inner, gate = jnp.split(x @ kernel('projection'), 2, axis=-1)
  padded = jnp.concatenate([jnp.zeros_like(inner[:, :1])] * 3 + [inner], axis=1)
  channel = jax.nn.silu(sum(conv[i][None, None] * padded[:, i : i + length] for i in range(4)))
  low, keys, queries = jnp.split(channel @ kernel('selection'), (RANK, RANK + STATE), axis=-1)
  rates = jnp.log(1 + jnp.exp(low @ kernel('rates') + value('rate_biases')[None, None]))
  reads = []
  for t in range(length):
    rate, key, query = rates[:, t, :, None], keys[:, t, None], queries[:, t, None]
    hidden = jnp.exp(rate * decays) * hidden + rate * key * channel[:, t, :, None]
    reads.append(jnp.sum(hidden * query, axis=-1))
  read = jnp.stack(reads, axis=1) + value('skip')[None, None] * channel
  return (read * jax.nn.silu(gate)) @ kernel('output'), hidden


def in_double(length=LENGTH, **options):
  """The layer's function of parameters, inputs and h, with these three, in float64."""
  structure = graph(config(dtype=jnp.float64, param_dtype=jnp.float64, **options))

  def function(parameters, x, hidden):
    scan = nnx.merge(structure, parameters)
    out, state = scan(x, scan.init_state(BATCH)._replace(hidden=hidden))
    return out, state.hidden

  random = np.random.default_rng(2)
  # Noise, because some parameters begin with equal numbers.
  parameters = jax.tree.map(lambda x: x + 0.3 * random.normal(size=x.shape), nnx.state(layer()))
  hidden = random.normal(size=(BATCH, 2 * DIM, STATE))
  return function, (parameters, inputs(length, 'float64'), hidden)


def loss(function):
  """A scalar that no symmetry makes simple."""
  return lambda *args: sum(jnp.sum(jnp.sin(1.0 + x)) for x in function(*args))


def assert_trees_close(got, expected, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, expected)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  ('length', 'options'),
  [(LENGTH, {}), (8, {}), (3, {}), (1, {}), (7, {'scan_chunk': 64})],
  ids=['ragged', 'whole chunks', 'less than a chunk', 'one token', 'one chunk'],
)
def test_selective_scan_and_its_gradient_equal_a_plain_loop(length, options):
  function, args = in_double(length, **options)

  def both(*args):
    gradients = [jax.grad(loss(f), argnums=(0, 1, 2))(*args) for f in (function, plain)]
    return (function(*args), gradients[0]), (plain(*args), gradients[1])

  got, expected = quick_jit(both)(*args)
  assert got[0][0].dtype == got[0][1].dtype == jnp.float64
  assert_trees_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures('float64')
def test_selective_scan_has_the_second_derivative_of_a_plain_loop():
  function, args = in_double(5)
  tangents = jax.tree.map(np.cos, args)

  def product(function):
    """A Hessian-vector product, by reverse over reverse."""

    def slope(*args):
      gradients = jax.grad(loss(function), argnums=(0, 1, 2))(*args)
      return sum(map(jnp.vdot, jax.tree.leaves(gradients), jax.tree.leaves(tangents)))

    return jax.grad(slope, argnums=(0, 1, 2))(*args)

  got, expected = quick_jit(lambda: (product(function), product(plain)))()
  assert_trees_close(got, expected, rtol=1e-10, atol=1e-10)


def test_selective_scan_in_single_precision_equals_a_plain_loop():
  out, hidden = quick_jit(plain)(nnx.state(layer()), inputs(), layer().init_state(BATCH).hidden)
  np.testing.assert_allclose(whole()[0], out, atol=1e-6)
  np.testing.assert_allclose(whole()[1].hidden, hidden, atol=1e-6)


@pytest.mark.parametrize('chunk', [1, 5, 64])
def test_selective_scan_does_not_depend_on_its_chunks(chunk):
  scan = nnx.merge(graph(config(scan_chunk=chunk)), nnx.state(layer()))
  out, state = quick_jit(scan)(inputs(), scan.init_state(BATCH))
  np.testing.assert_allclose(out, whole()[0], atol=1e-6)
  assert_trees_close(state, whole()[1], atol=1e-6)


@pytest.mark.parametrize('pieces', [(1,) * LENGTH, (4, 7), (7, 4), (1, 2, 1, 7), (9, 2)])
def test_selective_scan_continues_from_its_state(pieces):
  state, outs, begin = layer().init_state(BATCH), [], 0
  for size in pieces:
    out, state = call()(inputs()[:, begin : begin + size], state)
    outs.append(out)
    begin += size
  np.testing.assert_allclose(np.concatenate(outs, axis=1), whole()[0], atol=1e-6)
  assert_trees_close(state, whole()[1], atol=1e-6)


@pytest.mark.parametrize('valid', [0, 1, 2, 4, 9])
def test_selective_scan_forgets_tokens_that_are_not_valid(valid):
  first = call()(inputs(7) + 1, layer().init_state(BATCH))[1]
  out, state = call()(inputs()[:, :valid], first) if valid else (inputs()[:, :0], first)
  padded = inputs()
  padded[:, valid:] += 9.0
  got_out, got = call()(padded, first, valid)
  np.testing.assert_allclose(got_out[:, :valid], out, atol=1e-6)
  assert_trees_close(got, state, atol=1e-6)


def test_selective_scan_step_equals_a_call_of_one_token():
  token, step = inputs()[:, :1], quick_jit(layer().step)
  jax.tree.map(np.testing.assert_array_equal, step(token, whole()[1]), call()(token, whole()[1]))


def test_selective_scan_is_causal():
  cut, x = 6, inputs()
  x[:, cut:] += 1.0
  out, _ = call()(x, layer().init_state(BATCH))
  np.testing.assert_allclose(out[:, :cut], whole()[0][:, :cut], atol=1e-6)
  assert np.all(np.any(np.abs(out[:, cut:] - whole()[0][:, cut:]) > 1e-3, axis=-1))


def test_selective_scan_keeps_sequences_apart():
  x = inputs()
  x[1] += 1.0
  out, _ = call()(x, layer().init_state(BATCH))
  np.testing.assert_allclose(out[0], whole()[0][0], atol=1e-6)


def test_selective_scan_has_a_state_of_constant_size():
  def shapes(state):
    return jax.tree.map(lambda x: (x.shape, x.dtype), state)

  first = layer().init_state(BATCH)
  assert first.hidden.shape == (BATCH, 2 * DIM, STATE)
  assert first.conv.shape == (BATCH, 3, 2 * DIM)
  assert shapes(layer().init_state(BATCH, 10**6)) == shapes(first)
  for length in (1, LENGTH):
    assert shapes(call()(inputs(length), first)[1]) == shapes(first)
  assert not config().grows
  assert config().alignment == 1


@pytest.mark.parametrize('bias', [-1e4, -50.0, 50.0, 1e4])
def test_selective_scan_stays_finite_however_fast_it_forgets(bias):
  """8192 tokens in float32, some channels at these rates and the others at the usual ones."""
  parameters = jax.tree.map(jnp.copy, nnx.state(layer()))
  biases = parameters['rate_biases'][...]
  parameters['rate_biases'][...] = jnp.where(np.arange(2 * DIM) % 2, bias, biases)

  results = long_run()(parameters, 10.0 * inputs(8192)[:1])
  for leaf in jax.tree.leaves(results):
    assert np.isfinite(leaf).all()


@functools.cache
def long_run():
  """Loss, outputs, state and gradients of a function that is compiled once."""

  def total(parameters, x):
    scan = nnx.merge(graph(config()), parameters)
    out, state = scan(x, scan.init_state(1))
    return jnp.mean(jnp.square(out)), (out, state)

  return quick_jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))


def test_selective_scan_keeps_its_state_in_single_precision_at_least():
  scan = nnx.merge(graph(config(dtype=jnp.bfloat16)), nnx.state(layer()))
  out, state = quick_jit(scan)(inputs(), scan.init_state(BATCH))
  assert out.dtype == state.conv.dtype == jnp.bfloat16
  assert state.hidden.dtype == jnp.float32
  np.testing.assert_allclose(out.astype(jnp.float32), whole()[0], atol=0.05)


def test_selective_scan_does_not_hold_all_states_in_memory():
  """The backward pass needs less than the states [B, T, E, N] of all tokens."""
  cfg, length = config(expansion=16, state_dim=256, scan_chunk=16), 2048
  structure, parameters = nnx.split(nnx.eval_shape(lambda: cfg.make(rngs=nnx.Rngs(0))))

  def total(parameters, x):
    scan = nnx.merge(structure, parameters)
    return jnp.sum(scan(x, scan.init_state(BATCH))[0])

  states = BATCH * length * cfg.channels * cfg.state_dim * 4
  assert temp_bytes(jax.grad(total), parameters, inputs(length)) < states / 2


def test_selective_scan_starts_with_the_rates_and_decays_of_the_paper():
  scan = initial(SelectiveScanConfig(model_dim=40, expansion=25))
  rates = jax.nn.softplus(scan.rate_biases[...])
  assert 1e-3 <= np.min(rates) < 2e-3 < 5e-2 < np.max(rates) <= 1e-1
  assert np.median(np.log(rates)) == pytest.approx(np.log(1e-2), abs=0.25)
  decays = np.exp(scan.log_decays[...])
  np.testing.assert_allclose(decays, np.tile(np.arange(1, 17), (1000, 1)), rtol=1e-6)
  assert scan.rates.kernel.shape == (3, 1000)


def test_selective_scan_has_no_levels():
  assert layer().level_infos() == layer().level_states(whole()[1]) == []


@pytest.mark.parametrize(
  'name', ['model_dim', 'expansion', 'state_dim', 'rate_rank', 'conv_width', 'scan_chunk']
)
@pytest.mark.parametrize('value', [0, 2.0])
def test_selective_scan_names_sizes_that_are_none(name, value):
  with pytest.raises(ValueError, match=f'`{name}` must be an integer of at least 1.*, got {value}'):
    dataclasses.replace(config(), **{name: value})
