"""`tpu/resume.sh` brings a run back whose TPU went, and no other."""

import pytest

from tests.tpu.cloud import CONFIG, DENIED, PART, STATE, WHOLE


@pytest.mark.parametrize('state', ['failed 1', 'lost', 'stopped'])
def test_resume_does_not_start_again_what_ended_by_itself(cloud, state):
  cloud.answer_as(up=True, **{STATE: [cloud.hosts_say(state)]})
  text = cloud.run('resume', CONFIG, code=1)
  assert f'the run first is {state.split()[0]}, and nlx-test is up' in text
  assert not cloud.kinds()


def test_resume_does_not_watch_hosts_that_do_not_answer(tpu):
  tpu.answer_as(up=True, **{STATE: ['nlx host-0 running']})
  text = tpu.run('resume', CONFIG, code=1)
  assert 'not all 2 hosts answer, and nlx-test is up. It costs until tpu/delete.sh' in text
  assert not tpu.kinds()


def test_resume_waits_for_a_host_that_does_not_answer_for_a_while(tpu):
  answers = ['nlx host-0 running', tpu.hosts_say('running'), tpu.hosts_say('done')]
  tpu.answer_as(up=True, **{STATE: answers})
  assert 'is done' in tpu.run('resume', CONFIG, GRACE_SECONDS='60')


def test_resume_does_not_add_up_the_time_of_two_silences(tpu):
  """The TPU was repaired in between, for longer than the watch waits for a host."""
  silent = 'nlx host-0 running'
  tpu.answer_as(up=True, **{STATE: [silent, silent, tpu.hosts_say('done')]})
  tpu.change(**{PART['tpu']: ['READY', *60 * ['REPAIRING'], 'READY']})
  assert 'is done' in tpu.run('resume', CONFIG)


def test_resume_brings_back_a_run_that_failed_as_its_tpu_went(tpu):
  """The other hosts of a preempted one fail first."""
  tpu.answer_as(up=True, **{STATE: ['nlx host-0 failed 1\nnlx host-1 stopped']})
  tpu.change(**{WHOLE['tpu']: ['ACTIVE', 'ACTIVE', 'SUSPENDED']})
  done = {'out': tpu.hosts_say('started'), 'then': {STATE: [tpu.hosts_say('done')]}}
  tpu.change(**{'host.sh start': [done]})
  assert 'is done' in tpu.run('resume', CONFIG, GRACE_SECONDS='60')
  assert tpu.kinds() == ['delete', 'create', 'scp', 'setup', 'start']


def test_resume_tries_again_until_there_is_a_tpu(gce):
  there = {WHOLE['gce']: ['RUNNING'], STATE: [gce.hosts_say('done')]}
  gce.change(**{' create ': [{'error': 'no capacity', 'code': 1}, {'then': there}]})
  text = gce.run('resume', CONFIG, CREATE_SECONDS='60')
  assert 'no capacity' in text and 'is done' in text


def test_resume_gives_up_if_there_is_no_tpu(cloud):
  cloud.change(**{' create ': [{'error': 'no capacity', 'code': 1}]})
  assert 'no TPU after 1 seconds' in cloud.run('resume', CONFIG, code=1, CREATE_SECONDS='1')


def test_resume_does_not_delete_what_it_cannot_see(tpu):
  tpu.change(**{WHOLE['tpu']: [DENIED, DENIED, 'ACTIVE'], PART['tpu']: ['READY']})
  tpu.change(**{STATE: [tpu.hosts_say('done')]})
  assert 'is done' in tpu.run('resume', CONFIG)
  assert not tpu.kinds()


def test_resume_refuses_a_folder_that_goes_with_the_vm(gce):
  gce.set(SHARED='0')
  assert 'goes with the VM' in gce.run('resume', CONFIG, code=1)
  assert not gce.calls()
