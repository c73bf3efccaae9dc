import sys

import numpy as np
import pytest

from nlx import levels


def info(name, period, unit='token'):
  return levels.LevelInfo(name, period, unit, 'L2', 'DGD', 4096, 'initial state')


SYSTEM = [
  info('slow weights', 1, 'step'),
  info('memory', 16),
  info('block 2', 1024),
  info('block 1', 256),
  info('embedding', None, 'step'),
]


def marks(axes):
  """The tokens at which each row has a mark, from top to bottom."""
  lines = {}
  for collection in axes.collections:
    for (x, low), (_, high) in collection.get_segments():
      lines.setdefault(round((low + high) / 2), []).append(round(x))
  return lines


def bars(axes):
  """Row, begin and end of each bar."""
  return [
    (round(bar.get_y() + bar.get_height() / 2), bar.get_x(), bar.get_x() + bar.get_width())
    for bar in axes.patches
  ]


def test_plot_has_one_labelled_row_per_level_fastest_at_the_top():
  (axes,) = levels.plot(SYSTEM).axes
  assert [label.get_text() for label in axes.get_yticklabels()] == [
    'memory\nevery 16 tokens',
    'block 1\nevery 256 tokens',
    'block 2\nevery 1,024 tokens',
    'slow weights\nevery step',
    'embedding\nnever in a sequence',
  ]
  assert axes.yaxis_inverted()


def test_plot_marks_every_update():
  (axes,) = levels.plot(SYSTEM).axes
  assert marks(axes)[1] == list(range(256, 4097, 256))
  assert marks(axes)[2] == [1024, 2048, 3072, 4096]


def test_plot_makes_a_bar_of_marks_that_would_touch():
  (axes,) = levels.plot(SYSTEM).axes
  ticks = marks(axes)[0]
  assert ticks == list(range(16, 16 * len(ticks) + 1, 16))
  assert (0, ticks[-1], 4096) in bars(axes)


def test_plot_keeps_marks_apart():
  figure = levels.plot(SYSTEM)
  figure.canvas.draw()
  (axes,) = figure.axes
  for ticks in marks(axes).values():
    pixels = axes.transData.transform([(tick, 0) for tick in ticks])[:, 0]
    assert np.all(np.diff(pixels) > 3)


def test_plot_spans_levels_that_no_token_updates():
  (axes,) = levels.plot(SYSTEM).axes
  assert {bar for bar in bars(axes) if bar[0] > 2} == {(3, 8, 4096), (4, 8, 4096)}


def test_plot_shows_the_span_that_is_asked_for():
  (axes,) = levels.plot(SYSTEM, span=600).axes
  assert marks(axes)[1] == [256, 512]
  assert 2 not in marks(axes)


@pytest.mark.parametrize('system', [SYSTEM[:1], SYSTEM[-1:], [info('a', 1)], SYSTEM])
@pytest.mark.parametrize('span', [None, 1, 5000])
def test_plot_of_any_system_can_be_drawn(system, span):
  figure = levels.plot(system, span)
  figure.canvas.draw()
  assert len(figure.axes[0].get_yticks()) == len(system)


def test_plot_leaves_no_figure_behind():
  levels.plot(SYSTEM)
  pyplot = sys.modules.get('matplotlib.pyplot')
  assert pyplot is None or not pyplot.get_fignums()


def test_plot_names_a_wrong_span():
  with pytest.raises(ValueError, match='`span` must be an integer of at least 1 token, got 0'):
    levels.plot(SYSTEM, span=0)


def test_plot_names_what_is_no_system():
  with pytest.raises(TypeError, match='`system` must be a sequence of LevelInfo'):
    levels.plot(3)
