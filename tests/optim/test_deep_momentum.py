import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlx import memories
from nlx.optim.deep_momentum import deep_momentum, scale_by_deep_momentum
from nlx.optim.momentum import scale_by_momentum
from nlx.optim.newton_schulz import newton_schulz

LOSSES = {
  'dot product': lambda prediction, target: -jnp.sum(prediction * target, axis=-1),
  'L2': lambda prediction, target: 0.5 * jnp.sum((prediction - target) ** 2, axis=-1),
}
OBJECTIVES = {'dot product': memories.dot_product(), 'L2': memories.l2()}
every_objective = pytest.mark.parametrize('name', LOSSES)


def run(tx, signals):
  """Updates, and the states before each of them and after all."""

  def step(state, signal):
    updates, new = tx.update(signal, state)
    return new, (updates, state)

  @quick_jit
  def all_steps(signals):
    return jax.lax.scan(step, tx.init(jnp.zeros_like(signals[0])), signals)

  last, (all_updates, states) = jax.device_get(all_steps(np.stack(signals)))
  return all_updates, [jax.tree.map(lambda x: x[i], states) for i in range(len(signals))] + [last]


def gradients(shape, num_steps=4):
  return np.random.default_rng(0).normal(size=(num_steps, *shape)).astype(np.float32)


def unit_rows(gradient):
  return gradient / np.mean(np.linalg.norm(gradient, axis=-1))


@every_objective
@pytest.mark.usefixtures('float64')
def test_deep_momentum_takes_a_gradient_step_on_its_inner_objective(name):
  """The objective by jax.grad, halved for two matrices, at the proximal rate of each."""
  signals = gradients((3, 5))
  tx = scale_by_deep_momentum(4, decay=0.8, rate=0.7, objective=OBJECTIVES[name])
  _, states = run(tx, signals)
  for signal, before, after in zip(signals, states[:-1], states[1:], strict=True):
    u = unit_rows(signal)
    hidden = jax.nn.silu(u @ (before.features + before.learned['w2']).T)

    def loss(learned, u=u, features=before.features):
      answers = jax.nn.silu(u @ (features + learned['w2']).T) @ learned['w1'].T
      return jnp.mean(LOSSES[name](answers, u)) / 2

    slope = jax.grad(loss)(before.learned)
    for matrix, inputs in {'w1': hidden, 'w2': u}.items():
      rate = 0.7 / (1 + 0.7 * np.mean(np.sum(inputs**2, axis=-1)))
      want = 0.8 * before.learned[matrix] - rate * slope[matrix]
      np.testing.assert_allclose(after.learned[matrix], want, rtol=1e-10, atol=1e-13)


@pytest.mark.usefixtures('float64')
def test_deep_momentum_reads_itself_at_the_gradient():
  signals = gradients((3, 5))
  all_updates, states = run(scale_by_deep_momentum(4), signals)
  u, state = unit_rows(signals[-1]), states[-1]
  answers = jax.nn.silu(u @ (state.features + state.learned['w2']).T) @ state.learned['w1'].T
  want = answers / jnp.sqrt(jnp.mean(answers**2))
  np.testing.assert_allclose(all_updates[-1], want, rtol=1e-10)


def test_linear_memory_is_a_moving_average():
  signals = gradients((3, 5))
  got, _ = run(scale_by_deep_momentum(None, decay=0.8), signals)
  want, _ = run(optax.ema(0.8, debias=False), signals)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_linear_memory_with_newton_schulz_is_muon():
  signals = gradients((3, 5))
  got, _ = run(scale_by_deep_momentum(None, decay=0.8, output=newton_schulz), signals)
  want, _ = run(scale_by_momentum(0.8, rate=0.2, output=newton_schulz), signals)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@every_objective
@pytest.mark.parametrize('shape', [(), (5,), (3, 5), (2, 3, 5)])
def test_deep_momentum_first_descends(name, shape):
  for seed in range(5):
    gradient = jax.random.normal(jax.random.key(seed), shape)
    (update,), _ = run(scale_by_deep_momentum(8, objective=OBJECTIVES[name]), [gradient])
    assert float(jnp.vdot(update, gradient)) > 0


def quadratic():
  return lambda w: jnp.sum((w - 0.5) ** 2), jnp.zeros((4, 3))


def regression():
  inputs, target = jax.random.normal(jax.random.key(0), (2, 32, 8))
  return lambda w: jnp.mean((inputs @ (w - target[:8])) ** 2), jnp.zeros((8, 8))


@every_objective
@pytest.mark.parametrize('problem', [quadratic, regression])
def test_deep_momentum_lowers(problem, name):
  """To a hundredth; the least is zero."""
  loss, start = problem()
  tx = deep_momentum(optax.cosine_decay_schedule(0.03, 300), 8, objective=OBJECTIVES[name])

  def step(carry, _):
    w, state = carry
    updates, state = tx.update(jax.grad(loss)(w), state, w)
    return (w + updates, state), None

  (w, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=300)
  assert loss(w) < 0.01 * loss(start)


def test_deep_momentum_does_not_see_the_scale_of_gradients():
  signals = gradients((3, 5))
  small, _ = run(scale_by_deep_momentum(4), [1e-4 * g for g in signals])
  large, _ = run(scale_by_deep_momentum(4), [1e4 * g for g in signals])
  np.testing.assert_allclose(small, large, rtol=1e-3, atol=1e-4)


def test_zero_gradients_give_zero_updates_of_deep_momentum():
  """Also when the memory is not empty."""
  zeros = jnp.zeros((3, 5))
  for signals in ([zeros], [jnp.ones((3, 5)), zeros]):
    updates, states = run(scale_by_deep_momentum(4), signals)
    assert not updates[-1].any()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(states[-1]))


@every_objective
@pytest.mark.parametrize('rate', [1.0, 100.0])
def test_deep_momentum_stays_bounded(name, rate):
  tx = scale_by_deep_momentum(8, decay=0.99, rate=rate, objective=OBJECTIVES[name])

  def step(state, key):
    gradient = jnp.ones((3, 5)) + 0.3 * jax.random.normal(key, (3, 5))
    return tx.update(gradient, state)[::-1]

  state, updates = jax.lax.scan(
    step, tx.init(jnp.zeros((3, 5))), jax.random.split(jax.random.key(0), 1000)
  )
  assert all(float(jnp.abs(leaf).max()) < 1e3 for leaf in jax.tree.leaves(state))
  np.testing.assert_allclose(jnp.mean(updates**2, axis=(1, 2)), 1, rtol=1e-3)


def test_deep_memories_in_leading_axes_do_not_mix():
  """With the second matrix's gradients replaced, the first one's updates are the same."""
  signals = gradients((2, 3, 5))
  got, _ = run(scale_by_deep_momentum(4), signals)
  want, _ = run(scale_by_deep_momentum(4), [g.at[1].set(0.0) for g in signals])
  np.testing.assert_allclose(np.stack(got)[:, 0], np.stack(want)[:, 0], rtol=1e-5, atol=1e-6)
  assert not np.stack(want)[:, 1].any()


def test_deep_memories_of_two_leaves_have_features_of_their_own():
  params = {'a': jnp.zeros((3, 5)), 'b': jnp.zeros((3, 5))}
  features = scale_by_deep_momentum(4).init(params).features
  assert not np.allclose(features['a'], features['b'])


def test_deep_momentum_keeps_a_float32_state_of_bfloat16_gradients():
  tx = scale_by_deep_momentum(4)
  params = {'w': jnp.ones((2, 3), jnp.bfloat16)}
  updates, state = jax.jit(tx.update)(params, tx.init(params))
  assert updates['w'].dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype('float32')}


def test_deep_momentum_takes_injected_numbers():
  static = ('hidden', 'seed')
  tx = optax.inject_hyperparams(deep_momentum, static)(0.1, hidden=4, decay=0.8, rate=0.5)
  want = deep_momentum(0.1, hidden=4, decay=0.8, rate=0.5)
  params = {'w': jnp.ones((2, 3))}
  got, _ = jax.jit(tx.update)(params, tx.init(params), params)
  np.testing.assert_allclose(
    got['w'], want.update(params, want.init(params), params)[0]['w'], rtol=1e-5
  )


def test_deep_momentum_output_sees_the_whole_tree():
  def number_of_leaves(tree):
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, len(tree)), tree)

  params = {'a': jnp.ones(2), 'b': jnp.ones((2, 3))}
  tx = scale_by_deep_momentum(4, output=number_of_leaves)
  updates, _ = tx.update(params, tx.init(params))
  assert all((leaf == 2).all() for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize(
  'options, message',
  [({'decay': 1.0}, 'decay'), ({'rate': -1.0}, 'rate'), ({'hidden': 0}, 'hidden')],
)
def test_deep_momentum_refuses(options, message):
  with pytest.raises(ValueError, match=f'`{message}`'):
    scale_by_deep_momentum(**options)
