import pytest

from nlx import core, data


def write(folder, name, content):
  path = folder / name
  path.write_bytes(content)
  return str(path)


def is_text(content):
  try:
    return bool(content.decode('utf-8'))
  except UnicodeDecodeError:
    return False


@pytest.mark.parametrize('name', sorted(data.CORPORA))
def test_embedded_corpus_is_a_large_text(name):
  assert len(data.load_text(name).decode('utf-8')) > 300_000


def test_embedded_corpus_is_the_same_every_time():
  assert data.load_text('documentation') == data.load_text('documentation')


def test_python_source_names_no_build_settings():
  assert b'build_time_vars' not in data.load_text('python_source', max_bytes=1_000_000)


def test_max_bytes_keeps_the_beginning():
  text = data.load_text('documentation')
  assert data.load_text('documentation', max_bytes=1000) == text[:1000]


def test_max_bytes_cuts_between_characters(tmp_path):
  path = write(tmp_path, 'a.txt', 'aé'.encode() * 4)
  assert data.load_text(path, max_bytes=2).decode('utf-8') == 'aé'


def test_pattern_joins_files_in_order(tmp_path):
  write(tmp_path, 'b.txt', b'second')
  write(tmp_path, 'a.txt', b'first')
  assert data.load_text(str(tmp_path / '*.txt')) == b'first\nsecond'


def test_pattern_descends_into_folders(tmp_path):
  (tmp_path / 'deep').mkdir()
  write(tmp_path / 'deep', 'a.txt', b'found')
  assert data.load_text(str(tmp_path / '**' / '*.txt')) == b'found'


def test_text_in_a_bucket_is_read_as_on_the_disk(bucket):
  for name in ('b.txt', 'a.txt', 'deep/c.txt'):
    core.write_text(core.as_path(bucket) / name, name)
  assert data.load_text(f'{bucket}/a.txt') == b'a.txt'
  assert data.load_text(f'{bucket}/*.txt') == b'a.txt\nb.txt'
  assert data.load_text(f'{bucket}/**/*.txt') == b'a.txt\nb.txt\ndeep/c.txt'


@pytest.mark.parametrize('name', ['none.txt', 'none', '*.txt'])
def test_missing_text_in_a_bucket_is_an_error(bucket, name):
  with pytest.raises(FileNotFoundError, match='`corpus` .*gs://bucket/.* (does not exist|no file)'):
    data.load_text(f'{bucket}/{name}')


def test_split_is_nine_to_one_in_order():
  text = bytes(range(65, 115)) * 2
  assert data.split_text(text) == (text[:90], text[90:])


def test_split_keeps_characters_whole():
  text = ('a' + 13 * 'é').encode()
  assert not is_text(text[: len(text) * 9 // 10])
  assert all(map(is_text, data.split_text(text)))


def test_missing_file_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match="`corpus` file '.*none.txt' does not exist"):
    data.load_text(str(tmp_path / 'none.txt'))


def test_unmatched_pattern_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"`corpus` pattern '.*\*.txt' matches no file"):
    data.load_text(str(tmp_path / '*.txt'))


def test_unknown_name_is_an_error():
  with pytest.raises(ValueError, match=r"`corpus` 'documentaton' is unknown.*'documentation'"):
    data.load_text('documentaton')


def test_folder_is_an_error(tmp_path):
  with pytest.raises(ValueError, match='`corpus` must be a file.*is a folder'):
    data.load_text(str(tmp_path))


@pytest.mark.parametrize('content', [b'', b' \n\n'])
def test_empty_corpus_is_an_error(tmp_path, content):
  with pytest.raises(ValueError, match='`corpus` must not be empty'):
    data.load_text(write(tmp_path, 'a.txt', content))


def test_binary_corpus_is_an_error(tmp_path):
  with pytest.raises(ValueError, match='`corpus` must be text.*byte 2 is NUL'):
    data.load_text(write(tmp_path, 'a.txt', b'ab\0c'))


def test_corpus_of_another_encoding_is_an_error(tmp_path):
  with pytest.raises(ValueError, match='`corpus` must be UTF-8.*not at byte 3'):
    data.load_text(write(tmp_path, 'a.txt', 'café'.encode('latin-1')))


def test_max_bytes_below_one_is_an_error():
  with pytest.raises(ValueError, match='`max_bytes`.*got 0'):
    data.load_text('documentation', max_bytes=0)
