"""The levels of a language model as a table."""

from nlx import core
from nlx.levels import LevelInfo


def level_infos(model) -> list[LevelInfo]:
  """The levels of `model`, fastest first: memories, continuum memory blocks, slow weights."""
  config = model.config
  infos = []
  if config.mixer == 'self_modifying':
    infos += _memories(model)
  blocks = model.blocks.cms.blocks
  learning = [block for block, period in zip(blocks, config.cms_periods, strict=True) if period]
  for period, block in zip(config.in_context_periods, learning, strict=True):
    infos.append(
      LevelInfo(
        name=f'CMS {period}',
        period=period,
        unit='token',
        objective='next-token loss',
        rule='clipped gradient descent, learned rate',
        parameters=core.tree_size(block.weights()),
        transfer='gradient, initial state',
      )
    )
  return [*infos, _slow(model)]


def _memories(model) -> list[LevelInfo]:
  config, mixer = model.config, model.blocks.mixer.memory
  rule = config.rule.name
  rule += ', momentum' if config.rule.momentum else ''
  rule += ', retention' if config.rule.retention else ''

  def info(name, period, weights, transfer):
    size = core.tree_size([weight[...] for weight in weights.values()])
    return LevelInfo(name, period, 'token', 'L2 to own values', rule, size, transfer)

  memories = [info('memory', config.chunk_size, mixer.memory_weights, 'weights, initial state')]
  if mixer.role_weights is not None:
    name = 'roles ' + ' '.join(config.adaptive)
    transfer = 'generation, initial state'
    memories.append(info(name, config.projection_chunk_size, mixer.role_weights, transfer))
  return memories


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
