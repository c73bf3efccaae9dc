"""How large the states of a model become along a text."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nlx import core


def sizes_of_states(
  model: Any, tokens: jax.Array, targets: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
  """See `LanguageModel.diagnose`."""

  def sizes(states):
    return jnp.stack([core.root_mean_square(state) for state in states])

  def outputs(reading):
    mixers = [*model.mixer_states(reading.after), nnx.state(model)]
    return sizes(mixers), sizes(reading.fast) if reading.fast else ()

  starts = None
  if model.config.has_chunks:  # Also where nothing asks for them.
    count = -(-tokens.shape[1] // model.config.base_chunk)
    starts = jnp.broadcast_to(jnp.arange(count)[None] == 0, (tokens.shape[0], count))
  result = model.run(tokens, targets, mask, outputs, starts)
  mixers, blocks = result.outputs
  columns = [mixers[:, :-1], mixers[:, -1:]]
  if model.levels():  # A chunk is read with what blocks were before it: their next is its result.
    last = [level.read(state) for level, state in zip(model.levels(), result.states, strict=True)]
    columns.insert(1, jnp.concatenate([blocks, sizes(last)[None]])[1:])
  sizes_by_level = jnp.concatenate(columns, axis=1)
  names = [info.name for info in model.level_infos()]
  return {name: sizes_by_level[:, i] for i, name in enumerate(names)}
