"""The side of the hosts: `tpu/host.sh` with stand-ins for sudo and systemd."""

import os
import shutil
import subprocess
import time

import pytest

from tests.tpu import cloud as clouds

PROGRAMS = {
  'sudo': 'exec "$@"',
  'curl': 'echo "$@" >>"$HOME/called"',
  'uv': 'echo "uv $*" >>"$HOME/called"; [ "$2" = install ] || echo /uv/python3.12',
  'make': 'echo "make $*" >>"$HOME/called"',
  # As a service: apart from its caller, with the options before the command taken off.
  'systemd-run': """
printf '%s\\n' "$@" >"$HOME/service"
while [[ $1 == --* ]]; do shift; done
rm -f "$HOME/pid"
touch "$HOME/active"
{ "$@" & echo $! >"$HOME/pid"; wait $!; rm "$HOME/active"; } >/dev/null 2>&1 </dev/null &
""",
  # The service is active until its process has ended; `stop` tells that process alone.
  'systemctl': """
case $1 in
  show) if [[ -e $HOME/active ]]; then echo active; else echo inactive; fi ;;
  stop)
    until [[ -s $HOME/pid ]]; do sleep 0.02; done
    kill -TERM "$(cat "$HOME/pid")"
    while [[ -e $HOME/active ]]; do sleep 0.02; done ;;
  is-active) [[ -e $HOME/active ]] ;;
esac
""",
}
# Stands for Python: writes its arguments down, prints, and ends as the file `ending` says.
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$@" >"$HOME/arguments"
echo "printed in $PWD"
source "$HOME/ending"
"""
# Saves for a while when it is told to end.
SAVES = """
trap "sleep 0.3; echo saved; exit 0" TERM
touch "$HOME/listens"
while true; do sleep 0.02; done
"""


def wait_until(condition):
  for _ in range(500):
    if condition():
      return
    time.sleep(0.02)
  raise AssertionError('it did not happen')


class Host:
  """A home folder with the scripts in it."""

  def __init__(self, folder):
    self.folder = folder
    shutil.copytree(clouds.SCRIPTS, folder / 'nlx' / 'tpu')
    python = folder / 'nlx' / '.venv' / 'bin' / 'python'
    programs = {
      folder / 'bin' / name: f'#!/usr/bin/env bash\n{text}' for name, text in PROGRAMS.items()
    }
    for path, text in {**programs, python: PYTHON}.items():
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(text)
      path.chmod(0o755)
    self.environment = {'HOME': str(folder), 'PATH': f'{folder}/bin:{os.environ["PATH"]}'}

  def run(self, command, code=0):
    """Runs a command line as ssh would, and returns what the host answers."""
    process = ['bash', '-c', command]
    options = {'cwd': self.folder, 'env': self.environment, 'timeout': 20}
    result = subprocess.run(process, capture_output=True, text=True, **options)
    assert result.returncode == code, result.stderr
    lines = [line.split(maxsplit=2) for line in result.stdout.splitlines()]
    return [line[2] for line in lines if line[0] == 'nlx']

  def call(self, *words, code=0):
    return self.run(f'bash nlx/tpu/host.sh {" ".join(words)}', code)

  def wait_for(self, state):
    wait_until(lambda: self.call('state', 'first') == [state])

  def read(self, name):
    return (self.folder / name).read_text()

  def end_with(self, text):
    (self.folder / 'ending').write_text(text)


@pytest.fixture
def host(tmp_path):
  host = Host(tmp_path)
  yield host
  host.call('stop', 'first')


def test_flags_reach_the_run_as_they_were_given(host, tmp_path_factory):
  cloud = clouds.Cloud(tmp_path_factory.mktemp('cloud'), 'tpu')
  flags = ["--config.data.corpus='corpus/*.txt'", '--config.sample.prompt=a "b" $HOME %d;\n\\ c']
  cloud.run('run', clouds.CONFIG, *flags)
  sent = cloud.calls()[-1]
  assert '--worker=all' in sent
  host.end_with('exit 0')
  command = next(word for word in sent if word.startswith('--command='))
  assert host.run(command.removeprefix('--command=')) == ['started']
  host.wait_for('done')
  base = [f'--config={clouds.CONFIG}', '--workdir=/mnt/runs/first']
  expected = ['-m', 'experiments.train', *base, '--config.processes.count=0', *flags]
  assert host.read('arguments') == ''.join(f'{word}\n' for word in expected)


def test_run_leaves_a_log_and_its_exit_code(host):
  assert host.call('state', 'first') == ['none']
  host.end_with('echo wrong >&2; exit 3')
  host.call('start', 'first', '60', '--a=b')
  host.wait_for('failed 3')
  assert host.read('nlx-runs/first/exit') == '3\n'
  log = host.read('nlx-runs/first/log')
  assert "experiments.train '--a=b'" in log and 'wrong' in log
  assert f'printed in {host.folder}/nlx' in log
  # Started again, it goes on with the same log.
  host.end_with('exit 0')
  host.call('start', 'first', '60')
  host.wait_for('done')
  assert host.read('nlx-runs/first/log').startswith(log)


def test_run_that_is_running_is_not_started_twice(host):
  host.end_with(SAVES)
  assert host.call('start', 'first', '60') == ['started']
  wait_until((host.folder / 'listens').exists)
  assert host.call('state', 'first') == ['running']
  assert host.call('start', 'first', '60', code=1) == ['running']


def test_stopped_run_can_save_and_is_not_done(host):
  host.end_with(SAVES)
  host.call('start', 'first', '60')
  wait_until((host.folder / 'listens').exists)
  assert host.call('stop', 'first') == ['stopped']
  assert host.read('nlx-runs/first/exit') == '143\n'
  assert 'saved' in host.read('nlx-runs/first/log')


def test_run_without_an_exit_code_is_lost(host):
  (host.folder / 'nlx-runs' / 'first').mkdir(parents=True)
  assert host.call('state', 'first') == ['lost']


def test_service_gets_sigterm_first_and_has_time(host):
  host.end_with('exit 0')
  host.call('start', 'first', '77')
  options = {'--unit=nlx-first', '--property=KillMode=mixed', '--property=TimeoutStopSec=77'}
  assert options <= set(host.read('service').splitlines())
  host.wait_for('done')


def test_setup_installs_under_python_3_12(host):
  assert host.call('setup', 'dev,tpu', "'touch mounted'") == ['ready']
  assert (host.folder / 'mounted').exists()
  called = host.read('called').splitlines()
  assert called == [
    'uv python install 3.12',
    'uv python find 3.12',
    'make -C nlx setup PYTHON=/uv/python3.12 EXTRAS=dev,tpu',
  ]


def test_setup_command_unpacks_the_commit(host, tmp_path_factory):
  """What setup.sh sends to the hosts, with an archive like the one that it copies."""
  cloud = clouds.Cloud(tmp_path_factory.mktemp('cloud'), 'gce')
  cloud.run('setup')
  copy, setup = cloud.calls()[-2:]
  assert copy[:2] == ['compute', 'scp'] and copy[3] == 'nlx-test:nlx.tar.gz'
  archive = ['git', 'archive', f'--output={host.folder}/nlx.tar.gz', 'HEAD']
  subprocess.run(archive, cwd=cloud.repository, env=cloud.environment, check=True)
  (host.folder / 'nlx' / 'old.py').touch()
  command = next(word for word in setup if word.startswith('--command='))
  assert host.run(command.removeprefix('--command=')) == ['ready']
  assert not (host.folder / 'nlx' / 'old.py').exists()
  assert (host.folder / 'nlx' / 'tpu' / 'host.sh').exists()
