"""Writing text: greedy, sampled, and continued from a state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx import models
from tests.models import problems

PROMPT, WRITTEN = 11, 9
# Its prompt and what it writes pass several base chunks of 8.
HOPE = problems.with_mixer(problems.ONE_LAYER, chunk_size=8)
TRANSFORMER = problems.CONFIGS['transformer']
both_models = pytest.mark.parametrize('config', [HOPE, TRANSFORMER], ids=['hope', 'transformer'])


def prompt():
  return problems.tokens(length=PROMPT)


def generate(config, **options):
  options = {'max_tokens': WRITTEN, 'key': jax.random.key(0), **options}
  return models.generate(problems.make(config), prompt(), **options)


@functools.cache
def greedy(config):
  """Tokens and state."""
  return generate(config, key=None, temperature=0, state=problems.fresh(config))


@functools.cache
def continued(config):
  """What is written from the state that the first call left, and its last token."""
  tokens, state = greedy(config)
  return models.generate(
    problems.make(config), tokens[:, -1:], max_tokens=WRITTEN, state=state, temperature=0
  )[0]


@functools.cache
def most_likely(config):
  """The token that one pass over prompt and all that was written finds most likely after each."""
  text = jnp.concatenate([prompt(), greedy(config)[0], continued(config)], axis=1)
  logits, _ = problems.call(config)(text, problems.fresh(config))
  return jnp.argmax(logits, axis=-1)[:, PROMPT - 1 :]


@functools.cache
def sampled(config):
  return generate(config, state=problems.fresh(config))


@both_models
def test_greedy_generation_is_the_most_likely_token_of_one_pass(config):
  np.testing.assert_array_equal(greedy(config)[0], most_likely(config)[:, :WRITTEN])


@both_models
def test_generation_goes_on_from_its_state_as_in_one_pass(config):
  np.testing.assert_array_equal(continued(config), most_likely(config)[:, WRITTEN:-1])


@both_models
def test_generation_makes_a_state_with_room_for_all_it_writes(config):
  tokens, _ = generate(config, key=None, temperature=0)
  np.testing.assert_array_equal(tokens, greedy(config)[0])


@both_models
def test_generation_leaves_parameters_bit_identical(config):
  model = problems.make(config)
  before = jax.tree.map(np.array, nnx.state(model))
  generate(config, key=None, temperature=0, state=problems.fresh(config))
  jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)


def test_generation_with_the_same_key_is_the_same():
  again, _ = generate(HOPE, state=problems.fresh(HOPE))
  np.testing.assert_array_equal(again, sampled(HOPE)[0])


def test_generation_with_another_key_differs():
  other, _ = generate(HOPE, state=problems.fresh(HOPE), key=jax.random.key(1))
  assert (other != sampled(HOPE)[0]).any()


def test_generation_draws_different_tokens_for_equal_prompts():
  """Every sequence and every step has its own random numbers."""
  same = jnp.repeat(prompt()[:1], problems.BATCH, axis=0)
  tokens, _ = models.generate(
    problems.make(HOPE), same, max_tokens=WRITTEN, state=problems.fresh(HOPE), key=jax.random.key(0)
  )
  assert (tokens[0] != tokens[1]).any()
  assert len(np.unique(tokens[0])) > 1


def test_generation_writes_tokens_of_the_vocabulary():
  tokens, _ = sampled(HOPE)
  assert tokens.shape == (problems.BATCH, WRITTEN)
  assert tokens.dtype == jnp.int32
  assert ((tokens >= 0) & (tokens < problems.VOCAB)).all()


def test_generation_of_top_1_is_greedy():
  tokens, _ = generate(TRANSFORMER, top_k=1, state=problems.fresh(TRANSFORMER))
  np.testing.assert_array_equal(tokens, greedy(TRANSFORMER)[0])


def test_generation_of_top_k_takes_one_of_the_k_most_likely():
  config, k = TRANSFORMER, 3
  tokens, _ = generate(config, top_k=k, temperature=5.0, state=problems.fresh(config))
  text = jnp.concatenate([prompt(), tokens], axis=1)
  logits, _ = problems.call(config)(text, problems.fresh(config))
  best = jax.lax.top_k(logits[:, PROMPT - 1 : -1], k)[1]
  assert (best == tokens[..., None]).any(-1).all()
  assert (best[..., 0] != tokens).any()


def test_generation_of_one_token_is_the_first_of_many():
  state = problems.fresh(TRANSFORMER)
  tokens, _ = generate(TRANSFORMER, max_tokens=1, key=None, temperature=0, state=state)
  np.testing.assert_array_equal(tokens, greedy(TRANSFORMER)[0][:, :1])


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'max_tokens': 0}, '`max_tokens` must be an integer of at least 1 token, got 0'),
    ({'temperature': -1.0}, '`temperature` must be at least 0, got -1.0'),
    ({'top_k': 0}, r'`top_k` must lie in 1\.\.32, got 0'),
    ({'top_k': 33}, r'`top_k` must lie in 1\.\.32, got 33'),
    ({'key': None}, '`key` must be given to sample with a temperature above 0'),
  ],
  ids=['max_tokens', 'temperature', 'top_k_0', 'top_k_33', 'key'],
)
def test_generation_names_a_wrong_argument(options, message):
  with pytest.raises(ValueError, match=message):
    generate(TRANSFORMER, **options)


@pytest.mark.parametrize('shape', [(3,), (2, 0), (1, 2, 3)])
def test_generation_names_a_prompt_of_a_wrong_shape(shape):
  with pytest.raises(ValueError, match=r'`prompt` must have shape \[B, T\] .*, got \('):
    models.generate(problems.make(TRANSFORMER), jnp.zeros(shape, int), max_tokens=1, temperature=0)
