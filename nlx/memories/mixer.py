"""A memory as a sequence layer: slow projections make keys, values, queries and gates of x."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from nlx import core
from nlx.levels import LevelInfo, PeriodicState
from nlx.memories.attention import rotate
from nlx.memories.layer import Layer, layer
from nlx.memories.memory import Tokens, check_rule, natural_objective, weights_of
from nlx.memories.modules import CausalConv, Projection, horizon_logits, rms_norm, unit_norm
from nlx.memories.networks import Network, apply, init_weights, matrix, normed
from nlx.memories.objectives import Objective, dot_product
from nlx.memories.rules import Gates, Rule, bounded_log_gate, delta_rule, log_gate

KEYS = ('unit', 'silu_unit', 'elu', 'rotary')
UNIT_KEYS = ('unit', 'silu_unit')
RATES = ('sigmoid', 'position', 'one')
RETENTIONS = ('sigmoid', 'softplus', 'fixed')


@dataclass(frozen=True)
class MemoryConfig:
  """Which memory, how it is written and read, and where its gates come from.

  Attributes:
    model_dim: D.
    num_heads: H; each head has its own memory, of width K = V = D / H.
    chunk_size: Tokens whose errors are taken at one state; for an exact rule with token reads a
      matter of speed alone.
    network: What the memory is.
    rule: How it is written.
    objective: What a write lowers; what the rule is printed with if None.
    reads: 'token' or 'chunk', see `nlx.memories.layer`.
    keys: What keys and queries pass: 'unit' norm, 'silu_unit' a SiLU before it, 'elu' 1 + ELU over
      the square root of K, 'rotary' positions and the square root of K under the keys. The delta
      rule needs one of the first two.
    unit_values: Whether values have unit norm.
    rate_gate: 'sigmoid' of x, 'position' the same over K and over the token's position in the
      chunk, plus a learned offset (TTT, see `nlx.models.ttt_linear`), or 'one'.
    rate_scale: What the rate is multiplied with.
    rate_bias: Initial logit of the rate.
    retention_gate: 'sigmoid' of x, 'softplus' exp(-a softplus(x + b)) (Gated DeltaNet), or 'fixed'
      1 - 2^(-5-h) in head h (RetNet). Only for a rule that has retention.
    inner_norm: Whether the memory is k + LayerNorm(network(k)) (TTT).
    learned_start: Whether the initial state is learned; if not it is zero, which only a matrix can
      leave.
    conv_width: Taps of a causal convolution before the projections; 0 for none.
    output_gate: Whether a SiLU gate of x multiplies what is read.
    remat: Whether the backward pass recomputes each chunk from its start.
    dtype: Of slow matrix products. Memories are computed in at least float32.
    param_dtype: Of parameters.
  """

  model_dim: int
  num_heads: int
  chunk_size: int
  network: Network = matrix()
  rule: Rule = delta_rule()
  objective: Objective | None = None
  reads: str = 'token'
  keys: str = 'unit'
  unit_values: bool = False
  rate_gate: str = 'sigmoid'
  rate_scale: float = 1.0
  rate_bias: float = 0.0
  retention_gate: str = 'sigmoid'
  inner_norm: bool = False
  learned_start: bool = True
  conv_width: int = 4
  output_gate: bool = True
  remat: bool = True
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def __post_init__(self):
    for name in ('model_dim', 'num_heads', 'chunk_size'):
      core.check_positive(name, getattr(self, name))
    core.check_divides('num_heads', self.num_heads, 'model_dim', self.model_dim)
    if self.keys == 'rotary':
      core.check_divides('2 (rotary pairs)', 2, 'head_dim', self.head_dim)
    if self.conv_width < 0:
      raise ValueError(f'`conv_width` must be at least 0 taps, got {self.conv_width}.')
    core.check_above_zero('rate_scale', self.rate_scale)
    choices = {'reads': ('token', 'chunk'), 'keys': KEYS, 'rate_gate': RATES}
    choices['retention_gate'] = RETENTIONS
    for name, values in choices.items():
      core.check_choice(name, getattr(self, name), values)
    self._check_rule()

  def _check_rule(self):
    if self.retention_gate != 'sigmoid' and not self.rule.retention:
      raise ValueError(
        f'`retention_gate` must be left out for a rule without retention, got '
        f'{self.retention_gate!r}.'
      )
    if self.rule.exact and self.keys not in UNIT_KEYS:
      raise ValueError(
        f'`keys` of the rule {self.rule.name} must be of {UNIT_KEYS}, got {self.keys!r}.'
      )
    if not (self.learned_start or self.network.linear):
      raise ValueError('`learned_start` must be True unless the memory is one matrix.')
    # What a norm follows is no longer one matrix.
    written = self.network._replace(linear=False) if self.inner_norm else self.network
    check_rule(self.rule, written, self.written_objective)

  @property
  def head_dim(self) -> int:
    """K, the width of a head."""
    return self.model_dim // self.num_heads

  @property
  def state_dtype(self) -> Any:
    """Of fast state and gates."""
    return jnp.promote_types(self.param_dtype, jnp.float32)

  @property
  def written_objective(self) -> Objective:
    """What a write lowers."""
    return self.objective or natural_objective(self.rule)

  @property
  def period(self) -> int:
    """Tokens per update: the chunk size, or 1 where that is a matter of speed alone."""
    rule, one_matrix = self.rule, self.network.linear and not self.inner_norm
    # What a token writes does not depend on where the chunk began.
    by_token = rule.exact or rule.transposed or self.written_objective.name == dot_product().name
    return 1 if self.reads == 'token' and one_matrix and by_token else self.chunk_size

  @property
  def alignment(self) -> int:
    """Tokens between the boundaries at which reading in parallel may begin."""
    return self.chunk_size

  @property
  def grows(self) -> bool:
    """Whether the state grows with the length of a stream."""
    return False

  def make(self, *, rngs: nnx.Rngs) -> 'MemoryMixer':
    """The layer, with random parameters."""
    return MemoryMixer(self, rngs=rngs)


class MixerState(NamedTuple):
  """Fast state of a memory layer."""

  conv: jax.Array | None  # [B, conv_width - 1, D] last inputs; None without a convolution
  position: jax.Array | None  # int32 [B], tokens of its text seen; None without rotary positions
  memory: PeriodicState  # matrices [B, H, out, in]


class MemoryMixer(nnx.Module):
  """A memory with slow projections, a sequence layer [B, T, D] to [B, T, D].

  Linear attention, RetNet, DeltaNet, TTT and Titans are this layer with their rule, network and
  gates; `nlx.models` names them. With `SelfModifying` it shares everything but where keys, values
  and gates come from.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Secs. 5.1-5.2, Eqs. 64-68.
  """

  def __init__(self, config: MemoryConfig, *, rngs: nnx.Rngs):
    self.config = config
    dim, heads, width = config.model_dim, config.num_heads, config.head_dim
    dtypes = {'dtype': config.dtype, 'param_dtype': config.param_dtype}
    if config.conv_width:
      self.conv = CausalConv(dim, config.conv_width, rngs=rngs, param_dtype=config.param_dtype)
    biases = _initial_gate_biases(config)
    out_dim = (3 + config.output_gate) * dim + len(biases) * heads
    self.projection = Projection(dim, out_dim, rngs=rngs, **dtypes)
    self.output = Projection(dim, dim, rngs=rngs, **dtypes)
    self.output_scale = nnx.Param(jnp.ones((width,), config.param_dtype))
    if biases:
      self.gate_biases = nnx.Param(jnp.stack(list(biases.values())).astype(config.param_dtype))
    if config.rule.retention and config.retention_gate == 'softplus':
      rates = jnp.log(jnp.linspace(1.0, 16.0, heads, dtype=config.param_dtype))
      self.log_retention_rates = nnx.Param(rates)
    if config.rate_gate == 'position':
      self.rate_offsets = nnx.Param(jnp.zeros((config.chunk_size,), config.param_dtype))
    if config.inner_norm:
      self.inner_scale = nnx.Param(jnp.ones((heads, 1, width), config.param_dtype))
      self.inner_offset = nnx.Param(jnp.zeros((heads, 1, width), config.param_dtype))
    if config.learned_start:
      weights = init_weights(
        config.network,
        rngs.params(),
        width,
        width,
        (heads,),
        scale=0.5,
        dtype=config.param_dtype,
      )
      self.weights = nnx.Dict({name: nnx.Param(weight) for name, weight in weights.items()})

  def init_state(self, batch_size: int, max_length: int | None = None) -> MixerState:
    """The initial state, a copy per sequence; `max_length` does not matter to a memory."""
    del max_length
    config, width = self.config, self.config.head_dim

    def copies(weight):
      return jnp.broadcast_to(weight.astype(config.state_dtype), (batch_size, *weight.shape))

    if config.learned_start:
      weights = {name: copies(weight[...]) for name, weight in self.weights.items()}
    else:
      shapes = config.network.shapes(width, width)
      zeros = {n: jnp.zeros((config.num_heads, *s), config.param_dtype) for n, s in shapes.items()}
      weights = jax.tree.map(copies, zeros)
    return MixerState(
      conv=self.conv.init_state(batch_size, config.dtype) if config.conv_width else None,
      position=jnp.zeros((batch_size,), jnp.int32) if config.keys == 'rotary' else None,
      memory=self._layer().level.init(weights),
    )

  def _layer(self) -> Layer:
    config, network = self.config, self.config.network
    if config.inner_norm:
      network = normed(network, self.inner_scale[...][None], self.inner_offset[...][None])
    return layer(
      network,
      config.rule,
      config.chunk_size,
      objective=config.written_objective,
      reads=config.reads,
      remat=config.remat,
      widths=(config.head_dim, config.head_dim),
    )

  def __call__(
    self, x: jax.Array, state: MixerState, num_valid: jax.Array | None = None
  ) -> tuple[jax.Array, MixerState]:
    """Reads a stretch of tokens that begins at a chunk boundary.

    Args:
      x: [B, T, D].
      state: Fast state at the boundary.
      num_valid: How many of the T tokens count, a scalar; all if None.

    Returns:
      Outputs [B, T, D] and the state after the last valid token.
    """
    tokens, queries, gate, state = self._project(x, state, num_valid)
    out, memory = self._layer().unroll(state.memory, tokens, queries, num_valid)
    return self._output(out, gate), state._replace(memory=memory)

  def step(self, x: jax.Array, state: MixerState) -> tuple[jax.Array, MixerState]:
    """Reads one token x [B, 1, D] anywhere in a chunk."""
    tokens, queries, gate, state = self._project(x, state, None)
    out, memory = self._layer().step(state.memory, tokens, queries)
    return self._output(out, gate), state._replace(memory=memory)

  def gates(self, x: jax.Array, state: MixerState) -> list[Gates]:
    """The gates [B, H, T] with which x [B, T, D] is written from a boundary, for traces."""
    return [self._project(x, state, None)[0].gates]

  def recall(self, queries: jax.Array, state: MixerState) -> jax.Array:
    """What the memory at the last chunk boundary answers, [B, H, T, K] to [B, H, T, K]."""
    weights = weights_of(state.memory.held)
    return apply(self._layer().memory.network, weights, self._key_map(queries, state.position))

  def _project(self, x, state, num_valid):
    """Tokens and queries [B, H, T, ...], the output gate [B, T, D] or None, and what was seen."""
    config = self.config
    conv, position = state.conv, state.position
    if config.conv_width:
      x, conv = self.conv(x, conv, num_valid)
    dim = config.model_dim
    ends = [dim, 2 * dim, 3 * dim, (3 + config.output_gate) * dim]
    k, v, q, gate, logits = jnp.split(self.projection(x), ends, axis=-1)
    k, v, q = (self._heads(part) for part in (k, v, q))
    keys, queries = self._key_map(k, position), self._key_map(q, position)
    keys = keys * config.head_dim**-0.5 if config.keys == 'rotary' else keys
    values = unit_norm(v) if config.unit_values else v
    gates = self._gates(logits, state.memory.count)
    if position is not None:
      kept = x.shape[1] if num_valid is None else num_valid
      position = (position + kept).astype(jnp.int32)
    state = MixerState(conv, position, state.memory)
    return Tokens(keys, values, gates), queries, gate if config.output_gate else None, state

  def _heads(self, x):
    """[B, T, D] to [B, H, T, K] in the dtype of the memory."""
    config = self.config
    x = x.reshape((*x.shape[:2], config.num_heads, config.head_dim))
    return jnp.swapaxes(x, 1, 2).astype(config.state_dtype)

  def _key_map(self, x, position):
    match self.config.keys:
      case 'unit':
        return unit_norm(x)
      case 'silu_unit':
        return unit_norm(jax.nn.silu(x))
      case 'elu':
        return (1 + jax.nn.elu(x)) * self.config.head_dim**-0.5
      case _:
        return jnp.swapaxes(rotate(jnp.swapaxes(x, 1, 2), position), 1, 2)

  def _gates(self, logits, phase) -> Gates:
    """Gates [B, H, T] of tokens whose first is `phase` tokens behind the chunk's start."""
    config, dtype = self.config, self.config.state_dtype
    batch, length, _ = logits.shape
    names = _decided_gates(config)
    made = {}
    if names:
      logits = logits.reshape((batch, length, len(names), config.num_heads)).astype(dtype)
      logits = jnp.transpose(logits, (2, 0, 3, 1)) + self.gate_biases[...][:, None, :, None]
      made = dict(zip(names, logits, strict=True))
    zeros = jnp.zeros((batch, config.num_heads, length), dtype)
    rate = zeros + 1 if config.rate_gate == 'one' else jax.nn.sigmoid(made['rate'])
    if config.rate_gate == 'position':
      place = (phase + jnp.arange(length)) % config.chunk_size
      part = jnp.maximum(1 / (1 + place).astype(dtype) + self.rate_offsets[...][place], 0)
      rate *= part[None, None] / config.head_dim
    momentum = log_gate(made['momentum']) if config.rule.momentum else zeros
    return Gates(config.rate_scale * rate, zeros + self._log_retention(made), momentum)

  def _log_retention(self, made):
    config = self.config
    if not config.rule.retention:
      return jnp.zeros((1, 1, 1), config.state_dtype)
    if config.retention_gate == 'sigmoid':
      return log_gate(made['retention'])
    if config.retention_gate == 'fixed':
      heads = [math.log1p(-(2.0 ** (-5 - head))) for head in range(config.num_heads)]
      return jnp.asarray(heads, config.state_dtype)[None, :, None]
    speed = jnp.exp(self.log_retention_rates[...])[None, :, None]
    return bounded_log_gate(-speed * jax.nn.softplus(made['retention']))

  def _output(self, out, gate):
    """Norm per head, gate and projection: [B, H, T, K] to [B, T, D]."""
    out = rms_norm(out, self.output_scale[...])
    out = jnp.swapaxes(out, 1, 2).reshape((out.shape[0], out.shape[2], self.config.model_dim))
    out = out.astype(self.config.dtype)
    return self.output(out if gate is None else out * jax.nn.silu(gate))

  def level_infos(self) -> list[LevelInfo]:
    """The memory, for tables."""
    config = self.config
    shapes = config.network.shapes(config.head_dim, config.head_dim)
    size = config.num_heads * sum(rows * columns for rows, columns in shapes.values())
    transfer = 'weights, initial state' if config.learned_start else 'weights'
    objective = config.written_objective.name
    return [
      LevelInfo('memory', config.period, 'token', objective, config.rule.text, size, transfer)
    ]

  def level_states(self, state: MixerState) -> list[Any]:
    """The states of the levels of `level_infos`."""
    return [state.memory]


def _decided_gates(config: MemoryConfig) -> list[str]:
  """The gates that x decides, in the order of the projection."""
  decided = {
    'rate': config.rate_gate != 'one',
    'retention': config.rule.retention and config.retention_gate != 'fixed',
    'momentum': config.rule.momentum,
  }
  return [name for name, is_decided in decided.items() if is_decided]


def _initial_gate_biases(config: MemoryConfig) -> dict[str, jax.Array]:
  """Initial logits [H] of the gates that x decides."""
  heads = config.num_heads
  steps = jnp.logspace(-3, -1, heads)
  by_softplus = steps + jnp.log(-jnp.expm1(-steps))  # The inverse of softplus.
  biases = {
    'rate': jnp.full((heads,), config.rate_bias),
    'retention': by_softplus if config.retention_gate == 'softplus' else horizon_logits(heads),
    'momentum': jnp.ones((heads,)),
  }
  return {name: biases[name] for name in _decided_gates(config)}
