"""A scripted cloud: the folder in which the scripts of tpu/ run, and what gcloud answers there."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
SCRIPTS = HERE.parents[1] / 'tpu'
CONFIG = 'experiments/configs/lm.py:hope-smoke'
SETTINGS = {
  'PROJECT_ID': 'project',
  'ZONE': 'zone-a',
  'TPU_NAME': 'nlx-test',
  'WORKDIR': '/mnt/runs/first',
  'SHARED': '1',
  'CREATE_SECONDS': '2',
  'STOP_SECONDS': '1',
  'GRACE_SECONDS': '1',
  'POLL_SECONDS': '0.02',
}
BACKENDS = {
  'tpu': {
    'HOSTS': '2',
    'ACCELERATOR_TYPE': 'v6e-16',
    'RUNTIME_VERSION': 'v2-alpha-tpuv6e',
  },
  'gce': {
    'MACHINE_TYPE': 'ct6e-standard-8t',
    'IMAGE_FAMILY': 'ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e',
    'IMAGE_PROJECT': 'ubuntu-os-accelerator-images',
    'DISK_SIZE': '100GB',
  },
}
# Patterns of calls: the whole, what is in it, and the states of both on the way to ready.
WHOLE = {'tpu': 'queued-resources describe', 'gce': 'instances describe'}
PART = {'tpu': 'tpu-vm describe', 'gce': 'disks describe'}
UP = {
  'tpu': ['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE'],
  'gce': ['PROVISIONING', 'STAGING', 'RUNNING'],
}
PREEMPTED = {'tpu': ['SUSPENDING', 'SUSPENDED'], 'gce': ['STOPPING']}
STATE, START, SETUP = 'host.sh state', 'host.sh start', 'host.sh setup'
DENIED = {'error': 'ERROR: (gcloud.x.describe) PERMISSION_DENIED: not allowed', 'code': 1}


def missing(backend):
  """What gcloud says of a resource that is not there."""
  error = {
    'tpu': 'ERROR: (gcloud.compute.tpus.describe) NOT_FOUND: no such resource',
    'gce': " - The resource 'projects/project/zones/zone-a/instances/nlx-test' was not found",
  }[backend]
  return {'error': error, 'code': 1}


class Cloud:
  """A repository with scripts and a configuration, settings of a back end, a gcloud on PATH."""

  def __init__(self, folder, backend):
    self.folder, self.backend, self.settings = folder, backend, {}
    self.repository, programs = folder / 'repository', folder / 'bin'
    shutil.copytree(SCRIPTS, self.repository / 'tpu', ignore=shutil.ignore_patterns('env'))
    config = self.repository / CONFIG.partition(':')[0]
    config.parent.mkdir(parents=True)
    config.touch()
    programs.mkdir()
    (programs / 'gcloud').write_text(
      f'#!/bin/sh\nexec {sys.executable} -S -E {HERE}/fake_gcloud.py "$@"\n'
    )
    (programs / 'gcloud').chmod(0o755)
    git = {
      f'GIT_{who}_{what}': 'x' for who in ('AUTHOR', 'COMMITTER') for what in ('NAME', 'EMAIL')
    }
    self.environment = {
      'PATH': f'{programs}:{os.environ["PATH"]}',
      'HOME': str(folder),
      'FAKE_GCLOUD': str(folder),
      'GIT_CONFIG_NOSYSTEM': '1',
      **git,
    }
    for command in (['init', '-q'], ['add', '.'], ['commit', '-qm', 'scripts']):
      subprocess.run(['git', *command], cwd=self.repository, env=self.environment, check=True)
    self.set(**SETTINGS, **BACKENDS[backend], BACKEND=backend)
    self.answer_as(up=False)

  def set(self, **settings):
    """Changes the settings file."""
    self.settings |= settings
    lines = [f'{name}={value}\n' for name, value in self.settings.items()]
    (self.repository / 'tpu' / 'env').write_text(''.join(lines))

  @property
  def hosts(self):
    return int(self.settings.get('HOSTS') or 1)

  def hosts_say(self, answer):
    return '\n'.join(f'nlx host-{i} {answer}' for i in range(self.hosts))

  def answer_as(self, up, **answers):
    """Scripts a cloud in which all goes well, with other `answers` to some patterns."""
    whole, part = WHOLE[self.backend], PART[self.backend]
    none = {STATE: [self.hosts_say('none')]}
    there = {whole: UP[self.backend], part: ['READY'], **none}
    gone = {whole: [missing(self.backend)], part: [missing(self.backend)], **none}
    running = {STATE: [self.hosts_say('running')]}
    script = {
      **({**there, whole: UP[self.backend][-1:]} if up else gone),
      ' create ': [{'then': there}],
      ' delete ': [{'then': gone}],
      SETUP: [self.hosts_say('ready')],
      START: [{'out': self.hosts_say('started'), 'then': running}],
    }
    (self.folder / 'answers.json').write_text(json.dumps(script | answers))

  def change(self, **answers):
    """Scripts other answers for some patterns."""
    path = self.folder / 'answers.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | answers))

  def start(self, name, *arguments, **environment):
    return subprocess.Popen(
      [self.repository / 'tpu' / f'{name}.sh', *arguments],
      env={**self.environment, **environment},
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )

  def run(self, name, *arguments, code=0, **environment):
    """Runs a script, which must end with this code, and returns all that it printed."""
    process = self.start(name, *arguments, **environment)
    try:
      out, error = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      process.communicate()
      raise
    assert process.returncode == code, f'{name}: {process.returncode}\n{out}\n{error}'
    return out + error

  def calls(self):
    """The calls of gcloud so far, a list of arguments each."""
    path = self.folder / 'calls.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

  def kinds(self):
    """What was called, without questions: create, scp, setup, start, delete."""
    names = {' create ': 'create', ' delete ': 'delete', ' scp ': 'scp', SETUP: 'setup'}
    names[START] = 'start'
    texts = [' '.join(call) for call in self.calls()]
    return [kind for text in texts for part, kind in names.items() if part in text]
