"""What other implementations of these models got wrong, one test for each mistake.

That no memory dies or explodes is tested with the memories; that any cut of a sequence equals one
pass, and training equals reading, with streaming.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx import models
from tests.compiling import quick_jit
from tests.models import problems

LENGTH, CHUNK, PERIODS = problems.LENGTH, 8, (8, 16, 32)
# A memory between blocks that learn at three speeds; nothing is clipped.
HOPE = problems.with_cms(
  problems.with_mixer(problems.HOPE, chunk_size=8, adaptive=('k', 'v')),
  periods=PERIODS,
  max_norm=1e6,
)
DEEP = {'memory_hidden': problems.MEMORIES['memory_hidden']}
every_model = pytest.mark.parametrize('config', problems.CONFIGS.values(), ids=problems.CONFIGS)
every_level = pytest.mark.parametrize('level', range(len(PERIODS)), ids=PERIODS)


# ----- parts that were never trained


@functools.cache
def outer_gradient():
  """Of a text in which every level is updated at least twice, and every token occurs."""
  config = problems.with_mixer(problems.ONE_LAYER, chunk_size=8, **DEEP)
  graph, params = problems.split(config)
  tokens = jnp.arange(problems.VOCAB)[None] * jnp.array([[1], [5]]) % problems.VOCAB
  tokens = jnp.concatenate([tokens, problems.tokens(length=16)], axis=1)
  mask = jnp.ones(tokens.shape)

  def loss(params):
    total, count = nnx.merge(graph, params).loss(tokens, jnp.roll(tokens, -1, axis=1), mask)
    return total / count

  gradient = quick_jit(jax.grad(loss))(params)
  return {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(gradient)}


def test_every_slow_parameter_has_an_outer_gradient():
  """Every row of every matrix, of every role and head."""
  for name, gradient in outer_gradient().items():
    assert np.isfinite(gradient).all(), name
    assert (np.abs(gradient).max(axis=-1) > 1e-9).all(), name


@pytest.mark.parametrize('name', ['log_rate_factors', 'gate_biases', 'momentum_logits'])
def test_every_rate_and_gate_has_an_outer_gradient(name):
  (gradient,) = (x for path, x in outer_gradient().items() if name in path)
  assert (np.abs(gradient) > 1e-9).all()


# ----- state that was kept in the wrong place


@functools.cache
def texts():
  """As many sequences as each has tokens."""
  return problems.tokens(LENGTH)


def logits_of(config, tokens):
  return problems.call(config)(tokens, problems.fresh(config, LENGTH))[0]


@functools.cache
def usual(config):
  return logits_of(config, texts())


@functools.cache
def change(config):
  """How far logits [B, T] move if sequence t gets another token t."""
  changed = (texts() + jnp.eye(LENGTH, dtype=int)) % problems.VOCAB
  return np.abs(logits_of(config, changed) - usual(config)).max(axis=-1)


@every_model
def test_parameters_are_bit_identical_after_every_use(config):
  """Of the very model that is used."""
  model = problems.make(config)
  before = jax.tree.map(np.array, nnx.state(model))
  logits_of(config, texts())
  jax.eval_shape(lambda: model.init_state(1, 8))
  jax.eval_shape(model.loss, *problems.texts())
  jax.eval_shape(model.diagnose, *problems.texts())
  jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)


@every_model
def test_sequences_of_a_batch_do_not_see_each_other(config):
  others = texts().at[1:].set(problems.tokens(LENGTH, seed=9)[1:])
  logits = logits_of(config, others)
  np.testing.assert_allclose(logits[0], usual(config)[0], rtol=0, atol=1e-6)
  assert float(jnp.abs(logits[1:] - usual(config)[1:]).max()) > 1e-2


@every_model
def test_sequences_of_a_batch_may_change_places(config):
  logits = logits_of(config, texts()[::-1])
  np.testing.assert_allclose(logits[::-1], usual(config), rtol=0, atol=1e-6)


# ----- levels that were fed the wrong gradients, tokens or periods


def chunks():
  """Tokens of 8 base chunks, and the token after them."""
  return problems.tokens(length=8 * CHUNK + 1)


@functools.cache
def states():
  """The state before the first chunk, and after each and the token that follows it."""
  reader, text = problems.call(HOPE), chunks()
  _, state = reader(text[:, :1], problems.fresh(HOPE))
  result = [state]
  for begin in range(1, text.shape[1], CHUNK):
    result.append(reader(text[:, begin : begin + CHUNK], result[-1])[1])
  return jax.device_get(result)


def weights(state, level):
  """What a level is read as."""
  return state.levels[level].held.params


@functools.cache
def chunk_gradients():
  """`(state, tokens, targets) -> gradients` of the loss of one chunk, for each level."""
  model = problems.make(HOPE)

  def loss(fast, state, tokens, targets):
    logits, _ = model.apply(tokens, fast, state.start)
    return jnp.sum(models.token_losses(logits, targets))

  def of_all(state, *text):
    return jax.grad(loss)(tuple(weights(state, i) for i in range(len(PERIODS))), state, *text)

  return quick_jit(of_all)


@functools.cache
def gradients():
  """Those of each chunk, at the weights with which the chunk was read."""
  result = []
  for i, state in enumerate(states()[:-1]):
    text = chunks()[:, i * CHUNK : (i + 1) * CHUNK + 1]
    result.append(chunk_gradients()(state, text[:, :-1], text[:, 1:]))
  return jax.device_get(result)


def total(level, begin, end):
  """The sum of the gradients of these chunks for a level."""
  return jax.tree.map(lambda *x: sum(x), *(one[level] for one in gradients()[begin:end]))


def assert_close(got, expected):
  def close(x, y):
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * np.abs(y).max())

  jax.tree.map(close, got, expected)


@every_level
def test_level_gathers_its_own_gradient(level):
  """Between updates: the sum over the chunks of its period so far."""
  chunks_of_a_period = PERIODS[level] // CHUNK
  for after, state in enumerate(states()):
    since = after % chunks_of_a_period
    gathered = state.levels[level].gathered
    np.testing.assert_array_equal(gathered.weight, np.full(problems.BATCH, since * CHUNK))
    if since:
      assert_close(gathered.total, total(level, after - since, after))
    else:
      assert not any(x.any() for x in jax.tree.leaves(gathered.total))


@every_level
def test_level_learns_from_the_tokens_of_its_period_in_order(level):
  """At its end from all of them, and before from none."""
  every = PERIODS[level] // CHUNK
  rates = np.asarray(problems.make(HOPE).blocks.cms.rates())[:, level][:, None, None, None]
  for after in range(1, len(states())):
    old, new = (weights(states()[i], level) for i in (after - 1, after))
    if after % every:
      jax.tree.map(np.testing.assert_array_equal, new, old)
    else:
      step = jax.tree.map(lambda x, y: (x - y) / rates * PERIODS[level], old, new)
      assert_close(step, total(level, after - every, after))


def updates(pieces):
  """How often each level has changed after a text that is read in pieces, none of many chunks."""
  begin, state, counts = 0, jax.device_get(problems.fresh(HOPE)), [0] * len(PERIODS)
  for size in pieces:
    new = jax.device_get(problems.call(HOPE)(chunks()[:, begin : begin + size], state)[1])
    for i in range(len(PERIODS)):
      moved = jax.tree.map(lambda x, y: bool((x != y).any()), weights(new, i), weights(state, i))
      counts[i] += any(jax.tree.leaves(moved))
    state, begin = new, begin + size
  assert begin == chunks().shape[1]
  return counts


@pytest.mark.parametrize('size', [1, CHUNK])
def test_levels_are_updated_as_often_whatever_the_calls(size):
  """After 65 tokens, the last of which only ends a chunk: never at the end of a call."""
  pieces = (1,) * 65 if size == 1 else (1, *(CHUNK,) * 8)
  assert updates(pieces) == [64 // period for period in PERIODS]


def test_surprise_of_later_chunks_depends_on_the_first():
  """Of one chunk, with all else equal, through what was learned from the first."""
  first = problems.tokens(seed=9)[:, :CHUNK]
  changed = jnp.concatenate([first, chunks()[:, CHUNK : 2 * CHUNK + 1]], axis=1)
  state = problems.fresh(HOPE)
  for piece in jnp.split(changed, (1, CHUNK + 1), axis=1):
    _, state = problems.call(HOPE)(piece, state)
  usual, late = states()[2], chunks()[:, 5 * CHUNK : 6 * CHUNK + 1]
  learned = usual._replace(levels=state.levels)
  other, same = jax.device_get(
    [chunk_gradients()(one, late[:, :-1], late[:, 1:])[:2] for one in (learned, usual)]
  )
  for x, y in zip(jax.tree.leaves(other), jax.tree.leaves(same), strict=True):
    assert np.abs(x - y).max() / np.abs(y).max() > 1e-2


# ----- time


@every_model
def test_models_are_causal(config):
  assert change(config)[np.tril_indices(LENGTH, -1)].max() < 1e-6
  assert np.diagonal(change(config)).min() > 1e-3


@every_model
def test_token_ten_chunks_back_is_not_forgotten(config):
  """Ten chunks of the memory, which are 40 tokens, and 5 base chunks."""
  assert change(config)[0, 10 * problems.MEMORIES['chunk_size'] :].min() > 1e-5
