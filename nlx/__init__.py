"""Nested learning in JAX.

A *level* is a state that is held for a period and then updated from what it saw; a *memory* is a
level that maps keys to values; an *optimizer* is a memory of gradients; a *continuum memory
system* is several MLP blocks, each of which learns at a period of its own; a *model* stacks them;
*training* is the slowest level. The folders follow this order, and each is built on some before
it: `core` (no learning yet), `levels`, `memories`, `optim`, `cms`, `parallel` (many devices),
`models`; then `data` (text in, batches out), `training`, `evaluation` (what was learned, and
forgotten), and `interop` (weights in and out).

Packages are imported when they are first used.
"""

import importlib
from typing import Any

__version__ = '0.1.0'

__all__ = [
  'cms',
  'core',
  'data',
  'describe',
  'evaluation',
  'interop',
  'levels',
  'memories',
  'models',
  'optim',
  'parallel',
  'training',
]


def __getattr__(name: str) -> Any:
  """Imports a package of nlx on first use (PEP 562)."""
  if name == 'describe':
    globals()[name] = importlib.import_module('nlx.levels').describe
    return globals()[name]
  if name in __all__:
    return importlib.import_module(f'nlx.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  """Names for completion, whether imported yet or not."""
  return sorted({*globals(), *__all__})
