"""The maps that memories are: a linear map, a residual MLP, or the user's own."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nlx import core

Linear = Callable[[str, jax.Array], jax.Array]
Weights = dict[str, jax.Array]


class Network(NamedTuple):
  """A map from keys to values whose parameters are matrices, as a memory learns it.

  It is written once over an abstract linear operation. Applied to plain matrices it is a
  feed-forward network; applied to matrices that change from token to token it is the parallel read
  of a memory. An update rule sees each matrix with its own inputs and its own errors, so it works
  for any network written like this.

  Attributes:
    shapes: `(key_dim, value_dim) -> {name: (out, in)}`.
    apply: `(linear, keys [..., C, K]) -> values [..., C, V]`, where `linear(name, x)` maps the last
      axis of x by the matrix of that name; to be called once for each.
    linear: Whether the map is one matrix, named 'w', which some rules need.
    biases: Names of the matrices of one column that are biases, and start at zero.
  """

  shapes: Callable[[int, int], dict[str, tuple[int, int]]]
  apply: Callable[[Linear, jax.Array], jax.Array]
  linear: bool = False
  biases: tuple[str, ...] = ()


@functools.cache
def matrix(bias: bool = False) -> Network:
  """M(k) = W k, the state of linear attention and of the delta rule.

  Args:
    bias: Whether a vector is added, M(k) = W k + b, which is learned like W.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 64-65.
  """
  if not bias:
    return Network(
      shapes=lambda key_dim, value_dim: {'w': (value_dim, key_dim)},
      apply=lambda linear, keys: linear('w', keys),
      linear=True,
    )
  return Network(
    shapes=lambda key_dim, value_dim: {'b': (value_dim, 1), 'w': (value_dim, key_dim)},
    apply=lambda linear, keys: linear('w', keys) + linear('b', _ones(keys)),
    biases=('b',),
  )


def _ones(x):
  """The input of a bias, which is a matrix of one column."""
  return jnp.ones_like(x[..., :1])


@functools.cache
def mlp(
  hidden: int,
  activation: Callable[[jax.Array], jax.Array] = jax.nn.silu,
  *,
  residual: bool = True,
  bias: bool = False,
) -> Network:
  """M(k) = k + W1 activation(W2 k), a residual two-layer MLP.

  Args:
    hidden: F, the width of the hidden layer.
    activation: The non-linearity.
    residual: Whether k is added; if not, keys and values may differ in width.
    bias: Whether both layers have a bias, learned like the matrices.

  Returns:
    A network whose keys and values have one width.

  Raises:
    ValueError: If `hidden` is smaller than 1; when shapes are asked for, if the widths differ.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eq. 89.
  """
  core.check_positive('hidden', hidden)

  def shapes(key_dim, value_dim):
    if residual and key_dim != value_dim:
      raise ValueError(f'a residual memory needs equal widths, got {key_dim=} and {value_dim=}.')
    biases = {'b1': (value_dim, 1), 'b2': (hidden, 1)} if bias else {}
    return {**biases, 'w1': (value_dim, hidden), 'w2': (hidden, key_dim)}

  def layer(linear, index, x):
    out = linear(f'w{index}', x)
    return out + linear(f'b{index}', _ones(x)) if bias else out

  def apply(linear, x):
    out = layer(linear, 1, activation(layer(linear, 2, x)))
    return x + out if residual else out

  return Network(shapes, apply, biases=('b1', 'b2') if bias else ())


def normed(network: Network, scale: jax.Array, offset: jax.Array) -> Network:
  """M(k) = k + LayerNorm(network(k)), the map of TTT-Linear and TTT-MLP.

  Args:
    network: The inner map, whose matrices are learned; its keys and values have one width.
    scale: Of the norm, a slow weight that broadcasts with [..., C, V].
    offset: Of the norm, likewise.

  Returns:
    The network.

  References:
    Sun et al., TTT, arXiv 2407.04620, Sec. 2.7.
  """

  def apply(linear, keys):
    out = network.apply(linear, keys)
    out = out - jnp.mean(out, axis=-1, keepdims=True)
    out = out * jax.lax.rsqrt(jnp.mean(jnp.square(out), axis=-1, keepdims=True) + 1e-6)
    return keys + out * scale + offset

  return Network(network.shapes, apply, biases=network.biases)


def init_weights(
  network: Network,
  key: jax.Array,
  key_dim: int,
  value_dim: int,
  leading: tuple[int, ...] = (),
  scale: float = 1.0,
  dtype: Any = jnp.float32,
) -> Weights:
  """Random matrices of standard deviation `scale / sqrt(in)`; biases are zero.

  Args:
    network: The map.
    key: A random key.
    key_dim: K.
    value_dim: V.
    leading: Leading axes, such as heads.
    scale: Relative size.
    dtype: Of the matrices.

  Returns:
    `{name: [*leading, out, in]}`.
  """
  shapes = network.shapes(key_dim, value_dim)

  def one(index, name, shape):
    if name in network.biases:
      return jnp.zeros((*leading, *shape), dtype)
    matrix = jax.random.normal(jax.random.fold_in(key, index), (*leading, *shape), dtype)
    return scale / shape[1] ** 0.5 * matrix

  return {name: one(i, name, shape) for i, (name, shape) in enumerate(sorted(shapes.items()))}


def apply(network: Network, weights: Weights, keys: jax.Array) -> jax.Array:
  """The network with fixed matrices: keys [..., C, K] to values [..., C, V].

  Matrices are [..., out, in]; their leading axes broadcast with those of the keys.
  """
  return network.apply(lambda name, x: core.matmul(x, weights[name].mT), keys)
