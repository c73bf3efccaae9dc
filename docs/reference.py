"""Builds the API reference from the docstrings of nlx: `make docs`.

Fails if a public name has no docstring, or a public method of a public class.
"""

import importlib
import inspect
import pathlib
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import nlx

FOLDER = pathlib.Path('build/reference')


def packages() -> list[str]:
  """Names of nlx and of every package below it."""
  below = pkgutil.walk_packages(nlx.__path__, 'nlx.')
  return ['nlx', *sorted(info.name for info in below if info.ispkg)]


def public_names() -> dict[str, Any]:
  """Maps the full name of everything in an `__all__` to the object that it names."""
  modules = [importlib.import_module(name) for name in packages()]
  return {
    f'{module.__name__}.{name}': getattr(module, name)
    for module in modules
    for name in getattr(module, '__all__', ())
  }


def undocumented() -> list[str]:
  """Public names, and public methods of public classes, without a docstring."""
  return [name for name, value in _with_methods() if not _is_documented(value)]


def build(folder: pathlib.Path) -> None:
  """Writes a page per package."""
  import pdoc

  public_names()  # What nlx imports on first use is there.
  pdoc.render.configure(docformat='google', footer_text=f'nlx {nlx.__version__}')
  only_packages = f'!(?!({"|".join(map(re.escape, packages()))})$)'
  with warnings.catch_warnings():
    # Types in quotes, or of optax, are shown as they are written.
    warnings.filterwarnings('ignore', 'Error parsing type annotation')
    pdoc.pdoc('nlx', only_packages, output_directory=folder)


def _with_methods() -> Iterator[tuple[str, Any]]:
  for name, value in public_names().items():
    yield name, value
    if inspect.isclass(value) and value.__module__.startswith('nlx'):
      for part, member in vars(value).items():
        function = member.fget if isinstance(member, property) else member
        function = getattr(function, '__func__', function)
        if not part.startswith('_') and inspect.isfunction(function):
          yield f'{name}.{part}', function


def _is_documented(value: Any) -> bool:
  """Whether a class, function or module says what it is; a plain constant need not."""
  if not (callable(value) or inspect.ismodule(value)):
    return True
  text = value.__doc__ or ''
  # Named tuples and dataclasses write their signature where a docstring is missing.
  return bool(text) and not text.startswith(f'{getattr(value, "__name__", "?")}(')


def main() -> None:
  """Checks and builds."""
  bare = undocumented()
  if bare:
    sys.exit(f'These public names have no docstring: {", ".join(bare)}.')
  build(FOLDER)
  print(f'The reference is in {FOLDER / "index.html"}.')


if __name__ == '__main__':
  main()
