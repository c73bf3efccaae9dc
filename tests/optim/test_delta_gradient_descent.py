import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlx.optim.delta_gradient_descent import (
  Captured,
  capture,
  delta_gradient_descent,
  dense,
  scale_by_delta_gradient_descent,
)
from tests.compiling import quick_jit


def data(leading=(6,), num_in=4, num_out=3):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (*leading, num_in))
  target = jax.random.normal(keys[1], (*leading, num_out))
  return x, target, jax.random.normal(keys[2], (num_in, num_out))


def mean_loss(y, target):
  """A mean over samples of something that is not quadratic."""
  return jnp.mean(jnp.sum(jnp.log(jnp.cosh(y - target)), axis=-1))


@functools.partial(quick_jit, static_argnums=2)
def stepped(kernel, gradients, eta):
  tx = scale_by_delta_gradient_descent(eta)
  direction, _ = tx.update(gradients, tx.init(kernel), kernel)
  return optax.apply_updates(kernel, jax.tree.map(lambda d: -eta * d, direction))


def update(tx, gradients, params):
  """The first updates."""
  return quick_jit(lambda *args: tx.update(args[0], tx.init(args[1]), args[1])[0])(
    gradients, params
  )


# ----- dense


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('leading', [(), (6,), (2, 3)])
def test_dense_has_the_gradients_of_a_product(leading):
  x, target, weight = data(leading)

  def plain(x, weight):
    return mean_loss(x @ weight, target)

  def captured(x, weight):
    return mean_loss(dense(x, capture(weight)), target)

  got, want = (jax.jit(jax.value_and_grad(f, (0, 1)))(x, weight) for f in (captured, plain))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), got, want)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('leading', [(), (6,), (2, 3)])
def test_gradient_of_the_moment_is_the_mean_over_leading_axes(leading):
  x, target, weight = data(leading)

  def loss(kernel):
    return 7 * mean_loss(dense(x, kernel), target)

  moment = jax.jit(jax.grad(loss))(capture(weight)).moment
  rows = np.asarray(x).reshape(-1, 4)
  np.testing.assert_allclose(moment, rows.T @ rows / len(rows), rtol=1e-12)


@pytest.mark.usefixtures('float64')
def test_gradient_of_the_moment_is_a_weighted_mean():
  x, target, weight = data((2, 3))
  weights = jnp.array([[1.0, 0.0, 3.0], [0.0, 0.5, 0.0]])

  def moment(weights):
    loss = lambda kernel: mean_loss(dense(x, kernel, weights), target)  # noqa: E731
    return jax.grad(loss)(capture(weight)).moment

  expected = np.einsum('bt,bti,btj->ij', weights, x, x) / 4.5
  np.testing.assert_allclose(moment(weights), expected, rtol=1e-12)
  assert not np.any(moment(jnp.zeros((2, 3))))


def test_dense_under_vmap_is_a_batch_of_layers():
  x, target, _ = data((2, 5))
  kernels = capture(jax.random.normal(jax.random.key(1), (2, 4, 3)))
  one = jax.grad(lambda kernel, x, target: mean_loss(dense(x, kernel), target))
  got, one = quick_jit(jax.vmap(one))(kernels, x, target), quick_jit(one)
  for i in range(2):
    want = one(capture(kernels.weight[i]), x[i], target[i])
    np.testing.assert_allclose(got.weight[i], want.weight, rtol=1e-5)
    np.testing.assert_allclose(got.moment[i], want.moment, rtol=1e-5)


@pytest.mark.usefixtures('float64')
def test_dense_has_second_derivatives():
  x, target, weight = data()
  got = quick_jit(jax.hessian(lambda w: mean_loss(dense(x, capture(w)), target)))(weight)
  want = quick_jit(jax.hessian(lambda w: mean_loss(x @ w, target)))(weight)
  np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def test_dense_keeps_dtypes():
  x, target, weight = (array.astype(jnp.bfloat16) for array in data())
  kernel = capture(weight)
  loss = lambda kernel: mean_loss(dense(x, kernel), target)  # noqa: E731
  gradients = jax.eval_shape(jax.grad(loss), kernel)
  assert jax.eval_shape(dense, x, kernel).dtype == jnp.bfloat16
  assert (gradients.weight.dtype, gradients.moment.dtype) == (jnp.bfloat16, jnp.float32)


def test_capture_refuses_vectors():
  with pytest.raises(ValueError, match='`weight` must be a kernel'):
    capture(jnp.ones(3))


# ----- the step


@pytest.mark.usefixtures('float64')
def test_one_sample_takes_the_step_of_the_paper(eta=0.3):
  x, target, weight = map(np.asarray, data(()))
  kernel = capture(weight)
  gradients = quick_jit(jax.grad(lambda kernel: mean_loss(dense(x, kernel), target)))(kernel)
  proximal = eta / (1 + eta * x @ x)
  want = (np.eye(4) - proximal * np.outer(x, x)) @ weight - proximal * np.asarray(gradients.weight)
  np.testing.assert_allclose(stepped(kernel, gradients, eta).weight, want, rtol=1e-12)


@pytest.mark.usefixtures('float64')
def test_batch_takes_the_proximal_minimiser(eta=0.3):
  """Of the objective written out, by one Newton step from zeros, which is exact."""
  x, target, weight = data()
  kernel = capture(weight)
  gradients = quick_jit(jax.grad(lambda kernel: mean_loss(dense(x, kernel), target)))(kernel)

  @quick_jit
  def derivatives(flat):
    u = -jax.vmap(jax.grad(mean_loss))(x @ weight, target)

    def objective(flat):
      w = flat.reshape(weight.shape)
      fit = jnp.mean(jnp.sum((x @ w - u) ** 2, axis=-1)) / 2
      return fit + jnp.sum((w - weight) ** 2) / (2 * eta)

    return jax.hessian(objective)(flat), jax.grad(objective)(flat)

  want = -np.linalg.solve(*derivatives(np.zeros(weight.size)))
  got = stepped(kernel, gradients, eta).weight
  np.testing.assert_allclose(np.ravel(got), want, rtol=1e-10)


def test_moments_stay_zero_and_other_leaves_pass():
  x, target, weight = data()
  params = {'layer': capture(weight), 'bias': jnp.ones(3)}

  def loss(params):
    return mean_loss(dense(x, params['layer']) + params['bias'].reshape(1, 3), target)

  gradients = quick_jit(jax.grad(loss))(params)
  updates = update(scale_by_delta_gradient_descent(0.1), gradients, params)
  assert not updates['layer'].moment.any()
  np.testing.assert_array_equal(updates['bias'], gradients['bias'])


def test_batch_of_kernels_steps_as_each_alone():
  kernels = capture(jax.random.normal(jax.random.key(0), (2, 4, 3)))
  rows = jax.random.normal(jax.random.key(1), (2, 6, 4))
  gradients = Captured(jnp.ones((2, 4, 3)), rows.mT @ rows / 6)
  got = stepped(kernels, gradients, 0.3).weight
  for i in range(2):
    alone = stepped(capture(kernels.weight[i]), jax.tree.map(lambda g, i=i: g[i], gradients), 0.3)
    np.testing.assert_allclose(got[i], alone.weight, rtol=1e-5)


@pytest.mark.usefixtures('float64')
def test_learning_rate_may_be_a_schedule():
  _, _, weight = data()
  kernel, gradients = capture(weight), Captured(jnp.ones((4, 3)), jnp.eye(4))
  tx = scale_by_delta_gradient_descent(lambda count: 0.1 * count)
  state = tx.init(kernel)
  for eta in (0.0, 0.1, 0.2):
    updates, state = tx.update(gradients, state, kernel)
    np.testing.assert_allclose(updates.weight, (weight + 1) / (1 + eta), rtol=1e-10)


def test_zero_gradients_leave_kernels():
  kernel = capture(jnp.ones((4, 3)))
  gradients = jax.tree.map(jnp.zeros_like, kernel)
  np.testing.assert_array_equal(stepped(kernel, gradients, 0.3).weight, kernel.weight)


def test_bfloat16_kernels_have_bfloat16_updates():
  kernel = capture(jnp.ones((4, 3), jnp.bfloat16))
  updates = update(scale_by_delta_gradient_descent(0.1), kernel, kernel)
  assert (updates.weight.dtype, updates.moment.dtype) == (jnp.bfloat16, jnp.float32)


def test_update_needs_params():
  tx = scale_by_delta_gradient_descent(0.1)
  with pytest.raises(ValueError, match='needs params'):
    tx.update({}, tx.init({}))


def test_learning_rate_must_not_be_negative():
  with pytest.raises(ValueError, match='`learning_rate`'):
    delta_gradient_descent(-0.1)


# ----- the optimizer


def mixed_problem():
  x, target, weight = data((2, 3))
  params = {'layers': [capture(weight), {'bias': jnp.ones(3)}], 'scale': jnp.ones(())}

  def loss(params):
    first, second = params['layers']
    y = dense(x, first) + second['bias'].reshape(1, 1, 3)
    return mean_loss(params['scale'] * y, target)

  return params, quick_jit(jax.grad(loss))(params)


def test_adamw_takes_what_is_not_captured():
  params, gradients = mixed_problem()
  updates = update(delta_gradient_descent(0.1, weight_decay=0.01), gradients, params)
  want = update(optax.adamw(0.1, weight_decay=0.01), gradients, params)
  np.testing.assert_allclose(updates['layers'][1]['bias'], want['layers'][1]['bias'], rtol=1e-5)
  np.testing.assert_allclose(updates['scale'], want['scale'], rtol=1e-5)


def test_captured_kernels_decay_next_to_their_step():
  params, gradients = mixed_problem()
  updates = update(delta_gradient_descent(0.1, weight_decay=0.01), gradients, params)
  kernel = params['layers'][0]
  want = stepped(kernel, gradients['layers'][0], 0.1).weight - 0.1 * 0.01 * kernel.weight
  got = optax.apply_updates(kernel, updates['layers'][0])
  np.testing.assert_allclose(got.weight, want, rtol=1e-5)
  assert not got.moment.any()


def test_other_replaces_adamw():
  params, gradients = mixed_problem()
  updates = update(delta_gradient_descent(0.1, other=optax.sgd(1.0)), gradients, params)
  np.testing.assert_allclose(updates['scale'], -gradients['scale'], rtol=1e-6)


def test_delta_gradient_descent_takes_an_injected_learning_rate():
  params, gradients = mixed_problem()
  tx = optax.inject_hyperparams(delta_gradient_descent)(learning_rate=0.1)
  got, want = (update(one, gradients, params) for one in (tx, delta_gradient_descent(0.1)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)


def forgetting(tx, params, apply, num_steps=60):
  """Loss after all of three tasks minus loss after each; on orthogonal subspaces of inputs."""
  bases = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (12, 12)))[0].T.reshape(3, 4, 12)
  targets = jax.random.normal(jax.random.key(1), (3, 12, 3))

  def loss(params, task, key):
    x = jax.random.normal(key, (8, 4)) @ bases[task]
    return jnp.mean(jnp.sum((apply(x, params) - x @ targets[task]) ** 2, axis=-1)) / 2

  def learn(carry, task):
    def step(carry, key):
      params, state = carry
      updates, state = tx.update(jax.grad(loss)(params, task, key), state, params)
      return (optax.apply_updates(params, updates), state), None

    before = loss(carry[0], task, test_key)
    keys = jax.random.split(jax.random.key(task), num_steps)
    carry, _ = jax.lax.scan(step, carry, keys)
    return carry, (before, loss(carry[0], task, test_key))

  @quick_jit
  def all_tasks():
    carry, (before, after) = jax.lax.scan(learn, (params, tx.init(params)), jnp.arange(3))
    return before, after, jax.vmap(lambda task: loss(carry[0], task, test_key))(jnp.arange(3))

  test_key = jax.random.key(2)
  return map(np.asarray, all_tasks())


@pytest.mark.usefixtures('float64')
def test_orthogonal_tasks_are_not_forgotten():
  """DGD learns each to half of its target, a quarter of its loss; momentum forgets."""
  weight = jnp.zeros((12, 3))
  before, after, final = forgetting(delta_gradient_descent(0.2), capture(weight), dense)
  np.testing.assert_allclose(final, after, rtol=1e-10)
  np.testing.assert_allclose(after, before / 4, rtol=0.05)
  _, after, final = forgetting(optax.sgd(0.01, 0.99), weight, lambda x, w: x @ w)
  assert np.mean(final - after) > 0.1


@pytest.mark.parametrize('captured', [True, False])
def test_delta_gradient_descent_may_be_masked(captured):
  """Whether the mask takes the kernels in or leaves them out, leaf by leaf."""
  params = {'layer': capture(jnp.ones((3, 2))), 'other': jnp.ones(2)}
  mask = {'layer': Captured(captured, captured), 'other': not captured}
  tx = optax.masked(delta_gradient_descent(0.1), mask)
  gradients = {'layer': Captured(jnp.ones((3, 2)), jnp.eye(3)), 'other': jnp.ones(2)}
  updates = update(tx, gradients, params)
  assert bool((updates['layer'].weight == 1).all()) is not captured
  assert bool((updates['other'] == 1).all()) is captured
