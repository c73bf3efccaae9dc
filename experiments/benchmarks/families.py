"""Every model at equal parameters: speed and memory against the length of what is read."""

import functools
import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import common
from experiments.benchmarks import models as steps
from experiments.benchmarks import timing
from experiments.configs import lm

CAPTION = (
  'All models of `experiments/configs/lm.py` at size tiny, with equal numbers of parameters. '
  '`train` is tokens per second of a whole training step, loss, gradient and AdamW, on one '
  'sequence of so many tokens, and `mib` its peak of temporary buffers; `exponent` is the slope of '
  'log time against log length. `decode` is tokens per second of one stream, written greedily, '
  'of which so many tokens were written before; `state mib` is what it carries then.'
)


class Sizes(NamedTuple):
  """What is measured."""

  size: str = 'tiny'  # As in lm.py:MODEL-SIZE.
  families: tuple[str, ...] = lm.MODELS
  lengths: tuple[int, ...] = (512, 2048, 8192)
  contexts: tuple[int, ...] = (128, 8192)
  piece: int = 128  # Tokens that are decoded at once.
  repeats: int = 5


FULL = Sizes()
SMOKE = Sizes(
  'smoke', ('linear_attention',), lengths=(64, 128), contexts=(8, 16), piece=8, repeats=1
)


def measure(sizes: Sizes) -> list[dict[str, Any]]:
  """Returns one record for each model."""
  rows = []
  for family in sizes.families:
    rows.append({'model': family, **_train(sizes, family), **_decode(sizes, family)})
    jax.clear_caches()
    print(rows[-1], flush=True)
  return rows


def _train(sizes: Sizes, family: str) -> dict[str, Any]:
  row, seconds, compile_seconds = {}, [], []
  for length in sizes.lengths:
    config = lm.get_config(f'{family}-{sizes.size}')
    config.data.batch_size, config.data.seq_len = 1, length
    step = steps.Step(config)
    seconds += timing.medians([step], _turns(sizes, length))
    compile_seconds.append(step.program.compile_seconds)
    row[f'train_{length}'] = length / seconds[-1]
    row[f'mib_{length}'] = step.program.temp_bytes / 2**20
  slope = float(np.polyfit(np.log(sizes.lengths), np.log(seconds), 1)[0])
  return {
    'parameters': step.parameters,
    'compile_seconds': compile_seconds[0],
    **row,
    'exponent': slope,
  }


def _turns(sizes: Sizes, length: int) -> int:
  """Returns how often to time what reads `length` tokens: less often what takes longer."""
  return max(1, round(sizes.repeats * math.sqrt(sizes.lengths[0] / length)))


def _decode(sizes: Sizes, family: str) -> dict[str, Any]:
  language = common.create(lm.get_config(f'{family}-{sizes.size}'))
  grows = language.model.config.mixer.grows
  row = {}
  write = jax.jit(functools.partial(_write, language.graph, sizes.piece))
  state, token = None, jnp.zeros((1, 1), jnp.int32)
  for context in sizes.contexts:
    if state is None or grows:
      state, seen = language.model.init_state(1, context + (sizes.repeats + 1) * sizes.piece), 0
    while seen < context:
      (state, token), seen = write(language.params, state, token), seen + sizes.piece
    jax.block_until_ready(state)
    seconds = []
    for _ in range(sizes.repeats):
      start = time.perf_counter()
      state, token = jax.block_until_ready(write(language.params, state, token))
      seconds.append(time.perf_counter() - start)
      seen += sizes.piece
    row[f'decode_{context}'] = sizes.piece / float(np.median(seconds))
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  return {**row, 'state_mib': size / 2**20}


def _write(graph: nnx.GraphDef, length: int, params: Any, state: Any, token: jax.Array) -> Any:
  """Returns state and last token [1, 1] after writing, greedily, so many tokens after `token`."""
  model = nnx.merge(graph, params)

  def one(carry, _):
    state, token = carry
    logits, state = model(token, state)
    return (state, jnp.argmax(logits[:, -1], axis=-1)[None].astype(jnp.int32)), None

  return jax.lax.scan(one, (state, token), length=length)[0]
