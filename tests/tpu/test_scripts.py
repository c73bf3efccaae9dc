"""The scripts of tpu/ against a scripted gcloud, on both back ends."""

import os
import signal

import pytest

from tests.tpu.cloud import (
  CONFIG,
  DENIED,
  PART,
  PREEMPTED,
  SETUP,
  START,
  STATE,
  UP,
  WHOLE,
  missing,
)


def test_a_run_from_create_through_a_preemption_to_delete(cloud):
  text = cloud.run('create')
  assert all(f'nlx-test: {state}\n' in text for state in UP[cloud.backend])
  cloud.run('setup')
  cloud.run('run', CONFIG, '--config.training.steps=2')
  assert cloud.kinds() == ['create', 'scp', 'setup', 'start']
  assert 'running' in cloud.run('status')

  states = [cloud.hosts_say('running'), cloud.hosts_say('done')]
  cloud.change(
    **{
      WHOLE[cloud.backend]: [*PREEMPTED[cloud.backend], missing(cloud.backend)],
      START: [{'out': cloud.hosts_say('started'), 'then': {STATE: states}}],
    }
  )
  assert 'is done' in cloud.run('resume', CONFIG, '--config.training.steps=2')
  assert [kind for kind in cloud.kinds()[4:] if kind != 'delete'] == cloud.kinds()[:4]
  starts = [call for call in cloud.calls() if START in ' '.join(call)]
  assert len(starts) == 2 and starts[0] == starts[1]

  assert 'Nothing named nlx-test is left' in cloud.run('delete')
  assert cloud.kinds()[-1] == 'delete'


def test_create_calls_what_the_documentation_says(cloud):
  cloud.run('create')
  call = next(call for call in cloud.calls() if 'create' in call)
  words = {
    'tpu': 'compute tpus queued-resources create nlx-test --node-id=nlx-test '
    '--accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e --spot',
    'gce': 'compute instances create nlx-test --machine-type=ct6e-standard-8t '
    '--image-family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e '
    '--image-project=ubuntu-os-accelerator-images --boot-disk-size=100GB --scopes=cloud-platform '
    '--maintenance-policy=TERMINATE --provisioning-model=SPOT '
    '--instance-termination-action=DELETE',
  }[cloud.backend]
  assert call == [*words.split(), '--project=project', '--zone=zone-a', '--quiet']


def test_without_spot_and_with_more_flags(cloud):
  cloud.run('create', SPOT='0', CREATE_FLAGS='--network=n --labels=a=b')
  call = next(call for call in cloud.calls() if 'create' in call)
  assert not {'--spot', '--provisioning-model=SPOT'} & set(call)
  assert {'--network=n', '--labels=a=b'} <= set(call)


def test_create_says_what_is_left_behind(cloud):
  states = UP[cloud.backend]
  cloud.change(**{' create ': [{'then': {WHOLE[cloud.backend]: states[:1]}}]})
  text = cloud.run('create', code=1, CREATE_SECONDS='1')
  assert 'not ready after 1 seconds' in text
  assert f'Left behind: nlx-test is {states[0]}' in text and 'delete.sh' in text
  # Called again, it waits on and creates nothing.
  cloud.change(**{WHOLE[cloud.backend]: states[-1:], PART[cloud.backend]: ['READY']})
  cloud.run('create')
  assert cloud.kinds() == ['create']


def test_create_that_fails_says_that_nothing_is_left(cloud):
  cloud.change(**{' create ': [{'error': 'no quota', 'code': 1}]})
  text = cloud.run('create', code=1)
  assert 'no quota' in text and 'Nothing named nlx-test is left behind' in text


@pytest.fixture
def heeds_interrupts():
  """Where tests run in the background SIGINT is ignored, and what is ignored bash cannot trap."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures('heeds_interrupts')
def test_interrupted_create_says_what_is_left_behind(cloud):
  states = UP[cloud.backend]
  cloud.change(**{' create ': [{'then': {WHOLE[cloud.backend]: states[:1]}}]})
  process = cloud.start('create', CREATE_SECONDS='60', POLL_SECONDS='20')
  while states[0] not in process.stdout.readline():
    assert process.poll() is None
  os.killpg(process.pid, signal.SIGINT)
  _, error = process.communicate(timeout=20)
  assert process.returncode == 130
  assert f'Left behind: nlx-test is {states[0]}' in error


def test_create_finds_more_hosts_than_the_settings(tpu):
  tpu.set(HOSTS='1')
  tpu.change(**{' create ': [{'then': {WHOLE['tpu']: ['ACTIVE'], PART['tpu']: ['READY']}}]})
  tpu.change(**{STATE: ['nlx host-0 none\nnlx host-1 none']})
  assert '`HOSTS` is 1, but 2 hosts answer' in tpu.run('create', code=1)


def test_active_resource_with_a_preempted_node_is_not_ready(tpu):
  tpu.answer_as(up=True)
  tpu.change(**{PART['tpu']: ['PREEMPTED']})
  assert ': PREEMPTED' in tpu.run('status')


def test_setup_refuses_uncommitted_changes_before_any_call(cloud):
  (cloud.repository / 'new.py').touch()
  assert 'uncommitted changes' in cloud.run('setup', code=1)
  assert 'uncommitted changes' in cloud.run('resume', CONFIG, code=1)
  assert not cloud.calls()
  cloud.run('setup', ALLOW_DIRTY='1')
  assert cloud.kinds() == ['scp', 'setup']


def test_setup_fails_unless_every_host_is_ready(tpu):
  """Although gcloud itself succeeds."""
  tpu.change(**{SETUP: ['nlx host-0 ready']})
  assert '1 of 2 hosts say `ready`' in tpu.run('setup', code=1)


def test_run_refuses_a_run_that_is_running(cloud):
  cloud.answer_as(up=True, **{STATE: [cloud.hosts_say('running')]})
  assert 'is running already' in cloud.run('run', CONFIG, code=1)
  cloud.change(**{STATE: ['']})
  assert 'not all' in cloud.run('run', CONFIG, code=1)
  assert 'start' not in cloud.kinds()


@pytest.mark.parametrize('name', ['run', 'resume'])
def test_run_refuses_wrong_arguments_before_any_call(tpu, name):
  for flag in ('--workdir=elsewhere', '-workdir=elsewhere', '--workdir'):
    assert '`WORKDIR`' in tpu.run(name, CONFIG, flag, 'elsewhere', code=1)
  assert 'CONFIG is missing' in tpu.run(name, code=1)
  assert 'CONFIG is missing' in tpu.run(name, '--config=x', code=1)
  assert 'has no file experiments/lm.py;' in tpu.run(name, 'experiments/lm.py:hope-1b', code=1)
  assert not tpu.calls()


def test_logs_of_a_host(tpu):
  tpu.change(**{'host.sh log': ['text of the log']})
  assert 'text of the log' in tpu.run('logs', '1', '-f')
  call = tpu.calls()[-1]
  assert '--worker=1' in call and '--command=bash nlx/tpu/host.sh log first -f ' in call
  assert 'smaller than `HOSTS` 2' in tpu.run('logs', '2', code=1)


def test_status_shows_every_host(tpu):
  tpu.answer_as(up=True, **{STATE: ['nlx host-0 failed 3\nnlx host-1 running']})
  text = tpu.run('status')
  assert ': ACTIVE' in text
  assert 'host-0: first failed 3' in text and 'host-1: first running' in text


def test_stop_waits_for_every_host(cloud):
  cloud.answer_as(up=True, **{STATE: [cloud.hosts_say('stopped')]})
  assert 'not running: stopped' in cloud.run('stop')
  cloud.change(**{STATE: [cloud.hosts_say('running')]})
  assert 'still running' in cloud.run('stop', code=1)


@pytest.mark.parametrize('kept', [WHOLE, PART], ids=['whole', 'part'])
def test_delete_fails_if_something_is_left(cloud, kept):
  pattern = kept[cloud.backend]
  cloud.answer_as(up=True)
  gone = {
    PART[cloud.backend]: [missing(cloud.backend)],
    WHOLE[cloud.backend]: [missing(cloud.backend)],
  }
  cloud.change(**{' delete ': [{'then': gone | {pattern: ['READY']}}]})
  text = cloud.run('delete', code=1)
  assert 'not all is deleted' in text and 'nlx-test is READY' in text


def test_delete_does_not_take_a_refusal_for_absence(cloud):
  refusals = {WHOLE[cloud.backend]: [DENIED], PART[cloud.backend]: [DENIED], ' delete ': [DENIED]}
  cloud.change(**refusals)
  text = cloud.run('delete', code=1)
  assert 'nlx-test is UNKNOWN' in text and 'PERMISSION_DENIED' in text
