import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlx import optim

PARAMS = {'fast': jnp.ones(3), 'slow': {'w': jnp.ones((2, 2))}, 'slower': jnp.ones(2)}
PERIODS = {"'slow'": 2, 'slower': 4}


def run(tx, num_steps=9):
  params, state, trail = PARAMS, tx.init(PARAMS), []
  for step in range(num_steps):
    grads = jax.tree.map(lambda p: p + jax.random.normal(jax.random.key(step), p.shape), params)  # noqa: B023
    updates, state = jax.jit(tx.update)(grads, state, params)
    params = optax.apply_updates(params, updates)
    trail.append(params)
  return jax.tree.map(lambda *x: np.stack(x), *trail)


def multi_steps(make):
  """optax.MultiSteps per group."""
  labels = {'fast': 1, 'slow': {'w': 2}, 'slower': 4}

  def group(period):
    tx = optax.MultiSteps(make(period), period)
    return optax.GradientTransformation(tx.init, tx.update)

  return optax.partition({period: group(period) for period in (1, 2, 4)}, labels)


@pytest.mark.parametrize('inner', [optax.adamw, optax.sgd])
def test_multi_rate_is_multi_steps_per_group(inner):
  options = {'weight_decay': 0.1} if inner is optax.adamw else {}
  want = run(multi_steps(lambda period: inner(0.1, **options)))
  if inner is optax.sgd:
    inner = lambda learning_rate, weight_decay, mask: optax.sgd(learning_rate)  # noqa: E731
  got = run(optim.multi_rate(0.1, PERIODS, inner=inner, **options))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)


def test_direction_of_multi_rate_is_multi_steps_per_group():
  want = run(optax.chain(multi_steps(lambda period: optax.scale_by_adam()), optax.scale(-0.1)))
  got = run(optax.chain(optim.scale_by_multi_rate(PERIODS), optax.scale(-0.1)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)


def test_group_is_held_between_its_updates():
  trail = run(optim.multi_rate(0.1, PERIODS))
  moved = {
    name: [bool((a != b).any()) for a, b in zip(trail[name][:-1], trail[name][1:], strict=True)]
    for name in ('fast', 'slower')
  }
  assert all(moved['fast'])
  assert moved['slower'] == [step % 4 == 2 for step in range(8)]


def test_schedule_counts_the_steps_of_the_whole():
  """Group of period 4: its first step is the fourth, its second the eighth."""
  seen = []

  def inner(learning_rate, weight_decay, mask):
    seen.append(learning_rate)
    return optax.sgd(learning_rate)

  optim.multi_rate(lambda step: 10.0 + step, {'slower': 4}, inner=inner)
  rates = sorted([float(rate(count)) for count in (0, 1)] for rate in seen)
  assert rates == [[10.0, 11.0], [13.0, 17.0]]


def test_first_expression_that_matches_decides():
  tx = optim.multi_rate(0.1, {'slow': 2, 'slower': 4})
  trail = run(tx, 3)
  assert (trail['slower'][1] != trail['slower'][0]).any()


def test_multi_rate_refuses_an_expression_that_names_no_parameter():
  tx = optim.multi_rate(0.1, {'cms': 2, 'cmz': 4})
  with pytest.raises(ValueError, match="expression 'cmz', which is in no path .*'cms'"):
    tx.init({'cms': jnp.ones(2), 'other': jnp.ones(2)})


@pytest.mark.parametrize(
  'periods, message',
  [({'a': 0}, r"periods\['a'\].* at least 1"), ({'(': 2}, 'expression')],
)
def test_multi_rate_refuses(periods, message):
  with pytest.raises(ValueError, match=message):
    optim.multi_rate(0.1, periods)


def test_every_hands_extra_arguments_on():
  tx = optim.every(optax.contrib.reduce_on_plateau(), 2)
  state = tx.init(PARAMS)
  for _ in range(2):
    updates, state = tx.update(PARAMS, state, PARAMS, value=jnp.ones(()))
  np.testing.assert_allclose(updates['fast'], 1.0)
