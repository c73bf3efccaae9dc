"""Speed of writing, one token at a time."""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments import common
from experiments.benchmarks import timing
from experiments.configs import lm
from nlx import models

CAPTION = (
  '`nlx.models.generate` after a prompt of one token: HOPE keeps learning from what it writes. '
  'The first call compiles. `relative_speed` is to the Transformer++ at the same batch size, in '
  'the same run.'
)
_NAMES = {'hope': 'HOPE', 'transformer': 'Transformer++'}


class Sizes(NamedTuple):
  """What is measured."""

  size: str = 'tiny'  # As in lm.py:MODEL-SIZE.
  batches: tuple[int, ...] = (1, 8)
  max_tokens: int = 512
  repeats: int = 3


FULL = Sizes()
SMOKE = Sizes('smoke', batches=(1,), max_tokens=8, repeats=1)


def measure(sizes: Sizes) -> list[dict[str, Any]]:
  """Returns one record for each model and batch size; the Transformer++ comes second."""
  return [row for batch in sizes.batches for row in _measure(sizes, batch)]


def _measure(sizes: Sizes, batch: int) -> list[dict[str, Any]]:
  calls = {
    name: writer(f'{family}-{sizes.size}', batch, sizes.max_tokens)
    for family, name in _NAMES.items()
  }
  first_seconds = [_first(call) for call in calls.values()]
  seconds = timing.medians(list(calls.values()), sizes.repeats)
  written = batch * sizes.max_tokens
  return [
    {
      'model': name,
      'batch_size': batch,
      'tokens': sizes.max_tokens,
      'first_call_seconds': first,
      'ms_per_token': 1e3 * second / sizes.max_tokens,
      'tokens_per_second': written / second,
      'relative_speed': seconds[-1] / second,
    }
    for name, first, second in zip(calls, first_seconds, seconds, strict=True)
  ]


def writer(name: str, batch: int, max_tokens: int) -> functools.partial:
  """Returns a function that writes greedily with the untrained model of `lm.py:name`."""
  language = common.create(lm.get_config(name))
  return functools.partial(
    models.generate,
    nnx.merge(language.graph, language.params),
    jnp.zeros((batch, 1), jnp.int32),
    max_tokens=max_tokens,
    sampling=models.GREEDY,
  )


def _first(call: functools.partial) -> float:
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start
