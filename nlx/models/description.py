"""The levels of a language model, for tables and traces."""

from typing import Any

from flax import nnx

from nlx import core
from nlx.levels import LevelInfo


def level_infos(model) -> list[LevelInfo]:
  """The levels of `model`, fastest first: memories, continuum memory blocks, slow weights."""
  config = model.config
  infos = _memories(model)
  blocks = zip(model.blocks.cms.blocks, config.cms.periods, strict=True)
  sizes = [_size(block) for block, period in blocks if period]
  if config.cms.form == 'nested':  # A slower level also learns the initial weights of a faster one.
    sizes = [own + faster for own, faster in zip(sizes, (0, *sizes[:-1]), strict=True)]
  for period, size in zip(config.in_context_periods, sizes, strict=True):
    infos.append(
      LevelInfo(
        name=f'CMS {period}',
        period=period,
        unit='token',
        objective='next-token loss',
        rule=f'clipped {config.cms.rule.name}, learned rate',
        parameters=size,
        transfer='gradient, initial state',
      )
    )
  return [*infos, _slow(model)]


def gates_of(mixer: Any, x: Any, state: Any) -> list[Any]:
  """The gates with which each level of a mixer is written; None where it does not say."""
  if hasattr(mixer, 'gates'):
    return mixer.gates(x, state)
  return [None] * len(mixer.level_infos())


def _memories(model) -> list[LevelInfo]:
  """The memories of all layers together."""
  layers = model.config.num_layers
  infos = model.blocks.mixer.memory.level_infos()
  return [info._replace(parameters=layers * info.parameters) for info in infos]


def _size(block) -> int:
  """Weights of a block of all layers, without the norm; of an abstract model as well."""
  return core.tree_size((nnx.state(block.up), nnx.state(block.down)))


def _slow(model) -> LevelInfo:
  return LevelInfo(
    name='slow weights',
    period=1,
    unit='step',
    objective='next-token loss',
    rule='outer optimizer',
    parameters=model.num_parameters(),
    transfer='gradient',
  )
