"""What chips can do, as their makers say, and the devices of TPU slices that are not there."""

import os
from typing import Any, NamedTuple

import jax


class Chip(NamedTuple):
  """A kind of device; None stands for what is not known.

  Attributes:
    name: Of the kind.
    memory: Bytes of main memory that a program may use.
    flops: Peak operations per second in bfloat16.
    bandwidth: Bytes per second between the chip and its main memory.
    interconnect: Bytes per second that a chip sends to others over all of its links together, in a
      slice or a machine.
  """

  name: str
  memory: float | None = None
  flops: float | None = None
  bandwidth: float | None = None
  interconnect: float | None = None


# https://cloud.google.com/tpu/docs, v4 to v6e, which give the bandwidth of the links in both
# directions together; that of v4 is six of 50 GB/s (Jouppi et al., arXiv 2304.01433, Table 4).
# Memory is what XLA's compiler leaves to a program of 32, 16, 95 and 32 GiB.
TPUS = {
  'v4': Chip('TPU v4', 30.75 * 2**30, 275e12, 1200e9, 300e9),
  'v5e': Chip('TPU v5 lite', 15.75 * 2**30, 197e12, 819e9, 200e9),
  'v5p': Chip('TPU v5', 95.73 * 2**30, 459e12, 2765e9, 600e9),
  'v6e': Chip('TPU v6 lite', 31.24 * 2**30, 918e12, 1600e9, 400e9),
}
# So that libtpu asks no TPU what it is, locks none, and says nothing of it.
_NO_TPU = {
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
}
# NVIDIA's data sheets of H100 SXM and H200 SXM: peaks without sparsity, NVLink in one direction.
_GPUS = (
  Chip('NVIDIA H100 80GB HBM3', 80e9, 989e12, 3350e9, 450e9),
  Chip('NVIDIA H200', 141e9, 989e12, 4800e9, 450e9),
)


def tpu_slice(topology: str) -> tuple[Chip, list[Any]]:
  """A TPU slice that need not be there: programs can be compiled for its devices, but not run.

  Environment variables that are not set tell libtpu that there is no TPU; call it before anything
  else asks for one.

  Args:
    topology: As in v5e:16x16 or v5p:8x8x8.

  Returns:
    The kind of chip, and one device for each chip.

  Raises:
    ValueError: If the kind of chip is unknown, or makes no such slice.
    ModuleNotFoundError: If libtpu is not installed.
  """
  from jax.experimental import topologies

  kind = topology.partition(':')[0]
  if kind not in TPUS:
    raise ValueError(f'`topology` must begin with one of {", ".join(TPUS)}, got {topology!r}.')
  for name, value in _NO_TPU.items():
    os.environ.setdefault(name, value)
  options = {'chip_config_name': 'megacore'} if kind == 'v4' else {}
  try:
    found = topologies.get_topology_desc(platform='tpu', topology_name=topology, **options)
  except RuntimeError as error:
    if 'not installed' in str(error):
      raise ModuleNotFoundError('a TPU slice needs libtpu: install nlx[tpu].') from error
    raise ValueError(f'`topology` {topology!r} is no slice of {kind}: {error}') from error
  return TPUS[kind], list(found.devices)


def local_chip() -> Chip:
  """The kind of the devices here, with the memory that this process may use."""
  device = jax.devices()[0]
  known = {chip.name: chip for chip in (*TPUS.values(), *_GPUS)}
  chip = known.get(device.device_kind, Chip(device.device_kind))
  memory = (device.memory_stats() or {}).get('bytes_limit')
  return chip._replace(memory=float(memory)) if memory else chip
