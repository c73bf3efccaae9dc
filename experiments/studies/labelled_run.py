"""Training on labelled sequences, several seeds as one program."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from nlx import models
from nlx.evaluation import LabelledSequences

Logits = Callable[[Any, jax.Array], jax.Array]  # a module and tokens [B, T] to logits [B, T, V]


class Schedule(NamedTuple):
  """How long, and how often to look."""

  batch_size: int
  rounds: int  # At most; each ends with a look at the set that selects.
  epochs: float = 1.0  # Of a round; a last batch that is not full is left out.
  patience: int = 3  # Rounds without a wrong answer of any seed, after which the rest is left out.


class Trained(NamedTuple):
  """Runs that differ in their seed alone, each as it was in its best round."""

  logits: Callable[[Any, jax.Array], jax.Array]  # of parameters and tokens [B, T]
  params: Any  # leaves [seeds, ...]
  state: Any  # of the optimizer after the last round, leaves [seeds, ...]
  rounds: np.ndarray  # [seeds] how many were learned from
  sequence: np.ndarray  # [seeds] share of sequences without a wrong answer, where selected
  loss: np.ndarray  # [seeds] nats per answer, where selected


class Answers(NamedTuple):
  """What a run makes of a set."""

  predictions: np.ndarray  # int [seeds, N, T]
  loss: np.ndarray  # [seeds] nats per answer


def language_logits(model: models.LanguageModel, tokens: jax.Array) -> jax.Array:
  """Logits of a model without blocks that learn in context, from its fresh state."""
  return model.apply(tokens, (), model.init_carry(tokens.shape[0]))[0]


def train(
  make: Callable[[nnx.Rngs], nnx.Module],
  logits: Logits,
  train_set: LabelledSequences,
  selection_set: LabelledSequences,
  *,
  seeds: Sequence[int],
  tx: optax.GradientTransformation,
  schedule: Schedule,
) -> Trained:
  """Trains, and keeps of each seed the round with most right sequences, then the least loss.

  Args:
    make: Makes a model.
    logits: What it answers.
    train_set: What is learned, in an order of each seed's own.
    selection_set: What rounds are chosen by.
    seeds: Of parameters and orders.
    tx: The optimizer.
    schedule: How long.

  Returns:
    The best rounds.
  """
  split: Any = nnx.split(make(nnx.Rngs(seeds[0])), nnx.Param, ...)
  graph, _, rest = split
  starts = [nnx.as_pure(nnx.state(make(nnx.Rngs(seed)), nnx.Param)) for seed in seeds]

  def answer(params, tokens):
    return logits(nnx.merge(graph, params, rest), tokens)

  params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
  state, best = jax.vmap(tx.init)(params), params
  scores = np.full((len(seeds), 2), -np.inf)
  rounds, perfect = np.zeros(len(seeds), int), 0
  data = jax.tree.map(jnp.asarray, train_set)
  generators = [np.random.default_rng(seed) for seed in seeds]
  for i in range(schedule.rounds):
    orders = np.stack([_order(each, len(train_set.tokens), schedule) for each in generators])
    params, state = _learn(answer, tx, params, state, data, orders)
    found = answers(answer, params, selection_set)
    right = (found.predictions == selection_set.targets) | (selection_set.mask == 0)
    score = np.stack([right.all(axis=2).mean(axis=1), -found.loss], axis=1)
    better = (score[:, 0] > scores[:, 0]) | (
      (score[:, 0] == scores[:, 0]) & (score[:, 1] > scores[:, 1])
    )
    best = jax.tree.map(functools.partial(_where, jnp.asarray(better)), params, best)
    scores, rounds = np.where(better[:, None], score, scores), np.where(better, i + 1, rounds)
    perfect = perfect + 1 if score[:, 0].min() == 1 else 0
    if perfect == schedule.patience:
      break
  return Trained(answer, best, state, rounds, scores[:, 0], -scores[:, 1])


def answers(
  logits: Logits, params: Any, asked: LabelledSequences, batch_size: int = 250
) -> Answers:
  """What runs with parameters [seeds, ...] answer to a set."""
  count = len(asked.tokens)
  batch_size = min(batch_size, count)

  def in_batches(x):
    x = np.pad(x, ((0, -count % batch_size), (0, 0)))
    return x.reshape((-1, batch_size, x.shape[1]))

  predictions, loss = _answer(logits, params, jax.tree.map(in_batches, asked))
  predictions = np.asarray(predictions).reshape((predictions.shape[0], -1, predictions.shape[-1]))
  return Answers(predictions[:, :count], np.asarray(loss) / asked.mask.sum())


def _order(generator: np.random.Generator, count: int, schedule: Schedule) -> np.ndarray:
  """Which sequences make up the batches of a round: [steps, batch_size]."""
  steps = max(int(schedule.epochs * count) // schedule.batch_size, 1)
  epochs = -(-steps * schedule.batch_size // count)
  places = np.concatenate([generator.permutation(count) for _ in range(epochs)])
  return places[: steps * schedule.batch_size].reshape((steps, schedule.batch_size))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _learn(logits, tx, params, state, data, orders):
  """A round of every seed."""

  def loss(params, batch):
    losses = _losses(logits(params, batch.tokens), batch)
    return jnp.sum(losses) / jnp.maximum(jnp.sum(batch.mask), 1)

  def step(carry, places):
    params, state = carry
    gradient = jax.grad(loss)(params, jax.tree.map(lambda x: x[places], data))
    updates, state = tx.update(gradient, state, params)
    return (optax.apply_updates(params, updates), state), None

  def one(params, state, order):
    return jax.lax.scan(step, (params, state), order)[0]

  return jax.vmap(one)(params, state, orders)


@functools.partial(jax.jit, static_argnums=0)
def _answer(logits, params, batches):
  """Predictions [seeds, n, B, T] and the sum of losses [seeds]."""

  def one(params):
    def each(batch):
      found = logits(params, batch.tokens)
      return jnp.argmax(found, axis=-1), jnp.sum(_losses(found, batch))

    predictions, losses = jax.lax.map(each, batches)
    return predictions, jnp.sum(losses)

  return jax.vmap(one)(params)


def _losses(logits, batch):
  return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets) * batch.mask


def _where(chosen, x, y):
  return jnp.where(chosen.reshape((-1,) + (1,) * (x.ndim - 1)), x, y)
