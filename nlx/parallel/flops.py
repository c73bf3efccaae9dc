"""How many operations the matrix products of a program ask for, whatever loops they are in."""

import math
from typing import Any

from jax.extend import core as jax_core
from jax.interpreters import partial_eval


def count_flops(jaxpr: Any) -> int:
  """Counts the operations of all matrix products in a traced function, over all devices.

  A product of [M, K] and [K, N] is 2 M K N operations. Loops of known length count in full, which
  `compiled.cost_analysis()` does not, and so does what the backward pass computes anew. Of the
  branches of a condition the costliest counts. Fused attention counts as its products. Results that
  nothing uses are left out, and so is everything else, convolutions and ragged products included.

  Args:
    jaxpr: Of `jax.make_jaxpr(f)(...)`, or the `jaxpr` of `jax.jit(f).trace(...)`.

  Returns:
    The number of operations. Those inside of a `jax.shard_map` count once for each device that
    does them.

  Raises:
    ValueError: If a loop of unknown length holds products.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> thrice = lambda x: jax.lax.fori_loop(0, 3, lambda _, x: x @ x, x)
    >>> count_flops(jax.make_jaxpr(thrice)(jnp.ones((4, 4))))
    384
  """
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return _flops(used)


def _flops(jaxpr: Any) -> int:
  return sum(map(_equation_flops, jaxpr.eqns))


def _equation_flops(equation: Any) -> int:
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    shape = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
  if name.startswith('dot_product_attention_'):
    return _fused_attention_flops(equation)
  inner = [_flops(jaxpr) for jaxpr in jax_core.jaxprs_in_params(params)]
  if name == 'scan':
    return params['length'] * sum(inner)
  if name == 'while' and any(inner):
    raise ValueError('`jaxpr` must not hold matrix products in a loop of unknown length.')
  if name == 'cond':
    return max(inner)
  if name == 'shard_map':
    sizes = dict(params['mesh'].shape)
    return math.prod(sizes[axis] for axis in params['newly_manual_axes']) * sum(inner)
  return sum(inner)


def _fused_attention_flops(equation: Any) -> int:
  """Forward of scores and outputs, backward of scores again and of four gradients.

  What a mask hides counts, as it does in products that are not fused.
  """
  queries, keys = (variable.aval.shape for variable in equation.invars[:2])  # [B, T, H, K]
  products = 5 if '_bwd' in equation.primitive.name else 2
  return 2 * products * math.prod(queries) * keys[1]
