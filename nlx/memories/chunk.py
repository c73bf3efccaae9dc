"""The exact chunk-parallel form of the rules: no per-token weight is ever built.

The errors of a chunk are taken at the weights of its start, so that the recurrence of `Rule` is
linear in its state. With a_t, b_t the running products of alpha and mu, A[t,s] = a_t / a_s and
B[t,s] = b_t / b_s for s <= t, G = A B and c = A b, it unrolls to

    W_t q = a_t W_0 q + c_t S_0 q - sum_{s<=t} (A[t,s] u_s + G[t,s] write_s e_s) (x_s . q)

where u_s = decay_s W_{s-1} x_s is what the decay removes, the solution of one unit lower triangular
system per chunk. The factors A, B, G depend on gates only and are shared by all matrices of a
memory; the system depends on the inputs only and is shared by all memories that read the same keys,
unless a soft cap makes the decay depend on the errors.

Rules differ in little. Under an exact rule e_s is -v_s, and u_s holds the rest of the error. Under
a window, G and B are multiplied by the band of tokens that make up each write, and the tokens
before the chunk are further columns.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nlx.core import matmul
from nlx.memories.rules import Gates, Rule, rates
from nlx.memories.triangular import unit_lower_inverses


class Factors(NamedTuple):
  """What a chunk's gates alone determine; None where the rule does not use it."""

  kept: jax.Array | None  # a_t [..., C]
  kept_between: jax.Array  # A [..., C, C'], zero above the diagonal
  push: 'PushFactors | None'


class PushFactors(NamedTuple):
  """The part of `Factors` that momentum adds."""

  carried: jax.Array  # c_t [..., C]
  carried_between: jax.Array  # G [..., C, C']
  momentum: jax.Array  # b_C [...]
  momentum_to_end: jax.Array  # B[C, :] [..., C']


def gate_factors(rule: Rule, gates: Gates) -> Factors:
  """Running products of the gates of C tokens, for writes of C' = C + window - 1 tokens."""
  kept, kept_between = retained(rule, gates)
  added = kept_between if gates.valid is None else kept_between * gates.valid[..., None, :]
  if not rule.momentum:
    kept_between = kept_between if rule.window == 1 else windowed(rule, gates, kept_between)
    return Factors(kept, kept_between, None)
  momentum, momentum_between = running_products(gates.log_momentum)
  push = PushFactors(
    carried=matmul(added, momentum[..., None])[..., 0],
    carried_between=matmul(added, windowed(rule, gates, momentum_between)),
    momentum=momentum[..., -1],
    momentum_to_end=windowed(rule, gates, momentum_between)[..., -1, :],
  )
  return Factors(kept, kept_between, push)


def retained(rule: Rule, gates: Gates) -> tuple[jax.Array | None, jax.Array]:
  """a_t [..., C], None without retention, and A [..., C, C]."""
  if rule.retention:
    return running_products(gates.log_retention)
  return None, jnp.broadcast_to(_lower(gates.rate), (*gates.rate.shape, gates.rate.shape[-1]))


def running_products(logs: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Products of gates from their logarithms [..., C].

  Returns:
    Those up to each token [..., C], and those after one token up to another [..., C, C], zero above
    the diagonal, which is masked before the exponential.
  """
  lower = _lower(logs)
  # Differences of sums that shut gates have made large would lose the digits of open ones. Sums of
  # sixteenths are exact, in products of any precision, and what they leave adds up to little.
  coarse = jax.lax.stop_gradient(jnp.round(16 * logs) / 16)
  sums = matmul(lower, jnp.stack([coarse, logs - coarse], axis=-1))
  running = jnp.sum(sums, axis=-1)
  coarse, rest = sums[..., 0], sums[..., 1]
  between = coarse[..., :, None] - coarse[..., None, :] + (rest[..., :, None] - rest[..., None, :])
  return jnp.exp(running), lower * jnp.exp(jnp.where(lower > 0, between, 0))


def windowed(rule: Rule, gates: Gates, between: jax.Array) -> jax.Array:
  """Factors of writes as factors of the tokens in their windows: [..., C, C] to [..., C, C'].

  The first window - 1 of the C' tokens are those before the chunk. Padding does not write, though
  tokens are in its window.
  """
  if rule.window == 1:
    return between
  if gates.valid is not None:
    between = between * gates.valid[..., None, :]
  size = between.shape[-1]
  behind = jnp.arange(size)[:, None] + rule.window - 1 - jnp.arange(size + rule.window - 1)[None]
  band = ((behind >= 0) & (behind < rule.window)).astype(between.dtype)
  return matmul(between, band)


def _lower(gate):
  """Ones on and below the diagonal, [..., C, C] with leading axes of 1."""
  lower = jnp.tril(jnp.ones((gate.shape[-1],) * 2, gate.dtype))
  return lower.reshape((1,) * (gate.ndim - 1) + lower.shape)


class MatrixState(NamedTuple):
  """State of one matrix of a memory."""

  weight: jax.Array  # W [..., V, K]
  momentum: jax.Array | None  # S [..., V, K]; None without momentum
  dual: jax.Array | None = None  # A [..., V, K], what a mirror map makes the weight of


class MatrixChunk(NamedTuple):
  """One matrix over one chunk: what its reads and its last state are made of."""

  start: MatrixState
  factors: Factors
  inputs: jax.Array  # x_t [..., C', K]
  writes: jax.Array  # write_t e_t [..., C', V]
  removed: jax.Array | None  # u_t [..., C, V]; None without delta


def matrix_chunks(
  rule: Rule,
  factors: Factors,
  gates: Gates,
  starts: dict[str, MatrixState],
  inputs: dict[str, jax.Array],
  errors: dict[str, jax.Array],
) -> dict[str, MatrixChunk]:
  """Solves one chunk of the rule for the matrices of a memory.

  Args:
    rule: The rule.
    factors: `gate_factors` of the chunk.
    gates: [..., C'], those of the tokens in the first window included.
    starts: States before the chunk, or before the part of a chunk that these tokens are.
    inputs: x_t [..., C', K] of each matrix.
    errors: e_t [..., C', V] of each, at the weights of the chunk's start.

  Returns:
    The chunk of each, to be read with `read_tokens` and closed with `last_state`.
  """
  chunks, decays, grams = {}, {}, {}
  for name, start in starts.items():
    decay, write = rates(rule, gates, inputs[name], errors[name])
    writes = write[..., None] * errors[name]
    chunks[name] = MatrixChunk(start, factors, inputs[name], writes, None)
    if decay is not None:
      decays[name] = decay
      grams[name] = decay[..., None] * matmul(inputs[name], inputs[name].mT)
  if not grams:
    return chunks
  between = _shift(factors.kept_between)
  inverses = unit_lower_inverses([between * gram for gram in grams.values()])
  return {
    name: chunk._replace(removed=matmul(inverse, _right_side(chunk, decays[name], grams[name])))
    for (name, chunk), inverse in zip(chunks.items(), inverses, strict=True)
  }


def _right_side(chunk, decay, gram):
  """Of the system: what the decay would remove of W_{t-1}, had it removed nothing before."""
  factors, start = chunk.factors, chunk.start
  target = _scaled(_shift_gate(factors.kept), matmul(chunk.inputs, start.weight.mT))
  push, momentum = factors.push, start.momentum
  between = factors.kept_between
  if push is not None and momentum is not None:
    target += _shift_zero(push.carried)[..., None] * matmul(chunk.inputs, momentum.mT)
    between = push.carried_between
  return decay[..., None] * target - matmul(_shift(between) * gram, chunk.writes)


def read_tokens(chunk: MatrixChunk, queries: jax.Array) -> jax.Array:
  """W_t q_t for every token of the chunk: [..., C, K] to [..., C, V]."""
  factors, start = chunk.factors, chunk.start
  push, momentum = factors.push, start.momentum
  scores = matmul(queries, chunk.inputs.mT)
  out = _scaled(factors.kept, matmul(queries, start.weight.mT))
  if push is None or momentum is None:
    written = chunk.writes if chunk.removed is None else chunk.writes + chunk.removed
    return out - matmul(factors.kept_between * scores, written)
  out += push.carried[..., None] * matmul(queries, momentum.mT)
  out -= matmul(push.carried_between * scores, chunk.writes)
  if chunk.removed is not None:
    out -= matmul(factors.kept_between * scores, chunk.removed)
  return out


def read_transposed(chunk: MatrixChunk, queries: jax.Array) -> jax.Array:
  """W_t^T q_t for every token of a chunk without momentum: [..., C, V] to [..., C, K]."""
  factors, start = chunk.factors, chunk.start
  written = chunk.writes if chunk.removed is None else chunk.writes + chunk.removed
  out = _scaled(factors.kept, matmul(queries, start.weight))
  return out - matmul(factors.kept_between * matmul(queries, written.mT), chunk.inputs)


def last_state(chunk: MatrixChunk) -> MatrixState:
  """The state after the chunk's last token."""
  factors, start = chunk.factors, chunk.start
  push, momentum = factors.push, start.momentum
  kept_to_end = factors.kept_between[..., -1, :, None]
  weight = start.weight if factors.kept is None else _last(factors.kept) * start.weight
  if push is None or momentum is None:
    written = chunk.writes if chunk.removed is None else chunk.writes + chunk.removed
    written = kept_to_end * written
    return MatrixState(weight - matmul(written.mT, chunk.inputs), None)
  weight += _last(push.carried) * momentum
  written = push.carried_between[..., -1, :, None] * chunk.writes
  if chunk.removed is not None:
    written += kept_to_end * chunk.removed
  weight -= matmul(written.mT, chunk.inputs)
  pushed = push.momentum_to_end[..., None] * chunk.writes
  momentum = push.momentum[..., None, None] * momentum - matmul(pushed.mT, chunk.inputs)
  return MatrixState(weight, momentum)


def _last(gate):
  return gate[..., -1, None, None]


def _scaled(gate, x):
  return x if gate is None else gate[..., None] * x


def _shift(between):
  """Moves rows down by one; the first row becomes zero."""
  return jnp.concatenate([jnp.zeros_like(between[..., :1, :]), between[..., :-1, :]], axis=-2)


def _shift_zero(gate):
  return jnp.concatenate([jnp.zeros_like(gate[..., :1]), gate[..., :-1]], axis=-1)


def _shift_gate(gate):
  """a_{t-1} with a_0 = 1."""
  if gate is None:
    return None
  return jnp.concatenate([jnp.ones_like(gate[..., :1]), gate[..., :-1]], axis=-1)
