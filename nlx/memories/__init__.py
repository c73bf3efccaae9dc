"""Memories: levels that map keys to values, their update rules and exact parallel forms."""

from nlx.memories.attention import Attention, AttentionConfig
from nlx.memories.layer import Layer, layer
from nlx.memories.memory import (
  Memory,
  MemoryState,
  Tokens,
  absorb,
  init_state,
  level,
  read,
  surprise,
  weights_of,
)
from nlx.memories.mirrors import Mirror, kl_retention, lq_retention
from nlx.memories.mixer import MemoryConfig, MemoryMixer
from nlx.memories.networks import Network, apply, init_weights, matrix, mlp, normed
from nlx.memories.objectives import Objective, dot_product, huber, l2, lp
from nlx.memories.rules import (
  Gates,
  Rule,
  delta_rule,
  dgd,
  gradient,
  log_gate,
  mask_gates,
  oja,
  omega,
)
from nlx.memories.selective_scan import SelectiveScan, SelectiveScanConfig
from nlx.memories.self_modifying import SelfModifying, SelfModifyingConfig
from nlx.memories.triangular import unit_lower_inverse

__all__ = [
  'Attention',
  'AttentionConfig',
  'Gates',
  'Layer',
  'Memory',
  'MemoryConfig',
  'MemoryMixer',
  'MemoryState',
  'Mirror',
  'Network',
  'Objective',
  'Rule',
  'SelectiveScan',
  'SelectiveScanConfig',
  'SelfModifying',
  'SelfModifyingConfig',
  'Tokens',
  'absorb',
  'apply',
  'delta_rule',
  'dgd',
  'dot_product',
  'gradient',
  'huber',
  'init_state',
  'init_weights',
  'kl_retention',
  'l2',
  'layer',
  'level',
  'log_gate',
  'lp',
  'lq_retention',
  'mask_gates',
  'matrix',
  'mlp',
  'normed',
  'oja',
  'omega',
  'read',
  'surprise',
  'unit_lower_inverse',
  'weights_of',
]
