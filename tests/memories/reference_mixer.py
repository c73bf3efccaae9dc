"""Memory layers from the formulas of their papers: one sequence, one head and one token at a time.

Everything is NumPy in float64, but for the one memory that is an MLP.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Head(NamedTuple):
  """What one head of a layer makes of one sequence."""

  index: int
  keys: np.ndarray  # [T, K], before any feature map, as are values and queries
  values: np.ndarray  # [T, K]
  queries: np.ndarray  # [T, K]
  logits: np.ndarray  # [n, T] of the gates that x decides, their biases included


class Formula(NamedTuple):
  """What a paper prints.

  Attributes:
    answer: `(head, layer) -> (answers [T, K], the last memory)`.
    convolved: Whether a causal convolution comes before the projections.
    gated: Whether a SiLU gate of x multiplies the answers.
  """

  answer: Callable
  convolved: bool
  gated: bool


def run(formula, layer, x):
  """One sequence x [T, D]: outputs [T, D], and the last memory of every head."""
  x = convolved(value(layer.conv.kernel), x) if formula.convolved else x
  dim, heads = x.shape[1], layer.config.num_heads
  ends = np.cumsum([dim, dim, dim, dim if formula.gated else 0])
  *projected, gate, logits = np.split(x @ value(layer.projection.kernel), ends, axis=1)
  if logits.size:
    logits = logits.reshape((len(x), -1, heads)) + value(layer.gate_biases)
  else:
    logits = np.zeros((len(x), 0, heads))
  keys, values, queries = (part.reshape((len(x), heads, -1)) for part in projected)
  answers, memories = [], []
  for h in range(heads):
    head = Head(h, keys[:, h], values[:, h], queries[:, h], logits[:, :, h].T)
    answer, memory = formula.answer(head, layer)
    answers.append(rms_norm(answer, value(layer.output_scale)))
    memories.append(memory)
  out = np.concatenate(answers, axis=1)
  out = out * silu(gate) if formula.gated else out
  return out @ value(layer.output.kernel), memories


# ----- parts


def value(parameter):
  return np.asarray(parameter[...])


def convolved(kernel, x):
  """The last inputs of every channel, each times its tap; zeros came before the first."""
  width = len(kernel)
  padded = np.concatenate([np.zeros((width - 1, x.shape[1])), x])
  return np.stack([np.sum(kernel * padded[t : t + width], axis=0) for t in range(len(x))])


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def silu(x):
  return x * sigmoid(x)


def softplus(x):
  return np.log(1 + np.exp(x))


def unit(x):
  return x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + 1e-6)


def rms_norm(x, scale):
  return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def turned(x):
  """RoFormer: pairs of numbers of x [T, K] as complex numbers, turned by the token's position."""
  half = x.shape[1] // 2
  angles = np.arange(len(x))[:, None] * 10_000.0 ** (-np.arange(half) / half)
  both = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
  return np.concatenate([both.real, both.imag], axis=1)


# ----- memories that are one matrix, which begins with zeros


def written(write, keys, values, queries, *gates):
  """y_t = W_t q_t, where W_t = write(W_{t-1}, k_t, v_t, gates of t)."""
  w, answers = np.zeros((values.shape[1], keys.shape[1])), []
  for t in range(len(keys)):
    w = write(w, keys[t], values[t], *(gate[t] for gate in gates))
    answers.append(w @ queries[t])
  return np.stack(answers), w


def linear_attention(head, layer):
  """Eq. 64: W_t = W_{t-1} + v phi(k)^T and y_t = W_t phi(q), with phi = (1 + ELU) / sqrt(K)."""
  del layer
  phi = lambda x: np.where(x > 0, 1 + x, np.exp(x)) / x.shape[1] ** 0.5  # noqa: E731
  write = lambda w, k, v: w + np.outer(v, k)  # noqa: E731
  return written(write, phi(head.keys), head.values, phi(head.queries))


def retnet(head, layer):
  """arXiv 2307.08621: W_t = gamma_h W_{t-1} + v k^T, positions in q and k, sqrt(K) under k."""
  del layer
  gamma = 1 - 2.0 ** (-5 - head.index)
  write = lambda w, k, v: gamma * w + np.outer(v, k)  # noqa: E731
  keys = turned(head.keys) / head.keys.shape[1] ** 0.5
  return written(write, keys, head.values, turned(head.queries))


def deltanet(head, layer):
  """Eq. 65: W_t = W_{t-1} (I - beta k k^T) + beta v k^T."""
  del layer
  write = lambda w, k, v, beta: w - beta * np.outer(w @ k, k) + beta * np.outer(v, k)  # noqa: E731
  keys, queries = unit(silu(head.keys)), unit(silu(head.queries))
  return written(write, keys, head.values, queries, sigmoid(head.logits[0]))


def gated_deltanet(head, layer):
  """arXiv 2412.06464: W_t = alpha W_{t-1} (I - beta k k^T) + beta v k^T."""

  def write(w, k, v, beta, alpha):
    return alpha * w @ (np.eye(len(k)) - beta * np.outer(k, k)) + beta * np.outer(v, k)

  beta, a = sigmoid(head.logits[0]), np.exp(value(layer.log_retention_rates))[head.index]
  alpha = np.exp(-a * softplus(head.logits[1]))
  keys, queries = unit(silu(head.keys)), unit(silu(head.queries))
  return written(write, keys, head.values, queries, beta, alpha)


def oja(head, layer):
  """Eq. 66: W_t = alpha W_{t-1} + eta' (v k^T - v v^T W_{t-1}), eta' = eta / (1 + eta ||v||^2)."""
  del layer

  def write(w, k, v, eta, alpha):
    return alpha * w + eta / (1 + eta * v @ v) * (np.outer(v, k) - np.outer(v, v @ w))

  keys, values, queries = unit(silu(head.keys)), unit(head.values), unit(silu(head.queries))
  return written(write, keys, values, queries, *sigmoid(head.logits))


# ----- a memory that is an MLP


def mlp(w, x):
  """M(x) = x + W1 sigma(W2 x), Eq. 89."""
  return x + w['w1'] @ jax.nn.silu(w['w2'] @ x)


@jax.jit
@jax.grad
def mlp_gradient(w, k, v):
  """Of 1/2 ||M(k) - v||^2."""
  return 0.5 * jnp.sum((mlp(w, k) - v) ** 2)


def titans(head, layer):
  """arXiv 2501.00663, Eqs. 9-14, in the stable form: S = mu S - step, W = alpha W + S.

  The step is 1 - mu times the gradient at the start of the chunk of C tokens, over the number of
  matrices, times eta / (1 + C eta ||x||^2), where x is the input of the matrix. Values have norm 1.
  """
  chunk = layer.config.chunk_size
  w = held = {name: value(weight)[head.index] for name, weight in layer.weights.items()}
  s, answers = {name: np.zeros(matrix.shape) for name, matrix in w.items()}, []
  keys, values, queries = unit(silu(head.keys)), unit(head.values), unit(silu(head.queries))
  for t, (k, v, q) in enumerate(zip(keys, values, queries, strict=True)):
    held = w if t % chunk == 0 else held
    eta, alpha, mu = sigmoid(head.logits[:, t])
    inputs, gradient = {'w1': silu(held['w2'] @ k), 'w2': k}, mlp_gradient(held, k, v)
    for name, x in inputs.items():
      rate = eta / (1 + chunk * eta * x @ x)
      s[name] = mu * s[name] - (1 - mu) * rate * np.asarray(gradient[name]) / len(inputs)
    w = {name: alpha * w[name] + s[name] for name in w}
    answers.append(mlp(w, q))
  return np.stack(answers), w


FORMULAS = {
  'linear_attention': Formula(linear_attention, convolved=True, gated=False),
  'retnet': Formula(retnet, convolved=False, gated=True),
  'deltanet': Formula(deltanet, convolved=True, gated=False),
  'gated_deltanet': Formula(gated_deltanet, convolved=True, gated=True),
  'oja': Formula(oja, convolved=True, gated=True),
  'titans': Formula(titans, convolved=True, gated=True),
}
