import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlx import levels, optim, parallel, training
from tests.training import standin


def ragged_batch(rows=8, seed=0):
  """A batch whose sequences have very different numbers of valid tokens."""
  task = standin.make_task(batch_size=rows)
  batch = next(task.batches)
  lengths = np.random.default_rng(seed).integers(1, 17, rows)
  return {**batch, 'mask': (np.arange(16) < lengths[:, None]).astype(np.float32)}


def fresh_state(tx):
  return training.init_state(standin.init_params(), tx, key=jax.random.key(0))


def one_step(batch, accumulation=1, tx=None):
  tx = tx or optax.sgd(0.5)
  return training.make_step(standin.loss_fn, tx, accumulation)(fresh_state(tx), batch)


def assert_close(first, second, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), first, second)


@pytest.mark.parametrize('accumulation', [2, 4, 8])
def test_accumulation_equals_the_big_batch(accumulation):
  batch = ragged_batch()
  whole, parts = one_step(batch), one_step(batch, accumulation)
  assert_close(whole[0].params, parts[0].params, rtol=1e-6, atol=1e-7)
  assert_close(whole[1], parts[1], rtol=1e-6)


@pytest.mark.parametrize('accumulation', [1, 2])
def test_delta_gradient_descent_gets_moments_that_are_means(accumulation):
  x, y = jax.random.normal(jax.random.key(0), (2, 8, 3))
  kernel, tx = jnp.eye(3), optim.delta_gradient_descent(0.5)
  params = {'kernel': optim.capture(kernel)}

  def loss_fn(params, batch):
    error = optim.dense(batch['x'], params['kernel']) - batch['y']
    return jnp.sum(error**2) / 2, jnp.asarray(batch['x'].shape[0])

  step = training.make_step(loss_fn, tx, accumulation)
  state = training.init_state(params, tx, key=jax.random.key(0))
  state, metrics = step(state, {'x': x, 'y': y})
  gradient, moment = x.T @ (x @ kernel - y) / 8, x.T @ x / 8
  direction = jnp.linalg.solve(jnp.eye(3) + 0.5 * moment, moment @ kernel + gradient)
  assert_close(state.params['kernel'].weight, kernel - 0.5 * direction, rtol=1e-5, atol=1e-6)
  assert float(metrics['grad_norm']) == pytest.approx(float(jnp.linalg.norm(gradient)), rel=1e-5)


@pytest.mark.parametrize('accumulation', [1, 2, 4])
def test_delta_gradient_descent_does_not_see_padding(accumulation):
  """Though microbatches have different numbers of tokens."""
  batch = {'x': jax.random.normal(jax.random.key(0), (4, 5, 3)), 'mask': jnp.ones((4, 5))}
  batch['mask'] = batch['mask'].at[0, 1:].set(0).at[2, 3:].set(0)
  valid = {name: leaf[batch['mask'] == 1][None] for name, leaf in batch.items()}

  def loss_fn(params, batch):
    out = optim.dense(batch['x'], params['kernel'], batch['mask'])
    return jnp.sum((out - batch['x']) ** 2 * batch['mask'][..., None]), jnp.sum(batch['mask'])

  tx, params = optim.delta_gradient_descent(0.5), {'kernel': optim.capture(2 * jnp.eye(3))}

  def kernel(batch, accumulation):
    state = training.init_state(params, tx, key=jax.random.key(0))
    return training.make_step(loss_fn, tx, accumulation)(state, batch)[0].params['kernel'].weight

  assert_close(kernel(batch, accumulation), kernel(valid, 1), rtol=1e-5, atol=1e-6)


def test_accumulation_that_does_not_divide_is_an_error():
  with pytest.raises(ValueError, match='`accumulation` must divide the batch of 8.*got 3'):
    one_step(ragged_batch(), accumulation=3)


def test_accumulation_below_one_is_an_error():
  with pytest.raises(ValueError, match='`accumulation`.*got 0'):
    training.make_step(standin.loss_fn, optax.sgd(0.1), 0)


def test_step_is_the_same_on_many_devices():
  batch, tx = ragged_batch(16), optax.sgd(0.5)
  mesh = parallel.make_mesh()
  state = jax.device_put(fresh_state(tx), parallel.replicated(mesh))
  placed = jax.device_put(batch, parallel.batch_sharding(mesh))
  many, _ = training.make_step(standin.loss_fn, tx, 2)(state, placed)
  assert_close(many.params, one_step(batch, 2)[0].params, rtol=1e-5, atol=1e-7)


def test_step_reports_the_mean_over_valid_tokens():
  batch = ragged_batch()
  loss_sum, count = jax.jit(standin.loss_fn)(standin.init_params(), batch)
  metrics = one_step(batch)[1]
  assert float(metrics['loss']) == pytest.approx(float(loss_sum / count))
  assert float(metrics['bits_per_token']) == pytest.approx(float(loss_sum / count) / np.log(2))
  assert float(metrics['tokens']) == float(count)


def test_step_reports_norms_of_gradient_and_update():
  metrics = one_step(ragged_batch(), tx=optax.sgd(0.25))[1]
  assert float(metrics['update_norm']) == pytest.approx(0.25 * float(metrics['grad_norm']))


def test_step_reports_the_learning_rate_that_it_used():
  schedule = training.warmup_cosine(1.0, warmup_steps=4, total_steps=9)
  tx = optax.sgd(schedule)
  step = training.make_step(standin.loss_fn, tx, schedule=schedule)
  state, first = step(fresh_state(tx), ragged_batch())
  _, second = step(state, ragged_batch())
  assert (float(first['learning_rate']), float(second['learning_rate'])) == (0.25, 0.5)


def test_step_lowers_the_loss():
  task = standin.make_task(steps=60)
  step, state = training.make_step(task.loss_fn, task.tx), fresh_state(task.tx)
  losses = []
  for _ in range(60):
    state, metrics = step(state, next(task.batches))
    losses.append(float(metrics['loss']))
  assert losses[-1] < 0.8 * losses[0]


def test_step_gives_its_input_away_but_not_the_callers_parameters():
  params, tx = standin.init_params(), optax.sgd(0.1)
  state = training.init_state(params, tx, key=jax.random.key(0))
  training.make_step(standin.loss_fn, tx)(state, ragged_batch())
  assert state.params['embed'].is_deleted()
  assert not params['embed'].is_deleted()


def test_state_of_an_optimizer_that_holds_the_parameters_can_be_given_away():
  tx = levels.to_optax(levels.from_optax(optax.sgd(0.5)))
  state, _ = one_step(ragged_batch(), tx=tx)
  assert_close(state.params, one_step(ragged_batch())[0].params, rtol=1e-6, atol=1e-7)


def poisoned(loss):
  """A loss that is not finite where the first token of the batch is 0."""

  def loss_fn(params, batch):
    loss_sum, count = standin.loss_fn(params, batch)
    scale = jnp.where(batch['tokens'][0, 0] == 0, loss, 1.0)
    return loss_sum * scale, count

  return loss_fn


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_step_that_is_not_finite_changes_nothing_and_stops_later_ones(value):
  good, tx = ragged_batch(), optax.adam(0.1)
  bad = {**good, 'tokens': np.zeros_like(good['tokens'])}
  step = training.make_step(poisoned(value), tx)
  state, _ = step(fresh_state(tx), good)
  before = jax.device_get((state.params, state.opt_state))
  for batch in (bad, good):
    state, metrics = step(state, batch)
  assert_close(jax.device_get((state.params, state.opt_state)), before, rtol=0)
  assert (int(state.step), int(metrics['failed_step'])) == (1, 2)


def test_gradient_that_is_not_finite_fails_too():
  def loss_fn(params, batch):
    loss_sum, count = standin.loss_fn(params, batch)
    return loss_sum + jnp.sqrt(
      jnp.abs(params['layer']['bias'] - params['layer']['bias'])
    ).sum(), count

  tx = optax.sgd(0.1)
  state, metrics = training.make_step(loss_fn, tx)(fresh_state(tx), ragged_batch())
  assert np.isfinite(metrics['loss'])
  assert int(state.failed_step) == 1


def test_update_that_is_not_finite_fails_too():
  large = optax.GradientTransformation(
    lambda params: optax.EmptyState(),
    lambda grads, state, params=None: (jax.tree.map(lambda g: jnp.exp(1e3 + g), grads), state),
  )
  before = jax.device_get(fresh_state(large).params)
  state, metrics = training.make_step(standin.loss_fn, large)(fresh_state(large), ragged_batch())
  assert np.isfinite([metrics['loss'], metrics['grad_norm']]).all()
  assert int(state.failed_step) == 1
  assert_close(jax.device_get(state.params), before, rtol=0)


def test_evaluation_weighs_tokens_equally():
  params, batches = standin.init_params(), [ragged_batch(seed=seed) for seed in (1, 2)]
  sums = [jax.jit(standin.loss_fn)(params, batch) for batch in batches]
  expected = float(sums[0][0] + sums[1][0]) / float(sums[0][1] + sums[1][1])
  loss, count = training.evaluate(training.make_eval(standin.loss_fn), params, batches)
  assert loss == pytest.approx(expected)
  assert count == sum(batch['mask'].sum() for batch in batches)


def test_evaluation_of_nothing_is_an_error():
  with pytest.raises(ValueError, match='at least one valid token'):
    training.evaluate(training.make_eval(standin.loss_fn), standin.init_params(), [])


@pytest.mark.parametrize('name', ['adamw', 'multi_rate', 'm3'])
@pytest.mark.parametrize('accumulation', [1, 2])
def test_state_keeps_the_dtypes_of_parameters_in_16_bits(name, accumulation):
  """So that a compiled step takes what it has made."""
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), standin.init_params())
  options = {'periods': {'layer': 2}} if name == 'multi_rate' else {}
  tx = training.optimizer(name, 0.01, **options)
  state = training.init_state(params, tx, key=jax.random.key(0))
  step = training.make_step(standin.loss_fn, tx, accumulation)
  dtypes = jax.tree.map(lambda x: x.dtype, state)
  for _ in range(3):
    state, metrics = step(state, ragged_batch())
    assert jax.tree.map(lambda x: x.dtype, state) == dtypes
  assert np.isfinite(metrics['loss'])


@pytest.mark.parametrize('dtype', [jnp.float16, jnp.bfloat16])
def test_gradients_in_16_bits_are_means_of_many_tokens(dtype):
  """Whose sum is more than float16 holds, and to which bfloat16 adds nothing from 256 on."""

  def loss_fn(params, batch):
    losses = batch['x'] * params['w'].astype(jnp.float32)[None, None]
    return jnp.sum(losses), jnp.asarray(losses.size, jnp.float32)

  params, batch = {'w': jnp.ones((), dtype)}, {'x': jnp.ones((512, 256))}
  tx = optax.sgd(1.0)
  for accumulation in (1, 512):
    after, metrics = training.make_step(loss_fn, tx, accumulation)(
      training.init_state(params, tx, key=jax.random.key(0)), batch
    )
    assert int(after.failed_step) == 0 and float(metrics['grad_norm']) == 1


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('accumulation', [1, 3])
def test_means_in_float64_are_exact(accumulation):
  tx = optax.sgd(1.0)

  def loss_fn(params, batch):
    return jnp.sum(batch['x'] * params), jnp.float32(batch['x'].size)

  state = training.init_state(jnp.float64(0.1), tx, key=jax.random.key(0))
  _, metrics = training.make_step(loss_fn, tx, accumulation)(state, {'x': jnp.ones(3)})
  np.testing.assert_allclose([metrics['loss'], metrics['grad_norm']], [0.1, 1], rtol=1e-15)
