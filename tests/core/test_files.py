"""Files that are there as a whole or not at all."""

import os
import pathlib
import sys

import fsspec
import pytest

from nlx import core
from tests.bucket import OBJECTS, WRITES


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


def test_text_is_written_as_utf8(tmp_path):
  core.write_text(tmp_path / 'file', 'naïve\n')
  assert (tmp_path / 'file').read_bytes() == 'naïve\n'.encode()


# ----- paths


@pytest.mark.parametrize('path', ['runs/tiny', '/runs', 'a:b', pathlib.Path('runs')])
def test_path_on_the_disk_is_that_of_pathlib(path):
  assert repr(core.as_path(path)) == repr(pathlib.Path(path))


def test_path_in_the_home_of_a_user_is_found_there(monkeypatch, tmp_path):
  """Also where a shell leaves `~` alone, as in --workdir=~/runs."""
  monkeypatch.setenv('HOME', str(tmp_path))
  assert core.as_path('~/runs') == tmp_path / 'runs'


def test_empty_path_is_an_error():
  with pytest.raises(ValueError, match='`path` must name a file or folder, got an empty text'):
    core.as_path('')


@pytest.mark.parametrize('path', ['gs://bucket', 'gs://bucket/runs/tiny'])
def test_path_in_a_bucket_keeps_its_name(bucket, path):
  assert str(core.as_path(path)) == str(core.real_path(path)) == path
  assert str(core.as_path(core.as_path(path)) / 'a.txt') == f'{path}/a.txt'


@pytest.mark.parametrize('path', ['s3://bucket/run', 'file:///run', pathlib.Path('gs://bucket')])
def test_path_elsewhere_is_an_error(path):
  with pytest.raises(ValueError, match=f"must be on the disk or begin with gs://, got '{path}'"):
    core.as_path(path)


def test_bucket_without_the_library_for_it_is_an_error(monkeypatch):
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  with pytest.raises(ImportError, match="'gs://bucket/run' .* needs the extra `gcs`: make setup"):
    core.as_path('gs://bucket/run')


def test_real_path_has_no_links(tmp_path):
  (tmp_path / 'link').symlink_to('file')
  assert core.real_path(tmp_path / 'link') == tmp_path / 'file'


def test_real_path_of_a_bucket_is_not_on_the_disk(bucket):
  assert str(core.real_path(bucket)) == bucket
  with pytest.raises(ValueError, match='must be on the disk or begin with gs://'):
    core.real_path(pathlib.Path('gs://bucket/run'))


def test_bucket_is_asked_every_time(bucket):
  """Others write to it, too."""
  core.as_path(bucket)
  assert not fsspec.filesystem('gcs', finalize_on_close=True).dircache.use_listings_cache


# ----- buckets


def test_file_in_a_bucket_is_replaced_as_a_whole(bucket):
  path = core.as_path(bucket) / 'run' / 'file'
  core.make_folder(path.parent)
  for text in ('old', 'new é'):
    core.write_text(path, text)
    assert path.read_bytes() == text.encode()
  assert WRITES == 2 * ['bucket/run/file']


def test_bucket_that_is_not_there_is_an_error(bucket):
  with pytest.raises(FileNotFoundError, match="'gs://other/file' cannot be written: no such buck"):
    core.write_text(core.as_path('gs://other/file'), 'text')


def test_file_in_a_bucket_is_old_after_an_interrupt(bucket):
  path = core.as_path(bucket) / 'file'
  core.write_text(path, 'old')

  def write(part):
    part.write_text('half of')
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    core.replace_file(path, write)
  assert path.read_bytes() == b'old'


def test_local_copy_has_the_content_and_goes_away(bucket):
  core.write_text(core.as_path(bucket) / 'file', 'text')
  with core.local_copy(core.as_path(bucket) / 'file') as copy:
    assert (copy.name, copy.read_text()) == ('file', 'text')
  assert not copy.exists()


def test_local_copy_of_a_file_on_the_disk_is_that_file(tmp_path):
  with core.local_copy(tmp_path / 'file') as copy:
    assert copy == tmp_path / 'file'


def test_files_in_a_bucket_are_found_in_order(bucket):
  for name in ('b.txt', 'a.txt', 'c.md', 'deep/d.txt', 'e.txt/f'):
    core.write_text(core.as_path(bucket) / name, name)
  assert core.find_files(f'{bucket}/*.txt') == [core.as_path(f'{bucket}/{x}.txt') for x in 'ab']
  assert [str(path) for path in core.find_files(f'{bucket}/**/d*')] == [f'{bucket}/deep/d.txt']


def test_mirror_copies_what_has_grown_to_a_bucket(bucket):
  mirror = core.Mirror(core.as_path(bucket) / 'run')
  (mirror.path / 'deep').mkdir()
  grows = mirror.path / 'deep' / 'grows'
  for path, text in ((grows, 'a'), (mirror.path / 'stays', 'b'), (grows, 'a, longer')):
    path.write_text(text)
    mirror.publish()
  grows.write_text('a, longer still')
  mirror.close()
  assert [f'bucket/run/{x}' for x in ('deep/grows', 'stays', 'deep/grows', 'deep/grows')] == WRITES
  assert OBJECTS['bucket/run/deep/grows'][0] == b'a, longer still'
  assert not mirror.path.exists()


def test_mirror_of_a_folder_on_the_disk_is_that_folder(tmp_path):
  mirror = core.Mirror(tmp_path)
  (mirror.path / 'file').write_text('text')
  mirror.close()
  assert (tmp_path / 'file').read_text() == 'text'
