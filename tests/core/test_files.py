"""Files that are there as a whole or not at all."""

import os

import pytest

from nlx import core


def fill(text):
  return lambda part: part.write_text(text)


def test_file_is_replaced_as_a_whole(tmp_path):
  path = tmp_path / 'file'
  for text in ('old', 'new'):
    core.replace_file(path, fill(text))
    assert path.read_text() == text
  assert list(tmp_path.iterdir()) == [path]


def test_file_is_old_while_it_is_written(tmp_path):
  path = tmp_path / 'file'
  path.write_text('old')

  def write(part):
    part.write_text('half of')
    assert path.read_text() == 'old'

  core.replace_file(path, write)
  assert path.read_text() == 'half of'


def test_file_that_a_killed_process_left_is_replaced(tmp_path):
  (tmp_path / 'file.part').write_text('half of a file')
  core.replace_file(tmp_path / 'file', fill('new'))
  assert [path.name for path in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize('calls', [1, 2])
def test_file_is_old_or_new_after_an_interrupt(tmp_path, monkeypatch, calls):
  """Of the first flush, that of the file, or of the second, that of its name."""
  path, made, fsync = tmp_path / 'file', [], os.fsync
  path.write_text('old')

  def flush(descriptor):
    made.append(descriptor)
    if len(made) == calls:
      raise KeyboardInterrupt
    fsync(descriptor)

  monkeypatch.setattr('os.fsync', flush)
  with pytest.raises(KeyboardInterrupt):
    core.replace_file(path, fill('new'))
  assert path.read_text() == ('old' if calls == 1 else 'new')
  assert list(tmp_path.iterdir()) == [path]


def test_file_can_be_read_by_whom_any_new_file_can(tmp_path):
  (tmp_path / 'plain').touch()

  def write(part):
    part.write_text('new')
    part.chmod(0o600)

  core.replace_file(tmp_path / 'file', write)
  assert (tmp_path / 'file').stat().st_mode == (tmp_path / 'plain').stat().st_mode
