"""Tables of shares as pictures."""

from typing import Any

import numpy as np


def draw(axes: Any, shares: np.ndarray, fontsize: int = 8) -> None:
  """Draws percentages [rows, columns], the darker the more, with numbers; NaN stays empty."""
  axes.imshow(shares, cmap='Greys', vmin=0, vmax=140, aspect='auto')
  for (row, column), share in np.ndenumerate(shares):
    text = '' if np.isnan(share) else f'{share:.3g}'
    color = 'white' if share > 70 else 'black'
    axes.text(column, row, text, ha='center', va='center', fontsize=fontsize, color=color)
