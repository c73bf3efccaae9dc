"""What training and generation share: from a configuration to a model, and back from a folder."""

import functools
import hashlib
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import absl.logging
import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from experiments.configs import lm
from nlx import cms, core, data, memories, models, parallel, training

CHECKPOINTS = 'checkpoints'
# Another value of one of these makes another run, but for `lm.MEANS`; the rest may change when a
# run resumes.
FIXED = ('seed', 'model', 'stack', 'pretrained', 'data')


class Language(NamedTuple):
  """A model with its tokenizer, as pure functions of its parameters."""

  model: models.LanguageModel
  graph: nnx.GraphDef
  params: Any
  tokenizer: data.Tokenizer


def start(config: ml_collections.ConfigDict) -> None:
  """Sets up logging, JAX and its cache; before anything asks for the devices."""
  absl.logging.set_verbosity(absl.logging.WARNING)
  logging.getLogger('absl').setLevel(logging.ERROR)  # Orbax tells of every step that it takes.
  if config.mesh.cpu_devices:
    jax.config.update('jax_num_cpu_devices', config.mesh.cpu_devices)
  if config.cache_dir or not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
    home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    folder = config.cache_dir or pathlib.Path(home, 'nlx', 'xla')
    jax.config.update('jax_compilation_cache_dir', str(folder))


def join(config: ml_collections.ConfigDict) -> None:
  """Joins the other processes of a run, if there are any; before anything asks for the devices."""
  options = dict(config.processes)
  options['coordinator'] = options['coordinator'] or None
  if options['count'] == 0:
    parallel.start_processes(heartbeat_timeout=options['heartbeat_timeout'])
  elif options['count'] < 0:
    raise ValueError(f'`processes.count` must be at least 0, got {options["count"]}.')
  elif options['count'] > 1 or options['coordinator']:
    parallel.start_processes(**options)


def create(config: ml_collections.ConfigDict) -> Language:
  """Builds the model that a configuration describes, initialised from its seed.

  Raises:
    ValueError: If a setting is out of range, a large model has no text or tokenizer, or the
      tokenizer is not that of the run any more.
  """
  for name in ('corpus', 'tokenizer'):
    if not config.data[name]:
      raise ValueError(
        f"`data.{name}` must be given for {config.name}, as in --config.data.corpus='texts/*.txt' "
        '--config.data.tokenizer=tokenizer.json.'
      )
  tokenizer = data.tokenizer(config.data.tokenizer)
  check_noted(config, 'tokenizer_digest', tokenizer.digest)
  model = make_model(config, tokenizer.vocab_size)
  graph, params = nnx.split(model, nnx.Param)
  return Language(model, graph, nnx.as_pure(params), tokenizer)


def check_noted(config: ml_collections.ConfigDict, name: str, digest: str) -> None:
  """Raises ValueError if a run has noted another digest than this one."""
  noted = config.data.get(name)
  if noted and noted != digest:
    what = {'digest': 'corpus', 'tokenizer_digest': 'tokenizer'}[name]
    raise ValueError(
      f'`data.{name}` is {noted!r}, but that of {config.data[what]!r} is {digest!r}: the {what} is '
      'another one.'
    )


def make_model(config: ml_collections.ConfigDict, vocab_size: int) -> models.LanguageModel:
  """Returns the model for a tokenizer of so many ids, with the levels of `config.stack`."""
  model_config = make_model_config(config.model, vocab_size)
  model = models.create(model_config, rngs=nnx.Rngs(config.seed))
  return stack(model, config) if config.stack.periods else model


def stack(model: models.LanguageModel, config: ml_collections.ConfigDict) -> models.LanguageModel:
  """Returns the model with the levels of `config.stack`."""
  options = dict(config.stack)
  if options['form'] == 'independent' and options['hidden'] is not None:
    raise ValueError(
      '`stack.hidden` is the width of new blocks in series, and must not be given if `stack.form` '
      f"is 'independent': those share the hidden units of the MLP equally. Got {options['hidden']}."
    )
  periods = tuple(options.pop('periods'))
  rule = make_in_context_rule('stack.rule', options.pop('rule'))
  rngs = nnx.Rngs(jax.random.fold_in(jax.random.key(config.seed), 1))  # Not those of the model.
  return models.stack_levels(model, periods, rule=rule, rngs=rngs, **options)


def make_model_config(
  fields: ml_collections.ConfigDict, vocab_size: int
) -> models.LanguageModelConfig:
  """Returns what `config.model` describes; its MLPs are as wide as its `parameters` ask for."""
  options: dict[str, Any] = {
    name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()
  }
  family = options.pop('family')
  if family not in models.FAMILIES:
    raise ValueError(f'`model.family` must be one of {list(models.FAMILIES)}, got {family!r}.')
  if 'rule' in options:
    options['rule'] = make_rule(**dict(fields.rule))
  if 'objective' in options:
    options['objective'] = make_objective(fields.objective)
  if 'cms_rule' in options:
    options['cms_rule'] = make_in_context_rule('model.cms_rule', fields.cms_rule)
  parameters, hidden = options.pop('parameters', None), options.pop('cms_hidden', None)
  make = functools.partial(models.FAMILIES[family], vocab_size=vocab_size, **options)
  if hidden or not parameters:
    return make(cms_hidden=hidden)
  dim = options['model_dim']
  return models.with_parameters(
    lambda hidden: make(cms_hidden=hidden),
    parameters + 2 * vocab_size * dim,
    multiple=max(8, dim // 16),
  )


def make_rule(name: str, **options: Any) -> memories.Rule:
  """Returns the update rule that `model.rule` describes."""
  rules = {'dgd': memories.dgd, 'gradient': memories.gradient}
  if name not in rules:
    raise ValueError(f'`model.rule.name` must be one of {tuple(rules)}, got {name!r}.')
  return rules[name](**options)


def make_objective(name: str) -> memories.Objective:
  """Returns the objective that `model.objective` names."""
  objectives = {'l2': memories.l2, 'dot_product': memories.dot_product, 'huber': memories.huber}
  if name not in objectives:
    raise ValueError(f'`model.objective` must be one of {tuple(objectives)}, got {name!r}.')
  return objectives[name]()


# Those whose derivative is finite where an inner gradient is zero.
IN_CONTEXT_RULES = {
  'gradient_descent': cms.GRADIENT_DESCENT,
  'dgd': cms.DELTA_GRADIENT_DESCENT,
  **{
    name: cms.InContextRule(name, training.OPTIMIZERS[name])
    for name in ('momentum', 'delta_momentum', 'm3', 'muon')
  },
}


def make_in_context_rule(field: str, name: str) -> cms.InContextRule:
  """Returns the rule that a field of the configuration names."""
  if name not in IN_CONTEXT_RULES:
    raise ValueError(f'`{field}` must be one of {tuple(IN_CONTEXT_RULES)}, got {name!r}.')
  return IN_CONTEXT_RULES[name]


def loss_fn(graph: nnx.GraphDef) -> training.step.LossFn:
  """Returns the loss of a model, (params, batch) -> (sum of nats, number of tokens)."""

  def loss(params, batch):
    return nnx.merge(graph, params).loss(batch['tokens'], batch['targets'], batch['mask'])

  return loss


def diagnosis(graph: nnx.GraphDef) -> Callable[[Any, training.step.Batch], dict[str, jax.Array]]:
  """Returns the sizes of a model's states, (params, batch) -> {level: [num_chunks]}."""

  @jax.jit
  def measure(params, batch):
    return nnx.merge(graph, params).diagnose(batch['tokens'], batch['targets'], batch['mask'])

  def diagnose(params, batch):
    sizes = measure(params, batch)  # A jitted function returns a dict in the order of its keys.
    infos = nnx.merge(graph, params).level_infos()
    return {info.name: sizes[info.name] for info in infos}

  return diagnose


def continuation(
  language: Language,
  params: Any,
  prompt: str,
  *,
  max_tokens: int,
  key: jax.Array,
  sampling: models.Sampling,
) -> str:
  """Returns what a model with these parameters writes after a prompt, fit for a terminal."""
  written, _ = models.generate(
    nnx.merge(language.graph, params),
    encode(language, prompt),
    max_tokens=max_tokens,
    key=key,
    sampling=sampling,
  )
  return decode(language, written)


def encode(language: Language, text: str) -> jax.Array:
  """Returns the tokens of a text as a batch of one, [1, T].

  Raises:
    ValueError: If there are none.
  """
  tokens = language.tokenizer.encode(text)
  if not len(tokens):
    raise ValueError('`prompt` must hold at least one token, got an empty text.')
  return jnp.asarray(tokens, jnp.int32)[None]


def decode(language: Language, tokens: jax.Array) -> str:
  """Returns the text of a batch of one as it goes on after another text, fit for a terminal.

  Many tokenizers leave out the space before the first word of a text, which this is not.
  """
  first, *rest = jax.device_get(tokens)[0].tolist()
  before, text = (language.tokenizer.decode(ids) for ids in ([first], [first, first, *rest]))
  if text.startswith(before):
    text = text.removeprefix(before)
  else:
    text = language.tokenizer.decode([first, *rest])
  return ''.join(c if c.isprintable() or c in '\n\t' else '\ufffd' for c in text)


def as_dict(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns a configuration as it is after a round trip through JSON."""
  return json.loads(json.dumps(config.to_dict()))


def fixed(config: dict[str, Any]) -> dict[str, Any]:
  """Returns what of a configuration, as a dict, must stay while a run goes on."""
  model = {name: value for name, value in config['model'].items() if name not in lm.MEANS}
  return {**{key: config.get(key) for key in FIXED}, 'model': model}


def identity(config: ml_collections.ConfigDict, params: Any, step: int) -> dict[str, Any]:
  """Returns, fit for JSON, what tells a trained model from every other.

  Args:
    config: Of its run.
    params: Its parameters.
    step: Of the checkpoint that they are from.
  """
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(params)):
    digest.update(f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape} '.encode())
    digest.update(leaf.tobytes())
  found = {**fixed(as_dict(config)), 'step': step, 'parameters': digest.hexdigest()[:16]}
  for name in lm.NOTED:  # Parameters say more of what was learned.
    found['data'].pop(name, None)
  return found


def check_config(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
  """Refuses a folder that holds a run of another model, data or seed.

  Raises:
    ValueError: Names the first setting that differs.
  """
  path = workdir / 'config.json'
  if not path.exists():
    return
  old, new = fixed(json.loads(path.read_bytes())), fixed(as_dict(config))
  for name in lm.NOTED:
    if not all(one['data'].get(name) for one in (old, new)):
      old['data'][name] = new['data'][name] = ''  # One of them has not looked yet.
  difference = core.first_difference(old, new)
  if difference:
    raise ValueError(
      f'`workdir` {str(workdir)!r} holds another run: {difference}. Use another folder, or the '
      'configuration of that run.'
    )


def write_config(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
  """Writes config.json; to be done when nothing is left that could refuse the run."""
  if jax.process_index() == 0:
    core.make_folder(workdir)
    core.write_text(workdir / 'config.json', json.dumps(as_dict(config), indent=2) + '\n')


def read_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
  """Returns the configuration of the run in a folder.

  Raises:
    FileNotFoundError: If the folder holds no run.
    ValueError: If its config.json is that of something else.
  """
  path = workdir / 'config.json'
  if not path.exists():
    raise FileNotFoundError(f'`workdir` {str(workdir)!r} holds no run: there is no config.json.')
  found = json.loads(path.read_bytes())
  if missing := [name for name in ('model', 'data', 'mesh') if name not in found]:
    raise ValueError(
      f'`workdir` {str(workdir)!r} holds no run: its config.json has no {missing[0]!r}. A Llama is '
      'read by experiments.train, see experiments/configs/llama.py.'
    )
  return ml_collections.ConfigDict(found)


def has_checkpoint(workdir: pathlib.Path) -> bool:
  """Returns whether a folder has a checkpoint from which a run resumes."""
  folder = workdir / CHECKPOINTS
  if not folder.exists():
    return False
  checkpoints = training.Checkpoints(folder, read_only=True)
  try:
    return bool(checkpoints.steps())
  finally:
    checkpoints.close()


def load(workdir: str | os.PathLike) -> tuple[models.LanguageModel, data.Tokenizer]:
  """Returns the model of a run, with the parameters of its latest checkpoint, and its tokenizer.

  Args:
    workdir: Folder of the run, or gs://BUCKET/FOLDER.

  Raises:
    FileNotFoundError: If the folder holds no run, or no checkpoint.
  """
  folder = core.as_path(workdir)
  language = create(read_config(folder))
  params, _ = restore(language, folder)
  return nnx.merge(language.graph, params), language.tokenizer


def restore_params(language: Language, workdir: pathlib.Path) -> Any:
  """Returns the parameters of the latest checkpoint in a folder."""
  return restore(language, workdir)[0]


def restore(language: Language, workdir: pathlib.Path) -> tuple[Any, int]:
  """Returns the parameters of the latest checkpoint in a folder, and its step."""
  folder = workdir / CHECKPOINTS
  if not folder.exists():
    raise FileNotFoundError(f'`workdir` {str(workdir)!r} holds no run: there are no checkpoints.')
  checkpoints = training.Checkpoints(folder, read_only=True)
  try:
    params = checkpoints.restore_params(language.params)
  finally:
    checkpoints.close()
  for step, reason in checkpoints.unreadable.items():
    print(f'Checkpoint {step} in {folder} cannot be read: {reason}', file=sys.stderr)
  assert checkpoints.restored_step is not None
  return params, checkpoints.restored_step
