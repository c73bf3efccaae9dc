"""Memories: levels that map keys to values, their update rules and exact parallel forms."""

from nlx.memories.layer import Layer, layer
from nlx.memories.memory import (
  Memory,
  Tokens,
  absorb,
  init_state,
  level,
  read,
  surprise,
  weights_of,
)
from nlx.memories.networks import Network, apply, init_weights, matrix, mlp
from nlx.memories.objectives import Objective, dot_product, huber, l2
from nlx.memories.rules import Gates, Rule, dgd, gradient, log_gate, mask_gates
from nlx.memories.triangular import unit_lower_inverse

__all__ = [
  'Gates',
  'Layer',
  'Memory',
  'Network',
  'Objective',
  'Rule',
  'Tokens',
  'absorb',
  'apply',
  'dgd',
  'dot_product',
  'gradient',
  'huber',
  'init_state',
  'init_weights',
  'l2',
  'layer',
  'level',
  'log_gate',
  'mask_gates',
  'matrix',
  'mlp',
  'read',
  'surprise',
  'unit_lower_inverse',
  'weights_of',
]
