"""One step of the optimizers on matrices alone, without a model."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.benchmarks import timing
from nlx import optim

CAPTION = (
  '72 matrices of 256 x 512 (9.4M parameters), a gradient for each; means over 16 steps, one slow '
  'period of M3. `products alone` are the matrix products of five Newton-Schulz steps, which Muon '
  'and M3 cannot go below. State is what lies beside the parameters. Ratios are to Muon.'
)


class Sizes(NamedTuple):
  """What is measured."""

  number: int = 72
  shape: tuple[int, int] = (256, 512)
  steps: int = 16
  repeats: int = 3


FULL = Sizes()
SMOKE = Sizes(number=2, shape=(4, 8), steps=2, repeats=1)


def optimizers(sizes: Sizes) -> dict[str, optax.GradientTransformation]:
  """Returns what is measured, at a learning rate of 1e-3; Muon comes first."""
  dims = [optax.contrib.MuonDimensionNumbers()] * sizes.number
  return {
    'Muon': optim.muon(1e-3),
    'Muon of optax': optax.contrib.muon(1e-3, muon_weight_dimension_numbers=dims),
    'M3': optim.m3(1e-3, sizes.steps),
    'AdamW of optax': optax.adamw(1e-3),
    'momentum': optim.momentum(1e-3),
    'delta momentum': optim.delta_momentum(1e-3),
    'deep momentum': optim.deep_momentum(1e-3),
    'preconditioned momentum': optim.preconditioned_momentum(1e-3),
    'learned preconditioner': optim.learned_preconditioner(1e-3),
    'higher-order momentum': optim.higher_order_momentum(1e-3),
  }


def measure(sizes: Sizes) -> list[dict[str, Any]]:
  """Returns a record for each optimizer, and one for the products alone."""
  gradients = [jax.random.normal(jax.random.key(i), sizes.shape) for i in range(sizes.number)]
  runs, records = [], []
  for name, tx in optimizers(sizes).items():
    state = tx.init(gradients)
    start = jax.tree.map(jnp.copy, gradients), state
    program = timing.compiled(_step(tx), start, gradients)
    runs.append(_steps(program.call, start, gradients, sizes.steps))
    records.append(
      {
        'optimizer': name,
        'compile_seconds': program.compile_seconds,
        'state_mib': sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**20,
      }
    )
  program = timing.compiled(jax.jit(products), gradients)
  runs.append(lambda: program.call(gradients))
  records.append({'optimizer': 'products alone', 'compile_seconds': program.compile_seconds})
  seconds = timing.medians(runs, sizes.repeats)
  seconds[:-1] = [total / sizes.steps for total in seconds[:-1]]
  for record, second in zip(records, seconds, strict=True):
    record |= {'ms_per_step': 1e3 * second, 'time_ratio': second / seconds[0]}
  return records


def products(gradients: list[jax.Array]) -> list[jax.Array]:
  """Returns what is left of five steps of Newton-Schulz without anything but its products."""
  done = []
  for x in gradients:
    for _ in range(5):
      gram = x @ x.T
      x = (gram @ gram) @ x
    done.append(x)
  return done


def _step(tx):
  """A step of parameters and state, whose buffers it gives away as the training step does."""

  def step(start, gradients):
    params, state = start
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  return jax.jit(step, donate_argnums=0)


def _steps(step, start, gradients, num_steps):
  """A call of `num_steps` steps that go on from those of the call before."""

  def call():
    nonlocal start
    for _ in range(num_steps):
      start = step(start, gradients)
    return start

  return call
