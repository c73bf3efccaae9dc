"""The rules against the printed equations, and their gates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx import memories

K, V = 4, 3


def tokens(length, seed=0):
  """Keys, values, queries and gates of one sequence of a matrix memory, and its first matrix."""
  random = np.random.default_rng(seed)
  k, q = random.normal(size=(2, length, K)) / 2
  v = random.normal(size=(length, V))
  eta, alpha, mu = random.uniform(0.1, 0.9, size=(3, length))
  return k, v, q, eta, alpha, mu, random.normal(size=(V, K))


def run(rule, k, v, q, eta, alpha, mu, w, chunk_size=4, objective=None):
  """Outputs of a matrix memory under a rule."""
  layer = memories.layer(memories.matrix(), rule, chunk_size, objective)
  gates = memories.Gates(*map(jnp.asarray, (eta, np.log(alpha), np.log(mu))))
  outputs, _ = layer.unroll(
    layer.level.init({'w': jnp.asarray(w)}),
    memories.Tokens(jnp.asarray(k), jnp.asarray(v), gates),
    jnp.asarray(q),
  )
  return outputs


@pytest.mark.usefixtures('float64')
def test_literal_dgd_follows_equations_90_to_93():
  k, v, q, eta, alpha, mu, w = data = tokens(10)
  s, held, expected = np.zeros((V, K)), w, []
  for t in range(10):
    held = w if t % 4 == 0 else held
    error = held @ k[t] - v[t]
    decay = eta[t] / (1 + eta[t] * k[t] @ k[t])
    s = mu[t] * s - eta[t] * np.outer(error, k[t])
    w = w @ (alpha[t] * np.eye(K) - decay * np.outer(k[t], k[t])) + s
    expected.append(w @ q[t])
  rule = memories.dgd(momentum=True, literal=True)
  np.testing.assert_allclose(run(rule, *data), expected, rtol=1e-10)


@pytest.mark.usefixtures('float64')
def test_literal_gradient_rule_is_titans():
  k, v, q, eta, alpha, mu, w = data = tokens(10)
  s, held, expected = np.zeros((V, K)), w, []
  for t in range(10):
    held = w if t % 4 == 0 else held
    s = mu[t] * s - eta[t] * np.outer(held @ k[t] - v[t], k[t])
    w = alpha[t] * w + s
    expected.append(w @ q[t])
  rule = memories.gradient(momentum=True, literal=True)
  np.testing.assert_allclose(run(rule, *data), expected, rtol=1e-10)


@pytest.mark.usefixtures('float64')
def test_literal_gradient_rule_with_chunks_of_one_token_is_the_delta_rule():
  k, v, q, eta, _, _, w = data = tokens(10)
  expected = []
  for t in range(10):  # Eq. 65
    w = w @ (np.eye(K) - eta[t] * np.outer(k[t], k[t])) + eta[t] * np.outer(v[t], k[t])
    expected.append(w @ q[t])
  rule = memories.gradient(retention=False, literal=True)
  np.testing.assert_allclose(run(rule, *data, chunk_size=1), expected, rtol=1e-10)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('chunk_size', [1, 4, 16])
def test_literal_gradient_rule_on_the_dot_product_is_gated_linear_attention(chunk_size):
  k, v, q, eta, alpha, _, w = data = tokens(10)
  expected = []
  for t in range(10):  # Eq. 64, with retention
    w = alpha[t] * w + eta[t] * np.outer(v[t], k[t])
    expected.append(w @ q[t])
  rule, objective = memories.gradient(literal=True), memories.dot_product()
  got = run(rule, *data, chunk_size=chunk_size, objective=objective)
  np.testing.assert_allclose(got, expected, rtol=1e-10)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('eta', [0.1, 1.0, 30.0])
def test_dgd_is_the_minimiser_of_the_proximal_problem(eta):
  """Eq. 56: W x regresses onto u = -grad L, and W stays close to what it was."""
  k, v, _, _, alpha, mu, w = tokens(1)
  error = w @ k[0] - v[0]

  def proximal(w_new):
    fit = 0.5 * jnp.sum((w_new @ k[0] + error) ** 2)
    return fit + jnp.sum((w_new - w) ** 2) / (2 * eta)

  reads = [run(memories.dgd(retention=False), k, v, row[None], np.array([eta]), alpha, mu, w)[0]
           for row in np.eye(K)]  # fmt: skip
  w_new = jnp.stack(reads, axis=-1)
  np.testing.assert_allclose(jax.grad(proximal)(w_new), 0, atol=1e-12)
  curvature = jax.hessian(proximal)(w_new).reshape(V * K, V * K)
  assert np.linalg.eigvalsh(curvature).min() > 0


@pytest.mark.usefixtures('float64')
def test_dgd_converges_to_half_of_a_repeated_target():
  k, v, _, _, _, _, w = tokens(1)
  k = k / np.linalg.norm(k)
  many = [np.repeat(x, 200, axis=0) for x in (k, v, k)]
  got = run(memories.dgd(retention=False), *many, *np.full((3, 200), 0.5), w)
  np.testing.assert_allclose(got[-1], v[0] / 2, rtol=1e-6)


@pytest.mark.usefixtures('float64')
def test_averaged_momentum_of_a_constant_gradient_has_its_size():
  """Without 1 - mu it would be 1 / (1 - mu) times as large."""
  k, v, _, _, _, _, w = tokens(1)
  length, mu = 300, 0.9
  many = [np.repeat(x, length, axis=0) for x in (k, v, k)]
  gates = np.full(length, 1e-3), np.ones(length), np.full(length, mu)
  # One chunk on the dot product: the gradient is the same at every token.
  rule = memories.gradient(momentum=True)
  out = run(rule, *many, *gates, w, chunk_size=length, objective=memories.dot_product())
  step = out[-1] - out[-2]
  rate = 1e-3 / (1 + 1e-3 * k[0] @ k[0])
  np.testing.assert_allclose(step, rate * v[0] * (k[0] @ k[0]), rtol=1e-9)


@pytest.mark.parametrize('name', ['dgd', 'gradient'])
def test_rule_is_named_in_tables(name):
  assert getattr(memories, name)().name.lower() == name


def test_log_gate_is_the_logarithm_of_a_sigmoid():
  logits = jnp.linspace(-14, 30, 50)
  np.testing.assert_allclose(jnp.exp(memories.log_gate(logits)), jax.nn.sigmoid(logits), rtol=1e-5)


@pytest.mark.parametrize('logit', [-1e30, -1e4, -50.0, 0.0, 1e4, 1e30])
def test_log_gate_and_its_derivative_are_finite(logit):
  value, slope = jax.value_and_grad(memories.log_gate)(logit)
  assert np.isfinite(value) and np.isfinite(slope)


def test_mask_gates_opens_retention_and_closes_the_rate():
  gates = memories.Gates(*jnp.full((3, 2, 4), -0.5))
  masked = memories.mask_gates(gates, jnp.array([True, True, False, False]))
  for gate in masked[:3]:
    np.testing.assert_array_equal(gate, [[-0.5, -0.5, 0, 0]] * 2)
