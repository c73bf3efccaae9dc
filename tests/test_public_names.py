"""What nlx promises: a committed list of names, each with a docstring."""

import importlib
import inspect

import pytest

from tests import public_names


def documented(value):
  """Whether a class, function or module says what it is; a plain constant need not."""
  if not (callable(value) or inspect.ismodule(value)):
    return True
  text = value.__doc__ or ''
  # Named tuples and dataclasses write their signature where a docstring is missing.
  return bool(text) and not text.startswith(f'{getattr(value, "__name__", "?")}(')


@pytest.mark.parametrize('package', public_names.packages())
def test_package_declares_its_public_names(package):
  names = getattr(importlib.import_module(package), '__all__', None)
  assert names is not None, f'{package}/__init__.py has no `__all__`.'
  assert len(set(names)) == len(names), f'{package} lists a name twice.'


def test_public_names_are_the_committed_list():
  found, listed = set(public_names.public_names()), set(public_names.PATH.read_text().split())
  assert found == listed, (
    f'new: {sorted(found - listed)}; gone: {sorted(listed - found)}. If that is meant, run '
    '`python -m tests.public_names` and say so in CHANGELOG.md.'
  )


def test_public_names_are_documented():
  bare = [name for name, value in public_names.public_names().items() if not documented(value)]
  assert not bare, f'without a docstring: {bare}'
