"""Lists the public names of nlx; `python -m tests.public_names` writes them to public_names.txt."""

import importlib
import pathlib
import pkgutil

import nlx

PATH = pathlib.Path(__file__).with_name('public_names.txt')


def packages():
  """Names of nlx and of every package below it."""
  below = pkgutil.walk_packages(nlx.__path__, 'nlx.')
  return ['nlx', *sorted(info.name for info in below if info.ispkg)]


def public_names():
  """Maps the full name of everything in an `__all__` to the object that it names."""
  modules = [importlib.import_module(name) for name in packages()]
  return {
    f'{module.__name__}.{name}': getattr(module, name)
    for module in modules
    for name in getattr(module, '__all__', ())
  }


if __name__ == '__main__':
  PATH.write_text(''.join(f'{name}\n' for name in sorted(public_names())), encoding='utf-8')
