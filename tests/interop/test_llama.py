"""Llama checkpoints in and out, against a golden checkpoint that transformers wrote."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from nlx import models
from nlx.interop import files, load_llama, save_llama
from tests.compiling import quick_jit
from tests.interop import problems

SIZES = {'vocab_size': 32, 'model_dim': 16, 'num_layers': 2, 'num_heads': 2, 'mlp_hidden': 24}
QUERY = 'model.layers.1.self_attn.q_proj.weight'
HEAD, EMBEDDING = 'lm_head.weight', 'model.embed_tokens.weight'
SHARDS = ('model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors')


@pytest.fixture(scope='module')
def golden():
  return safetensors.numpy.load_file(problems.LLAMA_LOGITS)


@pytest.fixture(scope='module')
def llama():
  return load_llama(problems.LLAMA)


@pytest.fixture
def checkpoint(tmp_path):
  """A copy of the golden checkpoint that a test may spoil."""
  return shutil.copytree(problems.LLAMA, tmp_path / 'checkpoint')


def load_tensors(folder):
  return safetensors.numpy.load_file(folder / files.WEIGHTS)


def save_tensors(folder, tensors):
  safetensors.numpy.save_file(tensors, folder / files.WEIGHTS)


def configure(folder, **changes):
  """Changes config.json; None removes a key."""
  path = folder / files.CONFIG
  config = {**json.loads(path.read_text()), **changes}
  path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def split(folder, missing=()):
  """Divides the weights into two files with an index, all names of which are in it."""
  tensors = load_tensors(folder)
  (folder / files.WEIGHTS).unlink()
  places = {name: SHARDS[i % 2] for i, name in enumerate(sorted(tensors))}
  for shard in SHARDS:
    part = {n: x for n, x in tensors.items() if places[n] == shard and n not in missing}
    safetensors.numpy.save_file(part, folder / shard)
  index = {'metadata': {'total_size': 0}, 'weight_map': places}
  (folder / files.INDEX).write_text(json.dumps(index))


def abstract(config):
  return nnx.eval_shape(lambda: models.create(config, rngs=nnx.Rngs(0)))


def random(seed=0, **changes):
  """A Transformer++ with random parameters; norms scale by about one."""
  model = abstract(models.transformer(**{**SIZES, **changes}))
  rng = np.random.default_rng(seed)

  def fill(path, x):
    mean = 1.0 if 'scale' in jax.tree_util.keystr(path) else 0.0
    return jnp.asarray(rng.normal(mean, 0.3, x.shape), x.dtype)

  nnx.update(model, jax.tree_util.tree_map_with_path(fill, nnx.state(model, nnx.Param)))
  return model


def assert_equal_parameters(first, second):
  """Bit for bit, dtypes too."""
  first, second = (nnx.state(model, nnx.Param) for model in (first, second))
  assert jax.tree.structure(first) == jax.tree.structure(second)
  for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)


# ----- numbers


def test_llama_gives_the_golden_logits(llama, golden):
  got = problems.logits(llama, golden['tokens'])
  np.testing.assert_allclose(got, golden['logits'], atol=problems.TOLERANCE)


def test_llama_streams_the_golden_logits(llama, golden):
  ids = jnp.asarray(golden['tokens'], jnp.int32)
  state = llama.init_state(batch_size=ids.shape[0], max_length=ids.shape[1])
  read, pieces = quick_jit(llama), []
  for begin, end in ((0, 5), (5, 6), (6, 7), (7, 12)):
    logits, state = read(ids[:, begin:end], state)
    pieces.append(logits)
  got = jnp.concatenate(pieces, axis=1)
  np.testing.assert_allclose(got, golden['logits'], atol=problems.TOLERANCE)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(('form', 'tied'), [('independent', True), ('sequential', False)])
def test_llama_with_levels_gives_the_logits_of_the_llama(checkpoint, golden, form, tied):
  """At a rate of 0, across updates of both levels."""
  if tied:
    configure(checkpoint, tie_word_embeddings=True)
    save_tensors(checkpoint, {n: x for n, x in load_tensors(checkpoint).items() if n != HEAD})
  llama = load_llama(checkpoint, dtype=jnp.float64, param_dtype=jnp.float64)
  ids = jnp.asarray(golden['tokens'], jnp.int32)
  model = models.stack_levels(llama, (2, 4), form=form, rate=0.0, rngs=nnx.Rngs(0))
  args = ids, jnp.roll(ids, -1, axis=1), jnp.ones(ids.shape), lambda reading: reading.logits
  got = jnp.concatenate(list(quick_jit(lambda: model.run(*args).outputs)()), axis=1)
  np.testing.assert_allclose(got, problems.logits(llama, ids), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
  'changes',
  [{}, {'num_kv_heads': 1}, {'head_dim': 6}, {'num_layers': 1}, {'param_dtype': jnp.bfloat16}],
)
def test_saved_model_loads_bit_for_bit(tmp_path, changes):
  model = random(rope_base=500.0, norm_epsilon=1e-5, **changes)
  save_llama(model, tmp_path / 'new' / 'folder')
  param_dtype = changes.get('param_dtype', jnp.float32)
  loaded = load_llama(tmp_path / 'new' / 'folder', param_dtype=param_dtype)
  assert_equal_parameters(loaded, model)
  assert loaded.config.mixer.rope_base == 500.0
  assert loaded.config.norm_epsilon == 1e-5


def test_llama_goes_through_a_bucket_bit_for_bit(bucket, llama):
  save_llama(llama, f'{bucket}/llama')
  assert_equal_parameters(load_llama(f'{bucket}/llama'), llama)


def test_loaded_checkpoint_is_saved_bit_for_bit(tmp_path, llama):
  save_llama(llama, tmp_path)
  saved, original = load_tensors(tmp_path), load_tensors(problems.LLAMA)
  assert saved.keys() == original.keys()
  for name, tensor in original.items():
    np.testing.assert_array_equal(saved[name], tensor, err_msg=name)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float64])
def test_checkpoint_of_any_width_loads(checkpoint, llama, dtype):
  wide = load_tensors(checkpoint)
  save_tensors(checkpoint, {name: x.astype(dtype) for name, x in wide.items()})
  got = nnx.state(load_llama(checkpoint), nnx.Param)
  expected = jax.tree.map(
    lambda x: np.asarray(x).astype(dtype).astype(np.float32), nnx.state(llama, nnx.Param)
  )
  jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_checkpoint_loads_in_the_dtypes_asked_for():
  model = load_llama(problems.LLAMA, dtype=jnp.bfloat16, param_dtype=jnp.float16)
  assert {x.dtype for x in jax.tree.leaves(nnx.state(model, nnx.Param))} == {np.dtype('float16')}
  assert model.config.dtype == model.config.mixer.dtype == jnp.bfloat16


def test_checkpoint_in_several_files_loads(checkpoint, llama):
  split(checkpoint)
  assert_equal_parameters(load_llama(checkpoint), llama)


def test_tied_weights_load_as_two_copies(checkpoint, llama):
  configure(checkpoint, tie_word_embeddings=True)
  tensors = load_tensors(checkpoint)
  save_tensors(checkpoint, {**tensors, HEAD: tensors[EMBEDDING]})
  model = load_llama(checkpoint)
  np.testing.assert_array_equal(model.head.kernel[...], llama.embedding[...].T)
  del tensors[HEAD]
  save_tensors(checkpoint, tensors)
  assert_equal_parameters(load_llama(checkpoint), model)


def test_tied_weights_are_saved_untied(checkpoint, tmp_path):
  configure(checkpoint, tie_word_embeddings=True)
  tensors = load_tensors(checkpoint)
  del tensors[HEAD]
  save_tensors(checkpoint, tensors)
  save_llama(load_llama(checkpoint), tmp_path / 'saved')
  np.testing.assert_array_equal(load_tensors(tmp_path / 'saved')[HEAD], tensors[EMBEDDING])
  assert files.read_json(tmp_path / 'saved' / files.CONFIG)['tie_word_embeddings'] is False


@pytest.mark.parametrize(
  ('changes', 'base'),
  [
    ({'rope_parameters': None, 'rope_theta': 700}, 700.0),
    ({'rope_parameters': None}, 10_000.0),
    ({'rope_parameters': None, 'rope_theta': 700, 'rope_scaling': {'type': 'default'}}, 700.0),
    ({'rope_theta': 700}, 500.0),
  ],
)
def test_rope_base_is_found_where_versions_put_it(checkpoint, changes, base):
  configure(checkpoint, **changes)
  assert load_llama(checkpoint).config.mixer.rope_base == base


def test_config_of_a_first_llama_has_defaults(checkpoint):
  """Neither shared keys, nor a width of heads, nor an epsilon."""
  tensors = load_tensors(checkpoint)
  for name, tensor in tensors.items():
    if 'self_attn' in name:
      tensors[name] = np.ones((16, 16), tensor.dtype)
  tensors['model.layers.0.self_attn.rotary_emb.inv_freq'] = np.ones(2, np.float32)
  save_tensors(checkpoint, tensors)
  configure(checkpoint, num_key_value_heads=None, head_dim=None, rms_norm_eps=None)
  config = load_llama(checkpoint).config
  assert (config.mixer.kv_heads, config.mixer.key_dim, config.norm_epsilon) == (4, 4, 1e-6)


# ----- what is refused


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model_type': 'mistral'}, "`model_type` must be 'llama' .*, got 'mistral'"),
    ({'model_type': None}, "`model_type` must be 'llama' .*, got None"),
    ({'attention_bias': True}, '`attention_bias` must be False .*, got True'),
    ({'mlp_bias': True}, '`mlp_bias` must be False .*, got True'),
    ({'hidden_act': 'gelu'}, "`hidden_act` must be 'silu' .*, got 'gelu'"),
    ({'rope_scaling': {'type': 'linear'}}, "`rope_scaling.rope_type` must be .*, got 'linear'"),
    ({'rope_parameters': {'rope_type': 'llama3'}}, "rope_parameters.rope_type`.*, got 'llama3'"),
    ({'rope_parameters': {'partial_rotary_factor': 0.5}}, 'partial_rotary_factor` .* got 0.5'),
    ({'quantization_config': {'bits': 4}}, "`quantization_config` .*, got {'bits': 4}"),
    ({'hidden_size': None}, '`hidden_size` must be an integer, got None'),
    ({'num_hidden_layers': 3}, "the checkpoint lacks 'model.layers.2.* and 6 more"),
    ({'num_hidden_layers': 1}, 'has what Transformer.. has not: .*layers.1.* and 6 more'),
    (
      {'intermediate_size': 31},
      r"mlp.gate_proj.weight' must have shape \(31, 16\), got \(32, 16\)",
    ),
    ({'tie_word_embeddings': True}, "is True, but 'lm_head.weight' is not 'model.embed_tokens"),
  ],
)
def test_config_that_is_no_transformer_is_refused(checkpoint, changes, message):
  configure(checkpoint, **changes)
  with pytest.raises(ValueError, match=message):
    load_llama(checkpoint)


@pytest.mark.parametrize(
  ('tensor', 'message'),
  [
    (None, f"the checkpoint lacks '{QUERY}'"),
    (np.zeros((16, 24), np.float32), rf"'{QUERY}' must have shape \(24, 16\), got \(16, 24\)"),
    (np.zeros((24, 16), np.int8), f"'{QUERY}' must be one of .*, got I8"),
  ],
)
def test_wrong_tensor_is_refused(checkpoint, tensor, message):
  tensors = {**load_tensors(checkpoint), QUERY: tensor}
  save_tensors(checkpoint, {name: x for name, x in tensors.items() if x is not None})
  with pytest.raises(ValueError, match=message):
    load_llama(checkpoint)


def test_unexpected_tensor_is_refused(checkpoint):
  name = 'model.layers.0.self_attn.q_proj.bias'
  save_tensors(checkpoint, {**load_tensors(checkpoint), name: np.zeros(24, np.float32)})
  with pytest.raises(ValueError, match=f"has what Transformer.. has not: '{name}'"):
    load_llama(checkpoint)


def test_damaged_checkpoints_are_refused(checkpoint):
  split(checkpoint, missing=(QUERY,))
  with pytest.raises(ValueError, match=f"has '{QUERY}' in .*, which lacks it"):
    load_llama(checkpoint)
  (checkpoint / SHARDS[0]).write_bytes((checkpoint / SHARDS[0]).read_bytes()[:-1])
  with pytest.raises(ValueError, match=f'{SHARDS[0]} is no complete safetensors file'):
    load_llama(checkpoint)
  (checkpoint / SHARDS[0]).unlink()
  with pytest.raises(FileNotFoundError, match=SHARDS[0]):
    load_llama(checkpoint)
  (checkpoint / files.INDEX).unlink()
  with pytest.raises(FileNotFoundError, match='neither model.safetensors nor'):
    load_llama(checkpoint)


@pytest.mark.parametrize(('text', 'message'), [('{', 'must be JSON'), ('[]', 'object, got list')])
def test_damaged_config_is_refused(checkpoint, text, message):
  (checkpoint / files.CONFIG).write_text(text)
  with pytest.raises(ValueError, match=message):
    load_llama(checkpoint)


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    (models.hope(vocab_size=8, model_dim=8, num_layers=1, num_heads=2), 'SelfModifyingConfig'),
    (models.transformer(**SIZES, window=4), 'a window of 4 tokens'),
    (models.transformer(**SIZES, num_persistent=3), 'no persistent tokens, got 3'),
    (models.transformer(**SIZES, rope_base=None), 'rotary positions, got the `rope_base` None'),
    (models.transformer(**SIZES, cms_periods=(0, 0)), r'cms.periods \(0,\), got \(0, 0\)'),
    (models.transformer(**SIZES, cms_periods=(8,)), r'cms.periods \(0,\), got \(8,\)'),
    (
      models.transformer(**SIZES, cms_form='independent'),
      "must add its MLP as it is.* 'independent'",
    ),
    (
      models.transformer(**{**SIZES, 'num_heads': 3}, head_dim=6),
      '`model_dim` must be a multiple of `num_heads` .*, got 16 and 3',
    ),
  ],
)
def test_model_that_is_no_llama_is_not_saved(tmp_path, config, message):
  with pytest.raises(ValueError, match=message):
    save_llama(abstract(config), tmp_path / 'saved')
  assert not (tmp_path / 'saved').exists()


def test_model_is_not_saved_over_another(checkpoint, tmp_path, llama):
  with pytest.raises(ValueError, match='must not have another model'):
    save_llama(random(), checkpoint)
  split(checkpoint)
  with pytest.raises(ValueError, match='must have no checkpoint in several files'):
    save_llama(llama, checkpoint)


# ----- crashes


def test_model_is_saved_over_itself(tmp_path):
  save_llama(random(), tmp_path)
  second = random(seed=1)
  save_llama(second, tmp_path)
  assert_equal_parameters(load_llama(tmp_path), second)
  assert {path.name for path in tmp_path.iterdir()} == {files.CONFIG, files.WEIGHTS}


def _half_a_file(tensors, path, metadata):
  path.write_bytes(b'half of a file')
  raise OSError('the disk is full')


def _killed(*args):
  raise KeyboardInterrupt


@pytest.mark.parametrize(
  ('name', 'crash', 'error'),
  [
    ('safetensors.numpy.save_file', _half_a_file, OSError),
    ('os.replace', _killed, KeyboardInterrupt),
  ],
)
def test_interrupted_save_leaves_the_old_checkpoint(tmp_path, monkeypatch, name, crash, error):
  model = random()
  save_llama(model, tmp_path)
  monkeypatch.setattr(name, crash)
  with pytest.raises(error):
    save_llama(random(seed=1), tmp_path)
  assert_equal_parameters(load_llama(tmp_path), model)
  assert {path.name for path in tmp_path.iterdir()} == {files.CONFIG, files.WEIGHTS}


def test_killed_save_is_overwritten_by_the_next(tmp_path):
  (tmp_path / f'{files.WEIGHTS}.part').write_bytes(b'half of a file')
  model = random()
  save_llama(model, tmp_path)
  assert_equal_parameters(load_llama(tmp_path), model)
