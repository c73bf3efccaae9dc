"""Continuum memory systems: MLP blocks that are updated at several periods."""

from nlx.cms.block import MLPBlock
from nlx.cms.config import (
  DELTA_GRADIENT_DESCENT,
  FORMS,
  GRADIENT_DESCENT,
  CMSConfig,
  InContextRule,
)
from nlx.cms.in_context import in_context_level, in_context_levels, initial_weights
from nlx.cms.system import ContinuumMemory

__all__ = [
  'CMSConfig',
  'ContinuumMemory',
  'DELTA_GRADIENT_DESCENT',
  'FORMS',
  'GRADIENT_DESCENT',
  'InContextRule',
  'MLPBlock',
  'in_context_level',
  'in_context_levels',
  'initial_weights',
]
