"""Every model on meshes of eight devices, against one device."""

import json
import os
import re
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import common
from experiments.configs import lm
from experiments.reporting import provenance
from experiments.studies import Found
from nlx import models, parallel

TITLE = 'Every model on eight devices'
CAPTION = (
  'Loss and gradient of `lm.py:MODEL-smoke`, but of three layers, on 8 sequences of 128 tokens, in '
  'float64 on eight devices that one CPU pretends to be, against one device; a mesh is data x fsdp '
  'x model. `loss` and `gradient` are the largest absolute differences. `share` is the part of all '
  'parameters that one device holds. `within loops` counts the communications that the compiled '
  'program has inside of its loops, over layers as well as over time.'
)
LAYERS = 3  # Two of which are the steps of a loop.
DOUBLE = {'dtype': 'float64', 'param_dtype': 'float64'}  # A difference is more than rounding.
KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')


class Sizes(NamedTuple):
  """What is compared."""

  models: tuple[str, ...] = lm.MODELS
  meshes: tuple[tuple[int, int, int], ...] = ((8, 1, 1), (2, 4, 1), (2, 2, 2))


FULL = Sizes()
SMOKE = Sizes(('linear_attention',), ((2, 4, 1),))


def run(sizes: Sizes) -> Found:
  """Returns a row for each model and mesh; compares in a process that has eight devices."""
  command = [sys.executable, '-m', 'experiments.studies.meshes', json.dumps(sizes)]
  devices = {'JAX_NUM_CPU_DEVICES': '8', 'JAX_PLATFORMS': 'cpu', 'JAX_ENABLE_X64': '1'}
  result = subprocess.run(
    command,
    cwd=provenance.ROOT,
    env={**os.environ, **devices},
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  )
  return Found([json.loads(line) for line in result.stdout.splitlines()], None)


def compare(family: str, meshes: list[list[int]]) -> list[dict[str, Any]]:
  """A row for each mesh."""
  fields = lm.get_config(f'{family}-smoke').model
  fields.update(num_layers=LAYERS, parameters=LAYERS * fields.parameters, **DOUBLE)
  config = common.make_model_config(fields, 256)
  graph, params = nnx.split(models.create(config, rngs=nnx.Rngs(0)), nnx.Param)
  params, loss_fn = nnx.as_pure(params), common.loss_fn(graph)
  tokens = jax.random.randint(jax.random.key(1), (8, 129), 0, 256)
  batch = {'tokens': tokens[:, :-1], 'targets': tokens[:, 1:], 'mask': jnp.ones((8, 128))}

  def mean(params, batch):
    total, count = loss_fn(params, batch)
    return total / count

  expected = jax.jit(jax.value_and_grad(mean))(params, batch)
  rows = []
  for sizes in meshes:
    mesh = parallel.make_mesh(*sizes)
    layout = parallel.shardings(params, mesh)
    placed = parallel.place(params, layout)
    arguments = placed, parallel.place(batch, parallel.batch_sharding(mesh))
    with jax.set_mesh(mesh):
      step = jax.jit(jax.value_and_grad(mean), out_shardings=(None, layout))
      program = step.lower(*arguments).compile()
    found = program(*arguments)
    here = sum(x.addressable_shards[0].data.size for x in jax.tree.leaves(placed))
    row = {
      'model': family,
      'mesh': 'x'.join(map(str, sizes)),
      'loss': difference(found[0], expected[0]),
      'gradient': difference(found[1], expected[1]),
      'share': here / sum(x.size for x in jax.tree.leaves(params)),
      'within_loops': within_loops(program.as_text() or '') or 'none',
    }
    rows.append(row)
  return rows


def difference(found: Any, expected: Any) -> float:
  """The largest absolute difference of two trees."""
  distance = lambda x, y: float(np.abs(np.asarray(x) - np.asarray(y)).max())  # noqa: E731
  return max(jax.tree.leaves(jax.tree.map(distance, found, expected)))


def within_loops(program: str) -> str:
  """How many communications of each kind are outside of the entry of a compiled program."""
  entry = program.index('\nENTRY ')
  inside = program[:entry] + program[program.index('\n}', entry) :]
  counts = {kind: len(re.findall(rf' {kind}(?:-start)?\(', inside)) for kind in KINDS}
  return ', '.join(f'{count} {kind}' for kind, count in counts.items() if count)


def main(argument: str) -> None:
  """Prints the rows, one line of JSON each."""
  families, meshes = json.loads(argument)
  for family in families:
    for row in compare(family, meshes):
      print(json.dumps(row), flush=True)
    jax.clear_caches()


if __name__ == '__main__':
  main(sys.argv[1])
