import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlx import optim

PARAMS = {'w': jnp.ones((4, 6)), 'tall': jnp.ones((7, 3)), 'bias': jnp.ones(3)}


def run(tx, num_steps=4):
  params, state = PARAMS, tx.init(PARAMS)
  for step in range(num_steps):
    keys = iter(jax.random.split(jax.random.key(step), 3))
    grads = {name: jax.random.normal(next(keys), p.shape) for name, p in PARAMS.items()}
    updates, state = jax.jit(tx.update)(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params


@pytest.mark.parametrize('nesterov', [False, True])
def test_muon_is_that_of_optax(nesterov):
  """Matrices and the AdamW for the rest, at the scale that suits both."""
  ours = optim.muon(0.01, nesterov=nesterov, weight_decay=0.1, adamw={'nesterov': nesterov})
  got = run(ours)
  dims = optax.contrib.MuonDimensionNumbers()
  theirs = optax.contrib.muon(
    0.01,
    nesterov=nesterov,
    weight_decay=0.1,
    adam_weight_decay=0.1,
    consistent_rms=0.2,
    muon_weight_dimension_numbers={'w': dims, 'tall': dims, 'bias': None},
  )
  want = run(theirs)
  for name in PARAMS:
    np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-6)


def test_muon_is_linear_deep_momentum_with_newton_schulz():
  deep = optim.deep_momentum(0.01, None, decay=0.95, output=optim.newton_schulz)
  direction = optax.chain(
    optim.scale_by_momentum(0.95, rate=0.05, output=optim.newton_schulz), optax.scale(-0.01)
  )
  got, want = run(deep), run(direction)
  for name in ('w', 'tall'):
    np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-6)
