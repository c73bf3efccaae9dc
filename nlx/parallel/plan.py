"""A step compiled ahead of time: what it needs of each device, against what the device has.

The devices need not be there.

  from nlx import parallel
  chip, devices = parallel.tpu_slice('v5e:16x16')
  mesh = parallel.make_mesh(data=1, fsdp=128, model=2, devices=devices)
  with jax.set_mesh(mesh):
    print(parallel.plan(step, state, batch, chip=chip))
"""

import contextlib
import math
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from nlx.parallel.chips import Chip
from nlx.parallel.flops import count_flops
from nlx.parallel.program import parse
from nlx.parallel.work import Buffer, Work, largest, work

LARGEST = 8  # Arrays that are named.
# Units, the largest first; a number below a hundredth of one is told in the next.
_BINARY = {'GiB': 2**30, 'MiB': 2**20, 'KiB': 2**10}
_DECIMAL = {'GB': 1e9, 'MB': 1e6, 'kB': 1e3}
_TIME = {'s': 1, 'ms': 1e-3, 'us': 1e-6}


class Plan(NamedTuple):
  """What a step needs; `print` it for a report.

  Attributes:
    chip: The kind of device.
    num_devices: How many there are.
    memory: Bytes that each needs.
    parts: What the memory is for: arguments, results beside those that take the place of
      arguments, temporaries and code. Empty if the compiler refused, which tells the sum only.
    flops: Operations of all matrix products on all devices, those that are done twice included.
    work: What one device does; None if the compiler refused.
    largest: The largest arrays.
    seconds: What it took to trace, lower and compile.
  """

  chip: Chip
  num_devices: int
  memory: float
  parts: dict[str, float]
  flops: int
  work: Work | None
  largest: list[Buffer]
  seconds: dict[str, float]

  @property
  def margin(self) -> float | None:
    """Bytes that are left on each device, negative if it does not fit; None if unknown."""
    return None if self.chip.memory is None else self.chip.memory - self.memory

  @property
  def fits(self) -> bool:
    """Whether the compiler takes it, and the device has the memory as far as it is known."""
    return self.work is not None and (self.margin is None or self.margin >= 0)

  @property
  def least_seconds(self) -> dict[str, float]:
    """What a step takes at least: to compute, to move data in a device, and between devices.

    As if products were divided evenly over the devices, and every link could be used at its peak.
    Only what the chip lets us know; nothing if the compiler refused.
    """
    if self.work is None:
      return {}
    sent = sum(collective.bytes for collective in self.work.collectives.values())
    amounts = {
      'compute': (self.flops / self.num_devices, self.chip.flops),
      'memory': (self.work.traffic, self.chip.bandwidth),
      'interconnect': (sent, self.chip.interconnect),
    }
    return {name: amount / peak for name, (amount, peak) in amounts.items() if peak is not None}

  @property
  def bound(self) -> str | None:
    """What takes longest; None if no time is known."""
    return max(self.least_seconds, key=self.least_seconds.__getitem__, default=None)

  def __str__(self) -> str:
    return '\n'.join([*_memory(self), *_work(self), *_time(self)])


def plan(step: Any, *args: Any, chip: Chip) -> Plan:
  """Compiles a step, runs nothing, and tells what it needs.

  Args:
    step: A function of `jax.jit`, such as `nlx.training.make_step` returns.
    *args: Its arguments, or `jax.ShapeDtypeStruct`s with their shardings, over devices that need
      not be there; what has no sharding lies where the others do.
    chip: What these devices are.

  Returns:
    The plan, also where the compiler refuses the step because it needs too much memory.
  """
  start = time.perf_counter()
  traced = step.trace(*args)
  flops = count_flops(traced.jaxpr)
  after_trace = time.perf_counter()
  lowered = traced.lower()
  after_lower = time.perf_counter()
  shardings = [getattr(leaf, 'sharding', None) for leaf in jax.tree.leaves(args)]
  placed = [sharding.device_set for sharding in shardings if sharding is not None]
  devices = max(placed, key=len, default={jax.devices()[0]})
  text, memory, parts = _compile(lowered, is_tpu=next(iter(devices)).platform == 'tpu')
  seconds = {
    'trace': after_trace - start,
    'lower': after_lower - after_trace,
    'compile': time.perf_counter() - after_lower,
  }
  program = parse(text)
  return Plan(
    chip=chip,
    num_devices=len(devices),
    memory=memory,
    parts=parts,
    flops=flops,
    work=work(program) if parts else None,
    largest=largest(program, LARGEST),
    seconds=seconds,
  )


def _compile(lowered: Any, *, is_tpu: bool) -> tuple[str, float, dict[str, float]]:
  """The compiled text, the bytes that each device needs, and what for."""
  with tempfile.TemporaryDirectory() as name:
    # The compiler for TPUs tells in files what it assigns to which memory, and what it refuses.
    options = {'xla_dump_to': name, 'xla_dump_hlo_as_text': True} if is_tpu else None
    folder = pathlib.Path(name)
    try:
      with _uncached():
        compiled = lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
      texts = sorted(folder.glob('*oom_intermediate_module.txt'))
      if not texts:
        raise
      return texts[-1].read_text(encoding='utf-8'), refused_bytes(str(error)), {}
    found = compiled.memory_analysis()
    parts = {
      'arguments': found.argument_size_in_bytes,
      'results': found.output_size_in_bytes - found.alias_size_in_bytes,
      'temporaries': found.temp_size_in_bytes,
      'code': found.generated_code_size_in_bytes,
    }
    if is_tpu:  # Temporaries of `memory_analysis` are those of all memories together.
      (report,) = folder.glob('*after_optimizations-memory-usage-report.txt')
      main = assigned_bytes(report.read_text(encoding='utf-8'))
      parts['temporaries'] = main - parts['arguments'] - parts['results']
  return compiled.as_text(), sum(parts.values()), parts


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
  """Writes no program into JAX's cache: those for devices that are not there cannot be read."""
  name = 'jax_persistent_cache_min_compile_time_secs'
  before = getattr(jax.config, name)
  jax.config.update(name, math.inf)
  try:
    yield
  finally:
    jax.config.update(name, before)


def refused_bytes(message: str) -> float:
  """The memory that a program needs, from the message with which the compiler refuses it.

  Args:
    message: As in 'Ran out of memory on HBM, the total memory required for HLO temporaries (26.39G)
      exceeds available HBM (15.75G).'

  Returns:
    Bytes.

  Raises:
    ValueError: If it tells no number.
  """
  found = re.search(r'([\d.]+)([KMGT]) ?(?:\)|of)', message)
  if found is None:
    raise ValueError(f'`message` must tell how much memory is needed, got {message!r}.')
  return float(found[1]) * 2 ** {'K': 10, 'M': 20, 'G': 30, 'T': 40}[found[2]]


def assigned_bytes(report: str) -> int:
  """What a program takes of the main memory, code apart, as XLA's report of its memories says."""
  found = re.search(r'^Memory Space: default.*\nTotal bytes: (\d+)', report, re.MULTILINE)
  if found is None:
    raise ValueError('`report` must tell of the default memory space.')
  return int(found[1])


def _memory(plan: Plan) -> list[str]:
  """What it needs against what there is, and the largest arrays if it does not fit."""
  available, margin = plan.chip.memory, plan.margin
  needs = f'{_in_units(plan.memory, _BINARY)} per device'
  if available is None or margin is None:
    verdict = f'needs {needs}, and how much there is is unknown'
  else:
    rest = f'{_in_units(abs(margin), _BINARY)} ({abs(margin) / available:.0%})'
    verdict = f'{needs} of {_in_units(available, _BINARY)}, {rest} '
    verdict = f'fits: {verdict}to spare' if plan.fits else f'does not fit: {verdict}too much'
  parts = [f'  {_in_units(size, _BINARY):>12}  {name}' for name, size in plan.parts.items()]
  if plan.fits:
    return [f'Memory {verdict}', *parts]
  arrays = [
    f'  {_in_units(array.bytes, _BINARY):>12}  {array.type}, made by {array.makers}: {array.source}'
    for array in plan.largest
  ]
  return [f'Memory {verdict}', *parts, 'The largest arrays', *arrays]


def _work(plan: Plan) -> list[str]:
  """Products, and what devices say to each other."""
  lines = [f'Products take {plan.flops:.3g} operations per step, over {plan.num_devices} devices']
  if plan.work is None:
    return lines
  lines.append('Each device sends' if plan.work.collectives else 'No device sends anything')
  lines += [
    f'  {_in_units(found.bytes, _DECIMAL):>12}  in {found.times:,} x {kind}'
    for kind, found in plan.work.collectives.items()
  ]
  if plan.work.unknown_loops:
    lines.append(f'{plan.work.unknown_loops} loops of unknown length count as one turn')
  return lines


def _time(plan: Plan) -> list[str]:
  """The roofline."""
  if plan.bound is None:
    return []
  times = [f'  {_in_units(time, _TIME):>12}  {name}' for name, time in plan.least_seconds.items()]
  return [f'A step takes at least, and {plan.bound} sets the bound', *times]


def _in_units(number: float, units: Mapping[str, float]) -> str:
  """A size or a time with two decimals, such as '15.75 GiB'."""
  *larger, smallest = units
  unit = next((unit for unit in larger if number >= units[unit] / 100), smallest)
  return f'{number / units[unit]:.2f} {unit}'
