"""Small experiments with optimizers and levels, each a question, a table and a figure."""

from typing import Any, NamedTuple

from matplotlib.figure import Figure


class Found(NamedTuple):
  """What a study returns."""

  rows: list[dict[str, Any]]  # flat records, for the table
  figure: Figure | None
