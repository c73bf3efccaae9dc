"""`tpu/plan.sh` with stand-ins for make and Python."""

import os
import shutil
import subprocess

import pytest

from tests.tpu.cloud import CONFIG, SCRIPTS

STANDS_IN = '#!/usr/bin/env bash\nprintf \'%s\\n\' "$(basename "$0")" "$@" >>"$CALLS"\n'


@pytest.fixture
def plan(tmp_path):
  """Runs the script; returns its exit code, what it printed, and the calls that it made."""
  for path, end in (('bin/make', ''), ('venv/bin/python', 'exit "$CODE"\n')):
    program = tmp_path / path
    program.parent.mkdir(parents=True)
    program.write_text(STANDS_IN + end)
    program.chmod(0o755)
  (tmp_path / 'tpu').mkdir()
  shutil.copy(SCRIPTS / 'plan.sh', tmp_path / 'tpu')
  calls = tmp_path / 'calls'

  def run(*arguments, **environment):
    result = subprocess.run(
      [tmp_path / 'tpu' / 'plan.sh', *arguments],
      env={
        'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}',
        'CALLS': str(calls),
        'VENV': 'venv',
        'CODE': '0',
        **environment,
      },
      capture_output=True,
      text=True,
    )
    text = calls.read_text().splitlines() if calls.exists() else []
    return result.returncode, result.stdout + result.stderr, text

  return run


SETUP = ['make', '--no-print-directory', 'setup', 'VENV=venv', 'EXTRAS=dev,tpu']
COMPILES = ['python', '-m', 'experiments.plan', f'--config={CONFIG}', '--topology=v5e:4x4']


def test_plan_sets_up_and_passes_all_flags_on(plan):
  flags = ('--config.mesh.model=2', '--config.name=two words')
  assert plan(CONFIG, 'v5e:4x4', *flags) == (0, '', [*SETUP, *COMPILES, *flags])


def test_plan_of_the_devices_here_needs_no_compiler_of_tpus(plan):
  _, _, calls = plan(CONFIG, 'local')
  assert calls[:5] == [*SETUP[:4], 'EXTRAS=dev'] and '--topology=local' in calls


def test_plan_ends_as_the_compilation_does(plan):
  assert plan(CONFIG, 'v5e:4x4', CODE='1')[0] == 1


def test_plan_shows_help_and_calls_nothing(plan):
  code, text, calls = plan('--help')
  assert (code, calls) == (0, [])
  assert 'tpu/plan.sh CONFIG TOPOLOGY [flags]' in text and 'set -euo' not in text


def test_plan_prints_its_calls_in_a_dry_run(plan):
  code, text, calls = plan(CONFIG, 'v5e:4x4', DRY_RUN='1')
  assert (code, calls) == (0, [])
  assert 'make --no-print-directory setup' in text and '--topology=v5e:4x4' in text


@pytest.mark.parametrize('arguments', [(), (CONFIG,), (CONFIG, '--config.seed=1')])
def test_plan_without_config_or_topology_is_an_error(plan, arguments):
  code, text, calls = plan(*arguments)
  assert (code, calls) == (2, [])
  assert 'CONFIG or TOPOLOGY is missing' in text
