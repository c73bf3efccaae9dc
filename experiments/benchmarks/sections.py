"""The sections of the benchmark, and how their records come into the results file."""

import importlib
import json
import pathlib
from typing import Any

SECTIONS = ('nest', 'memory', 'layer', 'models', 'families', 'mixers', 'decode', 'optimizers')


def measure(name: str, *, smoke: bool = False) -> list[dict[str, Any]]:
  """Returns the records of one section."""
  section = _section(name)
  rows = section.measure(section.SMOKE if smoke else section.FULL)
  return [{'section': name, **row} for row in rows]


def write(path: pathlib.Path, name: str, rows: list[dict[str, Any]], record: dict) -> None:
  """Puts a section into a results file, in the place of its former records.

  A section keeps the provenance of its own measurement.

  Args:
    path: The file; made if missing.
    name: Of the section.
    rows: Its records.
    record: Its provenance.
  """
  old = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
  kept = [row for row in old.get('rows', []) if row['section'] != name]
  order = {section: i for i, section in enumerate(SECTIONS)}
  result = {
    'title': 'Speed and memory',
    **record,
    'sections': {
      **old.get('sections', {}),
      name: {'caption': _section(name).CAPTION, **record},
    },
    'rows': sorted([*kept, *rows], key=lambda row: order[row['section']]),
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


def _section(name: str) -> Any:
  return importlib.import_module(f'experiments.benchmarks.{name}')
