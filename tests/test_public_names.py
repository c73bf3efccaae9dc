"""What nlx promises: a committed list of names, each with a docstring, and a page for it."""

import importlib

import pytest

import nlx
from docs import reference
from tests import public_names


@pytest.mark.parametrize('package', reference.packages())
def test_package_declares_its_public_names(package):
  names = getattr(importlib.import_module(package), '__all__', None)
  assert names is not None, f'{package}/__init__.py has no `__all__`.'
  assert len(set(names)) == len(names), f'{package} lists a name twice.'


def test_public_names_are_the_committed_list():
  found, listed = set(reference.public_names()), set(public_names.PATH.read_text().split())
  assert found == listed, (
    f'new: {sorted(found - listed)}; gone: {sorted(listed - found)}. If that is meant, run '
    '`python -m tests.public_names` and say so in CHANGELOG.md.'
  )


def test_public_names_and_methods_are_documented():
  assert not reference.undocumented()


def test_reference_is_not_built_without_a_docstring(monkeypatch):
  monkeypatch.setattr(nlx.levels.PeriodicLevel, '__doc__', None)
  with pytest.raises(SystemExit, match='no docstring: nlx.levels.PeriodicLevel'):
    reference.main()


def test_reference_has_a_page_for_each_package_with_its_names(tmp_path):
  reference.build(tmp_path)
  pages = {
    path.relative_to(tmp_path).with_suffix('').as_posix().replace('/', '.')
    for path in tmp_path.rglob('*.html')
  }
  assert {*reference.packages()} == pages - {'index'}
  levels = (tmp_path / 'nlx' / 'levels.html').read_text(encoding='utf-8')
  assert all(f'id="{name}"' in levels for name in nlx.levels.__all__)
