"""Learning in context as one flat loop over base chunks, written from Eq. 71."""

import jax
import jax.numpy as jnp
from flax import nnx


def clipped(gradient, max_norm):
  """All matrices of one sequence and level, scaled to a norm of at most `max_norm`."""
  square = sum(jnp.sum(x**2) for x in jax.tree.leaves(gradient))
  over = square > max_norm**2
  scale = jnp.where(over, max_norm / jnp.sqrt(jnp.where(over, square, 1)), 1)
  return jax.tree.map(lambda x: scale * x, gradient)


def stopped(condition, tree):
  """The tree, and no gradient through it if the condition holds."""
  return jax.tree.map(lambda x: jnp.where(condition, jax.lax.stop_gradient(x), x), tree)


def losses(model, tokens, targets, mask, first=False, detached=False):
  """Sums of the losses of each base chunk [n] of one sequence [T], T a multiple of the base chunk.

  Args:
    model: A language model.
    tokens: [T].
    targets: [T].
    mask: [T].
    first: Whether inner gradients are constants, bool or traced.
    detached: Whether updated weights are.
  """
  config, cms = model.config, model.blocks.cms
  blocks = zip(cms.blocks, config.cms.periods, strict=True)
  initial = [{'up': b.up.kernel[...], 'down': b.down.kernel[...]} for b, period in blocks if period]
  rates, size = cms.rates(), config.base_chunk

  def chunk_loss(fast, carry, tokens, targets, mask):
    weights = jax.tree.map(lambda w: w[:, None], tuple(fast))
    logits, carry = model.apply(tokens[None], weights, carry)
    log_probs = jax.nn.log_softmax(logits[0])
    chosen = jax.vmap(lambda row, target: row[target])(log_probs, targets)
    return -jnp.sum(mask * chosen), carry

  def update(weights, total, count, rates):
    mean = jax.tree.map(lambda x: x / jnp.maximum(count, 1), total)
    step = clipped(mean, config.cms.max_norm)
    new = jax.tree.map(lambda w, x: w - rates[:, None, None] * x, weights, step)
    return stopped(detached, new)

  def one_chunk(live, x):
    fast, totals, counts, carry = live
    t, *chunk = x
    gradient = jax.value_and_grad(chunk_loss, has_aux=True)
    (loss, carry), gradients = gradient(fast, carry, *chunk)
    totals = jax.tree.map(jnp.add, totals, stopped(first, gradients))
    counts = [count + jnp.sum(chunk[2]) for count in counts]
    for i, period in enumerate(period for period in config.cms.periods if period):
      due = t % period == 0
      new = update(fast[i], totals[i], counts[i], rates[:, i])
      fast[i] = jax.tree.map(lambda new, old, due=due: jnp.where(due, new, old), new, fast[i])
      totals[i] = jax.tree.map(lambda x, due=due: jnp.where(due, 0, x), totals[i])
      counts[i] = jnp.where(due, 0, counts[i])
    return (fast, totals, counts, carry), loss

  ends = size * (1 + jnp.arange(tokens.shape[0] // size))
  chunks = tuple(x.reshape(-1, size) for x in (tokens, targets, mask))
  zeros, carry = jax.tree.map(jnp.zeros_like, initial), model.init_carry(1, tokens.shape[0])
  live = (initial, zeros, [jnp.zeros(())] * len(initial), carry)
  return jax.lax.scan(one_chunk, live, (ends, *chunks))[1]


def batch_losses(model, tokens, targets, mask, first=False, detached=False):
  """`losses` of every sequence [B, n]."""
  graph, params = nnx.split(model)
  one = lambda *text: losses(nnx.merge(graph, params), *text, first, detached)  # noqa: E731
  return jax.vmap(one)(tokens, targets, mask)
