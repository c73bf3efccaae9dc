"""docs/equations.md: what it names exists, and no equation is left out."""

import ast
import functools
import importlib
import pathlib
import re
import types
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'equations.md'
COLUMNS = ('equation or source', 'what it says', 'function or class', 'test')
LINK = re.compile(r'\[([^]]+)\]\(([^)]+)\)')
# Of Nested Learning: delta gradient descent, matrix memories, the continuum memory system,
# self-modifying Titans, HOPE.
NUMBERS = {*range(54, 58), *range(62, 67), 68, *range(70, 75), *range(83, 98)}


class Row(NamedTuple):
  """The cells of one row."""

  equation: str
  formula: str
  functions: str
  tests: str


def cells(line):
  return tuple(cell.strip() for cell in line.strip('|').split('|'))


def table_lines():
  return [line for line in PAGE.read_text(encoding='utf-8').splitlines() if line.startswith('|')]


ROWS = [Row(*cells(line)) for line in table_lines() if cells(line) != COLUMNS and line.strip('|-')]


def links(column):
  """The links of a column, each once: what it is called, and the file."""
  pairs = {pair for row in ROWS for pair in LINK.findall(getattr(row, column))}
  return [(name, (PAGE.parent / target).resolve()) for name, target in sorted(pairs)]


def name_only(value):
  return value if isinstance(value, str) else ''


@functools.cache
def defined_in(path):
  """The names of functions, classes and constants at the top of a file."""
  names = set()
  for node in ast.parse(path.read_text(encoding='utf-8')).body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      names.add(node.name)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
      targets = node.targets if isinstance(node, ast.Assign) else [node.target]
      names |= {target.id for target in targets if isinstance(target, ast.Name)}
  return names


def resolve(name):
  """The first part of a dotted name that is no module; raises if any part does not exist.

  An attribute goes before a module: `nlx.memories.layer` is the function.
  """
  first, *parts = name.split('.')
  value, path, found = importlib.import_module(first), first, None
  for part in parts:
    path = f'{path}.{part}'
    value = getattr(value, part) if hasattr(value, part) else importlib.import_module(path)
    if found is None and not isinstance(value, types.ModuleType):
      found = part
  return found


def test_every_table_has_the_same_columns():
  lines = table_lines()
  assert ROWS
  assert {len(cells(line)) for line in lines} == {len(COLUMNS)}
  headers = [cells(above) for above, line in zip(lines, lines[1:], strict=False) if '---' in line]
  assert set(headers) == {COLUMNS}


@pytest.mark.parametrize(('name', 'path'), links('functions'), ids=name_only)
def test_named_function_exists_in_its_file(name, path):
  assert path.is_file(), f'{path} does not exist.'
  assert resolve(name) in defined_in(path), f'{name} is not defined in {path}.'


@pytest.mark.parametrize(('name', 'path'), links('tests'), ids=name_only)
def test_named_test_exists_in_its_file(name, path):
  file, _, test = name.partition('::')
  assert path.is_file() and path.name == file, f'{name} links to {path}.'
  assert test.startswith('test_') and test in defined_in(path), f'{path} has no {test}.'


def test_every_link_leads_to_a_file():
  targets = {target for _, target in LINK.findall(PAGE.read_text(encoding='utf-8'))}
  files = {target for target in targets if '://' not in target}
  assert files
  missing = [target for target in sorted(files) if not (PAGE.parent / target).is_file()]
  assert not missing, missing


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row.equation)
def test_row_has_functions_and_tests_or_says_that_it_has_none(row):
  assert row.equation and row.formula
  if row.functions == 'not yet':
    assert row.tests == 'none'
  else:
    assert LINK.search(row.functions)
    assert LINK.search(row.tests) or row.tests.startswith('none')


def test_no_equation_is_left_out():
  found = set()
  for row in ROWS:
    for begin, end in re.findall(r'Eqs?\. (\d+)(?:-(\d+))?', row.equation):
      found |= set(range(int(begin), int(end or begin) + 1))
  assert found >= NUMBERS, f'without a row: {sorted(NUMBERS - found)}'
