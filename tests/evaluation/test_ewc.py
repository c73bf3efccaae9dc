import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx import evaluation
from tests.compiling import quick_jit

pytestmark = pytest.mark.usefixtures('float64')


def logits(params, x):
  return jnp.tanh(x @ params['w']) @ params['head']['v']


def log_likelihood(params, x, label):
  return jax.nn.log_softmax(logits(params, x))[label]


gradient = quick_jit(jax.grad(log_likelihood))


def draw(seed, num_samples=5):
  random = np.random.default_rng(seed)
  params = {'w': random.normal(size=(3, 4)), 'head': {'v': random.normal(size=(4, 2))}}
  inputs = random.normal(size=(num_samples, 3))
  return params, inputs, random.integers(2, size=num_samples)


def assert_close(found, expected, tolerance=1e-12):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance), found, expected)


@pytest.mark.parametrize('batch_size', [2, 5, 8])
def test_fisher_is_the_mean_squared_gradient_of_the_samples(batch_size):
  params, inputs, labels = draw(0)
  fisher = functools.partial(evaluation.fisher_diagonal, log_likelihood, batch_size=batch_size)
  found = quick_jit(fisher)(params, inputs, labels)
  grads = [gradient(params, x, y) for x, y in zip(inputs, labels, strict=True)]
  expected = jax.tree.map(lambda *g: sum(x**2 for x in g) / len(g), *grads)
  assert_close(found, expected)


def test_fisher_of_drawn_labels_is_the_diagonal_of_the_curvature():
  """Of a softmax that is linear in its parameters, the expectation is the Hessian of -log p."""
  linear = lambda params, x: x @ params  # noqa: E731
  log_p = lambda params, x, label: jax.nn.log_softmax(linear(params, x))[label]  # noqa: E731
  params, x = np.array([[0.3, -0.5, 0.1], [0.2, 0.4, -0.9]]), np.array([1.0, -2.0])
  inputs = np.tile(x, (20_000, 1))

  @quick_jit
  def both(params):
    labels = evaluation.sample_labels(linear, params, inputs, key=jax.random.key(0))
    found = evaluation.fisher_diagonal(log_p, params, inputs, labels, batch_size=5000)
    return found.reshape(-1), jax.hessian(lambda p: -log_p(p, x, 0))(params).reshape(6, 6)

  found, hessian = both(params)
  np.testing.assert_allclose(found, np.diag(hessian), rtol=0.05)


def test_fisher_of_half_precision_is_kept_in_float32():
  found = evaluation.fisher_diagonal(
    lambda p, x, y: p * x * y, jnp.ones((), jnp.bfloat16), jnp.ones(2), jnp.ones(2)
  )
  assert found.dtype == jnp.float32


def test_penalty_and_its_gradient_are_those_of_the_sum_over_tasks():
  theta = draw(9)[0]
  tasks = [(draw(seed)[0], jax.tree.map(np.square, draw(10 + seed)[0])) for seed in range(3)]

  def plain(params):
    def one(anchor, fisher):
      terms = jax.tree.map(lambda f, p, a: jnp.sum(f * (p - a) ** 2), fisher, params, anchor)
      return 1.7 / 2 * sum(jax.tree.leaves(terms))

    return sum(one(*task) for task in tasks)

  def penalty(params):
    state = evaluation.ewc_init(theta)
    for anchor, fisher in tasks:
      state = evaluation.ewc_add(state, anchor, fisher)
    return evaluation.ewc_penalty(state, params, 1.7)

  assert_close(*(quick_jit(jax.value_and_grad(f))(theta) for f in (penalty, plain)))


def test_penalty_before_any_task_is_zero():
  params = draw(0)[0]
  other = jax.tree.map(lambda x: x + 1, params)
  assert evaluation.ewc_penalty(evaluation.ewc_init(params), other, 10.0) == 0


def test_parameters_that_no_task_needs_are_free():
  zero = jnp.zeros(2)
  state = evaluation.ewc_add(evaluation.ewc_init(zero), jnp.ones(2), jnp.array([0.0, 2.0]))
  grads = jax.grad(lambda p: evaluation.ewc_penalty(state, p, 1.0))(zero)
  np.testing.assert_array_equal(grads, [0.0, -2.0])


def test_penalty_refuses_a_negative_strength():
  state = evaluation.ewc_init(jnp.zeros(2))
  with pytest.raises(ValueError, match='`strength` must not be negative, got -1'):
    evaluation.ewc_penalty(state, jnp.zeros(2), -1.0)


def test_penalty_refuses_parameters_of_another_shape():
  state = evaluation.ewc_init(jnp.zeros(2))
  with pytest.raises(AssertionError, match='shape'):
    evaluation.ewc_penalty(state, jnp.zeros(3), 1.0)


@pytest.mark.parametrize('numbers', [(0, 0), (2, 3)])
def test_fisher_refuses_samples_that_do_not_match(numbers):
  inputs, labels = map(jnp.zeros, numbers)
  with pytest.raises(ValueError, match='must have one leading axis of at least 1 sample, got'):
    evaluation.fisher_diagonal(lambda p, x, y: p * x * y, jnp.ones(()), inputs, labels)


def test_fisher_refuses_an_empty_batch():
  with pytest.raises(ValueError, match='`batch_size` must be an integer of at least 1 sample'):
    evaluation.fisher_diagonal(jnp.dot, jnp.ones(()), jnp.ones(1), jnp.ones(1), batch_size=0)
