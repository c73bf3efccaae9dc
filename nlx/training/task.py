"""What a run is made of: the task, the settings, the hooks and what it has used so far."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import optax

from nlx.training.step import LossFn, Params

HostBatch = dict[str, np.ndarray]


class Task(NamedTuple):
  """What is learned, and from what."""

  loss_fn: LossFn
  tx: optax.GradientTransformation
  schedule: optax.Schedule  # Learning rate by step, for the metrics.
  batches: Iterator[HostBatch]  # Endless; with get_state() -> dict and set_state(dict).
  validation: Iterable[HostBatch]  # Read anew at every evaluation.
  train_bytes_per_token: float
  validation_bytes_per_token: float


class Settings(NamedTuple):
  """How long a run takes, and what happens on the way; in steps."""

  steps: int
  log_every: int = 10
  eval_every: int = 100
  checkpoint_every: int = 100
  keep: int = 3  # Checkpoints.
  accumulation: int = 1  # Microbatches per step.


class Hooks(NamedTuple):
  """What the loop calls without knowing the model."""

  begin: Callable[[], None] | None = None  # Once, before the first step: nothing refused the run.
  sample: Callable[[Params, int], str] | None = None  # At each evaluation: text to show.
  diagnose: Callable[[Params, Any], dict[str, Any]] | None = None  # Batch: level -> [num_chunks]


class Progress(NamedTuple):
  """What a run has used so far, over all resumes."""

  step: int = 0  # Completed steps.
  tokens: int = 0  # Valid targets.
  warm_tokens: int = 0  # Those of the steps that `warm_seconds` timed.
  warm_seconds: float = 0.0  # Training alone: no compilation, evaluation or checkpoint.
  compile_seconds: float = 0.0
  wall_seconds: float = 0.0
  train_loss: float = math.nan  # Of the last step, in nats per token.
  evaluated: int = 0  # The last step after which the validation text was read.

  @property
  def tokens_per_second(self) -> float | None:
    """Speed of training alone, or None before anything was timed."""
    return self.warm_tokens / self.warm_seconds if self.warm_seconds else None


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
  """Returns a loss in nats per token as bits per byte of text."""
  return loss / math.log(2) / bytes_per_token
