"""Preconditioners: what divides out how large, and how alike, the gradients of a leaf are."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlx import core, levels
from nlx.optim import leaves
from nlx.optim.description import described, memory_info
from nlx.optim.inverse_root import inverse_root, largest_row_sum

MAX_FULL_SIZE = 4096
"""The most elements of a matrix whose `full_matrix` is kept: 4096^2 numbers are 64 MiB."""
STRUCTURES = ('elementwise', 'matrix')


class Preconditioner(NamedTuple):
  """A map P of updates that is learned from gradients, as pure functions of trees.

  Attributes:
    init: `params -> state`.
    update: `(gradients, state) -> state`. Learns from one step's gradients.
    apply: `(updates, state) -> updates`, P u in the dtypes of the updates; after an `update`.
  """

  init: Callable[[Any], Any]
  update: Callable[[Any, Any], Any]
  apply: Callable[[Any, Any], Any]


def identity() -> Preconditioner:
  """P = I: leaves updates as they are."""
  return from_function(lambda u: u)


def from_function(function: Callable[[jax.Array], jax.Array]) -> Preconditioner:
  """P is a function of one leaf, without a state.

  Args:
    function: From a leaf of updates, of any rank, to one of the same shape.

  Returns:
    A preconditioner.

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> sign = nlx.optim.from_function(jnp.sign)
    >>> sign.apply(jnp.array([-3.0, 2.0]), sign.init(jnp.zeros(2))).tolist()
    [-1.0, 1.0]
  """

  def apply(updates, state):
    del state
    return leaves.as_dtypes_of(jax.tree.map(function, updates), updates)

  return Preconditioner(lambda params: optax.EmptyState(), lambda gradients, state: state, apply)


class DiagonalState(NamedTuple):
  """State of `diagonal`."""

  count: jax.Array  # type: ignore[assignment]  # int32 scalar, steps taken
  second_moment: Any  # like params, at least float32


def diagonal(
  decay: float | None = 0.999, *, eps: float = 1e-8, debias: bool = True
) -> Preconditioner:
  """P u = u / (sqrt(v) + eps), with v = decay v + (1 - decay) g^2, the second moment.

  Applied to gradients this is RMSProp, to a momentum Adam, and with sums AdaGrad.

  Args:
    decay: What is kept of the second moment per step, in [0, 1); None adds squares up.
    eps: Added to the root.
    debias: Whether an average is divided by 1 - decay^t; a sum never is.

  Returns:
    A preconditioner.

  Raises:
    ValueError: If `decay` is not in [0, 1) or `eps` is negative.

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> adagrad = nlx.optim.diagonal(decay=None)
    >>> gradients = jnp.array([3.0, -4.0])
    >>> state = adagrad.update(gradients, adagrad.init(gradients))
    >>> adagrad.apply(gradients, state).tolist()
    [1.0, -1.0]

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 46-47 and App. B, Eqs. 100-107.
  """
  leaves.check_decay('decay', decay)
  leaves.check_not_negative('eps', eps)

  def init(params):
    return DiagonalState(jnp.zeros((), jnp.int32), leaves.zeros(params))

  def update(gradients, state):
    def learn(v, g):
      return _take_in(v, jnp.square(leaves.in_float32(g)), decay)

    count = optax.safe_increment(state.count)
    return DiagonalState(count, jax.tree.map(learn, state.second_moment, gradients))

  def apply(updates, state):
    def divide(u, v):
      return u / (jnp.sqrt(_unbiased(v, state.count, decay, debias)) + eps)

    return leaves.as_dtypes_of(jax.tree.map(divide, updates, state.second_moment), updates)

  def infos(state):
    rule = 'gradient' if decay is None else 'gradient, retention'
    return [memory_info('second moment', 'dot product', rule, state.second_moment)]

  return Preconditioner(described(init, infos), update, apply)


class FactorsState(NamedTuple):
  """State of `kronecker` and `full_matrix`."""

  count: jax.Array  # type: ignore[assignment]  # int32 scalar, steps taken
  moments: Any  # tuple of params-like trees of [..., N, N], at least float32
  roots: levels.PeriodicState  # holds their inverse roots


def kronecker(
  decay: float | None = 0.999, *, ridge: float = 1e-6, period: int = 1
) -> Preconditioner:
  """P u = L^(-1/4) u R^(-1/4), with L and R the moments g g^T and g^T g of matrices: Shampoo.

  Ours: what an average has not seen yet, a share of decay^t, counts as the mean of its diagonal
  times I; the inverse root of a few gradients would stretch the directions that they lack.

  Args:
    decay: What is kept of the moments per step, in [0, 1); None adds them up.
    ridge: Added to the eigenvalues of a moment, relative to the largest; see `inverse_root`.
    period: Steps between computations of the roots; the first step makes the first.

  Returns:
    A preconditioner for matrices [..., M, N]; vectors are matrices of one row. It holds twice
    M^2 + N^2 numbers for each, so that embeddings need another one.

  Raises:
    ValueError: If `decay` is not in [0, 1), `ridge` not in (0, 1), or `period` smaller than 1.

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> shampoo = nlx.optim.kronecker(decay=None)
    >>> gradients = jnp.diag(jnp.array([9.0, 4.0]))
    >>> state = shampoo.update(gradients, shampoo.init(gradients))
    >>> shampoo.apply(gradients, state).round(3).tolist()
    [[1.0, 0.0], [0.0, 1.0]]

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 46-47; Gupta et al., Shampoo, arXiv
    1802.09568, Algorithm 1 (there sums, and a ridge that does not scale with the gradients).
  """

  def products(g):
    return _product(g, g.mT), _product(g.mT, g)

  def times(u, left, right):
    return _product(_product(left, u), right)

  return _from_moments(products, times, 2, 4, decay, ridge, period)


def full_matrix(
  decay: float | None = None, *, ridge: float = 1e-6, period: int = 1
) -> Preconditioner:
  """P u = G^(-1/2) u, with G the sum of vec(g) vec(g)^T over steps: full-matrix AdaGrad.

  Args:
    decay: None adds the products up; else what is kept of their average per step, in [0, 1), and
      what it has not seen counts as in `kronecker`.
    ridge: Added to the eigenvalues of G, relative to the largest; see `inverse_root`.
    period: Steps between computations of the root; the first step makes the first.

  Returns:
    A preconditioner for matrices [..., M, N] of at most `MAX_FULL_SIZE` elements, each alone.

  Raises:
    ValueError: If `decay` is not in [0, 1), `ridge` not in (0, 1), or `period` smaller than 1; in
      `init` if a leaf is too large.

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> adagrad = nlx.optim.full_matrix()
    >>> gradients = jnp.array([3.0, 4.0])
    >>> state = adagrad.update(gradients, adagrad.init(gradients))
    >>> adagrad.apply(gradients, state).round(3).tolist()
    [0.6..., 0.8...]

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 46-47 and App. B; Duchi et al.,
    Adaptive Subgradient Methods, 2011.
  """

  def as_column(x):
    size = math.prod(x.shape[-2:])
    if size > MAX_FULL_SIZE:
      raise ValueError(
        f'`full_matrix` takes matrices of at most {MAX_FULL_SIZE} elements, got {x.shape[-2:]}.'
      )
    return x.reshape((*x.shape[:-2], size, 1))

  def products(g):
    column = as_column(g)
    return (_product(column, column.mT),)

  def times(u, root):
    return _product(root, as_column(u)).reshape(u.shape)

  return _from_moments(products, times, 1, 2, decay, ridge, period)


class LearnedState(NamedTuple):
  """State of `learned`, unless it whitens element by element: then it is that of `diagonal`."""

  preconditioner: Any  # params-like tree of P: like the leaf, or [..., M, M]; at least float32


def learned(
  rate: float = 1e-2,
  *,
  objective: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
  structure: str = 'elementwise',
  eps: float = 1e-8,
) -> Preconditioner:
  """P lowers an objective of its own at every step, P = P - rate grad_P L(P; g).

  Ours: without an objective P whitens, L = 1/2 ||P g||^2 - log det P, the likelihood of gradients
  that are normal with covariance P^-2, and it takes natural steps, which do not depend on how
  gradients are scaled:

      'elementwise'   v = v - rate (v - g^2)   with P = v^(-1/2): RMSProp with decay 1 - rate, its
                                               v divided by 1 - (1 - rate)^t
      'matrix'        P = S P S                with S = I - 1/2 rate' (h h^T - I), h = P g / sqrt(N)

  To first order 'matrix' is the relative gradient step P - rate' (h h^T - I) P; taken from both
  sides it keeps P symmetric and positive, so that P g goes downhill. rate' is `rate` while the norm
  b of h h^T is small. For large b it is 2 (1 - (1 + 2 rate b)^(-1/4)) / b, with which no step
  overshoots, and P shrinks at once as that of RMSProp does: by sqrt(2 rate b) where b is largest.
  The noise of these steps, which comes from the largest gradients, limits how far P evens out
  scales: directions in which gradients are smaller than the largest by more than about `rate` are
  scaled up less than whitening would.

  Args:
    rate: Of the steps of P; at most 1 without an objective.
    objective: `(preconditioner, gradient) -> scalar` of one leaf, lowered by plain gradient steps
      from P = 1; whitening if not given.
    structure: 'elementwise', P u is the product of elements; or 'matrix', P [..., M, M] is
      multiplied from the left to matrices [..., M, N], and to vectors as matrices of one row.
    eps: Of whitening: P is at most 1 / eps, reached where gradients are zero.

  Returns:
    A preconditioner.

  Raises:
    ValueError: If `rate` is out of range, `structure` unknown, or `eps` not above 0.

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> l2 = lambda preconditioner, gradient: 0.5 * jnp.sum((preconditioner * gradient - 1) ** 2)
    >>> tx = nlx.optim.learned(0.1, objective=l2)
    >>> tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1))).preconditioner.round(3).tolist()
    [0.8...]

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 38-41; Cardoso and Laheld, Equivariant
    Adaptive Source Separation, 1996, for relative gradients.
  """
  core.check_choice('structure', structure, STRUCTURES)
  core.check_above_zero('eps', eps)
  if isinstance(rate, int | float):
    core.check_above_zero('rate', rate)
    if objective is None and rate > 1:
      raise ValueError(f'`rate` of whitening must be at most 1, got {rate}.')
  if objective is None and structure == 'elementwise':
    return diagonal(1 - rate, eps=eps)
  on_matrices = structure == 'matrix'

  def start(p):
    if on_matrices:
      matrix = leaves.as_matrix(p)
      return _identities((*matrix.shape[:-1], matrix.shape[-2]), p.dtype)
    return jnp.ones_like(p)

  def learn(p, g):
    g = leaves.in_float32(g)
    g = leaves.as_matrix(g) if on_matrices else g
    return _whiten(p, g, rate, eps) if objective is None else p - rate * jax.grad(objective)(p, g)

  def times(u, p):
    return leaves.on_matrices(lambda u: _product(p, u))(u) if on_matrices else p * u

  def update(gradients, state):
    return LearnedState(jax.tree.map(lambda g, p: learn(p, g), gradients, state.preconditioner))

  def apply(updates, state):
    return leaves.as_dtypes_of(jax.tree.map(times, updates, state.preconditioner), updates)

  def init(params):
    return LearnedState(jax.tree.map(start, leaves.zeros(params)))

  def infos(state):
    goal = 'whitening' if objective is None else 'your own'
    rule = 'relative gradient' if objective is None else 'gradient'
    return [memory_info('preconditioner', goal, rule, state.preconditioner)]

  return Preconditioner(described(init, infos), update, apply)


def _whiten(p, g, rate, eps):
  """A step of P [..., M, M] on gradients [..., M, N] and, of size `eps`, in every direction."""
  h = _product(p, g) / math.sqrt(g.shape[-1])
  covariance = _product(h, h.mT) + eps**2 * _product(p, p.mT)
  trace = jnp.trace(covariance, axis1=-2, axis2=-1)[..., None, None]
  bound = jnp.minimum(trace, largest_row_sum(covariance))  # The trace is exact for rank one.
  bound = jnp.maximum(bound, 1e-30)
  shrinking = -jnp.expm1(-jnp.log1p(2 * rate * bound) / 4)  # Of either side, where it is largest.
  eye = _identities(p.shape, p.dtype)
  side = eye - shrinking / bound * (covariance - eye)
  return _product(_product(side, p), side)


def _product(a, b):
  """At full precision: what a root stretches, it stretches with the rounding errors."""
  with jax.default_matmul_precision('highest'):
    return core.matmul(a, b)


def _identities(shape, dtype):
  return jnp.broadcast_to(jnp.eye(shape[-1], dtype=dtype), shape)


def _take_in(moment, new, decay):
  return moment + new if decay is None else decay * moment + (1 - decay) * new


def _unbiased(moment, count, decay, debias):
  return moment / (1 - decay**count) if debias and decay is not None else moment


# Roots are held for a period; their moments are averages already, and there is nothing to gather.
_NOTHING = levels.Gather(
  start=lambda level, held: (),
  add=lambda gathered, held, signal: (),
  result=lambda gathered, weights: (),
)


def _filled(moment, decay, count):
  """An average in which the mean of its diagonal, times I, stands for what it has not seen."""
  if decay is None:
    return moment
  unseen = decay**count
  mean = jnp.trace(moment, axis1=-2, axis2=-1)[..., None, None] / moment.shape[-1]
  return moment + unseen / (1 - unseen) * mean * _identities(moment.shape, moment.dtype)


def _from_moments(products, times, num_factors, power, decay, ridge, period) -> Preconditioner:
  """Inverse roots of moments of matrices, `period` steps apart.

  Args:
    products: From a gradient [..., M, N] to a tuple of [..., K, K], what is averaged.
    times: `(u [..., M, N], *roots) -> [..., M, N]`.
    num_factors: How many moments a matrix has.
    power: Of the inverse roots.
    decay: Of the averages, or None for sums.
    ridge: Of the roots.
    period: Steps.
  """
  leaves.check_decay('decay', decay)
  core.check_positive('period', period, 'step')
  if not 0 < ridge < 1:
    raise ValueError(f'`ridge` must be in (0, 1), got {ridge}.')

  def held_roots(moments, count):
    def root(moment):
      return inverse_root(_filled(moment, decay, count), power, ridge=ridge)

    level = levels.Level(
      init=lambda moments: jax.tree.map(lambda x: _identities(x.shape, x.dtype), moments),
      update=lambda held, nothing: jax.tree.map(root, moments),
    )
    return levels.periodic(level, period, _NOTHING)

  def products_of(gradients):
    per_leaf = jax.tree.map(lambda g: products(leaves.as_matrix(leaves.in_float32(g))), gradients)
    return leaves.part_by_part(per_leaf, (0,) * num_factors, gradients)

  def init(params):
    count = jnp.zeros((), jnp.int32)
    zeros = products_of(leaves.zeros(params))
    roots = held_roots(zeros, count).init(zeros)
    return FactorsState(count, zeros, roots._replace(count=jnp.asarray(period - 1, jnp.int32)))

  def update(gradients, state):
    def learn(old, new):
      return _take_in(old, new, decay)

    count = optax.safe_increment(state.count)
    moments = jax.tree.map(learn, state.moments, products_of(gradients))
    return FactorsState(count, moments, held_roots(moments, count).update(state.roots, ()))

  def apply(updates, state):
    def one(u, *roots):
      return leaves.on_matrices(lambda u: times(u, *roots))(leaves.in_float32(u))

    return leaves.as_dtypes_of(jax.tree.map(one, updates, *state.roots.held), updates)

  def infos(state):
    rule = 'gradient' if decay is None else 'gradient, retention'
    moments = memory_info('moments', 'dot product', rule, state.moments)
    return [
      moments,
      memory_info('roots', 'none', f'moments^(-1/{power})', state.roots.held, period),
    ]

  return Preconditioner(described(init, infos), update, apply)
