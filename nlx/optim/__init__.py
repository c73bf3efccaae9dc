"""Deep optimizers: memories of gradients, as optax transformations.

Every optimizer has two forms, as in optax: `scale_by_x` turns gradients into a direction, for your
own chains, and `x` steps against it. Rules for matrices act on leaves of two axes or more, any axes
before the last two being a batch; in the `x` forms that take `labels`, embeddings, heads, norms,
biases and convolutions go to AdamW (`matrix_labels`). State is kept in at least float32, and what
is like a parameter has its sharding. Inside `optax.inject_hyperparams` integers, and functions that
are no schedules, are `static_args`.

When all gradients are multiplied by c, a direction is multiplied by

    c     momentum, higher_order_momentum, generalized_gradient_descent, delta_gradient_descent (for
          unchanged inputs, near W = 0), delta_momentum while delta ||g||^2 is far from 1
    1     (while gradients are far from both ends of float32, and from `eps`)
          preconditioned_momentum, learned_preconditioner (without an objective; as a matrix, once
          it has adapted), deep_momentum, muon, m3, multi_rate (Adam inside)
    1/c   m3 with `second_moment='literal'`, as Algorithm 1 prints it
"""

from nlx.optim.assembly import MATRIX, OTHER, matrix_labels, names_vector, scale_by_shape
from nlx.optim.deep_momentum import (
  ScaleByDeepMomentumState,
  deep_momentum,
  scale_by_deep_momentum,
)
from nlx.optim.delta_gradient_descent import (
  Captured,
  ScaleByDeltaGradientDescentState,
  capture,
  delta_gradient_descent,
  dense,
  is_captured,
  release,
  scale_by_delta_gradient_descent,
)
from nlx.optim.delta_momentum import (
  ScaleByDeltaMomentumState,
  delta_momentum,
  scale_by_delta_momentum,
)
from nlx.optim.description import described, level_infos, memory_info
from nlx.optim.generalized_gradient_descent import (
  ScaleByGeneralizedGradientDescentState,
  generalized_gradient_descent,
  scale_by_generalized_gradient_descent,
)
from nlx.optim.higher_order_momentum import (
  higher_order_momentum,
  polynomial,
  scale_by_higher_order_momentum,
)
from nlx.optim.inverse_root import inverse_root
from nlx.optim.learned_preconditioner import (
  learned_preconditioner,
  scale_by_learned_preconditioner,
)
from nlx.optim.m3 import ScaleByM3State, SlowMemory, m3, scale_by_m3
from nlx.optim.momentum import ScaleByMomentumState, momentum, scale_by_momentum
from nlx.optim.multi_rate import EveryState, every, multi_rate, scale_by_multi_rate
from nlx.optim.muon import muon
from nlx.optim.newton_schulz import CUBIC, QUINTIC, inner_loop, minimax, newton_schulz
from nlx.optim.preconditioned_momentum import (
  ScaleByPreconditionedMomentumState,
  preconditioned_momentum,
  scale_by_preconditioned_momentum,
)
from nlx.optim.preconditioners import (
  Preconditioner,
  diagonal,
  from_function,
  full_matrix,
  identity,
  kronecker,
  learned,
)

__all__ = [
  'CUBIC',
  'MATRIX',
  'OTHER',
  'QUINTIC',
  'Captured',
  'EveryState',
  'Preconditioner',
  'ScaleByDeepMomentumState',
  'ScaleByDeltaGradientDescentState',
  'ScaleByDeltaMomentumState',
  'ScaleByGeneralizedGradientDescentState',
  'ScaleByM3State',
  'ScaleByMomentumState',
  'ScaleByPreconditionedMomentumState',
  'SlowMemory',
  'capture',
  'deep_momentum',
  'delta_gradient_descent',
  'delta_momentum',
  'dense',
  'described',
  'diagonal',
  'every',
  'from_function',
  'full_matrix',
  'generalized_gradient_descent',
  'higher_order_momentum',
  'identity',
  'inner_loop',
  'inverse_root',
  'is_captured',
  'kronecker',
  'learned',
  'learned_preconditioner',
  'level_infos',
  'm3',
  'matrix_labels',
  'memory_info',
  'minimax',
  'momentum',
  'multi_rate',
  'muon',
  'names_vector',
  'newton_schulz',
  'polynomial',
  'preconditioned_momentum',
  'release',
  'scale_by_deep_momentum',
  'scale_by_delta_gradient_descent',
  'scale_by_delta_momentum',
  'scale_by_generalized_gradient_descent',
  'scale_by_higher_order_momentum',
  'scale_by_learned_preconditioner',
  'scale_by_m3',
  'scale_by_momentum',
  'scale_by_multi_rate',
  'scale_by_preconditioned_momentum',
  'scale_by_shape',
]
