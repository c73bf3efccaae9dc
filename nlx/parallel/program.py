"""The text of a compiled program: its computations, its arrays, and how long its loops are."""

import math
import re
from typing import NamedTuple

_HEADER = re.compile(r'(ENTRY )?%([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'  (ROOT )?%([\w.\-]+) = (.*?[\])}]) ([a-z][\w\-]*)\((.*)$')
_ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?')
_NAME = re.compile(r'%([\w.\-]+)')


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  type: str
  opcode: str
  arguments: str
  attributes: str
  is_root: bool

  @property
  def operands(self) -> list[str]:
    """The names of the instructions whose results it takes."""
    return _NAME.findall(self.arguments)

  def attribute(self, pattern: str) -> str | None:
    """What the group of a pattern finds among the attributes."""
    found = re.search(pattern, self.attributes)
    return found and found[1]

  def calls(self, attribute: str = 'calls|to_apply') -> str:
    """The name of the computation in an attribute."""
    name = self.attribute(rf'(?:{attribute})=%([\w.\-]+)')
    assert name is not None, self
    return name

  def branches(self) -> list[str]:
    """The names of the computations that a condition chooses from."""
    either = re.findall(r'(?:true|false)_computation=%([\w.\-]+)', self.attributes)
    return either or _NAME.findall(self.attribute(r'branch_computations=\{(.*?)\}') or '')


Computation = dict[str, Instruction]


class Program(NamedTuple):
  """A compiled program."""

  computations: dict[str, Computation]
  entry: str
  sources: dict[str, str]  # By `stack_frame_id`: the function that a line comes from.


class Array(NamedTuple):
  """An array in the type of an instruction."""

  type: str  # As in f32[16,4].
  bytes: float
  in_main_memory: bool  # Rather than in a smaller memory of the chip.


def parse(text: str) -> Program:
  """Reads `compiled.as_text()`.

  Args:
    text: A module after optimisation, as XLA prints it.

  Returns:
    Its computations.

  Raises:
    ValueError: If there is no entry.
  """
  computations: dict[str, Computation] = {}
  entry, current = None, None
  for line in text.splitlines():
    if current is not None and (found := _INSTRUCTION.match(line)):
      root, name, kind, opcode, rest = found.groups()
      arguments, _, attributes = rest.partition(')')
      current[name] = Instruction(name, kind, opcode, arguments, attributes, bool(root))
    elif header := _HEADER.match(line):
      current = computations.setdefault(header[2], {})
      entry = header[2] if header[1] else entry
  if entry is None:
    raise ValueError('`text` must be a compiled program, but has no ENTRY.')
  return Program(computations, entry, _sources(text))


def arrays(kind: str) -> list[Array]:
  """The arrays of a type, which may be a tuple.

  Args:
    kind: As in `(f32[16,4]{1,0:T(8,128)S(1)}, s32[])`.

  Returns:
    One after another. Types that hold no numbers have 0 bytes.
  """
  found = []
  for dtype, shape, layout in _ARRAY.findall(kind):
    size = math.prod(int(length) for length in shape.split(',') if length)
    bits = re.search(r'\d+', dtype)
    width = int(bits[0]) / 8 if bits else float(dtype == 'pred')
    found.append(Array(f'{dtype}[{shape}]', size * width, not re.search(r'S\([1-9]', layout)))
  return found


def loop_length(program: Program, loop: Instruction) -> int | None:
  """How often the body of a `while` runs; None if the text does not tell.

  Either XLA says so, or the condition compares a counter, which begins at 0 as that of
  `jax.lax.scan` does, with a constant.
  """
  known = loop.attribute(r'known_trip_count\D*(\d+)')
  if known:
    return int(known)
  condition = program.computations[loop.calls('condition')]
  root = next(instruction for instruction in condition.values() if instruction.is_root)
  limit = condition[root.operands[-1]]
  if root.attribute(r'direction=(LT)') is None or limit.opcode != 'constant':
    return None
  return int(limit.arguments)


def _sources(text: str) -> dict[str, str]:
  """The tables before the computations, joined."""

  def table(title: str) -> dict[str, str]:
    found = re.search(rf'^{title}\n((?:\d+ .*\n)*)', text, re.MULTILINE)
    lines = found[1].splitlines() if found else []
    return dict(line.split(' ', 1) for line in lines)

  files, functions = table('FileNames'), table('FunctionNames')
  places, sources = {}, {}
  for place, line in table('FileLocations').items():
    file, function, number = re.findall(
      r'file_name_id=(\d+) function_name_id=(\d+) line=(\d+)', line
    )[0]
    name = files[file].strip('"').rpartition('/')[2]
    places[place] = f'{functions[function].strip(chr(34))} ({name}:{number})'
  for frame, line in table('StackFrames').items():
    sources[frame] = places[re.findall(r'file_location_id=(\d+)', line)[0]]
  return sources
