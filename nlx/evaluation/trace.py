"""What happens inside a model while it reads a text: surprise, movement of levels, inner rates."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from nlx import core
from nlx.evaluation.likelihood import check_ids
from nlx.levels import PeriodicState
from nlx.memories.memory import MemoryState, weights_of
from nlx.models import LanguageModel
from nlx.models.language_model import Reading
from nlx.models.losses import token_losses
from nlx.models.streaming import read_weights
from nlx.optim import release

# Tokens between two looks at the levels of a model whose chunks are shorter, at least.
MIN_STRETCH = 16


class Trace(NamedTuple):
  """What happened while a text of T tokens was read.

  Attributes:
    surprise: [T] nats, -log p(token | those before it); NaN for the first, which nothing predicts.
    ends: [n] tokens read at each look at the levels, whole base chunks apart.
    size: For each level its root mean square over layers at every look [n].
    moved: For each level the root mean square of its distance from where it began [n]. Blocks that
      learn in context show at a look what the tokens before it were read with.
    rates: For each memory whose writes are gated the inner learning rate of every token [L, H, T].
    retentions: What every token left of what was held before [L, H, T], 1 without retention.
  """

  surprise: np.ndarray
  ends: np.ndarray
  size: dict[str, np.ndarray]
  moved: dict[str, np.ndarray]
  rates: dict[str, np.ndarray]
  retentions: dict[str, np.ndarray]


def trace(model: LanguageModel, tokens: ArrayLike) -> Trace:
  """Reads a text from fresh state and records where the model was surprised and what it wrote.

  Args:
    model: A language model.
    tokens: [T] ids, at least two.

  Returns:
    The trace. A model without levels that move in a text has its surprise only.

  Raises:
    ValueError: If the tokens have the wrong shape or are none of the vocabulary.

  Example:
    >>> import nlx
    >>> from flax import nnx
    >>> config = nlx.models.deltanet(
    ...   vocab_size=16, model_dim=8, num_layers=1, num_heads=2, chunk_size=4
    ... )
    >>> model = nlx.models.create(config, rngs=nnx.Rngs(0))
    >>> found = nlx.evaluation.trace(model, [3, 1, 4, 1, 5, 9, 2, 6] * 4)
    >>> found.surprise.shape, found.ends.tolist(), found.rates['memory'].shape
    ((32,), [16, 32], (1, 2, 32))

  References:
    Behrouz et al., Titans, arXiv 2501.00663, Sec. 3.1 (surprise).
  """
  tokens = _checked(tokens, model.config.vocab_size)
  length, size = len(tokens), _stretch(model)
  padded = np.pad(tokens, (0, -length % size))
  looks = _looks(*nnx.split(model), size, jnp.asarray(padded)[None])
  losses, sizes, moved, gates = jax.device_get(looks)
  names = [info.name for info in model.level_infos()[:-1]]  # All but the slow weights.
  ends = np.arange(size, length + 1, size)
  per_level = lambda found: dict(zip(names, found[: len(ends)].T, strict=True))  # noqa: E731
  mixers = zip(names, gates, strict=False)  # Blocks that learn in context come after them.
  gates = {name: found for name, found in mixers if found is not None}
  return Trace(
    surprise=np.concatenate([[np.nan], losses.reshape(-1)[: length - 1]]),
    ends=ends,
    size=per_level(sizes),
    moved=per_level(moved),
    rates={name: _along_time(gate.rate, length) for name, gate in gates.items()},
    retentions={
      name: np.exp(_along_time(gate.log_retention, length)) for name, gate in gates.items()
    },
  )


def _checked(tokens: ArrayLike, vocab_size: int) -> np.ndarray:
  tokens = np.asarray(tokens)
  if tokens.ndim != 1 or len(tokens) < 2 or not np.issubdtype(tokens.dtype, np.integer):
    raise ValueError(
      f'`tokens` must be at least 2 integers in one axis, got {tokens.dtype} {tokens.shape}.'
    )
  check_ids('tokens', tokens, vocab_size)
  return tokens


def _stretch(model: LanguageModel) -> int:
  """Tokens between two looks: a base chunk, or several where it is short and nothing is due."""
  base = model.config.base_chunk
  return base if model.config.in_context_periods else base * -(-MIN_STRETCH // base)


@partial(jax.jit, static_argnums=(0, 2))
def _looks(graph, params, size, tokens):
  """Losses [n, C], sizes and distances [n, levels], and gates [n, L, H, C] of each mixer level."""
  model = nnx.merge(graph, params)
  learns, length = bool(model.config.in_context_periods), tokens.shape[1]

  def weights(carry, fast):
    return [*map(_weights, model.mixer_states(carry)), *map(_weights, fast)]

  begin = weights(model.init_carry(1, length), read_weights(model, model.init_levels(1)))

  def look(reading: Reading):
    now = weights(reading.after, reading.fast)
    distances = [jax.tree.map(jnp.subtract, *pair) for pair in zip(now, begin, strict=True)]
    gates = model.gates(reading.chunk.tokens, reading.fast, reading.before)
    return (
      token_losses(reading.logits, reading.chunk.targets)[0],
      jnp.array([core.root_mean_square(tree) for tree in now]),
      jnp.array([core.root_mean_square(tree) for tree in distances]),
      jax.tree.map(lambda gate: gate[:, 0], gates),
    )

  starts = None if learns else jnp.arange(length // size)[None] == 0
  known = jnp.ones(tokens.shape).at[:, -1].set(0)
  return model.run(tokens, jnp.roll(tokens, -1, axis=1), known, look, starts).outputs


def _weights(state: Any) -> Any:
  """The weights in the states of a mixer's level in all layers, or of a block that learns."""
  if isinstance(state, tuple) and state and isinstance(state[0], PeriodicState):
    return [_weights(layer.held) for layer in state]
  if isinstance(state, MemoryState):
    return weights_of(state)
  return release(state)


def _along_time(gate: np.ndarray, length: int) -> np.ndarray:
  """[n, L, H, C] to [L, H, T]."""
  return np.moveaxis(gate, 0, 2).reshape((*gate.shape[1:3], -1))[..., :length]
