"""Short training runs of small language models, and what they make of a text."""

import functools
import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import common, language_model
from experiments.configs import lm
from experiments.reporting import provenance
from nlx import data, models, training

WIDTH, NUM_HEADS, PARAMETERS = 64, 2, 250_000
FOLDER = provenance.ROOT / 'runs' / 'studies'


class Trained(NamedTuple):
  """A model after its last step."""

  language: common.Language
  params: Any
  losses: list[float]  # [steps] nats per token
  bits_per_byte: float  # held out


def small(family: str, *, smoke: bool = False, seed: int = 0, steps: int, **model: Any) -> Any:
  """`lm.py:FAMILY-tiny` at width 64, with about 250,000 parameters besides embedding and head.

  Args:
    family: A model of `lm.MODELS`.
    smoke: Whether to take `lm.py:FAMILY-smoke` instead.
    seed: Of parameters and batches.
    steps: Of training, and of its schedule.
    **model: Fields of `config.model` that differ.

  Returns:
    The configuration.
  """
  config = lm.get_config(f'{family}-' + ('smoke' if smoke else 'tiny'))
  config.seed = seed
  if not smoke:
    config.model.update(model_dim=WIDTH, num_heads=NUM_HEADS, parameters=PARAMETERS)
  config.model.update(model)
  config.training.steps = steps
  config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, steps - 1)
  return config


class Step:
  """A training step that goes on from its own last state."""

  def __init__(self, task: training.Task, params: Any, seed: int):
    """Compiles nothing yet."""
    self.state = training.init_state(params, task.tx, key=jax.random.key(seed))
    self.step, self.batches = training.make_step(task.loss_fn, task.tx), task.batches
    self.batch: Any = None

  def advance(self) -> float:
    """Takes one step on the next batch and returns its loss."""
    self.batch = jax.device_put(next(self.batches))
    return float(self())

  def __call__(self) -> jax.Array:
    """Takes one step, on the last batch again, and returns its loss."""
    self.state, metrics = self.step(self.state, self.batch)
    return metrics['loss']


def prepare(config: Any) -> tuple[training.Task, common.Language]:
  """Returns what is learned, and the first parameters."""
  language = common.create(config)
  corpus = data.load(config.data.corpus, language.tokenizer, max_bytes=config.data.max_bytes)
  return language_model.make_task(config, language, corpus), language


def train(config: Any) -> Trained:
  """Trains for `config.training.steps`."""
  task, language = prepare(config)
  step = Step(task, language.params, config.seed)
  losses = [step.advance() for _ in range(config.training.steps)]
  validation = map(jax.device_put, task.validation)
  loss, _ = training.evaluate(training.make_eval(task.loss_fn), step.state.params, validation)
  held_out = training.bits_per_byte(loss, task.validation_bytes_per_token)
  return Trained(language, step.state.params, losses, held_out)


def last_loss(losses: list[float]) -> float:
  """The mean over the last steps; infinite if the run diverged."""
  last = float(np.mean(losses[-20:]))
  return last if np.isfinite(last) else float('inf')


@functools.partial(jax.jit, static_argnums=0)
def read(graph: nnx.GraphDef, params: Any, text: jax.Array) -> jax.Array:
  """The losses in bits [B, T] of a text [B, T + 1] that a model reads, and learns from, once."""
  model = nnx.merge(graph, params)
  state = model.init_state(text.shape[0], max_length=text.shape[1])
  logits, _ = model(text[:, :-1], state)
  return models.token_losses(logits, text[:, 1:]) / jnp.log(2.0)


def windows(tokens: np.ndarray, count: int, length: int) -> np.ndarray:
  """[count, length] stretches of a text, as far apart as it allows."""
  begins = np.linspace(0, len(tokens) - length, count).astype(int)
  return np.stack([tokens[begin : begin + length] for begin in begins])


def remember(name: str, key: Iterable[Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
  """Makes a record, or finds it where an interrupted study at the same commit has left it.

  Args:
    name: Of the study.
    key: What the record depends on.
    make: Makes the record, which JSON can hold.

  Returns:
    The record.
  """
  commit, path = provenance.commit(), FOLDER / f'{name}.jsonl'
  full_key = json.loads(json.dumps([commit, *key]))
  lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
  for line in map(json.loads, lines):
    if line['key'] == full_key and not commit.endswith('-dirty'):
      return line['record']
  record = make()
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('a', encoding='utf-8') as file:
    file.write(json.dumps({'key': full_key, 'record': record}) + '\n')
  jax.clear_caches()  # Dozens of compiled programs are more than a process may hold.
  return record
