"""What all scripts of tpu/ share: style, help, settings and the dry run."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.tpu.cloud import (
  BACKENDS,
  CONFIG,
  SCRIPTS,
  SETUP,
  START,
)

NAMES = ('create', 'setup', 'run', 'logs', 'status', 'resume', 'stop', 'delete')
ARGUMENTS = {'run': [CONFIG], 'resume': [CONFIG]}
FILES = sorted(SCRIPTS.glob('*.sh'))


def test_scripts_are_clean():
  program = pathlib.Path(sys.executable).parent / 'shellcheck'
  program = str(program) if program.exists() else shutil.which('shellcheck')
  if program is None:
    pytest.skip('there is no shellcheck')
  result = subprocess.run([program, *FILES], capture_output=True, text=True)
  assert result.returncode == 0, result.stdout


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_scripts_parse_and_are_strict(path):
  assert subprocess.run(['bash', '-n', path]).returncode == 0
  text = path.read_text()
  assert text.startswith('#!/usr/bin/env bash\n# ')
  assert '\nset -euo pipefail\n' in text
  assert os.access(path, os.X_OK) == (path.stem != 'common')


@pytest.mark.parametrize('name', NAMES)
def test_help_needs_no_settings_and_no_gcloud(tpu, name):
  (tpu.repository / 'tpu' / 'env').unlink()
  text = tpu.run(name, '--help')
  assert f'tpu/{name}.sh' in text and 'set -euo' not in text
  assert not tpu.calls()


@pytest.mark.parametrize('name', NAMES)
def test_dry_run_prints_and_calls_nothing(cloud, name):
  text = cloud.run(name, *ARGUMENTS.get(name, []), DRY_RUN='1')
  assert 'gcloud compute' in text
  assert not cloud.calls()


def test_dry_run_that_is_no_dry_run_is_refused(tpu):
  assert '`DRY_RUN` must be 0 or 1' in tpu.run('create', code=1, DRY_RUN='true')
  assert not tpu.calls()


def test_dry_run_of_resume_prints_all_steps(tpu):
  text = tpu.run('resume', CONFIG, DRY_RUN='1').replace('\\ ', ' ')
  steps = (' delete ', ' create ', ' scp ', SETUP, START)
  places = [text.index(step) for step in steps]
  assert places == sorted(places)


@pytest.mark.parametrize('name', NAMES)
def test_settings_are_checked_by_every_script_before_any_call(tpu, name):
  tpu.set(ZONE='')
  assert '`ZONE` is missing' in tpu.run(name, *ARGUMENTS.get(name, []), code=1)
  (tpu.repository / 'tpu' / 'env').unlink()
  assert 'copy tpu/env.example' in tpu.run(name, *ARGUMENTS.get(name, []), code=1)
  assert not tpu.calls()


def test_missing_settings_are_named(cloud):
  needed = ['PROJECT_ID', 'ZONE', 'TPU_NAME', 'WORKDIR', 'BACKEND', *BACKENDS[cloud.backend]]
  for setting in set(needed) - {'HOSTS'}:
    kept = cloud.settings[setting]
    cloud.set(**{setting: ''})
    assert f'`{setting}` is missing' in cloud.run('create', code=1)
    cloud.set(**{setting: kept})
  assert not cloud.calls()


@pytest.mark.parametrize(
  ('setting', 'value', 'message'),
  [
    ('BACKEND', 'gke', 'must be tpu or gce'),
    ('SHARED', '0', 'as 2 hosts share it'),
    ('WORKDIR', 'runs/first', 'must be an absolute path or gs://BUCKET/FOLDER'),
    ('WORKDIR', 'gs://bucket', 'must be an absolute path or gs://BUCKET/FOLDER'),
    ('WORKDIR', 'gs://bucket/', 'must be an absolute path or gs://BUCKET/FOLDER'),
    ('WORKDIR', '/mnt/my run', 'must end with the name of the run'),
    ('TPU_NAME', 'My_TPU', 'must be small letters'),
    ('HOSTS', 'two', 'must be a whole number'),
    ('POLL_SECONDS', 'soon', 'must be a number of seconds'),
    ('HOST', '2', 'is no setting'),
    ('SPOT', 'yes', 'must be 0 or 1'),
  ],
)
def test_wrong_settings_are_refused_before_any_call(tpu, setting, value, message):
  tpu.set(**{setting: value})
  assert message in tpu.run('run', CONFIG, code=1)
  assert not tpu.calls()


def test_folder_in_a_bucket_is_shared(tpu):
  tpu.set(WORKDIR='gs://bucket/runs/first', SHARED='')
  tpu.answer_as(up=True)
  tpu.run('run', CONFIG)
  assert 'host.sh start first' in ' '.join(tpu.calls()[-1])
  assert '--workdir=gs://bucket/runs/first' in ' '.join(tpu.calls()[-1])
  assert 'gcloud' in tpu.run('resume', CONFIG, DRY_RUN='1')


def test_settings_of_the_environment_come_first(tpu):
  tpu.answer_as(up=True)
  tpu.run('status', WORKDIR='/mnt/runs/second')
  assert 'state second' in ' '.join(tpu.calls()[-1])


def test_an_example_has_every_setting_that_is_needed(tpu):
  text = (SCRIPTS / 'env.example').read_text()
  for backend in BACKENDS.values():
    assert all(f'\n{name}=' in text for name in ('PROJECT_ID', 'ZONE', 'WORKDIR', *backend))
  (tpu.repository / 'tpu' / 'env').write_text(text)
  assert '`PROJECT_ID` is missing' in tpu.run('status', code=1)
