"""Checks of arguments that a caller gets wrong; each names the argument, the rule and the value."""

import numbers
from collections.abc import Collection


def check_positive(name: str, value: int, unit: str = '') -> None:
  """Raises ValueError unless `value` is an integer of at least 1 `unit`."""
  if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
    at_least = f'at least 1 {unit}'.strip()
    raise ValueError(f'`{name}` must be an integer of {at_least}, got {value!r}.')


def check_above_zero(name: str, value: float) -> None:
  """Raises ValueError unless `value` is a finite number above 0."""
  if not 0 < value < float('inf'):
    raise ValueError(f'`{name}` must be a finite number above 0, got {value!r}.')


def check_divides(small_name: str, small: int, large_name: str, large: int) -> None:
  """Raises ValueError unless `large` is a multiple of `small`."""
  if large % small:
    raise ValueError(
      f'`{large_name}` must be a multiple of `{small_name}`, got {large} and {small}.'
    )


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
  """Raises ValueError unless `value` is one of `choices`."""
  if value not in choices:
    raise ValueError(f'`{name}` must be one of {sorted(choices)}, got {value!r}.')
