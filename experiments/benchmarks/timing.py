"""How everything is timed: compiled ahead, warm, interleaved, medians."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax


class Program(NamedTuple):
  """A compiled function and what compiling it cost."""

  call: Callable[..., Any]
  compile_seconds: float  # Tracing included.
  temp_bytes: int  # Peak of temporary buffers; neither arguments nor results.


def compiled(function: Any, *args: Any) -> Program:
  """Compiles a function ahead of time.

  Args:
    function: What `jax.jit` returned.
    *args: Arguments of the shapes that it will be called with.
  """
  start = time.perf_counter()
  program = function.lower(*args).compile()
  seconds = time.perf_counter() - start
  return Program(program, seconds, program.memory_analysis().temp_size_in_bytes)


def medians(calls: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
  """Returns the median seconds of each call.

  The calls take turns, so that a machine which is slower for a while is so for all of them, and
  their ratios can be trusted more than the times.

  Args:
    calls: Functions without arguments, whose results are waited for.
    repeats: Timed turns, after one that is not.
  """
  seconds: list[list[float]] = [[] for _ in calls]
  for turn in range(repeats + 1):
    for call, measured in zip(calls, seconds, strict=True):
      start = time.perf_counter()
      jax.block_until_ready(call())
      if turn:
        measured.append(time.perf_counter() - start)
  return [statistics.median(measured) for measured in seconds]
