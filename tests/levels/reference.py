"""Nested levels as one flat loop: what `nest` must equal."""

import jax
import jax.numpy as jnp

from nlx import core, levels


def flat(system, cell, *, chunk, meta='full', truncate=None):
  """Like `nest`, as one scan over base chunks that updates every level by `t % period == 0`."""

  def update(level, state, signal, ticks):
    state = level.gather(state, signal, chunk)
    flushed = level.flush(state)
    cut = meta == 'detached'
    if truncate is not None:
      cut = ticks // level.period % truncate == 0
    flushed = core.select(cut, jax.lax.stop_gradient(flushed), flushed)
    return core.select(ticks % level.period == 0, flushed, state)

  def run(slow, states, carry, xs, start=0):
    def one_chunk(live, indexed):
      states, carry = live
      seen, x = indexed
      fast = tuple(level.read(state) for level, state in zip(system, states, strict=True))
      loss, count, new_carry, outputs = cell(slow, fast, carry, x)
      gradients = jax.grad(lambda fast: jnp.sum(cell(slow, fast, carry, x)[0]))(fast)
      if meta == 'first':
        gradients = jax.lax.stop_gradient(gradients)
      states = tuple(
        update(level, state, levels.Weighted(gradient, count), seen * chunk)
        for level, state, gradient in zip(system, states, gradients, strict=True)
      )
      return (states, new_carry), (loss, count, outputs)

    seen = start + 1 + jnp.arange(jax.tree.leaves(xs)[0].shape[0])
    live, (loss, count, outputs) = jax.lax.scan(one_chunk, (tuple(states), carry), (seen, xs))
    return levels.NestResult(loss, count, *live, outputs)

  return run
