"""Mixers made of mixers: one after another, two beside each other, and an MLP as one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nlx import core
from nlx.levels import LevelInfo
from nlx.memories.modules import Projection, RMSNorm, swiglu
from nlx.models.config import MixerConfig
from nlx.models.description import gates_of


@dataclass(frozen=True)
class FeedForwardConfig:
  """A SwiGLU MLP in the place of a mixer, where a layer has more of them than its last.

  Attributes:
    model_dim: D.
    hidden: F.
    dtype: Of matrix products.
    param_dtype: Of parameters.
  """

  model_dim: int
  hidden: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  alignment = 1
  grows = False

  def __post_init__(self):
    for name in ('model_dim', 'hidden'):
      core.check_positive(name, getattr(self, name))

  def make(self, *, rngs: nnx.Rngs) -> 'FeedForward':
    """The MLP, with random parameters."""
    return FeedForward(self, rngs=rngs)


class FeedForward(nnx.Module):
  """A SwiGLU MLP with the interface of a mixer; its state is empty."""

  def __init__(self, config: FeedForwardConfig, *, rngs: nnx.Rngs):
    dtypes = {'dtype': config.dtype, 'param_dtype': config.param_dtype}
    self.up = Projection(config.model_dim, 2 * config.hidden, rngs=rngs, **dtypes)
    self.down = Projection(config.hidden, config.model_dim, rngs=rngs, **dtypes)

  def init_state(self, batch_size: int, max_length: int | None = None) -> tuple:
    """Nothing."""
    del batch_size, max_length
    return ()

  def __call__(self, x: jax.Array, state: tuple, num_valid: Any = None) -> tuple[jax.Array, tuple]:
    """[B, T, D] to [B, T, D], token by token."""
    del num_valid
    return swiglu(x, self.up, self.down), state

  step = __call__

  def level_infos(self) -> list[LevelInfo]:
    """None: nothing learns in context."""
    return []

  def level_states(self, state: tuple) -> list[Any]:
    """None."""
    del state
    return []


@dataclass(frozen=True)
class SeriesConfig:
  """Mixers one after another, each x + mixer(norm(x)).

  Attributes:
    parts: The mixers, first to last.
    norm_epsilon: Under the root of their norms.
  """

  parts: tuple[MixerConfig, ...]
  norm_epsilon: float = 1e-6
  residual = True  # A block neither norms its input nor adds it.

  def __post_init__(self):
    object.__setattr__(self, 'parts', tuple(self.parts))  # Hashable, if a list was given.
    _check_parts(self.parts, 1)

  @property
  def model_dim(self) -> int:
    """D."""
    return self.parts[0].model_dim

  @property
  def param_dtype(self) -> Any:
    """Of parameters and fast state."""
    return self.parts[0].param_dtype

  @property
  def alignment(self) -> int:
    """Tokens between the boundaries at which all parts may begin."""
    return max(part.alignment for part in self.parts)

  @property
  def grows(self) -> bool:
    """Whether the state of any part grows."""
    return any(part.grows for part in self.parts)

  def make(self, *, rngs: nnx.Rngs) -> 'Series':
    """The layer, with random parameters."""
    return Series(self, rngs=rngs)


class Series(nnx.Module):
  """Several mixers as one, from a residual stream [B, T, D] to what it is after all of them."""

  def __init__(self, config: SeriesConfig, *, rngs: nnx.Rngs):
    self.parts = nnx.List([part.make(rngs=rngs) for part in config.parts])
    norm = {'epsilon': config.norm_epsilon, 'dtype': config.param_dtype}
    self.norms = nnx.List([RMSNorm(config.model_dim, **norm) for _ in config.parts])

  def init_state(self, batch_size: int, max_length: int | None = None) -> tuple:
    """The states of all parts."""
    return tuple(part.init_state(batch_size, max_length) for part in self.parts)

  def __call__(
    self, x: jax.Array, state: tuple, num_valid: jax.Array | None = None
  ) -> tuple[jax.Array, tuple]:
    """Reads from a boundary: the stream x [B, T, D] before and after all parts."""
    return self._through(x, state, lambda part, *args: part(*args, num_valid))

  def step(self, x: jax.Array, state: tuple) -> tuple[jax.Array, tuple]:
    """Reads one token x [B, 1, D] anywhere in a chunk."""
    return self._through(x, state, lambda part, *args: part.step(*args))

  def gates(self, x: jax.Array, state: tuple) -> list[Any]:
    """The gates with which the levels of all parts are written; None for those without."""
    found = []

    def mix(part, x, state):
      found.extend(gates_of(part, x, state))
      return part(x, state)

    self._through(x, state, mix)
    return found

  def _through(self, x, state, mix):
    states = []
    for norm, part, part_state in zip(self.norms, self.parts, state, strict=True):
      out, part_state = mix(part, norm(x), part_state)
      x += out
      states.append(part_state)
    return x, tuple(states)

  def level_infos(self) -> list[LevelInfo]:
    """The levels of all parts."""
    return _level_infos(self.parts)

  def level_states(self, state: tuple) -> list[Any]:
    """The states of these levels."""
    return _level_states(self.parts, state)


@dataclass(frozen=True)
class GatedConfig:
  """Two mixers beside each other, of which one gates the other.

  Attributes:
    value: The mixer that is gated.
    gate: The mixer that gates it.
  """

  value: MixerConfig
  gate: MixerConfig

  def __post_init__(self):
    _check_parts((self.value, self.gate), 2)

  @property
  def model_dim(self) -> int:
    """D."""
    return self.value.model_dim

  @property
  def param_dtype(self) -> Any:
    """Of parameters and fast state."""
    return self.value.param_dtype

  @property
  def alignment(self) -> int:
    """Tokens between the boundaries at which both may begin."""
    return max(self.value.alignment, self.gate.alignment)

  @property
  def grows(self) -> bool:
    """Whether the state of either grows."""
    return self.value.grows or self.gate.grows

  def make(self, *, rngs: nnx.Rngs) -> 'Gated':
    """The layer, with random parameters."""
    return Gated(self, rngs=rngs)


class Gated(nnx.Module):
  """norm(value(x)) * sigmoid(norm(gate(x))), [B, T, D] to [B, T, D].

  References:
    Behrouz et al., Titans, arXiv 2501.00663, Sec. 4.2 (memory as a gate).
  """

  def __init__(self, config: GatedConfig, *, rngs: nnx.Rngs):
    self.value, self.gate = config.value.make(rngs=rngs), config.gate.make(rngs=rngs)
    self.value_norm = RMSNorm(config.model_dim, dtype=config.param_dtype)
    self.gate_norm = RMSNorm(config.model_dim, dtype=config.param_dtype)

  def init_state(self, batch_size: int, max_length: int | None = None) -> tuple:
    """The states of both."""
    return tuple(p.init_state(batch_size, max_length) for p in (self.value, self.gate))

  def __call__(
    self, x: jax.Array, state: tuple, num_valid: jax.Array | None = None
  ) -> tuple[jax.Array, tuple]:
    """Reads x [B, T, D] from a boundary."""
    value, first = self.value(x, state[0], num_valid)
    gate, second = self.gate(x, state[1], num_valid)
    return self._combine(value, gate), (first, second)

  def step(self, x: jax.Array, state: tuple) -> tuple[jax.Array, tuple]:
    """Reads one token x [B, 1, D] anywhere in a chunk."""
    value, first = self.value.step(x, state[0])
    gate, second = self.gate.step(x, state[1])
    return self._combine(value, gate), (first, second)

  def gates(self, x: jax.Array, state: tuple) -> list[Any]:
    """The gates with which the levels of both are written; None for those without."""
    parts = zip((self.value, self.gate), state, strict=True)
    return [gates for part, part_state in parts for gates in gates_of(part, x, part_state)]

  def _combine(self, value, gate):
    return self.value_norm(value) * jax.nn.sigmoid(self.gate_norm(gate))

  def level_infos(self) -> list[LevelInfo]:
    """The levels of both."""
    return _level_infos((self.value, self.gate))

  def level_states(self, state: tuple) -> list[Any]:
    """The states of these levels."""
    return _level_states((self.value, self.gate), state)


def _level_infos(parts: Sequence[Any]) -> list[LevelInfo]:
  """The levels of all parts; a name that returns is numbered."""
  infos: list[LevelInfo] = []
  for info in (info for part in parts for info in part.level_infos()):
    stem = _stem(info)  # A part may be of several mixers and have numbers of its own.
    times = sum(_stem(other) == stem for other in infos)
    infos.append(info._replace(name=f'{stem} #{times + 1}' if times else stem))
  return infos


def _stem(info: LevelInfo) -> str:
  return info.name.split(' #')[0]


def _level_states(parts, states) -> list[Any]:
  return [
    one for part, state in zip(parts, states, strict=True) for one in part.level_states(state)
  ]


def _check_parts(parts: Sequence[MixerConfig], least: int) -> None:
  """Raises ValueError unless the mixers fit together."""
  if len(parts) < least:
    raise ValueError(f'`parts` must be at least {least} mixers, got {len(parts)}.')
  if any(getattr(part, 'residual', False) for part in parts):
    raise ValueError('`parts` must not be series: give their parts instead.')
  widths = {part.model_dim for part in parts}
  if len(widths) > 1:
    raise ValueError(f'mixers must have one `model_dim`, got {sorted(widths)}.')
  largest = max(part.alignment for part in parts)
  for part in parts:
    core.check_divides('chunk of a mixer', part.alignment, 'largest chunk', largest)
