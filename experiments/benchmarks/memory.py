"""A memory layer chunk by chunk against the same memory token by token."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks import timing
from nlx import core, levels, memories

CAPTION = (
  'One memory layer, an MLP per head under delta gradient descent with momentum, 2 sequences x 4 '
  'heads of width 64, 1,024 tokens, errors taken once per 64 tokens. `chunk-parallel` is '
  '`nlx.memories.layer`, and `all kept` the same with `remat=False`; `token by token` is the same '
  'recurrence under `nlx.levels.unroll`, its default rematerialisation included. Speed-ups are in '
  'the same run.'
)


class Sizes(NamedTuple):
  """What is measured."""

  batch: int = 2
  heads: int = 4
  length: int = 1024
  chunk: int = 64
  width: int = 64
  repeats: int = 5


FULL = Sizes()
SMOKE = Sizes(batch=1, heads=2, length=16, chunk=4, width=4, repeats=1)
Form = Callable[[Any, memories.Tokens, jax.Array], jax.Array]


def measure(sizes: Sizes) -> list[dict[str, Any]]:
  """Returns a record of every form for each of forward, and forward and backward."""
  passes: dict[str, Callable] = {'forward': jax.jit, 'forward + backward': _with_gradients}
  return [row for name, wrap in passes.items() for row in _measure(sizes, name, wrap)]


def _measure(sizes: Sizes, name: str, wrap: Callable) -> list[dict[str, Any]]:
  args = problem(sizes)
  programs = {
    form: timing.compiled(wrap(function), *args) for form, function in forms(sizes).items()
  }
  calls = [functools.partial(program.call, *args) for program in programs.values()]
  seconds = timing.medians(calls, sizes.repeats)
  return [
    {
      'pass': name,
      'form': form,
      'compile_seconds': program.compile_seconds,
      'ms': 1e3 * second,
      'tokens_per_second': sizes.batch * sizes.length / second,
      'temp_mib': program.temp_bytes / 2**20,
      'speed_up': seconds[-1] / second,
    }
    for (form, program), second in zip(programs.items(), seconds, strict=True)
  ]


def forms(sizes: Sizes) -> dict[str, Form]:
  """Returns the forms as (weights, tokens, queries) -> outputs; token by token comes last."""
  rule, network = memories.dgd(momentum=True), memories.mlp(sizes.width)
  layer = memories.layer(network, rule, sizes.chunk)
  keeping = memories.layer(network, rule, sizes.chunk, remat=False)

  def parallel(layer, weights, tokens, queries):
    return layer.unroll(layer.level.init(weights), tokens, queries)[0]

  return {
    'chunk-parallel': functools.partial(parallel, layer),
    'chunk-parallel, all kept': functools.partial(parallel, keeping),
    'token by token': functools.partial(token_by_token, layer),
  }


def token_by_token(
  layer: memories.Layer, weights: Any, tokens: memories.Tokens, queries: jax.Array
) -> jax.Array:
  """Returns the outputs of a layer [..., T, V], from one update and one read per token."""

  def read(state, signal):
    live = memories.weights_of(state.gathered)
    return memories.apply(layer.memory.network, live, signal[1])

  level = layer.level._replace(update=lambda state, signal: layer.level.update(state, signal[0]))
  vector, scalar = (functools.partial(core.split_time, size=1, axis=axis) for axis in (-2, -1))
  gates = jax.tree.map(scalar, tokens.gates)
  signals = memories.Tokens(vector(tokens.keys), vector(tokens.values), gates), vector(queries)
  outputs, _ = levels.unroll(level, read, level.init(weights), signals)
  return core.join_time(outputs, axis=-2)


def problem(sizes: Sizes) -> tuple[dict[str, jax.Array], memories.Tokens, jax.Array]:
  """Returns weights [B, H, out, in], tokens and queries [B, H, T, K]."""
  leading = (sizes.batch, sizes.heads)
  keys = jax.random.split(jax.random.key(0), 5)
  shape = (*leading, sizes.length, sizes.width)
  vectors = [jax.random.normal(key, shape) / sizes.width**0.5 for key in keys[:3]]
  rate = jax.nn.sigmoid(jax.random.normal(keys[3], shape[:-1]))
  kept = jnp.full(shape[:-1], -0.01)
  gates = memories.Gates(rate, kept, 10 * kept)
  network = memories.mlp(sizes.width)
  weights = memories.init_weights(network, keys[4], sizes.width, sizes.width, leading)
  return weights, memories.Tokens(vectors[0], vectors[1], gates), vectors[2]


def _with_gradients(form: Form):
  """Jits a form with the gradients of a loss of its outputs for all arguments."""

  def loss(*args):
    return jnp.mean(form(*args) ** 2)

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
