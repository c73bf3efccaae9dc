"""The rules of the memories, token by token: what the parallel forms must equal."""

import jax
import jax.numpy as jnp

from nlx import memories


def loss(memory, weights, key, value):
  """The inner objective of one token."""
  prediction = memories.apply(memory.network, weights, key[None])[0]
  if memory.objective.name == 'L2':
    return 0.5 * jnp.sum((prediction - value) ** 2)
  return -jnp.sum(prediction * value)


def matrix_inputs(memory, weights, key):
  """What each matrix of the network is applied to."""
  inputs = {}

  def linear(name, x):
    inputs[name] = x[0]
    return x @ weights[name].T

  memory.network.apply(linear, key[None])
  return inputs


def write(rule, weight, momentum, gradient, x, gates, depth):
  """One token of Eqs. 90-93 for one matrix, in the order in which they are printed."""
  eta, alpha, mu = gates
  proximal = eta / (1 + eta * jnp.sum(x**2))
  step = (proximal if rule.proximal else eta) / (depth if rule.scale_by_depth else 1)
  if rule.momentum:
    step = step * (1 - mu) if rule.averaged else step
    momentum = mu * momentum - step * gradient
  else:
    momentum = -step * gradient
  kept = (alpha if rule.retention else 1.0) * jnp.eye(x.shape[0], dtype=x.dtype)
  if rule.delta:
    kept = kept - proximal * jnp.outer(x, x)
  return weight @ kept + momentum, momentum


def run(memory, weights, keys, values, gates, queries, chunk_size, reads='token'):
  """One sequence: keys [T, K], values [T, V], gates each [T], queries [T, K].

  Returns:
    Outputs [T, V], and the last weights and momenta; no momenta for a rule without.
  """

  def token(carry, x):
    live, held, momenta = carry
    t, key, value, eta, log_alpha, log_mu, query = x
    held = jax.tree.map(lambda now, then: jnp.where(t % chunk_size == 0, now, then), live, held)
    target = memory.target(held, value[None])[0]
    gradients = jax.grad(lambda weights: loss(memory, weights, key, target))(held)
    inputs = matrix_inputs(memory, held, key)
    gate = (eta, jnp.exp(log_alpha), jnp.exp(log_mu))
    written = {
      name: write(
        memory.rule, live[name], momenta[name], gradients[name], inputs[name], gate, len(live)
      )
      for name in live
    }
    live = {name: weight for name, (weight, _) in written.items()}
    momenta = {name: momentum for name, (_, momentum) in written.items()}
    answering = live if reads == 'token' else held
    output = memories.apply(memory.network, answering, query[None])[0]
    return (live, held, momenta), output

  start = (weights, weights, jax.tree.map(jnp.zeros_like, weights))
  xs = (jnp.arange(keys.shape[0]), keys, values, *gates[:3], queries)
  (live, _, momenta), outputs = jax.lax.scan(token, start, xs)
  return outputs, live, momenta if memory.rule.momentum else None
