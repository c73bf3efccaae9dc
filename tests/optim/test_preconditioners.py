import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlx.optim import preconditioners
from nlx.optim.inverse_root import inverse_root

NUM_STEPS = 20

MAKERS = {
  'identity': preconditioners.identity,
  'from_function': lambda: preconditioners.from_function(jnp.sign),
  'diagonal': preconditioners.diagonal,
  'adagrad': lambda: preconditioners.diagonal(decay=None),
  'kronecker': preconditioners.kronecker,
  'kronecker_period': lambda: preconditioners.kronecker(period=2),
  'full_matrix': preconditioners.full_matrix,
  'learned': preconditioners.learned,
  'learned_matrix': lambda: preconditioners.learned(structure='matrix'),
  'learned_objective': lambda: preconditioners.learned(1e-3, objective=to_one),
  'learned_matrix_objective': lambda: preconditioners.learned(
    1e-3, objective=orthogonal, structure='matrix'
  ),
}
every_maker = pytest.mark.parametrize('name', MAKERS)


def to_one(preconditioner, gradient):
  return 0.5 * jnp.sum(jnp.square(preconditioner * gradient - 1))


def orthogonal(preconditioner, gradient):
  return 0.25 * jnp.sum(jnp.square(preconditioner @ gradient))


def random(shape, steps=NUM_STEPS, seed=0):
  """Gradients of several steps, [steps, *shape]."""
  return np.random.default_rng(seed).normal(size=(steps, *shape))


def applied(preconditioner, gradients):
  """P g after each of the gradients."""

  @jax.jit
  def step(state, gradient):
    state = preconditioner.update(gradient, state)
    return state, preconditioner.apply(gradient, state)

  state, seen = jax.jit(preconditioner.init)(gradients[0]), []
  for gradient in gradients:
    state, updates = step(state, gradient)
    seen.append(np.asarray(updates))
  return np.stack(seen), state


def updates_of(tx, gradients):
  state, seen = jax.jit(tx.init)(gradients[0]), []
  for gradient in gradients:
    updates, state = jax.jit(tx.update)(gradient, state)
    seen.append(np.asarray(updates))
  return np.stack(seen)


def np_root(matrix, power, ridge=1e-6):
  """A^(-1/power) by eigenvalues, with the ridge of `inverse_root`."""
  values, basis = np.linalg.eigh(matrix)
  values = values + ridge * np.abs(matrix).sum(-1).max()
  return basis * values.reshape(1, -1) ** (-1 / power) @ basis.T


def tree(dtype):
  shapes = {'scalar': (), 'vector': (5,), 'matrix': (4, 3), 'stack': (2, 3, 4)}
  return {k: jnp.asarray(random(v, 1)[0], dtype) for k, v in shapes.items()} | {'empty': ()}


# ----- all of them


@every_maker
def test_applied_keeps_the_dtypes_of_updates_and_a_state_in_float32(name):
  preconditioner, params = MAKERS[name](), tree(jnp.bfloat16)
  state = jax.eval_shape(lambda: preconditioner.update(params, preconditioner.init(params)))
  updates = jax.eval_shape(preconditioner.apply, params, state)
  assert jax.tree.map(lambda u: (u.shape, u.dtype), updates) == jax.tree.map(
    lambda p: (p.shape, p.dtype), params
  )
  kept = {leaf.dtype for leaf in jax.tree.leaves(state)}
  assert kept <= {jnp.dtype('float32'), jnp.dtype('int32')}


@every_maker
def test_update_keeps_the_form_of_the_state(name):
  preconditioner, params = MAKERS[name](), tree(jnp.bfloat16)
  state = jax.eval_shape(preconditioner.init, params)
  after = jax.eval_shape(preconditioner.update, params, state)
  assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, after)


@every_maker
def test_zero_gradients_give_finite_updates(name):
  preconditioner = MAKERS[name]()
  zeros = jax.tree.map(np.zeros_like, tree(jnp.float32))

  @jax.jit
  def after_three_steps():
    step = lambda _, state: preconditioner.update(zeros, state)  # noqa: E731
    return preconditioner.apply(zeros, jax.lax.fori_loop(0, 3, step, preconditioner.init(zeros)))

  updates = after_three_steps()
  assert not any(leaf.any() for leaf in jax.tree.leaves(updates))


@every_maker
def test_empty_tree_is_fine(name):
  preconditioner = MAKERS[name]()
  assert preconditioner.apply({}, preconditioner.update({}, preconditioner.init({}))) == {}


@every_maker
def test_stack_of_matrices_is_preconditioned_as_each_alone(name):
  gradients = random((2, 3, 4), 3).astype(np.float32)
  together, _ = applied(MAKERS[name](), gradients)
  for i in range(2):
    alone, _ = applied(MAKERS[name](), gradients[:, i])
    np.testing.assert_allclose(together[:, i], alone, rtol=1e-3, atol=1e-5)


# ----- diagonal


@pytest.mark.usefixtures('float64')
def test_diagonal_is_rms():
  gradients = random((3, 4))
  got, _ = applied(preconditioners.diagonal(0.9, debias=False), gradients)
  want = updates_of(optax.scale_by_rms(0.9, 1e-8, eps_in_sqrt=False), gradients)
  np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.usefixtures('float64')
def test_diagonal_sum_is_adagrad():
  gradients = random((3, 4))
  got, _ = applied(preconditioners.diagonal(decay=None), gradients)
  total = np.zeros((3, 4))
  for gradient, update in zip(gradients, got, strict=True):
    total += gradient**2
    np.testing.assert_allclose(update, gradient / (np.sqrt(total) + 1e-8), rtol=1e-12)


# ----- kronecker and full matrix


def shampoo(gradients, decay, period):
  """A plain loop; the roots are those of the steps 1, 1 + period, 1 + 2 period and so on."""

  def filled(factor, count):
    unseen = decay**count
    mean = np.trace(factor) / len(factor) / (1 - unseen)
    return factor + unseen * mean * np.eye(len(factor))

  left, right = (np.zeros((n, n)) for n in gradients.shape[1:])
  roots, seen = [np.eye(n) for n in gradients.shape[1:]], []
  for count, gradient in enumerate(gradients, 1):
    left = decay * left + (1 - decay) * gradient @ gradient.T
    right = decay * right + (1 - decay) * gradient.T @ gradient
    if count % period == 1 % period:
      roots = [np_root(filled(factor, count), 4) for factor in (left, right)]
    seen.append(roots[0] @ gradient @ roots[1])
  return np.stack(seen)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('period', [1, 4])
def test_kronecker_is_shampoo_with_the_roots_of_the_last_period(period):
  gradients = random((3, 5))
  got, _ = applied(preconditioners.kronecker(0.9, period=period), gradients)
  np.testing.assert_allclose(got, shampoo(gradients, 0.9, period), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize('period', [1, 5])
@pytest.mark.parametrize('shape', [(1, 64), (8, 64)])
def test_kronecker_takes_no_leap(shape, period):
  """Neither before it has seen every direction nor when its roots are computed anew."""
  gradients = random(shape, 20).astype(np.float32)
  updates, _ = applied(preconditioners.kronecker(period=period), gradients)
  sizes = np.sqrt(np.mean(np.square(updates), axis=(1, 2)))
  assert sizes.max() < 3 * sizes.min()


@pytest.mark.usefixtures('float64')
def test_kronecker_sum_is_shampoo_as_printed():
  gradients = random((3, 5))
  got, _ = applied(preconditioners.kronecker(decay=None, ridge=1e-9), gradients)
  left, right = gradients @ gradients.mT, gradients.mT @ gradients
  roots = [np_root(factors.sum(0), 4, ridge=1e-9) for factors in (left, right)]
  np.testing.assert_allclose(got[-1], roots[0] @ gradients[-1] @ roots[1], rtol=1e-8)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('shape', [(4,), (2, 3)])
def test_full_matrix_is_full_matrix_adagrad(shape):
  gradients = random(shape)
  got, _ = applied(preconditioners.full_matrix(), gradients)
  total = 0
  for gradient, update in zip(gradients, got, strict=True):
    column = gradient.reshape(-1, 1)
    total = total + column @ column.T
    want = (np_root(total, 2) @ column).reshape(shape)
    np.testing.assert_allclose(update, want, rtol=1e-7, atol=1e-9)


def test_full_matrix_of_a_large_leaf_is_an_error():
  with pytest.raises(ValueError, match=r'at most 4096 elements, got \(64, 65\)'):
    preconditioners.full_matrix().init(jnp.zeros((64, 65)))


def test_from_function_applies_it_to_leaves():
  preconditioner = preconditioners.from_function(jnp.sign)
  gradients = random((3,), 1)
  np.testing.assert_array_equal(applied(preconditioner, gradients)[0], np.sign(gradients))


# ----- learned


@pytest.mark.usefixtures('float64')
def test_learned_elementwise_is_rms():
  gradients = random((3, 4))
  got, _ = applied(preconditioners.learned(0.05), gradients)
  rms = optax.scale_by_rms(0.95, 1e-8, eps_in_sqrt=False, bias_correction=True)
  want = updates_of(rms, gradients)
  np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.usefixtures('float64')
def test_learned_elementwise_takes_natural_gradient_steps_of_whitening():
  """The Fisher information of v, the variance of a normal gradient, is 1 / (2 v^2)."""
  rate, gradients = 0.1, random((5,))

  def whitening(v, gradient):
    preconditioner = v**-0.5
    return jnp.sum(0.5 * jnp.square(preconditioner * gradient) - jnp.log(preconditioner))

  tx = preconditioners.learned(rate)
  state = tx.update(jnp.asarray(gradients[0]), tx.init(jnp.zeros(5)))
  for gradient in map(jnp.asarray, gradients[1:]):
    v = state.second_moment
    want = v - rate * 2 * v**2 * jax.grad(whitening)(v, gradient)
    state = tx.update(gradient, state)
    np.testing.assert_allclose(state.second_moment, want, rtol=1e-12)


def covariance(condition=30.0, size=4):
  basis = np.linalg.qr(random((size, size), 1, seed=1)[0])[0]
  return basis * np.geomspace(3, 3 / condition, size).reshape(1, -1) @ basis.T


@pytest.mark.usefixtures('float64')
def test_learned_matrix_is_the_inverse_root_of_a_constant_covariance():
  """With C = g g^T / N the same at every step, P becomes C^(-1/2)."""
  size, width = 4, 6
  wide = np.linalg.qr(random((width, size), 1)[0])[0].T  # Orthonormal rows.
  gradient = jnp.asarray(np.linalg.cholesky(covariance()) @ wide * np.sqrt(width))
  tx = preconditioners.learned(0.3, structure='matrix')
  state = jax.lax.fori_loop(0, 300, lambda _, s: tx.update(gradient, s), tx.init(gradient))
  want = inverse_root(jnp.asarray(covariance()), 2, ridge=1e-12)
  np.testing.assert_allclose(state.preconditioner, want, atol=1e-8)


@pytest.mark.usefixtures('float64')
def test_learned_matrix_whitens_random_gradients():
  """The average of P C P^T is I to 2 % per element, after 1000 steps of rate 0.02."""
  factor = jnp.asarray(np.linalg.cholesky(covariance()))
  tx = preconditioners.learned(0.02, structure='matrix')

  def step(state, key):
    state = tx.update(factor @ jax.random.normal(key, (4, 16)), state)
    p = state.preconditioner
    return state, p @ covariance() @ p.T

  keys = jax.random.split(jax.random.key(0), 4000)
  _, seen = jax.lax.scan(step, tx.init(jnp.zeros((4, 16))), keys)
  np.testing.assert_allclose(seen[1000:].mean(0), np.eye(4), atol=0.02)


@pytest.mark.usefixtures('float64')
def test_learned_matrix_stays_symmetric_and_positive():
  """At the largest rate and with gradients of all sizes."""
  gradients = random((4, 2), 200) * np.geomspace(1e-3, 1e3, 200).reshape(-1, 1, 1)
  _, state = applied(preconditioners.learned(1.0, structure='matrix'), gradients)
  p = np.asarray(state.preconditioner)
  np.testing.assert_allclose(p, p.T, atol=1e-12 * np.abs(p).max())
  assert np.linalg.eigvalsh(p).min() > 0


def test_learned_matrix_is_bounded_where_there_are_no_gradients():
  tx = preconditioners.learned(0.5, structure='matrix', eps=1e-3)
  zeros = jnp.zeros((3, 2))
  state = jax.lax.fori_loop(0, 100, lambda _, s: tx.update(zeros, s), tx.init(zeros))
  np.testing.assert_allclose(state.preconditioner, 1e3 * np.eye(3), rtol=1e-3)


def test_learned_matrix_takes_no_leap_where_gradients_begin():
  """A row without gradients has a P of 1 / eps; its first step is as bounded as that of RMSProp."""
  rate, size = 0.1, 4
  tx = preconditioners.learned(rate, structure='matrix')
  gradients = random((size, 8), 400).astype(np.float32)
  gradients[:-1, 0] = 0
  updates, _ = applied(tx, gradients)
  assert np.sqrt(np.mean(updates[-1, 0] ** 2)) < 1 / np.sqrt(rate)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  'objective, structure, start',
  [(to_one, 'elementwise', np.ones((3, 4))), (orthogonal, 'matrix', np.eye(3))],
)
def test_learned_with_an_objective_takes_its_gradient_steps(objective, structure, start):
  gradients = random((3, 4))
  tx = preconditioners.learned(0.01, objective=objective, structure=structure)
  _, state = applied(tx, gradients)
  want = jnp.asarray(start)
  for gradient in gradients:
    want = want - 0.01 * jax.grad(objective)(want, jnp.asarray(gradient))
  np.testing.assert_allclose(state.preconditioner, want, rtol=1e-12)


@pytest.mark.usefixtures('float64')
def test_learned_elementwise_applies_products_of_elements():
  gradients = random((3, 4))
  updates, state = applied(preconditioners.learned(0.01, objective=to_one), gradients)
  np.testing.assert_allclose(updates[-1], state.preconditioner * gradients[-1], rtol=1e-12)


@pytest.mark.parametrize(
  'make, options, message',
  [
    ('diagonal', {'decay': 1.0}, r'`decay` must be in \[0, 1\), got 1.0'),
    ('diagonal', {'eps': -1.0}, '`eps` must not be negative, got -1.0'),
    ('kronecker', {'decay': -0.1}, r'`decay` must be in \[0, 1\), got -0.1'),
    ('kronecker', {'period': 0}, '`period` must be an integer of at least 1 step, got 0'),
    ('kronecker', {'ridge': 0.0}, r'`ridge` must be in \(0, 1\), got 0.0'),
    ('full_matrix', {'decay': 1.0}, r'`decay` must be in \[0, 1\), got 1.0'),
    ('learned', {'rate': 1.5}, '`rate` of whitening must be at most 1, got 1.5'),
    ('learned', {'rate': 0.0}, '`rate` must be a finite number above 0, got 0.0'),
    ('learned', {'structure': 'rows'}, r"`structure` must be one of \[.*\], got 'rows'"),
    ('learned', {'eps': 0.0}, '`eps` must be a finite number above 0, got 0.0'),
  ],
)
def test_preconditioner_out_of_range_is_an_error(make, options, message):
  with pytest.raises(ValueError, match=message):
    getattr(preconditioners, make)(**options)
