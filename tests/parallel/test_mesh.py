import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from nlx import parallel


def test_mesh_gives_all_devices_to_data():
  assert parallel.make_mesh().shape == {'data': jax.device_count(), 'fsdp': 1, 'model': 1}


def test_mesh_fills_the_free_axis():
  assert parallel.make_mesh(data=2, fsdp=-1).shape['fsdp'] == jax.device_count() // 2


def test_mesh_leaves_every_axis_to_the_compiler():
  assert set(parallel.make_mesh().axis_types) == {AxisType.Auto}


def test_batch_sharding_divides_the_sequences():
  rows = jax.device_put(jnp.zeros((16, 3)), parallel.batch_sharding(parallel.make_mesh()))
  assert rows.addressable_shards[0].data.shape == (16 // jax.device_count(), 3)


def test_replicated_keeps_whole_copies():
  rows = jax.device_put(jnp.zeros((16, 3)), parallel.replicated(parallel.make_mesh()))
  assert {shard.data.shape for shard in rows.addressable_shards} == {(16, 3)}


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    ({'data': 3}, 'must use all .* devices'),
    ({'data': 1}, 'must use all .* devices'),
    ({'fsdp': 0}, '`fsdp` must be at least 1 device or -1, got 0'),
    ({'fsdp': -1}, 'Only one .* may be -1, got data and fsdp'),
  ],
)
def test_sizes_that_do_not_fit_are_an_error(sizes, message):
  with pytest.raises(ValueError, match=message):
    parallel.make_mesh(**sizes)
