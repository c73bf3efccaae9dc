"""From a configuration to the plan of its training step."""

import importlib.util
import math
import subprocess
import sys

import jax
import pytest
from flax import nnx

from experiments import common, language_model, planning
from experiments.configs import lm
from experiments.reporting import provenance
from experiments.studies import plans, records
from nlx import data, parallel

FAMILY = 'linear_attention-smoke'  # Compiles in no time.


@pytest.mark.parametrize(
  ('num_devices', 'given', 'mesh', 'accumulation'),
  [
    (1, 1, (1, 1, 1), 128),
    (16, 1, (1, 16, 1), 8),
    (16, 4, (1, 16, 1), 8),
    (128, 1, (1, 128, 1), 1),
    (256, 1, (1, 128, 2), 1),
    (256, 2, (1, 64, 4), 2),
    (512, 1, (1, 128, 4), 1),
  ],
)
def test_mesh_follows_from_the_batch(num_devices, given, mesh, accumulation):
  config = lm.get_config('hope-340m')
  config.training.accumulation = given
  config = planning.with_mesh(config, num_devices)
  assert tuple(config.mesh[axis] for axis in parallel.AXES) == mesh
  assert config.training.accumulation == accumulation


def test_mesh_that_is_given_stays():
  config = lm.get_config('hope-340m')
  config.mesh.model = 4
  assert planning.with_mesh(config, 256) == config


def test_vocabulary_is_that_of_the_tokenizer_if_there_is_one():
  config = lm.get_config('hope-1b')
  assert planning.find_vocab_size(config) == 32_000
  config.data.tokenizer = 'bytes'
  assert planning.find_vocab_size(config) == 256


def test_plan_compiles_what_training_does():
  """The same state in the same places, and batches of the same kind."""
  config = lm.get_config(FAMILY)
  config.data.batch_size, config.mesh.fsdp, config.mesh.model = 8, 2, 2
  language = common.create(config)
  corpus = data.load('documentation', language.tokenizer, max_bytes=20_000)
  task = language_model.make_task(config, language, corpus)
  mesh = language_model.make_mesh(config)
  with jax.set_mesh(mesh):
    key = jax.random.key(config.seed)
    expected = language_model.init_state(language.params, task, key, mesh)
  model = nnx.eval_shape(lambda: common.make_model(config, 256))
  _, state, batch = planning.abstract_step(config, model, mesh)
  kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding.spec), tree)  # noqa: E731
  assert kinds(state) == kinds(expected)
  real = next(task.batches)
  assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
    name: (x.shape, x.dtype) for name, x in real.items()
  }
  assert {x.sharding for x in batch.values()} == {parallel.batch_sharding(mesh)}


def planned(memory, needs, mesh, accumulation):
  """A step that needs so much."""
  config = lm.get_config('hope-340m')
  config.training.accumulation = accumulation
  chip = parallel.Chip('toy', memory=memory)
  plan = parallel.Plan(chip, math.prod(mesh), needs, {}, 0, None, [], {})
  return planning.Planned('toy', config, dict(zip(parallel.AXES, mesh, strict=True)), 1, plan)


@pytest.mark.parametrize(
  ('needs', 'mesh', 'accumulation', 'expected'),
  [
    (1.5, (1, 16, 1), 8, (1, 8, 2, 16)),  # One sequence at a time: two devices for each.
    (3.0, (1, 16, 1), 8, (1, 4, 4, 32)),
    (1.5, (1, 16, 1), 2, (1, 16, 1, 4)),  # Four at a time: two are enough.
    (6.0, (1, 16, 1), 2, (1, 8, 2, 16)),
    (0.9, (1, 16, 1), 8, (1, 8, 2, 16)),  # Refused all the same, in pieces.
  ],
)
def test_advice_divides_what_does_not_fit(needs, mesh, accumulation, expected):
  data_axis, fsdp, model, parts = expected
  assert planning.advice(planned(1.0, needs, mesh, accumulation)) == (
    f'May fit: --config.mesh.data={data_axis} --config.mesh.fsdp={fsdp} '
    f'--config.mesh.model={model} --config.training.accumulation={parts}'
  )


def test_advice_knows_when_devices_are_too_few():
  assert 'take more of them' in planning.advice(planned(1.0, 40.0, (1, 16, 1), 8))


def test_plan_of_a_step_that_does_not_fit_says_why(monkeypatch):
  config = lm.get_config(FAMILY)
  refused = planned(2.0**30, 3 * 2.0**30, (1, 2, 4), 1).plan
  monkeypatch.setattr(parallel, 'plan', lambda *args, **kwargs: refused)
  said = []
  found = planning.run(config, planning.LOCAL, say=said.append)
  text = '\n'.join(said)
  for part in ('mesh data 1, fsdp 2, model 4', 'does not fit: 3.00', '6 N', 'take more of them'):
    assert part in text
  record = planning.record(found)
  assert (record['fits'], record['gib_to_spare'], record['bound']) == (False, -2, None)


def test_study_has_a_row_for_each_case(tmp_path, monkeypatch):
  """In a process of its own, as the main is called."""
  monkeypatch.setattr(records, 'FOLDER', tmp_path)
  (row,) = plans.run(plans.SMOKE).rows
  assert (row['config'], row['topology'], row['fits']) == (FAMILY, 'local', True)
  assert row['flops_per_token'] > 0 and row['gib'] > 0


@pytest.mark.tpu_compiler
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='make test-tpu has libtpu')
def test_step_that_is_too_large_for_a_slice_ends_with_1():
  command = [sys.executable, '-m', 'experiments.plan', '--topology=v5e:2x2']
  command += [f'--config=experiments/configs/lm.py:{FAMILY}', '--config.data.batch_size=65536']
  command += ['--config.data.seq_len=4096', '--config.mesh.data=4']
  result = subprocess.run(command, cwd=provenance.ROOT, capture_output=True, text=True)
  assert result.returncode == 1, result.stderr
  assert 'does not fit: ' in result.stdout and 'of 15.75 GiB' in result.stdout
