"""Levels: states that are held for a period and then updated from what they saw."""

from nlx.levels.adapters import OptaxState, from_optax, to_optax
from nlx.levels.describe import TRANSFERS, LevelInfo, describe
from nlx.levels.level import Level
from nlx.levels.nest import (
  META_GRADIENTS,
  NestResult,
  advance,
  gradient_step,
  nest,
  read_weights,
)
from nlx.levels.nested import Nested, nested, own
from nlx.levels.periodic import (
  Gather,
  PeriodicLevel,
  PeriodicState,
  Weighted,
  fold,
  mean,
  periodic,
  total,
)
from nlx.levels.plot import plot
from nlx.levels.unroll import unroll

__all__ = [
  'Gather',
  'Level',
  'LevelInfo',
  'META_GRADIENTS',
  'NestResult',
  'Nested',
  'OptaxState',
  'PeriodicLevel',
  'PeriodicState',
  'TRANSFERS',
  'Weighted',
  'advance',
  'describe',
  'fold',
  'from_optax',
  'gradient_step',
  'mean',
  'nest',
  'nested',
  'own',
  'periodic',
  'plot',
  'read_weights',
  'to_optax',
  'total',
  'unroll',
]
