"""How the time of one mixer grows with what it reads."""

import functools
import math
from typing import Any, NamedTuple

import jax
from flax import nnx

from experiments import common
from experiments.benchmarks import timing
from experiments.configs import lm

CAPTION = (
  'Forward pass of one mixer alone, of every model at size tiny, on one sequence of so many '
  'tokens; each length is timed by itself. `exponent` is the slope of log time against log '
  'length: 1 for what reads in linear time, 2 for full attention.'
)


class Sizes(NamedTuple):
  """What is measured."""

  size: str = 'tiny'  # As in lm.py:MODEL-SIZE.
  families: tuple[str, ...] = lm.MODELS
  lengths: tuple[int, int] = (2048, 8192)
  repeats: int = 5


FULL = Sizes()
SMOKE = Sizes('smoke', ('linear_attention',), lengths=(64, 128), repeats=1)


def measure(sizes: Sizes) -> list[dict[str, Any]]:
  """Returns one record for each model."""
  rows = []
  for family in sizes.families:
    seconds = [_seconds(sizes, family, length) for length in sizes.lengths]
    times = {f'ms_{n}': 1e3 * s for n, s in zip(sizes.lengths, seconds, strict=True)}
    growth = sizes.lengths[1] / sizes.lengths[0]
    slope = math.log(seconds[1] / seconds[0]) / math.log(growth)
    rows.append({'model': family, **times, 'exponent': slope})
  return rows


def _seconds(sizes: Sizes, family: str, length: int) -> float:
  config = common.make_model_config(lm.get_config(f'{family}-{sizes.size}').model, vocab_size=256)
  graph, params = nnx.split(config.mixer.make(rngs=nnx.Rngs(0)), nnx.Param)
  x = jax.random.normal(jax.random.key(0), (1, length, config.model_dim))

  def read(params, x):
    layer = nnx.merge(graph, params)
    return layer(x, layer.init_state(1))[0]

  program = timing.compiled(jax.jit(read), params, x)
  return timing.medians([functools.partial(program.call, params, x)], sizes.repeats)[0]
