"""The house rules that a tool can read: who imports whom, sizes, and what the files may say."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60

# Each package of nlx and the packages of nlx that it may import, besides itself.
MAY_IMPORT = {'core': set(), 'levels': {'core'}, 'memories': {'core', 'levels'}}
MAY_IMPORT['optim'] = {'core', 'levels', 'memories'}
MAY_IMPORT['cms'] = MAY_IMPORT['optim'] | {'optim'}
MAY_IMPORT['parallel'] = {'core', 'levels'}
MAY_IMPORT['models'] = {'core', 'levels', 'memories', 'cms', 'parallel'}
MAY_IMPORT['data'] = {'core'}
MAY_IMPORT['training'] = MAY_IMPORT['models'] | {'models', 'optim', 'data'}
MAY_IMPORT['evaluation'] = MAY_IMPORT['training'] - {'parallel'}
MAY_IMPORT['interop'] = MAY_IMPORT['models'] | {'models'}

# Flags, configuration files and experiments stay outside of the library.
NOT_IN_NLX = ('absl.app', 'absl.flags', 'argparse', 'experiments', 'ml_collections')
NOT_ON_IMPORT = ['grain', 'matplotlib', 'ml_collections', 'orbax', 'tensorboardX', 'tokenizers']
NOT_ON_IMPORT += ['safetensors', 'tqdm']
# Put together here, so that this file does not hold them either.
FORBIDDEN_WORDS = (*(f'/{folder}/' for folder in ('work', 'root')), '/'.join(('..', 'shared')))


def module_name(path):
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


FILES = sorted(p for d in ('nlx', 'experiments') for p in (ROOT / d).rglob('*.py'))
MODULES = {module_name(path): path for path in FILES}
NLX = sorted(name for name in MODULES if name.split('.')[0] == 'nlx')


def parse(path):
  return ast.parse(path.read_text(encoding='utf-8'), str(path))


def imports(name):
  """The full names that a module imports, anywhere in it: `from a import b` gives `a.b`."""
  path = MODULES[name]
  package = name.split('.') if path.name == '__init__.py' else name.split('.')[:-1]
  for node in ast.walk(parse(path)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = package[: len(package) - node.level + 1] if node.level else []
      base = '.'.join([*base, *([node.module] if node.module else [])])
      yield from (f'{base}.{alias.name}' for alias in node.names)


def imported_modules(name):
  """The modules of this repository that a module imports."""
  for full in imports(name):
    while full and full not in MODULES:
      full = full.rpartition('.')[0]
    if full and full != name:
      yield full


def under(name, prefixes):
  return any(name == p or name.startswith(f'{p}.') for p in prefixes)


def import_circle(graph):
  """A list of modules that import each other in a circle; empty if there is none."""
  done, trail = set(), []

  def visit(name):
    if name in trail:
      return [*trail[trail.index(name) :], name]
    if name not in done:
      trail.append(name)
      for other in graph[name]:
        if circle := visit(other):
          return circle
      done.add(trail.pop())
    return []

  return next((circle for name in graph if (circle := visit(name))), [])


def body_lines(function):
  """Lines of a function, without its docstring."""
  documented = ast.get_docstring(function, clean=False) is not None
  docstring = function.body[0]
  length = function.end_lineno - function.lineno + 1
  return length - documented * (docstring.end_lineno - docstring.lineno + 1)


# The front door, nlx/__init__.py, may import every package.
@pytest.mark.parametrize('name', [name for name in NLX if name != 'nlx'])
def test_imports_follow_the_order_of_packages(name):
  here = name.split('.')[1]
  assert here in MAY_IMPORT, f'nlx.{here} is a new package: give it a place in MAY_IMPORT.'
  allowed = [f'nlx.{package}' for package in (*MAY_IMPORT[here], here)]
  wrong = {m for m in imported_modules(name) if m.startswith('nlx') and not under(m, allowed)}
  assert not wrong, f'{name} imports {sorted(wrong)}; nlx.{here} may import {sorted(allowed)}.'


@pytest.mark.parametrize('name', NLX)
def test_library_has_no_flags_and_no_experiments(name):
  wrong = {full for full in imports(name) if under(full, NOT_IN_NLX)}
  assert not wrong, f'{name} imports {sorted(wrong)}, which belong to experiments/.'


def test_imports_have_no_circles():
  circle = import_circle({name: sorted(set(imported_modules(name))) for name in MODULES})
  assert not circle, ' -> '.join(circle)


def test_training_and_evaluation_are_strangers():
  assert 'evaluation' not in MAY_IMPORT['training']
  assert 'training' not in MAY_IMPORT['evaluation']


def test_import_circle_finds_a_circle():
  assert import_circle({'a': ['b'], 'b': ['c'], 'c': ['b']}) == ['b', 'c', 'b']


@pytest.mark.parametrize('path', FILES, ids=module_name)
def test_files_and_functions_are_short(path):
  lines = len(path.read_text(encoding='utf-8').splitlines())
  assert lines <= MAX_FILE_LINES, f'{path} has {lines} lines.'
  for node in ast.walk(parse(path)):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      assert body_lines(node) <= MAX_FUNCTION_LINES, f'{path}:{node.lineno} {node.name} is long.'


def test_import_of_nlx_needs_only_jax_flax_and_optax():
  code = f"""
import sys
import nlx
print([name for name in {NOT_ON_IMPORT} if name in sys.modules])
"""
  command = [sys.executable, '-c', code]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert result.returncode == 0, result.stderr
  assert result.stdout.strip() == '[]', f'`import nlx` imports {result.stdout}'


def test_files_name_no_machine():
  command = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
  listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  if listed.returncode:
    pytest.skip('not a git checkout')
  found = []
  for name in filter(None, listed.stdout.split('\0')):
    path = ROOT / name
    data = path.read_bytes() if path.is_file() else b''
    text = '' if b'\0' in data else data.decode('utf-8', errors='ignore')
    found += [f'{name}: {word}' for word in FORBIDDEN_WORDS if word in text]
  assert not found, found
