"""What every optimizer of nlx.optim owes optax."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from nlx import optim
from tests.optim.catalogue import CATALOGUE, trees

every_optimizer = pytest.mark.parametrize('name', CATALOGUE)
every_form = pytest.mark.parametrize('form', ['scale', 'full'])


@functools.cache
def make(name, form='full'):
  """Made once, so that its compiled programs are shared."""
  entry = CATALOGUE[name]
  return entry.scale() if form == 'scale' else entry.full(entry.rate)


def gradients_like(params, step=0, scale=1.0):
  def one(path, p):
    key = jax.random.fold_in(jax.random.key(step), len(jax.tree_util.keystr(path)))
    return (scale * jax.random.normal(key, p.shape)).astype(p.dtype)

  return jax.tree_util.tree_map_with_path(one, params)


def forms(tree):
  """Structure, shapes and dtypes."""
  return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


def steps(tx, params, num_steps=3, scale=1.0):
  """The updates of a few steps, parameters held."""
  update, state, all_updates = jax.jit(tx.update), jax.jit(tx.init)(params), []
  for step in range(num_steps):
    updates, state = update(gradients_like(params, step, scale), state, params)
    all_updates.append(updates)
  return all_updates, state


def assert_trees_close(got, want, rtol=1e-5, atol=1e-6):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


# ----- states and updates


@every_form
@every_optimizer
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_structure_shapes_and_dtypes_are_kept(name, form, dtype):
  params = jax.tree.map(lambda p: p.astype(dtype), trees())
  tx = make(name, form)
  all_updates, state = steps(tx, params)
  assert forms(state) == forms(jax.eval_shape(tx.init, params))
  for updates in all_updates:
    assert forms(updates) == forms(params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


@every_form
@every_optimizer
def test_empty_tree_is_fine(name, form):
  tx = make(name, form)
  assert tx.update({}, tx.init({}), {})[0] == {}


@every_form
@every_optimizer
def test_zero_gradients_give_finite_steps(name, form):
  params = trees()
  tx = make(name, form)
  zeros, state = jax.tree.map(jnp.zeros_like, params), jax.jit(tx.init)(params)
  updates, _ = jax.jit(tx.update)(zeros, state, params)
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


@every_optimizer
def test_nothing_is_compiled_again_over_steps(name):
  params, tx, traces = trees(), make(name), []

  @jax.jit
  def update(gradients, state):
    traces.append(0)
    return tx.update(gradients, state, params)

  state = jax.jit(tx.init)(params)
  for step in range(3):
    _, state = update(gradients_like(params, step), state)
  assert len(traces) == 1


@every_optimizer
def test_leading_axes_are_a_batch(name):
  """A stack of matrices moves as its matrices do, each alone."""
  if name == 'deep_momentum':
    pytest.skip('Every leaf has random features of its own.')
  stack = {'w': jax.random.normal(jax.random.key(0), (3, 4, 5))}
  tx = make(name)
  together, _ = steps(tx, stack)
  for i in range(3):
    update, state = jax.jit(tx.update), jax.jit(tx.init)({'w': stack['w'][i]})
    for step, want in enumerate(together):
      gradients = {'w': gradients_like(stack, step)['w'][i]}
      got, state = update(gradients, state, {'w': stack['w'][i]})
      np.testing.assert_allclose(got['w'], want['w'][i], rtol=1e-4, atol=1e-6)


@every_optimizer
def test_state_has_the_sharding_of_its_parameter(name):
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, jax.P('data'))
  params = jax.device_put({'w': jnp.ones((8, 4))}, sharding)
  like_params = [s for s in jax.tree.leaves(make(name).init(params)) if s.shape == (8, 4)]
  assert like_params or name in ('deep_momentum', 'generalized_gradient_descent')
  assert all(leaf.sharding == sharding for leaf in like_params)


# ----- inside optax


@every_optimizer
def test_extra_arguments_are_swallowed(name):
  params, tx = trees(), make(name)

  def update():
    return tx.update(params, tx.init(params), params, value=1.0, unknown='anything')[0]

  assert forms(jax.eval_shape(update)) == forms(params)


@every_optimizer
def test_chain_scales_its_output(name):
  params = trees()
  alone, _ = steps(make(name, 'scale'), params)
  chained, _ = steps(optax.chain(make(name, 'scale'), optax.scale(-2.0)), params)
  assert_trees_close(chained, jax.tree.map(lambda u: -2 * u, alone))


@every_optimizer
def test_partition_gives_it_a_part_of_the_tree(name):
  params = trees()
  labels = {key: 'frozen' if key == 'vector' else 'learned' for key in params}
  tx = optax.partition({'learned': make(name), 'frozen': optax.set_to_zero()}, labels)
  for updates in steps(tx, params)[0]:
    assert not updates['vector'].any()
  assert updates['matrix'].any() or updates['stack']['of_tall'].any()


@every_optimizer
def test_masked_leaves_the_rest_as_it_is(name):
  params = trees()
  mask = {key: key != 'vector' for key in params}
  (updates,), _ = steps(optax.masked(make(name), mask), params, 1)
  np.testing.assert_array_equal(updates['vector'], gradients_like(params)['vector'])


@every_optimizer
def test_inject_hyperparams_makes_the_learning_rate_state(name):
  factory = CATALOGUE[name].full
  defaults = {key: p.default for key, p in inspect.signature(factory).parameters.items()}
  integers = [key for key, default in defaults.items() if isinstance(default, int)]
  params, rate = trees(), CATALOGUE[name].rate
  tx = optax.inject_hyperparams(factory, static_args=integers)(learning_rate=rate)
  got, state = steps(tx, params)
  assert_trees_close(got, steps(make(name), params)[0], rtol=1e-4)
  assert float(state.hyperparams['learning_rate']) == pytest.approx(rate)


@every_optimizer
def test_multi_steps_steps_with_the_mean_gradient(name):
  params = trees()
  tx = optax.MultiSteps(make(name), every_k_schedule=2)
  (_, got), _ = steps(optax.GradientTransformation(tx.init, tx.update), params, 2)
  first, second = (gradients_like(params, step) for step in range(2))
  gradients = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
  alone = make(name)
  want, _ = jax.jit(alone.update)(gradients, jax.jit(alone.init)(params), params)
  assert_trees_close(got, want, rtol=1e-3, atol=1e-5)


class Layers(nnx.Module):
  """What an `nnx.Optimizer` trains."""

  def __init__(self, rngs):
    self.linear = nnx.Linear(3, 4, rngs=rngs)

  def __call__(self, x):
    return self.linear(x)


@pytest.mark.parametrize(
  'tx',
  [
    *(pytest.param(entry.full(entry.rate), id=name) for name, entry in CATALOGUE.items()),
    pytest.param(
      optim.preconditioned_momentum(0.02, preconditioner=optim.kronecker()), id='kronecker'
    ),
    pytest.param(
      optim.preconditioned_momentum(0.02, preconditioner=optim.full_matrix()), id='full_matrix'
    ),
    pytest.param(optim.every(optim.deep_momentum(0.02), 2), id='every'),
  ],
)
def test_nnx_optimizer_takes_the_same_steps(tx):
  """It wraps each leaf of a state, so that none may have anything but an array in its place."""
  model = Layers(nnx.Rngs(0))
  graph, params = nnx.split(model, nnx.Param)
  params = nnx.as_pure(params)
  optimizer, state = nnx.Optimizer(model, tx, wrt=nnx.Param), tx.init(params)
  inputs = jax.random.normal(jax.random.key(0), (5, 3))

  def loss(model):
    return jnp.square(model(inputs)).mean()

  for _ in range(3):
    optimizer.update(model, nnx.grad(loss)(model))
    gradients = jax.grad(lambda params: loss(nnx.merge(graph, params)))(params)
    updates, state = tx.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
  assert_trees_close(nnx.as_pure(nnx.state(model, nnx.Param)), params)


@every_optimizer
def test_apply_if_finite_skips_a_bad_step(name):
  params = trees()
  tx = optax.apply_if_finite(make(name), max_consecutive_errors=2)
  state = jax.jit(tx.init)(params)
  bad = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
  updates, skipped = jax.jit(tx.update)(bad, state, params)
  assert not any(leaf.any() for leaf in jax.tree.leaves(updates))
  assert_trees_close(skipped.inner_state, state.inner_state)


# ----- it descends


def quadratic(params):
  return sum(0.5 * jnp.sum(jnp.square(p - 0.5)) for p in jax.tree.leaves(params))


def rosenbrock(params):
  x, y = params['point']
  return jnp.square(1 - x) + 10 * jnp.square(y - x**2)


def regression(params):
  inputs, truth = jax.random.normal(jax.random.key(1), (2, 16, 16))
  return 0.5 * jnp.mean(jnp.square(inputs @ params['w'] - inputs @ truth[:, :4]))


PROBLEMS = {
  'quadratic': (quadratic, trees),
  'rosenbrock': (rosenbrock, lambda: {'point': jnp.array([-0.5, 1.0])}),
  'regression': (regression, lambda: {'w': jnp.zeros((16, 4))}),
}


@every_optimizer
@pytest.mark.parametrize('problem', PROBLEMS)
def test_it_descends(name, problem):
  """To less than a tenth, at one rate for all three and with a schedule."""
  loss, start = PROBLEMS[problem]
  num_steps = 600
  rate = optax.cosine_decay_schedule(CATALOGUE[name].rate, num_steps)
  tx = CATALOGUE[name].full(rate)

  @jax.jit
  def run(params):
    def step(carry, _):
      params, state = carry
      updates, state = tx.update(jax.grad(loss)(params), state, params)
      return (optax.apply_updates(params, updates), state), loss(params)

    (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), length=num_steps)
    return loss(params), losses

  params = start()
  last, losses = run(params)
  assert last < 0.1 * losses[0]


@every_form
@every_optimizer
def test_first_step_is_downhill(name, form):
  """From several starts: the inner product of update and gradient has the right sign."""
  tx = make(name, form)
  sign = 1 if form == 'scale' else -1
  for seed in range(3):
    params = {'w': jax.random.normal(jax.random.key(seed), (4, 6))}
    gradients = gradients_like(params, seed)
    updates, _ = jax.jit(tx.update)(gradients, jax.jit(tx.init)(params), params)
    assert sign * float(jnp.vdot(updates['w'], gradients['w'])) > 0


# ----- how a step scales


@every_optimizer
@pytest.mark.parametrize('factor', [1e-3, 1e3])
def test_step_scales_with_the_gradient_as_documented(name, factor):
  degree = CATALOGUE[name].degree
  if degree is None:
    pytest.skip('No power of the factor: it depends on the size of the gradient.')
  params = {'w': jnp.ones((4, 6))}
  plain, _ = steps(make(name, 'scale'), params)
  scaled, _ = steps(make(name, 'scale'), params, scale=factor)
  norms = [float(optax.tree.norm(updates[-1])) for updates in (plain, scaled)]
  assert np.log(norms[1] / norms[0]) / np.log(factor) == pytest.approx(degree, abs=0.02)


@functools.cache
def public_optimizers():
  names = set(optim.__all__)
  return {name for name in names if f'scale_by_{name}' in names}


def test_every_public_optimizer_is_in_the_catalogue():
  assert public_optimizers() == set(CATALOGUE)


@pytest.mark.parametrize(
  'path, label',
  [
    (('blocks', 'MultiHeadDotProductAttention_0', 'query', 'kernel'), 'matrix'),
    (('upscale', 'w'), 'matrix'),
    (('heads', 'convex'), 'matrix'),
    (('Embed_0', 'embedding'), 'other'),
    (('LayerNorm_0', 'w'), 'other'),
    (('lm_head', 'kernel'), 'other'),
    (('head', 'kernel'), 'other'),
    (('gate_biases',), 'other'),
    (('Conv_0', 'kernel'), 'other'),
    (('rates', 'kernel'), 'matrix'),
    (('lora_b',), 'matrix'),
    (('weights', 'b2'), 'other'),
    (('momentum_logits',), 'other'),
    (('log_decays', 'value'), 'other'),
  ],
)
def test_matrix_labels_go_by_the_words_of_a_path(path, label):
  tree = jnp.ones((2, 2))
  for name in reversed(path):
    tree = {name: tree}
  assert jax.tree.leaves(optim.matrix_labels(tree)) == [label]
