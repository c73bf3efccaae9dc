"""Prompts continued side by side have the texts that they have alone."""

import numpy as np
import pytest

from nlx import evaluation, models
from nlx.evaluation import Prompt, completion
from tests.evaluation import reference
from tests.models import problems

LETTERS = 'abcdefghijklmnopqrstuvwxyz .,!?\n'
# Prompts that end within a base chunk of 8 and with one, and tokens to write; one cache fits all.
SIZES = ((3, 6), (16, 12), (13, 4), (11, 12))


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
  """Texts are looked at often."""
  monkeypatch.setattr(completion, 'PIECE', 5)


def decode(tokens):
  return ''.join(LETTERS[token] for token in tokens)


def prompts(**options):
  return [
    Prompt(np.asarray(problems.tokens(1, length, seed=i)[0]), max_tokens=count, **options)
    for i, (length, count) in enumerate(SIZES)
  ]


def completions(name, prompts, **options):
  model = problems.make(reference.CONFIGS[name])
  found = list(evaluation.completions(model, decode, prompts, batch_size=3, **options))
  assert sorted(place for place, _ in found) == list(range(len(prompts)))
  return [text for _, text in sorted(found)]


def test_completions_of_a_batch_are_those_of_each_prompt_alone():
  """Of a model that learns from the prompt and from what it writes."""
  name, config = 'hope-attention', reference.CONFIGS['hope-attention']
  expected = [
    decode(reference.continuation(config, prompt.tokens, prompt.max_tokens)) for prompt in prompts()
  ]
  assert completions(name, prompts()) == expected
  ends = {text: (text[len(text) // 2 :][:2], 'never') for text in expected}
  asked = [
    prompt._replace(until=ends[text]) for prompt, text in zip(prompts(), expected, strict=True)
  ]
  assert completions(name, asked) == [text[: text.index(ends[text][0])] for text in expected]


def test_completions_end_before_the_first_of_several_texts(monkeypatch):
  def write(model, stack, count, sampling):
    tokens = [LETTERS.index(letter) for letter in 'to be, or not.'[:count]]
    return np.tile(tokens, (3, 1, 1)), stack

  monkeypatch.setattr(completion, 'PIECE', 20)
  monkeypatch.setattr(completion.sessions, 'write', write)
  prompt = prompts()[1]._replace(until=('not', ',', 'be,'), max_tokens=14)
  assert completions('transformer', [prompt]) == ['to ']


def test_completions_that_are_sampled_depend_on_seed_and_place_alone():
  """Not on the batch: the third prompt is written with others here, and with copies there."""
  same = [prompts()[1]._replace(sampling=models.Sampling()) for _ in range(4)]
  other = [same[0], *(prompt._replace(max_tokens=3) for prompt in same[1:3]), same[3]]
  first, second = completions('transformer', same), completions('transformer', other)
  assert len(set(first)) == 4
  assert second == [first[0], first[1][:3], first[2][:3], first[3]]
  assert completions('transformer', same, seed=1) != first


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'tokens': np.array([], int)}, r'`prompts\[1\].tokens` must be at least one token'),
    ({'until': ('.', '')}, r'`prompts\[1\].until` must not hold an empty text'),
    ({'max_tokens': 0}, r'`prompts\[1\].max_tokens` must be an integer of at least 1'),
  ],
  ids=['tokens', 'until', 'max_tokens'],
)
def test_prompt_that_cannot_be_continued_is_named(changes, message):
  wrong = [prompts()[0], prompts()[1]._replace(**changes)]
  with pytest.raises(ValueError, match=message):
    evaluation.completions(problems.make(reference.CONFIGS['transformer']), decode, wrong)


def test_completions_name_a_batch_size_that_is_none():
  with pytest.raises(ValueError, match='`batch_size` must be an integer of at least 1'):
    evaluation.completions(
      problems.make(reference.CONFIGS['transformer']), decode, [], batch_size=0
    )
