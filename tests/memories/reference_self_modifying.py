"""Self-modifying Titans, token by token: what the layer must equal, state by state.

All memories of a head, its roles and the main one, are stacked along a first axis [M, ...].
"""

import jax
import jax.numpy as jnp

from nlx import memories
from nlx.memories.self_modifying import ROLES
from tests.memories import reference


def unit(x):
  return x / jnp.sqrt(jnp.sum(x**2) + 1e-6)


def answer(network, weights, x):
  """M(x) of one token."""
  return memories.apply(network, weights, x[None])[0]


def generated(config, slow, held, inputs):
  """What the held roles make of one token's projections [len(ROLES), K]."""
  made = dict(zip(ROLES, inputs, strict=True))
  for i, role in enumerate(config.adaptive):
    weights = jax.tree.map(lambda w, i=i: w[i], held)
    made[role] = answer(config.network, weights, made[role])
  logits = jnp.stack([made['eta'], made['alpha']]) * slow['gate_weights']
  rate, retention = logits.sum(-1) + slow['gate_biases']
  eta = jax.nn.sigmoid(rate) if config.rate_gate == 'sigmoid' else jnp.exp(rate)
  gates = (eta, jax.nn.sigmoid(retention), jax.nn.sigmoid(slow['momentum_logits']))
  return unit(made['k']), unit(made['v']), unit(made['q']), gates


def write(config, live, held, momentum, key, value, gates):
  """One token into one memory, whose target is its own answer to the value."""
  memory = memories.Memory(config.network, config.rule, config.objective)
  target = unit(answer(config.network, held, value))
  gradients = jax.grad(lambda weights: reference.loss(memory, weights, key, target))(held)
  inputs = reference.matrix_inputs(memory, held, key)
  written = {
    name: reference.write(
      config.rule, live[name], momentum[name], gradients[name], inputs[name], gates, len(live)
    )
    for name in live
  }
  return tuple({name: pair[i] for name, pair in written.items()} for i in range(2))


def head(config, slow, first, inputs):
  """One head of one sequence: inputs [T, len(ROLES), K] to [T, K]."""
  periods = jnp.array([config.projection_chunk_size] * len(config.adaptive) + [config.chunk_size])

  def token(carry, x):
    live, held, momenta = carry
    t, inputs = x

    def anchored(now, then):
      return jnp.where((t % periods == 0).reshape((-1, 1, 1)), now, then)

    held = jax.tree.map(anchored, live, held)
    key, value, query, gates = generated(config, slow, held, inputs)

    def one(live, held, momentum):
      return write(config, live, held, momentum, key, value, gates)

    live, momenta = jax.vmap(one)(live, held, momenta)
    answering = live if config.reads == 'token' else held
    output = answer(config.network, jax.tree.map(lambda w: w[-1], answering), query)
    return (live, held, momenta), output

  start = (first, first, jax.tree.map(jnp.zeros_like, first))
  return jax.lax.scan(token, start, (jnp.arange(inputs.shape[0]), inputs))[1]


def convolved(kernel, x):
  """A causal depthwise convolution of x [T, D]."""
  width, length = kernel.shape[0], x.shape[0]
  padded = jnp.concatenate([jnp.zeros((width - 1, x.shape[1]), x.dtype), x])
  return sum(kernel[i][None] * padded[i : i + length] for i in range(width))


def run(layer, x):
  """The layer on fresh sequences x [B, T, D]."""
  config = layer.config
  heads = {
    name: getattr(layer, name)[...] for name in ('gate_weights', 'gate_biases', 'momentum_logits')
  }
  first = {name: weight[...][:, None] for name, weight in layer.memory_weights.items()}
  if config.adaptive:
    first = {
      name: jnp.concatenate([layer.role_weights[name][...], weight], axis=1)
      for name, weight in first.items()
    }
  axes = {'gate_weights': 1, 'gate_biases': 1, 'momentum_logits': 0}

  def sequence(x):
    x = convolved(layer.conv.kernel[...], x)
    projected = x @ layer.projection.kernel[...]
    inputs, gate = projected[:, : -config.model_dim], projected[:, -config.model_dim :]
    inputs = inputs.reshape((-1, len(ROLES), config.num_heads, config.head_dim))
    one = lambda slow, first, inputs: head(config, slow, first, inputs)  # noqa: E731
    out = jax.vmap(one, (axes, 0, 2), 1)(heads, first, inputs)
    size = jnp.sqrt(jnp.mean(out**2, axis=-1, keepdims=True) + 1e-6)
    out = out / size * layer.output_scale[...].reshape((1, 1, -1))
    return (out.reshape(gate.shape) * gate * jax.nn.sigmoid(gate)) @ layer.output.kernel[...]

  return jax.vmap(sequence)(x)
