"""What Newton-Schulz makes of singular values, under three choices of coefficients."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.studies import Found
from nlx import optim

TITLE = 'Singular values under Newton-Schulz'
CAPTION = (
  'A singular value x goes in as that of the 2 x 2 matrix diag(x, sqrt(1 - x^2)), whose Frobenius '
  'norm is 1 already, and comes out of `newton_schulz` in float32. `in band from` is the least x '
  'in [1e-4, 1] from which on all outputs lie in (0.68, 1.21), the band that the quintic promises; '
  'least and greatest output are those from there on.'
)


class Sizes(NamedTuple):
  """What is measured."""

  num_values: int = 4001


FULL = Sizes()
SMOKE = Sizes(num_values=41)
BAND = (0.68, 1.21)
VARIANTS: dict[str, tuple[Any, int, str]] = {
  'quintic, 5 steps': (optim.QUINTIC, 5, '-'),
  'quintic, 10 steps': (optim.QUINTIC, 10, ':'),
  'cubic, 5 steps': (optim.CUBIC, 5, '--'),
  'minimax(1e-3, 6)': (optim.minimax(1e-3, 6), 6, '-.'),
}


def outputs(values: np.ndarray, coefficients: Any, steps: int) -> np.ndarray:
  """What becomes of each of the singular values [n], given relative to the Frobenius norm."""
  pairs = np.stack([values, np.sqrt(1 - values**2)], axis=-1)
  matrices = jnp.asarray(pairs[:, :, None] * np.eye(2), jnp.float32)
  return np.asarray(optim.newton_schulz(matrices, steps=steps, coefficients=coefficients))[:, 0, 0]


def run(sizes: Sizes) -> Found:
  """Returns a row for each variant, and outputs against inputs."""
  values = np.geomspace(1e-4, 1, sizes.num_values)
  curves = {name: outputs(values, *variant[:2]) for name, variant in VARIANTS.items()}
  rows = [_row(name, values, curve) for name, curve in curves.items()]
  return Found(rows, _plot(values, curves))


def _row(name: str, values: np.ndarray, curve: np.ndarray) -> dict[str, Any]:
  outside = np.flatnonzero((curve <= BAND[0]) | (curve >= BAND[1]))
  first = int(outside[-1]) + 1 if len(outside) else 0
  found = first < len(values)
  return {
    'variant': name,
    'steps': VARIANTS[name][1],
    'in_band_from': float(values[first]) if found else None,
    'least_output': float(curve[first:].min()) if found else None,
    'greatest_output': float(curve[first:].max()) if found else None,
  }


def _plot(values: np.ndarray, curves: dict[str, np.ndarray]) -> Figure:
  figure = Figure(figsize=(7, 3.8), layout='constrained')
  axes = figure.subplots()
  axes.axhspan(*BAND, color='0.9', label=f'{BAND[0]} to {BAND[1]}')
  for name, curve in curves.items():
    axes.semilogx(values, curve, VARIANTS[name][2], label=name)
  axes.set(xlabel='singular value / Frobenius norm', ylabel='singular value after')
  axes.set(xlim=(1e-4, 1), ylim=(0, 1.3))
  axes.grid(alpha=0.3)
  axes.legend(loc='lower right')
  return figure
