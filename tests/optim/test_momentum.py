import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlx import memories, optim

GRADIENTS = np.random.default_rng(0).normal(size=(10, 3, 4))


def run(tx):
  params = jnp.zeros((3, 4))
  state, updates = jax.jit(tx.init)(params), []
  for gradient in GRADIENTS:
    update, state = jax.jit(tx.update)(gradient, state, params)
    updates.append(update)
  return np.stack(updates)


@pytest.mark.parametrize('nesterov', [False, True])
def test_momentum_without_values_is_trace(nesterov):
  ours = optim.scale_by_momentum(0.8, nesterov=nesterov)
  np.testing.assert_allclose(run(ours), run(optax.trace(0.8, nesterov)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('debias', [False, True])
def test_momentum_with_rate_of_one_minus_decay_is_ema(debias):
  ours = optim.scale_by_momentum(0.8, rate=0.2, debias=debias)
  np.testing.assert_allclose(run(ours), run(optax.ema(0.8, debias)), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('objective', [memories.dot_product(), memories.l2(), memories.huber(1.0)])
def test_momentum_descends_on_its_inner_objective(objective):
  """m = decay m - rate grad L(m; g), L by its written-out gradient, through autodiff."""
  losses = {
    'dot product': lambda m, g: -jnp.sum(m * g),
    'L2': lambda m, g: 0.5 * jnp.sum((m - g) ** 2),
    'Huber': lambda m, g: jnp.sum(
      jax.vmap(lambda e: jnp.where(e @ e < 1, e @ e / 2, jnp.sqrt(e @ e) - 0.5))(m - g)
    ),
  }
  slope, memory, want = jax.jit(jax.grad(losses[objective.name])), np.zeros((3, 4)), []
  for gradient in GRADIENTS:
    memory = 0.9 * memory - 0.3 * np.asarray(slope(memory, gradient))
    want.append(memory)
  got = run(optim.scale_by_momentum(0.9, rate=0.3, objective=objective))
  np.testing.assert_allclose(got, np.stack(want), rtol=1e-10, atol=1e-12)


def test_momentum_takes_a_scalar_for_one_row_of_one():
  tx = optim.scale_by_momentum(objective=memories.huber(1.0))
  scalar, row = (tx.update(x, tx.init(x))[0] for x in (jnp.asarray(3.0), jnp.full((1, 1), 3.0)))
  assert (float(scalar), float(row[0, 0])) == (1.0, 1.0)


def test_momentum_forgets_as_slowly_as_its_decay_says():
  """At 0.9 the last 7 gradients carry 52 % of an average, the last 43 carry 98.9 %."""
  tx = optim.scale_by_momentum(0.9, rate=0.1)
  state = jax.jit(tx.init)(jnp.zeros(100))
  for one_hot in np.eye(100):
    share, state = jax.jit(tx.update)(one_hot, state)
  assert float(share[-7:].sum()) == pytest.approx(0.522, abs=1e-3)
  assert float(share[-43:].sum()) == pytest.approx(0.989, abs=1e-3)


def test_momentum_needs_no_parameters_where_nothing_decays():
  gradient = jnp.ones(2)
  tx, decaying = (
    optim.momentum(0.1, weight_decay=decay, mask=lambda params: True) for decay in (0.0, 0.1)
  )
  updates, state = tx.update(gradient, tx.init(gradient))
  assert np.all(updates < 0)
  assert jax.tree.structure(state) == jax.tree.structure(decaying.init(gradient))  # Runs resume.


def test_momentum_decays_weights_that_its_mask_names():
  params = {'w': jnp.ones(2), 'b': jnp.ones(2)}
  tx = optim.momentum(0.1, weight_decay=0.5, mask={'w': True, 'b': False})
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  np.testing.assert_allclose(updates['w'], -0.05, rtol=1e-6)
  assert not updates['b'].any()


@pytest.mark.parametrize(
  'options, message',
  [
    ({'decay': 1.0}, '`decay`'),
    ({'rate': -1}, '`rate`'),
    ({'debias': True, 'objective': memories.l2()}, '`debias`'),
  ],
)
def test_momentum_refuses(options, message):
  with pytest.raises(ValueError, match=message):
    optim.scale_by_momentum(**options)
