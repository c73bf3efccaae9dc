"""What optimizers forget of tasks whose inputs have nothing in common."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments.studies import Found
from nlx import optim

TITLE = 'Orthogonal tasks'
CAPTION = (
  'A linear layer learns 8 regressions in sequence, 100 steps of 16 samples each, whose inputs lie '
  'in 8 orthogonal subspaces: what is learned of one need not cost another anything. Forgetting is '
  'the mean, over all tasks but the last, of the exact expected loss in the end minus that right '
  'after learning the task; before learning it is 8. Every optimizer has that one of the learning '
  'rates 1e-4, 3e-4, ..., 1 which is best for the loss right after learning (mean over tasks and '
  'seeds); the right half of the figure shows all of them. Plain SGD is the control: without a '
  "memory of gradients nothing moves what past tasks need. DGD's fixed point is half of the "
  'target, which leaves a loss of 2.'
)


class Sizes(NamedTuple):
  """The tasks, and what is tried on them."""

  dim: int = 64
  out_dim: int = 16
  num_tasks: int = 8
  num_steps: int = 100  # per task
  batch_size: int = 16
  num_seeds: int = 5
  rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


FULL = Sizes()
SMOKE = Sizes(dim=8, out_dim=4, num_tasks=2, num_steps=3, num_seeds=2, rates=(1e-2, 1e-1))
OPTIMIZERS: dict[str, Callable[[optax.Schedule], optax.GradientTransformation]] = {
  'SGD': optax.sgd,
  'SGD, momentum 0.99': functools.partial(optim.momentum, decay=0.99),
  'delta momentum 0.99, 1e-2': functools.partial(optim.delta_momentum, decay=0.99, delta=1e-2),
  'delta momentum 0.99, 1': functools.partial(optim.delta_momentum, decay=0.99, delta=1.0),
  'Adam': optax.adam,
  'AdamW, weight decay 0.1': functools.partial(optax.adamw, weight_decay=0.1),
  'Muon 0.95': optim.muon,
  'M3': optim.m3,
  'DMGD': optim.deep_momentum,
  'DGD': optim.delta_gradient_descent,
}
_MARKERS = 'oDvs^<P*Xh'


class Tasks(NamedTuple):
  """What is learned with one seed; leading axes are a batch of seeds."""

  subspaces: jax.Array  # [tasks, rank, dim] orthonormal rows
  targets: jax.Array  # [tasks, rank, out_dim]
  inputs: jax.Array  # [steps of all tasks, batch, rank], within the subspace of their task


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.vmap, in_axes=(None, 0))
def draw(sizes: Sizes, seed: jax.Array) -> Tasks:
  """The tasks of every seed; inputs have unit length on average, as the paper assumes for DGD."""
  rank = sizes.dim // sizes.num_tasks
  keys = [jax.random.fold_in(jax.random.key(seed), i) for i in range(3)]
  basis = jnp.linalg.qr(jax.random.normal(keys[0], (sizes.dim, sizes.dim)))[0]
  targets = jax.random.normal(keys[1], (sizes.num_tasks, rank, sizes.out_dim))
  batches = (sizes.num_tasks * sizes.num_steps, sizes.batch_size, rank)
  inputs = jax.random.normal(keys[2], batches) / rank**0.5
  return Tasks(basis.reshape(sizes.num_tasks, rank, sizes.dim), targets, inputs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def losses(name: str, sizes: Sizes, rates: jax.Array, tasks: Tasks) -> jax.Array:
  """Expected losses [rates, seeds, steps of all tasks, tasks] of every task after every step."""
  over_seeds = jax.vmap(functools.partial(_losses, name, sizes), (None, 0))
  return jax.vmap(over_seeds, (0, None))(rates, tasks)


def _losses(name, sizes, rate, tasks):
  tx = OPTIMIZERS[name](lambda count: rate)

  def batch_loss(params, x, y):
    return jnp.mean(jnp.sum(jnp.square(_layer(x, params) - y), axis=-1)) / 2

  def step(carry, now):
    (params, state), (t, z) = carry, now
    task = t // sizes.num_steps
    x, y = z @ tasks.subspaces[task], z @ tasks.targets[task]
    updates, state = tx.update(jax.grad(batch_loss)(params, x, y), state, params)
    params = optax.apply_updates(params, updates)
    errors = _layer(tasks.subspaces, params) - tasks.targets  # [tasks, rank, out_dim]
    return (params, state), jnp.sum(jnp.square(errors), axis=(1, 2)) / (2 * z.shape[-1])

  start: Any = jnp.zeros((sizes.dim, sizes.out_dim))
  start = optim.capture(start) if name == 'DGD' else start
  steps = jnp.arange(len(tasks.inputs)), tasks.inputs
  return jax.lax.scan(step, (start, tx.init(start)), steps)[1]


def _layer(x, params):
  return optim.dense(x, params) if isinstance(params, optim.Captured) else x @ params


class Measured(NamedTuple):
  """What there is to know of an optimizer, each [rates, seeds]."""

  learned: np.ndarray  # loss right after learning a task, mean over tasks
  final: np.ndarray  # loss after the last task, mean over tasks
  forgotten: np.ndarray  # growth of the loss since, mean over tasks but the last

  @property
  def best(self) -> int:
    """The rate that learns best."""
    means = self.learned.mean(axis=1)
    return int(np.argmin(np.where(np.isfinite(means), means, np.inf)))


def measure(name: str, sizes: Sizes, tasks: Tasks) -> Measured:
  """Runs an optimizer at all rates and seeds."""
  found = losses(name, sizes, jnp.array(sizes.rates), tasks)
  after = np.asarray(found, np.float64)[:, :, sizes.num_steps - 1 :: sizes.num_steps]
  right_after = np.diagonal(after, axis1=2, axis2=3)  # [rates, seeds, tasks]
  final = after[:, :, -1]
  forgotten = (final - right_after)[..., :-1]
  return Measured(right_after.mean(-1), final.mean(-1), forgotten.mean(-1))


def run(sizes: Sizes) -> Found:
  """Returns a row for each optimizer and seed, and what is forgotten against what was learned."""
  tasks = draw(sizes, jnp.arange(sizes.num_seeds))
  found = {name: measure(name, sizes, tasks) for name in OPTIMIZERS}
  rows = [
    {
      'optimizer': name,
      'seed': seed,
      'learning_rate': sizes.rates[of.best],
      'loss_after_learning': float(of.learned[of.best, seed]),
      'final_loss': float(of.final[of.best, seed]),
      'forgetting': float(of.forgotten[of.best, seed]),
    }
    for name, of in found.items()
    for seed in range(sizes.num_seeds)
  ]
  return Found(rows, _plot(sizes, found))


def _plot(sizes: Sizes, found: dict[str, Measured]) -> Figure:
  figure = Figure(figsize=(11, 4.2), layout='constrained')
  left, right = figure.subplots(1, 2, sharey=True)
  for (name, of), marker in zip(found.items(), _MARKERS, strict=True):
    learned, forgotten = of.learned.mean(axis=1), of.forgotten.mean(axis=1)
    chosen = {'marker': marker, 'markersize': 9, 'markeredgecolor': 'black'}
    (line,) = right.plot(sizes.rates, forgotten, marker=marker, markersize=3, linewidth=0.8)
    chosen['color'] = line.get_color()
    left.plot(learned[of.best], forgotten[of.best], linestyle='', label=name, **chosen)
    right.plot(sizes.rates[of.best], forgotten[of.best], **chosen)
  left.set(xscale='log', xlabel='loss right after learning', ylabel='forgetting')
  right.set(xscale='log', xlabel='learning rate (large: the chosen one)')
  left.set_yscale('symlog', linthresh=0.1)
  left.set_ylim(-5, 1e3)
  for axes in (left, right):
    axes.axhline(0, color='0.6', linewidth=0.8)
    axes.grid(alpha=0.3)
  figure.legend(*left.get_legend_handles_labels(), loc='outside right center')
  return figure
