"""One run of a language model, from its configuration to its summary."""

import functools
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import optax

from experiments import common, pretrained, report
from experiments.configs import lm
from nlx import data, levels, models, parallel, training

STACKED = ('blocks',)  # Parts of a model whose parameters have a leading axis of layers.


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains, or resumes, in a folder and leaves the results there.

  Args:
    config: As made by experiments/configs/lm.py or llama.py.
    workdir: Folder of the run; made if missing.

  Returns:
    The summary, as written to summary.json.
  """
  common.check_config(config, workdir)
  mesh = make_mesh(config)
  language = common.create(config)
  corpus = data.load(config.data.corpus, language.tokenizer, max_bytes=config.data.max_bytes)
  config = with_digests(config, corpus.digest, language.tokenizer.digest)
  common.check_config(config, workdir)
  task = make_task(config, language, corpus, parallel.batch_part(mesh))
  params = pretrained.first_params(config, language, workdir)
  key = jax.random.key(config.seed)
  hooks = make_hooks(config, language, key)
  if jax.process_index() == 0:
    print(levels.describe(language.model), flush=True)
  with jax.set_mesh(mesh):
    result = training.train(
      task,
      training.Settings(**config.training),
      init_state(params, task, key, mesh),
      workdir,
      sharding=parallel.batch_sharding(mesh),
      hooks=hooks._replace(begin=functools.partial(common.write_config, config, workdir)),
      meta={'config': common.as_dict(config)},
    )
  summary = report.summarise(result, config, language, corpus.digest)
  if jax.process_index() == 0:
    report.write(summary, language, workdir)
  return summary


def with_digests(
  config: ml_collections.ConfigDict, text: str, tokenizer: str
) -> ml_collections.ConfigDict:
  """Returns the configuration with the digests of its text and of its tokenizer.

  Raises:
    ValueError: If it has that of another text or tokenizer.
  """
  config = config.copy_and_resolve_references()
  for name, digest in zip(lm.NOTED, (text, tokenizer), strict=True):
    common.check_noted(config, name, digest)
    with config.unlocked():
      config.data[name] = digest
  return config


def make_mesh(
  config: ml_collections.ConfigDict, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
  """Returns the mesh; every microbatch must divide evenly over its `data` and `fsdp` axes."""
  sizes = {axis: config.mesh[axis] for axis in parallel.AXES}
  mesh = parallel.make_mesh(**sizes, slices=config.mesh.slices or None, devices=devices)
  shares = math.prod(mesh.shape[axis] for axis in parallel.BATCH)
  if config.data.batch_size % (shares * config.training.accumulation):
    raise ValueError(
      f'`data.batch_size` must be a multiple of the {shares} devices of the `data` and `fsdp` '
      f'axes times `training.accumulation` {config.training.accumulation}, '
      f'got {config.data.batch_size}.'
    )
  return mesh


def init_state(
  params: Any, task: training.Task, key: jax.Array, mesh: jax.sharding.Mesh
) -> training.TrainState:
  """Returns the state before the first step, laid out over the mesh as soon as it exists."""
  init = lambda params, key: training.init_state(params, task.tx, key=key)  # noqa: E731
  placed = parallel.place(params, parallel.shardings(params, mesh))
  layout = parallel.shardings(jax.eval_shape(init, placed, key), mesh)
  return jax.jit(init, out_shardings=layout)(placed, key)


def make_task(
  config: ml_collections.ConfigDict,
  language: common.Language,
  corpus: data.Corpus,
  part: tuple[int, int] = (0, 1),
) -> training.Task:
  """Returns what is learned, and from what; `part` of each batch, see `parallel.batch_part`."""
  batches = {
    'seq_len': config.data.seq_len,
    'batch_size': config.data.batch_size,
    'process_index': part[0],
    'process_count': part[1],
  }
  tx, schedule = make_optimizer(config)
  return training.Task(
    loss_fn=common.loss_fn(language.graph),
    tx=tx,
    schedule=schedule,
    batches=data.train_batches(
      corpus.train.tokens, seed=config.seed, sampling=config.data.sampling, **batches
    ),
    validation=data.validation_batches(corpus.validation, context=corpus.train.tokens, **batches),
    train_bytes_per_token=corpus.train.bytes_per_token,
    validation_bytes_per_token=corpus.validation.bytes_per_token,
  )


def make_optimizer(
  config: ml_collections.ConfigDict,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Returns the optimizer, and its learning rate by step."""
  options = config.optimizer
  schedule = functools.partial(
    training.warmup_cosine,
    warmup_steps=options.warmup_steps,
    total_steps=config.training.steps,
    floor=options.floor,
  )
  named = {**options.get(options.name, {})}
  if 'learning_rate' in named.get('adamw', {}):  # A peak as well.
    named['adamw'] = {**named['adamw'], 'learning_rate': schedule(named['adamw'].learning_rate)}
  tx = training.optimizer(
    options.name,
    schedule(options.learning_rate),
    weight_decay=options.weight_decay,
    decay_mask=functools.partial(training.matrices, stacked=STACKED),
    clip_norm=options.clip_norm,
    **named,
  )
  return tx, schedule(options.learning_rate)


def make_hooks(
  config: ml_collections.ConfigDict, language: common.Language, key: jax.Array
) -> training.Hooks:
  """Returns the samples and the diagnosis that the loop asks for.

  Raises:
    ValueError: If the prompt of the samples is empty.
  """
  options = config.sample
  common.encode(language, options.prompt)  # Now, and not after the steps of the first sample.

  def sample(params: Any, step: int) -> str:
    return options.prompt + common.continuation(
      language,
      params,
      options.prompt,
      max_tokens=options.max_tokens,
      key=jax.random.fold_in(key, step),
      sampling=models.Sampling(options.temperature, options.top_k),
    )

  return training.Hooks(sample=sample, diagnose=common.diagnosis(language.graph))
