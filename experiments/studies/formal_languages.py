"""Which models learn which formal languages, and go on being right on longer strings."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from experiments.studies import Found, greys, labelled_run, records
from nlx import evaluation, memories, models

TITLE = 'Formal languages'
CAPTION = (
  'Strings of six languages, with a question after each symbol; a string counts if all answers are '
  'right, in percent. Bin0 has unseen strings as long as those trained on, Bin1 longer ones, see '
  '`nlx.evaluation.formal_language`. No model has positions. All were trained at the same two '
  'learning rates, three seeds each, for a fixed number of rounds or until no seed had a string of '
  'Bin0 wrong three times in a row. The round, and the rate, were chosen by Bin0 alone, first by '
  'the share of right strings, then by the loss. `bin1` is the mean over seeds, with the `least` '
  'and the `greatest`; `left_out` is the most steps of a seed whose gradient was not finite. HOPE '
  'has one layer, and one matrix per head as memory, which makes its own targets and is written '
  'under the dot product; the two rows after it differ in one thing each, the objective, with the '
  'rule that goes with it, and whose targets they are. How it is written was decided by what a '
  'matrix can follow, see `SelfModifyingConfig`, but after the results of other ways were known, '
  'on these languages.'
)
DIM = 32


class Language(NamedTuple):
  """How long a language is learned, in rounds of some epochs."""

  batch_size: int
  rounds: int
  epochs: float


class Sizes(NamedTuple):
  """What is trained."""

  languages: dict[str, Language]
  models: tuple[str, ...]
  rates: tuple[float, ...] = (1e-2, 3e-3)
  seeds: tuple[int, ...] = (0, 1, 2)
  processes: int | None = None  # As many as there are cores if None.


class Job(NamedTuple):
  """All seeds of a model on a language at a learning rate."""

  language: str
  model: str
  rate: float
  seeds: tuple[int, ...]
  schedule: Language


class LSTM(nnx.Module):
  """Embedding, LSTM layers, head."""

  def __init__(self, vocab_size: int, width: int, num_layers: int, *, rngs: nnx.Rngs):
    self.embedding = nnx.Embed(vocab_size, width, rngs=rngs)
    self.layers = nnx.List(
      nnx.RNN(nnx.OptimizedLSTMCell(width, width, rngs=rngs)) for _ in range(num_layers)
    )
    self.head = nnx.Linear(width, vocab_size, rngs=rngs)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Logits [B, T, vocab_size] after each token [B, T]."""
    x = self.embedding(tokens)
    start = jnp.zeros((x.shape[0], x.shape[2]))
    for layer in self.layers:
      x = layer(x, initial_carry=(start, start))
    return self.head(x)


# One layer that writes at every token, without momentum or a convolution, so that what a token does
# depends on it alone, and without decay. Rates begin anywhere between nearly none and one. No role
# modifies itself.
HOPE = {
  'num_layers': 1,
  'num_heads': 8,
  'cms_periods': (0,),
  'cms_hidden': 3 * DIM,
  'chunk_size': 1,
  'projection_chunk_size': 1,
  'memory_hidden': 0,
  'adaptive': (),
  'conv_width': 1,
  'rule': memories.gradient(retention=False),
  'objective': memories.dot_product(),
  'rate_gate': 'exponential',
  'rate_bias': (-8.0, 8.0),
}
TWO_LAYERS = {'num_layers': 2, 'num_heads': 4}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # Family and its options.
  'Transformer++': ('transformer', {**TWO_LAYERS, 'rope_base': None}),
  'linear attention': ('linear_attention', TWO_LAYERS),
  'DeltaNet': ('deltanet', TWO_LAYERS),
  'Titans': ('titans', {**TWO_LAYERS, 'memory_hidden': 8}),
  'HOPE': ('hope', HOPE),
  # What a key holds is multiplied by 1 - 2 eta', so that it is turned over near eta' = 1.
  'HOPE, L2': ('hope', {**HOPE, 'rule': memories.dgd(retention=False), 'objective': memories.l2()}),
  'HOPE, given targets': ('hope', {**HOPE, 'own_targets': False}),
}
MANY, LONG, COUNTED = Language(32, 6, 1), Language(8, 20, 1), Language(8, 40, 5)
LANGUAGES = {
  'parity': MANY,
  '(aa)*': LONG,
  '(abab)*': LONG._replace(epochs=2),
  'a^n b^n': COUNTED,
  'a^n b^n c^n': COUNTED,
  'shuffle_2': MANY,
}
FULL = Sizes(LANGUAGES, ('LSTM', *MODELS))
SMOKE = Sizes(
  {'a^n b^n': Language(4, 2, 0.2)}, ('LSTM', 'Transformer++'), (3e-3,), (0,), processes=1
)


def run(sizes: Sizes) -> Found:
  """Returns a row for each language and model."""
  jobs = [
    Job(language, model, rate, sizes.seeds, schedule)
    for model in reversed(sizes.models)
    for language, schedule in sizes.languages.items()
    for rate in sizes.rates
  ]
  processes = sizes.processes or records.cores()
  made = records.remember_all('formal_languages', jobs, measure, processes=processes)
  found = {
    (job.language, job.model, job.rate): record for job, record in zip(jobs, made, strict=True)
  }
  rows = []
  for language in sizes.languages:
    for model in sizes.models:
      rate = max(sizes.rates, key=lambda rate: _score(found[language, model, rate]))
      rows.append(_row(language, model, rate, found[language, model, rate]))
  return Found(rows, plot(rows))


def measure(job: Job) -> dict[str, Any]:
  """Trains all seeds, and asks them about longer strings."""
  train_set, bin0, bin1 = evaluation.formal_language(job.language)
  make, logits = build(job.model, len(evaluation.FORMAL_LANGUAGES[job.language].alphabet))
  trained = labelled_run.train(
    make,
    logits,
    train_set,
    bin0,
    seeds=job.seeds,
    tx=optimizer(job.rate),
    schedule=labelled_run.Schedule(*job.schedule),
  )
  longer = labelled_run.answers(trained.logits, trained.params, bin1)
  return {
    'parameters': sum(leaf[0].size for leaf in jax.tree.leaves(trained.params)),
    'rounds': trained.rounds.tolist(),
    'bin0': trained.sequence.tolist(),
    'loss': trained.loss.tolist(),
    'not_finite': np.asarray(trained.state.total_notfinite).tolist(),
    'bin1': [
      evaluation.accuracies(each, bin1.targets, bin1.mask).sequence for each in longer.predictions
    ],
  }


def optimizer(rate: float) -> optax.GradientTransformation:
  """Adam, with clipping; steps whose gradient is not finite are left out."""
  adam = optax.adam(rate, b1=0.9, b2=0.995, eps=1e-9)
  return optax.apply_if_finite(optax.chain(optax.clip_by_global_norm(1.0), adam), 10**9)


def build(
  name: str, num_symbols: int
) -> tuple[Callable[[nnx.Rngs], nnx.Module], labelled_run.Logits]:
  """Returns how a model is made, and what it answers: one of as many ids as there can be labels."""
  vocab_size = max(num_symbols, 4)  # No language has more labels.
  if name == 'LSTM':
    return (lambda rngs: LSTM(vocab_size, DIM, 1, rngs=rngs)), lambda model, tokens: model(tokens)
  family, options = MODELS[name]
  config = models.FAMILIES[family](vocab_size=vocab_size, model_dim=DIM, **options)
  return (lambda rngs: models.create(config, rngs=rngs)), labelled_run.language_logits


def _score(record: dict[str, Any]) -> tuple[float, float]:
  """How well the seeds of a learning rate did on Bin0."""
  return float(np.mean(record['bin0'])), -float(np.mean(record['loss']))


def _row(language: str, model: str, rate: float, record: dict[str, Any]) -> dict[str, Any]:
  return {
    'language': language,
    'model': model,
    'parameters': record['parameters'],
    'rate': f'{rate:g}',
    'bin0': 100 * float(np.mean(record['bin0'])),
    'bin1': 100 * float(np.mean(record['bin1'])),
    'least': 100 * min(record['bin1']),
    'greatest': 100 * max(record['bin1']),
    'left_out': max(record['not_finite']),
  }


def plot(rows: list[dict[str, Any]]) -> Figure:
  """Bin0 and Bin1 of every model and language, the darker the more strings are right."""
  languages, names = (
    list(dict.fromkeys(row[key] for row in rows)) for key in ('language', 'model')
  )
  figure = Figure(figsize=(9, 0.8 + 0.4 * len(names)), layout='constrained')
  for axes, key in zip(figure.subplots(1, 2, sharey=True), ('bin0', 'bin1'), strict=True):
    shares = np.full((len(names), len(languages)), np.nan)
    for row in rows:
      shares[names.index(row['model']), languages.index(row['language'])] = row[key]
    greys.draw(axes, shares)
    axes.set_xticks(range(len(languages)), languages, rotation=30, ha='right')
    axes.set_yticks(range(len(names)), names)
    axes.set_title(key.capitalize() + ', % of strings')
  return figure
