"""RESULTS.md, from the results files and the notes, by nothing but text."""

import json
import pathlib
from typing import Any

from experiments.reporting import tables

_HEAD = """# Results

<!-- Made by `python -m experiments.results` from results/*.json and results/notes.md. -->

## What holds, what does not, what was not tried

{notes}
"""


def write(results: pathlib.Path, notes: pathlib.Path) -> pathlib.Path:
  """Writes RESULTS.md next to a folder of results files.

  Args:
    results: The folder.
    notes: The text of the opening section.

  Returns:
    Where the page is.
  """
  path = results.parent / 'RESULTS.md'
  path.write_text(page(results, notes), encoding='utf-8')
  return path


def page(results: pathlib.Path, notes: pathlib.Path) -> str:
  """Returns the whole page; the same files give the same text."""
  parts = [_HEAD.format(notes=notes.read_text(encoding='utf-8').strip())]
  for path in sorted(results.glob('*.json'), key=_order):
    parts.append(_file(path.stem, json.loads(path.read_text(encoding='utf-8'))))
  return '\n'.join(parts)


def _order(path: pathlib.Path) -> tuple[int, str]:
  """Models come first, then the studies, and speed last."""
  ranks = {'language_model': 0, 'learning_rates': 1, 'bench': 3}
  return ranks.get(path.stem, 2), path.stem


def _file(stem: str, result: dict[str, Any]) -> str:
  """One results file: its tables, each with where its numbers come from."""
  title = result.get('title', stem.replace('_', ' '))
  parts = [f'## {title}\n']
  parts += [f'![{title}](../docs/images/{result["figure"]})\n'] if 'figure' in result else []
  sections = result.get('sections') or {'': result}
  for name, section in sections.items():
    rows = [row for row in result['rows'] if row.get('section', '') == name]
    parts += [f'### {name}\n'] if name else []
    parts += [f'{section["caption"]}\n'] if section.get('caption') else []
    parts += [*_tables(rows), _origin(section)]
  return '\n'.join(parts)


def _tables(rows: list[dict[str, Any]]) -> list[str]:
  """The records; before them, where there are several seeds, their means and spreads."""
  full = tables.markdown(rows, leave_out=('section',)) + '\n'
  if len({row.get('seed') for row in rows}) < 2:
    return [full]
  means = tables.markdown(tables.over_seeds(rows), leave_out=('section',)) + '\n'
  return ['Mean over seeds (least to greatest):\n', means, 'Every run:\n', full]


def _origin(record: dict[str, Any]) -> str:
  versions = ', '.join(f'{name} {version}' for name, version in record['versions'].items())
  return f'`{record["command"]}` at commit {record["commit"]}; {record["hardware"]}; {versions}.\n'
