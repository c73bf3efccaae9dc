"""Deep momentum: a network per leaf as the memory of gradients."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlx import core
from nlx.memories import Memory, Network, Objective, apply, dot_product, gradient, surprise
from nlx.optim import assembly, leaves
from nlx.optim.description import described, memory_info
from nlx.optim.momentum import scale_by_momentum


class ScaleByDeepMomentumState(NamedTuple):
  """State of `scale_by_deep_momentum`."""

  learned: Any  # {'w1': of leaves [..., M, N], [..., N, F], 'w2': [..., F, N]}, at least float32
  features: Any  # per leaf [..., F, N], where w2 starts from; at least float32


def scale_by_deep_momentum(
  hidden: int | None = 64,
  *,
  decay: float = 0.9,
  rate: float = 1.0,
  objective: Objective | None = None,
  output: Callable[[Any], Any] | None = None,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  """Deep momentum (DMGD): a network M that learns gradients and is then asked for this one.

      theta = decay theta - rate' grad_theta mean_i L(M(u_i); u_i)        update = output(M(u))

  The paper leaves the network, its keys and its start open. Ours: every leaf [..., M, N] has a
  memory of its own, M(u) = W1 silu((W0 + W2) u). Keys and values at once are the rows u_i of the
  gradient, divided by their mean norm. Learned are theta = (W1, W2), from zeros; W0 is random and
  does not decay: were the whole of a layer to decay, as printed, its features would be gone in a
  few multiples of 1 / (1 - decay) steps. rate' = rate / (1 + rate mean ||x||^2) is the proximal
  rate of a matrix with inputs x, and errors are divided by the two matrices that learn at once, as
  in the memories of a sequence. Leading axes are a batch of memories; a vector is one row.

  Why it descends: with the dot-product objective what one step writes to W1 is a multiple of
  sum_j u_j h_j^T with h = silu(W0 u). Read out at u_i it is sum_j u_j <h_j, h_i>, whose product
  with the gradient, sum_ij <u_i, u_j> <h_i, h_j>, pairs two positive semi-definite kernels and so
  is not negative: the first step descends, and later gradients count by their likeness to this
  one. A gradient of zeros gives an update of zeros, unlike with momentum.

  Args:
    hidden: F, the width of the hidden layer. None is the linear memory without keys, m = decay m +
      (1 - decay) g, which `output=newton_schulz` makes Muon; see `scale_by_momentum`.
    decay: What is kept of theta per step, in [0, 1).
    rate: Inner learning rate.
    objective: What the memory lowers; `dot_product()` if not given.
    output: A function of the tree of answers M(u), such as `newton_schulz`. If not given, a deep
      memory's answers are divided by their root mean square, each matrix by its own, so that the
      update does not depend on the gradient's scale; a linear memory's stay as they are.
    seed: Of the random features.

  Returns:
    An optax transformation.

  Raises:
    ValueError: If `hidden` is smaller than 1, `decay` is not in [0, 1) or `rate` is negative.

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> tx = nlx.optim.scale_by_deep_momentum(hidden=8)
    >>> updates, state = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
    >>> updates.round(4).tolist()
    [0.848..., 1.131...]

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 50 and 52.
  """
  leaves.check_decay('decay', decay)
  leaves.check_not_negative('rate', rate)
  if hidden is None:
    return scale_by_momentum(decay, rate=rate * (1 - decay), objective=objective, output=output)
  core.check_positive('hidden', hidden)
  memory = Memory(_perceptron(hidden), gradient(), objective or dot_product())

  parts = {'w1': 0, 'w2': 0}

  def learn(grads, w1, w2, features):
    learned = {'w1': w1, 'w2': w2}
    rows = _unit_rows(grads)
    inputs, errors = surprise(memory, _weights(learned, features), rows, rows)

    def step(weight, x, error):
      proximal = rate / (1 + rate * _mean_square(x))
      return decay * weight - proximal / max(rows.shape[-2], 1) * core.matmul(error.mT, x)

    return {name: step(learned[name], inputs[name], errors[name]) for name in learned}

  def read(grads, w1, w2, features):
    learned = {'w1': w1, 'w2': w2}
    answers = apply(memory.network, _weights(learned, features), _unit_rows(grads))
    if output is None:
      answers = _unit_scale(answers)
    return answers.reshape(grads.shape)

  def update(gradients, state, params):
    del params
    full = jax.tree.map(leaves.in_float32, gradients)
    old = (state.learned[name] for name in parts)
    learned = leaves.part_by_part(jax.tree.map(learn, full, *old, state.features), parts, full)
    updates = jax.tree.map(read, full, *(learned[name] for name in parts), state.features)
    updates = updates if output is None else output(updates)
    return leaves.as_dtypes_of(updates, gradients), state._replace(learned=learned)

  def init(params):
    flat, structure = jax.tree.flatten(params)
    keys = [jax.random.fold_in(jax.random.key(seed), i) for i in range(len(flat))]
    drawn = [_draw(key, hidden, leaf) for key, leaf in zip(keys, flat, strict=True)]
    features = jax.tree.unflatten(structure, drawn)
    w1 = jax.tree.map(lambda f: jnp.zeros_like(f.mT), features)
    w2 = jax.tree.map(jnp.zeros_like, features)
    return ScaleByDeepMomentumState({'w1': w1, 'w2': w2}, features)

  def infos(state):
    return [
      memory_info('deep momentum', memory.objective.name, 'gradient, retention', state.learned)
    ]

  return leaves.transformation(described(init, infos), update)


def _perceptron(hidden: int) -> Network:
  """M(u) = W1 silu(W2 u); unlike `mlp` not residual, as an identity needs no learning here."""
  return Network(
    shapes=lambda key_dim, value_dim: {'w1': (value_dim, hidden), 'w2': (hidden, key_dim)},
    apply=lambda linear, x: linear('w1', jax.nn.silu(linear('w2', x))),
  )


def _draw(key: jax.Array, hidden: int, leaf: jax.Array) -> jax.Array:
  """Standard normal, so that unit keys have pre-activations of unit size: silu is not linear."""
  shape = leaves.as_matrix(leaf).shape
  dtype = jnp.promote_types(leaf.dtype, jnp.float32)
  return jax.random.normal(key, (*shape[:-2], hidden, shape[-1]), dtype)


def _weights(learned, features):
  return {'w1': learned['w1'], 'w2': features + learned['w2']}


def _unit_rows(leaf):
  """The rows [..., M, N] of a gradient, divided by their mean norm."""
  rows = leaves.as_matrix(leaf)
  norms = core.matrix_norm(rows[..., None, :])
  return _divide(rows, _mean(norms, axis=-3))


def _unit_scale(answers):
  size = answers.shape[-2] * answers.shape[-1]
  return _divide(answers, core.matrix_norm(answers) / size**0.5)


def _divide(x, scale):
  """Quotients x / scale; zeros, where the scale is zero, stay zeros."""
  return x / jnp.where(scale > 0, scale, 1)


def _mean_square(x):
  """mean_i ||x_i||^2 of rows [..., M, N], as [..., 1, 1]."""
  return _mean(jnp.sum(jnp.square(x), axis=-1, keepdims=True), axis=-2)[..., None, :]


def _mean(x, axis):
  """The mean over an axis, 0 where it is empty."""
  return jnp.sum(x, axis) / max(x.shape[axis], 1)


def deep_momentum(
  learning_rate: optax.ScalarOrSchedule,
  hidden: int | None = 64,
  *,
  decay: float = 0.9,
  rate: float = 1.0,
  objective: Objective | None = None,
  output: Callable[[Any], Any] | None = None,
  seed: int = 0,
  weight_decay: float = 0.0,
  mask: Any = None,
  labels: assembly.Labels | None = None,
  adamw: Mapping[str, Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Gradient descent with deep momentum for matrices; see `scale_by_deep_momentum`.

  Args:
    learning_rate: Constant or schedule.
    hidden: F, the width of the hidden layer; None is the linear memory.
    decay: What is kept of the memory per step, in [0, 1).
    rate: Inner learning rate.
    objective: What the memory lowers; `dot_product()` if not given.
    output: A function of the tree of answers, such as `newton_schulz`.
    seed: Of the random features.
    weight_decay: Fraction of a weight removed per step, in units of the learning rate.
    mask: A function that says which parameters decay, as in `optax.adamw`.
    labels: From params to a tree of 'matrix' and 'other'; `matrix_labels` if not given.
    adamw: Options of `optax.adamw` for what is no matrix, as b1 or its own `learning_rate`.

  Returns:
    An optax transformation.

  Raises:
    ValueError: If `hidden` is smaller than 1, `decay` is not in [0, 1) or `rate` is negative.

  Example:
    >>> import nlx
    >>> tx = nlx.optim.deep_momentum(1e-3, hidden=16)

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 50 and 52.
  """
  scale = scale_by_deep_momentum(
    hidden, decay=decay, rate=rate, objective=objective, output=output, seed=seed
  )
  return assembly.by_kind(
    scale, learning_rate, weight_decay=weight_decay, mask=mask, labels=labels, adamw=adamw
  )
