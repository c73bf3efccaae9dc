"""Configurations of a continuum memory system: what they derive, and what they refuse."""

import pytest

from nlx import cms


def test_one_width_is_that_of_every_block():
  assert cms.CMSConfig(8, 12, (0, 4, 8)).widths == (12, 12, 12)


def test_each_block_may_have_a_width_of_its_own():
  assert cms.CMSConfig(8, (4, 8, 25), (0, 4, 8)).widths == (4, 8, 25)


def test_blocks_of_period_zero_do_not_learn_in_context():
  assert cms.CMSConfig(8, 12, (0, 4, 0, 8)).in_context_periods == (4, 8)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'form': 'serial'}, "`form` must be one of .*'sequential'.*, got 'serial'"),
    ({'hidden': (12,)}, r'`hidden` must be one width or one of each of the 2 blocks, got \(12,\)'),
    ({'hidden': (12, 0)}, r'`hidden\[1\]` must be an integer of at least 1, got 0'),
    ({'rate': float('inf')}, '`rate` must be a finite number of at least 0, got inf'),
    (
      {'periods': (2.0, 4.0)},
      '`periods` must name at least one block, each of 0 or more tokens, got',
    ),
    ({'periods': (8, 12)}, r'`periods\[1\]` must be a multiple of `periods\[0\]`, got 12 and 8'),
  ],
  ids=str,
)
def test_config_names_a_wrong_argument(options, message):
  with pytest.raises(ValueError, match=message):
    cms.CMSConfig(**{'model_dim': 8, 'hidden': 12, 'periods': (4, 8), **options})
