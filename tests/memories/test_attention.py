"""Softmax attention against a plain loop and a dense form, its positions and its caches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx.memories.attention import AttentionConfig, rotate
from nlx.memories.modules import Projection
from tests.compiling import quick_jit

BATCH, LENGTH, DIM, HEADS = 2, 11, 16, 2
WIDTH, WINDOW = DIM // HEADS, 4

# Kinds of attention that differ from the default.
KINDS = {
  'full': {},
  'window': {'window': WINDOW},
  'window of one': {'window': 1},
  'long window': {'window': LENGTH + 2},
  'grouped': {'num_heads': 4, 'num_kv_heads': 2},
  'persistent': {'num_persistent': 3},
  'no positions': {'rope_base': None, 'head_dim': 3},
  'all': {
    'num_heads': 4,
    'num_kv_heads': 1,
    'head_dim': 6,
    'window': WINDOW,
    'num_persistent': 3,
    'rope_base': 100.0,
  },
}
STREAMED = ['full', 'window', 'all']


def config(kind='full', **options):
  return AttentionConfig(**{'model_dim': DIM, 'num_heads': HEADS, **KINDS[kind], **options})


@functools.cache
def layer(kind='full'):
  return config(kind).make(rngs=nnx.Rngs(0))


def normal(*shape):
  return np.random.default_rng(1).normal(size=shape)


def inputs(length=LENGTH, dtype='float32'):
  return normal(BATCH, length, DIM).astype(dtype)


def changed(places, by=1.0):
  """Inputs, with something added at these indices."""
  x = inputs()
  x[places] += by
  return x


@functools.cache
def call(kind='full'):
  return quick_jit(layer(kind))


@functools.cache
def whole(kind='full'):
  """Outputs without a past."""
  return call(kind)(inputs(), layer(kind).init_state(BATCH))[0]


def dense(config, parameters, x):
  """All scores at once, most of them masked away: [B, T, D] to [B, T, D]."""
  heads, shared, width = config.num_heads, config.kv_heads, config.key_dim
  half, (batch, length, _) = width // 2, x.shape

  def project(x, begin, count):
    kernel = parameters['projection']['kernel'][...][:, begin * width : (begin + count) * width]
    return jnp.reshape(x @ kernel, (*x.shape[:-1], count, width))

  def turned(x):
    if config.rope_base is None:
      return x
    angles = np.arange(length)[:, None] * config.rope_base ** (-np.arange(half) / half)
    turn = jnp.exp(1j * angles)[None, :, None]
    both = (x[..., :half] + 1j * x[..., half:]) * turn
    return jnp.concatenate([both.real, both.imag], axis=-1)

  places = np.arange(length)
  back = places[:, None] - places
  mask = (back >= 0) & (back < (config.window or length))
  q = turned(project(x, 0, heads))
  k, v = turned(project(x, heads, shared)), project(x, heads + shared, shared)
  if config.num_persistent:
    persistent = parameters['persistent'][...]
    k, v = (
      jnp.concatenate([jnp.stack([project(persistent, begin, shared)] * batch), x], axis=1)
      for begin, x in ((heads, k), (heads + shared, v))
    )
    mask = np.concatenate([np.ones((length, config.num_persistent), bool), mask], axis=1)
  q, *kv = (jnp.moveaxis(part, 2, 0) for part in (q, k, v))
  k, v = (jnp.stack([part[head * shared // heads] for head in range(heads)]) for part in kv)
  scores = jnp.exp(q @ jnp.swapaxes(k, -1, -2) / np.sqrt(width)) * mask[None, None]
  out = scores @ v / jnp.sum(scores, axis=-1, keepdims=True)
  out = jnp.moveaxis(out, 0, 2).reshape((batch, length, heads * width))
  return out @ parameters['output']['kernel'][...]


def in_double(kind):
  """A configuration, its layer's function of parameters and inputs, and its parameters."""
  cfg = config(kind, dtype=jnp.float64, param_dtype=jnp.float64)
  graph = nnx.split(nnx.eval_shape(lambda: cfg.make(rngs=nnx.Rngs(0))))[0]
  parameters = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.state(layer(kind)))

  def function(parameters, x):
    layer = nnx.merge(graph, parameters)
    return layer(x, layer.init_state(BATCH))[0]

  return cfg, function, parameters


def loss(function):
  """A scalar that no symmetry makes simple."""
  return lambda *args: jnp.sum(jnp.sin(1.0 + function(*args)))


def assert_trees_close(got, expected, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, expected)


def rotated(x, position):
  """One head's vector [K] as K / 2 complex numbers, turned by its position."""
  half = x.shape[0] // 2
  turn = np.exp(1j * position * 10_000.0 ** (-np.arange(half) / half))
  turned = (x[:half] + 1j * x[half:]) * turn
  return np.concatenate([turned.real, turned.imag])


@functools.cache
def plain():
  """Causal softmax attention, one query at a time."""
  x = np.asarray(inputs(), np.float64)
  kernel, output = (
    np.asarray(p.kernel[...], np.float64) for p in (layer().projection, layer().output)
  )
  out = np.zeros(x.shape)
  for b, h, t in np.ndindex(BATCH, HEADS, LENGTH):
    columns = slice(h * WIDTH, (h + 1) * WIDTH)
    queries, keys, values = (
      x[b] @ kernel[:, i * DIM : (i + 1) * DIM][:, columns] for i in range(3)
    )
    query = rotated(queries[t], t)
    scores = np.array([rotated(keys[s], s) @ query for s in range(t + 1)]) / np.sqrt(WIDTH)
    weights = np.exp(scores - scores.max())
    out[b, t, columns] = weights / weights.sum() @ values[: t + 1]
  return out @ output


def test_attention_equals_a_plain_softmax():
  np.testing.assert_allclose(whole(), plain(), atol=2e-5)


def test_attention_with_a_cache_equals_a_plain_softmax():
  out, _ = call()(inputs(), layer().init_state(BATCH, 2 * LENGTH))
  np.testing.assert_allclose(out, plain(), atol=2e-5)


@functools.cache
def double(kind, length):
  """Outputs and gradients in float64: those of the layer, and those of the dense form."""

  def with_gradient(function):
    return lambda *args: (function(*args), jax.grad(loss(function), argnums=(0, 1))(*args))

  with jax.enable_x64(True):
    cfg, function, parameters = in_double(kind)
    ours, reference = with_gradient(function), with_gradient(functools.partial(dense, cfg))
    both = quick_jit(lambda *args: (ours(*args), reference(*args)))
    return both(parameters, inputs(length, 'float64'))


@pytest.mark.parametrize(
  ('kind', 'length'),
  [*((kind, LENGTH) for kind in KINDS), ('all', WINDOW - 1), ('window', 2 * WINDOW)],
)
def test_attention_and_its_gradient_equal_the_dense_form(kind, length):
  got, expected = double(kind, length)
  assert got[0].dtype == jnp.float64
  assert_trees_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('kind', ['full', 'window'])
def test_attention_is_the_nadaraya_watson_solution(kind):
  """Of min over y of sum_s exp(q_t . k_s / sqrt(K)) ||y - v_s||^2: no gradient is left there."""
  _, function, parameters = in_double(kind)
  x, kernel = inputs(dtype='float64'), parameters['projection']['kernel'][...]
  parameters['output']['kernel'] = nnx.Param(jnp.eye(DIM))
  y = quick_jit(function)(parameters, x).reshape((BATCH, LENGTH, HEADS, WIDTH))
  queries, keys, values = np.moveaxis((x @ kernel).reshape((*y.shape[:2], 3, HEADS, WIDTH)), 2, 0)

  def gradient(b, h, t):
    query, total = rotated(queries[b, t, h], t), np.zeros(WIDTH)
    for s in range(max(0, t + 1 - WINDOW) if kind == 'window' else 0, t + 1):
      weight = np.exp(query @ rotated(keys[b, s, h], s) / np.sqrt(WIDTH))
      total += 2 * weight * (y[b, t, h] - values[b, s, h])
    return total

  for place in np.ndindex(BATCH, HEADS, LENGTH):
    np.testing.assert_allclose(gradient(*place), 0, atol=1e-10)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('kind', ['full', 'all'])
def test_attention_has_the_second_derivative_of_the_dense_form(kind):
  cfg, function, parameters = in_double(kind)
  x, reference = inputs(dtype='float64'), functools.partial(dense, cfg)
  tangents = jax.tree.map(jnp.cos, (parameters, x))

  def product(function):
    """A Hessian-vector product, by reverse over reverse."""

    def slope(*args):
      gradients = jax.grad(loss(function), argnums=(0, 1))(*args)
      return sum(map(jnp.vdot, jax.tree.leaves(gradients), jax.tree.leaves(tangents)))

    return jax.grad(slope, argnums=(0, 1))(parameters, x)

  got, expected = quick_jit(lambda: (product(function), product(reference)))()
  assert_trees_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('kind', KINDS)
def test_attention_in_single_precision_equals_the_dense_form(kind):
  np.testing.assert_allclose(whole(kind), double(kind, LENGTH)[1][0], atol=2e-5)


def test_attention_second_derivative_in_single_precision_is_finite():
  graph, parameters = nnx.split(layer('all'))

  def value(parameters, x):
    layer = nnx.merge(graph, parameters)
    return loss(lambda x: layer(x, layer.init_state(BATCH))[0])(x)

  def slope(parameters, x):
    return sum(map(jnp.sum, jax.tree.leaves(jax.grad(value)(parameters, x))))

  for leaf in jax.tree.leaves(quick_jit(jax.grad(slope, argnums=(0, 1)))(parameters, inputs())):
    assert np.isfinite(leaf).all()
    assert np.any(leaf)


def test_attention_with_a_window_over_everything_is_full_attention():
  np.testing.assert_allclose(whole('long window'), whole(), atol=1e-6)


def test_attention_with_shared_heads_equals_attention_with_repeated_ones():
  grouped = layer('grouped')
  width, cfg = grouped.config.key_dim, config(num_heads=4)
  kernel = grouped.projection.kernel[...]
  queries, *shared = jnp.split(kernel, (4 * width, 6 * width), axis=1)
  repeated = [
    jnp.repeat(part.reshape((DIM, 2, width)), 2, axis=1).reshape((DIM, -1)) for part in shared
  ]
  full = cfg.make(rngs=nnx.Rngs(0))
  full.projection.kernel[...] = jnp.concatenate([queries, *repeated], axis=1)
  full.output.kernel[...] = grouped.output.kernel[...]
  out, _ = quick_jit(full)(inputs(), None)
  np.testing.assert_allclose(whole('grouped'), out, atol=1e-6)


def test_attention_caches_shared_heads_once():
  state = layer('grouped').init_state(BATCH, LENGTH)
  assert state.keys.shape == state.values.shape == (BATCH, LENGTH, 2, DIM // 4)


@pytest.mark.parametrize('kind', STREAMED)
@pytest.mark.parametrize('pieces', [(1,) * LENGTH, (4, 7), (2, 9), (9, 1, 1)])
def test_attention_continues_from_its_cache(kind, pieces):
  state, outs, begin = layer(kind).init_state(BATCH, 2 * LENGTH), [], 0
  for size in pieces:
    out, state = call(kind)(inputs()[:, begin : begin + size], state)
    outs.append(out)
    begin += size
  np.testing.assert_allclose(np.concatenate(outs, axis=1), whole(kind), atol=1e-5)
  assert int(state.length) == LENGTH


@pytest.mark.parametrize('kind', STREAMED)
@pytest.mark.parametrize('valid', [0, 2, 4, 9])
def test_attention_forgets_tokens_that_are_not_valid(kind, valid):
  first = layer(kind).init_state(BATCH, 2 * LENGTH)
  state = call(kind)(inputs()[:, :valid], first)[1] if valid else first
  padded = changed(np.s_[:, valid:], 9.0)
  _, got = call(kind)(padded, first, valid)
  rest = inputs()[:, valid:]
  assert int(got.length) == valid
  np.testing.assert_allclose(call(kind)(rest, got)[0], call(kind)(rest, state)[0], atol=1e-6)


@pytest.mark.parametrize('valid', [0, 1, 3, 9])
def test_attention_keeps_the_last_valid_tokens_of_its_window(valid):
  first = call('window')(inputs() + 1, layer('window').init_state(BATCH))[1]
  _, all_valid = call('window')(inputs(), first)
  _, state = call('window')(inputs(), first, valid)
  assert int(state.length) == LENGTH + valid
  kept = min(valid, WINDOW)
  np.testing.assert_array_equal(state.values[:, : WINDOW - kept], first.values[:, kept:])
  values = jnp.split(layer('window').projection(inputs()), 3, axis=-1)[2]
  values = values.reshape((BATCH, LENGTH, HEADS, WIDTH))
  last = values[:, valid - kept : valid]
  np.testing.assert_allclose(state.values[:, WINDOW - kept :], last, atol=1e-6)
  np.testing.assert_allclose(all_valid.values, values[:, -WINDOW:], atol=1e-6)


@pytest.mark.parametrize('kind', STREAMED)
def test_attention_step_equals_a_call_of_one_token(kind):
  _, state = call(kind)(inputs(), layer(kind).init_state(BATCH, 2 * LENGTH))
  token = inputs()[:, :1]
  step = quick_jit(layer(kind).step)
  jax.tree.map(np.testing.assert_array_equal, step(token, state), call(kind)(token, state))


def test_attention_has_no_state_without_a_length():
  assert layer().init_state(BATCH) is None


def test_attention_grows_unless_it_has_a_window():
  assert config().grows
  assert not config('window').grows
  assert config().alignment == config('window').alignment == 1


def test_attention_window_has_a_state_of_constant_size():
  def shapes(state):
    return jax.tree.map(lambda x: (x.shape, x.dtype), state)

  attention = layer('window')
  first = attention.init_state(BATCH)
  assert first.keys.shape == (BATCH, WINDOW, HEADS, WIDTH)
  assert shapes(attention.init_state(BATCH, 10**6)) == shapes(first)
  for length in (1, LENGTH):
    assert shapes(call('window')(inputs(length), first)[1]) == shapes(first)


def test_attention_with_a_window_costs_as_much_per_token_however_long_the_input_is():
  attention = config(window=16).make(rngs=nnx.Rngs(0))

  def operations(length):
    run = jax.jit(lambda x: attention(x, attention.init_state(BATCH))[0])
    return run.lower(jnp.zeros((BATCH, length, DIM))).cost_analysis()['flops']

  assert operations(512) / operations(256) == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize('kind', KINDS)
def test_attention_is_causal(kind):
  cut = 6
  out, _ = call(kind)(changed(np.s_[:, cut:]), layer(kind).init_state(BATCH))
  np.testing.assert_allclose(out[:, :cut], whole(kind)[:, :cut], atol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_attention_keeps_sequences_apart(kind):
  out, _ = call(kind)(changed(1), layer(kind).init_state(BATCH))
  np.testing.assert_allclose(out[0], whole(kind)[0], atol=1e-6)


def test_attention_window_sees_no_further_than_its_width():
  out, _ = call('window')(changed(np.s_[:, :2]), layer('window').init_state(BATCH))
  differ = np.any(np.abs(out - whole('window')) > 1e-6, axis=(0, 2))
  np.testing.assert_array_equal(differ, np.arange(LENGTH) < 2 + WINDOW - 1)


def test_rotate_is_relative():
  """Scores depend on the distance of two positions alone."""
  queries, keys = normal(2, 1, LENGTH, HEADS, WIDTH).astype('float32')

  @jax.jit
  def scores(start):
    return jnp.einsum('bthk,bshk->bhts', rotate(queries, start), rotate(keys, start))

  np.testing.assert_allclose(scores(37), scores(0), atol=1e-4)


def test_rotate_turns_each_pair_by_its_position():
  x = normal(1, LENGTH, HEADS, WIDTH).astype('float32')
  got, start = jax.jit(rotate)(x, 5), 5
  for t, h in np.ndindex(LENGTH, HEADS):
    np.testing.assert_allclose(got[0, t, h], rotated(np.asarray(x[0, t, h]), start + t), atol=1e-5)


def test_rotate_leaves_position_zero_as_it_is():
  x = normal(1, 1, HEADS, WIDTH).astype('float32')
  np.testing.assert_array_equal(jax.jit(rotate)(x, 0), x)


@pytest.mark.parametrize('kind', ['full', 'window'])
def test_attention_computes_in_dtype(kind):
  attention = config(kind, dtype=jnp.bfloat16).make(rngs=nnx.Rngs(0))
  out, state = quick_jit(attention)(inputs(), attention.init_state(BATCH, LENGTH))
  assert out.dtype == state.keys.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(jnp.float32), whole(kind), atol=0.1)


def test_attention_has_one_projection_of_queries_keys_and_values():
  """Trained parameters depend on the order, and initial ones on the order of the draws."""
  rngs = nnx.Rngs(0)
  expected = Projection(DIM, 3 * DIM, rngs=rngs), Projection(DIM, DIM, rngs=rngs)
  for kind in ('full', 'window', 'persistent'):
    parts = layer(kind).projection, layer(kind).output
    for part, wanted in zip(parts, expected, strict=True):
      np.testing.assert_array_equal(part.kernel[...], wanted.kernel[...])
  assert set(nnx.state(layer())) == {'projection', 'output'}


def test_attention_has_no_levels():
  assert layer().level_infos() == layer().level_states(None) == []


@pytest.mark.parametrize('kind', ['full', 'all'])
def test_attention_asks_for_its_implementation(kind, monkeypatch):
  """With every argument as for XLA, which stands in for cuDNN here."""
  asked, real = [], jax.nn.dot_product_attention

  def stand_in(*args, implementation, **kwargs):
    asked.append(implementation)
    return real(*args, implementation='xla', **kwargs)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', stand_in)
  outs = []
  for implementation in ('xla', 'cudnn'):
    cfg = config(kind, dtype=jnp.bfloat16, implementation=implementation)
    attention = cfg.make(rngs=nnx.Rngs(0))
    outs.append(quick_jit(attention)(inputs(), attention.init_state(BATCH))[0])
  assert asked == ['xla', 'cudnn']
  np.testing.assert_array_equal(*outs)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'num_heads': 3}, '`model_dim` must be a multiple of `num_heads`, got 16 and 3'),
    ({'num_heads': 0}, '`num_heads` must be an integer of at least 1, got 0'),
    ({'num_kv_heads': 3}, '`num_heads` must be a multiple of `num_kv_heads`, got 2 and 3'),
    ({'num_kv_heads': 0}, '`num_kv_heads` must be an integer of at least 1, got 0'),
    ({'model_dim': 6}, r'`head_dim` must be a multiple of `2 \(rotary pairs\)`, got 3'),
    ({'head_dim': 5}, r'`head_dim` must be a multiple of `2 \(rotary pairs\)`, got 5'),
    ({'window': 0}, '`window` must be an integer of at least 1, got 0'),
    ({'num_persistent': -1}, '`num_persistent` must be at least 0 tokens, got -1'),
    ({'rope_base': 0.0}, '`rope_base` must be a finite number above 0, got 0.0'),
    ({'implementation': 'triton'}, r"`implementation` must be one of \['cudnn', 'xla'\]"),
    ({'implementation': 'cudnn'}, "`dtype` must have 16 bits .*'cudnn'.*, got float32"),
  ],
)
def test_attention_names_what_is_wrong(options, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(config(), **options)


def test_attention_with_a_width_of_its_own_heads_needs_no_multiple():
  attention = config(num_heads=3, head_dim=4).make(rngs=nnx.Rngs(0))
  assert attention.output.kernel.shape == (12, DIM)


def test_attention_names_more_tokens_than_its_cache_has_room_for():
  with pytest.raises(ValueError, match=f'`x` has {LENGTH} tokens, for a cache of {LENGTH - 1}'):
    layer()(jnp.asarray(inputs()), layer().init_state(BATCH, LENGTH - 1))


def test_attention_cache_that_overflows_returns_nan():
  state = layer().init_state(BATCH, LENGTH - 1)
  out, _ = call()(inputs(), layer().init_state(BATCH, LENGTH))
  assert jnp.isfinite(out).all()
  first, state = call()(inputs()[:, :6], state)
  out, state = call()(inputs()[:, 6:], state, 0)
  assert jnp.isfinite(first).all()
  assert jnp.isnan(out).all()
  out, _ = call()(inputs()[:, :1], state)  # Nothing was kept, but keys were written over.
  assert jnp.isnan(out).all()
