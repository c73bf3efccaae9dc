"""Llama checkpoints as published by Hugging Face, to and from Transformer++."""

import os
import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from nlx import core, models
from nlx.interop import files
from nlx.memories.attention import AttentionConfig

_DTYPES = ('F64', 'F32', 'F16', 'BF16')
_SIZES = (
  'vocab_size',
  'hidden_size',
  'intermediate_size',
  'num_hidden_layers',
  'num_attention_heads',
)
# What a checkpoint may set to one value only, and what it means if it does not.
_FIXED = {
  'hidden_act': 'silu',
  'attention_bias': False,
  'mlp_bias': False,
  'partial_rotary_factor': 1.0,
  'quantization_config': None,
}
_EMBEDDING, _HEAD = 'model.embed_tokens.weight', 'lm_head.weight'
# Constants that old checkpoints store beside the weights.
_CONSTANTS = '.rotary_emb.inv_freq'


class _Parameter(NamedTuple):
  """Where the numbers of one parameter are in a checkpoint."""

  path: tuple[str | int, ...]  # in the model
  parts: dict[str, int]  # names, with a place for the layer, to rows; side by side in the model
  columns: tuple[int, ...]  # the other axis of each part; () if it is a vector
  by_layer: bool = True  # stacked along the first axis in the model
  transposed: bool = True  # [out, in] in the checkpoint, [in, out] in the model


def load_llama(
  folder: str | os.PathLike, *, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32
) -> models.LanguageModel:
  """Loads a Llama checkpoint, as Hugging Face publishes them, as a Transformer++.

  The folder is only read: config.json, and model.safetensors or the files that
  model.safetensors.index.json names. Weights that are tied there, one matrix as embedding and head,
  are two copies here, which training moves apart. Needs safetensors, from the extra `interop`.

  Args:
    folder: Of the checkpoint.
    dtype: Of matrix products.
    param_dtype: Of parameters, whatever the checkpoint's.

  Returns:
    The model; its logits are those of the checkpoint.

  Raises:
    FileNotFoundError: If a file is missing.
    ValueError: If the checkpoint has something that Transformer++ has not, such as biases or scaled
      rotary positions, or its tensors are not those of its configuration.

  Example:
    >>> import tempfile, nlx
    >>> from flax import nnx
    >>> config = nlx.models.transformer(vocab_size=16, model_dim=8, num_layers=1, num_heads=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   nlx.interop.save_llama(nlx.models.create(config, rngs=nnx.Rngs(0)), folder)
    ...   model = nlx.interop.load_llama(folder)
    >>> model.num_parameters()
    1304

  References:
    Touvron et al., LLaMA, arXiv 2302.13971.
  """
  folder = core.as_path(folder)
  config = llama_config(folder, dtype=dtype, param_dtype=param_dtype)
  described = files.read_json(folder / files.CONFIG)
  tied = _get(described, 'tie_word_embeddings', False)
  table = _parameters(config, tied)
  model = nnx.eval_shape(lambda: models.create(config, rngs=nnx.Rngs(0)))
  with files.open_tensors(folder) as tensors:
    _check_tensors(tensors, table, config.num_layers, tied)
    pure: dict[str, Any] = {}
    for parameter in table:
      array = _read_parameter(tensors, parameter, config.num_layers, np.dtype(param_dtype))
      _put(pure, parameter.path, jnp.asarray(array))
  assert core.tree_size(pure) == model.num_parameters()
  nnx.update(model, pure)
  return model


def llama_config(
  folder: str | os.PathLike, *, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32
) -> models.LanguageModelConfig:
  """The configuration of the Transformer++ that `load_llama` makes; only config.json is read.

  Args:
    folder: Of the checkpoint.
    dtype: Of matrix products.
    param_dtype: Of parameters, whatever the checkpoint's.

  Returns:
    The configuration.

  Raises:
    FileNotFoundError: If config.json is missing.
    ValueError: If it describes something that Transformer++ has not.
  """
  described = files.read_json(core.as_path(folder) / files.CONFIG)
  return _read_config(described, dtype=dtype, param_dtype=param_dtype)


def save_llama(
  model: models.LanguageModel, folder: str | os.PathLike, *, max_length: int = 2048
) -> None:
  """Saves a Transformer++ as a Llama checkpoint that Hugging Face's transformers load.

  The folder gets config.json and model.safetensors, in the dtype of the parameters. The weights of
  an earlier save into it stay until the new ones are complete. Needs safetensors, from the extra
  `interop`.

  Args:
    model: A model of `nlx.models.transformer`.
    folder: Made if missing.
    max_length: The most tokens that other programs are to read with it; Transformer++ has no limit.

  Raises:
    ValueError: If the model is no Transformer++, or `folder` has the checkpoint of another one.
  """
  folder = core.as_path(folder)
  described = _write_config(model.config, model.embedding.dtype, max_length)
  _check_folder(folder, described)
  pure = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  tensors: dict[str, np.ndarray] = {}
  for parameter in _parameters(model.config, tied=False):
    tensors |= _write_parameter(_find(pure, parameter.path), parameter)
  assert core.tree_size(tensors) == model.num_parameters()
  core.make_folder(folder)
  files.write_json(folder / files.CONFIG, described)
  files.write_tensors(folder / files.WEIGHTS, tensors)


# ----- which tensor is what


def _parameters(config: models.LanguageModelConfig, tied: bool) -> list[_Parameter]:
  """Every parameter of Transformer++ and its tensors, in the layout of [out, in] matrices."""
  mixer = config.mixer
  assert isinstance(mixer, AttentionConfig)
  vocab, dim, hidden = config.vocab_size, config.model_dim, config.cms.widths[0]
  queries, shared = mixer.num_heads * mixer.key_dim, mixer.kv_heads * mixer.key_dim
  attention, mlp = 'model.layers.{}.self_attn.', 'model.layers.{}.mlp.'
  projections = {f'{attention}q_proj.weight': queries}
  projections |= {f'{attention}{name}_proj.weight': shared for name in 'kv'}
  up = {f'{mlp}{name}_proj.weight': hidden for name in ('gate', 'up')}
  block = ('blocks', 'cms', 'blocks', 0)
  head = _EMBEDDING if tied else _HEAD
  norms = {
    ('blocks', 'mixer', 'norm', 'scale'): 'model.layers.{}.input_layernorm.weight',
    (*block, 'norm', 'scale'): 'model.layers.{}.post_attention_layernorm.weight',
  }
  memory = ('blocks', 'mixer', 'memory')
  return [
    _Parameter(('embedding',), {_EMBEDDING: vocab}, (dim,), by_layer=False, transposed=False),
    *(_Parameter(path, {name: dim}, ()) for path, name in norms.items()),
    _Parameter((*memory, 'projection', 'kernel'), projections, (dim,)),
    _Parameter((*memory, 'output', 'kernel'), {f'{attention}o_proj.weight': dim}, (queries,)),
    _Parameter((*block, 'up', 'kernel'), up, (dim,)),
    _Parameter((*block, 'down', 'kernel'), {f'{mlp}down_proj.weight': dim}, (hidden,)),
    _Parameter(('norm', 'scale'), {'model.norm.weight': dim}, (), by_layer=False),
    _Parameter(('head', 'kernel'), {head: vocab}, (dim,), by_layer=False),
  ]


def _check_tensors(tensors, table: list[_Parameter], num_layers: int, tied: bool) -> None:
  """Raises ValueError unless the tensors are exactly those of the table."""
  expected = {
    name.format(layer): (rows, *parameter.columns)
    for parameter in table
    for name, rows in parameter.parts.items()
    for layer in range(num_layers if parameter.by_layer else 1)
  }
  found = {name for name in tensors if not name.endswith(_CONSTANTS)}
  if missing := sorted(expected.keys() - found):
    raise ValueError(f'the checkpoint lacks {_some(missing)}.')
  for name, shape in expected.items():
    about = tensors[name].get_slice(name)
    if tuple(about.get_shape()) != shape:
      raise ValueError(f'{name!r} must have shape {shape}, got {tuple(about.get_shape())}.')
    if about.get_dtype() not in _DTYPES:
      raise ValueError(f'{name!r} must be one of {_DTYPES}, got {about.get_dtype()}.')
  if tied and _HEAD in found:
    found.remove(_HEAD)
    if not np.array_equal(*(tensors[name].get_tensor(name) for name in (_EMBEDDING, _HEAD))):
      raise ValueError(f'`tie_word_embeddings` is True, but {_HEAD!r} is not {_EMBEDDING!r}.')
  if unexpected := sorted(found - expected.keys()):
    raise ValueError(f'the checkpoint has what Transformer++ has not: {_some(unexpected)}.')


def _some(names: list[str]) -> str:
  """The first names of a list that may be long."""
  shown = ', '.join(repr(name) for name in names[:3])
  return f'{shown} and {len(names) - 3} more' if len(names) > 3 else shown


def _read_parameter(tensors, parameter: _Parameter, num_layers: int, dtype) -> np.ndarray:
  """One parameter of all layers, read tensor by tensor into its place."""
  rows = sum(parameter.parts.values())
  shape = (*parameter.columns, rows) if parameter.transposed else (rows, *parameter.columns)
  layers = np.empty((num_layers if parameter.by_layer else 1, *shape), dtype)
  for layer, out in enumerate(layers):
    out = out.T if parameter.transposed else out
    begin = 0
    for template, size in parameter.parts.items():
      name = template.format(layer)
      out[begin : begin + size] = tensors[name].get_tensor(name)
      begin += size
  return layers if parameter.by_layer else layers[0]


def _write_parameter(value, parameter: _Parameter) -> dict[str, np.ndarray]:
  """The tensors of one parameter, by name."""
  value = np.asarray(value)
  tensors = {}
  for layer, matrix in enumerate(value if parameter.by_layer else value[None]):
    matrix = matrix.T if parameter.transposed else matrix
    begin = 0
    for template, size in parameter.parts.items():
      tensors[template.format(layer)] = np.ascontiguousarray(matrix[begin : begin + size])
      begin += size
  return tensors


def _put(tree: dict, path: tuple, value: Any) -> None:
  """Puts a leaf into nested dictionaries."""
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = value


def _find(tree: dict, path: tuple) -> Any:
  """The leaf of nested dictionaries."""
  for key in path:
    tree = tree[key]
  return tree


# ----- config.json


def _get(described: dict[str, Any], key: str, default: Any) -> Any:
  """A value of config.json; null means that it is not given."""
  value = described.get(key)
  return default if value is None else value


def _read_config(described: dict[str, Any], **dtypes: Any) -> models.LanguageModelConfig:
  """The configuration of a checkpoint, with the defaults of transformers."""
  _check_value('model_type', described.get('model_type'), 'llama')
  for key, value in _FIXED.items():
    _check_value(key, _get(described, key, value), value)
  for key in _SIZES:
    if not isinstance(described.get(key), int):
      raise ValueError(f'config.json: `{key}` must be an integer, got {described.get(key)!r}.')
  return models.transformer(
    vocab_size=described['vocab_size'],
    model_dim=described['hidden_size'],
    num_layers=described['num_hidden_layers'],
    num_heads=described['num_attention_heads'],
    num_kv_heads=described.get('num_key_value_heads'),
    head_dim=described.get('head_dim'),
    mlp_hidden=described['intermediate_size'],
    rope_base=_read_rope_base(described),
    norm_epsilon=_get(described, 'rms_norm_eps', 1e-6),
    **dtypes,
  )


def _read_rope_base(described: dict[str, Any]) -> float:
  """The base of rotary positions, which must not be scaled.

  It is `rope_theta`, or since version 5 of transformers in `rope_parameters`, which come first.
  """
  base = _get(described, 'rope_theta', 10_000.0)
  for key in ('rope_parameters', 'rope_scaling'):
    rope = _get(described, key, {})
    if not isinstance(rope, dict):
      raise ValueError(f'`{key}` of config.json must be an object, got {rope!r}.')
    kind = rope.get('rope_type', rope.get('type'))
    _check_value(f'{key}.rope_type', kind or 'default', 'default')
    _check_value(f'{key}.partial_rotary_factor', rope.get('partial_rotary_factor', 1.0), 1.0)
    base = _get(rope, 'rope_theta', base)
  return float(base)


def _check_value(key: str, value: Any, needed: Any) -> None:
  if value != needed:
    raise ValueError(f'config.json: `{key}` must be {needed!r} for Transformer++, got {value!r}.')


def _write_config(config: models.LanguageModelConfig, dtype: Any, max_length: int) -> dict:
  """What config.json says of a model."""
  mixer = _full_attention(config)
  return {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'vocab_size': config.vocab_size,
    'hidden_size': config.model_dim,
    'intermediate_size': config.cms.widths[0],
    'num_hidden_layers': config.num_layers,
    'num_attention_heads': mixer.num_heads,
    'num_key_value_heads': mixer.kv_heads,
    'head_dim': mixer.key_dim,
    'hidden_act': 'silu',
    'rms_norm_eps': config.norm_epsilon,
    # For transformers from version 5 on, and for those before.
    'rope_parameters': {'rope_type': 'default', 'rope_theta': mixer.rope_base},
    'rope_theta': mixer.rope_base,
    'attention_bias': False,
    'mlp_bias': False,
    'tie_word_embeddings': False,
    'max_position_embeddings': max_length,
    # The defaults of transformers, 1 and 2, may be any token of a vocabulary.
    'bos_token_id': None,
    'eos_token_id': None,
    'torch_dtype': np.dtype(dtype).name,
  }


def _full_attention(config: models.LanguageModelConfig) -> AttentionConfig:
  """The mixer of a model that a Llama can be; raises ValueError for any other."""
  mixer = config.mixer
  if not isinstance(mixer, AttentionConfig):
    raise ValueError(f'`model` must be a Transformer++, got the mixer {type(mixer).__name__}.')
  if mixer.window is not None:
    raise ValueError(f'`model` must have full attention, got a window of {mixer.window} tokens.')
  if mixer.rope_base is None:
    raise ValueError('`model` must have rotary positions, got the `rope_base` None.')
  if mixer.num_persistent:
    raise ValueError(f'`model` must have no persistent tokens, got {mixer.num_persistent}.')
  if config.cms.periods != (0,):
    raise ValueError(
      f'`model` must have one MLP that does not learn in context, cms.periods (0,), '
      f'got {config.cms.periods}.'
    )
  if config.cms.form == 'independent':
    raise ValueError(
      "`model` must add its MLP as it is, cms.form 'sequential' or 'nested', got 'independent', "
      'which scales it by a learned factor.'
    )
  if config.model_dim % mixer.num_heads:
    raise ValueError(
      f'`model_dim` must be a multiple of `num_heads` for transformers to load it, '
      f'got {config.model_dim} and {mixer.num_heads}.'
    )
  return mixer


def _check_folder(folder: pathlib.Path, described: dict[str, Any]) -> None:
  """Raises ValueError if the folder has weights for another configuration.

  Of two files, one is always replaced first: a crash between them would leave weights beside a
  configuration that is not theirs.
  """
  if (folder / files.INDEX).exists():
    raise ValueError(f'`folder` must have no checkpoint in several files, but {folder} does.')
  if not (folder / files.WEIGHTS).exists():
    return
  if not (folder / files.CONFIG).exists() or files.read_json(folder / files.CONFIG) != described:
    raise ValueError(
      f'`folder` must not have another model, or one of another configuration, but {folder} has.'
    )
