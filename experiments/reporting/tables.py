"""Flat records as Markdown tables, for the terminal and for RESULTS.md alike."""

from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]
_PLAIN = ('seed',)  # Integers that name something: no mean, no thousands separator.


def markdown(rows: Sequence[Row], leave_out: Iterable[str] = ()) -> str:
  """Returns records as a table whose columns are their fields, in the order of appearance.

  Args:
    rows: Flat records; a field that one of them lacks is left empty.
    leave_out: Fields that are no columns.
  """
  left_out = set(leave_out)
  fields = dict.fromkeys(name for row in rows for name in row)
  names = [name for name in fields if name not in left_out]
  cells = [[cell(name, row.get(name)) for name in names] for row in rows]
  titles = [name.replace('_', ' ') for name in names]
  widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
  numeric = [all(not isinstance(row.get(name), str) for row in rows) for name in names]
  rule = ['-' * (w - 1) + ':' if n else '-' * w for w, n in zip(widths, numeric, strict=True)]
  lines = [titles, rule, *cells]
  return '\n'.join(_line(line, widths, numeric) for line in lines)


def over_seeds(rows: Sequence[Row]) -> list[Row]:
  """Returns one record for all seeds of the same thing: what is the same, and means with spreads.

  Records are the same thing if all their texts are equal.
  """
  groups: dict[tuple, list[Row]] = {}
  for row in rows:
    texts = tuple((name, value) for name, value in row.items() if isinstance(value, str))
    groups.setdefault(texts, []).append(row)
  return [_merged(group) for group in groups.values()]


def cell(name: str, value: Any) -> str:
  """Returns a value as text: integers in full, other numbers in three digits or more."""
  if value is None:
    return ''
  if isinstance(value, str | bool):
    return str(value)
  if isinstance(value, int):
    return str(value) if name in _PLAIN else f'{value:,}'
  if abs(value) >= 100:
    return f'{value:,.0f}'
  if abs(value) >= 10:
    return f'{value:.1f}'
  return f'{value:.3f}' if abs(value) >= 0.1 else f'{value:.3g}'


def _merged(group: list[Row]) -> Row:
  """Numbers that differ become 'mean (least to greatest)'."""
  merged: Row = {}
  for name in group[0]:
    values = [row[name] for row in group]
    if name == 'seed':
      merged['seeds'] = len(values)
    elif len(set(values)) == 1:
      merged[name] = values[0]
    else:
      low, mean, high = min(values), sum(values) / len(values), max(values)
      merged[name] = f'{cell(name, mean)} ({cell(name, low)} to {cell(name, high)})'
  return merged


def _line(cells: list[str], widths: list[int], numeric: list[bool]) -> str:
  padded = [
    cell.rjust(width) if right else cell.ljust(width)
    for cell, width, right in zip(cells, widths, numeric, strict=True)
  ]
  return '| ' + ' | '.join(padded) + ' |'
