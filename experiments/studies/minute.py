"""Every model for one minute on English documentation, against a unigram model of its bytes."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import common, language_model
from experiments.configs import lm
from experiments.studies import Found
from nlx import data, training

TITLE = 'A minute of every model'
CAPTION = (
  'Every model of `experiments/configs/lm.py` at size tiny, equal parameters, trained for a minute '
  'after compilation on its corpus, and its bits per byte on the last tenth, held out. The unigram '
  'model knows the frequencies of the bytes of the training text. It is a check that all of them '
  'learn, not a comparison: rates were not tuned (HOPE has its own, the others that of the '
  'Transformer++), they have read different amounts, and there is one seed.'
)


class Sizes(NamedTuple):
  """What is trained."""

  size: str = 'tiny'
  families: tuple[str, ...] = lm.MODELS
  seconds: float = 60.0


FULL = Sizes()
SMOKE = Sizes('smoke', ('linear_attention',), seconds=0.5)


def run(sizes: Sizes) -> Found:
  """Returns a row for each model."""
  rows = []
  for family in sizes.families:
    rows.append(train(sizes, family))
    print(rows[-1], flush=True)
  return Found(rows, None)


def train(sizes: Sizes, family: str) -> dict[str, Any]:
  """Trains a model for the given time and returns its row."""
  config = lm.get_config(f'{family}-{sizes.size}')
  config.training.steps = 1_000_000  # The schedule stays at its peak.
  language = common.create(config)
  corpus = data.load(config.data.corpus, language.tokenizer, max_bytes=config.data.max_bytes)
  task = language_model.make_task(config, language, corpus)
  step = training.make_step(task.loss_fn, task.tx)
  state = training.init_state(language.params, task.tx, key=jax.random.key(0))
  state, _ = jax.block_until_ready(step(state, jax.device_put(next(task.batches))))
  start, steps = time.perf_counter(), 1
  while time.perf_counter() - start < sizes.seconds:
    state, _ = jax.block_until_ready(step(state, jax.device_put(next(task.batches))))
    steps += 1
  loss, _ = training.evaluate(
    training.make_eval(task.loss_fn), state.params, map(jax.device_put, task.validation)
  )
  return {
    'model': family,
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(language.params)),
    'steps': steps,
    'tokens': steps * config.data.batch_size * config.data.seq_len,
    'bits_per_byte': training.bits_per_byte(loss, task.validation_bytes_per_token),
    'unigram_bits_per_byte': unigram(corpus),
  }


def unigram(corpus: data.Corpus) -> float:
  """Returns the bits per byte of held-out text under the frequencies of the training text."""
  size = 1 + max(int(part.tokens.max()) for part in (corpus.train, corpus.validation))
  counts = np.bincount(corpus.train.tokens, minlength=size) + 1
  bits = -np.log2(counts / counts.sum())
  return float(bits[corpus.validation.tokens].mean() / corpus.validation.bytes_per_token)
