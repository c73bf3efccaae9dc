"""A memory is a level that maps keys to values."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nlx.core import matmul
from nlx.levels import Level, PeriodicLevel, fold, periodic
from nlx.memories import chunk as chunks
from nlx.memories.chunk import MatrixState
from nlx.memories.networks import Network, Weights
from nlx.memories.objectives import Objective, l2
from nlx.memories.rules import Gates, Rule

MemoryState = dict[str, MatrixState]


class Tokens(NamedTuple):
  """The signal of a memory: consecutive tokens of one chunk."""

  keys: jax.Array  # [..., C, K]
  values: jax.Array  # [..., C, V]
  gates: Gates  # each [..., C]


class Memory(NamedTuple):
  """A network, what it minimises, and how.

  Attributes:
    network: The map from keys to values.
    rule: The update rule of each of its matrices.
    objective: What a write lowers.
    target: `(weights, values [..., C, V]) -> targets [..., C, V]`. The values themselves, or what
      the memory at the start of the chunk makes of them (Eq. 84). A constant for the inner
      gradient.
  """

  network: Network
  rule: Rule
  objective: Objective = l2()
  target: Callable[[Weights, jax.Array], jax.Array] = lambda weights, values: values


def init_state(memory: Memory, weights: Weights) -> MemoryState:
  """The state that starts from `weights` with no momentum."""

  def one(weight):
    return MatrixState(weight, jnp.zeros_like(weight) if memory.rule.momentum else None)

  return {name: one(weight) for name, weight in weights.items()}


def weights_of(state: MemoryState) -> Weights:
  """The matrices of a state."""
  return {name: matrix.weight for name, matrix in state.items()}


def surprise(
  memory: Memory, weights: Weights, keys: jax.Array, values: jax.Array
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """The gradient of the inner objective, as the inputs and errors whose outer products it is.

  Args:
    memory: The memory.
    weights: Matrices [..., out, in] at which the gradient is taken.
    keys: [..., C, K].
    values: [..., C, V].

  Returns:
    Inputs {name: [..., C, in]} and errors {name: [..., C, out]} of each matrix, one per token.
  """

  def forward(offsets):
    inputs = {}

    def linear(name, x):
      inputs[name] = x
      return matmul(x, weights[name].mT) + offsets[name]

    return memory.network.apply(linear, keys), inputs

  shapes = jax.eval_shape(lambda: _linear_outputs(memory.network, weights, keys))
  offsets = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
  prediction, backward, inputs = jax.vjp(forward, offsets, has_aux=True)
  (errors,) = backward(memory.objective.error(prediction, memory.target(weights, values)))
  if memory.rule.scale_by_depth and len(errors) > 1:
    errors = {name: error / len(errors) for name, error in errors.items()}
  return inputs, errors


def _linear_outputs(network, weights, keys):
  outputs = {}

  def linear(name, x):
    outputs[name] = matmul(x, weights[name].mT)
    return outputs[name]

  network.apply(linear, keys)
  return outputs


def absorb(
  memory: Memory,
  live: MemoryState,
  held: MemoryState,
  tokens: Tokens,
  factors: chunks.Factors | None = None,
) -> tuple[MemoryState, dict[str, chunks.MatrixChunk]]:
  """Writes tokens of one chunk, all at once.

  Args:
    memory: The memory.
    live: The state before these tokens.
    held: The state at the chunk's start, where errors are taken.
    tokens: One token or more, none beyond the chunk's end.
    factors: `gate_factors(memory.rule, tokens.gates)`; computed here if not given.

  Returns:
    The live state after the tokens, and the solved chunk of every matrix, for `read`.
  """
  inputs, errors = surprise(memory, weights_of(held), tokens.keys, tokens.values)
  if factors is None:
    factors = chunks.gate_factors(memory.rule, tokens.gates)
  solved = {
    name: chunks.matrix_chunk(
      memory.rule, factors, tokens.gates, live[name], inputs[name], errors[name]
    )
    for name in live
  }
  return {name: chunks.last_state(chunk) for name, chunk in solved.items()}, solved


def read(memory: Memory, solved: dict[str, chunks.MatrixChunk], queries: jax.Array) -> jax.Array:
  """The token read: the weights after each token answer its query, [..., C, K] to [..., C, V]."""
  return memory.network.apply(lambda name, x: chunks.read_tokens(solved[name], x), queries)


def level(memory: Memory, chunk_size: int) -> PeriodicLevel:
  """The memory as a level: its errors are taken at a state that is held for `chunk_size` tokens.

  Its signals are `Tokens`. The live state of the recurrence is `state.gathered`.

  Args:
    memory: The memory.
    chunk_size: Tokens that share one held state.

  Returns:
    A periodic level; `init` takes weights [..., out, in].

  Raises:
    ValueError: If `chunk_size` is smaller than 1.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 90-93.
  """
  inner = Level(
    init=lambda weights: init_state(memory, weights),
    update=lambda held, live: live,
    read=weights_of,
  )
  gather = fold(lambda live, held, tokens: absorb(memory, live, held, tokens)[0])
  return periodic(inner, chunk_size, gather)
