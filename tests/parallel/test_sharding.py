"""Where parameters, optimizer states and batches lie, and what devices then say to each other."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from experiments import common
from experiments.configs import lm
from nlx import interop, models, parallel, training

MESHES = {'8x1x1': (8, 1, 1), '2x4x1': (2, 4, 1), '2x2x2': (2, 2, 2)}
LARGE = 2**12  # Elements; smaller parameters may lie whole on every device.


@functools.cache
def mesh(name):
  return parallel.make_mesh(*MESHES[name])


@functools.cache
def shapes(family):
  """The parameters of a model at size tiny, as shapes."""
  config = common.make_model_config(lm.get_config(f'{family}-tiny').model, 256)
  model = nnx.eval_shape(lambda: models.create(config, rngs=nnx.Rngs(0)))
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


@pytest.mark.parametrize(
  ('path', 'shape', 'expected'),
  [
    ('embedding', (256, 128), P('model', 'fsdp')),
    ('blocks/cms/blocks/0/up/kernel', (2, 128, 768), P(None, 'fsdp', 'model')),
    ('blocks/cms/blocks/0/down/kernel/value', (2, 384, 128), P(None, 'model', 'fsdp')),
    ('1/0/mu/head/kernel', (128, 256), P('fsdp', 'model')),
    ('blocks/mixer/memory/role_weights/w1', (2, 4, 4, 32, 32), P(None, None, 'model', None, None)),
    ('up', (2, 8, 128, 768), P(None, None, 'fsdp', 'model')),
    ('norm/scale', (128,), P(None)),
    ('step', (), P()),
    ('embedding', (257, 128), P(None, 'fsdp')),
  ],
)
def test_spec_names_the_axes_of_the_mesh(path, shape, expected):
  assert parallel.spec(path, shape, mesh('2x2x2')) == expected


def test_spec_names_only_axes_that_the_mesh_has():
  alone = jax.make_mesh((2,), ('fsdp',))
  assert parallel.spec('embedding', (256, 128), alone) == P(None, 'fsdp')


@dataclasses.dataclass(frozen=True)
class Device:
  """As far as a mesh looks at it."""

  id: int
  process_index: int
  platform: str = 'cpu'
  device_kind: str = 'cpu'


@pytest.mark.parametrize(
  ('sizes', 'hosts', 'expected'),
  [
    ((4, 2, 1), 4, [(0, 4), (1, 4), (2, 4), (3, 4)]),
    ((4, 1, 2), 4, [(0, 4), (1, 4), (2, 4), (3, 4)]),
    ((1, 2, 4), 4, [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ((1, 1, 8), 4, [(0, 1)] * 4),
    ((8, 1, 1), 1, [(0, 1)]),
  ],
)
def test_processes_whose_devices_hold_the_same_sequences_read_the_same(sizes, hosts, expected):
  devices = np.array([Device(i, i * hosts // 8) for i in range(8)], object)
  placed = jax.sharding.Mesh(devices.reshape(sizes), parallel.AXES)
  assert [parallel.batch_part(placed, process) for process in range(hosts)] == expected


def test_processes_that_share_some_sequences_only_are_an_error():
  devices = np.array([Device(i, min(i // 3, 1)) for i in range(4)], object)
  placed = jax.sharding.Mesh(devices.reshape((2, 1, 2)), parallel.AXES)
  with pytest.raises(ValueError, match='the same shares of a batch, or none in common'):
    parallel.batch_part(placed, 0)


@pytest.mark.parametrize('family', lm.MODELS)
def test_every_large_parameter_is_divided(family):
  """Over all devices that divide parameters, or over the heads."""
  placed = parallel.shardings(shapes(family), mesh('2x2x2'))
  for path, x in jax.tree_util.tree_leaves_with_path(shapes(family)):
    where = functools.reduce(lambda tree, key: tree[key.key], path, placed)
    if x.size >= LARGE:
      assert where.num_devices == 8
      part = np.prod(where.shard_shape(x.shape)) / x.size
      assert part <= 0.5, (jax.tree_util.keystr(path), x.shape)


@pytest.mark.parametrize(
  'name', ['adamw', 'muon', 'm3', 'delta_momentum', 'multi_rate', 'ademamix']
)
def test_optimizer_state_lies_as_the_parameters_do(name):
  options = lm.get_config('hope-tiny').optimizer.to_dict().get(name, {})
  tx = training.optimizer(name, 1e-3, **options)
  state = jax.eval_shape(tx.init, shapes('hope'))
  whole = sum(x.size for x in jax.tree.leaves(shapes('hope')))
  placed = jax.tree.leaves(parallel.shardings(state, mesh('2x4x1')))
  parts = [
    np.prod(where.shard_shape(x.shape))
    for where, x in zip(placed, jax.tree.leaves(state), strict=True)
  ]
  total = sum(x.size for x in jax.tree.leaves(state))
  assert total >= whole
  assert sum(parts) < 0.4 * total


@functools.cache
def language(family):
  """A toy's graph and parameters."""
  fields = lm.get_config(f'{family}-smoke').model
  if 'cms_periods' in fields:
    fields.cms_periods = (32,)  # Compiles quicker than two levels.
  if family == 'hope':
    fields.memory_hidden = 0  # As do matrices; Titans has deep memories.
  config = common.make_model_config(fields, 256)
  graph, params = nnx.split(models.create(config, rngs=nnx.Rngs(0)), nnx.Param)
  return graph, nnx.as_pure(params)


def batch():
  tokens = jax.random.randint(jax.random.key(1), (8, 129), 0, 256)
  mask = jnp.ones((8, 128)).at[3, 70:].set(0)
  return {'tokens': tokens[:, :-1], 'targets': tokens[:, 1:], 'mask': mask}


def gradient(family):
  loss_fn = common.loss_fn(language(family)[0])

  def mean(params, batch):
    total, count = loss_fn(params, batch)
    return total / count

  return jax.value_and_grad(mean)


@functools.cache
def on_one_device(family):
  return jax.jit(gradient(family))(language(family)[1], batch())


@functools.cache
def compiled(family, name):
  """The gradient on a mesh, compiled, and where its arguments lie."""
  params = language(family)[1]
  layout = parallel.shardings(params, mesh(name))
  arguments = (
    parallel.place(params, layout),
    parallel.place(batch(), parallel.batch_sharding(mesh(name))),
  )
  with jax.set_mesh(mesh(name)):
    compute = jax.jit(gradient(family), out_shardings=(None, layout))
    return compute.lower(*arguments).compile(), arguments


CASES = [
  ('transformer', '2x2x2'),
  ('titans', '2x2x2'),
  ('hope', '2x4x1'),
  ('hope_attention', '2x2x2'),
]


@pytest.mark.parametrize(('family', 'name'), CASES)
def test_many_devices_compute_what_one_does(family, name):
  step, arguments = compiled(family, name)
  loss, gradients = step(*arguments)
  expected_loss, expected = on_one_device(family)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), gradients, expected)


def test_hope_says_nothing_while_it_reads():
  """Devices that divide sequences and parameters meet before and after the loop over time only."""
  text = compiled('hope', '2x4x1')[0].as_text()
  kinds = r'(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\('
  entry = text[text.index('\nENTRY ') :]
  assert re.findall(kinds, entry)
  assert len(re.findall(kinds, text)) == len(re.findall(kinds, entry))


def test_sum_over_sequences_is_a_sum_anywhere():
  numbers = jnp.arange(16.0)
  total = lambda params, batch: jnp.sum(params * batch)  # noqa: E731
  expected = total(2.0, numbers)
  assert parallel.sum_over_sequences(total, 2.0, numbers) == expected
  with jax.set_mesh(mesh('2x2x2')):
    summed = jax.jit(functools.partial(parallel.sum_over_sequences, total))
    assert summed(jnp.asarray(2.0), numbers) == expected
    np.testing.assert_allclose(jax.grad(summed)(jnp.asarray(2.0), numbers), numbers.sum())


def test_sum_over_sequences_constrains_nothing_where_devices_divide_sequences_alone():
  """JAX would constrain every result, if only for an axis of one device."""
  total = lambda params, batch: jnp.sum(params * jnp.sin(batch))  # noqa: E731
  with jax.set_mesh(mesh('2x4x1')):
    summed = jax.jit(functools.partial(parallel.sum_over_sequences, total))
    program = summed.lower(jnp.asarray(2.0), jnp.arange(16.0)).as_text()
  assert 'manual_computation' in program
  assert 'sharding_constraint' not in program


def test_divided_parameters_are_read_with_and_saved_as_whole_ones(tmp_path):
  """A session, its file and a Llama of a model that lies on eight devices."""
  config = models.transformer(vocab_size=16, model_dim=16, num_layers=1, num_heads=4)
  model = models.create(config, rngs=nnx.Rngs(0))
  graph, params = nnx.split(model, nnx.Param)
  params, where = nnx.as_pure(params), mesh('2x2x2')
  divided = nnx.merge(graph, jax.device_put(params, parallel.shardings(params, where)))
  tokens = jax.random.randint(jax.random.key(1), (4, 9), 0, 16)

  def read(model):
    session = models.sessions.start(model, batch_size=4, max_length=16)
    return models.sessions.read(model, session, tokens)

  with jax.set_mesh(where):
    session = read(divided)
    models.sessions.save(tmp_path / 'session', session)
    interop.save_llama(divided, tmp_path / 'llama')
  np.testing.assert_allclose(session.logits, read(model).logits, atol=1e-5)
  loaded = models.sessions.load(tmp_path / 'session', model)
  np.testing.assert_array_equal(loaded.logits, session.logits)
  saved = nnx.as_pure(nnx.state(interop.load_llama(tmp_path / 'llama'), nnx.Param))
  jax.tree.map(np.testing.assert_array_equal, saved, params)
