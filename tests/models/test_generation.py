"""Writing text: greedy, sampled, and continued from a state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx import models
from nlx.models import GREEDY, Sampling, sessions
from tests.models import problems

PROMPT, WRITTEN = 11, 9
# Its prompt and what it writes pass several base chunks of 8.
HOPE = problems.with_mixer(problems.ONE_LAYER, chunk_size=8)
TRANSFORMER = problems.CONFIGS['transformer']
both_models = pytest.mark.parametrize('config', [HOPE, TRANSFORMER], ids=['hope', 'transformer'])


def prompt():
  return problems.tokens(length=PROMPT)


def generate(config, **options):
  """From a new session with room for more, unless another is given."""
  options = {'max_tokens': WRITTEN, **options}
  if 'session' not in options:
    options = {'key': jax.random.key(0), 'max_length': problems.MAX_LENGTH, **options}
  return models.generate(problems.make(config), prompt(), **options)


@functools.cache
def greedy(config):
  """Tokens and session."""
  return generate(config, key=None, sampling=GREEDY)


@functools.cache
def continued(config):
  """What is written after the same prompt once more, and the session after it."""
  return generate(config, session=greedy(config)[1], sampling=GREEDY)


@functools.cache
def most_likely(config):
  """The token that one pass over all that was read and written finds most likely after each."""
  text = [prompt(), greedy(config)[0], prompt(), continued(config)[0]]
  logits, _ = problems.call(config)(jnp.concatenate(text, axis=1), problems.fresh(config))
  return jnp.argmax(logits, axis=-1)


@functools.cache
def sampled(config):
  return generate(config)


@both_models
def test_greedy_generation_is_the_most_likely_token_of_one_pass(config):
  expected = most_likely(config)[:, PROMPT - 1 :][:, :WRITTEN]
  np.testing.assert_array_equal(greedy(config)[0], expected)


@both_models
def test_generation_goes_on_from_its_session_as_in_one_pass(config):
  expected = most_likely(config)[:, -WRITTEN - 1 : -1]
  np.testing.assert_array_equal(continued(config)[0], expected)


@both_models
def test_session_of_a_generation_has_read_all_of_it(config):
  tokens, _ = sessions.write(problems.make(config), continued(config)[1], 1, sampling=GREEDY)
  np.testing.assert_array_equal(tokens[:, 0], most_likely(config)[:, -1])
  assert int(continued(config)[1].length) == 2 * (PROMPT + WRITTEN)


@both_models
def test_generation_makes_a_session_with_room_for_all_it_writes(config):
  tokens, _ = generate(config, key=None, sampling=GREEDY, max_length=None)
  np.testing.assert_array_equal(tokens, greedy(config)[0])


@both_models
def test_generation_leaves_parameters_bit_identical(config):
  model = problems.make(config)
  before = jax.tree.map(np.array, nnx.state(model))
  generate(config, key=None, sampling=GREEDY)
  jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)


def test_generation_with_the_same_key_is_the_same():
  np.testing.assert_array_equal(generate(HOPE)[0], sampled(HOPE)[0])


def test_generation_with_another_key_differs():
  other, _ = generate(HOPE, key=jax.random.key(1))
  assert (other != sampled(HOPE)[0]).any()


def test_generation_draws_different_tokens_for_equal_prompts():
  """Every sequence and every step has its own random numbers."""
  same = jnp.repeat(prompt()[:1], problems.BATCH, axis=0)
  tokens, _ = models.generate(problems.make(HOPE), same, max_tokens=WRITTEN, key=jax.random.key(0))
  assert (tokens[0] != tokens[1]).any()
  assert len(np.unique(tokens[0])) > 1


def test_generation_writes_tokens_of_the_vocabulary():
  tokens, _ = sampled(HOPE)
  assert tokens.shape == (problems.BATCH, WRITTEN)
  assert tokens.dtype == jnp.int32
  assert ((tokens >= 0) & (tokens < problems.VOCAB)).all()


def test_generation_of_top_k_takes_one_of_the_k_most_likely():
  config, k = TRANSFORMER, 3
  tokens, _ = generate(config, sampling=Sampling(temperature=5.0, top_k=k))
  text = jnp.concatenate([prompt(), tokens], axis=1)
  logits, _ = problems.call(config)(text, problems.fresh(config))
  best = jax.lax.top_k(logits[:, PROMPT - 1 : -1], k)[1]
  assert (best == tokens[..., None]).any(-1).all()
  assert (best[..., 0] != tokens).any()


def test_generation_of_one_token_is_the_first_of_many():
  tokens, _ = generate(TRANSFORMER, max_tokens=1, key=None, sampling=GREEDY)
  np.testing.assert_array_equal(tokens, greedy(TRANSFORMER)[0][:, :1])


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'max_tokens': 0}, '`max_tokens` must be an integer of at least 1 token, got 0'),
    ({'sampling': Sampling(top_k=33)}, '`top_k` must be at most the 32 tokens .*, got 33'),
    ({'key': None}, '`key` must be given to sample with a temperature above 0'),
    ({'max_length': 12}, '`session` is full: of its `max_length` 12 tokens 1 are left'),
  ],
  ids=['max_tokens', 'top_k', 'key', 'max_length'],
)
def test_generation_names_a_wrong_argument(options, message):
  with pytest.raises(ValueError, match=message):
    generate(TRANSFORMER, **options)


def test_generation_from_a_session_takes_no_key():
  with pytest.raises(ValueError, match='`key` and `max_length` must be left out with a `session`'):
    generate(TRANSFORMER, session=greedy(TRANSFORMER)[1], key=jax.random.key(0))


@pytest.mark.parametrize('shape', [(3,), (2, 0), (1, 2, 3)])
def test_generation_names_a_prompt_of_a_wrong_shape(shape):
  with pytest.raises(ValueError, match=r'`prompt` must have shape \[B, T\] .*, got \('):
    models.generate(
      problems.make(TRANSFORMER), jnp.zeros(shape, int), max_tokens=1, sampling=GREEDY
    )
