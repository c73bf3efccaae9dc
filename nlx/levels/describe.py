"""The table of a system: who learns what, how often, and from whom."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from nlx import core

UNITS = ('token', 'step')
TRANSFERS = ('weights', 'context', 'gradient', 'initial state', 'generation')


class LevelInfo(NamedTuple):
  """What a reader wants to know about one level of a system.

  Attributes:
    name: What the level is called, such as 'memory'.
    period: Ticks per update; None for what is never updated.
    unit: What a tick is: 'token' inside a sequence, 'step' for a step of an optimizer.
    objective: What its updates lower, such as 'L2'.
    rule: How it is updated, such as 'DGD'.
    parameters: How many numbers it updates.
    transfer: How knowledge passes between it and the other levels, one of `TRANSFERS` or several
      joined by ', ': it is read through its 'weights'; it is read through its 'context'; it shares
      one 'gradient' flow; a slower level learns its 'initial state'; it is or gives the
      'generation' of another level's weights or context.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Def. 2 and Sec. 3.3.
  """

  name: str
  period: int | None
  unit: str
  objective: str
  rule: str
  parameters: int
  transfer: str


_HEADER = (
  'level',
  'name',
  'period',
  'frequency',
  'objective',
  'rule',
  'parameters',
  'knowledge transfer',
)
_RIGHT_ALIGNED = ('level', 'parameters')


def describe(system: Any) -> str:
  """Returns the levels of a system as a table, fastest first.

  Levels that are updated equally often have the same number. Tokens come and go inside one step of
  an optimizer, so every level that counts tokens is faster than every one that counts steps.

  Args:
    system: A sequence of `LevelInfo`, or an object whose method `level_infos()` returns one, such
      as a model.

  Returns:
    A text table, one line per level.

  Raises:
    TypeError: If `system` is neither.
    ValueError: If it has no level, or one with an unknown unit or transfer or no valid period.

  Example:
    >>> import nlx
    >>> memory = nlx.levels.LevelInfo('memory', 16, 'token', 'L2', 'DGD', 4096, 'initial state')
    >>> weights = nlx.levels.LevelInfo('weights', 1, 'step', 'task', 'Adam', 10**6, 'gradient')
    >>> print(nlx.describe([weights, memory]))
    level  name     period     frequency       objective  rule  parameters  knowledge transfer
    -----  -------  ---------  --------------  ---------  ----  ----------  ------------------
        1  memory   16 tokens  1/16 per token  L2         DGD        4,096  initial state
        2  weights  1 step     1 per step      task       Adam   1,000,000  gradient

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Def. 2.
  """
  infos = sorted_infos(system)
  rows = [_row(*pair) for pair in zip(_numbers(infos), infos, strict=True)]
  widths = [max(map(len, column)) for column in zip(_HEADER, *rows, strict=True)]
  rule = tuple('-' * width for width in widths)
  return '\n'.join(_line(row, widths) for row in (_HEADER, rule, *rows))


def sorted_infos(system: Any) -> list[LevelInfo]:
  """The validated levels of a system, fastest first; equally fast ones in the order given."""
  infos = system.level_infos() if hasattr(system, 'level_infos') else system
  if not isinstance(infos, Sequence) or not all(isinstance(info, LevelInfo) for info in infos):
    raise TypeError(
      '`system` must be a sequence of LevelInfo or have a method `level_infos()` that returns one, '
      f'got {type(system).__name__}.'
    )
  if not infos:
    raise ValueError('`system` must have at least 1 level, got none.')
  for info in infos:
    _check(info)
  return sorted(infos, key=_slowness)


def period_text(info: LevelInfo) -> str:
  """The period in words, such as '16 tokens'."""
  if info.period is None:
    return 'none'
  return f'{info.period:,} {info.unit}{"s" if info.period > 1 else ""}'


def _check(info):
  core.check_choice(f'unit of level {info.name}', info.unit, UNITS)
  for transfer in info.transfer.split(', '):
    core.check_choice(f'transfer of level {info.name}', transfer, TRANSFERS)
  if info.period is not None:
    core.check_positive(f'period of level {info.name}', info.period, info.unit)


def _slowness(info):
  """A sort key: tokens before steps before never, then the period."""
  if info.period is None:
    return len(UNITS), 0
  return UNITS.index(info.unit), info.period


def _numbers(infos):
  speeds = list(dict.fromkeys(_slowness(info) for info in infos))
  return [1 + speeds.index(_slowness(info)) for info in infos]


def _frequency(info):
  if info.period is None:
    return '0 per token'
  return f'{"1" if info.period == 1 else f"1/{info.period:,}"} per {info.unit}'


def _row(number, info):
  size = f'{info.parameters:,}'
  learned = (info.objective, info.rule, size, info.transfer)
  return (str(number), info.name, period_text(info), _frequency(info), *learned)


def _line(row, widths):
  cells = [
    cell.rjust(width) if title in _RIGHT_ALIGNED else cell.ljust(width)
    for cell, width, title in zip(row, widths, _HEADER, strict=True)
  ]
  return '  '.join(cells).rstrip()
