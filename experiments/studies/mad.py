"""MAD: which of six small tasks a token mixer learns."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from experiments.language_model import STACKED
from experiments.studies import Found, greys, labelled_run, records
from nlx import evaluation, memories, models, training

TITLE = 'MAD'
CAPTION = (
  'The six tasks of MAD at their baselines, as in Table 4 of the paper, see '
  '`nlx.evaluation.mad_task`. All models have width 128 and two blocks, each a mixer and a SwiGLU '
  'of 352 units that does not learn in context. Attention has 16 heads of width 8 with rotary '
  'positions; memories have 4 of 32, matrices but for Titans, whose MLPs have as many numbers. '
  'HOPE updates what makes its keys, values, rates and retentions every 32 tokens and writes with '
  'delta gradient descent without momentum, in chunks of 32; its targets are its own, or where '
  'they are given, the values. Models are equally wide and do not have equally many parameters. '
  'In compression the last features of a model pass, with a sinusoid of each position, through '
  'two layers of RMSNorm, linear map and GELU. Much less is learned from than in the source: '
  'AdamW takes 2,000 steps of 8 sequences, 4 in selective copying, and 1,000 of 32 in compression '
  'and memorization, where the source takes 20,000 of 128 (400 in memorization), with a cosine, '
  'and here a rise of 30 steps and clipping. Low scores are what is learned so soon, not what a '
  'mixer can do. There are two learning rates, 0.0015 and 0.003, instead of three, and one weight '
  'decay instead of two, for all models alike; the better rate on the test set is in the table, '
  'so that scores are somewhat too high for all. There is one seed, and there are 320 test '
  'sequences instead of 1,280. `macro` is the accuracy in percent, each class weighed alike, '
  '`micro` that of positions; the mean is over tasks.'
)
DIM, HIDDEN, NUM_LAYERS = 128, 352, 2


class Length(NamedTuple):
  """How long a task is learned."""

  steps: int
  batch_size: int


class Sizes(NamedTuple):
  """What is trained."""

  tasks: dict[str, Length]
  models: tuple[str, ...]
  rates: tuple[float, ...] = (1.5e-3, 3e-3)
  decays: tuple[float, ...] = (0.1,)
  seeds: tuple[int, ...] = (0,)
  num_test: int = 320
  processes: int | None = None  # As many as there are cores if None.


class Job(NamedTuple):
  """A run of a model on a task."""

  model: str
  task: str
  rate: float
  decay: float
  seed: int
  length: Length
  num_test: int


class Compressor(nnx.Module):
  """A model whose last features, at D numbers, are all that a decoder sees of a sequence.

  The head of the model makes the features, and the decoder is told a position by its sinusoid:
  RMSNorm, linear map and GELU twice, then RMSNorm and logits.
  """

  def __init__(self, config: models.LanguageModelConfig, vocab_size: int, *, rngs: nnx.Rngs):
    width = config.vocab_size
    self.encoder = models.create(config, rngs=rngs)
    self.norms = nnx.List(nnx.RMSNorm(width, rngs=rngs) for _ in range(3))
    self.maps = nnx.List(nnx.Linear(width, width, rngs=rngs) for _ in range(2))
    self.head = nnx.Linear(width, vocab_size, rngs=rngs)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Logits [B, T, V] of what was read at each position of tokens [B, T]."""
    features = labelled_run.language_logits(self.encoder, tokens)[:, -1:]
    x = features + sinusoids(tokens.shape[1], features.shape[-1])[None]
    for norm, linear in zip(self.norms[:-1], self.maps, strict=True):
      x = nnx.gelu(linear(norm(x)))
    return self.head(self.norms[-1](x))


# Heads of memories are 32 wide, as the source has Gated DeltaNet's: a matrix holds about as many
# keys as its head is wide. HOPE's have no momentum, which would blur what one token writes.
MEMORY = {'num_heads': 4, 'chunk_size': 32}
HOPE = {**MEMORY, 'projection_chunk_size': 32, 'memory_hidden': 0, 'rule': memories.dgd()}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # Family and its options, the longest first.
  'HOPE': ('hope', HOPE),
  'HOPE, given targets': ('hope', {**HOPE, 'own_targets': False}),
  'Titans': ('titans', {'num_heads': 4, 'memory_hidden': 16}),
  'Gated DeltaNet': ('gated_deltanet', MEMORY),
  'Transformer++': ('transformer', {'num_heads': 16}),
}
SHORT, LONG = Length(1000, 32), Length(2000, 8)  # About 1,000 tokens a step.
TASKS = {
  'recall': LONG,
  'noisy_recall': LONG,
  'fuzzy_recall': LONG,
  'selective_copying': Length(2000, 4),
  'compression': SHORT,
  'memorization': SHORT,
}
FULL = Sizes(TASKS, tuple(MODELS))
SMOKE = Sizes({'compression': Length(2, 4)}, ('Transformer++',), (1e-3,), num_test=8, processes=1)


def run(sizes: Sizes) -> Found:
  """Returns a row for each task and model, and one of each model's mean."""
  settings = tuple(itertools.product(sizes.rates, sizes.decays))
  jobs = [
    Job(model, task, rate, decay, seed, length, sizes.num_test)
    for model in sizes.models
    for task, length in sizes.tasks.items()
    for rate, decay in settings
    for seed in sizes.seeds
  ]
  processes = sizes.processes or records.cores()
  found = iter(records.remember_all('mad', jobs, measure, processes=processes))
  grids = {
    (task, model): {setting: [next(found) for _ in sizes.seeds] for setting in settings}
    for model in sizes.models
    for task in sizes.tasks
  }
  rows = [row(task, model, grids[task, model]) for task in sizes.tasks for model in sizes.models]
  return Found([*rows, *(mean(rows, model) for model in sizes.models)], plot(rows))


def measure(job: Job) -> dict[str, Any]:
  """Trains once, and answers the test set."""
  setting = evaluation.MAD_BASELINES[job.task]
  setting = dataclasses.replace(setting, num_test=job.num_test)
  train_set, test_set = evaluation.mad_task(setting)
  steps, batch_size = job.length
  make, logits = build(job.model, setting)
  trained = labelled_run.train(
    make,
    logits,
    train_set,
    evaluation.LabelledSequences(*(each[:1] for each in test_set)),  # One round: nothing to select.
    seeds=(job.seed,),
    tx=optimizer(job.rate, job.decay, steps),
    schedule=labelled_run.Schedule(batch_size, 1, (steps + 0.5) * batch_size / setting.num_train),
  )
  found = labelled_run.answers(trained.logits, trained.params, test_set)
  shares = evaluation.accuracies(found.predictions[0], test_set.targets, test_set.mask)
  return {
    'parameters': sum(leaf[0].size for leaf in jax.tree.leaves(trained.params)),
    'macro': shares.macro,
    'micro': shares.micro,
    'loss': float(found.loss[0]),
  }


def build(
  name: str, setting: evaluation.MADSetting
) -> tuple[Callable[[nnx.Rngs], nnx.Module], labelled_run.Logits]:
  """Returns how a model of a task is made, and what it answers."""
  config = configure(name, DIM if setting.task == 'compression' else setting.vocab_size)
  if setting.task == 'compression':
    return (
      lambda rngs: Compressor(config, setting.vocab_size, rngs=rngs),
      lambda model, tokens: model(tokens),
    )
  return (lambda rngs: models.create(config, rngs=rngs)), labelled_run.language_logits


def configure(name: str, vocab_size: int) -> models.LanguageModelConfig:
  """Returns a model of two mixers, each followed by an MLP that does not learn in context."""
  family, options = MODELS[name]
  return models.FAMILIES[family](
    vocab_size=vocab_size,
    model_dim=DIM,
    num_layers=NUM_LAYERS,
    cms_periods=(0,),
    cms_hidden=HIDDEN,
    remat='none',
    **options,
  )


def optimizer(rate: float, decay: float, steps: int) -> optax.GradientTransformation:
  """AdamW, with a rise, a cosine and clipping."""
  return training.optimizer(
    'adamw',
    training.warmup_cosine(rate, warmup_steps=min(30, steps - 1), total_steps=steps),
    weight_decay=decay,
    decay_mask=functools.partial(training.matrices, stacked=STACKED),
  )


def sinusoids(length: int, width: int) -> jax.Array:
  """Sines and cosines [T, D] of positions, at wavelengths from 2 pi to 20,000 pi."""
  frequencies = jnp.logspace(0, -4, width // 2)
  angles = jnp.outer(jnp.arange(length), frequencies)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


Runs = Sequence[Mapping[str, Any]]  # of one setting, a record for each seed


def best(grid: Mapping[tuple[float, float], Runs]) -> tuple[float, float]:
  """The rate and decay of a grid with the greatest mean macro accuracy, then the least loss."""

  def score(setting):
    macro, loss = (np.mean([each[key] for each in grid[setting]]) for key in ('macro', 'loss'))
    return macro, -loss

  return max(grid, key=score)


def row(task: str, model: str, grid: Mapping[tuple[float, float], Runs]) -> dict[str, Any]:
  """What the best setting of a grid reached, in percent."""
  rate, decay = best(grid)
  runs = grid[rate, decay]
  macro, micro = ([100 * each[key] for each in runs] for key in ('macro', 'micro'))
  return {
    'task': task,
    'model': model,
    'parameters': runs[0]['parameters'],
    'rate': f'{rate:g}',
    'decay': f'{decay:g}',
    'macro': float(np.mean(macro)),
    'micro': float(np.mean(micro)),
  }


def mean(rows: Sequence[Mapping[str, Any]], model: str) -> dict[str, Any]:
  """The mean over tasks of a model's rows."""
  own = [each for each in rows if each['model'] == model]
  shares = {key: float(np.mean([each[key] for each in own])) for key in ('macro', 'micro')}
  return {'task': 'mean', 'model': model, **shares}


def plot(rows: Sequence[Mapping[str, Any]]) -> Figure:
  """Accuracies of every model and task, the darker the better."""
  tasks, names = (list(dict.fromkeys(each[key] for each in rows)) for key in ('task', 'model'))
  figure = Figure(figsize=(9, 1.2 + 0.4 * len(names)), layout='constrained')
  for axes, key in zip(figure.subplots(1, 2, sharey=True), ('macro', 'micro'), strict=True):
    shares = np.array([each[key] for each in rows]).reshape((len(tasks), len(names))).T
    greys.draw(axes, shares)
    axes.set_xticks(range(len(tasks)), [task.replace('_', ' ') for task in tasks])
    axes.tick_params(axis='x', rotation=30)
    axes.set_yticks(range(len(names)), names)
    axes.set_title(f'{key.capitalize()} accuracy, %')
  return figure
