"""Whole memory layers, from x to outputs, against the time of their matrix products alone."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.benchmarks import products, timing
from nlx import models

CAPTION = (
  'One layer with its projections, gates and convolution, 2 x 1,024 tokens, width 256, 4 heads of '
  '64, chunks of 64: loss of the outputs and its gradients for all parameters and inputs. '
  '`products ms` is the time of the matrix products of the same program, recomputed ones included, '
  'each shape timed by itself: a floor for it. `titans` carries the true recurrence of chunks.'
)


class Sizes(NamedTuple):
  """What is measured."""

  batch: int = 2
  length: int = 1024
  width: int = 256
  heads: int = 4
  chunk: int = 64
  repeats: int = 7
  families: tuple[str, ...] = ('titans', 'ttt_mlp', 'gated_deltanet', 'linear_attention')


FULL = Sizes()
SMOKE = Sizes(batch=1, length=16, width=8, heads=2, chunk=4, repeats=1, families=('titans',))


def measure(sizes: Sizes) -> list[dict[str, Any]]:
  """Returns one record for each layer."""
  x = jax.random.normal(jax.random.key(0), (sizes.batch, sizes.length, sizes.width))
  steps = {name: make(sizes, name) for name in sizes.families}
  programs = {
    name: timing.compiled(jax.jit(step), params, x) for name, (step, params) in steps.items()
  }
  calls = [functools.partial(programs[name].call, params, x) for name, (_, params) in steps.items()]
  seconds = timing.medians(calls, sizes.repeats)
  rows = []
  for (name, (step, params)), second in zip(steps.items(), seconds, strict=True):
    counted = products.count(step, params, x)
    floor = products.seconds(counted, sizes.repeats)
    operations = sum(times * product.operations for product, times in counted.items())
    rows.append(
      {
        'layer': name,
        'compile_seconds': programs[name].compile_seconds,
        'ms': 1e3 * second,
        'tokens_per_second': sizes.batch * sizes.length / second,
        'products_ms': 1e3 * floor,
        'time_to_products': second / floor,
        'gflops_per_second': operations / second / 1e9,
        'temp_mib': programs[name].temp_bytes / 2**20,
      }
    )
  return rows


def make(sizes: Sizes, name: str) -> tuple[Any, Any]:
  """Returns a layer's loss and gradient as a function of parameters and inputs, and parameters."""
  options = {'memory_hidden': sizes.width // sizes.heads} if name == 'titans' else {}
  config = models.FAMILIES[name](
    vocab_size=2,
    model_dim=sizes.width,
    num_layers=1,
    num_heads=sizes.heads,
    chunk_size=sizes.chunk,
    **options,
  )
  graph, params = nnx.split(config.mixer.make(rngs=nnx.Rngs(0)), nnx.Param)

  def loss(params, x):
    layer = nnx.merge(graph, params)
    out, _ = layer(x, layer.init_state(x.shape[0]))
    return jnp.mean(out**2)

  return jax.value_and_grad(loss, argnums=(0, 1)), params
