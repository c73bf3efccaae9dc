"""A memory is a level that maps keys to values."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nlx.core import matmul
from nlx.levels import Level, PeriodicLevel, fold, periodic
from nlx.memories import chunk, per_token
from nlx.memories.chunk import MatrixState
from nlx.memories.networks import Network, Weights
from nlx.memories.objectives import Objective, dot_product, l2
from nlx.memories.rules import Gates, Rule, check_caps


class Tokens(NamedTuple):
  """The signal of a memory: consecutive tokens of one chunk."""

  keys: jax.Array  # [..., C, K]
  values: jax.Array  # [..., C, V]
  gates: Gates  # each [..., C]


class MemoryState(NamedTuple):
  """The state of a memory."""

  matrices: dict[str, MatrixState]
  recent: Tokens | None = None  # the last window - 1 tokens; None for a window of one


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


def natural_objective(rule: Rule) -> Objective:
  """The objective that a rule is printed with: the dot product for Oja's, L2 for all others."""
  _check_kind('rule', rule, Rule, 'dgd()')
  return dot_product() if rule.transposed else l2()


def check_rule(rule: Rule, network: Network, objective: Objective) -> None:
  """Raises ValueError if the rule does not apply to the network or to the objective."""
  _check_kind('rule', rule, Rule, 'dgd()')
  _check_kind('network', network, Network, 'matrix()')
  _check_kind('objective', objective, Objective, 'l2()')
  linear = rule.exact or rule.transposed
  added = {
    'momentum': rule.momentum and linear,
    'window': rule.window > 1 and rule.delta,
    'orthogonal': rule.orthogonal and rule.delta,
    'mirror': rule.mirror is not None and rule.delta,
  }
  for name, is_too_much in added.items():
    if is_too_much:
      raise ValueError(f'the rule {rule.name} has no form with `{name}`, got {rule}.')
  check_caps(rule)
  if not linear:
    return
  if not network.linear:
    raise ValueError(f'the rule {rule.name} needs a memory that is one matrix, `matrix()`.')
  needed = natural_objective(rule).name
  if objective.name != needed:
    raise ValueError(f'the rule {rule.name} needs the objective {needed}, got {objective.name}.')


def _check_kind(name: str, part: Any, kind: type, example: str) -> None:
  if not isinstance(part, kind):
    raise ValueError(f'`{name}` must be one such as `{example}`, got {part!r}.')


def init_state(memory: Memory, weights: Weights, widths: tuple[int, int] = (0, 0)) -> MemoryState:
  """The state that starts from `weights` with no momentum.

  Args:
    memory: The memory.
    weights: Matrices [..., out, in], duals of the weights under a rule with a mirror map.
    widths: K and V, needed by a rule with a window, which keeps tokens.

  Returns:
    The state, in at least float32.
  """
  rule = memory.rule
  weights = {
    name: matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
    for name, matrix in weights.items()
  }

  def one(matrix):
    momentum = jnp.zeros_like(matrix) if rule.momentum else None
    if rule.mirror is None:
      return MatrixState(matrix, momentum)
    return MatrixState(rule.mirror.weight(matrix), momentum, matrix)

  matrices = {name: one(matrix) for name, matrix in weights.items()}
  if rule.window == 1:
    return MemoryState(matrices)
  if min(widths) < 1:
    raise ValueError(f'`widths` of keys and values must be given for a window, got {widths}.')
  like = next(iter(weights.values()))
  zeros = jnp.zeros((*like.shape[:-2], rule.window - 1, sum(widths) + 1), like.dtype)
  keys, values, gate = jnp.split(zeros, [widths[0], sum(widths)], axis=-1)
  return MemoryState(matrices, Tokens(keys, values, Gates(*(gate[..., 0],) * 3)))


def weights_of(state: MemoryState) -> Weights:
  """The matrices of a state."""
  return {name: matrix.weight for name, matrix in state.matrices.items()}


def surprise(
  memory: Memory, weights: Weights, keys: jax.Array, values: jax.Array
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """The gradient of the inner objective, as the inputs and errors whose outer products it is.

  Under a rule that needs no weights for it, because the rest of the error is linear in the state,
  this is the part that remains.

  Args:
    memory: The memory.
    weights: Matrices [..., out, in] at which the gradient is taken.
    keys: [..., C, K].
    values: [..., C, V].

  Returns:
    Inputs {name: [..., C, in]} and errors {name: [..., C, out]} of each matrix, one per token. Of
    the transposed matrix under a transposed rule.
  """
  target = memory.target(weights, values)
  if memory.rule.exact:
    return {'w': keys}, {'w': -target}
  if memory.rule.transposed:
    return {'w': target}, {'w': -keys}

  def forward(offsets):
    inputs = {}

    def linear(name, x):
      if name in inputs:
        raise ValueError(f'a network must apply each matrix once, and applies {name!r} twice.')
      inputs[name] = x
      return matmul(x, weights[name].mT) + offsets[name]

    return memory.network.apply(linear, keys), inputs

  shapes = jax.eval_shape(lambda: _linear_outputs(memory.network, weights, keys))
  for name in weights:
    if name not in shapes:
      raise ValueError(f'a network must apply each matrix once, and does not apply {name!r}.')
  offsets = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
  prediction, backward, inputs = jax.vjp(forward, offsets, has_aux=True)
  error = memory.objective.error(prediction, target)
  error = jnp.broadcast_to(error, prediction.shape)  # That of a dot product knows no weights.
  (errors,) = backward(error.astype(prediction.dtype))
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


def form(rule: Rule) -> Any:
  """The module that solves a rule's chunks: `chunk`, or `per_token` where it must be."""
  return per_token if rule.per_token else chunk


def absorb(
  memory: Memory,
  live: MemoryState,
  held: MemoryState,
  tokens: Tokens,
  factors: Any = None,
) -> tuple[MemoryState, dict[str, Any]]:
  """Writes tokens of one chunk, all at once.

  Args:
    memory: The memory.
    live: The state before these tokens.
    held: The state at the chunk's start, where errors are taken.
    tokens: One token or more, none beyond the chunk's end.
    factors: `form(memory.rule).gate_factors(memory.rule, tokens.gates)`; computed here if not
      given.

  Returns:
    The live state after the tokens, and the solved chunk of every matrix, for `read`.
  """
  rule, solver = memory.rule, form(memory.rule)
  if factors is None:
    factors = solver.gate_factors(rule, tokens.gates)
  written, recent = tokens, None
  if live.recent is not None:
    written = _joined(live.recent, tokens)
    recent = _last(written, tokens.gates.valid, rule.window - 1)
  inputs, errors = surprise(memory, weights_of(held), written.keys, written.values)
  starts = {name: _turned(rule, matrix) for name, matrix in live.matrices.items()}
  solved = solver.matrix_chunks(rule, factors, written.gates, starts, inputs, errors)
  matrices = {name: _turned(rule, solver.last_state(each)) for name, each in solved.items()}
  return MemoryState(matrices, recent), solved


def _turned(rule, state):
  """The state that a transposed rule moves, and back."""
  return state._replace(weight=state.weight.mT) if rule.transposed else state


def _joined(recent, tokens):
  """The tokens of all windows: those before the chunk, and the chunk's."""

  def join(before, x, axis):
    leading = before.shape[:axis]
    x = jnp.broadcast_to(x, (*leading, *x.shape[axis:]))
    return jnp.concatenate([before, x.astype(before.dtype)], axis=axis)

  gates = [join(a, b, -1) for a, b in zip(recent.gates[:3], tokens.gates[:3], strict=True)]
  keys, values = join(recent.keys, tokens.keys, -2), join(recent.values, tokens.values, -2)
  return Tokens(keys, values, Gates(*gates))


def _last(tokens, valid, count):
  """The last `count` tokens before the padding."""
  length = tokens.keys.shape[-2]
  begin = length - count
  if valid is not None:
    begin -= jnp.sum(valid.reshape((-1, valid.shape[-1]))[0] == 0)

  def cut(x, axis):
    return jax.lax.dynamic_slice_in_dim(x, begin, count, axis=x.ndim + axis)

  gates = Gates(*(cut(gate, -1) for gate in tokens.gates[:3]))
  return Tokens(cut(tokens.keys, -2), cut(tokens.values, -2), gates)


def read(memory: Memory, solved: dict[str, Any], queries: jax.Array) -> jax.Array:
  """The token read: the weights after each token answer its query, [..., C, K] to [..., C, V]."""
  if memory.rule.transposed:
    return chunk.read_transposed(solved['w'], queries)
  read_tokens = form(memory.rule).read_tokens
  return memory.network.apply(lambda name, x: read_tokens(solved[name], x), queries)


def level(memory: Memory, chunk_size: int, widths: tuple[int, int] = (0, 0)) -> PeriodicLevel:
  """The memory as a level: its errors are taken at a state that is held for `chunk_size` tokens.

  Its signals are `Tokens`. The live state of the recurrence is `state.gathered`.

  Args:
    memory: The memory.
    chunk_size: Tokens that share one held state.
    widths: K and V, needed by a rule with a window.

  Returns:
    A periodic level; `init` takes weights [..., out, in].

  Raises:
    ValueError: If `chunk_size` is smaller than 1, or the rule does not apply to the memory.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 90-93.
  """
  check_rule(memory.rule, memory.network, memory.objective)
  inner = Level(
    init=lambda weights: init_state(memory, weights, widths),
    update=lambda held, live: live,
    read=weights_of,
  )
  gather = fold(lambda live, held, tokens: absorb(memory, live, held, tokens)[0])
  return periodic(inner, chunk_size, gather)
