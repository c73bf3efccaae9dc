import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlx.optim.learned_preconditioner import (
  learned_preconditioner,
  scale_by_learned_preconditioner,
)
from nlx.optim.preconditioned_momentum import (
  preconditioned_momentum,
  scale_by_preconditioned_momentum,
)
from nlx.optim.preconditioners import diagonal, identity, kronecker

NUM_STEPS = 20


def gradients():
  """Trees of several steps."""
  rng = np.random.default_rng(0)
  return [
    {'matrix': rng.normal(size=(3, 4)), 'vector': rng.normal(size=5)} for _ in range(NUM_STEPS)
  ]


def updates_of(tx, params=None):
  params = gradients()[0] if params is None else params
  update, state, seen = jax.jit(tx.update), jax.jit(tx.init)(params), []
  for gradient in gradients():
    updates, state = update(gradient, state, params)
    seen.append(updates)
  return seen


def assert_same(got, want, rtol=1e-12, atol=0.0):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


def adam(b1, b2, eps):
  return scale_by_preconditioned_momentum(
    b1, preconditioner=diagonal(b2, eps=eps), rate=1 - b1, applied_to='momentum', debias=True
  )


@pytest.mark.usefixtures('float64')
def test_diagonal_of_the_momentum_is_adam():
  want = updates_of(optax.scale_by_adam(0.9, 0.99, 1e-8))
  assert_same(updates_of(adam(0.9, 0.99, 1e-8)), want)


@pytest.mark.usefixtures('float64')
def test_diagonal_of_the_gradient_without_memory_is_rms():
  tx = scale_by_preconditioned_momentum(0.0, preconditioner=diagonal(0.9, debias=False))
  assert_same(updates_of(tx), updates_of(optax.scale_by_rms(0.9, 1e-8, eps_in_sqrt=False)))


@pytest.mark.usefixtures('float64')
def test_diagonal_of_the_gradient_is_rms_with_momentum():
  tx = scale_by_preconditioned_momentum(0.9, preconditioner=diagonal(0.99, debias=False))
  rms = optax.scale_by_rms(0.99, 1e-8, eps_in_sqrt=False)
  assert_same(updates_of(tx), updates_of(optax.chain(rms, optax.trace(0.9))))


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('applied_to', ['gradient', 'momentum'])
@pytest.mark.parametrize('nesterov', [False, True])
def test_identity_is_momentum(applied_to, nesterov):
  tx = scale_by_preconditioned_momentum(
    0.9, preconditioner=identity(), applied_to=applied_to, nesterov=nesterov
  )
  assert_same(updates_of(tx), updates_of(optax.trace(0.9, nesterov)))


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('applied_to', ['gradient', 'momentum'])
def test_preconditioner_is_applied_where_it_says(applied_to):
  """A plain loop over Eqs. 46-47 with a preconditioner of matrices."""
  precondition = kronecker(0.9)
  tx = scale_by_preconditioned_momentum(
    0.8, preconditioner=precondition, rate=0.5, applied_to=applied_to
  )
  learn, apply = jax.jit(precondition.update), jax.jit(precondition.apply)
  state = jax.jit(precondition.init)(gradients()[0])
  memory = jax.tree.map(np.zeros_like, gradients()[0])
  for gradient, got in zip(gradients(), updates_of(tx), strict=True):
    state = learn(gradient, state)
    if applied_to == 'gradient':
      gradient = jax.device_get(apply(gradient, state))
    memory = jax.tree.map(lambda m, g: 0.8 * m + 0.5 * g, memory, gradient)
    want = memory if applied_to == 'gradient' else apply(memory, state)
    assert_same(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures('float64')
def test_adam_is_the_optimal_elementwise_memory_from_gradients_to_their_root_second_moment():
  """App. B, Eqs. 100-107, with the minimiser found by a Newton step, exact for a parabola."""
  decay, seen = 0.9, np.stack([gradient['matrix'] for gradient in gradients()])
  weights = decay ** np.arange(NUM_STEPS - 1.0, -1, -1)
  weights = (weights / weights.sum()).reshape(-1, 1, 1)
  target = np.sqrt(np.sum(weights * np.square(seen), axis=0))[None]

  def loss(memory):
    errors = memory.reshape(1, 3, 4) * seen - target
    return jnp.sum(weights * jnp.square(errors))

  start = np.zeros(12)
  curvature, slope = jax.jit(lambda m: (jax.hessian(loss)(m), jax.grad(loss)(m)))(start)
  minimiser = start - np.linalg.solve(curvature, slope)
  assert_same(updates_of(adam(decay, decay, 0.0))[-1]['matrix'], minimiser.reshape(3, 4), 1e-10)
  want = updates_of(optax.scale_by_adam(decay, decay, 0.0))[-1]['matrix']
  assert_same(minimiser.reshape(3, 4), want, 1e-10)


@pytest.mark.usefixtures('float64')
def test_learned_elementwise_preconditioner_is_rms_with_momentum():
  rms = optax.scale_by_rms(0.95, 1e-8, eps_in_sqrt=False, bias_correction=True)
  want = updates_of(optax.chain(rms, optax.trace(0.9)))
  assert_same(updates_of(scale_by_learned_preconditioner(0.05)), want)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  'scale, full',
  [
    (scale_by_preconditioned_momentum, preconditioned_momentum),
    (scale_by_learned_preconditioner, learned_preconditioner),
  ],
)
def test_optimizer_descends_along_its_direction_with_weight_decay(scale, full):
  params = gradients()[1]
  direction = jax.device_get(updates_of(scale())[0])
  want = jax.tree.map(lambda u, p: -0.1 * (u + 0.01 * p), direction, params)
  assert_same(updates_of(full(0.1, weight_decay=0.01), params)[0], want, 1e-10)


def test_updates_have_the_dtype_of_gradients_and_the_state_float32():
  tx = scale_by_preconditioned_momentum()
  gradient = jnp.ones((2, 3), jnp.bfloat16)
  updates, state = jax.eval_shape(lambda: tx.update(gradient, tx.init(gradient)))
  assert updates.dtype == jnp.bfloat16
  assert state.momentum.memory.dtype == jnp.float32


@pytest.mark.parametrize(
  'make, options, message',
  [
    (scale_by_preconditioned_momentum, {'decay': 1.0}, r'`decay` must be in \[0, 1\), got 1.0'),
    (scale_by_preconditioned_momentum, {'rate': -1.0}, '`rate` must not be negative, got -1.0'),
    (
      scale_by_preconditioned_momentum,
      {'applied_to': 'both'},
      r"`applied_to` must be one of \['gradient', 'momentum'\], got 'both'",
    ),
    (scale_by_learned_preconditioner, {'rate': 2.0}, '`rate` of whitening must be .* got 2.0'),
  ],
)
def test_preconditioned_momentum_out_of_range_is_an_error(make, options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)
