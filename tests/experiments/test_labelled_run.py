"""Training on labelled sequences: alone or side by side, and which round is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.studies import formal_languages, labelled_run
from nlx import evaluation

COUNT, LENGTH, IDS = 10, 6, 4
SCHEDULE = labelled_run.Schedule(batch_size=4, rounds=3, epochs=1.5)


class Table(nnx.Module):
  """Logits that depend on the last token alone."""

  def __init__(self, *, rngs: nnx.Rngs):
    self.logits = nnx.Param(jax.random.normal(rngs.params(), (IDS, IDS)))

  def __call__(self, tokens):
    return self.logits[...][tokens]


def problem(seed=0):
  """The token after the one that was read, which a table can learn."""
  random = np.random.default_rng(seed)
  tokens = random.integers(IDS, size=(COUNT, LENGTH), dtype=np.int32)
  mask = np.float32(np.arange(LENGTH) < random.integers(1, LENGTH + 1, size=(COUNT, 1)))
  targets = np.where(mask > 0, (tokens + 1) % IDS, 0).astype(np.int32)
  return evaluation.LabelledSequences(tokens, targets, mask)


def train(seeds, rate=0.1, schedule=SCHEDULE, learned=None):
  return labelled_run.train(
    lambda rngs: Table(rngs=rngs),
    lambda model, tokens: model(tokens),
    problem() if learned is None else learned,
    problem(1),
    seeds=seeds,
    tx=optax.sgd(rate),
    schedule=schedule,
  )


def test_seeds_side_by_side_are_the_runs_one_by_one():
  together = train((0, 1))
  for i in range(2):
    alone = train((i,))
    for one, both in zip(
      jax.tree.leaves(alone.params), jax.tree.leaves(together.params), strict=True
    ):
      np.testing.assert_allclose(both[i], one[0], atol=1e-6)
    np.testing.assert_allclose(together.loss[i], alone.loss[0], rtol=1e-5)


def test_training_is_the_plain_loop():
  """Of one round, whose batches are 15 // 4 of a permutation and the next."""
  found = train((3,), schedule=SCHEDULE._replace(rounds=1))
  random, data = np.random.default_rng(3), problem()
  places = np.concatenate([random.permutation(COUNT) for _ in range(2)])[:12].reshape((3, 4))
  table = Table(rngs=nnx.Rngs(3)).logits[...]

  def loss(table, batch):
    losses = optax.softmax_cross_entropy_with_integer_labels(table[batch.tokens], batch.targets)
    return jnp.sum(losses * batch.mask) / jnp.sum(batch.mask)

  for rows in places:
    table -= 0.1 * jax.grad(loss)(table, jax.tree.map(lambda x, rows=rows: x[rows], data))
  np.testing.assert_allclose(jax.tree.leaves(found.params)[0][0], table, atol=1e-6)


def test_round_with_most_right_sequences_is_kept():
  """At a rate that throws the table about, as some of what it learns is wrong."""
  schedule, seeds, learned = SCHEDULE._replace(rounds=5), (0, 1, 2), problem()
  wrong = np.random.default_rng(2).random(learned.targets.shape) < 0.4
  learned = learned._replace(targets=np.where(wrong, 0, learned.targets))
  up_to = [train(seeds, 30.0, schedule._replace(rounds=n + 1), learned) for n in range(5)]
  found = up_to[-1]
  assert len(set(found.rounds.tolist())) > 1
  for i, kept in enumerate(found.rounds):
    assert found.sequence[i] == max(one.sequence[i] for one in up_to)
    np.testing.assert_allclose(found.loss[i], up_to[kept - 1].loss[i], rtol=1e-4)
    assert up_to[kept - 1].rounds[i] == kept


def test_training_ends_when_nothing_is_left_to_learn():
  found = train((0, 1), rate=3.0, schedule=SCHEDULE._replace(rounds=50, patience=2))
  assert found.sequence.tolist() == [1, 1]
  assert max(found.rounds) < 50


def test_answers_do_not_depend_on_the_batches():
  asked, trained = problem(1), train((0, 1))
  whole = labelled_run.answers(trained.logits, trained.params, asked)
  cut = labelled_run.answers(trained.logits, trained.params, asked, batch_size=3)
  assert whole.predictions.shape == (2, COUNT, LENGTH)
  np.testing.assert_array_equal(whole.predictions, cut.predictions)
  np.testing.assert_allclose(whole.loss, cut.loss, rtol=1e-6)
  np.testing.assert_allclose(whole.loss, trained.loss, rtol=1e-6)


@pytest.mark.parametrize('name', formal_languages.FULL.models)
def test_models_of_formal_languages_know_no_positions(name):
  make, logits = formal_languages.build(name, 2)
  read = lambda tokens: logits(make(nnx.Rngs(0)), tokens)  # noqa: E731
  assert jax.eval_shape(read, jnp.zeros((2, 7), int)).shape == (2, 7, 4)
  if name != 'LSTM':
    mixer = nnx.eval_shape(lambda: make(nnx.Rngs(0))).config.mixer
    assert getattr(mixer, 'rope_base', None) is None
    assert getattr(mixer, 'keys', 'unit') != 'rotary'
