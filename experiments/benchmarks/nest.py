"""Nested loops against one flat loop that updates levels where `t % period == 0`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.benchmarks import timing
from nlx import core, levels

CAPTION = (
  'Loss and meta-gradient of levels that learn in context, each a residual MLP block of width 64. '
  '`nest` loops as the periods do; `flat` is one scan over base chunks that masks the updates, '
  '`flat remat` the same with its body rematerialised. Ratios are to `nest`, in the same run.'
)


class Sizes(NamedTuple):
  """What is measured."""

  length: int = 4096  # ticks
  chunk: int = 16  # ticks of a base chunk
  periods: tuple[int, ...] = (16, 64, 256, 1024)
  width: int = 64
  repeats: int = 5


FULL = Sizes()
SMOKE = Sizes(length=32, chunk=4, periods=(4, 8), width=4, repeats=1)


def measure(sizes: Sizes) -> list[dict[str, Any]]:
  """Returns three records for each number of levels."""
  return [row for n in range(1, len(sizes.periods) + 1) for row in _measure(sizes, n)]


def _measure(sizes: Sizes, num_levels: int) -> list[dict[str, Any]]:
  args = problem(sizes, num_levels)
  programs = {
    form: timing.compiled(jax.jit(jax.value_and_grad(loss)), *args)
    for form, loss in losses(sizes, num_levels).items()
  }
  calls = [functools.partial(program.call, *args) for program in programs.values()]
  seconds = timing.medians(calls, sizes.repeats)
  first = next(iter(programs.values()))
  return [
    {
      'levels': num_levels,
      'form': form,
      'compile_seconds': program.compile_seconds,
      'ms': 1e3 * second,
      'temp_mib': program.temp_bytes / 2**20,
      'time_ratio': second / seconds[0],
      'memory_ratio': program.temp_bytes / max(first.temp_bytes, 1),
    }
    for (form, program), second in zip(programs.items(), seconds, strict=True)
  ]


def losses(sizes: Sizes, num_levels: int) -> dict[str, Any]:
  """Returns each form as (initial weights, chunks) -> mean loss of the sequence."""
  system = [levels.from_optax(optax.sgd(1e-2), period) for period in sizes.periods[:num_levels]]
  runs = {
    'nest': levels.nest(system, cell, chunk=sizes.chunk),
    'flat': flat(system, sizes.chunk, remat=False),
    'flat remat': flat(system, sizes.chunk, remat=True),
  }

  def mean_loss(run, initial, chunks):
    states = tuple(level.init(w) for level, w in zip(system, initial, strict=True))
    result = run((), states, (), chunks)
    return jnp.sum(result.loss) / jnp.sum(result.count)

  return {form: functools.partial(mean_loss, run) for form, run in runs.items()}


def problem(sizes: Sizes, num_levels: int) -> tuple[Any, jax.Array]:
  """Returns random initial weights of each level and chunks [n, C, D]."""
  keys = jax.random.split(jax.random.key(0), 2 * num_levels + 1)
  shapes = {'up': (sizes.width, 2 * sizes.width), 'down': (2 * sizes.width, sizes.width)}

  def weights(pair):
    return {
      name: jax.random.normal(key, shape) / shape[0] ** 0.5
      for key, (name, shape) in zip(pair, shapes.items(), strict=True)
    }

  chunks = (sizes.length // sizes.chunk, sizes.chunk, sizes.width)
  initial = tuple(weights(keys[2 * i : 2 * i + 2]) for i in range(num_levels))
  return initial, jax.random.normal(keys[-1], chunks)


def cell(slow: Any, fast: tuple, carry: Any, x: jax.Array) -> tuple[jax.Array, jax.Array, Any, Any]:
  """MLP blocks, one of each level, that predict the next vector of a chunk x [C, D]."""
  del slow
  hidden = x
  for weights in fast:
    hidden = hidden + jax.nn.silu(hidden @ weights['up']) @ weights['down']
  errors = jnp.mean((hidden[:-1] - x[1:]) ** 2, axis=-1)
  return jnp.sum(errors), jnp.asarray(len(errors), jnp.float32), carry, ()


def flat(system: list[levels.PeriodicLevel], chunk: int, *, remat: bool) -> Callable[..., Any]:
  """Returns what `levels.nest` does, as one scan: every update is computed, then masked."""

  def update(level, state, signal, ticks):
    state = level.gather(state, signal, chunk)
    return core.select(ticks % level.period == 0, level.flush(state), state)

  def run(slow, states, carry, xs):
    def one_chunk(live, indexed):
      states, carry = live
      seen, x = indexed
      results, signals = levels.gradient_step(cell, system, slow, states, carry, x)
      loss, count, carry, outputs = results
      moved = zip(system, states, signals, strict=True)
      states = tuple(update(*level, seen * chunk) for level in moved)
      return (states, carry), (loss, count, outputs)

    seen = 1 + jnp.arange(xs.shape[0])
    body = jax.checkpoint(one_chunk, prevent_cse=False) if remat else one_chunk
    live, (loss, count, outputs) = jax.lax.scan(body, (states, carry), (seen, xs))
    return levels.NestResult(loss, count, *live, outputs)

  return run
