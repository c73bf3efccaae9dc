"""HOPE without each of its parts."""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.configs import lm
from experiments.studies import Found, records, short_run

TITLE = 'What each part of HOPE brings'
CAPTION = (
  'HOPE of width 64, whose two MLP blocks learn in context every 64 and 256 tokens at rates that '
  'begin at 0.4 and 1.6, without one part at a time, or with adaptive queries, as in Table 6 of '
  'the paper: 150 steps of 1,024 tokens of English documentation, the same for all, and equal '
  'parameters by the width of the MLP blocks. Bits per byte on the last tenth, held out. The '
  'learning rate is that of `lm.py:hope-tiny` for all, tuned for none of them. `without CMS` has '
  'one MLP that does not learn in context; `no in-context levels` has two blocks that do not. '
  '`without DGD` is the plain gradient, `span 16` with a proximal step shared by 16 tokens, which '
  'bounds it; a variant that diverges has no numbers. '
  '`above HOPE` compares seed by seed.'
)


class Sizes(NamedTuple):
  """What is trained."""

  steps: int = 150
  seeds: tuple[int, ...] = (0, 1, 2)
  smoke: bool = False


FULL = Sizes()
SMOKE = Sizes(2, (0,), smoke=True)
ADAPTIVE = ('k', 'v', 'eta', 'alpha')
HOPE = short_run.levels(64, 256)
VARIANTS: dict[str, dict[str, Any]] = {
  'HOPE': {},
  'without DGD': {'rule': {**lm.RULE, 'name': 'gradient'}},
  'without DGD, span 16': {'rule': {**lm.RULE, 'name': 'gradient', 'span': 16}},
  'without momentum': {'rule': {**lm.RULE, 'momentum': False}},
  'without retention': {'rule': {**lm.RULE, 'retention': False}},
  'without CMS': {'cms_periods': (0,)},
  'no in-context levels': {'cms_periods': (0, 0)},
  'without adaptive k': {'adaptive': ('v', 'eta', 'alpha')},
  'without adaptive v': {'adaptive': ('k', 'eta', 'alpha')},
  'with adaptive q': {'adaptive': (*ADAPTIVE, 'q')},
}


def run(sizes: Sizes) -> Found:
  """Returns a row for each variant."""
  names = list(VARIANTS)[:2] if sizes.smoke else list(VARIANTS)
  found = {name: remembered(sizes, name) for name in names}
  bits = {name: np.array([one['bits_per_byte'] for one in found[name]]) for name in names}
  rows = [
    {
      'model': name,
      'parameters': found[name][0]['parameters'],
      'bits_per_byte': number(bits[name].mean()),
      'least': number(bits[name].min()),
      'greatest': number(bits[name].max()),
      'above_HOPE': number((bits[name] - bits['HOPE']).mean()),
      'in_every_seed': all(bits[name] > bits['HOPE']) or all(bits[name] < bits['HOPE']),
    }
    for name in names
  ]
  return Found(rows, plot(bits))


def remembered(sizes: Sizes, name: str) -> list[dict[str, Any]]:
  """What the runs of one variant leave."""
  key = (name, sizes)
  found = records.remember('ablation', key, lambda: measure(sizes, name))
  print(name, found, flush=True)
  return found


def measure(sizes: Sizes, name: str) -> list[dict[str, Any]]:
  """Trains one variant."""
  fields = {} if sizes.smoke else {**HOPE, **VARIANTS[name]}
  trained = short_run.train(
    short_run.small('hope', smoke=sizes.smoke, seed=seed, steps=sizes.steps, **fields)
    for seed in sizes.seeds
  )
  return [
    {
      'bits_per_byte': one.bits_per_byte,
      'train_loss': short_run.last_loss(one.losses),
      'parameters': one.language.model.num_parameters(),
    }
    for one in trained
  ]


def number(x: Any) -> float | None:
  """What a results file says of a number; None if some seed diverged."""
  return float(x) if np.isfinite(x) else None


def plot(bits: dict[str, np.ndarray]) -> Figure:
  """A row for each variant, with a point for each seed."""
  figure = Figure(figsize=(7, 0.5 + 0.4 * len(bits)), layout='constrained')
  axes = figure.add_subplot()
  for row, values in enumerate(bits.values()):
    axes.plot(values, np.full(len(values), row), 'o', color='black', alpha=0.6)
    axes.plot(values.mean(), row, '|', color='black', markersize=18)
  axes.axvline(bits['HOPE'].mean(), color='gray', linewidth=1)
  axes.set_yticks(range(len(bits)), list(bits))
  axes.invert_yaxis()
  axes.set_xlabel('bits per byte, held out')
  axes.grid(alpha=0.3)
  return figure
