"""From a configuration to the plan of its training step: shapes only, nothing is allocated."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from experiments import common, language_model
from nlx import core, data, models, parallel, training

LOCAL = 'local'
VOCAB_SIZE = 32_000  # Of the tokenizer that a large model needs.


class Planned(NamedTuple):
  """A step, where it was compiled for, and what came of it."""

  topology: str
  config: ml_collections.ConfigDict
  mesh: dict[str, int]
  parameters: int
  plan: parallel.Plan

  @property
  def tokens(self) -> int:
    """Per step."""
    return self.config.data.batch_size * self.config.data.seq_len

  @property
  def over_six_n(self) -> float:
    """Operations per token over 6 N, those of a Transformer's weights forward and backward."""
    return self.plan.flops / self.tokens / (6 * self.parameters)


def run(
  config: ml_collections.ConfigDict,
  topology: str,
  vocab_size: int | None = None,
  *,
  say: Callable[[str], Any] = print,
) -> Planned:
  """Compiles the training step of a configuration.

  Args:
    config: As `experiments.train` takes it. Where `mesh` is as it comes, the batch decides it.
    topology: A TPU slice, as in v5e:16x16, or local: the devices here.
    vocab_size: Of the tokenizer, which is not read then.
    say: Takes what happens meanwhile, a line at a time.

  Returns:
    What came of it.
  """
  chip, devices = _devices(topology, config)
  vocab_size = vocab_size or find_vocab_size(config)
  model = nnx.eval_shape(lambda: common.make_model(config, vocab_size))
  parameters = core.tree_size(nnx.state(model, nnx.Param))
  config = with_mesh(config, len(devices))
  mesh = language_model.make_mesh(config, devices)
  sizes = ', '.join(f'{axis} {size}' for axis, size in mesh.shape.items())
  say(
    f'{config.name}: {parameters:,} parameters, {vocab_size:,} ids, {config.data.batch_size} '
    f'sequences of {config.data.seq_len} tokens, {config.training.accumulation} microbatches'
  )
  say(f'{topology}: {len(devices)} x {chip.name}, mesh {sizes}')
  step, state, batch = abstract_step(config, model, mesh)
  with jax.set_mesh(mesh):
    plan = parallel.plan(step, state, batch, chip=chip)
  planned = Planned(topology, config, dict(mesh.shape), parameters, plan)
  say(str(plan))
  say(
    f'Compiled in {sum(plan.seconds.values()):.0f} s. A token takes '
    f'{plan.flops / planned.tokens:.3g} operations, {planned.over_six_n:.1f} times 6 N'
  )
  if not plan.fits:
    say(advice(planned))
  return planned


def advice(planned: Planned) -> str:
  """Returns what may fit where a step does not: fewer sequences at a time, on more devices each."""
  mesh, accumulation = planned.mesh, planned.config.training.accumulation
  available = planned.plan.chip.memory
  assert available is not None
  factor = 2 ** max(math.ceil(math.log2(planned.plan.memory / available)), 1)
  shares = mesh['data'] * mesh['fsdp'] * accumulation
  more = factor // math.gcd(factor, planned.config.data.batch_size // shares)
  if mesh['fsdp'] % more:
    return 'These devices cannot divide it further: take more of them, or a smaller model'
  return (
    f'May fit: --config.mesh.data={mesh["data"]} --config.mesh.fsdp={mesh["fsdp"] // more} '
    f'--config.mesh.model={mesh["model"] * more} '
    f'--config.training.accumulation={accumulation * factor}'
  )


def find_vocab_size(config: ml_collections.ConfigDict) -> int:
  """Returns the ids of the tokenizer, or of one such as a large model needs if none is given."""
  named = config.data.tokenizer
  return data.tokenizer(named).vocab_size if named else VOCAB_SIZE


def with_mesh(config: ml_collections.ConfigDict, num_devices: int) -> ml_collections.ConfigDict:
  """Returns the configuration with a mesh for so many devices, unless it has one of its own.

  As many sequences are read at a time as there are devices, or all of a microbatch where there are
  more devices, of which several then share a sequence along `model`.
  """
  if any(config.mesh[axis] != size for axis, size in (('data', -1), ('fsdp', 1), ('model', 1))):
    return config
  config = config.copy_and_resolve_references()
  microbatch, model = config.data.batch_size // config.training.accumulation, 1
  while microbatch % (num_devices // model) and num_devices % (2 * model) == 0:
    model *= 2
  fsdp = num_devices // model
  config.mesh.update(data=1, fsdp=fsdp, model=model)
  config.training.accumulation *= max(microbatch // fsdp, 1)
  return config


def abstract_step(
  config: ml_collections.ConfigDict, model: models.LanguageModel, mesh: jax.sharding.Mesh
) -> tuple[Any, Any, Any]:
  """Returns the step of `nlx.training.train`, and the shapes and places of its arguments."""
  graph, params = nnx.split(model, nnx.Param)
  tx, schedule = language_model.make_optimizer(config)
  init = functools.partial(training.init_state, tx=tx)
  key = jax.eval_shape(lambda: jax.random.key(config.seed))
  state = jax.eval_shape(lambda params, key: init(params, key=key), nnx.as_pure(params), key)
  layout = parallel.shardings(state, mesh)
  step = training.make_step(
    common.loss_fn(graph), tx, config.training.accumulation, schedule=schedule, shardings=layout
  )

  def shape(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  rows = (config.data.batch_size, config.data.seq_len)
  dtypes = {'tokens': jnp.int32, 'targets': jnp.int32, 'mask': jnp.float32}
  place = parallel.batch_sharding(mesh)
  batch = {name: shape(jax.ShapeDtypeStruct(rows, x), place) for name, x in dtypes.items()}
  return step, jax.tree.map(shape, state, layout), batch


def record(planned: Planned) -> dict[str, Any]:
  """Returns what came of it as a flat record of numbers and texts."""
  plan, config = planned.plan, planned.config
  least = plan.least_seconds
  collectives = plan.work.collectives.values() if plan.work else ()
  return {
    'config': config.name,
    'topology': planned.topology,
    'mesh': 'x'.join(map(str, planned.mesh.values())),
    'accumulation': config.training.accumulation,
    'fits': plan.fits,
    'gib': plan.memory / 2**30,
    'gib_to_spare': plan.margin and plan.margin / 2**30,
    'flops_per_token': plan.flops / planned.tokens,
    'over_6_n': planned.over_six_n,
    **{f'{name}_seconds': least.get(name) for name in ('compute', 'memory', 'interconnect')},
    'bound': plan.bound,
    'collectives': sum(found.times for found in collectives),
    'gb_sent': sum(found.bytes for found in collectives) / 1e9,
    'compile_seconds': sum(plan.seconds.values()),
  }


def _devices(
  topology: str, config: ml_collections.ConfigDict
) -> tuple[parallel.Chip, Sequence[Any]]:
  """Returns the kind of chip, and the devices."""
  if topology != LOCAL:
    jax.config.update('jax_platforms', 'cpu')  # An accelerator here has no part in it.
    return parallel.tpu_slice(topology)
  if config.mesh.cpu_devices:
    jax.config.update('jax_num_cpu_devices', config.mesh.cpu_devices)
  return parallel.local_chip(), jax.devices()
