import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx import models, optim, training


def rates(**changes):
  arguments = {'peak': 2.0, 'warmup_steps': 4, 'total_steps': 12, 'floor': 0.1, **changes}
  schedule = training.warmup_cosine(arguments.pop('peak'), **arguments)
  return np.asarray(jax.jit(jax.vmap(schedule))(np.arange(arguments['total_steps'] + 3)))


def test_schedule_rises_linearly():
  np.testing.assert_allclose(rates()[:4], [0.5, 1.0, 1.5, 2.0])


def test_schedule_is_half_way_down_in_the_middle():
  assert rates()[7] == pytest.approx((2.0 + 0.2) / 2)


def test_schedule_falls_from_the_peak_on():
  assert (np.diff(rates()[3:12]) < 0).all()


def test_schedule_stays_at_the_floor():
  np.testing.assert_allclose(rates()[11:], 0.2, rtol=1e-6)


def test_schedule_without_warmup_begins_near_the_peak():
  assert rates(warmup_steps=0)[0] == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'peak': 0.0}, '`peak` learning rate.*got 0.0'),
    ({'warmup_steps': 12}, '`warmup_steps`.*got 12 of 12'),
    ({'warmup_steps': -1}, '`warmup_steps`.*got -1'),
    ({'floor': 1.5}, '`floor`.*got 1.5'),
  ],
)
def test_schedule_out_of_range_is_an_error(changes, message):
  with pytest.raises(ValueError, match=message):
    rates(**changes)


def first_update(grads, params=None, name='adamw', rate=0.1, **options):
  """The update of parameters that are all ones if not given."""
  tx = training.optimizer(name, rate, **options)
  params = jax.tree.map(jnp.ones_like, grads) if params is None else params
  return jax.jit(lambda *args: tx.update(args[0], tx.init(args[1]), args[1])[0])(grads, params)


def test_weight_decay_shrinks_matrices_only():
  grads = {'matrix': jnp.zeros((2, 3)), 'vector': jnp.zeros(3), 'scalar': jnp.zeros(())}
  updates = first_update(grads, weight_decay=0.5)
  found = {name: float(update.max()) for name, update in updates.items()}
  assert found == pytest.approx({'matrix': -0.05, 'vector': 0.0, 'scalar': 0.0})


def test_matrices_do_not_count_the_axis_of_layers():
  params = {
    'blocks': {'kernel': jnp.zeros((5, 2, 3)), 'scale': jnp.zeros((5, 3))},
    'head': jnp.zeros((2, 3)),
  }
  mask = training.matrices(params, stacked=('blocks',))
  assert mask == {'blocks': {'kernel': True, 'scale': False}, 'head': True}


@pytest.mark.parametrize('name', ['gate_biases', 'inner_scale', 'inner_offset', 'log_decays', 'b1'])
def test_matrices_hold_no_vectors_of_several_heads(name):
  model = nnx.Dict({'layer': nnx.Dict({name: nnx.Param(jnp.zeros((2, 3)))})})
  state = nnx.state(model, nnx.Param)
  for params in (state, nnx.to_pure_dict(state)):
    assert jax.tree.leaves(training.matrices(params)) == [False]


@pytest.mark.parametrize('family', ['hope', 'ttt_mlp', 'samba', 'gated_deltanet'])
def test_matrices_of_models_are_the_same_whether_layers_are_stacked_or_not(family):
  config = models.FAMILIES[family](vocab_size=8, model_dim=8, num_layers=2, num_heads=2)
  model = nnx.eval_shape(lambda: models.create(config, rngs=nnx.Rngs(0)))
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  known = training.matrices(params, stacked=('blocks',))
  assert training.matrices(params) == known
  labels = jax.tree.leaves(optim.matrix_labels(params))
  known = jax.tree.leaves(known)
  assert all(known[i] for i, label in enumerate(labels) if label == optim.MATRIX)


def test_weight_decay_takes_another_mask():
  grads = {'matrix': jnp.zeros((2, 3)), 'vector': jnp.zeros(3)}
  updates = first_update(
    grads, weight_decay=0.5, decay_mask=lambda params: {'matrix': False, 'vector': True}
  )
  assert float(updates['matrix'].max()) == 0
  assert float(updates['vector'].max()) == pytest.approx(-0.05)


def test_clipping_bounds_the_gradient():
  grads = {'vector': jnp.full(4, 100.0)}
  clipped = first_update(grads, clip_norm=1.0, eps=1.0)['vector']
  unclipped = first_update(grads, clip_norm=None, eps=1.0)['vector']
  np.testing.assert_allclose(clipped, -0.1 * 0.5 / 1.5, rtol=1e-5)  # Each gradient becomes 0.5.
  np.testing.assert_allclose(unclipped, -0.1 * 100 / 101, rtol=1e-5)


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('adam', {}, r"`name` of the optimizer must be one of \[.*'adamw'.*\], got 'adam'"),
    ('adamw', {'weight_decay': -1.0}, '`weight_decay`.*got -1.0'),
    ('adamw', {'clip_norm': 0.0}, '`clip_norm`.*got 0.0'),
  ],
)
def test_optimizer_out_of_range_is_an_error(name, options, message):
  with pytest.raises(ValueError, match=message):
    training.optimizer(name, 0.1, **options)


def test_optimizer_table_takes_new_entries(monkeypatch):
  monkeypatch.setitem(training.OPTIMIZERS, 'mine', training.OPTIMIZERS['adamw'])
  assert training.optimizer('mine', 0.1).init({'a': jnp.ones(2)})


def small_params():
  """A tree like that of a model: stacked layers, an embedding, a head."""
  shapes = {
    'embedding': (8, 4),
    'blocks': {'kernel': (2, 4, 6), 'scale': (2, 4), 'conv': (3, 4)},
    'head': {'kernel': (4, 8)},
  }
  is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
  return jax.tree.map(lambda shape: np.ones(shape, np.float32), shapes, is_leaf=is_shape)


@pytest.mark.parametrize('name', sorted(set(training.OPTIMIZERS) - {'delta_gradient_descent'}))
def test_every_optimizer_moves_a_model(name):
  params = small_params()
  mask = functools.partial(training.matrices, stacked=('blocks',))
  updates = first_update(params, name=name, rate=1e-2, weight_decay=0.1, decay_mask=mask)
  assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
  assert all(np.any(update) for update in jax.tree.leaves(updates))


def test_matrix_rules_leave_embedding_head_and_vectors_of_layers_to_adamw():
  mask = functools.partial(training.matrices, stacked=('blocks',))
  grads = jax.tree.map(lambda p: np.arange(1.0, p.size + 1).reshape(p.shape), small_params())
  options = {'rate': 1e-2, 'decay_mask': mask, 'clip_norm': None}
  updates = [first_update(grads, name=name, **options) for name in ('muon', 'adamw')]
  same = jax.tree.map(lambda a, b: np.allclose(a, b), *updates)
  layers = {'kernel': False, 'scale': True, 'conv': True}
  assert same == {'embedding': True, 'blocks': layers, 'head': {'kernel': True}}


def test_delta_gradient_descent_refuses_a_model_without_captured_kernels():
  with pytest.raises(ValueError, match='this model has none'):
    training.optimizer('delta_gradient_descent', 0.1).init(small_params())


def test_delta_gradient_descent_takes_captured_kernels():
  params = {'layer': optim.capture(jnp.ones((2, 3)))}
  updates = first_update(params, name='delta_gradient_descent')
  assert updates['layer'].weight.any()


def test_clipping_leaves_captured_moments_alone():
  """They are large, but no gradients."""
  params = {'layer': optim.capture(jnp.ones((4, 3)))}
  grads = {'layer': optim.Captured(jnp.full((4, 3), 0.1), 100 * jnp.eye(4))}
  found = [
    first_update(grads, params, 'delta_gradient_descent', clip_norm=clip_norm)['layer'].weight
    for clip_norm in (1.0, None)
  ]
  np.testing.assert_allclose(*found, rtol=1e-6)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'learning_rate': -1.0}, '`learning_rate` must not be negative, got -1.0'),
    ({'learning_rate': float('nan')}, '`learning_rate` must not be negative, got nan'),
    ({'weight_decay': float('nan')}, '`weight_decay` must not be negative, got nan'),
    ({'clip_norm': float('nan')}, '`clip_norm` must be positive or None, got nan'),
  ],
)
def test_number_of_any_optimizer_that_is_out_of_range_is_an_error(options, message):
  with pytest.raises(ValueError, match=message):
    training.optimizer('adamw', **{'learning_rate': 0.1, **options})
