"""A selective state space: a Hebbian memory, diagonal in time, that x tells what to keep."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from nlx import core
from nlx.levels import LevelInfo
from nlx.memories.modules import CausalConv, Projection


@dataclass(frozen=True)
class SelectiveScanConfig:
  """Shape of a selective scan.

  Attributes:
    model_dim: D.
    expansion: E / D, where E is how many channels there are.
    state_dim: N, numbers that each channel keeps.
    rate_rank: Rank of the projection that makes rates; D / 16, rounded up, if None.
    conv_width: Taps of the causal convolution before the scan.
    scan_chunk: Tokens whose states are in memory at a time; a matter of speed and memory alone.
    dtype: Of matrix products; the recurrence is computed in float32 at least.
    param_dtype: Of parameters.
  """

  model_dim: int
  expansion: int = 2
  state_dim: int = 16
  rate_rank: int | None = None
  conv_width: int = 4
  scan_chunk: int = 64
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def __post_init__(self):
    for name in ('model_dim', 'expansion', 'state_dim', 'conv_width'):
      core.check_positive(name, getattr(self, name))
    core.check_positive('scan_chunk', self.scan_chunk, 'token')
    if self.rate_rank is not None:
      core.check_positive('rate_rank', self.rate_rank)

  @property
  def channels(self) -> int:
    """E."""
    return self.expansion * self.model_dim

  @property
  def rank(self) -> int:
    """Rank of the projection that makes rates."""
    return self.rate_rank or -(-self.model_dim // 16)

  @property
  def alignment(self) -> int:
    """Tokens between the boundaries at which reading in parallel may begin."""
    return 1

  @property
  def grows(self) -> bool:
    """Whether the state grows with the length of a stream."""
    return False

  def make(self, *, rngs: nnx.Rngs) -> 'SelectiveScan':
    """The layer, with random parameters."""
    return SelectiveScan(self, rngs=rngs)


class SelectiveScanState(NamedTuple):
  """Fast state of a selective scan."""

  conv: jax.Array  # [B, conv_width - 1, E] last inputs of the convolution
  hidden: jax.Array  # [B, E, N] float32 at least


class _Tokens(NamedTuple):
  """What the recurrence reads, in the dtype of its state."""

  rates: jax.Array  # [B, T, E], 0 for what is not to leave a trace
  inputs: jax.Array  # [B, T, E]
  keys: jax.Array  # [B, T, N], B of the paper
  queries: jax.Array  # [B, T, N], C of the paper


class SelectiveScan(nnx.Module):
  """The sequence layer of Mamba, [B, T, D] to [B, T, D].

  Each channel e keeps N numbers, a Hebbian memory from keys B_t to its input, which decay at a rate
  that x decides:

      h_t = exp(Delta_t A) h_{t-1} + Delta_t B_t x_t    y_t = (C_t h_t + skip x_t) silu(z_t)

  with A = -exp(`log_decays`) [E, N] and Delta = softplus(W x + b) [E]. Ours: the convolution has no
  bias and starts near the identity, as everywhere in this package.

  Args:
    config: Shape.
    rngs: Random streams; 'params' is used.

  References:
    Gu and Dao, Mamba, arXiv 2312.00752, Algorithm 2, Secs. 3.4 and 3.6.
  """

  def __init__(self, config: SelectiveScanConfig, *, rngs: nnx.Rngs):
    self.config = config
    dim, channels, rank = config.model_dim, config.channels, config.rank
    dtypes = {'dtype': config.dtype, 'param_dtype': config.param_dtype}
    self.projection = Projection(dim, 2 * channels, rngs=rngs, **dtypes)
    self.conv = CausalConv(channels, config.conv_width, rngs=rngs, param_dtype=config.param_dtype)
    self.selection = Projection(channels, rank + 2 * config.state_dim, rngs=rngs, **dtypes)
    # The spread of a uniform distribution between -+1 / sqrt(rank).
    self.rates = Projection(rank, channels, rngs=rngs, scale=3**-0.5, **dtypes)
    self.output = Projection(channels, dim, rngs=rngs, **dtypes)
    self.rate_biases = nnx.Param(_initial_rate_biases(rngs.params(), channels, config.param_dtype))
    decays = jnp.log(jnp.arange(1, config.state_dim + 1, dtype=config.param_dtype))
    self.log_decays = nnx.Param(jnp.tile(decays[None], (channels, 1)))
    self.skip = nnx.Param(jnp.ones((channels,), config.param_dtype))

  def init_state(self, batch_size: int, max_length: int | None = None) -> SelectiveScanState:
    """Zeros: nothing was seen; `max_length` does not matter."""
    del max_length
    config = self.config
    shape = (batch_size, config.channels, config.state_dim)
    conv = self.conv.init_state(batch_size, config.dtype)
    return SelectiveScanState(conv, jnp.zeros(shape, self._wide()))

  def __call__(
    self, x: jax.Array, state: SelectiveScanState, num_valid: jax.Array | None = None
  ) -> tuple[jax.Array, SelectiveScanState]:
    """Reads x [B, T, D] after `state`.

    Args:
      x: Inputs.
      state: From `init_state` or an earlier call.
      num_valid: How many of the T tokens the new state keeps; all if None.

    Returns:
      Outputs [B, T, D] and the new state.
    """
    inputs, gate = jnp.split(self.projection(x), 2, axis=-1)
    inputs, conv = self.conv(inputs, state.conv, num_valid)
    tokens = self._tokens(jax.nn.silu(inputs), num_valid)
    read, hidden = self._scan(tokens, state.hidden)
    read += self.skip[...].astype(read.dtype)[None, None] * tokens.inputs
    out = self.output(read.astype(gate.dtype) * jax.nn.silu(gate))
    return out, SelectiveScanState(conv, hidden)

  def step(self, x: jax.Array, state: SelectiveScanState) -> tuple[jax.Array, SelectiveScanState]:
    """Reads one token x [B, 1, D]: a scan of one token is the plain recurrence."""
    return self(x, state)

  def level_infos(self) -> list[LevelInfo]:
    """None: nothing descends a loss in context."""
    return []

  def level_states(self, state: SelectiveScanState) -> list[Any]:
    """None."""
    del state
    return []

  def _wide(self):
    return jnp.promote_types(self.config.dtype, jnp.float32)

  def _tokens(self, inputs, num_valid) -> _Tokens:
    config, wide = self.config, self._wide()
    ends = (config.rank, config.rank + config.state_dim)
    low, keys, queries = jnp.split(self.selection(inputs), ends, axis=-1)
    logits = self.rates(low).astype(wide) + self.rate_biases[...].astype(wide)[None, None]
    rates = jax.nn.softplus(logits)
    if num_valid is not None:  # At rate 0 nothing decays and nothing is written.
      valid = jnp.arange(inputs.shape[1]) < num_valid
      rates = jnp.where(valid[None, :, None], rates, 0)
    return _Tokens(rates, *(x.astype(wide) for x in (inputs, keys, queries)))

  def _scan(self, tokens: _Tokens, hidden) -> tuple[jax.Array, jax.Array]:
    """C_t h_t [B, T, E] and the last h.

    Chunks are of equal size, so that padding, which has rate 0, is less than one token of each.
    """
    length = tokens.rates.shape[1]
    core.check_positive('T', length, 'token')
    count = math.ceil(length / self.config.scan_chunk)
    size = math.ceil(length / count)
    decays = -jnp.exp(self.log_decays[...].astype(hidden.dtype))

    def chunks(x):
      return core.split_time(
        jnp.pad(x, ((0, 0), (0, count * size - length), (0, 0))), size, axis=-2
      )

    def body(hidden, chunk):
      return _scan_chunk(decays, hidden, chunk)

    hidden, read = core.scan_chunks(body, hidden, jax.tree.map(chunks, tokens), remat=True)
    return core.join_time(read, axis=-2)[:, :length], hidden


def _scan_chunk(decays, hidden, chunk: _Tokens):
  """All states of one chunk, [B, C, E, N] each; returns the last and what is read [B, C, E].

  No state is divided by a product of decays, however small, so that a decay of 0 is no special
  case.
  """
  kept = jnp.exp(chunk.rates[..., None] * decays[None, None])
  written = (chunk.rates * chunk.inputs)[..., None] * chunk.keys[:, :, None]
  written = written.at[:, 0].add(kept[:, 0] * hidden)

  def then(first, second):
    return first[0] * second[0], second[0] * first[1] + second[1]

  _, states = jax.lax.associative_scan(then, (kept, written), axis=1)
  # A sum of products rather than a matrix product, which accelerators would round.
  return states[:, -1], jnp.sum(states * chunk.queries[:, :, None], axis=-1)


def _initial_rate_biases(key, channels, dtype):
  """Biases [E] whose softplus is log-uniform from 1e-3 to 1e-1."""
  rates = jnp.exp(jax.random.uniform(key, (channels,), dtype, math.log(1e-3), math.log(1e-1)))
  return rates + jnp.log(-jnp.expm1(-rates))  # The inverse of softplus.
