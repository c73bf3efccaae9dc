"""The form of the rules with a step that is not linear in the state: the matrices of every token.

Where a write is orthogonalised, or a mirror map makes the weights, no product of gates can stand
for the tokens between. What is linear is still done at once,

    S_t = b_t S_0 - sum_s B[t,s] write_s e_s x_s^T     A_t = a_t A_0 + sum_{s<=t} A[t,s] push_s

with push_s = S_s, or eta_s NS(S_s), and W_t = weight(A_t). The functions are those of
`nlx.memories.chunk`; matrices of a whole chunk are held at a time, which a recomputed backward pass
(`nlx.memories.layer`) keeps to one chunk.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nlx import core
from nlx.core import matmul
from nlx.memories.chunk import MatrixState, retained, running_products, windowed
from nlx.memories.rules import Gates, Rule, rates

# Under the norm of a momentum before it is orthogonalised: what is smaller is written smaller.
_NORM_FLOOR = 1e-3


class Factors(NamedTuple):
  """What a chunk's gates alone determine."""

  kept: jax.Array | None  # a_t [..., C]; None without retention
  added: jax.Array  # A [..., C, C] without the columns of padding
  momentum: jax.Array | None  # b_t [..., C]; None without momentum
  gathered: jax.Array | None  # B [..., C, C'], the window's sum included; None for the identity
  scale: jax.Array | None  # eta_t [..., C], of an orthogonalised write


class MatrixChunk(NamedTuple):
  """One matrix over one chunk: its states after every token, [..., C, V, K]."""

  weights: jax.Array
  last: MatrixState


def gate_factors(rule: Rule, gates: Gates) -> Factors:
  """Running products of the gates of C tokens, for writes of C' = C + window - 1 tokens."""
  kept, between = retained(rule, gates)
  added = between if gates.valid is None else between * gates.valid[..., None, :]
  scale = gates.rate if rule.orthogonal else None
  if rule.momentum:
    momentum, gathered = running_products(gates.log_momentum)
    return Factors(kept, added, momentum, windowed(rule, gates, gathered), scale)
  if rule.window == 1:
    return Factors(kept, added, None, None, scale)
  size = gates.rate.shape[-1]
  own = jnp.broadcast_to(jnp.eye(size, dtype=gates.rate.dtype), (*gates.rate.shape, size))
  return Factors(kept, added, None, windowed(rule, gates, own), scale)


def matrix_chunks(
  rule: Rule,
  factors: Factors,
  gates: Gates,
  starts: dict[str, MatrixState],
  inputs: dict[str, jax.Array],
  errors: dict[str, jax.Array],
) -> dict[str, MatrixChunk]:
  """Computes the matrices of one chunk; arguments as for `nlx.memories.chunk.matrix_chunks`."""
  return {
    name: _matrix_chunk(rule, factors, gates, start, inputs[name], errors[name])
    for name, start in starts.items()
  }


def _matrix_chunk(rule, factors, gates, start, inputs, errors):
  """One of them."""
  _, write = rates(rule, gates, inputs, errors)
  writes = (write[..., None] * errors)[..., :, None] * inputs[..., None, :]
  pushes = -writes if factors.gathered is None else -_combine(factors.gathered, writes)
  if factors.momentum is not None and start.momentum is not None:
    pushes += _over_time(factors.momentum, start.momentum)
    momentum = pushes[..., -1, :, :]
  else:
    momentum = None
  if factors.scale is not None:
    pushes = factors.scale[..., None, None] * _orthogonalized(pushes, rule.orthogonal)
  first = start.weight if start.dual is None else start.dual
  duals = _combine(factors.added, pushes)
  duals += first[..., None, :, :] if factors.kept is None else _over_time(factors.kept, first)
  if rule.mirror is None:
    return MatrixChunk(duals, MatrixState(duals[..., -1, :, :], momentum))
  weights = rule.mirror.weight(duals)
  return MatrixChunk(weights, MatrixState(weights[..., -1, :, :], momentum, duals[..., -1, :, :]))


def read_tokens(chunk: MatrixChunk, queries: jax.Array) -> jax.Array:
  """W_t q_t for every token of the chunk: [..., C, K] to [..., C, V]."""
  return matmul(chunk.weights, queries[..., None])[..., 0]


def last_state(chunk: MatrixChunk) -> MatrixState:
  """The state after the chunk's last token."""
  return chunk.last


def _combine(factors, matrices):
  """sum_s factors[t, s] matrices[s]: [..., C, C'] and [..., C', V, K] to [..., C, V, K]."""
  shape = matrices.shape[-2:]
  flat = matmul(factors, matrices.reshape((*matrices.shape[:-2], math.prod(shape))))
  return flat.reshape((*flat.shape[:-1], *shape))


def _over_time(gate, matrix):
  return gate[..., None, None] * matrix[..., None, :, :]


def _orthogonalized(x, steps):
  rows, columns = x.shape[-2:]
  wide = x.mT if rows > columns else x
  flat = wide.reshape((-1, *wide.shape[-2:]))
  done = core.orthogonalize(flat, (core.QUINTIC,) * steps, _NORM_FLOOR).reshape(wide.shape)
  return done.mT if rows > columns else done
