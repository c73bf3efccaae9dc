import numpy as np
import pytest

from nlx import core


@pytest.mark.parametrize('value', [0, -1, 1.0, True, None, '3'])
def test_check_positive_names_argument_rule_unit_and_value(value):
  message = rf'`period` must be an integer of at least 1 tick, got {value!r}\.'
  with pytest.raises(ValueError, match=message):
    core.check_positive('period', value, 'tick')


@pytest.mark.parametrize('value', [1, np.int64(1)])
def test_check_positive_lets_one_pass(value):
  core.check_positive('period', value)


def test_check_divides_names_both_arguments_and_values():
  with pytest.raises(ValueError, match=r'`slow` must be a multiple of `fast`, got 6 and 4\.'):
    core.check_divides('fast', 4, 'slow', 6)


def test_check_divides_lets_equal_values_pass():
  core.check_divides('fast', 4, 'slow', 4)


def test_check_choice_names_the_choices():
  with pytest.raises(ValueError, match=r"`meta` must be one of \['a', 'b'\], got 'c'\."):
    core.check_choice('meta', 'c', ('b', 'a'))


def test_check_choice_lets_a_choice_pass():
  core.check_choice('meta', 'a', ('b', 'a'))
