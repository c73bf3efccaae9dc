import pytest

import nlx
from nlx.levels import LevelInfo, describe


def info(name='memory', period=16, unit='token', transfer='initial state'):
  return LevelInfo(name, period, unit, 'L2', 'DGD', 4096, transfer)


class Model:
  """What a model looks like to `describe`."""

  def level_infos(self):
    return [info('slow', 1, 'step'), info('fast', 64)]


def rows(system):
  """The cells of the table, without its header."""
  lines = describe(system).splitlines()
  assert set(lines[1]) == {'-', ' '}
  return [line.split() for line in lines[2:]]


def test_describe_has_all_columns_in_order():
  header = describe([info()]).splitlines()[0]
  columns = 'level name period frequency objective rule parameters knowledge transfer'
  assert header.split() == columns.split()


def test_describe_writes_what_is_known_of_a_level():
  (row,) = rows([info()])
  assert ' '.join(row) == '1 memory 16 tokens 1/16 per token L2 DGD 4,096 initial state'


def test_describe_sorts_by_frequency():
  system = [info('d', None, 'step'), info('b', 1024), info('a', 16), info('c', 1, 'step')]
  assert [row[1] for row in rows(system)] == ['a', 'b', 'c', 'd']


def test_describe_takes_tokens_as_faster_than_steps():
  assert [row[1] for row in rows([info('step', 1, 'step'), info('token', 10**6)])] == [
    'token',
    'step',
  ]


def test_describe_gives_equally_fast_levels_one_number():
  system = [info('a', 16), info('b', 64), info('c', 16), info('d', 64, 'step')]
  assert [(row[0], row[1]) for row in rows(system)] == [
    ('1', 'a'),
    ('1', 'c'),
    ('2', 'b'),
    ('3', 'd'),
  ]


def test_describe_says_that_slow_weights_are_never_updated_inside_a_sequence():
  (row,) = rows([info('weights', None, 'step')])
  assert row[2:6] == ['none', '0', 'per', 'token']


def test_describe_says_once_per_tick():
  (row,) = rows([info(period=1)])
  assert row[2:7] == ['1', 'token', '1', 'per', 'token']


def test_describe_aligns_its_columns():
  lines = describe([info('a', 16), info('a long name', 1024)]).splitlines()
  assert len({line.index(' tokens') - len(period) for line, period in zip(
    lines[2:], ('16', '1,024'), strict=True)}) == 1  # fmt: skip


def test_describe_asks_a_model_for_its_levels():
  assert [row[1] for row in rows(Model())] == ['fast', 'slow']


def test_describe_takes_several_kinds_of_transfer():
  assert rows([info(transfer='initial state, generation')])[0][-2:] == ['state,', 'generation']


def test_describe_is_at_the_front_door():
  assert nlx.describe is describe


@pytest.mark.parametrize('system', [3, None, 'text', info(), [1], {'a': info()}])
def test_describe_names_what_is_no_system(system):
  message = rf'`system` must be .*LevelInfo.*`level_infos\(\)`.* got {type(system).__name__}\.'
  with pytest.raises(TypeError, match=message):
    describe(system)


def test_describe_names_a_system_without_levels():
  with pytest.raises(ValueError, match='at least 1 level, got none'):
    describe([])


@pytest.mark.parametrize(
  'level, message',
  [
    (info(unit='second'), '`unit of level memory` must be one of .* got .second.'),
    (info(transfer='magic'), '`transfer of level memory` must be one of .* got .magic.'),
    (info(period=0), '`period of level memory` must be .* at least 1 token, got 0'),
  ],
)
def test_describe_names_a_wrong_field(level, message):
  with pytest.raises(ValueError, match=message):
    describe([level])
