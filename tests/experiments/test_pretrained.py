"""Runs that begin with the parameters of another run or of a Llama, and their levels."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import nnx

from experiments import common, language_model, pretrained
from experiments.configs import llama, lm
from nlx import core, interop, training
from tests.bucket import OBJECTS
from tests.experiments.test_train import FILES
from tests.interop import problems

PERIODS = (16, 32)


def smoke(**changes):
  config = lm.get_config('transformer-smoke')
  config.data.batch_size = 8  # As many as there are devices.
  config.training.steps = 2
  config.stack.meta = 'first'  # Compiles sooner.
  for name, value in changes.items():
    section, _, key = name.rpartition('__')
    (config[section] if section else config)[key] = value
  return config


def stacked(folder, **changes):
  return smoke(pretrained=str(folder), stack__periods=PERIODS, **changes)


def save_tokenizer(folder, size):
  path = folder / 'tokenizer.json'
  vocabulary = {chr(33 + i): i for i in range(size)}
  inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token='!'))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  inner.save(str(path))
  return str(path)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """What a run of another seed leaves, had it no steps: its configuration and a checkpoint."""
  workdir = tmp_path_factory.mktemp('run')
  config = smoke(seed=1)
  common.write_config(config, workdir)
  language = common.create(config)
  empty = training.optimizer('adamw', 0.1)
  state = training.init_state(language.params, empty, key=jax.random.key(0))
  checkpoints = training.Checkpoints(workdir / common.CHECKPOINTS)
  checkpoints.save(state, data={}, meta={})
  checkpoints.close()
  return workdir


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  """As many ids as the golden Llama has."""
  return save_tokenizer(tmp_path_factory.mktemp('tokenizer'), 64)


def first_params(config, workdir):
  return pretrained.first_params(config, common.create(config), workdir)


def assert_equal(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_run_begins_with_the_stacked_parameters_of_another(finished, tmp_path):
  config = stacked(finished)
  base = nnx.merge(*common.create(smoke(seed=1))[1:3])
  expected = nnx.as_pure(nnx.state(common.stack(base, config), nnx.Param))
  assert_equal(first_params(config, tmp_path), expected)


def test_run_begins_with_the_parameters_of_another_with_the_same_levels(finished, tmp_path):
  base = common.create(smoke(seed=1))
  assert_equal(first_params(smoke(pretrained=str(finished)), tmp_path), base.params)


def test_stacked_run_trains_and_resumes_without_the_pretrained_one(finished, tmp_path):
  start = shutil.copytree(finished, tmp_path / 'start')
  config, workdir = stacked(start), tmp_path / 'run'
  config.training.checkpoint_every = 1
  summary = language_model.run(config, workdir)
  shutil.rmtree(start)
  shutil.rmtree(workdir / common.CHECKPOINTS / '2')  # As if killed before it was saved.
  again = language_model.run(config, workdir)
  assert (again['steps'], again['val_loss']) == (2, summary['val_loss'])
  params = common.restore_params(common.create(common.read_config(workdir)), workdir)
  assert len(params['blocks']['cms']['blocks']) == len(PERIODS)


def test_run_in_a_bucket_needs_nothing_but_the_bucket(bucket, tmp_path, monkeypatch):
  """Text, tokenizer and folder; a second run begins with its parameters."""
  monkeypatch.chdir(tmp_path)
  names = {'text/*.txt': 'data__corpus', 'tokenizer.json': 'data__tokenizer'}
  tokenizer = pathlib.Path(save_tokenizer(tmp_path, 256)).read_text()
  core.write_text(core.as_path(f'{bucket}/tokenizer.json'), tokenizer)
  core.write_text(core.as_path(f'{bucket}/text/a.txt'), 'a ! b ' * 5_000)
  places = {field: f'{bucket}/{name}' for name, field in names.items()}
  config, workdir = smoke(stack__periods=PERIODS, **places), core.as_path(f'{bucket}/run')
  summary = language_model.run(config, workdir)
  assert {name.removeprefix('bucket/run/') for name in OBJECTS} >= FILES
  assert json.loads((workdir / 'summary.json').read_bytes()) == summary
  params = common.restore_params(common.create(common.read_config(workdir)), workdir)
  second = smoke(pretrained=str(workdir), stack__periods=PERIODS, **places)
  assert_equal(first_params(second, tmp_path), params)
  assert {path.name for path in tmp_path.iterdir()} == {'tokenizer.json'}


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model__num_heads': 4}, '`model.num_heads` was 2, but is 4 here'),
    ({'model__cms_hidden': 8}, '`model.cms_hidden` was None, but is 8 here'),
  ],
)
def test_another_model_is_refused(finished, tmp_path, changes, message):
  with pytest.raises(ValueError, match=f'holds another model: {message}'):
    first_params(stacked(finished, **changes), tmp_path)


def test_folder_without_a_model_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match='holds neither a run nor a Llama: there is no conf'):
    first_params(stacked(tmp_path), tmp_path)


@pytest.mark.parametrize('size', [64, 256])
def test_another_tokenizer_is_refused(finished, tmp_path, size):
  """Of another number of ids or of as many: either would read other text."""
  path = save_tokenizer(tmp_path, size)
  config = stacked(finished, data__tokenizer=path)
  with pytest.raises(ValueError, match=f"must be 'bytes', that of `pretrained` .*, got '{path}'"):
    first_params(config, tmp_path)


def test_tokenizer_may_be_given_by_another_name(tmp_path):
  """What counts is its file."""
  first, second = tmp_path / 'first', tmp_path / 'second'
  for folder in (first, second):
    folder.mkdir()
    save_tokenizer(folder, 64)
  config = smoke(data__tokenizer=str(first / 'tokenizer.json'))
  language_model.run(config, tmp_path / 'run')
  there = smoke(data__tokenizer=str(second / 'tokenizer.json'), pretrained=str(tmp_path / 'run'))
  first_params(there, tmp_path / 'other')


def test_levels_of_another_run_are_not_replaced(finished, tmp_path):
  other = shutil.copytree(finished, tmp_path / 'other')
  common.write_config(stacked(''), tmp_path / 'levels')
  shutil.copy(tmp_path / 'levels' / 'config.json', other)
  with pytest.raises(ValueError, match=r'`stack.periods` was \[16, 32\], but is \[32\] here'):
    first_params(smoke(pretrained=str(other), stack__periods=(32,)), tmp_path)


# ----- Llama


def test_run_begins_with_a_llama(tmp_path, tokenizer):
  config = llama.get_config(str(problems.LLAMA))
  config.data.tokenizer, config.stack.periods = tokenizer, (4, 8)
  config.model.dtype = 'float32'
  blocks = first_params(config, tmp_path)['blocks']['cms']['blocks']
  down = interop.load_llama(problems.LLAMA).blocks.cms.blocks[0].down.kernel[...]
  got = jnp.concatenate([blocks[i]['down']['kernel'] for i in range(2)], axis=1)
  np.testing.assert_array_equal(got, down)


def test_llama_in_a_bucket_is_named_as_any_other(bucket, tmp_path):
  interop.save_llama(interop.load_llama(problems.LLAMA), f'{bucket}/llama')
  config, here = (llama.get_config(path) for path in (f'{bucket}/llama', str(problems.LLAMA)))
  assert (config.name, config.model) == (here.name, here.model)
  assert config.data.tokenizer == f'{bucket}/llama/tokenizer.json'
  assert pretrained.is_llama(core.as_path(config.pretrained))


def test_llama_needs_its_tokenizer(tmp_path):
  config = llama.get_config(str(problems.LLAMA))
  config.data.tokenizer = 'bytes'
  with pytest.raises(ValueError, match="must have the 64 ids of `pretrained` .* 'bytes' has 256"):
    first_params(config, tmp_path)


def test_llama_of_other_sizes_is_refused(tmp_path, tokenizer):
  config = llama.get_config(str(problems.LLAMA))
  config.data.tokenizer, config.model.rope_base = tokenizer, 1000.0
  with pytest.raises(ValueError, match='`model.mixer.rope_base` was 500.0, but is 1000.0 here'):
    first_params(config, tmp_path)
