"""Where numbers come from: what every results file says of itself."""

import os
import pathlib
import platform
import subprocess
from importlib import metadata
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'experiments' / 'results'
_CODE = ('nlx', 'experiments', ':!experiments/results', ':!experiments/RESULTS.md')


def record(command: str, device: str) -> dict[str, Any]:
  """Returns the fields that let a reader repeat a measurement.

  Args:
    command: What was typed.
    device: What JAX computed on, such as '1 x cpu'.
  """
  hardware = f'{platform.system()}, {platform.machine()}, {os.cpu_count()} CPU cores, {device}'
  return {
    'command': command,
    'versions': versions(),
    'hardware': hardware,
    'commit': commit(),
  }


def versions() -> dict[str, str]:
  """Returns the versions of Python, JAX, Flax and Optax."""
  packages = {name: metadata.version(name) for name in ('jax', 'flax', 'optax')}
  return {'python': platform.python_version(), **packages}


def commit() -> str:
  """Returns the commit of the code, '-dirty' if it was changed since; 'unknown' without git."""
  head = _git('rev-parse', '--short=12', 'HEAD')
  if not head:
    return 'unknown'
  return head + ('-dirty' if _git('status', '--porcelain', '--', *_CODE) else '')


def _git(*arguments: str) -> str:
  try:
    result = subprocess.run(['git', *arguments], cwd=ROOT, capture_output=True, text=True)
  except FileNotFoundError:
    return ''
  return result.stdout.strip() if result.returncode == 0 else ''
