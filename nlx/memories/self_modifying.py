"""Self-modifying Titans: memories that generate their own keys, values, rates and targets."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from nlx import core
from nlx.levels import LevelInfo, PeriodicState
from nlx.memories import memory as memories
from nlx.memories.layer import layer
from nlx.memories.memory import Memory, Tokens
from nlx.memories.modules import CausalConv, Projection, horizon_logits, rms_norm, unit_norm
from nlx.memories.networks import Network, apply, init_weights, matrix, mlp
from nlx.memories.objectives import Objective, l2
from nlx.memories.rules import Gates, Rule, dgd, log_gate, mask_gates

ROLES = ('k', 'v', 'eta', 'alpha', 'q')
RATE_GATES = ('sigmoid', 'exponential')


@dataclass(frozen=True)
class SelfModifyingConfig:
  """Shape and rules of a self-modifying layer.

  Attributes:
    model_dim: D.
    num_heads: H; each head has width K = D / H.
    memory_hidden: F of every memory; 0 makes it a matrix, whose recurrence is linear in its state.
    chunk_size: Tokens between updates of `memory`.
    projection_chunk_size: Tokens between updates of the adaptive roles; a multiple of `chunk_size`.
    rule: Update rule of all memories.
    adaptive: The roles among 'k', 'v', 'eta', 'alpha', 'q' that are memories; the others are slow
      projections. The paper leaves q out: its ablation shows no gain.
    own_targets: Whether memories make their own targets of the values (Eq. 84); if not, the values
      are the targets.
    objective: What a write lowers. Under `dot_product()`, without retention and momentum, a matrix
      that makes its own targets follows states and counts, each token by its values: W gains
      eta' u k^T, with u = W v / ||W v||. A value of -k turns over what is stored for k, whatever
      eta' is above its norm; a value that no key writes to adds the same at every token.
    reads: 'token' or 'chunk', see `nlx.memories.layer`.
    rate_gate: 'sigmoid', eta in (0, 1), or 'exponential', so that the proximal rate of a unit key
      covers (0, 1), which tracking a state needs.
    rate_bias: Initial logit of the rate in the first head and in the last, evenly spaced between.
      Large ones overwrite what the key held: with DGD and an exponential gate, what is stored for
      it is multiplied by about 1 - 2 sigmoid(logit) at every token.
    conv_width: Taps of the causal convolution before the projections.
    remat: Whether the backward pass recomputes each projection chunk from its start.
    dtype: Of the slow matrix products. Memories are computed in at least float32.
    param_dtype: Of parameters.
  """

  model_dim: int
  num_heads: int
  memory_hidden: int
  chunk_size: int
  projection_chunk_size: int
  rule: Rule = dgd(momentum=True)
  adaptive: tuple[str, ...] = ('k', 'v', 'eta', 'alpha')
  own_targets: bool = True
  objective: Objective = l2()
  reads: str = 'token'
  rate_gate: str = 'sigmoid'
  rate_bias: tuple[float, float] = (0.0, 0.0)
  conv_width: int = 4
  remat: bool = False
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def __post_init__(self):
    for name in ('adaptive', 'rate_bias'):  # Hashable, if lists were given.
      object.__setattr__(self, name, tuple(getattr(self, name)))
    for name in ('model_dim', 'num_heads', 'chunk_size', 'conv_width'):
      core.check_positive(name, getattr(self, name))
    if not isinstance(self.memory_hidden, int) or self.memory_hidden < 0:
      raise ValueError(
        f'`memory_hidden` must be an integer of at least 0, got {self.memory_hidden!r}.'
      )
    core.check_divides('num_heads', self.num_heads, 'model_dim', self.model_dim)
    core.check_positive('projection_chunk_size', self.projection_chunk_size, 'token')
    core.check_divides(
      'chunk_size', self.chunk_size, 'projection_chunk_size', self.projection_chunk_size
    )
    core.check_choice('reads', self.reads, ('token', 'chunk'))
    core.check_choice('rate_gate', self.rate_gate, RATE_GATES)
    for role in self.adaptive:
      core.check_choice('adaptive', role, ROLES)
    if len(set(self.adaptive)) < len(self.adaptive):
      raise ValueError(f'`adaptive` must name each role once, got {self.adaptive!r}.')
    memories.check_rule(self.rule, self.network, self.objective)

  @property
  def head_dim(self) -> int:
    """K, the width of a head."""
    return self.model_dim // self.num_heads

  @property
  def state_dtype(self) -> Any:
    """Of fast state and gates."""
    return jnp.promote_types(self.param_dtype, jnp.float32)

  @property
  def network(self) -> Network:
    """The map that every memory of the layer is."""
    return mlp(self.memory_hidden) if self.memory_hidden else matrix()

  @property
  def alignment(self) -> int:
    """Tokens between the boundaries at which reading in parallel may begin."""
    return self.projection_chunk_size

  @property
  def grows(self) -> bool:
    """Whether the state grows with the length of a stream."""
    return False

  def make(self, *, rngs: nnx.Rngs) -> 'SelfModifying':
    """The layer, with random parameters."""
    return SelfModifying(self, rngs=rngs)


class SelfModifyingState(NamedTuple):
  """Fast state of a self-modifying layer."""

  conv: jax.Array  # [B, conv_width - 1, D] last inputs
  roles: PeriodicState | None  # the adaptive roles, matrices [B, H, R, out, in]; None without any
  memory: PeriodicState  # the main memory, matrices [B, H, out, in]


class _Generated(NamedTuple):
  """What the roles make of a chunk."""

  keys: jax.Array  # [B, H, C, K] unit norm
  values: jax.Array  # [B, H, C, K] unit norm
  queries: jax.Array  # [B, H, C, K] unit norm
  gates: Gates  # each [B, H, C]


class SelfModifying(nnx.Module):
  """Self-modifying Titans, a sequence layer [B, T, D] to [B, T, D].

  Keys, values, the inner rate and the retention of every token are the outputs of memories; all
  memories, these included, are updated on targets that they generate themselves:

      k_t = M_k(x_t)   v_t = M_v(x_t)   eta_t = M_eta(x_t)   alpha_t = M_alpha(x_t)
      o_t = M_memory(q_t)
      M_r <- one step of the rule on the objective of M_r(k_t) and M_r(v_t), for every role r

  Everything generated comes from the state at the last chunk boundary. Ours: slow projections of x
  to heads precede the memories, keys, queries, values and targets have unit norm, eta and alpha are
  scalars per head and token through sigmoid(w . M(x) + b), mu is a learned scalar per head, and the
  output passes a norm per head, a SiLU gate and a projection. With W1 = 0 and no updates the layer
  is Titans with static projections. Roles that are matrices, which have no skip connection, begin
  as the identity, and so as static projections.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 83-93.
  """

  def __init__(self, config: SelfModifyingConfig, *, rngs: nnx.Rngs):
    self.config = config
    dim, heads, width = config.model_dim, config.num_heads, config.head_dim
    dtypes = {'dtype': config.dtype, 'param_dtype': config.param_dtype}
    self.conv = CausalConv(dim, config.conv_width, rngs=rngs, param_dtype=config.param_dtype)
    self.projection = Projection(dim, (len(ROLES) + 1) * dim, rngs=rngs, **dtypes)
    self.output = Projection(dim, dim, rngs=rngs, **dtypes)
    self.output_scale = nnx.Param(jnp.ones((width,), config.param_dtype))
    leading = (heads, len(config.adaptive))
    self.role_weights = (
      self._initial(rngs, leading, config, identity=True) if config.adaptive else None
    )
    self.memory_weights = self._initial(rngs, (heads,), config)
    self.gate_weights = nnx.Param(
      0.5 / width**0.5 * jax.random.normal(rngs.params(), (2, heads, width), config.param_dtype)
    )
    biases = jnp.stack([jnp.linspace(*config.rate_bias, heads), horizon_logits(heads)])
    self.gate_biases = nnx.Param(biases.astype(config.param_dtype))  # Of rates and retentions.
    self.momentum_logits = nnx.Param(jnp.full((heads,), 1.0, config.param_dtype))

  @staticmethod
  def _initial(rngs, leading, config, *, identity=False):
    """Random weights of memories [*leading, out, in]; matrices may begin as the identity."""
    width, dtype = config.head_dim, config.param_dtype
    weights = init_weights(
      config.network, rngs.params(), width, width, leading, scale=0.5, dtype=dtype
    )
    if identity and config.network.linear:
      weights = {'w': jnp.broadcast_to(jnp.eye(width, dtype=dtype), weights['w'].shape)}
    return nnx.Dict({name: nnx.Param(weight) for name, weight in weights.items()})

  def init_state(self, batch_size: int, max_length: int | None = None) -> SelfModifyingState:
    """The learned initial state, a copy per sequence; `max_length` does not matter to a memory."""
    del max_length

    def copies(weights):
      return {
        name: jnp.broadcast_to(weight[...], (batch_size, *weight.shape))
        for name, weight in weights.items()
      }

    roles, main = self._levels()
    return SelfModifyingState(
      conv=self.conv.init_state(batch_size, self.config.dtype),
      roles=roles.init(copies(self.role_weights)) if self.role_weights is not None else None,
      memory=main.level.init(copies(self.memory_weights)),
    )

  def _levels(self):
    """The adaptive roles as a level, and the main memory as a layer."""
    config = self.config

    def target(weights, values):
      return unit_norm(apply(config.network, weights, values)) if config.own_targets else values

    widths = (config.head_dim, config.head_dim)
    roles = memories.level(
      Memory(config.network, config.rule, config.objective, target),
      config.projection_chunk_size,
      widths,
    )
    main = layer(
      config.network,
      config.rule,
      config.chunk_size,
      target=target,
      objective=config.objective,
      reads=config.reads,
      widths=widths,
    )
    return roles, main

  def __call__(
    self, x: jax.Array, state: SelfModifyingState, num_valid: jax.Array | None = None
  ) -> tuple[jax.Array, SelfModifyingState]:
    """Reads a stretch of tokens that begins at a boundary of both chunk sizes.

    Args:
      x: [B, T, D].
      state: Fast state at the boundary.
      num_valid: How many of the T tokens count, a scalar; all if None.

    Returns:
      Outputs [B, T, D] and the state after the last valid token.
    """
    core.check_positive('T', x.shape[1], 'token')
    size = self.config.projection_chunk_size
    inputs, gate, conv = self._project(x, state.conv, num_valid)
    whole = x.shape[1] // size * size

    def one_chunk(carry, chunk):
      begin, inputs = chunk
      valid = None if num_valid is None else jnp.clip(num_valid - begin, 0, size)
      out, carry = self._chunk(inputs, carry, valid, ends=True)
      return carry, out

    carry, pieces = (state.roles, state.memory), []
    if whole:
      chunks = core.split_time(inputs[..., :whole, :], size, axis=-2)
      carry, out = core.scan_chunks(
        one_chunk, carry, (jnp.arange(0, whole, size), chunks), remat=self.config.remat
      )
      pieces.append(core.join_time(out, axis=-2))
    if whole < x.shape[1]:
      valid = None if num_valid is None else jnp.maximum(num_valid - whole, 0)
      out, carry = self._chunk(inputs[..., whole:, :], carry, valid, ends=False)
      pieces.append(out)
    out = pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=-2)
    return self._output(out, gate), SelfModifyingState(conv, *carry)

  def step(self, x: jax.Array, state: SelfModifyingState) -> tuple[jax.Array, SelfModifyingState]:
    """Reads one token x [B, 1, D] anywhere in a chunk."""
    inputs, gate, conv = self._project(x, state.conv, None)
    roles, main = self._levels()
    generated = self._generate(inputs, state.roles)
    tokens = Tokens(generated.keys, generated.values, generated.gates)
    out, memory = main.step(state.memory, tokens, generated.queries)
    role_state = state.roles
    if role_state is not None:
      role_state = roles.update(role_state, _for_roles(tokens))
    return self._output(out, gate), SelfModifyingState(conv, role_state, memory)

  def gates(self, x: jax.Array, state: SelfModifyingState) -> list[Gates | None]:
    """The gates [B, H, T] with which x is written, for traces.

    Args:
      x: [B, T, D], whole projection chunks from a boundary, or tokens of one chunk.
      state: Fast state before them.

    Returns:
      Those of the memory; None for the adaptive roles, which are written with the same.
    """
    inputs, _, _ = self._project(x, state.conv, None)
    size = min(self.config.projection_chunk_size, x.shape[1])

    def one_chunk(carry, inputs):
      generated = self._generate(inputs, carry[0])
      _, carry = self._chunk(inputs, carry, None, ends=True)
      return carry, generated.gates

    _, gates = core.scan_chunks(
      one_chunk, (state.roles, state.memory), core.split_time(inputs, size, axis=-2)
    )
    joined = jax.tree.map(lambda gate: core.join_time(gate, axis=-1), gates)
    return [joined, *([] if state.roles is None else [None])]

  def _project(self, x, conv, num_valid):
    """Slow projections: inputs of all roles [B, H, len(ROLES), T, K], output gate [B, T, D]."""
    config = self.config
    x, conv = self.conv(x, conv, num_valid)
    projected = core.constrain(self.projection(x), {-1: None})
    inputs, gate = jnp.split(projected, [len(ROLES) * config.model_dim], axis=-1)
    inputs = inputs.reshape((*x.shape[:2], len(ROLES), config.num_heads, config.head_dim))
    return jnp.transpose(inputs, (0, 3, 2, 1, 4)).astype(config.state_dtype), gate, conv

  def _generate(self, inputs, roles) -> _Generated:
    """What each role makes of its inputs [B, H, len(ROLES), C, K], by the held state."""
    config = self.config
    made = {role: inputs[:, :, i] for i, role in enumerate(ROLES)}
    if roles is not None:
      index = jnp.array([ROLES.index(role) for role in config.adaptive])
      outputs = apply(config.network, memories.weights_of(roles.held), inputs[:, :, index])
      made |= {role: outputs[:, :, i] for i, role in enumerate(config.adaptive)}
    weights, biases, logits = (
      parameter[...].astype(config.state_dtype)
      for parameter in (self.gate_weights, self.gate_biases, self.momentum_logits)
    )
    rate, retention = (
      jnp.einsum('bhck,hk->bhc', made[role], weights[i]) + biases[i][None, :, None]
      for i, role in enumerate(('eta', 'alpha'))
    )
    exponential = config.rate_gate == 'exponential'
    rate = jnp.exp(jnp.minimum(rate, 8.0)) if exponential else jax.nn.sigmoid(rate)
    momentum = log_gate(logits)[None, :, None]
    gates = Gates(rate, log_gate(retention), jnp.broadcast_to(momentum, rate.shape))
    return _Generated(unit_norm(made['k']), unit_norm(made['v']), unit_norm(made['q']), gates)

  def _chunk(self, inputs, carry, num_valid, *, ends: bool):
    """One projection chunk: inputs [B, H, len(ROLES), C, K] to outputs [B, H, C, K]."""
    role_state, memory = carry
    roles, main = self._levels()
    generated = self._generate(inputs, role_state)
    tokens = Tokens(generated.keys, generated.values, generated.gates)
    out, memory = main.unroll(memory, tokens, generated.queries, num_valid)
    if role_state is not None:
      ticks = inputs.shape[-2]
      if num_valid is not None:
        valid = jnp.arange(ticks) < num_valid
        tokens, ticks = tokens._replace(gates=mask_gates(tokens.gates, valid)), num_valid
      role_state = roles.gather(role_state, _for_roles(tokens), ticks)
      if ends and num_valid is None:
        role_state = roles.flush(role_state)
      elif ends:
        due = role_state.count >= self.config.projection_chunk_size
        role_state = jax.lax.cond(due, roles.flush, lambda state: state, role_state)
    return out, (role_state, memory)

  def _output(self, out, gate):
    """Norm per head, gate and projection: [B, H, T, K] to [B, T, D]."""
    out = rms_norm(out, self.output_scale[...])
    out = jnp.transpose(out, (0, 2, 1, 3)).reshape(gate.shape)
    return self.output(out.astype(gate.dtype) * jax.nn.silu(gate))

  def level_infos(self) -> list[LevelInfo]:
    """The main memory and the adaptive roles, for tables."""
    config = self.config

    shapes = config.network.shapes(config.head_dim, config.head_dim)
    size = config.num_heads * sum(rows * columns for rows, columns in shapes.values())
    objective = config.objective.name + (' to own values' if config.own_targets else '')
    like = LevelInfo('memory', config.chunk_size, 'token', objective, config.rule.text, size, '')
    infos = [like._replace(transfer='weights, initial state')]
    if config.adaptive:
      roles = like._replace(
        name='roles ' + ' '.join(config.adaptive),
        period=config.projection_chunk_size,
        parameters=len(config.adaptive) * size,
        transfer='generation, initial state',
      )
      infos.append(roles)
    return infos

  def level_states(self, state: SelfModifyingState) -> list[Any]:
    """The states of the levels of `level_infos`."""
    return [state.memory] if state.roles is None else [state.memory, state.roles]


def _for_roles(tokens: Tokens) -> Tokens:
  """Adds the role axis [B, H, 1, C, ...]: all roles write the same keys with the same gates."""
  return jax.tree.map(lambda x: x[:, :, None], tokens)
