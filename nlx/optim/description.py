"""The levels of an optimizer, for tables and pictures, through any chain of optax."""

import contextvars
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nlx import core, levels
from nlx.levels import LevelInfo
from nlx.optim.delta_gradient_descent import release
from nlx.optim.leaves import Params

WEIGHTS = 'weights'
_describing = contextvars.ContextVar('describing', default=False)
# What optax calls the sums or averages, of gradients or of their squares, of most optimizers.
_MEMORIES = {'mu': 'momentum', 'trace': 'momentum', 'ema': 'momentum', 'nu': 'second moment'}


@jax.tree_util.register_static
class _Said(tuple):
  """Levels that stand, while an optimizer is described, where their state would be."""


def described(
  init: Callable[[Params], Any], level_infos: Callable[[Any], list[LevelInfo]]
) -> Callable[[Params], Any]:
  """Lets the `init` of a transformation say which levels its state holds.

  `level_infos` of a chain, a partition or a masked transformation then finds them inside of it.

  Args:
    init: `params -> state`, of an optax transformation or of a `Preconditioner`.
    level_infos: `state -> levels`, where the state is a tree of shapes.

  Returns:
    An `init` that makes the same state.

  Example:
    >>> import jax, jax.numpy as jnp, nlx, optax
    >>> def levels_of(state):
    ...   return [nlx.optim.memory_info('mean', 'L2', 'gradient', state.ema)]
    >>> ema = optax.ema(0.9)
    >>> tx = optax.GradientTransformation(nlx.optim.described(ema.init, levels_of), ema.update)
    >>> infos = nlx.optim.level_infos(optax.chain(tx, optax.scale(-0.1)), jnp.zeros(3))
    >>> [(info.name, info.objective, info.parameters) for info in infos]
    [('mean', 'L2', 3), ('weights', 'loss', 3)]
  """

  def say_or_init(params):
    state = init(params)
    return _Said(level_infos(state)) if _describing.get() else state

  return say_or_init


def memory_info(name: str, objective: str, rule: str, memory: Any, period: int = 1) -> LevelInfo:
  """The level of a memory of gradients, for `described`.

  Args:
    name: What it is called.
    objective: What its updates lower.
    rule: How it is updated.
    memory: The tree of what it learns, whose elements are counted; arrays or their shapes.
    period: Steps per update.

  Returns:
    A level that counts steps, and makes what moves the weights.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Def. 2 and Sec. 4.
  """
  size = core.tree_size(memory)
  return LevelInfo(name, period, 'step', objective, rule, size, 'generation')


def level_infos(tx: optax.GradientTransformation, params: Params) -> list[LevelInfo]:
  """The levels of an optimizer: every memory that it holds of gradients, and the weights.

  Those of nlx say what they are, wherever they stand in a chain, and `every` and `multi_rate`
  multiply the periods of what is inside them. Of a transformation that says nothing, such as those
  of optax, every part of the state that has the structure of `params` is a memory that is written
  at each step, by a rule that is named after the state.

  Args:
    tx: Any optax transformation.
    params: What it optimizes; arrays or their shapes. Nothing is computed.

  Returns:
    What `nlx.describe` and `nlx.levels.plot` take. After `model.level_infos()[:-1]`, which leaves
    out its slow weights, it completes the system.

  Raises:
    ValueError: If a state is held for a period that nothing tells: by `nlx.levels.periodic` in a
      transformation of your own without `described`, or by `optax.MultiSteps`.

  Example:
    >>> import jax.numpy as jnp, nlx, optax
    >>> tx = optax.chain(optax.clip_by_global_norm(1.0), nlx.optim.scale_by_m3(slow_period=16))
    >>> print(nlx.describe(nlx.optim.level_infos(tx, jnp.zeros((4, 4)))))
    level  name           period    ...
    -----  -------------  --------  ...
        1  fast momentum  1 step    ...
        1  second moment  1 step    ...
        1  weights        1 step    ...
        2  slow momentum  16 steps  ...

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Def. 2 and Sec. 4.
  """
  token = _describing.set(True)
  try:
    with jax.disable_jit():  # An `init` that is compiled already would not know that it is asked.
      state = jax.eval_shape(tx.init, params)
  finally:
    _describing.reset(token)
  infos = infos_of(state, params)
  return [*infos, *weights_info(params, infos)]


def infos_of(state: Any, params: Params) -> list[LevelInfo]:
  """The memories in a state that was made while its optimizer is described."""
  return [info for info in _walk(state, _Params(params)) if info.parameters]


def weights_info(params: Params, inner: list[LevelInfo], period: int = 1) -> list[LevelInfo]:
  """A row for the weights that none of the `inner` rows is for; none if there are no such."""
  described = sum(info.parameters for info in inner if info.name == WEIGHTS)
  size = core.tree_size(release(params)) - described
  info = LevelInfo(WEIGHTS, period, 'step', 'loss', 'optimizer', size, 'gradient')
  return [info] if size else []


class _Params:
  """What tells a memory of gradients from the other parts of a state."""

  def __init__(self, params):
    self.ndims = {path: x.ndim for path, x in jax.tree.leaves_with_path(params)}
    self.types = {optax.MaskedNode}

    def see(node):
      self.types.add(type(node))
      return False

    jax.tree.leaves(params, is_leaf=see)

  def is_state(self, node):
    """Whether a node of a state is a state of its own, and no node of a tree like params."""
    named = isinstance(node, tuple) and hasattr(node, '_fields') and type(node) not in self.types
    return named or isinstance(node, _Said)

  def is_memory(self, tree):
    """Whether a tree has parameters' places, and at each more than one number if those have."""
    found = jax.tree.leaves_with_path(tree)
    return bool(found) and all(
      path in self.ndims
      and jnp.issubdtype(x.dtype, jnp.floating)
      and (x.ndim > 0 or self.ndims[path] == 0)
      for path, x in found
    )


def _walk(state: Any, params: _Params) -> Iterator[LevelInfo]:
  if isinstance(state, _Said):
    yield from state
  elif isinstance(state, levels.PeriodicState | optax.MultiStepsState):
    raise ValueError(
      f'a {type(state).__name__} does not tell its period: use `nlx.optim.every`, or say the '
      'levels of your own transformation by `nlx.optim.described`.'
    )
  elif params.is_state(state):
    for name, part in state._asdict().items():
      if any(map(params.is_state, jax.tree.leaves(part, is_leaf=params.is_state))):
        yield from _walk(part, params)
      elif params.is_memory(part):
        objective = 'dot product' if name in _MEMORIES else 'not known'
        name = _MEMORIES.get(name, name.replace('_', ' '))
        yield memory_info(name, objective, _rule(type(state).__name__), part)
  elif isinstance(state, dict):
    for part in state.values():
      yield from _walk(part, params)
  elif isinstance(state, tuple | list):
    for part in state:
      yield from _walk(part, params)


def _rule(name: str) -> str:
  """'ScaleByAdamState' is by 'Adam'."""
  return re.sub('^ScaleBy|State$', '', name)
