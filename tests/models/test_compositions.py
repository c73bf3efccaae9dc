"""Mixers made of mixers, and Titans' memory as a context, against their formulas."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx import cms, models
from nlx.memories import AttentionConfig, MemoryConfig, SelectiveScanConfig
from nlx.models import FeedForwardConfig, GatedConfig, MemoryAsContextConfig, SeriesConfig
from tests.compiling import quick_jit, quick_make
from tests.memories.reference_mixer import (
  FORMULAS,
  mlp,
  rms_norm,
  run,
  sigmoid,
  silu,
  turned,
  unit,
  value,
)
from tests.models import problems

# A window that is shorter than the text, and a text that ends inside a chunk.
BATCH, LENGTH, CHUNK, HEADS, WIDTH, HIDDEN, WINDOW, PERSISTENT = 2, 11, 4, 2, 4, 5, 3, 2
DIM = HEADS * WIDTH
SIZES = {'vocab_size': 2, 'model_dim': DIM, 'num_layers': 1, 'num_heads': HEADS}
OPTIONS = {
  'samba': {'window': WINDOW, 'mlp_hidden': HIDDEN},
  'titans_mac': {'chunk_size': CHUNK, 'memory_hidden': HIDDEN, 'num_persistent': PERSISTENT},
  'titans_mag': {'chunk_size': CHUNK, 'memory_hidden': HIDDEN, 'window': WINDOW},
  'titans_mal': {'chunk_size': CHUNK, 'memory_hidden': HIDDEN, 'window': WINDOW},
}
DOUBLE = {'dtype': jnp.float64, 'param_dtype': jnp.float64}
FEED_FORWARD = FeedForwardConfig(DIM, HIDDEN)
MEMORY = MemoryConfig(DIM, HEADS, CHUNK)
ATTENTION = AttentionConfig(DIM, HEADS)
every_pair = pytest.mark.parametrize(
  'pair', [SeriesConfig, lambda parts: GatedConfig(*parts)], ids=['series', 'gated']
)


def config(name, **options):
  """The mixer of a family."""
  return models.FAMILIES[name](**{**SIZES, **OPTIONS[name], **options}).mixer


def double(config):
  """A layer in float64, with noise on parameters that begin with equal numbers."""
  return quick_make(config, noise=0.3)


@functools.cache
def layer(name, **options):
  return double(config(name, **DOUBLE, **options))


def inputs(length=LENGTH):
  """Small ones, because a retention that is as good as shut has a bound, which no paper prints."""
  return 0.5 * np.random.default_rng(0).normal(size=(BATCH, length, DIM))


@quick_jit
def compiled(layer, x):
  return layer(x, layer.init_state(x.shape[0]))[0]


def outputs(layer, x):
  """What a layer answers from its initial state."""
  return np.asarray(compiled(layer, x))


def assert_close(got, expected):
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


# ----- one after another


@pytest.mark.usefixtures('float64')
def test_feed_forward_is_swiglu():
  part = double(FeedForwardConfig(DIM, HIDDEN, **DOUBLE))
  gate, up = np.split(inputs() @ value(part.up.kernel), 2, axis=-1)
  assert_close(outputs(part, inputs()), (silu(gate) * up) @ value(part.down.kernel))


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('name', ['samba', 'titans_mal'])
def test_series_adds_its_parts_to_the_stream_in_order(name):
  """Each reads the stream through a norm."""
  series, stream = layer(name), inputs()
  for part, norm in zip(series.parts, series.norms, strict=True):
    stream = stream + outputs(part, rms_norm(stream, value(norm.scale)))
  assert_close(outputs(series, inputs()), stream)


def test_model_of_a_series_of_one_part_is_that_of_the_part():
  part = AttentionConfig(SIZES['model_dim'], SIZES['num_heads'])
  plain = models.transformer(**SIZES)
  series = dataclasses.replace(plain, mixer=SeriesConfig((part,)))
  text = problems.tokens(length=3) % SIZES['vocab_size']
  got, expected = (
    problems.call(config)(text, problems.fresh(config))[0] for config in (series, plain)
  )
  np.testing.assert_array_equal(got, expected)


def test_series_norms_have_its_epsilon():
  made = nnx.eval_shape(lambda: config('samba', norm_epsilon=1e-3).make(rngs=nnx.Rngs(0)))
  assert [norm.epsilon for norm in made.norms] == [1e-3, 1e-3, 1e-3]


def test_samba_is_a_scan_an_mlp_attention_with_a_window_and_an_mlp():
  family = models.samba(**{**SIZES, **OPTIONS['samba']})
  assert family.mixer == SeriesConfig(
    (
      SelectiveScanConfig(DIM),
      FeedForwardConfig(DIM, HIDDEN),
      AttentionConfig(DIM, HEADS, window=WINDOW),
    )
  )
  assert (family.cms.hidden, family.cms.periods) == (HIDDEN, (0,))


def test_titans_mal_is_a_memory_before_attention_with_a_window_and_persistent_tokens():
  memory, attention = config('titans_mal').parts
  assert memory == models.titans(**SIZES, chunk_size=CHUNK, memory_hidden=HIDDEN).mixer
  assert attention == AttentionConfig(DIM, HEADS, window=WINDOW, num_persistent=4)


# ----- one beside the other


@pytest.mark.usefixtures('float64')
def test_gated_is_one_mixer_times_the_sigmoid_of_the_other():
  """Both normed."""
  gated, x = layer('titans_mag'), inputs()
  factor = rms_norm(outputs(gated.value, x), value(gated.value_norm.scale))
  gate = rms_norm(outputs(gated.gate, x), value(gated.gate_norm.scale))
  assert_close(outputs(gated, x), factor * sigmoid(gate))


def test_titans_mag_is_attention_that_a_memory_gates():
  gated = config('titans_mag')
  assert gated.value == AttentionConfig(DIM, HEADS, window=WINDOW, num_persistent=4)
  assert gated.gate == models.titans(**SIZES, chunk_size=CHUNK, memory_hidden=HIDDEN).mixer


# ----- what compositions have in common


@every_pair
def test_composition_begins_where_all_its_parts_may(pair):
  slow = MemoryConfig(DIM, HEADS, 3 * CHUNK)
  assert pair((MEMORY, FEED_FORWARD)).alignment == CHUNK
  assert pair((MEMORY, slow)).alignment == pair((slow, MEMORY)).alignment == 3 * CHUNK


@every_pair
def test_composition_grows_if_a_part_does(pair):
  assert pair((MEMORY, ATTENTION)).grows and pair((ATTENTION, MEMORY)).grows
  assert not pair((MEMORY, FEED_FORWARD)).grows


@every_pair
def test_composition_has_the_levels_of_its_parts_and_numbers_a_name_that_returns(pair):
  slow = MemoryConfig(DIM, HEADS, 3 * CHUNK, reads='chunk')
  made = nnx.eval_shape(lambda: pair((slow, MEMORY)).make(rngs=nnx.Rngs(0)))
  levels = [(info.name, info.period) for info in made.level_infos()]
  assert levels == [('memory', 3 * CHUNK), ('memory #2', 1)]


def test_every_level_of_compositions_in_a_composition_has_a_name_of_its_own():
  pair = GatedConfig(MEMORY, MEMORY)
  made = nnx.eval_shape(lambda: SeriesConfig((pair, pair)).make(rngs=nnx.Rngs(0)))
  names = [info.name for info in made.level_infos()]
  assert names == ['memory', 'memory #2', 'memory #3', 'memory #4']


# ----- memory as a context


def attention(query, keys, values):
  scores = np.exp(keys @ query / WIDTH**0.5)
  return scores / scores.sum() @ values


def heads(x):
  """[T, D] to [H, T, K]."""
  return x.reshape((len(x), HEADS, WIDTH)).swapaxes(0, 1)


def context(layer, x, place=lambda x: x):
  """Keys, moved to their places, and values, each [H, T, K], of tokens that are attended to."""
  keys, values = np.split(x @ value(layer.context.kernel), 2, axis=1)
  return np.stack([place(head) for head in heads(keys)]), heads(values)


def read_segment(layer, memories, segment):
  """Y of one segment [C, D], with the memory of its start, one M per head."""
  asked = unit(silu(heads(segment @ value(layer.recall.kernel))))
  answers = [[mlp(m, q) for q in queries] for m, queries in zip(memories, asked, strict=True)]
  answers = np.moveaxis(np.asarray(answers), 0, 1).reshape(segment.shape)
  queries = heads(segment @ value(layer.queries.kernel))
  persistent = value(layer.persistent) if hasattr(layer, 'persistent') else np.zeros((0, DIM))
  fixed = context(layer, persistent)
  recalled, read = context(layer, answers, turned), context(layer, segment, turned)
  out = np.zeros(segment.shape)
  for t in range(len(segment)):
    for h in range(HEADS):
      seen = [
        np.concatenate([fixed[i][h], recalled[i][h, : t + 1], read[i][h, : t + 1]]) for i in (0, 1)
      ]
      out[t, h * WIDTH : (h + 1) * WIDTH] = attention(turned(queries[h])[t], *seen)
  return out @ value(layer.output.kernel)


def memory_as_context(layer, x):
  """One sequence x [T, D], segment by segment: Y = attention over [persistent, M(S W_q), S]."""
  y = np.zeros((0, DIM))
  memories = [{name: value(w)[h] for name, w in layer.memory.weights.items()} for h in range(HEADS)]
  for begin in range(0, len(x), CHUNK):
    segment = read_segment(layer, memories, x[begin : begin + CHUNK])
    y = np.concatenate([y, segment])
    gate, memories = run(FORMULAS['titans'], layer.memory, y)
  factors = rms_norm(y, value(layer.value_norm.scale)), rms_norm(gate, value(layer.gate_norm.scale))
  return factors[0] * sigmoid(factors[1])


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  ('length', 'num_persistent'),
  [(LENGTH, PERSISTENT), (LENGTH, 0), (2 * CHUNK, PERSISTENT), (CHUNK - 1, PERSISTENT)],
  ids=['ragged', 'without persistent tokens', 'whole segments', 'less than a segment'],
)
def test_memory_as_context_is_what_it_prints(length, num_persistent):
  mac, x = layer('titans_mac', num_persistent=num_persistent), inputs(length)
  assert_close(outputs(mac, x), [memory_as_context(mac, one) for one in x])


def test_titans_mac_is_the_memory_of_titans_as_a_context():
  memory = models.titans(**SIZES, chunk_size=CHUNK, memory_hidden=HIDDEN).mixer
  mac = config('titans_mac')
  assert mac == MemoryAsContextConfig(memory, PERSISTENT)
  assert (mac.alignment, mac.grows) == (CHUNK, False)


# ----- errors


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: FeedForwardConfig(0, 4), '`model_dim` must be an integer of at least 1, got 0'),
    (lambda: FeedForwardConfig(4, 0), '`hidden` must be an integer of at least 1, got 0'),
    (lambda: SeriesConfig(()), '`parts` must be at least 1 mixers, got 0'),
    (
      lambda: SeriesConfig((SeriesConfig((FEED_FORWARD,)), FEED_FORWARD)),
      '`parts` must not be series',
    ),
    (
      lambda: SeriesConfig((FEED_FORWARD, FeedForwardConfig(2 * DIM, HIDDEN))),
      r'mixers must have one `model_dim`, got \[8, 16\]',
    ),
    (
      lambda: GatedConfig(FEED_FORWARD, FeedForwardConfig(2 * DIM, HIDDEN)),
      r'mixers must have one `model_dim`, got \[8, 16\]',
    ),
    (
      lambda: SeriesConfig((MEMORY, MemoryConfig(DIM, HEADS, 6))),
      '`largest chunk` must be a multiple of `chunk of a mixer`, got 6 and 4',
    ),
    (
      lambda: GatedConfig(MEMORY, MemoryConfig(DIM, HEADS, 6)),
      '`largest chunk` must be a multiple of `chunk of a mixer`, got 6 and 4',
    ),
    (
      lambda: MemoryAsContextConfig(MEMORY, -1),
      '`num_persistent` must be at least 0 tokens, got -1',
    ),
    (
      lambda: MemoryAsContextConfig(MemoryConfig(6, 2, CHUNK)),
      r'`head_dim` must be a multiple of `2 \(rotary pairs\)`, got 3 and 2',
    ),
  ],
)
def test_composition_names_what_does_not_fit(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.usefixtures('float64')
def test_memory_as_context_with_rotary_keys_streams_as_it_is_trained():
  """Whatever the dtype of the number of valid tokens."""
  options = {**OPTIONS['titans_mac'], **DOUBLE, 'keys': 'rotary'}
  config = models.titans_mac(**problems.SIZES, **options)
  tokens = problems.tokens(length=11)
  whole, _ = problems.read(config, tokens, (11,))
  cut, _ = problems.read(config, tokens, (5, 1, 5))
  np.testing.assert_allclose(cut, whole, rtol=1e-10, atol=1e-12)


def test_memory_as_context_may_be_of_more_bits_than_the_model():
  half = jnp.bfloat16
  blocks = cms.CMSConfig(DIM, HIDDEN, (0,), dtype=half)
  config = models.LanguageModelConfig(
    'mixed', MemoryAsContextConfig(MEMORY), blocks, vocab_size=8, num_layers=1, dtype=half
  )
  model = problems.make(config)
  logits, _ = quick_jit(model)(jnp.arange(6)[None], model.init_state(1))
  assert np.isfinite(logits).all()


def test_series_of_a_list_is_that_of_a_tuple():
  """Hashable, as `jax.jit` and sessions ask of a model."""
  part = problems.CONFIGS['transformer'].mixer
  assert hash(SeriesConfig([part, part])) == hash(SeriesConfig((part, part)))
