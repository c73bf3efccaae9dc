"""Needles in texts up to eight times as long as those that models were trained on."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import common
from experiments.studies import Found, greys, labelled_run, records, short_run
from nlx import data, evaluation, models, training

TITLE = 'Needles in longer texts than those of training'
CAPTION = (
  'Six tasks of RULER in symbols, as in Table 1 of the paper, see `nlx.evaluation.needle_texts`. '
  'Numbers have three digits and uuids eight, fewer than there, so that models of two layers of '
  'width 64 learn them in minutes; a question ends with the symbol that precedes a value in a '
  'needle, as in the English of RULER. Every model was trained on a mixture of all tasks in texts '
  'of 64 tokens, 2,000 steps of 16 texts with a cosine, the tokens of the answer with weight 1, '
  'all others with 0.1, and was asked for needles in texts up to eight times as long. All have '
  'nearly equally many parameters, by the width of their MLPs, and were trained at two learning '
  'rates, three seeds each; the rate, and the best of six looks at each run, are those with most '
  'answers without an error in held-out texts of 64 tokens, then the least loss. `recall` is the '
  'share of values, in percent, all of whose tokens are most probable after the right ones: what '
  'greedy completion finds where one value is asked for, and where several are, what it would if '
  'it had made no error before. It is the mean over seeds, with the `least` and the `greatest`. '
  'The window is of 16 tokens. With one level, all MLPs learn in context every 32 tokens, and HOPE '
  'updates what makes its keys and values as often instead of every 64; without, nothing of HOPE '
  'learns in context but its memories, and HOPE-Attention is the Transformer++. In the figure: '
  'means over tasks.'
)
TASKS = ('single_1', 'single_2', 'single_3', 'multikey_1', 'multiquery', 'multivalue')
NUM_DIGITS, PARAMETERS = 3, 130_000
BINS = 8  # of depths, in the figure; 40 is a multiple
MOST_TOKENS = 25_600  # that are read at a time to answer
Fields = tuple[tuple[str, Any], ...]  # of `lm.py:FAMILY-tiny` that differ


class Reading(NamedTuple):
  """How long a model learns from texts of the first length, and what it is asked."""

  code: str = 'symbols'  # A key of `CODES`.
  tasks: tuple[str, ...] = TASKS
  steps: int = 2000
  batch_size: int = 16
  looks: int = 6
  text_weight: float = 0.1  # Of tokens that are not of the answer.
  texts: tuple[tuple[int, int], ...] = ((64, 100), (128, 100), (256, 100), (512, 50))  # tokens, N


class Sizes(NamedTuple):
  """What is trained."""

  models: dict[str, tuple[str, Fields]]  # Families, and what differs.
  rates: tuple[float, ...] = (3e-3, 6e-3)
  seeds: tuple[int, ...] = (0, 1, 2)
  reading: Reading = Reading()
  processes: int | None = None  # As many as there are cores if None.


class Job(NamedTuple):
  """A run of a model."""

  family: str
  fields: Fields
  rate: float
  seed: int
  reading: Reading


class Asked(NamedTuple):
  """Texts of all tasks, of one length."""

  tasks: tuple[evaluation.Needles, ...]
  texts: evaluation.LabelledSequences  # one after another


def _fields(**fields: Any) -> Fields:
  return tuple(fields.items())


_LEVEL = short_run.levels(32)
MODELS = {
  'HOPE, 1 level': ('hope', _fields(projection_chunk_size=32, **_LEVEL)),
  'HOPE': ('hope', ()),
  'HOPE-Attention, 1 level': ('hope_attention', _fields(**_LEVEL)),
  'Titans': ('titans', ()),
  'Gated DeltaNet': ('gated_deltanet', ()),
  'sliding window': ('transformer', _fields(window=16)),
  'Transformer++': ('transformer', ()),
}
FULL = Sizes(MODELS)
SMOKE = Sizes(
  {'sliding window': MODELS['sliding window']},
  (1e-3,),
  (0,),
  reading=Reading(steps=2, batch_size=6, looks=1, texts=((64, 2), (80, 2))),
  processes=1,
)


def run(sizes: Sizes) -> Found:
  """Returns a row for each model, task and length."""
  return compare('needles', sizes)


def compare(study: str, sizes: Sizes) -> Found:
  """Trains all models alike, and asks for needles.

  Args:
    study: What records are kept for.
    sizes: What is trained.

  Returns:
    A row for each model, task and length, and their figure.
  """
  jobs = [
    Job(*model, rate, seed, sizes.reading)
    for model in sizes.models.values()
    for rate in sizes.rates
    for seed in sizes.seeds
  ]
  processes = sizes.processes or records.cores()
  found = iter(records.remember_all(study, jobs, measure, processes=processes))
  rows, by_depth = [], {}
  for name in sizes.models:
    tried = {rate: [next(found) for _ in sizes.seeds] for rate in sizes.rates}
    rate, runs = max(tried.items(), key=lambda one: _score(one[1]))
    by_depth[name] = np.mean([one['by_depth'] for one in runs], axis=0)
    rows += [
      {
        'model': name,
        'parameters': runs[0]['parameters'],
        'rate': f'{rate:g}',
        'task': task,
        'length': length,
        **_summary([one['recall'][i][j] for one in runs]),
      }
      for j, task in enumerate(sizes.reading.tasks)
      for i, (length, _) in enumerate(sizes.reading.texts)
    ]
  return Found(rows, plot([length for length, _ in sizes.reading.texts], by_depth))


def measure(job: Job) -> dict[str, Any]:
  """Trains once, and asks for needles in texts of every length."""
  sizes, (length, count) = job.reading, job.reading.texts[0]
  config = build(job.family, job.fields, CODES[sizes.code]('train').vocab_size)
  num_train = -(-sizes.steps * sizes.batch_size // len(sizes.tasks))
  learned = ask(sizes, length, num_train, seed=0, split='train').texts
  steps = sizes.looks * (len(learned.tokens) // sizes.looks // sizes.batch_size)
  rate = training.warmup_cosine(job.rate, warmup_steps=min(100, steps // 2), total_steps=steps)
  trained = labelled_run.train(
    lambda rngs: models.create(config, rngs=rngs),
    logits,
    learned._replace(mask=np.maximum(learned.mask, sizes.text_weight)),
    ask(sizes, length, count, seed=1, split='train').texts,
    seeds=(job.seed,),
    tx=training.optimizer('adamw', rate, b1=0.9, b2=0.95, weight_decay=0.01),
    schedule=labelled_run.Schedule(sizes.batch_size, sizes.looks, 1 / sizes.looks, sizes.looks + 1),
  )
  recalls = []
  for length, count in sizes.texts:
    asked = ask(sizes, length, count, seed=0, split='test')
    at_once = max(1, min(50, MOST_TOKENS // length))
    found = labelled_run.answers(trained.logits, trained.params, asked.texts, batch_size=at_once)
    recalls.append(recall(found.predictions, asked))
  return {
    'parameters': models.count_parameters(config),
    'rounds': int(trained.rounds[0]),
    'sequence': float(trained.sequence[0]),
    'loss': float(trained.loss[0]),
    'recall': [mean[:, 0].tolist() for mean, _ in recalls],
    'by_depth': [by_depth.tolist() for _, by_depth in recalls],
  }


def build(family: str, fields: Fields, vocab_size: int) -> models.LanguageModelConfig:
  """Returns a model of two layers."""
  size = {'num_layers': 2, 'parameters': PARAMETERS, 'remat': 'none'}
  config = short_run.small(family, steps=2, **{'cms_periods': (0,), **size, **dict(fields)})
  return common.make_model_config(config.model, vocab_size)


def logits(model: models.LanguageModel, tokens: jax.Array) -> jax.Array:
  """Logits [B, T, V] of a model that reads tokens [B, T] and learns in context from all of them."""
  if not model.config.in_context_periods:
    return labelled_run.language_logits(model, tokens)
  known = jnp.ones(tokens.shape).at[:, -1].set(0)  # The target of the last is not.
  targets = jnp.roll(tokens, -1, axis=1)
  found = model.run(tokens, targets, known, lambda reading: reading.logits).outputs
  found = jnp.moveaxis(found, 0, 1)  # [B, n, C, V]
  return found.reshape((len(tokens), -1, found.shape[-1]))[:, : tokens.shape[1]]


def short_symbols(_: str) -> evaluation.NeedleCode:
  """The code of symbols for short values, and questions that end as what precedes a value."""
  code = _short(evaluation.symbol_code())

  def question(task, keys):
    *rest, _ = code.question(task, keys)
    return [*rest, code.needle(task, keys[0], '0')[-3]]  # IS, before value and end.

  return code._replace(question=question)


def short_bytes(split: str) -> evaluation.NeedleCode:
  """English as bytes for short values; essays are of another part of the text in each split."""
  training_part, test_part = data.split_text(data.load_text('documentation'))
  essay = training_part if split == 'train' else test_part
  return _short(evaluation.byte_code(essay.decode()))


CODES = {'symbols': short_symbols, 'bytes': short_bytes}


def _short(code: evaluation.NeedleCode) -> evaluation.NeedleCode:
  """The code, with fewer digits."""

  def short(text):
    first, *rest = text.split('-')
    return first if rest else first[:NUM_DIGITS]

  return code._replace(
    value=lambda text: code.value(short(text)),
    needle=lambda task, key, value: code.needle(task, key, short(value)),
    answer=lambda task, values: code.answer(task, [short(value) for value in values]),
  )


def ask(reading: Reading, length: int, count: int, *, seed: int, split: str) -> Asked:
  """Returns so many texts of every task."""
  code = CODES[reading.code](split)
  tasks = tuple(
    evaluation.needle_texts(task, code, length=length, num_examples=count, seed=seed, split=split)
    for task in reading.tasks
  )
  fields = evaluation.LabelledSequences._fields
  together = (np.concatenate([getattr(one, name) for one in tasks]) for name in fields)
  return Asked(tasks, evaluation.LabelledSequences(*together))


def recall(predictions: np.ndarray, asked: Asked) -> tuple[np.ndarray, np.ndarray]:
  """How many values are right, of predictions [seeds, N, T] for the token after each.

  Returns:
    The mean for each task and seed, [tasks, seeds]; and for each bin of depths, [bins], the mean
    over tasks and seeds. Each counts alike where it has a value at such a depth.
  """
  found = [
    [evaluation.needle_recall(each[:, one.prompt_length - 1 :], one) for each in of_task]
    for one, of_task in zip(
      asked.tasks, np.split(predictions, len(asked.tasks), axis=1), strict=True
    )
  ]
  mean = np.array([[each.mean for each in seeds] for seeds in found])
  num = np.array([[each.num_values for each in seeds] for seeds in found])
  hits = num * np.nan_to_num([[each.by_depth for each in seeds] for seeds in found])
  hits, num = (x.reshape((-1, BINS, x.shape[-1] // BINS)).sum(axis=-1) for x in (hits, num))
  shares, has = np.divide(hits, num, out=np.zeros(hits.shape), where=num > 0), num > 0
  return mean, shares.sum(axis=0) / np.maximum(has.sum(axis=0), 1)


def _score(runs: list[dict[str, Any]]) -> tuple[float, float]:
  """How well the seeds of a learning rate did on held-out texts."""
  sequence, loss = (np.mean([one[key] for one in runs]) for key in ('sequence', 'loss'))
  return float(sequence), -float(loss)


def _summary(recalls: list[float]) -> dict[str, float]:
  return {
    'recall': 100 * float(np.mean(recalls)),
    'least': 100 * min(recalls),
    'greatest': 100 * max(recalls),
  }


def plot(lengths: list[int], found: dict[str, np.ndarray]) -> Figure:
  """A panel for each model: recall by depth and length, the darker the better."""
  columns = min(5, len(found))
  rows = -(-len(found) // columns)
  figure = Figure(figsize=(0.8 + 2.2 * columns, 0.6 + 2.4 * rows), layout='constrained')
  panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
  for axes, (name, by_depth) in zip(panels.flat, found.items(), strict=False):
    shares = 100 * by_depth.T  # [bins, lengths]
    greys.draw(axes, np.round(shares), fontsize=7)
    axes.set_title(name, fontsize=9)
    axes.set_xticks(range(len(lengths)), lengths)
    axes.set_yticks(np.linspace(-0.5, BINS - 0.5, 5), ['0', '25', '50', '75', '100'])
  for axes in panels.flat[len(found) :]:
    axes.set_axis_off()
  figure.supxlabel('tokens')
  figure.supylabel('depth, %')
  return figure
