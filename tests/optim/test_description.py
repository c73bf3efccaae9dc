import jax
import jax.numpy as jnp
import optax
import pytest

import nlx
from nlx import levels, optim
from tests.optim.catalogue import CATALOGUE

LAYERS = {'kernel': jnp.zeros((2, 5, 3)), 'bias': jnp.zeros(5)}
PARAMS = {'head': jnp.zeros((2, 3)), 'layers': LAYERS}
SIZE = 6 + 30 + 5


def rows(tx, params=PARAMS):
  """Name, period and size of every level."""
  infos = optim.level_infos(tx, params)
  assert nlx.describe(infos)  # Units, transfers and periods are valid.
  assert all(info.unit == 'step' for info in infos)
  return [(info.name, info.period, info.parameters) for info in infos]


@pytest.mark.parametrize('name', CATALOGUE)
def test_every_optimizer_says_its_memories_and_its_weights(name):
  entry = CATALOGUE[name]
  for tx in (entry.scale(), entry.full(0.1)):
    found = rows(tx)
    assert sum(size for row, _, size in found if row == 'weights') == SIZE
    state = jax.eval_shape(tx.init, PARAMS)
    learned = sum(
      leaf.size for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)
    )
    # What is held beside memories: gathered gradients, last directions, random features.
    assert sum(size for row, _, size in found if row != 'weights') <= learned
    assert len(found) > 1 or learned == 0


def test_m3_has_a_level_per_period():
  tx = optim.scale_by_m3([4, 16])
  assert rows(tx) == [
    ('fast momentum', 1, SIZE),
    ('second moment', 1, SIZE),
    ('slow momentum', 4, SIZE),
    ('slow momentum', 16, SIZE),
    ('weights', 1, SIZE),
  ]


def test_periods_of_levels_inside_of_levels_multiply():
  inner = optax.chain(optax.clip(1.0), optim.scale_by_m3(3, second_moment='none'))
  assert rows(optim.every(optim.every(inner, 2), 5)) == [
    ('fast momentum', 10, SIZE),
    ('slow momentum', 30, SIZE),
    ('weights', 10, SIZE),
  ]


def test_groups_have_their_periods_and_weights():
  tx = optim.multi_rate(0.1, {'layers': 8}, inner=lambda learning_rate, **_: optax.sgd(0.1, 0.9))
  groups = [('momentum', 1, 6), ('momentum', 8, 35), ('weights', 8, 35), ('weights', 1, 6)]
  assert rows(tx) == groups


@pytest.mark.parametrize(
  'wrap',
  [
    lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx, optax.scale(-1.0)),
    lambda tx: optax.masked(tx, lambda params: jax.tree.map(lambda p: True, params)),
    lambda tx: optax.partition({0: tx}, lambda params: jax.tree.map(lambda p: 0, params)),
    lambda tx: optax.apply_if_finite(tx, 5),
    lambda tx: optax.named_chain(('clip', optax.clip(1.0)), ('inner', tx)),
    lambda tx: optax.GradientTransformation(jax.jit(tx.init), tx.update),
  ],
)
def test_levels_are_found_inside_of_any_chain(wrap):
  tx = wrap(optim.scale_by_momentum())
  before = tx.init(PARAMS)  # So that an `init` that is jitted was compiled.
  assert rows(tx) == [('momentum', 1, SIZE), ('weights', 1, SIZE)]
  assert jax.tree.structure(tx.init(PARAMS)) == jax.tree.structure(before)


def test_hyperparameters_that_are_injected_are_no_memories():
  tx = optax.inject_hyperparams(optim.momentum)(learning_rate=0.1)
  assert rows(tx) == [('momentum', 1, SIZE), ('weights', 1, SIZE)]


def test_a_description_leaves_the_state_as_it_was():
  tx = optim.scale_by_m3(4)
  before = tx.init(PARAMS)
  optim.level_infos(tx, PARAMS)
  assert jax.tree.structure(tx.init(PARAMS)) == jax.tree.structure(before)
  with pytest.raises(AttributeError):
    optim.level_infos(tx, 3)
  assert jax.tree.structure(tx.init(PARAMS)) == jax.tree.structure(before)


@pytest.mark.parametrize(
  'tx, names',
  [
    (optax.sgd(0.1), []),
    (optax.sgd(0.1, 0.9), ['momentum']),
    (optax.adamw(0.1), ['momentum', 'second moment']),
    (optax.lion(0.1), ['momentum']),
    (optax.contrib.ademamix(0.1), ['m1', 'm2', 'second moment']),
    (optax.adafactor(0.1), ['v row', 'v col', 'v']),
  ],
)
def test_optimizers_of_optax_are_read_off_their_state(tx, names):
  assert [name for name, _, _ in rows(tx)] == [*names, 'weights']


def test_configured_objectives_are_named():
  tx = optim.scale_by_momentum(objective=nlx.memories.huber(1.0))
  assert optim.level_infos(tx, PARAMS)[0].objective == 'Huber'
  tx = optim.scale_by_preconditioned_momentum(preconditioner=optim.kronecker(None, period=7))
  assert [(info.name, info.period, info.rule) for info in optim.level_infos(tx, PARAMS)[:-1]] == [
    ('momentum', 1, 'gradient, retention'),
    ('moments', 1, 'gradient'),
    ('roots', 7, 'moments^(-1/4)'),
  ]


def test_captured_kernels_are_counted_without_their_moments():
  params = {'captured': optim.capture(jnp.zeros((4, 3))), 'other': jnp.zeros(5)}
  found = rows(optim.delta_gradient_descent(0.1), params)
  assert found == [('momentum', 1, 5), ('second moment', 1, 5), ('weights', 1, 17)]


def test_shapes_of_parameters_are_enough():
  shapes = jax.eval_shape(lambda: PARAMS)
  assert rows(optax.adam(0.1), shapes) == rows(optax.adam(0.1))


@pytest.mark.parametrize('params', [jnp.zeros(()), jnp.zeros(3), {'a': jnp.zeros(())}])
def test_parameters_may_be_scalars_or_one_array(params):
  size = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert rows(optax.sgd(0.1, 0.9), params) == [('momentum', 1, size), ('weights', 1, size)]


@pytest.mark.parametrize(
  'tx',
  [
    levels.to_optax(levels.from_optax(optax.sgd(0.1), period=4)),
    optax.MultiSteps(optax.sgd(0.1), 4).gradient_transformation(),
  ],
)
def test_a_period_that_nothing_tells_is_named(tx):
  with pytest.raises(ValueError, match='does not tell its period: use `nlx.optim.every`'):
    optim.level_infos(tx, PARAMS)
