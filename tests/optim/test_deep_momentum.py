import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlx import memories
from nlx.optim.deep_momentum import deep_momentum, scale_by_deep_momentum
from nlx.optim.momentum import scale_by_momentum
from nlx.optim.newton_schulz import newton_schulz
from tests.compiling import quick_jit

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

  last, (all_updates, states) = jax.device_get(all_steps(signals))
  return all_updates, jax.tree.map(lambda x, y: np.concatenate([x, y[None]]), states, last)


def gradients(shape, num_steps=4):
  """[num_steps, *shape]."""
  return np.random.default_rng(0).normal(size=(num_steps, *shape))


def at(states, step):
  return jax.tree.map(lambda x: x[step], states)


def unit_rows(gradient):
  return gradient / np.mean(np.linalg.norm(gradient, axis=-1))


@every_objective
@pytest.mark.usefixtures('float64')
def test_deep_momentum_takes_a_gradient_step_on_its_inner_objective(name):
  """The objective by jax.grad, halved for two matrices, at the proximal rate of each."""
  signals = gradients((3, 5))
  tx = scale_by_deep_momentum(4, decay=0.8, rate=0.7, objective=OBJECTIVES[name])
  _, states = run(tx, signals)

  @quick_jit
  def stepped(learned, features, u):
    hidden = jax.nn.silu(u @ (features + learned['w2']).T)

    def loss(learned):
      answers = jax.nn.silu(u @ (features + learned['w2']).T) @ learned['w1'].T
      return jnp.mean(LOSSES[name](answers, u)) / 2

    slope, want = jax.grad(loss)(learned), {}
    for matrix, inputs in {'w1': hidden, 'w2': u}.items():
      rate = 0.7 / (1 + 0.7 * jnp.mean(jnp.sum(inputs**2, axis=-1)))
      want[matrix] = 0.8 * learned[matrix] - rate * slope[matrix]
    return want

  for i, signal in enumerate(signals):
    want = stepped(at(states, i).learned, at(states, i).features, unit_rows(signal))
    for matrix, got in at(states, i + 1).learned.items():
      np.testing.assert_allclose(got, want[matrix], rtol=1e-10, atol=1e-13)


@pytest.mark.usefixtures('float64')
def test_deep_momentum_reads_itself_at_the_gradient():
  signals = gradients((3, 5))
  all_updates, states = run(scale_by_deep_momentum(4), signals)
  u, state = unit_rows(signals[-1]), at(states, -1)
  hidden = u @ (state.features + state.learned['w2']).T
  answers = hidden / (1 + np.exp(-hidden)) @ state.learned['w1'].T
  want = answers / np.sqrt(np.mean(answers**2))
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
  tx, several = scale_by_deep_momentum(8, objective=OBJECTIVES[name]), gradients(shape, 5)
  updates = quick_jit(jax.vmap(lambda gradient: tx.update(gradient, tx.init(gradient))[0]))(several)
  assert np.min(np.sum(np.reshape(updates * several, (5, -1)), axis=1)) > 0


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

  @quick_jit
  def losses():
    (w, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=300)
    return loss(start), loss(w)

  first, last = losses()
  assert last < 0.01 * first


def test_deep_momentum_does_not_see_the_scale_of_gradients():
  signals = gradients((3, 5))
  small, large = (run(scale_by_deep_momentum(4), scale * signals)[0] for scale in (1e-4, 1e4))
  np.testing.assert_allclose(small, large, rtol=1e-3, atol=1e-4)


def test_zero_gradients_give_zero_updates_of_deep_momentum():
  """Also when the memory is not empty."""
  zeros = np.zeros((1, 3, 5))
  for signals in (zeros, np.concatenate([1 + zeros, zeros])):
    updates, states = run(scale_by_deep_momentum(4), signals)
    assert not updates[-1].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states))


@every_objective
@pytest.mark.parametrize('rate', [1.0, 100.0])
def test_deep_momentum_stays_bounded(name, rate):
  tx = scale_by_deep_momentum(8, decay=0.99, rate=rate, objective=OBJECTIVES[name])

  def step(state, key):
    gradient = jnp.ones((3, 5)) + 0.3 * jax.random.normal(key, (3, 5))
    return tx.update(gradient, state)[::-1]

  @quick_jit
  def many_steps():
    keys = jax.random.split(jax.random.key(0), 1000)
    return jax.lax.scan(step, tx.init(jnp.zeros((3, 5))), keys)

  state, updates = jax.device_get(many_steps())
  assert all(np.abs(leaf).max() < 1e3 for leaf in jax.tree.leaves(state))
  np.testing.assert_allclose(np.mean(updates**2, axis=(1, 2)), 1, rtol=1e-3)


def test_deep_memories_in_leading_axes_do_not_mix():
  """With the second matrix's gradients replaced, the first one's updates are the same."""
  signals = gradients((2, 3, 5))
  got, _ = run(scale_by_deep_momentum(4), signals)
  signals[:, 1] = 0
  want, _ = run(scale_by_deep_momentum(4), signals)
  np.testing.assert_allclose(got[:, 0], want[:, 0], rtol=1e-5, atol=1e-6)
  assert not want[:, 1].any()


def test_deep_memories_of_two_leaves_have_features_of_their_own():
  params = {'a': jnp.zeros((3, 5)), 'b': jnp.zeros((3, 5))}
  features = quick_jit(scale_by_deep_momentum(4).init)(params).features
  assert not np.allclose(features['a'], features['b'])


def test_deep_momentum_keeps_a_float32_state_of_bfloat16_gradients():
  tx = scale_by_deep_momentum(4)
  params = {'w': jnp.ones((2, 3), jnp.bfloat16)}
  updates, state = jax.eval_shape(lambda: tx.update(params, tx.init(params)))
  assert updates['w'].dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype('float32')}


def test_deep_momentum_of_a_leaf_without_rows_stays_finite():
  tx, params = scale_by_deep_momentum(4), {'empty': jnp.zeros((0, 4)), 'w': jnp.ones((2, 4))}
  _, state = tx.update(params, tx.init(params))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_deep_momentum_takes_injected_numbers():
  static = ('hidden', 'seed')
  tx = optax.inject_hyperparams(deep_momentum, static)(0.1, hidden=4, decay=0.8, rate=0.5)
  want = deep_momentum(0.1, hidden=4, decay=0.8, rate=0.5)
  params = {'w': jnp.ones((2, 3))}
  got, want = (
    quick_jit(lambda tx=tx: tx.update(params, tx.init(params), params)[0])() for tx in (tx, want)
  )
  np.testing.assert_allclose(got['w'], want['w'], rtol=1e-5)


def test_deep_momentum_output_sees_the_whole_tree():
  def number_of_leaves(tree):
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, len(tree)), tree)

  params = {'a': jnp.ones(2), 'b': jnp.ones((2, 3))}
  tx = scale_by_deep_momentum(4, output=number_of_leaves)
  updates, _ = quick_jit(lambda: tx.update(params, tx.init(params)))()
  assert all((leaf == 2).all() for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize(
  'options, message',
  [({'decay': 1.0}, 'decay'), ({'rate': -1.0}, 'rate'), ({'hidden': 0}, 'hidden')],
)
def test_deep_momentum_refuses(options, message):
  with pytest.raises(ValueError, match=f'`{message}`'):
    scale_by_deep_momentum(**options)
