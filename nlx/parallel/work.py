"""What one device does in a compiled program, however often its loops run.

XLA's own `cost_analysis` counts the body of a loop once, and says nothing of what devices tell each
other.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from nlx.parallel.program import Computation, Instruction, Program, arrays, loop_length

COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
  'collective-broadcast',
)
# Nothing moves for them; what they call is counted by itself.
_STILL = (
  'after-all',
  'bitcast',
  'call',
  'conditional',
  'constant',
  'get-tuple-element',
  'opt-barrier',
  'parameter',
  'partition-id',
  'replica-id',
  'tuple',
  'while',
)
_STILL_CALLS = re.compile(r'custom_call_target="(AllocateBuffer|ConcatBitcast)"')
_SLICES = ('dynamic-slice', 'gather', 'slice')
_UPDATES = {'dynamic-update-slice': 1, 'scatter': 2}  # In place: the operand that is written.


class Collective(NamedTuple):
  """All collectives of one kind."""

  times: int
  bytes: float  # That one device sends.


class Work(NamedTuple):
  """What one device does in one run of a program."""

  traffic: float  # Bytes that it reads from and writes to its main memory.
  collectives: dict[str, Collective]  # By kind.
  unknown_loops: int  # Loops whose length the text does not tell: they count as one turn.


class Buffer(NamedTuple):
  """Arrays of one type that a program makes."""

  type: str  # As in f32[16,4].
  bytes: float  # Of one.
  makers: int  # Instructions that make one.
  source: str  # The function that the first of them comes from; '' if unknown.


def work(program: Program) -> Work:
  """Adds up what a device does.

  Traffic is that of the instructions as they are fused: what enters a fusion is read once, of an
  array of which it takes a slice only that slice, and what is updated in place is written only
  where it changes. What a chip keeps in its smaller memories is not counted. A device sends in a
  collective what it does on a ring. Of a condition all branches count.

  Args:
    program: What `parse` returns.

  Returns:
    The sums.
  """
  traffic, unknown = 0.0, set()
  counts: dict[str, int] = collections.defaultdict(int)
  sent: dict[str, float] = collections.defaultdict(float)
  channels: set[str] = set()
  for name, instruction, times, fused in _executed(program, program.entry, 1, False):
    if not fused:
      traffic += times * _traffic(program, program.computations[name], instruction)
    if instruction.opcode == 'while' and loop_length(program, instruction) is None:
      unknown.add(instruction.name)
    kind = instruction.opcode.removesuffix('-start')
    # An asynchronous one is written in its beginning, in its end and in what runs meanwhile.
    channel = instruction.attribute(r'channel_id=(\d+)')
    if kind not in COLLECTIVES or channel in channels:
      continue
    channels |= {channel} if channel else set()
    kind = 'reduce-scatter' if name.startswith('all-reduce-scatter') else kind
    counts[kind] += times
    sent[kind] += times * _sent(kind, program.computations[name], instruction)
  collectives = {kind: Collective(counts[kind], sent[kind]) for kind in sorted(counts)}
  return Work(traffic, collectives, len(unknown))


def largest(program: Program, count: int) -> list[Buffer]:
  """The largest arrays that a program makes in main memory, arguments included.

  Args:
    program: What `parse` returns.
    count: How many.

  Returns:
    One for each type, the largest first.
  """
  makers: dict[str, list[Instruction]] = collections.defaultdict(list)
  sizes: dict[str, float] = {}
  for name, instruction, _, fused in _executed(program, program.entry, 1, False):
    still = instruction.opcode in _STILL
    if fused or (still and (name, instruction.opcode) != (program.entry, 'parameter')):
      continue
    for array in arrays(instruction.type):
      if array.in_main_memory:
        makers[array.type].append(instruction)
        sizes[array.type] = array.bytes
  kinds = sorted(makers, key=lambda kind: sizes[kind], reverse=True)[:count]

  def source(kind):
    frames = (maker.attribute(r'stack_frame_id=(\d+)') for maker in makers[kind])
    return next((program.sources[frame] for frame in frames if frame in program.sources), '')

  return [Buffer(kind, sizes[kind], len(makers[kind]), source(kind)) for kind in kinds]


def _executed(
  program: Program, name: str, times: int, fused: bool
) -> Iterator[tuple[str, Instruction, int, bool]]:
  """All that runs: the computation, the instruction, how often, and whether in a fusion."""
  for instruction in program.computations[name].values():
    yield name, instruction, times, fused
    if instruction.opcode == 'while':
      often = times * (loop_length(program, instruction) or 1)
      yield from _executed(program, instruction.calls('body'), often, fused)
    elif instruction.opcode in ('fusion', 'async-start', 'call'):
      inside = fused or instruction.opcode != 'call'
      yield from _executed(program, instruction.calls(), times, inside)
    elif instruction.opcode == 'conditional':
      for branch in instruction.branches():
        yield from _executed(program, branch, times, fused)


def _traffic(program: Program, computation: Computation, instruction: Instruction) -> float:
  """The bytes of main memory that one instruction reads and writes."""
  opcode = instruction.opcode
  if opcode in _STILL or opcode.endswith('-done') or _STILL_CALLS.search(instruction.attributes):
    return 0
  moved = 0.0
  for position, name in enumerate(instruction.operands):
    if _in_main_memory(computation[name].type):
      moved += _read(program, computation, instruction, position)
  results = arrays(instruction.type)
  if opcode.endswith('-start'):  # The type has the operands, too.
    operands = sum(_in_main_memory(computation[name].type) for name in instruction.operands)
    return moved + max(_in_main_memory(instruction.type) - operands, 0)
  written = _written(program, computation, instruction)
  return moved + sum(
    size for size, result in zip(written, results, strict=True) if result.in_main_memory
  )


def _read(program: Program, computation: Computation, user: Instruction, position: int) -> float:
  """The bytes that an instruction reads of one of its operands."""
  whole = _bytes(computation[user.operands[position]].type)
  if user.opcode in ('fusion', 'async-start'):
    inner = program.computations[user.calls()]
    is_it = lambda x: x.opcode == 'parameter' and x.arguments == str(position)  # noqa: E731
    return _used(program, inner, next(filter(is_it, inner.values())))
  if user.opcode == 'bitcast':
    return _used(program, computation, user)
  if user.opcode in _UPDATES and position == 0:
    return 0
  return _bytes(user.type) if user.opcode in _SLICES and position == 0 else whole


def _used(program: Program, computation: Computation, value: Instruction) -> float:
  """The bytes of a value that the other instructions of a fusion read."""
  reads = (
    _read(program, computation, user, position)
    for user in computation.values()
    for position, name in enumerate(user.operands)
    if name == value.name and user.opcode != 'tuple'
  )
  return min(sum(reads), _bytes(value.type))


def _written(program: Program, computation: Computation, root: Instruction) -> list[float]:
  """The bytes that an instruction writes of each array of its result."""
  if root.opcode == 'fusion':
    inner = program.computations[root.calls()]
    return _written(program, inner, next(x for x in inner.values() if x.is_root))
  operands = [computation[name] for name in root.operands]
  if root.opcode == 'tuple':
    return [size for operand in operands for size in _written(program, computation, operand)]
  if root.opcode == 'bitcast':
    return _written(program, computation, operands[0])
  if root.opcode in _UPDATES:
    return [_bytes(operands[_UPDATES[root.opcode]].type)]
  return [0 if root.opcode == 'parameter' else array.bytes for array in arrays(root.type)]


def _sent(kind: str, computation: Computation, collective: Instruction) -> float:
  """The bytes that one device sends in a collective."""
  number = sum(_bytes(computation[name].type) for name in collective.operands)
  if kind.startswith('collective'):  # From each device to one other: there are no groups.
    return number
  size = _group_size(collective)
  if kind == 'all-gather':
    return (size - 1) * number
  return (2 if kind == 'all-reduce' else 1) * (size - 1) / size * number


def _group_size(collective: Instruction) -> int:
  """How many devices a collective joins.

  Groups are written out, as in {{0,1},{2,3}}, counted, as in [2,2]<=[4], or along axes, as in
  mesh['x'=2,'y'=2] {'x'}, with the order of the devices between if it is not that of their numbers.

  Raises:
    ValueError: If they are written in another way.
  """
  written = collective.attribute(r'replica_groups=\{\{([\d,]+)')
  counted = collective.attribute(r'replica_groups=\[\d+,(\d+)\]')
  axes = re.search(
    r'replica_groups=mesh\[(.*?)\](?:, device_ids=[^{]*)? ?\{(.*?)\}', collective.attributes
  )
  if written:
    return written.count(',') + 1
  if axes:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
    return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", axes[2]))
  if counted is None:
    raise ValueError(f'the groups of a collective cannot be read: {collective.attributes}')
  return int(counted)


def _bytes(kind: str) -> float:
  return sum(array.bytes for array in arrays(kind))


def _in_main_memory(kind: str) -> float:
  return sum(array.bytes for array in arrays(kind) if array.in_main_memory)
