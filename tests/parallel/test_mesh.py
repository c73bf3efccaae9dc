from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
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


# ----- slices


@dataclass(frozen=True)
class Host:
  """A device of another kind; a CPU knows of no slices."""

  id: int
  process_index: int
  platform: str = 'cpu'
  device_kind: str = 'cpu'


@dataclass(frozen=True)
class Slice:
  """One that does."""

  id: int
  process_index: int
  slice_index: int
  platform: str = 'gpu'
  device_kind: str = 'GPU'


HOSTS = [Host(i, i // 2) for i in range(8)]
# Of four processes; ids do not follow the slices.
SLICES = [Slice(i, i // 2, i % 2) for i in range(8)]


def test_slices_divide_the_axis_of_the_data():
  mesh = parallel.make_mesh(fsdp=2, model=2, devices=SLICES)
  assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'model': 2}
  assert set(mesh.axis_types) == {AxisType.Auto}
  found = np.vectorize(lambda device: device.slice_index)(mesh.devices)
  np.testing.assert_array_equal(found, np.broadcast_to([[[0]], [[1]]], (2, 2, 2)))


def test_devices_of_one_slice_are_next_to_each_other_in_the_axis_of_the_data():
  mesh = parallel.make_mesh(slices=2, model=2, devices=SLICES)
  assert [device.slice_index for device in mesh.devices[:, 0, 0]] == [0, 0, 1, 1]


def test_slices_that_devices_do_not_know_of_are_processes():
  mesh = parallel.make_mesh(fsdp=2, slices=4, devices=HOSTS)
  found = np.vectorize(lambda device: device.process_index)(mesh.devices)
  np.testing.assert_array_equal(found[..., 0], [[0, 0], [1, 1], [2, 2], [3, 3]])


def test_devices_of_several_slices_may_be_taken_for_one():
  mesh = parallel.make_mesh(data=1, fsdp=8, slices=1, devices=SLICES)
  assert list(mesh.devices.flat) == SLICES


@pytest.mark.parametrize(
  ('devices', 'options', 'message'),
  [
    (SLICES, {'slices': 4}, '`slices` must be 1 or the 2 slices of the devices, got 4'),
    (HOSTS, {'slices': 2}, '`slices` must be 1 or the 4 processes of the devices, got 2'),
    (SLICES, {'slices': 0}, '`slices` must be an integer of at least 1, got 0'),
    (SLICES, {'fsdp': 8}, '`data` must be a multiple of `slices`, got 1 and 2'),
  ],
)
def test_slices_that_do_not_fit_are_an_error(devices, options, message):
  with pytest.raises(ValueError, match=message):
    parallel.make_mesh(devices=devices, **options)


def test_mesh_takes_devices_of_its_own():
  devices = jax.devices()[4:]
  assert list(parallel.make_mesh(devices=devices).devices.flat) == devices
