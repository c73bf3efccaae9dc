"""The rules against the printed equations, and their gates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx import memories
from nlx.memories import chunk
from tests.compiling import quick_jit

K, V = 4, 3


def tokens(length, seed=0):
  """Keys, values, queries and gates of one sequence of a matrix memory, and its first matrix."""
  random = np.random.default_rng(seed)
  k, q = random.normal(size=(2, length, K)) / 2
  v = random.normal(size=(length, V))
  eta, alpha, mu = random.uniform(0.1, 0.9, size=(3, length))
  return k, v, q, eta, alpha, mu, random.normal(size=(V, K))


@functools.cache
def program(rule, chunk_size, objective):
  """`(keys, values, queries, gates, first matrix) -> outputs` of a matrix memory."""
  layer = memories.layer(memories.matrix(), rule, chunk_size, objective)

  def outputs(k, v, q, gates, w):
    return layer.unroll(layer.level.init({'w': w}), memories.Tokens(k, v, gates), q)[0]

  return quick_jit(outputs)


def run(rule, k, v, q, eta, alpha, mu, w, chunk_size=4, objective=None):
  """Outputs of a matrix memory under a rule."""
  gates = memories.Gates(eta, np.log(alpha), np.log(mu))
  return np.asarray(program(rule, chunk_size, objective)(k, v, q, gates, w))


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
  w_new = np.stack(reads, axis=-1)
  slope, curvature = quick_jit(lambda w: (jax.grad(proximal)(w), jax.hessian(proximal)(w)))(w_new)
  np.testing.assert_allclose(slope, 0, atol=1e-12)
  curvature = np.reshape(curvature, (V * K, V * K))
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


def test_caps_are_named_in_tables():
  rule = memories.dgd(hard_cap=True, soft_cap=True)
  assert rule.text == 'DGD, hard cap, soft cap, retention'


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


# ----- rules that are special cases of each other


def orthonormal(length):
  """Tokens whose keys do not answer each other."""
  k, v, q, eta, alpha, mu, w = tokens(length)
  return np.linalg.qr(k.T)[0].T, v, q, eta, alpha, mu, 0 * w


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('momentum', [False, True])
def test_dgd_whose_decay_is_zero_is_the_gradient_rule(momentum, monkeypatch):
  data = tokens(10)
  expected = run(memories.gradient(momentum=momentum), *data)
  rates = chunk.rates

  def without_decay(*args):
    decay, write = rates(*args)
    return jnp.zeros_like(decay), write

  monkeypatch.setattr(chunk, 'rates', without_decay)
  # Under a name of its own, because programs are kept.
  rule = memories.dgd(momentum=momentum)._replace(name='without decay')
  np.testing.assert_allclose(run(rule, *data), expected, atol=1e-12)


@pytest.mark.usefixtures('float64')
def test_gated_delta_rule_with_open_retention_is_the_delta_rule():
  k, v, q, eta, alpha, mu, w = tokens(10)
  got = run(memories.delta_rule(), k, v, q, eta, 0 * alpha + 1, mu, w)
  expected = run(memories.delta_rule(retention=False), k, v, q, eta, alpha, mu, w)
  np.testing.assert_allclose(got, expected, atol=1e-12)


@pytest.mark.usefixtures('float64')
def test_delta_rule_that_reads_nothing_back_is_linear_attention():
  data = orthonormal(4)
  expected = run(memories.gradient(literal=True), *data, objective=memories.dot_product())
  np.testing.assert_allclose(run(memories.delta_rule(), *data), expected, atol=1e-12)


@pytest.mark.usefixtures('float64')
def test_omega_rule_of_one_token_is_the_gradient_rule():
  data = tokens(10)
  got = run(memories.omega(window=1), *data)
  np.testing.assert_allclose(got, run(memories.gradient(momentum=True), *data), atol=1e-12)


@pytest.mark.usefixtures('float64')
def test_delta_rule_does_not_depend_on_the_chunk_size():
  data = tokens(10)
  got, expected = (run(memories.delta_rule(), *data, chunk_size=size) for size in (10, 1))
  np.testing.assert_allclose(got, expected, atol=1e-12)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('chunk_size', [1, 10])
def test_oja_converges_to_the_direction_that_it_is_shown(chunk_size):
  """On one value v: W^T v approaches k, the fixed point of Eq. 66."""
  k, v, _, _, _, _, w = tokens(1)
  v = v / np.linalg.norm(v)
  many = [np.repeat(x, 200, axis=0) for x in (k, v)]
  rule, gates = memories.oja(retention=False), np.full((3, 200), 0.5)
  # The last weights, column by column.
  columns = [
    run(rule, *many, np.repeat(q[None], 200, axis=0), *gates, w, chunk_size=chunk_size)[-1]
    for q in np.eye(K)
  ]
  np.testing.assert_allclose(np.stack(columns, axis=1).T @ v[0], k[0], rtol=1e-9)


def test_oja_of_large_values_stays_bounded():
  """Whose decay would overshoot at the literal rate."""
  k, v, q, eta, alpha, mu, w = tokens(200)
  data = k, 10 * v, q, eta, alpha, mu, w
  assert np.abs(run(memories.oja(), *data)).max() < 10
  with np.errstate(all='ignore'):
    assert not np.abs(run(memories.oja(literal=True), *data)).max() < 1e6


# ----- retention by mirror maps, and objectives


@pytest.mark.usefixtures('float64')
def test_lq_retention_is_the_printed_map_above_its_floor():
  dual = np.random.default_rng(0).normal(size=(2, V, K))
  expected = [a / np.sum(a**4) ** (2 / 4) for a in dual]
  np.testing.assert_allclose(memories.lq_retention(4.0).weight(dual), expected, rtol=1e-12)
  np.testing.assert_allclose(memories.lq_retention(4.0).weight(dual / 100), dual / 100)
  np.testing.assert_allclose(memories.lq_retention(2.0).weight(dual), dual)


@pytest.mark.parametrize('size', [1e-20, 1.0, 1e12])
def test_lq_retention_of_any_size_is_finite_and_so_are_its_derivatives(size):
  weight = memories.lq_retention(16.0).weight
  dual = size * jax.random.normal(jax.random.key(0), (V, K))
  value, slope = jax.jvp(weight, (dual,), (dual,))
  norm = np.sum(np.abs(np.asarray(dual, np.float64) / size) ** 16) ** (1 / 16) * size
  expected = np.asarray(dual, np.float64) / max(norm, 1) ** 14
  np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-37)
  assert np.isfinite(slope).all()


@pytest.mark.usefixtures('float64')
def test_kl_retention_is_the_multiplicative_update():
  """W_t proportional to W_{t-1}^alpha exp(-step)."""
  dual, step = np.random.default_rng(0).normal(size=(2, V, K))
  weight = memories.kl_retention(scale=1.0).weight
  before, after = np.asarray(weight(dual)), weight(0.9 * dual - step)
  moved = before**0.9 * np.exp(-step)
  np.testing.assert_allclose(after, moved / moved.sum(axis=-1, keepdims=True), rtol=1e-10)


@pytest.mark.parametrize('p', [2.0, 2.5, 3.0, 4.0])
def test_lp_error_of_nothing_has_a_derivative(p):
  slope = jax.grad(lambda x: memories.lp(p).error(x, 0.0))(0.0)
  assert float(slope) == (1 if p == 2 else 0)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('p', [2.0, 2.5, 3.0, 4.0])
def test_lp_error_is_the_gradient_of_the_norm(p):
  prediction, target = np.random.default_rng(0).normal(size=(2, V))
  gradient = jax.grad(lambda x: jnp.sum(jnp.abs(x - target) ** p) / p)(jnp.asarray(prediction))
  np.testing.assert_allclose(memories.lp(p).error(prediction, target), gradient, rtol=1e-12)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: memories.omega(window=0), '`window` must be an integer of at least 1 token'),
    (lambda: memories.omega(window=2, orthogonal=-1), '`orthogonal` must be at least 0'),
    (lambda: memories.lq_retention(1.5), '`q` must be a finite number of at least 2'),
    (lambda: memories.lq_retention(4.0, 0.0), '`floor` must be a finite number above 0'),
    (lambda: memories.kl_retention(-1.0), '`scale` must be a finite number above 0'),
    (lambda: memories.lp(1.0), '`p` must be a finite number of at least 2'),
    (lambda: memories.lp(float('nan')), '`p` must be a finite number of at least 2'),
    (lambda: memories.gradient(span=0), '`span` must be an integer of at least 1 token'),
    (
      lambda: memories.layer(
        memories.matrix(), memories.dgd()._replace(mirror=memories.lq_retention()), 4
      ),
      'the rule DGD has no form with `mirror`',
    ),
    (
      lambda: memories.layer(memories.matrix(), memories.delta_rule()._replace(window=2), 4),
      'the rule delta has no form with `window`',
    ),
    (
      lambda: memories.layer(memories.matrix(), memories.oja()._replace(momentum=True), 4),
      'the rule Oja has no form with `momentum`',
    ),
    (
      lambda: memories.gradient(mirror=memories.lq_retention(), hard_cap=True),
      'the rule gradient has no form with `hard_cap`',
    ),
    (
      lambda: memories.omega(window=2, orthogonal=3, soft_cap=True),
      'the rule Omega has no form with `soft_cap`',
    ),
    (
      lambda: memories.layer(memories.matrix(), memories.oja()._replace(soft_cap=True), 4),
      'the rule Oja has no form with `soft_cap`',
    ),
    (lambda: memories.dgd(retention=False, soft_cap=True), '`soft_cap` needs `retention`'),
    (lambda: memories.layer(memories.mlp(4), memories.delta_rule(), 4), 'one matrix'),
    (lambda: memories.layer(memories.mlp(4), memories.oja(), 4), 'one matrix'),
    (
      lambda: memories.layer(memories.matrix(), memories.oja(), 4, memories.l2()),
      'needs the objective dot product, got L2',
    ),
    (
      lambda: memories.layer(memories.matrix(), memories.omega(window=2), 4).level.init(
        {'w': jnp.zeros((3, 4))}
      ),
      '`widths` of keys and values must be given',
    ),
  ],
)
def test_rule_names_what_it_does_not_fit(make, message):
  with pytest.raises(ValueError, match=message):
    make()
