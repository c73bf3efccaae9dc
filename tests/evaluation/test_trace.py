"""Traces: what they record is what a stream, read token by token, goes through."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx import evaluation
from nlx.models import streaming
from tests.compiling import quick_jit
from tests.evaluation import reference
from tests.models import problems

LENGTH = 21  # Two base chunks of 8, and a tail.
TOKENS = np.asarray(problems.tokens(1, LENGTH)[0])
HOPE = reference.CONFIGS['hope']


@functools.cache
def traced(name):
  return evaluation.trace(problems.make(reference.CONFIGS[name]), TOKENS)


@functools.cache
def streamed(name):
  """The states of a stream before each token and after the last, and the logits of each."""
  config = reference.CONFIGS[name]
  states, logits = [problems.fresh(config, 1)], []
  for token in TOKENS:
    read, state = problems.call(config)(jnp.full((1, 1), token), states[-1])
    states.append(state)
    logits.append(np.asarray(read[0, 0]))
  return states, np.stack(logits)


def root_mean_square(arrays):
  flat = np.concatenate([np.ravel(array) for array in arrays])
  return np.sqrt(np.mean(flat**2))


def weights(state):
  """The weights of the memory, of the adaptive roles, and of the block of period 8."""
  mixer = state.live.first
  matrices = [list(level.held.matrices.values()) for level in (mixer.memory, mixer.roles)]
  memory, roles = ([matrix.weight for matrix in level] for level in matrices)
  block = streaming.read_weights(problems.make(HOPE), state.levels)[0]
  return {'memory': memory, 'roles k v eta alpha': roles, 'CMS 8': jax.tree.leaves(block)}


@pytest.mark.parametrize('name', ['hope', 'transformer'])
def test_surprise_is_that_of_reading_token_by_token(name):
  _, logits = streamed(name)
  expected = -np.asarray(jax.nn.log_softmax(logits))[np.arange(LENGTH - 1), TOKENS[1:]]
  assert np.isnan(traced(name).surprise[0])
  np.testing.assert_allclose(traced(name).surprise[1:], expected, rtol=1e-4, atol=1e-5)


def test_levels_are_those_of_a_stream_at_the_end_of_every_whole_chunk():
  found = traced('hope')
  assert found.ends.tolist() == [8, 16]
  states, _ = streamed('hope')
  begin = weights(states[0])
  for i, end in enumerate(found.ends):
    for name, arrays in weights(states[end]).items():
      distances = [a - b for a, b in zip(arrays, begin[name], strict=True)]
      np.testing.assert_allclose(found.size[name][i], root_mean_square(arrays), rtol=1e-4)
      np.testing.assert_allclose(
        found.moved[name][i], root_mean_square(distances), rtol=1e-3, atol=1e-7
      )


def test_levels_that_learn_have_moved_and_those_that_are_not_due_have_not():
  moved = traced('hope').moved
  assert list(moved) == ['memory', 'roles k v eta alpha', 'CMS 8', 'CMS 16']
  assert moved['memory'].min() > 0
  assert moved['CMS 8'][0] == 0 < moved['CMS 8'][1]
  assert moved['CMS 16'].tolist() == [0, 0]


def test_rates_are_those_of_reading_token_by_token():
  model, (states, _) = problems.make(HOPE), streamed('hope')
  gates = quick_jit(
    lambda token, before, after: model.gates(
      token, streaming.read_weights(model, after.levels), before.live
    )[0]
  )
  steps = zip(TOKENS, states, states[1:], strict=False)
  each = [gates(jnp.full((1, 1), token), *around) for token, *around in steps]
  rates = np.concatenate([np.asarray(gate.rate) for gate in each], axis=-1)[:, 0]
  kept = np.exp(np.concatenate([np.asarray(gate.log_retention) for gate in each], axis=-1)[:, 0])
  np.testing.assert_allclose(traced('hope').rates['memory'], rates, rtol=1e-4)
  np.testing.assert_allclose(traced('hope').retentions['memory'], kept, rtol=1e-4)


def test_model_without_levels_has_its_surprise_only():
  found = traced('transformer')
  assert found.size == found.moved == found.rates == found.retentions == {}


@pytest.mark.parametrize('tokens', [[3], [[1, 2]], [0.5, 1.0], [1, 32], [-1, 2]])
def test_trace_refuses_what_is_no_text_of_the_vocabulary(tokens):
  with pytest.raises(ValueError, match='`tokens` must (be at least 2|lie in 0..31, got)'):
    evaluation.trace(problems.make(HOPE), tokens)


# ----- the picture


@pytest.mark.parametrize(('name', 'panels'), [('hope', 3), ('transformer', 1)])
def test_plot_has_a_panel_for_all_that_was_recorded(name, panels):
  assert len(evaluation.plot_trace(traced(name)).axes) == panels


def test_plot_draws_the_levels_that_moved():
  axes = evaluation.plot_trace(traced('hope')).axes[1]
  assert [text.get_text() for text in axes.get_legend().get_texts()] == [
    'memory',
    'roles k v eta alpha',
    'CMS 8',
  ]


def test_plot_names_the_most_surprising_tokens():
  pieces = [f'<{i}>' for i in range(LENGTH)]
  axes = evaluation.plot_trace(traced('transformer'), pieces).axes[0]
  named = {text.get_text() for text in axes.texts}
  surprise = np.nan_to_num(traced('transformer').surprise)
  assert named == {pieces[i] for i in np.argsort(-surprise)[:8]}


def test_plot_refuses_pieces_of_another_text():
  with pytest.raises(ValueError, match='`pieces` must be 21 texts, one per token, got 2'):
    evaluation.plot_trace(traced('transformer'), ['a', 'b'])
