"""Tasks of lm-evaluation-harness on data that is made here; `make test-eval` runs all of it."""

import functools
import json
import math
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import common, harness_tasks
from experiments.configs import lm
from nlx import evaluation, training
from nlx.evaluation import harness
from tests.training.test_loop import ROOT

TEXTS = ('The cat sat on the mat.', 'A dog, seen from afar, is small; it is a dog.')
QUESTIONS = (
  {'question': 'What sat?', 'choices': ['a cat', 'a dog on a mat'], 'label': 0},
  {'question': 'What is small?', 'choices': ['a cat', 'a dog', 'the rest of it all'], 'label': 1},
  {'question': 'And why?', 'choices': ['it is', 'x'], 'label': 0},
)
CONTINUED = ({'before': 'The cat sat on', 'after': 'the mat'}, {'before': '', 'after': 'A dog'})
DATA = {
  'texts': [{'text': text} for text in TEXTS],
  'questions': QUESTIONS,
  'continued': CONTINUED,
}
TASKS = {
  'own_texts': """
    output_type: loglikelihood_rolling
    doc_to_text: ''
    doc_to_target: '{{text}}'
    metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
  """,
  'own_questions': """
    output_type: multiple_choice
    doc_to_text: "Q: {{question}}\\nA:"
    doc_to_target: '{{label}}'
    doc_to_choice: '{{choices}}'
    metric_list: [{metric: acc}, {metric: acc_norm}]
  """,
  'own_continued': """
    output_type: loglikelihood
    doc_to_text: '{{before}}'
    doc_to_target: " {{after}}"
    metric_list: [{metric: perplexity}, {metric: acc}]
  """,
  'own_generated': """
    output_type: generate_until
    doc_to_text: '{{before}}'
    doc_to_target: '{{after}}'
    generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 5, do_sample: false}
    metric_list: [{metric: exact_match}]
  """,
}
FILES = dict(zip(TASKS, ('texts', 'questions', 'continued', 'continued'), strict=True))


def config():
  config = lm.get_config('transformer-smoke')
  config.model.parameters = 5_000
  return config


@functools.cache
def language():
  """A model that has learned nothing yet."""
  return common.create(config())


@pytest.fixture(scope='module')
def lm_eval():
  """The harness, which is an extra."""
  reason = 'lm-eval is missing: run `make test-eval`'
  return pytest.importorskip('lm_eval', reason=reason)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Tasks of all four kinds."""
  folder = tmp_path_factory.mktemp('tasks')
  for name, rows in DATA.items():
    lines = [json.dumps(row) for row in rows]
    (folder / f'{name}.json').write_text('\n'.join(lines), encoding='utf-8')
  for name, text in TASKS.items():
    lines = [line.strip() for line in text.strip().splitlines()]
    data = {'data_files': {'test': str(folder / f'{FILES[name]}.json')}, 'cache_dir': str(folder)}
    lines += [f'task: {name}', 'test_split: test', 'dataset_path: json']
    lines += [f'dataset_kwargs: {json.dumps(data)}']
    (folder / f'{name}.yaml').write_text('\n'.join(lines), encoding='utf-8')
  return folder


def evaluate(folder, names, answers=None, **options):
  request = harness_tasks.Request(tuple(names), include_path=str(folder), batch_size=2, **options)
  return harness_tasks.evaluate(language(), language().params, request, answers)


@pytest.fixture(scope='module')
def result(lm_eval, folder):
  return evaluate(folder, TASKS)


def log_likelihood(context, continuation=None):
  """What the model makes of one text, with no other beside it."""
  model = nnx.merge(language().graph, language().params)
  tokens = np.frombuffer((context + continuation).encode(), np.uint8)
  passage = evaluation.Passage(tokens, len(continuation))
  [(_, score)] = evaluation.likelihoods(model, [passage], batch_size=2)
  return score.log_likelihood


def test_rolling_task_has_the_perplexity_of_whole_texts(result):
  total = sum(log_likelihood('\n', text) for text in TEXTS)
  words, size = (sum(map(len, parts)) for parts in (map(str.split, TEXTS), TEXTS))
  scores = result['scores']['own_texts']
  assert scores['word_perplexity'] == pytest.approx(math.exp(-total / words), rel=1e-4)
  assert scores['bits_per_byte'] == pytest.approx(-total / size / math.log(2), rel=1e-5)


def test_loglikelihood_task_has_the_perplexity_of_continuations(result):
  first = log_likelihood('The cat sat on', ' the mat')
  second = log_likelihood('\n', ' A dog')
  scores = result['scores']['own_continued']
  assert scores['perplexity'] == pytest.approx(math.exp(-(first + second) / 2), rel=1e-4)
  assert scores['acc'] == 0


def test_multiple_choice_task_chooses_the_likeliest(result):
  right = {'acc': 0, 'acc_norm': 0}
  for row in QUESTIONS:
    scores = [
      log_likelihood(f'Q: {row["question"]}\nA:', f' {choice}') for choice in row['choices']
    ]
    lengths = [len(choice) for choice in row['choices']]
    right['acc'] += np.argmax(scores) == row['label']
    right['acc_norm'] += np.argmax(np.divide(scores, lengths)) == row['label']
  got = result['scores']['own_questions']
  assert got == pytest.approx({name: count / 3 for name, count in right.items()})
  assert right['acc'] != right['acc_norm']  # Or the test would not tell one from the other.


def test_generating_task_is_answered_and_counted(result):
  assert result['scores']['own_generated'] == {'exact_match': 0}
  assert result['documents'] == {name: len(DATA[FILES[name]]) for name in TASKS}


def test_limit_takes_the_first_documents(lm_eval, folder):
  found = evaluate(folder, ['own_questions'], limit=2)
  assert found['documents'] == {'own_questions': 2}


def test_evaluation_goes_on_where_it_was_stopped(lm_eval, result, folder, tmp_path, monkeypatch):
  """Of the 7 choices 4 are scored before it is stopped, and 3 when it goes on."""
  scored, original = [], harness.likelihoods

  def likelihoods(model, passages, **options):
    for place, score in original(model, passages, **options):
      if len(scored) == 4:
        raise KeyboardInterrupt
      scored.append(passages[place].tokens.tobytes())
      yield place, score

  monkeypatch.setattr(harness, 'likelihoods', likelihoods)
  with pytest.raises(KeyboardInterrupt):
    evaluate(folder, ['own_questions'], tmp_path / 'answers')
  first = set(scored)
  scored.clear()
  for count in (3, 0):
    found = evaluate(folder, ['own_questions'], tmp_path / 'answers')
    assert found['scores']['own_questions'] == result['scores']['own_questions']
    assert len(scored) == count and not first & set(scored)
    scored.clear()


def test_task_that_does_not_exist_is_named(lm_eval, folder, monkeypatch):
  manager = harness_tasks.task_manager(folder, ['own_texts'])
  monkeypatch.setattr(harness_tasks, 'task_manager', lambda *args: manager)
  with pytest.raises(KeyError, match='nothing'):
    evaluate(folder, ['nothing'])


def test_folder_of_tasks_that_does_not_exist_is_named(lm_eval):
  with pytest.raises(NotADirectoryError, match="`include_path` 'nowhere' is not a folder"):
    evaluate('nowhere', ['own_texts'])


SCORES = {
  'boolq': {'acc': 0.5},
  'own': {'f1 (strict)': 0.25},
  'wikitext': {'word_perplexity': 123.4, 'bits_per_byte': 1.5},
  'hellaswag': {'acc': 0.1, 'acc_norm': 0.3},
}


def test_table_has_the_columns_of_the_paper_then_others_then_the_average():
  titles, _, row = (
    [cell.strip() for cell in line.split('|')[1:-1]]
    for line in harness_tasks.table('mine', SCORES).splitlines()
  )
  assert dict(zip(titles, row, strict=True)) == {
    'model': 'mine',
    'wikitext word perplexity': '123',
    'hellaswag acc norm': '0.300',
    'boolq acc': '0.500',
    'own f1 (strict)': '0.250',
    'average': '0.400',
  }


def test_average_is_of_the_accuracies_of_the_paper():
  assert harness_tasks.average(SCORES) == pytest.approx(0.4)
  assert harness_tasks.average({'own': {'acc': 0.5}, 'wikitext': {'word_perplexity': 9.0}}) is None
  full = {task: {} for task in harness_tasks.TASKS}
  for i, (task, metric) in enumerate(harness_tasks.COLUMNS):
    full[task][metric] = float(i)
  assert harness_tasks.average(full) == pytest.approx(sum(range(2, 10)) / 8)


def test_answers_of_other_models_and_settings_are_kept_apart(monkeypatch):
  request, model = harness_tasks.Request(('piqa',)), {'step': 10, 'parameters': 'a'}
  names = [
    harness_tasks.answers_name(request, model),
    harness_tasks.answers_name(request, {**model, 'step': 20}),
    harness_tasks.answers_name(request, {**model, 'parameters': 'b'}),
    harness_tasks.answers_name(request._replace(max_length=64), model),
    harness_tasks.answers_name(request._replace(prefix=' '), model),
    harness_tasks.answers_name(request._replace(prefix_all=True), model),
    harness_tasks.answers_name(request._replace(seed=1), model),
  ]
  assert len(set(names)) == len(names)
  same = request._replace(tasks=('boolq',), batch_size=2, limit=3)
  assert harness_tasks.answers_name(same, model) == names[0]
  monkeypatch.setattr(harness_tasks.provenance, 'commit', lambda: 'another')
  assert harness_tasks.answers_name(request, model) != names[0]


def test_answers_are_kept_on_the_disk(tmp_path):
  assert harness_tasks.answers_folder(tmp_path) == tmp_path
  with pytest.raises(ValueError, match="`answers` must be given as a folder .*, got 'gs://bucket"):
    harness_tasks.answers_folder('gs://bucket/run/answers')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """What a run leaves, had it no steps: its configuration and a checkpoint."""
  workdir = tmp_path_factory.mktemp('run')
  common.write_config(config(), workdir)
  state = training.init_state(
    language().params, training.optimizer('adamw', 0.1), key=jax.random.key(0)
  )
  checkpoints = training.Checkpoints(workdir / common.CHECKPOINTS)
  checkpoints.save(state, data={}, meta={})
  checkpoints.close()
  return workdir


def test_evaluate_prints_the_table_and_writes_what_repeats_it(lm_eval, result, folder, workdir):
  names = ['own_texts', 'own_questions']
  options = [f'--workdir={workdir}', f'--include_path={folder}', f'--tasks={",".join(names)}']
  command = [sys.executable, '-m', 'experiments.evaluate', *options, '--batch_size=2']
  run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert run.returncode == 0, run.stderr
  found = json.loads((workdir / 'evaluation.json').read_text(encoding='utf-8'))
  assert found['scores'] == {
    name: pytest.approx(result['scores'][name], rel=1e-5) for name in names
  }
  assert run.stdout.endswith(
    harness_tasks.table('transformer-smoke, step 0', found['scores']) + '\n'
  )
  assert found['command'].startswith('python -m experiments.evaluate --workdir=')
  assert found['versions']['lm_eval'] == lm_eval.__version__
  assert {'commit', 'hardware', 'step', 'tasks', 'documents', 'task_versions'} <= set(found)
  assert len(list((workdir / 'answers').iterdir())) == 1
