"""The training loop: progress, evaluation, checkpoints and exact resume."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import NamedSharding
from tqdm.auto import tqdm

from nlx import core
from nlx.core import checks
from nlx.training import step as steps
from nlx.training.checkpoint import Checkpoints
from nlx.training.failure import non_finite_error, non_finite_validation
from nlx.training.lock import lock
from nlx.training.metrics import MetricsWriter, read_metrics
from nlx.training.preemption import Preempted, Watch
from nlx.training.step import Batch, Metrics, TrainState
from nlx.training.task import Hooks, HostBatch, Progress, Settings, Task, bits_per_byte

NO_HOOKS = Hooks()


def train(
  task: Task,
  settings: Settings,
  state: TrainState,
  workdir: str | os.PathLike,
  *,
  sharding: NamedSharding | None = None,
  hooks: Hooks = NO_HOOKS,
  meta: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """Trains, from the last checkpoint in `workdir` if there is one.

  A run that was killed at any moment continues, with the same arguments, to the same numbers.

  Args:
    task: What is learned.
    settings: For how long.
    state: The state before the first step; its buffers are given away.
    workdir: Receives `checkpoints/`, `metrics.jsonl` and `tensorboard/`; may be in a bucket.
    sharding: How a batch lies over devices; None for the default device.
    hooks: Called before the first step, at evaluations and on failure.
    meta: Saved beside every checkpoint, as JSON; the configuration, say.

  Returns:
    `steps`, `tokens`, `tokens_per_second` (training alone, without compilation; None if nothing
    was timed), `train_loss` and `val_loss` in nats per token, `train_bits_per_byte`,
    `val_bits_per_byte`, `wall_seconds` and `compile_seconds`, over all resumes.

  Raises:
    CheckpointError: If a checkpoint cannot be written or read.
    NonFiniteError: If a loss, its gradient or the update is not finite; says the step and the
      level, and saves nothing more.
    Preempted: If SIGTERM told the run to end; it has saved, and the same call goes on.
    ValueError: If a setting is out of range, `task.validation` can be read only once, another
      process trains in `workdir`, or a checkpoint has other shapes than `state`.
  """
  for name, value in settings._asdict().items():
    checks.check_positive(name, value)
  if isinstance(task.validation, Iterator):
    raise ValueError('`task.validation` must be read at every evaluation, got an iterator.')
  loop = _Loop(task, settings, core.as_path(workdir), sharding, hooks, meta or {})
  try:
    return loop.run(state)
  finally:
    loop.close()


class _Loop:
  """One process of one run. Whatever an exact resume needs is in the checkpoints."""

  def __init__(self, task, settings, workdir, sharding, hooks, meta):
    self.task, self.settings, self.hooks = task, settings, hooks
    self.workdir, self.sharding, self.meta = workdir, sharding, meta
    self.primary = jax.process_index() == 0
    self.lock = lock(workdir) if self.primary else None
    self.checkpoints = Checkpoints(workdir / 'checkpoints', keep=settings.keep)
    self.progress = Progress()
    self.last_row: dict[str, float] = {}
    self.pending: list[tuple[HostBatch, Metrics]] = []  # Begun since the last synchronisation.
    self.timed_from: float | None = None  # None until the first step is over.
    self.session_start = time.perf_counter()
    self.train_step = self.eval_step = self.writer = None
    self.watch = Watch()

  def run(self, state: TrainState) -> dict[str, Any]:
    """Trains to the last step and returns the summary."""
    self.resume(state)
    resumed_at, total = self.progress.step, self.settings.steps
    if resumed_at > total:
      raise ValueError(
        f'`steps` must not be below the {resumed_at} steps of the checkpoint in '
        f'{self.workdir}, got {total}.'
      )
    if self.hooks.begin is not None:
      self.hooks.begin()
    with self.progress_bar() as self.bar:
      if resumed_at and self.evaluation_is_due(resumed_at):
        self.evaluate(write=not self.evaluation_is_written())
      for step in range(resumed_at + 1, total + 1):
        self.advance()
        if step % self.settings.log_every == 0 or step in (1, total):
          self.log()
        if step < total and self.watch.asked(step):
          self.end_early(step)
        if self.evaluation_is_due(step):
          self.evaluate()
        if step % self.settings.checkpoint_every == 0 and step < total:
          self.save()
      val_loss = self.evaluate(write=resumed_at < total or not self.evaluation_is_written())
      if resumed_at < total:
        self.save()
      self.checkpoints.wait()
    return self.summary(val_loss)

  def resume(self, state: TrainState) -> None:
    """Takes the latest checkpoint, or else the given state."""
    self.state = state
    restored = self.checkpoints.restore(state)
    if restored is not None:
      self.progress = Progress(**restored.meta['progress'])
      self.task.batches.set_state(restored.data)
      self.state = restored.state
      jax.tree.map(lambda leaf: leaf.delete(), (state.params, state.opt_state))
      self.say(f'Resuming from step {self.progress.step} in {self.workdir}.')
      for step, reason in restored.unreadable.items():
        self.say(f'Checkpoint {step} cannot be read and will be replaced: {reason}')
    self.wall_before = self.progress.wall_seconds
    if self.primary:
      self.writer = MetricsWriter(self.workdir, self.progress.step)

  def advance(self) -> None:
    """Begins one step. Its numbers arrive at the next synchronisation."""
    batch = next(self.task.batches)
    placed = self.place(batch)
    if self.train_step is None:
      step = steps.make_step(
        self.task.loss_fn,
        self.task.tx,
        self.settings.accumulation,
        schedule=self.task.schedule,
        shardings=jax.tree.map(lambda leaf: leaf.sharding, self.state),
      )
      self.train_step = self.compile('training step', step, self.state, placed)
    self.state, metrics = self.train_step(self.state, placed)
    self.pending.append((batch, metrics))
    if self.timed_from is None:
      self.synchronise()

  def synchronise(self) -> None:
    """Waits for the steps begun so far and counts them."""
    if not self.pending:
      return
    fetched = jax.device_get([metrics for _, metrics in self.pending])
    rows = [{name: value.item() for name, value in metrics.items()} for metrics in fetched]
    self.check_finite(rows)
    now, tokens = time.perf_counter(), sum(int(row['tokens']) for row in rows)
    progress = self.progress._replace(
      step=self.progress.step + len(rows),
      tokens=self.progress.tokens + tokens,
      train_loss=rows[-1]['loss'],
    )
    if self.timed_from is not None:
      progress = progress._replace(
        warm_tokens=progress.warm_tokens + tokens,
        warm_seconds=progress.warm_seconds + now - self.timed_from,
      )
    self.progress, self.last_row, self.pending, self.timed_from = progress, rows[-1], [], now
    self.bar.update(len(rows))

  def check_finite(self, rows: list[dict[str, float]]) -> None:
    """Raises if a step failed; the state is still the one before that step."""
    for (batch, _), row in zip(self.pending, rows, strict=True):
      if row['failed_step']:
        diagnose = self.hooks.diagnose
        self.checkpoints.wait()
        raise non_finite_error(
          int(row['failed_step']),
          row['loss'],
          row['grad_norm'],
          row['update_norm'],
          diagnose(self.state.params, self.place(batch)) if diagnose else None,
          self.last_good(),
        )

  def last_good(self) -> int:
    """The step of the last checkpoint, 0 if there is none."""
    return max(self.checkpoints.steps(), default=0)

  def log(self) -> None:
    """Writes and shows the numbers of the last step."""
    self.synchronise()
    row, progress = self.last_row, self.progress
    bits = bits_per_byte(row['loss'], self.task.train_bytes_per_token)
    speed = progress.tokens_per_second
    self.write(
      {
        'train_loss': row['loss'],
        'train_bits_per_byte': bits,
        'bits_per_token': row['bits_per_token'],
        'grad_norm': row['grad_norm'],
        'update_norm': row['update_norm'],
        'learning_rate': row['learning_rate'],
        'tokens': progress.tokens,
        'tokens_per_second': speed,
        'wall_seconds': self.wall_seconds(),
      }
    )
    self.bar.set_postfix_str(
      f'loss {row["loss"]:.3f}, {bits:.3f} bits/byte'
      + ('' if speed is None else f', {speed:,.0f} tokens/s')
    )
    self.timed_from = time.perf_counter()

  def evaluation_is_due(self, step: int) -> bool:
    """Whether the state after this step is to be evaluated, before the last step, and was not."""
    due = step % self.settings.eval_every == 0 and step < self.settings.steps
    return due and step > self.progress.evaluated

  def evaluation_is_written(self) -> bool:
    """Whether the metrics hold that of this step, from a run that saved before it and was lost."""
    rows = read_metrics(self.workdir / 'metrics.jsonl')
    return any(row['step'] == self.progress.step and 'val_loss' in row for row in rows)

  def evaluate(self, write: bool = True) -> float:
    """Measures the loss on the whole validation text, shows a sample and returns the loss."""
    self.synchronise()
    loss, _ = steps.evaluate(self.eval, self.state.params, map(self.place, self.task.validation))
    if not math.isfinite(loss):
      self.checkpoints.wait()
      raise non_finite_validation(self.progress.step, loss, self.last_good())
    bits = bits_per_byte(loss, self.task.validation_bytes_per_token)
    row: dict[str, Any] = {
      'val_loss': loss,
      'val_bits_per_byte': bits,
      'wall_seconds': self.wall_seconds(),
    }
    self.say(f'Step {self.progress.step}: validation {bits:.4f} bits/byte')
    if self.hooks.sample is not None:
      sample = self.hooks.sample(self.state.params, self.progress.step)
      self.say(sample)
      row['sample'] = sample
    if write:
      self.write(row)
    self.timed_from = self.timed_from and time.perf_counter()
    self.progress = self.progress._replace(evaluated=self.progress.step)
    return loss

  def eval(self, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Returns the loss of one batch; compiles for the first one."""
    if self.eval_step is None:
      eval_step = steps.make_eval(self.task.loss_fn)
      self.eval_step = self.compile('evaluation step', eval_step, params, batch)
    return self.eval_step(params, batch)

  def save(self) -> None:
    """Begins to save all that a resume needs."""
    self.synchronise()
    self.progress = self.progress._replace(wall_seconds=self.wall_seconds())
    meta = {**self.meta, 'progress': self.progress._asdict()}
    if self.writer is not None:
      self.writer.publish()  # A checkpoint is complete only once the rows before it are there.
    self.checkpoints.save(self.state, self.task.batches.get_state(), meta)
    self.timed_from = self.timed_from and time.perf_counter()

  def summary(self, val_loss: float) -> dict[str, Any]:
    """Returns the numbers of the whole run."""
    progress, task = self.progress, self.task
    return {
      'steps': progress.step,
      'tokens': progress.tokens,
      'tokens_per_second': progress.tokens_per_second,
      'train_loss': progress.train_loss,
      'train_bits_per_byte': bits_per_byte(progress.train_loss, task.train_bytes_per_token),
      'val_loss': val_loss,
      'val_bits_per_byte': bits_per_byte(val_loss, task.validation_bytes_per_token),
      'wall_seconds': self.wall_seconds(),
      'compile_seconds': progress.compile_seconds,
    }

  def compile(self, name: str, function: Any, *args: Any) -> Any:
    """Compiles ahead of time, so that compilation is never timed as training."""
    self.say(f'Compiling the {name} ...')
    start = time.perf_counter()
    compiled = function.lower(*args).compile()
    seconds = self.progress.compile_seconds + time.perf_counter() - start
    self.progress = self.progress._replace(compile_seconds=seconds)
    return compiled

  def place(self, batch: HostBatch) -> Batch:
    """Puts this process's rows of a batch on its devices."""
    if self.sharding is None:
      return jax.device_put(batch)
    return {
      name: jax.make_array_from_process_local_data(self.sharding, rows)
      for name, rows in batch.items()
    }

  def progress_bar(self) -> tqdm:
    return tqdm(
      total=self.settings.steps,
      initial=self.progress.step,
      unit='step',
      dynamic_ncols=True,
      disable=not self.primary,
      mininterval=0.5 if sys.stderr.isatty() else 30,
    )

  def wall_seconds(self) -> float:
    return self.wall_before + time.perf_counter() - self.session_start

  def say(self, text: str) -> None:
    if self.primary:
      tqdm.write(text)

  def write(self, row: dict[str, Any]) -> None:
    if self.writer is not None:
      self.writer.write(self.progress.step, row)

  def end_early(self, step: int) -> None:
    """Saves, as the machine asks the run to end."""
    self.save()
    self.checkpoints.wait()
    raise Preempted(step)

  def close(self) -> None:
    with contextlib.ExitStack() as last_first:
      if self.lock is not None:
        last_first.callback(self.lock.close)
      last_first.callback(self.checkpoints.close)
      if self.writer is not None:
        last_first.callback(self.writer.close)
      last_first.callback(self.watch.close)
