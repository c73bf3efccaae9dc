"""Requests of lm-evaluation-harness, answered without it; tests/experiments has it ask them."""

import sys
from typing import NamedTuple

import numpy as np
import pytest

from nlx import data, models
from nlx.evaluation import harness, likelihood
from nlx.models import Sampling
from tests.evaluation import reference
from tests.evaluation.test_completion import LETTERS, decode
from tests.models import problems

BATCH = 4


class Asked(NamedTuple):
  """A request of the harness: of an `Instance` only this is used."""

  args: tuple


def encode(text):
  """Letters that it does not know are tokens 31."""
  return np.array([LETTERS.find(letter) % len(LETTERS) for letter in text], int)


LETTER_TOKENIZER = data.Tokenizer(len(LETTERS), encode, decode)


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch):
  """One program reads all lengths."""
  monkeypatch.setattr(likelihood, 'MAX_STRETCH', 16)
  monkeypatch.setattr(likelihood, 'MIN_CHUNKS', 1)


def answers(name='transformer', **options):
  model = problems.make(reference.CONFIGS[name])
  return harness.Answers(model, LETTER_TOKENIZER, batch_size=BATCH, **options)


def ask(*requests):
  return [Asked(request) for request in requests]


@pytest.fixture
def prompts(monkeypatch):
  """What is asked of a model that says nothing."""
  asked = []

  def completions(model, decode, prompts, **options):
    asked.extend(prompts)
    return enumerate([''] * len(prompts))

  monkeypatch.setattr(harness, 'completions', completions)
  return asked


def alone(name, context, continuation):
  """The log-likelihood of a text after another, token by token."""
  tokens = [*encode(context), *encode(continuation)]
  chosen, hits = reference.log_probs(reference.CONFIGS[name], tokens)
  scored = slice(-len(continuation), None)
  return chosen[scored].sum(), hits[scored].all()


PAIRS = (
  ('the quick brown fox jumps', ' over the lazy dog.'),
  ('to be or not', ' to be'),
  ('short', ' and, after that, a longer continuation of it.'),
  ('a', 'b'),
  ('it ends in a space ', 'here'),
  ('', 'nothing before it'),
)


@pytest.mark.parametrize('name', ['hope', 'transformer'])
def test_loglikelihood_is_that_of_each_request_alone(name):
  got = answers(name).loglikelihood(ask(*PAIRS))
  expected = [alone(name, context or '\n', continuation) for context, continuation in PAIRS]
  expected[4] = alone(name, 'it ends in a space', ' here')
  assert [type(value) for value in got[0]] == [float, bool]
  np.testing.assert_allclose([x[0] for x in got], [x[0] for x in expected], rtol=1e-5)
  assert [x[1] for x in got] == [x[1] for x in expected]


def test_loglikelihood_of_a_context_of_spaces_scores_them_too():
  got = answers().loglikelihood(ask(('  ', 'word')))
  np.testing.assert_allclose(got[0][0], alone('transformer', '\n', '  word')[0], rtol=1e-5)


def test_prefix_may_stand_before_every_text(prompts):
  pair, prefixed = ('to be', ' or not'), answers(prefix_all=True)
  got = prefixed.loglikelihood(ask(pair, ('', 'alone')))
  expected = [alone('transformer', '\nto be', ' or not'), alone('transformer', '\n', 'alone')]
  np.testing.assert_allclose([x[0] for x in got], [x[0] for x in expected], rtol=1e-5)
  prefixed.generate_until(ask(('to be', {}), ('', {})))
  np.testing.assert_array_equal(prompts[0].tokens, encode('\nto be'))
  np.testing.assert_array_equal(prompts[1].tokens, encode('\n'))


def test_prefix_stays_before_a_prompt_that_is_cut(prompts):
  answers(prefix_all=True, max_length=8).generate_until(ask(('to be or not', {'max_gen_toks': 4})))
  np.testing.assert_array_equal(prompts[0].tokens, encode('\nnot'))


def test_loglikelihood_names_a_continuation_without_tokens():
  with pytest.raises(ValueError, match='`continuation` must have at least one token'):
    answers().loglikelihood(ask(('a context', '')))


@pytest.mark.parametrize('name', ['hope', 'transformer'])
def test_rolling_scores_every_token_of_one_stream(name):
  """And nothing is left of one text in the next."""
  texts = ['to be or not to be, that is the question.', '', 'a', 'that is the question.']
  got = answers(name).loglikelihood_rolling(ask(*((text,) for text in texts)))
  expected = [alone(name, '\n', text)[0] if text else 0 for text in texts]
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_rolling_in_windows_scores_every_token_once():
  text = 'to be or not to be, that is the question.'
  [got] = answers(max_length=15).loglikelihood_rolling(ask((text,)))
  pieces = ('\n', text[:15]), (text[14], text[15:30]), (text[25:30], text[30:])
  expected = sum(alone('transformer', *piece)[0] for piece in pieces)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_generate_until_continues_each_request_alone():
  contexts = ('to be or', '', 'a longer one.')
  written = {
    context: reference.continuation(reference.CONFIGS['transformer'], encode(context or '\n'), 9)
    for context in contexts
  }
  got = answers().generate_until(ask(*((text, {'max_gen_toks': 9}) for text in contexts)))
  assert got == [decode(written[context]) for context in contexts]


@pytest.mark.parametrize(
  ('options', 'until', 'max_tokens', 'sampling'),
  [
    ({}, (), 256, models.GREEDY),
    ({'until': '.', 'max_gen_toks': 7}, ('.',), 7, models.GREEDY),
    ({'until': ['.', '\n'], 'do_sample': False}, ('.', '\n'), 256, models.GREEDY),
    ({'until': None, 'do_sample': False, 'temperature': 0.7}, (), 256, models.GREEDY),
    ({'do_sample': True, 'top_k': 5, 'max_new_tokens': 9}, (), 9, Sampling(1.0, 5)),
    ({'temperature': 0.7, 'top_p': 0.9}, (), 256, Sampling(0.7, None, 0.9)),
    ({'do_sample': True, 'temperature': 0.0, 'top_p': 0.9}, (), 256, models.GREEDY),
    ({'do_sample': True, 'top_k': 0, 'top_p': None}, (), 256, Sampling(1.0)),
  ],
)
def test_generate_until_takes_the_options_of_a_task(prompts, options, until, max_tokens, sampling):
  assert answers().generate_until(ask(('to be', options))) == ['']
  [prompt] = prompts
  np.testing.assert_array_equal(prompt.tokens, encode('to be'))
  assert prompt[1:] == (until, max_tokens, sampling)


def test_generate_until_names_options_that_there_are_not():
  with pytest.raises(ValueError, match=r"`generation_kwargs` must be some of .*\['num_beams'\]"):
    answers().generate_until(ask(('to be', {'num_beams': 4})))


def test_generate_until_leaves_room_for_what_is_written(prompts):
  answers(max_length=8).generate_until(ask(('to be or not', {'max_gen_toks': 5})))
  np.testing.assert_array_equal(prompts[0].tokens, encode('not'))
  with pytest.raises(ValueError, match='`max_length - max_gen_toks` must be .* got 0'):
    answers(max_length=8).generate_until(ask(('to be or not', {'max_gen_toks': 8})))


def test_generate_until_ends_at_a_token_that_ends_texts(prompts):
  """Not at one that it does not know: this tokenizer makes one token of it, of another text."""
  special = ['<s>', '</s>', 'unknown']

  def encode(text):
    return np.array([special.index(text) if text in special else 2] if text else [], int)

  tokenizer = data.Tokenizer(3, encode, lambda tokens: special[int(tokens[0])])
  model = problems.make(reference.CONFIGS['transformer'])
  harness.Answers(model, tokenizer).generate_until(ask(('', {'until': '.'})))
  assert prompts[0].until == ('.', '</s>')
  np.testing.assert_array_equal(prompts[0].tokens, [0])


@pytest.mark.parametrize(('prefix', 'token'), [(None, ord('\n')), (' ', ord(' '))])
def test_prefix_of_bytes_is_a_line_break_unless_given(monkeypatch, prefix, token):
  asked = []
  monkeypatch.setattr(
    harness, 'likelihoods', lambda model, passages, **options: asked.extend(passages) or ()
  )
  model = problems.make(reference.CONFIGS['transformer'])
  bytes_answers = harness.Answers(model, data.byte_tokenizer(), prefix=prefix)
  bytes_answers.loglikelihood_rolling(ask(('hi',)))
  np.testing.assert_array_equal(asked[0].tokens, [token, *b'hi'])


def test_prefix_of_several_tokens_is_named():
  with pytest.raises(ValueError, match="`prefix` must be a text of one token, and 'ab' is none"):
    answers(prefix='ab')


@pytest.mark.parametrize('name', ['batch_size', 'max_length'])
def test_answers_name_a_size_that_is_none(name):
  model = problems.make(reference.CONFIGS['transformer'])
  with pytest.raises(ValueError, match=f'`{name}` must be an integer of at least 1'):
    harness.Answers(model, LETTER_TOKENIZER, **{name: 0})


def test_answers_are_kept_as_soon_as_they_are_found(monkeypatch):
  kept = []

  class Hook:
    """Of the harness."""

    def add_partial(self, *answer):
      kept.append(answer)

  def likelihoods(model, passages, **options):
    yield 1, likelihood.Likelihood(-1.0, True)
    assert len(kept) == 1
    yield 0, likelihood.Likelihood(-2.0, False)

  monkeypatch.setattr(harness, 'likelihoods', likelihoods)
  some = answers()
  some.cache_hook = Hook()
  assert some.loglikelihood(ask(('a', 'b'), ('c', 'd'))) == [(-2.0, False), (-1.0, True)]
  assert kept == [
    ('loglikelihood', ('c', 'd'), (-1.0, True)),
    ('loglikelihood', ('a', 'b'), (-2.0, False)),
  ]


def test_harness_model_says_how_to_install_what_is_missing(monkeypatch):
  monkeypatch.setitem(sys.modules, 'lm_eval', None)
  monkeypatch.setitem(sys.modules, 'lm_eval.api.model', None)
  with pytest.raises(ModuleNotFoundError, match='`make setup EXTRAS=dev,eval` installs it'):
    harness.harness_model(problems.make(reference.CONFIGS['transformer']), LETTER_TOKENIZER)
