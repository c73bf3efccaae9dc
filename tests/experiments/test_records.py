"""What studies leave behind: found again, and made in parallel."""

import json
import os
import pathlib
import subprocess
import sys
import time

import psutil
import pytest

from experiments.reporting import provenance
from experiments.studies import records


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  monkeypatch.setattr(records, 'FOLDER', tmp_path)
  monkeypatch.setattr(provenance, 'commit', lambda: 'a' * 12)
  return tmp_path


def made(job):
  """A record that says who made it, in a file beside it; the job 0 cannot be made."""
  number, place = job
  if number == 0:
    raise ZeroDivisionError(f'There is no record of {number}.')
  with open(os.path.join(place, f'{number}-{os.getpid()}'), 'x', encoding='utf-8'):
    return {'square': number**2}


def test_study_goes_on_where_it_was_interrupted(monkeypatch):
  runs = iter(range(10))
  remember = lambda key: records.remember('study', key, lambda: {'run': next(runs)})  # noqa: E731
  assert [remember(key)['run'] for key in ((1, 'a'), (2, 'a'), (1, 'a'))] == [0, 1, 0]
  monkeypatch.setattr(provenance, 'commit', lambda: 'b' * 12)
  assert remember((1, 'a'))['run'] == 2


def test_code_with_changes_finds_nothing(monkeypatch):
  runs = iter(range(10))
  monkeypatch.setattr(provenance, 'commit', lambda: 'a' * 12 + '-dirty')
  assert [records.remember('study', (1,), lambda: next(runs)) for _ in range(2)] == [0, 1]


@pytest.mark.parametrize('processes', [1, 2])
def test_jobs_are_made_once_and_returned_in_order(tmp_path, processes):
  jobs = [(number, str(tmp_path)) for number in (3, 1, 2)]
  first = records.remember_all('study', jobs[:2], made, processes=processes)
  again = records.remember_all('study', jobs, made, processes=processes)
  assert [one['square'] for one in first] == [9, 1]
  assert [one['square'] for one in again] == [9, 1, 4]
  makers = dict(path.name.split('-') for path in tmp_path.glob('*-*'))
  assert sorted(makers) == ['1', '2', '3'] and len(list(tmp_path.glob('*-*'))) == 3
  here = {number for number, maker in makers.items() if int(maker) == os.getpid()}
  assert here == ({'1', '2', '3'} if processes == 1 else set())


def test_job_that_fails_is_raised_and_the_others_are_kept(tmp_path):
  jobs = [(number, str(tmp_path)) for number in (1, 0)]
  with pytest.raises(ZeroDivisionError, match='no record of 0'):
    records.remember_all('study', jobs, made, processes=2)
  (line,) = (tmp_path / 'study.jsonl').read_text(encoding='utf-8').splitlines()
  assert json.loads(line)['record'] == {'square': 1}


def test_jobs_are_of_the_code_that_began(tmp_path, monkeypatch):
  commits = iter(['a' * 12] * 3 + ['b' * 12] * 9)  # It changes while the first job is made.
  monkeypatch.setattr(provenance, 'commit', lambda: next(commits))
  jobs = [(number, str(tmp_path)) for number in (1, 2)]
  assert [one['square'] for one in records.remember_all('study', jobs, made)] == [1, 4]
  lines = (tmp_path / 'study.jsonl').read_text(encoding='utf-8').splitlines()
  assert {json.loads(line)['key'][0] for line in lines} == {'a' * 12}


def test_record_that_a_crash_has_cut_is_made_anew():
  runs = iter(range(10))
  remember = lambda key: records.remember('study', key, lambda: next(runs))  # noqa: E731
  remember((1,)), remember((2,))
  file = records.FOLDER / 'study.jsonl'
  file.write_bytes(file.read_bytes()[:-5])
  assert [remember(key) for key in ((1,), (2,), (2,))] == [0, 2, 2]


def test_no_job_is_begun_once_a_record_cannot_be_kept(tmp_path, monkeypatch):
  def keep(name, text, record):
    raise OSError('The disk is full.')

  monkeypatch.setattr(records, '_keep', keep)
  jobs = [(number, str(tmp_path)) for number in range(1, 9)]
  with pytest.raises(OSError, match='disk is full'):
    records.remember_all('study', jobs, slow, processes=2)
  assert 1 <= len(list(tmp_path.glob('*-*'))) < len(jobs)


def slow(job):
  """A record that takes a while."""
  time.sleep(0.5)
  return made(job)


def waits(job):
  """Says where it is, and works for ever."""
  pathlib.Path(job[0], f'pid-{os.getpid()}').touch()
  time.sleep(600)


def test_killed_study_leaves_no_process_behind(tmp_path):
  code = """if __name__ == '__main__':
  import pathlib, sys
  from experiments.studies import records
  from tests.experiments import test_records
  records.FOLDER = pathlib.Path(sys.argv[1])
  jobs = [(sys.argv[1], i) for i in range(2)]
  records.remember_all('study', jobs, test_records.waits, processes=2)
"""
  script = tmp_path / 'study.py'
  script.write_text(code, encoding='utf-8')
  environment = {**os.environ, 'PYTHONPATH': str(provenance.ROOT)}
  study = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment)
  try:
    workers = until(lambda: [*tmp_path.glob('pid-*')] if running(tmp_path, 2) else [])
  finally:
    study.kill()
    study.wait()
  assert len(workers) == 2
  assert until(lambda: running(tmp_path, 0))


def running(folder, count):
  """Whether so many of the processes that left their numbers in a folder are alive."""
  pids = [int(path.name.removeprefix('pid-')) for path in folder.glob('pid-*')]
  return len(pids) >= count and sum(psutil.pid_exists(pid) for pid in pids) == count


def until(question, seconds=60):
  """The first answer that is true, or the last."""
  deadline = time.monotonic() + seconds
  while not (answer := question()) and time.monotonic() < deadline:
    time.sleep(0.1)
  return answer
