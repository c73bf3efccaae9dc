import pathlib

import pytest
import tokenizers

from nlx import core, data


def write_tokenizer(folder, three=2, prepare=lambda inner: None):
  """A word-level tokenizer of four ids."""
  inner = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({'one': 0, 'two': 1, 'three': three, '?': 3}, unk_token='?')
  )
  inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  prepare(inner)
  path = str(folder / 'tokenizer.json')
  inner.save(path)
  return path


@pytest.mark.parametrize('text', ['', 'plain', 'naïve 数 🙂\n'])
def test_byte_tokenizer_round_trips(text):
  tokenizer = data.tokenizer('bytes')
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_byte_tokenizer_replaces_half_a_character():
  assert data.byte_tokenizer().decode([0xC3]) == '\ufffd'


def test_json_tokenizer_gives_the_ids_of_its_file(tmp_path):
  tokenizer = data.tokenizer(write_tokenizer(tmp_path))
  assert tokenizer.encode('three one two').tolist() == [2, 0, 1]


def test_json_tokenizer_decodes(tmp_path):
  assert data.tokenizer(write_tokenizer(tmp_path)).decode([1, 2]) == 'two three'


def test_json_tokenizer_knows_its_size(tmp_path):
  assert data.tokenizer(write_tokenizer(tmp_path)).vocab_size == 4


def test_json_tokenizer_has_room_for_its_largest_id(tmp_path):
  tokenizer = data.tokenizer(write_tokenizer(tmp_path, three=9))
  assert tokenizer.vocab_size == 10
  assert tokenizer.encode('three').tolist() == [9]


def test_json_tokenizer_cuts_and_fills_no_text(tmp_path):
  def prepare(inner):
    inner.enable_truncation(2)
    inner.enable_padding(length=5)

  tokenizer = data.tokenizer(write_tokenizer(tmp_path, prepare=prepare))
  assert tokenizer.encode('one two three').tolist() == [0, 1, 2]
  assert tokenizer.encode('one').tolist() == [0]


def test_bytes_per_token_counts_the_bytes_of_the_text(tmp_path):
  text = tmp_path / 'a.txt'
  text.write_text('one two three ' * 50)
  corpus = data.load(str(text), data.tokenizer(write_tokenizer(tmp_path)))
  assert corpus.train.bytes_per_token == pytest.approx(14 / 3, rel=0.01)


def test_json_tokenizer_is_read_from_a_bucket(tmp_path, bucket):
  text = pathlib.Path(write_tokenizer(tmp_path)).read_text()
  core.write_text(core.as_path(bucket) / 'tokenizer.json', text)
  assert data.tokenizer(f'{bucket}/tokenizer.json').encode('three one').tolist() == [2, 0]


def test_missing_tokenizer_file_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match='none.json.* does not exist'):
    data.tokenizer(str(tmp_path / 'none.json'))


def test_file_that_is_no_tokenizer_is_an_error(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text('{}')
  with pytest.raises(ValueError, match='does not describe a tokenizer'):
    data.tokenizer(str(path))


def test_unknown_tokenizer_is_an_error():
  with pytest.raises(ValueError, match="`tokenizer` must be 'bytes' or a .json file, got 'byte'"):
    data.tokenizer('byte')
