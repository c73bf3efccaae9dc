"""The notebooks: they run, are paired with their sources, and leave a JAX that will do alone."""

import pathlib
import subprocess
import sys
import types

import jax
import jupytext
import matplotlib
import matplotlib.pyplot as plt
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[2] / 'notebooks'
SOURCES = sorted(FOLDER.glob('*.py'))

every_notebook = pytest.mark.parametrize('source', SOURCES, ids=lambda path: path.stem)


def code_cells(source):
  return [cell.source for cell in jupytext.read(source).cells if cell.cell_type == 'code']


@pytest.fixture
def in_empty_folder(monkeypatch, tmp_path):
  """Pictures are made, not shown; what is left behind is seen."""
  monkeypatch.chdir(tmp_path)
  matplotlib.use('Agg')
  yield tmp_path
  plt.close('all')


@every_notebook
def test_notebook_runs_and_leaves_nothing_behind(source, in_empty_folder):
  code = source.read_text(encoding='utf-8')
  exec(compile(code, str(source), 'exec'), {'__name__': '__main__'})
  assert not list(in_empty_folder.iterdir())


@every_notebook
def test_notebook_ends_with_assertions(source):
  assert 'assert ' in code_cells(source)[-1]


@every_notebook
def test_notebook_is_paired_with_its_source_and_holds_no_output(source):
  paired, made = nbformat.read(source.with_suffix('.ipynb'), as_version=4), jupytext.read(source)
  cells = [(cell.cell_type, cell.source) for cell in paired.cells]
  assert cells == [(cell.cell_type, cell.source) for cell in made.cells], 'Run `make notebooks`.'
  code = [cell for cell in paired.cells if cell.cell_type == 'code']
  assert not any(cell.outputs or cell.execution_count for cell in code)


def test_every_notebook_has_a_source():
  assert {path.stem for path in FOLDER.glob('*.ipynb')} == {path.stem for path in SOURCES}


# ----- on Colab


def test_notebooks_install_nlx_in_the_same_way():
  assert len({code_cells(source)[0] for source in SOURCES}) == 1


def installed(monkeypatch, modules, returncode=0):
  """The commands that the first cell runs, where all of them end with a code."""
  commands = []

  def run(command, check):
    commands.append(command)
    return subprocess.CompletedProcess(command, returncode)

  monkeypatch.setattr(subprocess, 'run', run)
  for name in modules:
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
  exec(code_cells(SOURCES[0])[0], {})
  return commands


PIP = [sys.executable, '-m', 'pip', 'install', '--quiet', '/content/nlx']
COLAB = ['google', 'google.colab']


def test_install_cell_does_nothing_outside_of_colab(monkeypatch):
  assert installed(monkeypatch, []) == []


def test_install_cell_on_colab_asks_for_the_jax_that_is_there(monkeypatch):
  assert installed(monkeypatch, COLAB) == [[*PIP, f'jax=={jax.__version__}']]


def test_install_cell_on_colab_lets_pip_replace_a_jax_that_is_too_old(monkeypatch):
  assert installed(monkeypatch, COLAB, returncode=1) == [[*PIP, f'jax=={jax.__version__}'], PIP]
