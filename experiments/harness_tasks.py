"""A trained model on the tasks of lm-evaluation-harness, and the table of its scores."""

import hashlib
import json
import os
import pathlib
from collections.abc import Collection, Mapping
from importlib import metadata
from typing import Any, NamedTuple

import jax
from flax import nnx

from experiments import common
from experiments.reporting import provenance, tables
from nlx import evaluation
from nlx.core import files

# Tasks and metrics of the paper's comparison of language models, in its order.
COLUMNS = (
  ('wikitext', 'word_perplexity'),
  ('lambada_openai', 'perplexity'),
  ('lambada_openai', 'acc'),
  ('piqa', 'acc'),
  ('hellaswag', 'acc_norm'),
  ('winogrande', 'acc'),
  ('arc_easy', 'acc'),
  ('arc_challenge', 'acc_norm'),
  ('social_iqa', 'acc'),
  ('boolq', 'acc'),
)
TASKS = tuple(dict.fromkeys(task for task, _ in COLUMNS))
Scores = Mapping[str, Mapping[str, float]]  # metric by metric, for every task


class Request(NamedTuple):
  """What one call asks for."""

  tasks: tuple[str, ...]
  include_path: str | None = None  # Folder of further tasks, as YAML files.
  limit: int | None = None  # Documents of each task; all if None.
  num_fewshot: int | None = None  # Examples before each document; as the task says if None.
  batch_size: int = 8
  max_length: int | None = None  # This and the rest as in `nlx.evaluation.harness.Answers`.
  prefix: str | None = None
  prefix_all: bool = False
  seed: int = 0


def evaluate(
  language: common.Language, params: Any, request: Request, answers: pathlib.Path | None = None
) -> dict[str, Any]:
  """Evaluates a model.

  Args:
    language: The model.
    params: Its parameters.
    request: What is asked for.
    answers: Where to keep every answer, and to look for it first; the harness adds to the name.

  Returns:
    Its scores, with what the harness says of each task.

  Raises:
    KeyError: If there is no such task.
    ModuleNotFoundError: If the harness is not installed.
  """
  model = evaluation.harness_model(
    nnx.merge(language.graph, params),
    language.tokenizer,
    batch_size=request.batch_size,
    max_length=request.max_length,
    prefix=request.prefix,
    prefix_all=request.prefix_all,
    seed=request.seed,
  )
  import lm_eval  # After the line above, which says how to install it.

  found = lm_eval.simple_evaluate(
    model=model,
    tasks=list(request.tasks),
    task_manager=task_manager(request.include_path, request.tasks),
    limit=request.limit,
    num_fewshot=request.num_fewshot,
    use_cache=None if answers is None else str(answers),
    bootstrap_iters=0,  # No standard errors: the harness forks processes for them, beside JAX.
    log_samples=False,
    random_seed=request.seed,
    numpy_random_seed=request.seed,
    fewshot_random_seed=request.seed,
  )
  scores = {name: _metrics(result) for name, result in found['results'].items()}
  return {
    'scores': scores,
    'average': average(scores),
    'documents': {name: count['effective'] for name, count in found['n-samples'].items()},
    'num_fewshot': found['n-shot'],
    'task_versions': found['versions'],
  }


def task_manager(include_path: str | None, names: Collection[str]) -> Any:
  """Returns the tasks of a folder and, if others are named, those of the harness."""
  from lm_eval.tasks import TaskManager

  if include_path is not None:
    if not pathlib.Path(include_path).is_dir():
      raise NotADirectoryError(f'`include_path` {include_path!r} is not a folder.')
    own = TaskManager(include_path=include_path, include_defaults=False)
    if set(names) <= set(own.all_tasks):
      return own  # At once: those of the harness are 14,000 files.
  return TaskManager(include_path=include_path)


def _metrics(result: Mapping[str, Any]) -> dict[str, float]:
  """Returns the metrics of a task; the harness calls one 'acc,none', after how it was extracted."""
  metrics = {}
  for key, value in result.items():
    name, comma, extraction = key.partition(',')
    if comma and not name.endswith('_stderr'):
      metrics[name if extraction == 'none' else f'{name} ({extraction})'] = float(value)
  return metrics


def average(scores: Scores) -> float | None:
  """Returns the mean of the accuracies among `COLUMNS`; None if there are none."""
  found = [scores[task][metric] for task, metric in _columns(scores) if metric.startswith('acc')]
  return sum(found) / len(found) if found else None


def _columns(scores):
  return [(task, metric) for task, metric in COLUMNS if metric in scores.get(task, {})]


def table(name: str, scores: Scores) -> str:
  """Returns one row of scores: those of `COLUMNS`, all metrics of other tasks, and the average."""
  others = [(task, metric) for task in scores if task not in TASKS for metric in scores[task]]
  columns = [*_columns(scores), *others]
  row = {f'{task} {metric}': scores[task][metric] for task, metric in columns}
  mean = average(scores)
  return tables.markdown([{'model': name, **row, **({} if mean is None else {'average': mean})}])


def answers_name(request: Request, identity: dict[str, Any]) -> str:
  """Returns a name for the answers of a model: other commits and settings have others.

  Args:
    request: What is asked for.
    identity: Of the model, as `common.identity` returns it.
  """
  fields = ('max_length', 'prefix', 'prefix_all', 'seed')
  settings = [provenance.commit(), identity, *(getattr(request, field) for field in fields)]
  digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
  return f'step-{identity["step"]}-{digest.hexdigest()[:8]}'


def answers_folder(path: str | os.PathLike) -> pathlib.Path:
  """Returns a folder for answers, kept in a data base of the harness.

  Raises:
    ValueError: If it is in a bucket.
  """
  if files.is_remote(path):
    raise ValueError(f'`answers` must be given as a folder on the disk, got {str(path)!r}.')
  return pathlib.Path(path)


def record(command: str, request: Request) -> dict[str, Any]:
  """Returns the fields that let a reader repeat an evaluation."""
  fields = provenance.record(command, f'{len(jax.devices())} x {jax.devices()[0].device_kind}')
  fields['versions']['lm_eval'] = metadata.version('lm_eval')
  return {**fields, **request._asdict()}
