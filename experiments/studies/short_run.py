"""Short training runs of small language models, and what they make of a text."""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import common, language_model
from experiments.configs import lm
from nlx import data, models, training

WIDTH, NUM_HEADS, PARAMETERS = 64, 2, 250_000
RATE_PER_TOKEN = 0.4 / 64  # Of blocks that learn in context, before it is learned.
_TRAINED: dict[str, list[Any]] = {}


class Trained(NamedTuple):
  """A model after its last step."""

  language: common.Language
  params: Any
  losses: list[float]  # [steps] nats per token; NaN from where it diverged
  bits_per_byte: float  # held out; NaN if it diverged


def small(family: str, *, smoke: bool = False, seed: int = 0, steps: int, **model: Any) -> Any:
  """`lm.py:FAMILY-tiny` at width 64, with about 250,000 parameters besides embedding and head.

  Args:
    family: A model of `lm.MODELS`.
    smoke: Whether to take `lm.py:FAMILY-smoke` instead; HOPE with matrices as memories, which
      compile sooner.
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
  elif family == 'hope':
    config.model.memory_hidden = 0
  config.model.update(model)
  config.training.steps = steps
  config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, steps - 1)
  return config


def prepare(config: Any) -> tuple[training.Task, common.Language]:
  """Returns what is learned, and the first parameters."""
  language = common.create(config)
  corpus = data.load(config.data.corpus, language.tokenizer, max_bytes=config.data.max_bytes)
  return language_model.make_task(config, language, corpus), language


def levels(*periods: int) -> dict[str, Any]:
  """Fields of a HOPE whose blocks learn in context at these periods, 0 for never."""
  fastest = min(filter(None, periods), default=0)
  return {
    'cms_periods': periods,
    'cms_rate': fastest * RATE_PER_TOKEN,
    'cms_proportional_rates': True,
  }


class SideBySide:
  """Runs of one model that differ in seed or learning rate, as one program."""

  def __init__(self, configs: Sequence[Any]):
    """Compiles nothing yet. The updates of the optimizer must be proportional to its rate."""
    rates = [config.optimizer.learning_rate for config in configs]
    prepared = [prepare(config) for config in configs]
    self.tasks, self.languages = zip(*prepared, strict=True)
    self.streams = [task.batches for task in self.tasks]
    scaled = lambda factor: optax.chain(  # noqa: E731
      self.tasks[0].tx, optax.inject_hyperparams(optax.scale)(step_size=factor)
    )
    states = [
      training.init_state(language.params, scaled(rate / rates[0]), key=jax.random.key(config.seed))
      for config, rate, language in zip(configs, rates, self.languages, strict=True)
    ]
    self.state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    step = training.make_step(self.tasks[0].loss_fn, scaled(1.0))
    self.step = jax.jit(jax.vmap(step), donate_argnums=0)

  def advance(self) -> np.ndarray:
    """Takes a step of every run, each on its own next batch; returns their losses."""
    batches = [next(stream) for stream in self.streams]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    self.state, metrics = self.step(self.state, batch)
    return np.asarray(metrics['loss'])

  def params(self, run: int) -> Any:
    """The parameters of one run as they are now."""
    return jax.tree.map(lambda leaf: leaf[run], self.state.params)


def train(configs: Iterable[Any]) -> list[Trained]:
  """Trains runs of one model side by side for `config.training.steps`; each but once a process."""
  configs = tuple(configs)
  key = str(tuple(config.to_dict() for config in configs))
  if key not in _TRAINED:
    _TRAINED[key] = _train(configs)
  return _TRAINED[key]


def _train(configs: Sequence[Any]) -> list[Trained]:
  runs = SideBySide(configs)
  losses = np.stack([runs.advance() for _ in range(configs[0].training.steps)], axis=1)
  evaluate = training.make_eval(runs.tasks[0].loss_fn)
  trained = []
  for i, (task, language) in enumerate(zip(runs.tasks, runs.languages, strict=True)):
    params = runs.params(i)
    loss, _ = training.evaluate(evaluate, params, map(jax.device_put, task.validation))
    held_out = training.bits_per_byte(loss, task.validation_bytes_per_token)
    if failed := int(runs.state.failed_step[i]):  # What came after is the loss of one state.
      losses[i, failed - 1 :] = held_out = math.nan
    trained.append(Trained(language, params, losses[i].tolist(), held_out))
  return trained


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
