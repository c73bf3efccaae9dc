"""Where two values differ, in words."""

from typing import Any


def first_difference(old: Any, new: Any, name: str = '') -> str | None:
  """Describes the first leaf in which two nested dicts differ.

  Args:
    old: The value of before; a key that is missing counts as None.
    new: The value of now.
    name: Of both; those of their keys follow after a dot.

  Returns:
    A clause for an error, or None if they are equal.

  Example:
    >>> import nlx
    >>> nlx.core.first_difference({'depth': 2, 'width': 8}, {'depth': 3, 'width': 8}, 'model')
    '`model.depth` was 2, but is 3 here'
  """
  if not (isinstance(old, dict) and isinstance(new, dict)):
    return None if old == new else f'`{name}` was {old!r}, but is {new!r} here'
  for key in sorted({*old, *new}):
    found = first_difference(old.get(key), new.get(key), f'{name}.{key}' if name else key)
    if found:
      return found
  return None
