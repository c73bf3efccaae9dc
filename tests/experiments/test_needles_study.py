import jax
import numpy as np
import pytest
from flax import nnx

from experiments.studies import byte_needles, needles
from nlx import data, evaluation, models


@pytest.fixture(scope='module')
def asked():
  asked = needles.ask(needles.Reading(), 64, 100, seed=1, split='test')
  for one in asked.tasks:  # A value that a text has twice is found where either is.
    assert all(len(np.unique(values, axis=0)) == len(values) for values in one.values)
  return asked


def test_short_code_asks_for_short_values(asked):
  code, short = evaluation.symbol_code(), needles.short_symbols('test')
  sizes = {task: one.values.shape[-1] for task, one in zip(needles.TASKS, asked.tasks, strict=True)}
  assert sizes == {task: 8 if task == 'single_3' else needles.NUM_DIGITS for task in needles.TASKS}
  assert list(short.value('1234567')) == list(code.value('1234567'))[: needles.NUM_DIGITS]


def test_question_ends_with_what_precedes_a_value():
  code, task = needles.short_symbols('test'), evaluation.NEEDLE_TASKS['single_1']
  needle = code.needle(task, 'blunt-apple', '1234567')
  assert code.question(task, ['blunt-apple'])[1:] == needle[1:4]


@pytest.mark.parametrize('task', byte_needles.FULL.reading.tasks)
def test_short_bytes_are_english_of_short_values(task):
  """And a question that ends in the words before its answer, which is one value."""
  reading = byte_needles.FULL.reading
  (one,) = needles.ask(reading._replace(tasks=(task,)), 512, 3, seed=0, split='test').tasks
  digits = 8 if task == 'single_3' else needles.NUM_DIGITS
  for prompt, answer, (value,) in zip(one.prompts, one.answers, one.values, strict=True):
    text, value = bytes(prompt.tolist()).decode(), bytes(value.tolist()).decode()
    assert bytes(answer.tolist()).decode() == f' {value}.' and len(value) == digits
    assert text.count(f' is: {value}.') == 1 and text.endswith('mentioned in the provided text is')


def test_essays_of_tests_are_not_those_of_training():
  reading = byte_needles.FULL.reading._replace(tasks=('single_2',))
  training_text, test_text = data.split_text(data.load_text('documentation'))
  for split, other in (('train', test_text), ('test', training_text)):
    (one,) = needles.ask(reading, 2048, 3, seed=0, split=split).tasks
    for prompt in one.prompts:
      sentences = bytes(prompt.tolist()).decode().split('. ')
      longest = max(sentences, key=len)
      assert longest not in ' '.join(other.decode().split())


def test_recall_of_the_targets_is_one_and_misses_what_is_wrong(asked):
  """Of two seeds, one of which is wrong in the first task, and at the first quarter of depths."""
  right = asked.texts.targets
  wrong = right.copy()
  wrong[:100] = -1
  for i, one in enumerate(asked.tasks):
    for text, depths in enumerate(one.depths):
      for place in np.flatnonzero(depths < 25):  # A value and its end.
        begin = one.prompt_length - 1 + place * (one.values.shape[-1] + 1)
        wrong[100 * i + text, begin] = -1
  mean, by_depth = needles.recall(np.stack([right, wrong]), asked)
  np.testing.assert_array_equal(mean[:, 0], 1)
  shares = [0.0] + [float((one.depths >= 25).mean()) for one in asked.tasks[1:]]
  np.testing.assert_allclose(mean[:, 1], shares)
  np.testing.assert_allclose(by_depth[:2], 0.5)
  np.testing.assert_allclose(by_depth[2:], (1 + 5 / 6) / 2)


def test_logits_of_levels_are_those_of_a_stream():
  """Which learns from a token once it has come."""
  name = 'HOPE-Attention, 1 level'
  config = needles.build(*needles.MODELS[name], 150)
  model = models.create(config, rngs=nnx.Rngs(0))
  tokens = jax.random.randint(jax.random.key(0), (2, 40), 0, 150)
  streamed, _ = jax.jit(lambda x: model(x, model.init_state(2, max_length=40)))(tokens)
  found = jax.jit(lambda x: needles.logits(model, x))(tokens)
  np.testing.assert_allclose(found, streamed, atol=1e-3)


@pytest.mark.parametrize('name', needles.MODELS)
def test_models_are_of_equal_size(name):
  size = models.count_parameters(needles.build(*needles.MODELS[name], 150))
  assert size == pytest.approx(needles.PARAMETERS + 2 * 150 * 64, rel=0.03)
