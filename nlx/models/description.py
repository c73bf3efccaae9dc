"""The levels of a language model as a table."""

from nlx import core
from nlx.levels import LevelInfo


def level_infos(model) -> list[LevelInfo]:
  """The levels of `model`, fastest first: memories, continuum memory blocks, slow weights."""
  config = model.config
  infos = _memories(model)
  blocks = model.blocks.cms.blocks
  learning = [block for block, period in zip(blocks, config.cms.periods, strict=True) if period]
  for period, block in zip(config.in_context_periods, learning, strict=True):
    infos.append(
      LevelInfo(
        name=f'CMS {period}',
        period=period,
        unit='token',
        objective='next-token loss',
        rule=f'clipped {config.cms.rule.name}, learned rate',
        parameters=core.tree_size(block.weights()),
        transfer='gradient, initial state',
      )
    )
  return [*infos, _slow(model)]


def _memories(model) -> list[LevelInfo]:
  """The memories of all layers together."""
  layers = model.config.num_layers
  infos = model.blocks.mixer.memory.level_infos()
  return [info._replace(parameters=layers * info.parameters) for info in infos]


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
