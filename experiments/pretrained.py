"""Where a run begins: at random, or with the parameters of another run or of a Llama."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from experiments import common
from nlx import core, interop, models


def first_params(
  config: ml_collections.ConfigDict, language: common.Language, workdir: pathlib.Path
) -> Any:
  """Returns the parameters before the first step.

  Those of `config.pretrained` get the levels of `config.stack`, if they have none. A run that
  resumes does not read them, as its checkpoint has all that it needs.

  Args:
    config: Of the run.
    language: As made from it, with random parameters.
    workdir: Folder of the run.

  Returns:
    A tree like `language.params`.

  Raises:
    FileNotFoundError: If `config.pretrained` holds neither a run nor a Llama.
    ValueError: If it holds another model.
  """
  if not config.pretrained or common.has_checkpoint(workdir):
    return language.params
  folder = core.as_path(config.pretrained)
  if is_llama(folder):
    model = _load_llama(config, language, folder)
  else:
    model = _load_run(config, language, folder)
  if model.config.cms.periods == (0,) and config.stack.periods:
    model = common.stack(model, config)
  params = nnx.as_pure(nnx.state(model, nnx.Param))
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, language.params)
  return params


def is_llama(folder: pathlib.Path) -> bool:
  """Returns whether a folder holds a checkpoint as Hugging Face publishes them, and not a run."""
  path = folder / 'config.json'
  if not path.exists():
    raise FileNotFoundError(
      f'`pretrained` {str(folder)!r} holds neither a run nor a Llama: there is no config.json.'
    )
  return 'model_type' in json.loads(path.read_bytes())


def _load_run(
  config: ml_collections.ConfigDict, language: common.Language, folder: pathlib.Path
) -> models.LanguageModel:
  """Returns the model of another run, with the levels that it has there."""
  described = common.read_config(folder)
  found, here = described.data.tokenizer, config.data.tokenizer
  noted = described.data.get('tokenizer_digest')
  is_same = noted == language.tokenizer.digest if noted else found == here
  if not is_same:
    raise ValueError(
      f'`data.tokenizer` must be {found!r}, that of `pretrained` {str(folder)!r}, got {here!r}: '
      'equal ids would stand for other text.'
    )
  for key in ('model', 'stack'):
    if key == 'stack' and not described.stack.periods:
      continue
    found, here = (common.fixed(common.as_dict(one))[key] for one in (described, config))
    _refuse(folder, core.first_difference(found, here, key))
  there = config.copy_and_resolve_references()
  there.stack = described.stack
  other = common.create(there)
  return nnx.merge(other.graph, common.restore_params(other, folder))


def _load_llama(
  config: ml_collections.ConfigDict, language: common.Language, folder: pathlib.Path
) -> models.LanguageModel:
  """Returns a Llama."""
  dtype, size = config.model.dtype, language.tokenizer.vocab_size
  found = interop.llama_config(folder, dtype=dtype)
  if found.vocab_size != size:
    raise ValueError(
      f'`data.tokenizer` must have the {found.vocab_size} ids of `pretrained` {str(folder)!r}, but '
      f'{config.data.tokenizer!r} has {size}.'
    )
  here = dataclasses.replace(common.make_model_config(config.model, size), remat=found.remat)
  difference = core.first_difference(dataclasses.asdict(found), dataclasses.asdict(here), 'model')
  _refuse(folder, difference)
  return interop.load_llama(folder, dtype=dtype)


def _refuse(folder: pathlib.Path, difference: str | None) -> None:
  if difference:
    raise ValueError(f'`pretrained` {str(folder)!r} holds another model: {difference}.')
