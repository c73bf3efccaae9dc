"""Reading in pieces: the same logits and the same learning as in one pass."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx import cms, models
from tests.compiling import quick_jit
from tests.models import problems

# Slower periods of 16 are whole to training, which would compile the rest of one as well.
LENGTH, LONG, SHORT = 47, 42, 5
# From boundaries of base chunks of 8, from beside them and from far; over none, one and many.
CUTS = {
  'long': (LONG, SHORT),
  'long_from_inside_a_chunk': (SHORT, LONG),
  'short': (*(SHORT,) * 9, 1, 1),
  'up_to_boundaries': (SHORT, 1, 1, 1, SHORT, SHORT, 1, SHORT, 1, 1, 1, *(SHORT,) * 4),
  'beside_boundaries': (1, 1, SHORT, 1, 1, SHORT, SHORT, 1, *(SHORT,) * 5, 1, 1),
  'token_by_token': (1,) * LENGTH,
}
CONFIGS = {name: problems.in_float64(config) for name, config in problems.CONFIGS.items()}
pytestmark = pytest.mark.usefixtures('float64')
every_model = pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
LEARNING = ('hope', 'hope-attention')
learning = pytest.mark.parametrize('name', LEARNING)


def tokens():
  return problems.tokens(length=LENGTH)


def some():
  """Which tokens to learn from, when it is not from all: none of one chunk, in one sequence."""
  chosen = jax.random.bernoulli(jax.random.key(2), 0.7, (problems.BATCH, LENGTH))
  return chosen.astype(jnp.float32).at[1, 9:17].set(0)


@functools.cache
def pieces(config, cut):
  """Logits, and the state after all tokens."""
  return problems.read(config, tokens(), CUTS[cut])


@functools.cache
def program(config):
  """What `model.run`, which training uses, makes of whole sequences: losses and logits."""
  model = problems.make(config)

  def run(*text):
    result = model.run(*text, lambda reading: reading.logits)
    logits = jnp.moveaxis(result.outputs, 0, 1)
    logits = logits.reshape(problems.BATCH, -1, problems.VOCAB)[:, :LENGTH]
    return jnp.sum(result.loss, axis=0), logits

  return quick_jit(run)


@functools.cache
def whole(config):
  """The same, with every token but the last as a target."""
  return program(config)(*problems.texts(length=LENGTH))


def assert_levels_close(got, expected):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10), got.levels, expected.levels
  )


@every_model
@pytest.mark.parametrize('cut', CUTS)
def test_stream_in_any_pieces_has_the_logits_of_training(config, cut):
  """At a length that no chunk divides; nothing differs between training and evaluation."""
  np.testing.assert_allclose(pieces(config, cut)[0], whole(config)[1], rtol=0, atol=1e-10)


@every_model
@pytest.mark.parametrize('cut', [cut for cut in CUTS if cut != 'long'])
def test_stream_in_any_pieces_learns_the_same(config, cut):
  assert_levels_close(pieces(config, cut)[1], pieces(config, 'long')[1])


@pytest.mark.parametrize(
  'changes',
  [{'form': 'nested'}, {'form': 'independent', 'rule': cms.DELTA_GRADIENT_DESCENT}],
  ids=['nested', 'independent DGD'],
)
def test_stream_of_every_form_learns_as_training_does(changes):
  config = problems.with_cms(CONFIGS['hope-attention'], periods=(8, 16, 0), **changes)
  config = dataclasses.replace(config, num_layers=1)
  np.testing.assert_allclose(
    pieces(config, 'long_from_inside_a_chunk')[0], whole(config)[1], rtol=0, atol=1e-10
  )


ONE_TOKEN = problems.with_cms(
  dataclasses.replace(CONFIGS['hope-attention'], num_layers=1), periods=(1, 4, 0)
)


def test_stream_of_blocks_that_are_updated_at_every_token_learns_as_training_does():
  """Up to within a period of the slower ones."""
  got, _ = problems.read(ONE_TOKEN, tokens(), (1, 1, SHORT, 1, 1, 1, *(SHORT,) * 7, 1, 1))
  np.testing.assert_allclose(got, whole(ONE_TOKEN)[1], rtol=0, atol=1e-10)


@every_model
def test_stream_has_the_loss_of_training(config):
  _, targets, mask = problems.texts(length=LENGTH)
  losses = models.token_losses(pieces(config, 'long')[0], targets)
  np.testing.assert_allclose(whole(config)[0], jnp.sum(losses * mask, axis=1), rtol=1e-10)


@learning
@pytest.mark.parametrize('cut', ['short', 'beside_boundaries'])
def test_stream_learns_from_the_tokens_it_is_told_to(name, cut):
  """As in training, where the mask of a token says whether the one after it is a target."""
  config, learns = CONFIGS[name], some()
  text, targets, mask = problems.texts(length=LENGTH)
  _, expected = program(config)(text, targets, mask * jnp.roll(learns, -1, axis=1))
  got, _ = problems.read(config, text, CUTS[cut], learns=learns)
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)
  assert float(jnp.abs(got - whole(config)[1]).max()) > 1e-3


WITH_DGD = problems.with_cms(
  dataclasses.replace(CONFIGS['hope-attention'], num_layers=1), rule=cms.DELTA_GRADIENT_DESCENT
)


@pytest.mark.parametrize(
  'config', [*(CONFIGS[name] for name in LEARNING), WITH_DGD], ids=[*LEARNING, 'DGD']
)
def test_stream_that_is_told_to_learn_from_nothing_keeps_its_weights(config):
  first = problems.fresh(config)
  _, state = problems.read(config, tokens(), CUTS['short'], learns=jnp.zeros_like(some()))
  for level, fresh in zip(state.levels, first.levels, strict=True):
    jax.tree.map(np.testing.assert_array_equal, level.held.params, fresh.held.params)


@every_model
@pytest.mark.parametrize('length', [1, SHORT, LONG])
def test_stream_keeps_structure_shapes_and_dtypes(config, length):
  first = problems.fresh(config)
  _, state = problems.read(config, tokens(), (length,))
  abstract = lambda tree: jax.eval_shape(lambda: tree)  # noqa: E731
  assert abstract(state) == abstract(first)


@every_model
def test_stream_holds_no_array_twice_so_that_its_state_can_be_given_away(config):
  first = problems.make(config).init_state(problems.BATCH, LENGTH)
  places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(first) if leaf.size]
  assert len(set(places)) == len(places)


@learning
def test_stream_goes_on_from_a_state_that_was_saved(name):
  config = CONFIGS[name]
  _, state = problems.read(config, tokens(), (SHORT,))
  leaves, treedef = jax.tree.flatten(state)
  saved = [np.asarray(leaf) for leaf in leaves]
  rest, _ = problems.read(config, tokens()[:, SHORT:], (LONG,), jax.tree.unflatten(treedef, saved))
  np.testing.assert_allclose(rest, whole(config)[1][:, SHORT:], rtol=0, atol=1e-10)


@learning
@pytest.mark.parametrize('length', [8, 9])
def test_stream_learns_from_a_chunk_when_the_token_after_it_arrives(name, length):
  config = CONFIGS[name]
  first = problems.fresh(config)
  _, state = problems.read(config, tokens(), (1,) * length)
  moved = [
    float(jnp.abs(now - then).max())
    for now, then in zip(
      jax.tree.leaves(state.levels[0].held), jax.tree.leaves(first.levels[0].held), strict=True
    )
  ]
  assert min(moved) > 1e-5 if length == 9 else max(moved) == 0


@learning
def test_stream_counts_the_tokens_of_each_unfinished_period(name):
  """After 42 tokens, 5 chunks of 8 are learned from: 40 = 5 * 8 = 2 * 16 + 8."""
  _, state = problems.read(CONFIGS[name], tokens(), (LONG,))
  assert [int(level.count) for level in state.levels] == [0, 8]
  assert int(state.phase) == 2


def test_stream_state_of_a_memory_does_not_depend_on_a_length():
  model = problems.make(CONFIGS['hope'])
  sizes = [jax.eval_shape(lambda n=n: model.init_state(1, n)) for n in (None, 8, 1000)]
  assert sizes[0] == sizes[1] == sizes[2]


@pytest.mark.parametrize('name', ['transformer', 'hope-attention'])
def test_stream_of_attention_needs_a_length(name):
  with pytest.raises(ValueError, match='`max_length` must be given'):
    problems.make(CONFIGS[name]).init_state(1)


@pytest.mark.parametrize('name', ['transformer', 'hope-attention'])
def test_stream_of_attention_fills_its_whole_length(name):
  """With room for exactly the tokens that are read."""
  config = CONFIGS[name]
  model = problems.make(config)
  state = quick_jit(lambda: model.init_state(problems.BATCH, LENGTH))()
  logits, _ = problems.read(config, tokens(), CUTS['up_to_boundaries'], state)
  np.testing.assert_allclose(logits, whole(config)[1], rtol=0, atol=1e-10)


def test_learns_is_for_each_token_or_for_all():
  """As many numbers as sequences would be taken for one for each token, where those are as many."""
  model = problems.make(problems.ONE_LAYER)
  state = jax.eval_shape(lambda: model.init_state(2))
  with pytest.raises(ValueError, match=r'`learns` must be \[B, T\] or one for all, got \(2,\)'):
    jax.eval_shape(lambda state: model(jnp.zeros((2, 2), int), state, learns=jnp.ones(2)), state)
