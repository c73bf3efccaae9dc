"""The rules of the memories, token by token: what the parallel forms must equal.

`SWITCHES` of a rule may be traced, so that one program serves many rules.
"""

import jax
import jax.numpy as jnp

from nlx import memories

# Fields of a rule that may be traced.
SWITCHES = ('delta', 'momentum', 'retention', 'averaged', 'proximal', 'scale_by_depth', 'span')


def loss(memory, weights, key, value):
  """The inner objective of one token."""
  prediction = memories.apply(memory.network, weights, key[None])[0]
  squared = jnp.sum((prediction - value) ** 2)
  match memory.objective.name:
    case 'L2':
      return 0.5 * squared
    case 'L3':
      return jnp.sum(jnp.abs(prediction - value) ** 3) / 3
    case 'Huber':
      norm = jnp.sqrt(jnp.maximum(squared, 1))
      return jnp.where(squared <= 1, 0.5 * squared, norm - 0.5)
    case 'dot product':
      return -jnp.sum(prediction * value)


def matrix_inputs(memory, weights, key):
  """What each matrix of the network is applied to."""
  inputs = {}

  def linear(name, x):
    inputs[name] = x[0]
    return x @ weights[name].T

  memory.network.apply(linear, key[None])
  return inputs


def capped(rule, rate, alpha, square, gradient=None):
  """A rate under the caps that the rule has.

  Args:
    rule: The rule.
    rate: That of the write.
    alpha: The retention.
    square: ||x||^2.
    gradient: The norm of the gradient e x^T that is written; not for rules without a soft cap.
  """
  if rule.hard_cap:
    plain = not rule.exact and not rule.transposed
    both = jnp.where(rule.delta & plain, 2, 1)  # Decay and write.
    moved = both * rule.span * square
    rate = jnp.where(rate * moved > 2 * alpha, 2 * alpha / moved, rate)
  if rule.soft_cap:
    error = gradient / jnp.sqrt(square)
    rate = jnp.where(rate * error > 1 - alpha, (1 - alpha) / error, rate)
  return rate


def used(rule, gates):
  """Rate, retention and momentum; those that the rule has not are open and shut."""
  eta, alpha, mu = gates
  return eta, jnp.where(rule.retention, alpha, 1), jnp.where(rule.momentum, mu, 0)


def write(rule, weight, momentum, gradient, x, gates, depth):
  """One token of Eqs. 90-93 for one matrix, in the order in which they are printed."""
  eta, alpha, mu = used(rule, gates)
  gradient = gradient / jnp.where(rule.scale_by_depth, depth, 1)
  shrink = lambda eta: eta / (1 + rule.span * eta * jnp.sum(x**2))  # noqa: E731
  step = jnp.where(rule.proximal, shrink(eta), eta)
  step = capped(rule, step, alpha, jnp.sum(x**2), jnp.sqrt(jnp.sum(gradient**2)))
  proximal = jnp.where(rule.proximal, step, shrink(step))
  step = step * jnp.where(rule.averaged, 1 - mu, 1)
  momentum = mu * momentum - step * gradient
  decay = jnp.where(rule.delta, proximal, 0)
  kept = alpha * jnp.eye(x.shape[0], dtype=x.dtype) - decay * jnp.outer(x, x)
  return weight @ kept + momentum, momentum


def write_exactly(rule, weight, key, value, gates):
  """One token of a rule whose error is that of the weights right before it: Eqs. 65 and 66."""
  eta, alpha, _ = used(rule, gates)
  if rule.exact:
    eta = capped(rule, eta, 1.0, jnp.sum(key**2))
    kept = alpha * weight
    return kept - eta * jnp.outer(kept @ key - value, key)
  eta = jnp.where(rule.proximal, eta / (1 + eta * jnp.sum(value**2)), eta)
  eta = capped(rule, eta, alpha, jnp.sum(value**2))
  return alpha * weight + eta * (jnp.outer(value, key) - jnp.outer(value, value @ weight))


def write_window(rule, dual, momentum, gradients, squares, t, gates, depth):
  """One token of Eq. 68, and of rules whose last steps are not linear.

  Args:
    rule: The rule.
    dual: The matrix that it moves.
    momentum: S before the token.
    gradients: Of all tokens [T, out, in], at the start of the token's chunk.
    squares: ||x||^2 of all tokens [T].
    t: The token.
    gates: Of all tokens, each [T].
    depth: Matrices that learn at once.
  """
  eta, alpha, mu = used(rule, gates)
  tokens = jnp.arange(eta.shape[0])
  step = jnp.where(rule.proximal, eta / (1 + rule.span * eta * squares), eta)
  gradients = gradients / jnp.where(rule.scale_by_depth, depth, 1)
  norms = jnp.sqrt(jnp.sum(gradients**2, axis=(-2, -1)))
  step = capped(rule, step, alpha, squares, norms)
  step = step * jnp.where(rule.averaged, (1 - mu) / rule.window, 1)
  seen = (tokens <= t) & (tokens > t - rule.window)
  total = jnp.sum(jnp.where(seen, step, 0)[:, None, None] * gradients, axis=0)
  momentum = mu[t] * momentum - total
  push = momentum
  if rule.orthogonal:
    push = push / (jnp.sqrt(jnp.sum(push**2)) + 1e-3)
    for _ in range(rule.orthogonal):
      gram = push @ push.T
      push = 3.4445 * push - 4.7750 * gram @ push + 2.0315 * gram @ gram @ push
    push = eta[t] * push
  return alpha[t] * dual + push, momentum


def run(memory, weights, keys, values, gates, queries, chunk_size, reads='token'):
  """One sequence: keys [T, K], values [T, V], gates each [T], queries [T, K].

  Returns:
    Outputs [T, V], and the last weights and momenta; those of a rule without are the last steps.
  """
  rule = memory.rule
  all_gates = (gates[0], jnp.exp(gates[1]), jnp.exp(gates[2]))
  mirrored = lambda duals: duals if rule.mirror is None else jax.tree.map(rule.mirror.weight, duals)  # noqa: E731

  def gradients(held, key, value):
    target = memory.target(held, value[None])[0]
    gradient = jax.grad(lambda weights: loss(memory, weights, key, target))(held)
    return gradient, matrix_inputs(memory, held, key)

  def written(t, live, held, momenta, key, value):
    gate = tuple(gate[t] for gate in all_gates)
    if rule.exact or rule.transposed:
      return {'w': (write_exactly(rule, live['w'], key, value, gate), momenta['w'])}
    if rule.window > 1 or rule.per_token:
      every, inputs = jax.vmap(gradients, (None, 0, 0))(held, keys, values)
      squares = {name: jnp.sum(x**2, axis=-1) for name, x in inputs.items()}
      args = {name: (every[name], squares[name], t, all_gates, len(live)) for name in live}
      return {n: write_window(rule, live[n], momenta[n], *args[n]) for n in live}
    one, inputs = gradients(held, key, value)
    args = {name: (one[name], inputs[name], gate, len(live)) for name in live}
    return {name: write(rule, live[name], momenta[name], *args[name]) for name in live}

  def token(carry, x):
    live, held, momenta = carry
    t, key, value, query = x
    held = jax.tree.map(lambda now, then: jnp.where(t % chunk_size == 0, now, then), live, held)
    both = written(t, live, mirrored(held), momenta, key, value)
    live = {name: weight for name, (weight, _) in both.items()}
    momenta = {name: momentum for name, (_, momentum) in both.items()}
    answering = mirrored(live if reads == 'token' else held)
    output = memories.apply(memory.network, answering, query[None])[0]
    return (live, held, momenta), output

  start = (weights, weights, jax.tree.map(jnp.zeros_like, weights))
  xs = (jnp.arange(keys.shape[0]), keys, values, queries)
  (live, _, momenta), outputs = jax.lax.scan(token, start, xs)
  return outputs, mirrored(live), momenta
