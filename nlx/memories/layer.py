"""A memory along a whole sequence, chunk by chunk."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nlx import core
from nlx.levels import PeriodicLevel, PeriodicState
from nlx.memories.memory import (
  Memory,
  Tokens,
  absorb,
  form,
  level,
  natural_objective,
  read,
  weights_of,
)
from nlx.memories.networks import Network, Weights, apply
from nlx.memories.objectives import Objective
from nlx.memories.rules import Rule, mask_gates


class Layer(NamedTuple):
  """A memory with its chunk size, ready to run over sequences.

  Attributes:
    memory: Network, rule and objective.
    level: The memory as a level of period `chunk_size`.
    unroll: `(state, tokens, queries [..., T, K], num_valid=None) -> (outputs [..., T, V], state)`,
      from a state at the start of a chunk. T may end inside a chunk, and only the first `num_valid`
      tokens count if given.
    step: The same for tokens that stay within one chunk, usually one; `state` may be anywhere in
      it.
  """

  memory: Memory
  level: PeriodicLevel
  unroll: Callable
  step: Callable


def layer(
  network: Network,
  rule: Rule,
  chunk_size: int,
  objective: Objective | None = None,
  target: Callable[[Weights, jax.Array], jax.Array] | None = None,
  reads: str = 'token',
  remat: bool = True,
  widths: tuple[int, int] = (0, 0),
) -> Layer:
  """Makes a memory layer.

  Args:
    network: The map, such as `mlp(hidden=64)`.
    rule: The update rule, such as `dgd(momentum=True)`.
    chunk_size: Tokens whose errors are taken at one state.
    objective: What a write lowers; what the rule is printed with, mostly `l2()`, if not given.
    target: What a value is turned into before it is written, see `Memory`; nothing if not given.
    reads: 'token', each query is answered by the weights after its own token, or 'chunk', by those
      of the chunk's start (Eq. 90 as printed).
    remat: Whether the backward pass recomputes each chunk from its start, which takes less memory
      and, on CPUs, less time than keeping what it needs.
    widths: K and V, needed by a rule with a window.

  Returns:
    The layer.

  Raises:
    ValueError: If `chunk_size` is smaller than 1, `reads` is unknown, or the rule does not apply to
      the network or the objective.

  Example:
    >>> import jax, jax.numpy as jnp, nlx
    >>> layer = nlx.memories.layer(nlx.memories.mlp(hidden=8), nlx.memories.dgd(), chunk_size=4)
    >>> weights = nlx.memories.init_weights(layer.memory.network, jax.random.key(0), 4, 4)
    >>> x = jax.random.normal(jax.random.key(1), (10, 4))
    >>> gate = jnp.full(10, 0.1)
    >>> tokens = nlx.memories.Tokens(x, x, nlx.memories.Gates(gate, -gate, -gate))
    >>> outputs, state = jax.jit(layer.unroll)(layer.level.init(weights), tokens, x)
    >>> outputs.shape, int(state.count)
    ((10, 4), 2)

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 90-93; Sun et al., TTT,
    arXiv 2407.04620, Sec. 2.5.
  """
  core.check_choice('reads', reads, ('token', 'chunk'))
  objective = objective or natural_objective(rule)
  memory = Memory(network, rule, objective, target or (lambda weights, values: values))
  periodic_level = level(memory, chunk_size, widths)
  gate_factors = form(rule).gate_factors

  def write(state, tokens, queries, factors, ticks):
    live, solved = absorb(memory, state.gathered, state.held, tokens, factors)
    if reads == 'token':
      outputs = read(memory, solved, queries)
    else:
      outputs = apply(network, weights_of(state.held), queries)
    return outputs, PeriodicState(state.held, live, state.count + ticks)

  def flush_if_due(state):
    return jax.lax.cond(state.count >= chunk_size, periodic_level.flush, lambda state: state, state)

  def step(state, tokens, queries, num_valid=None):
    _check_shapes(state, tokens, queries, most=chunk_size)
    tokens, queries = _as(_dtype(state), _masked(tokens, num_valid), queries)
    ticks = _ticks(0, queries.shape[-2], num_valid)
    outputs, state = write(state, tokens, queries, gate_factors(rule, tokens.gates), ticks)
    return outputs, flush_if_due(state)

  def unroll(state, tokens, queries, num_valid=None):
    def one_chunk(state, chunk):
      begin, tokens, queries, factors = chunk
      ticks = _ticks(begin, chunk_size, num_valid)
      outputs, state = write(state, tokens, queries, factors, ticks)
      return periodic_level.flush(state) if num_valid is None else flush_if_due(state), outputs

    length = queries.shape[-2]
    _check_shapes(state, tokens, queries)
    tokens, queries = _as(_dtype(state), _masked(tokens, num_valid), queries)
    whole = length // chunk_size * chunk_size
    pieces = []
    if whole:
      chunks = _map_time(lambda x, axis: _split(x, whole, chunk_size, axis), tokens, queries)
      factors = gate_factors(rule, chunks[0].gates)  # Of all chunks at once.
      begins = jnp.arange(0, whole, chunk_size)
      state, outputs = core.scan_chunks(one_chunk, state, (begins, *chunks, factors), remat=remat)
      pieces.append(core.join_time(outputs, axis=-2))
    if whole < length:
      tokens, queries = _map_time(lambda x, axis: _from(x, whole, axis), tokens, queries)
      ticks = _ticks(whole, length - whole, num_valid)
      outputs, state = write(state, tokens, queries, gate_factors(rule, tokens.gates), ticks)
      pieces.append(outputs)
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=-2), state

  return Layer(memory, periodic_level, unroll, step)


def _check_shapes(state, tokens, queries, most=None):
  length = queries.shape[-2]
  core.check_positive('T', length, 'token')
  if most is not None and length > most:
    raise ValueError(f'`queries` must have at most the {most} tokens of a chunk, got {length}.')
  weights, keys = next(iter(weights_of(state.held).values())), tokens.keys
  batch, of_keys = weights.shape[:-2], keys.shape[:-2]
  if len(of_keys) > len(batch) or jnp.broadcast_shapes(batch, of_keys) != batch:
    raise ValueError(
      f'`tokens` must have the leading axes of the weights, {batch}, got keys of {keys.shape}.'
    )


def _dtype(state):
  return next(iter(weights_of(state.held).values())).dtype


def _map_time(function, tokens, queries):
  """Applies `function(x, time_axis)` to everything that has a time axis."""
  gates = jax.tree.map(lambda gate: function(gate, -1), tokens.gates)
  tokens = Tokens(function(tokens.keys, -2), function(tokens.values, -2), gates)
  return tokens, function(queries, -2)


def _split(x, length, size, axis):
  return core.split_time(jax.lax.slice_in_dim(x, 0, length, axis=axis), size, axis)


def _from(x, begin, axis):
  return jax.lax.slice_in_dim(x, begin, None, axis=axis)


def _as(dtype, tokens, queries):
  """Tokens and queries in the dtype of the memory, whatever they come in."""
  return jax.tree.map(lambda x: x.astype(dtype), (tokens, queries))


def _masked(tokens, num_valid):
  """Tokens of which those from `num_valid` on leave no trace."""
  if num_valid is None:
    return tokens
  valid = jnp.arange(tokens.keys.shape[-2]) < num_valid
  return tokens._replace(gates=mask_gates(tokens.gates, valid))


def _ticks(begin, size, num_valid):
  """How many of `size` tokens from `begin` on count."""
  return size if num_valid is None else jnp.clip(num_valid - begin, 0, size).astype(jnp.int32)
