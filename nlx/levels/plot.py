"""The picture of a system: when each level is updated."""

import math
from typing import Any

from nlx import core
from nlx.levels.describe import UNITS, LevelInfo, period_text, sorted_infos

_LINE, _HELD, _DENSE, _MARK = '#c0c0c0', '#e8e8e8', '#707070', '#000000'
_MIN_GAP = 0.007  # of the width of the axis: marks that are closer run into one bar
_PERIODS_SHOWN = 4  # of the slowest level that the axis counts for, if no span is given


def plot(system: Any, span: int | None = None) -> Any:
  """Draws one row per level, fastest at the top, with a mark wherever it is updated.

  The axis counts tokens, or steps where no level is updated by tokens, as in an optimizer. It is
  logarithmic, so that short and long periods can be read in one picture; where marks would touch
  they become a grey bar. A hatched bar is a level that nothing on the axis updates.

  Args:
    system: What `describe` takes.
    span: Tokens or steps to show; four periods of the slowest level on the axis if not given.

  Returns:
    A `matplotlib.figure.Figure`, which notebooks show and `savefig` writes.

  Raises:
    TypeError: If `system` is not what `describe` takes.
    ValueError: If `span` is smaller than 1, or a level is not valid.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Def. 2.
  """
  from matplotlib import ticker
  from matplotlib.figure import Figure

  infos = sorted_infos(system)
  unit = min((info.unit for info in infos if info.period), key=UNITS.index, default=UNITS[0])
  periods = [info.period for info in infos if info.period and info.unit == unit]
  span = _PERIODS_SHOWN * max(periods, default=256) if span is None else span
  core.check_positive('span', span, unit)
  first = max(1, min((*periods, span)) // 2)
  last = max(span, 2 * first)
  figure = Figure(figsize=(9, 1 + 0.6 * len(infos)), layout='constrained')
  axes = figure.add_subplot()
  axes.set_xscale('log', base=2)
  axes.set_xlim(first, last * 1.02)
  axes.xaxis.set_major_formatter(ticker.StrMethodFormatter('{x:,.0f}'))
  axes.set_xlabel(f'{unit}s seen')
  for row, info in enumerate(infos):
    _draw_row(axes, row, info.period if info.unit == unit else None, first, last)
  axes.set_ylim(len(infos) - 0.5, -0.5)
  axes.set_yticks(range(len(infos)), [f'{info.name}\n{_rhythm(info)}' for info in infos])
  axes.spines[['top', 'left', 'right']].set_visible(False)
  axes.tick_params(axis='y', length=0)
  return figure


def _rhythm(info: LevelInfo) -> str:
  """When it is updated, in words."""
  if info.period is None:
    return 'never in a sequence'
  return f'every {info.unit if info.period == 1 else period_text(info)}'


def _draw_row(axes, row: int, period: int | None, first: int, last: int) -> None:
  """Marks the updates of one level on a line, or hatches the row of a level without any."""
  if period is None:
    axes.barh(row, last - first, 0.4, first, color=_HELD, hatch='///', edgecolor=_LINE)
    return
  axes.plot((first, last), (row, row), color=_LINE, linewidth=1, zorder=1)
  shown = max(_separate_until(period, first, last) // period, 1)
  marks = [mark for i in range(shown) if (mark := period * (i + 1)) <= last]
  axes.vlines(marks, row - 0.25, row + 0.25, color=_MARK, linewidth=1.5)
  if marks and marks[-1] + period <= last:
    axes.barh(row, last - marks[-1], 0.4, marks[-1], color=_DENSE)


def _separate_until(period: int, first: int, last: int) -> int:
  """The last token up to which updates are far enough apart on the axis to be seen one by one."""
  ratio = 2 ** (_MIN_GAP * math.log2(last / first))
  return min(last, int(period / (ratio - 1)))
