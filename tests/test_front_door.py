"""`import nlx` is quick, and what it promises is there."""

import configparser
import pathlib
import subprocess
import sys

import pytest

import nlx

ROOT = pathlib.Path(__file__).resolve().parents[1]


def imported_by(code):
  """The modules that are loaded after a program has run."""
  command = [sys.executable, '-c', f'{code}\nimport sys\nprint(*sys.modules)']
  run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
  return set(run.stdout.split())


def test_nlx_imports_a_package_when_it_is_first_used():
  modules = imported_by('import nlx')
  assert 'jax' not in modules
  assert not any(name.startswith('nlx.') for name in modules)
  assert 'nlx.core' in imported_by('import nlx; nlx.core')


def test_nlx_levels_needs_no_matplotlib_before_it_draws():
  modules = imported_by('import nlx; nlx.levels.plot; nlx.describe')
  assert 'nlx.levels' in modules
  assert 'matplotlib' not in modules


@pytest.mark.parametrize('name', nlx.__all__)
def test_nlx_has_what_it_lists(name):
  assert getattr(nlx, name).__name__.split('.')[-1] == name


def test_nlx_lists_every_package_that_exists():
  packages = {path.parent.name for path in (ROOT / 'nlx').glob('*/__init__.py')}
  assert {*packages, 'describe'} == set(nlx.__all__)


def test_nlx_completes_names_that_are_not_imported_yet():
  assert {*nlx.__all__, '__version__'} <= set(dir(nlx))


def test_nlx_names_an_attribute_that_does_not_exist():
  with pytest.raises(AttributeError, match="module 'nlx' has no attribute 'nothing'"):
    nlx.nothing  # noqa: B018


def test_nlx_version_is_that_of_the_package():
  config = configparser.ConfigParser()
  config.read(ROOT / 'setup.cfg')
  assert nlx.__version__ == config['metadata']['version']
