"""How far back a momentum remembers, and how far back M3's two momenta do."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments.studies import Found
from nlx import optim

TITLE = 'Horizon of a momentum'
CAPTION = (
  'How many of the latest gradients carry a share of the total weight in the update direction, '
  'read from the optimizers themselves by giving them one-hot gradients, and the state that this '
  'takes in units of the parameters. M3 here has both decays 0.9, period 16 and, so that its '
  'direction is linear, the identity in the place of Newton-Schulz; shares are averaged over the '
  'phase of the period. Its slow memory holds sums of 16 gradients, a scale that Newton-Schulz '
  'would divide out, and so has the weight 0.5 / 16 here.'
)


class Sizes(NamedTuple):
  """What is measured."""

  num_steps: int = 4096


FULL = Sizes()
SMOKE = Sizes(num_steps=512)
PERIOD = 16
SHARES = (0.5, 0.9, 0.99)


def m3(decay: float) -> optax.GradientTransformationExtraArgs:
  """M3 without what is not linear in the gradients."""
  return optim.scale_by_m3(
    PERIOD,
    decay=decay,
    slow_decay=decay,
    slow_weight=0.5 / PERIOD,
    second_moment='none',
    orthogonalize=lambda tree: tree,
  )


OPTIMIZERS = {
  'momentum, 0.9': optim.scale_by_momentum(0.9, rate=0.1),
  'momentum, 0.99': optim.scale_by_momentum(0.99, rate=0.01),
  'M3, 0.9 and 0.9 every 16': m3(0.9),
}


@functools.partial(jax.jit, static_argnums=(0, 1))
def directions(tx: optax.GradientTransformation, num_steps: int) -> jax.Array:
  """Directions [PERIOD, num_steps] at the last steps; gradient t is one-hot at t."""

  def step(state, t):
    update, state = tx.update(jax.nn.one_hot(t, num_steps), state)
    return state, update

  steps = jnp.arange(num_steps)
  state = tx.init(jnp.zeros(num_steps))
  state, _ = jax.lax.scan(lambda state, t: (step(state, t)[0], None), state, steps[:-PERIOD])
  return jax.lax.scan(step, state, steps[-PERIOD:])[1]


def cumulative(tx: optax.GradientTransformation, num_steps: int) -> np.ndarray:
  """The share [num_steps - PERIOD + 1] of the latest 1, 2, ... gradients, mean over the phase."""
  phases = np.asarray(directions(tx, num_steps), np.float64)
  ends = range(num_steps - PERIOD + 1, num_steps + 1)
  by_age = [row[:end][::-1] for row, end in zip(phases, ends, strict=True)]
  weights = np.mean([ages[: num_steps - PERIOD + 1] for ages in by_age], axis=0)
  return np.cumsum(weights) / weights.sum()


def run(sizes: Sizes) -> Found:
  """Returns a row for each optimizer, and cumulative shares against the age of gradients."""
  curves = {name: cumulative(tx, sizes.num_steps) for name, tx in OPTIMIZERS.items()}
  rows = [_row(name, curve) for name, curve in curves.items()]
  return Found(rows, _plot(curves))


def _row(name: str, curve: np.ndarray) -> dict[str, Any]:
  counts = {f'gradients_for_{s:.0%}': int(np.searchsorted(curve, s)) + 1 for s in SHARES}
  return {
    'optimizer': name,
    **counts,
    'share_of_last_7': float(curve[6]),
    'share_of_last_43': float(curve[42]),
    'state': _state(OPTIMIZERS[name]),
  }


def _state(tx: optax.GradientTransformation) -> int:
  """How many arrays like the parameters a state holds."""
  params = jnp.zeros(3)
  return sum(
    leaf.shape == params.shape for leaf in jax.tree.leaves(jax.eval_shape(tx.init, params))
  )


def _plot(curves: dict[str, np.ndarray]) -> Figure:
  figure = Figure(figsize=(7, 3.8), layout='constrained')
  axes = figure.subplots()
  for share in SHARES:
    axes.axhline(share, color='0.8', linewidth=0.8)
  for (name, curve), style in zip(curves.items(), ('-', '--', '-.'), strict=True):
    axes.semilogx(np.arange(1, len(curve) + 1), curve, style, label=name)
  axes.set(
    xlabel='latest gradients', ylabel='share of the direction', xlim=(1, 2000), ylim=(0, 1.03)
  )
  axes.set_yticks([0, *SHARES], ['0', *(f'{share:.0%}' for share in SHARES)])
  axes.grid(alpha=0.3, axis='x')
  axes.legend(loc='lower right')
  return figure
