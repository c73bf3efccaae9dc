"""How fast delta momentum follows a valley that turns, against plain momentum."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments.studies import Found
from nlx import optim

TITLE = 'Curved valley'
CAPTION = (
  'Steps until psi = r^2 + 5 (r - theta + sin(2 r) / 2)^2 stays at 1e-3 or below, from (-3.5, 2), '
  'at 28 learning rates between 1e-4 and 1e-1, in float64. `settled` counts the rates that get '
  'there in 3,000 steps; the speed-up is the median over the rates at which both do.'
)


class Sizes(NamedTuple):
  """What is measured."""

  num_rates: int = 28
  max_steps: int = 3000


FULL = Sizes()
SMOKE = Sizes(num_rates=3, max_steps=50)
OPTIMIZERS = {
  'momentum': optim.scale_by_momentum,
  'delta, 1e-4': functools.partial(optim.scale_by_delta_momentum, delta=1e-4),
  'delta, 1e-2': functools.partial(optim.scale_by_delta_momentum, delta=1e-2),
}


def height(point: jax.Array) -> jax.Array:
  """The potential psi at (r, theta) [2]."""
  r, theta = point
  return r**2 + 5 * (r - theta + 0.5 * jnp.sin(2 * r)) ** 2


@functools.partial(jax.jit, static_argnums=(0, 2))
def descend(make: Any, rate: jax.Array, max_steps: int, decay: float) -> jax.Array:
  """Heights after each step [max_steps]."""
  tx = optax.chain(make(decay), optax.scale(-rate))

  def step(carry, _):
    point, state = carry
    updates, state = tx.update(jax.grad(height)(point), state, point)
    point = optax.apply_updates(point, updates)
    return (point, state), height(point)

  start = jnp.array([-3.5, 2.0])
  return jax.lax.scan(step, (start, tx.init(start)), length=max_steps)[1]


def settled(heights: np.ndarray) -> int | None:
  """The first step from which on the height stays at 1e-3 or below; None if there is none."""
  above = np.flatnonzero(~(heights <= 1e-3))  # A height that is not a number is above.
  first = int(above[-1]) + 2 if len(above) else 1
  return first if first <= len(heights) else None


def run(sizes: Sizes) -> Found:
  """Returns a row for each optimizer and decay, and steps against learning rates."""
  rates = np.geomspace(1e-4, 1e-1, sizes.num_rates)
  rows, steps = [], {}
  with jax.enable_x64(True):
    for decay in (0.99, 0.9):
      for name, make in OPTIMIZERS.items():
        found = [settled(np.asarray(descend(make, rate, sizes.max_steps, decay))) for rate in rates]
        steps[name, decay] = np.array([np.nan if step is None else step for step in found])
        rows.append(_row(name, decay, steps[name, decay], steps['momentum', decay]))
  return Found(rows, _plot(rates, steps))


def _row(name: str, decay: float, steps: np.ndarray, plain: np.ndarray) -> dict[str, Any]:
  ratios = (plain / steps)[np.isfinite(plain / steps)]
  return {
    'optimizer': name,
    'decay': decay,
    'settled': int(np.isfinite(steps).sum()),
    'median_steps': float(np.nanmedian(steps)) if np.isfinite(steps).any() else None,
    'median_speed_up': float(np.median(ratios)) if len(ratios) else None,
  }


def _plot(rates: np.ndarray, steps: dict[tuple[str, float], np.ndarray]) -> Figure:
  figure = Figure(figsize=(8, 3.5), layout='constrained')
  for axes, decay in zip(figure.subplots(1, 2, sharey=True), (0.99, 0.9), strict=True):
    for (name, of_decay), found in steps.items():
      if of_decay == decay:
        style = {'momentum': 'o-', 'delta, 1e-4': 's--', 'delta, 1e-2': '^:'}[name]
        axes.loglog(rates, found, style, markersize=4, label=name)
    axes.set(title=f'decay {decay}', xlabel='learning rate')
    axes.grid(alpha=0.3)
    axes.label_outer()
  figure.axes[0].set_ylabel('steps until settled')
  figure.axes[0].legend()
  return figure
