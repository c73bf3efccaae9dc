"""The picture of a trace: where a model was surprised, and what it wrote."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nlx.evaluation.trace import Trace

# Colours and dashes that stay apart in grey: enough for a HOPE with four blocks, and to spare.
_STYLES = (
  {'color': '#000000', 'linestyle': '-'},
  {'color': '#d55e00', 'linestyle': '--'},
  {'color': '#56b4e9', 'linestyle': '-.'},
  {'color': '#009e73', 'linestyle': ':'},
  {'color': '#a0a0a0', 'linestyle': '-'},
  {'color': '#0072b2', 'linestyle': (0, (8, 3))},
  {'color': '#cc79a7', 'linestyle': (0, (1, 3))},
  {'color': '#606060', 'linestyle': (0, (5, 1, 1, 1, 1, 1))},
)
_LABELLED = 8  # tokens that are named, the most surprising ones
_APART = 0.04  # of the text's length, at least, between two names
_MARKED = 32  # looks at the levels up to which each has a mark; more would hide the dashes


def plot_trace(trace: Trace, pieces: Sequence[str] | None = None) -> Any:
  """Draws surprise, the distance of every level from where it began, and inner rates over a text.

  Rates are means over layers and heads; the band holds the middle 80 % of them.

  Args:
    trace: What `trace` returned.
    pieces: [T] the text of every token, to name the most surprising ones.

  Returns:
    A `matplotlib.figure.Figure`, which notebooks show and `savefig` writes.

  Raises:
    ValueError: If there are more or fewer pieces than tokens.
  """
  from matplotlib.figure import Figure

  length = len(trace.surprise)
  if pieces is not None and len(pieces) != length:
    raise ValueError(f'`pieces` must be {length} texts, one per token, got {len(pieces)}.')
  moving = {name: moved for name, moved in trace.moved.items() if np.any(moved > 0)}
  draws = [lambda axes: _draw_surprise(axes, trace, pieces)]
  if moving:
    draws.append(lambda axes: _draw_levels(axes, trace.ends, moving))
  if trace.rates:
    draws.append(lambda axes: _draw_rates(axes, trace.rates))
  figure = Figure(figsize=(9, 0.6 + 2.1 * len(draws)), layout='constrained')
  panels = figure.subplots(len(draws), sharex=True, squeeze=False)[:, 0]
  for axes, draw in zip(panels, draws, strict=True):
    draw(axes)
    axes.spines[['top', 'right']].set_visible(False)
  panels[-1].set_xlim(0, length)
  panels[-1].set_xlabel('tokens read')
  return figure


def _draw_surprise(axes, trace: Trace, pieces: Sequence[str] | None) -> None:
  bits = trace.surprise / math.log(2)
  places = np.arange(len(bits))
  axes.vlines(places, 0, np.nan_to_num(bits), color='#a0a0a0', linewidth=0.8)
  window = max(1, len(bits) // 16)
  axes.plot(places[1:], _running_mean(bits[1:], window), color='#000000', linewidth=1.5)
  axes.set_ylabel('surprise\n(bits per token)')
  top = 1.3 * np.nanmax(bits)
  axes.set_ylim(0, top)
  if pieces is not None:
    for place in _most_surprising(bits):
      text, at = repr(pieces[place])[1:-1], (place, bits[place])
      axes.annotate(text, at, (0, 2), textcoords='offset points', fontsize=8, ha='center')


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
  """The mean of the last `window` values, of fewer at the beginning."""
  sums = np.cumsum(np.concatenate([[0.0], values]))
  last = np.arange(1, len(values) + 1)
  first = np.maximum(last - window, 0)
  return (sums[last] - sums[first]) / (last - first)


def _most_surprising(bits: np.ndarray) -> list[int]:
  """The places of the most surprising tokens, far enough apart to be named."""
  chosen: list[int] = []
  for place in np.argsort(-np.nan_to_num(bits)):
    if all(abs(int(place) - other) >= _APART * len(bits) for other in chosen):
      chosen.append(int(place))
    if len(chosen) == _LABELLED:
      break
  return chosen


def _draw_levels(axes, ends: np.ndarray, moved: Mapping[str, np.ndarray]) -> None:
  for i, (name, distances) in enumerate(moved.items()):
    style = _STYLES[i % len(_STYLES)]
    shown = np.where(distances > 0, distances, np.nan)
    axes.plot(ends, shown, **style, marker='.' if len(ends) <= _MARKED else '', label=name)
  axes.set_yscale('log')
  axes.set_ylabel('distance from the start\n(root mean square)')
  _label(axes)


def _draw_rates(axes, rates: Mapping[str, np.ndarray]) -> None:
  for i, (name, rate) in enumerate(rates.items()):
    style = _STYLES[i % len(_STYLES)]
    heads = rate.reshape((-1, rate.shape[-1]))
    low, high = np.quantile(heads, (0.1, 0.9), axis=0)
    places = np.arange(heads.shape[1])
    axes.fill_between(places, low, high, color=style['color'], alpha=0.15, linewidth=0)
    axes.plot(places, heads.mean(axis=0), **style, linewidth=1, label=name)
  axes.set_ylim(bottom=0)
  axes.set_ylabel('inner rate')
  _label(axes)


def _label(axes) -> None:
  """A legend beside the axes, where it hides nothing."""
  axes.legend(loc='center left', bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
