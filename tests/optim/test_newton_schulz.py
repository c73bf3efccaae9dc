import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from nlx import optim

ASPECTS = [(16, 16), (16, 64), (64, 16), (16, 256)]
newton_schulz = jax.jit(optim.newton_schulz, static_argnames=('steps', 'coefficients', 'eps'))


def matrix(singular_values, shape, seed=0):
  """A matrix with these singular values and random singular vectors."""
  rng = np.random.default_rng(seed)
  left, right = (np.linalg.qr(rng.normal(size=(n, len(singular_values))))[0] for n in shape)
  return left * singular_values @ right.T


def spectrum(x):
  return np.linalg.svd(np.asarray(x), compute_uv=False)


@pytest.mark.parametrize(
  'before, after',
  [
    ([[3, 0], [0, 1]], [[0.753034, 0], [0, 1.133706]]),
    ([[1, 0], [0, 1]], [[1.108111, 0], [0, 1.108111]]),
    ([[1, 2, 3], [4, 5, 6]], [[-0.56829, 0.05774, 0.68377], [0.56335, 0.40561, 0.24787]]),
  ],
)
def test_newton_schulz_gives_the_reference_numbers(before, after):
  got = newton_schulz(jnp.array(before, jnp.float32))
  np.testing.assert_allclose(got, after, atol=1e-5)


@pytest.mark.parametrize('shape', ASPECTS)
@pytest.mark.parametrize('condition, steps', [(1, 5), (10, 5), (100, 5), (1e3, 10), (1e4, 10)])
def test_newton_schulz_brings_singular_values_near_one(shape, condition, steps):
  x = matrix(np.geomspace(1, 1 / condition, 16), shape).astype(jnp.float32)
  values = spectrum(newton_schulz(x, steps=steps))
  assert values.min() > 0.68
  assert values.max() < 1.21


@pytest.mark.parametrize('shape', ASPECTS)
def test_minimax_schedule_needs_six_steps_at_condition_1000(shape):
  """Which leaves them at 0.07 from 1; its bound is the deviation of the scalar polynomials."""
  schedule = optim.minimax(3e-4, 6)
  y = np.geomspace(3e-4, 1, 10_001)
  for a, b, c in schedule:
    y = a * y + b * y**3 + c * y**5
  bound = np.abs(y - 1).max()
  assert bound < 0.08
  x = matrix(np.geomspace(1, 1e-3, 16), shape).astype(jnp.float32)
  values = spectrum(newton_schulz(x, coefficients=schedule))
  np.testing.assert_allclose(values, 1, atol=bound + 1e-3)


@pytest.mark.parametrize('smallest', [1e-4, 1e-2, 0.5])
def test_minimax_step_has_four_equal_ripples(smallest):
  ((a, b, c),) = optim.minimax(smallest, 1)
  x = np.linspace(smallest, 1, 200_001)
  error = a * x + b * x**3 + c * x**5 - 1
  ends = np.sign(error[[0, -1]]) * [1, -1]
  assert (ends < 0).all()
  inner = error[1:-1][np.diff(np.sign(np.diff(error))) != 0]
  ripples = np.concatenate([error[:1], inner, error[-1:]])
  assert len(ripples) == 4
  np.testing.assert_allclose(np.abs(ripples), np.abs(ripples[0]), rtol=1e-6)


def test_minimax_steps_continue_where_the_last_one_ended():
  y = np.geomspace(1e-3, 1, 10_001)
  for a, b, c in optim.minimax(1e-3, 8, safety=1.0):
    y = a * y + b * y**3 + c * y**5
  np.testing.assert_allclose(y, 1, atol=1e-6)


@pytest.mark.parametrize('seed', range(5))
def test_minimax_bears_products_of_rounded_operands(seed):
  """Those of bfloat16, on a matrix of one large singular value, which first ends beyond 1."""

  def product(a, b):
    return jax.lax.reduce_precision(a, 8, 7) @ jax.lax.reduce_precision(b, 8, 7)

  @jax.jit
  def orthogonalize(x):
    for a, b, c in optim.minimax(1e-4, 8):
      gram = product(x, x.mT)
      x = a * x + product(b * gram + c * product(gram, gram), x)
    return x

  left, right, noise = np.split(np.random.default_rng(seed).normal(size=(64, 66)), [1, 2], axis=1)
  x = (left @ right.T + 1e-3 * noise).astype(np.float32)
  values = spectrum(orthogonalize(jnp.asarray(x / np.linalg.norm(x))))
  assert values.max() < 1.2


@pytest.mark.usefixtures('float64')
def test_cubic_is_gradient_descent_on_the_distance_to_an_orthogonal_matrix():
  x = matrix(np.array([0.9, 0.5, 0.2]), (3, 5))

  @jax.jit
  @jax.grad
  def slope(o):
    return jnp.sum(jnp.square(o @ o.T - jnp.eye(3))) / 4

  want = x / np.linalg.norm(x)
  for _ in range(3):
    want = want - 0.5 * np.asarray(slope(want))
  assert optim.inner_loop(0.5) == optim.CUBIC
  got = newton_schulz(x, steps=3, coefficients=optim.inner_loop(0.5), eps=0.0)
  np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.usefixtures('float64')
def test_cubic_converges_to_the_polar_factor():
  x = matrix(np.geomspace(1, 0.1, 4), (4, 6))
  left, _, right = np.linalg.svd(x, full_matrices=False)
  got = newton_schulz(x, steps=30, coefficients=optim.CUBIC)
  np.testing.assert_allclose(got, left @ right, atol=1e-9)


def test_newton_schulz_keeps_a_tree_of_any_ranks():
  key = jax.random.key(0)
  tree = {
    'stack': jax.random.normal(key, (2, 3, 4, 5)),
    'tall': jax.random.normal(key, (5, 4)),
    'half': jax.random.normal(key, (4, 5)).astype(jnp.bfloat16),
    'vector': jnp.ones(3),
    'scalar': jnp.ones(()),
    'empty': jnp.zeros((0, 4)),
  }
  got = newton_schulz(tree)
  assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, tree)
  assert jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(lambda x: x.dtype, tree)
  one = newton_schulz(tree['stack'][1, 2])
  np.testing.assert_allclose(got['stack'][1, 2], one, atol=1e-5)
  np.testing.assert_allclose(got['tall'], newton_schulz(tree['tall'].T).T, atol=1e-5)


def test_newton_schulz_takes_matrices_in_parts_as_all_at_once():
  """More matrices than fit into one part of the loop."""
  many = jax.random.normal(jax.random.key(0), (7, 300, 300))
  one = newton_schulz(many[6])
  np.testing.assert_allclose(newton_schulz(many)[6], one, atol=1e-4)


def test_newton_schulz_of_zeros_is_zero():
  assert not newton_schulz(jnp.zeros((3, 4))).any()


def test_newton_schulz_does_not_feel_the_size_of_its_input():
  x = matrix(np.geomspace(1, 0.1, 4), (4, 6)).astype(jnp.float32)
  np.testing.assert_allclose(newton_schulz(1e3 * x), newton_schulz(x), atol=1e-4)


def test_newton_schulz_divides_its_work_over_a_mesh():
  mesh = jax.make_mesh((8,), ('data',), (AxisType.Auto,))
  tree = [jax.random.normal(jax.random.key(i), (32, 32)) for i in range(16)]
  alone, shared = (
    jax.jit(functools.partial(optim.newton_schulz, mesh=m)).lower(tree).compile()
    for m in (None, mesh)
  )
  flops = [program.cost_analysis()['flops'] for program in (alone, shared)]
  assert flops[1] < flops[0] / 7
  on_mesh = jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.P()))
  shared = jax.jit(functools.partial(optim.newton_schulz, mesh=mesh))(on_mesh)
  for got, want in zip(shared, alone(tree), strict=True):
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize('nesterov', [False, True])
def test_momentum_with_newton_schulz_is_muon(nesterov):
  """Of optax, which has none of its own for stacks."""
  params = {'a': jnp.zeros((4, 6)), 'b': jnp.zeros((5, 3))}
  ours = optim.scale_by_momentum(
    0.95, rate=0.05, nesterov=nesterov, debias=True, output=optim.newton_schulz
  )
  dims = jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), params)
  theirs = optax.contrib.scale_by_muon(nesterov=nesterov, weight_dimension_numbers=dims)
  states, random = (jax.jit(ours.init)(params), theirs.init(params)), np.random.default_rng(0)
  for _ in range(5):
    grads = jax.tree.map(lambda p: random.normal(size=p.shape).astype(p.dtype), params)
    got, state = jax.jit(ours.update)(grads, states[0])
    want, other = jax.jit(theirs.update)(grads, states[1])
    states = state, other
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'steps': 0}, '`steps`'),
    ({'coefficients': (1.0, 2.0)}, '`coefficients` must be triples'),
    ({'coefficients': ()}, '`coefficients` must be triples'),
  ],
)
def test_newton_schulz_refuses(options, message):
  with pytest.raises(ValueError, match=message):
    optim.newton_schulz(jnp.ones((2, 2)), **options)


@pytest.mark.parametrize('arguments, message', [((0.0, 3), '`smallest`'), ((0.1, 0), '`steps`')])
def test_minimax_refuses(arguments, message):
  with pytest.raises(ValueError, match=message):
    optim.minimax(*arguments)
