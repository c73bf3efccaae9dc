"""Newton-Schulz: the orthogonal factor of matrices, by matrix products only."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nlx import core
from nlx.core import QUINTIC, Triple
from nlx.optim import leaves

# On CPUs matrices are taken this many at a time, so that an iteration stays in the cache.
_CACHE_BYTES = 2**20

CUBIC: Triple = (1.5, -0.5, 0.0)
"""Converges to 1; `inner_loop(0.5)`."""


def inner_loop(rate: float) -> Triple:
  """The coefficients of a gradient step on 1/4 ||O O^T - I||^2, the inner-loop reading.

  Args:
    rate: Of the step; converges for rates up to 1/2 once singular values are at most 1.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 43-44.
  """
  return 1 + rate, -rate, 0.0


def minimax(smallest: float = 1e-3, steps: int = 6, *, safety: float = 1.01) -> tuple[Triple, ...]:
  """Coefficients for each step, the best for singular values in [smallest, 1].

  Every step is the odd quintic that is nearest to 1 in the largest deviation over the interval that
  the step before it has left, found by equal ripples (Remez). Beyond its end it grows fast, and
  rounding, as of products in bfloat16, leads there.

  Args:
    smallest: The least singular value, relative to the norm, that must be brought to 1.
    steps: How many.
    safety: By what all steps but the last divide their input, at least 1.

  Returns:
    One triple per step, for `newton_schulz`.

  Raises:
    ValueError: If `smallest` is not in (0, 1), or `steps` or `safety` is smaller than 1.

  References:
    Amsel et al., The Polar Express, arXiv 2505.16932, Algorithm 1.
  """
  core.check_positive('steps', steps, 'step')
  if not 0 < smallest < 1:
    raise ValueError(f'`smallest` must be in (0, 1), got {smallest}.')
  if not safety >= 1:
    raise ValueError(f'`safety` must be at least 1, got {safety}.')
  low, high, schedule = smallest, 1.0, []
  for i in range(steps):
    scale = safety if i < steps - 1 else 1.0
    (a, b, c), deviation = _nearest_to_one(low / scale, high)
    schedule.append((a / scale, b / scale**3, c / scale**5))
    low, high = 1 - deviation, 1 + deviation
  return tuple(schedule)


def _nearest_to_one(low: float, high: float) -> tuple[Triple, float]:
  """The odd quintic of least deviation from 1 on [low, high], and that deviation."""
  if high - low < 1e-4:  # Ripples too small to tell apart: the quintic that is flattest at 1.
    return (15 / 8, -10 / 8, 3 / 8), 0.0
  inner = low + (high - low) * np.array([0.25, 0.75])
  deviation = 1.0
  for _ in range(100):
    x = np.array([low, *inner, high])
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    system = np.stack([x, x**3, x**5, signs], axis=1)
    a, b, c, deviation = np.linalg.solve(system, np.ones(4))
    root = np.sqrt(max(9 * b * b - 20 * a * c, 0.0))
    moved = np.sqrt(np.array([-3 * b - root, -3 * b + root]) / (10 * c))
    done = np.allclose(moved, inner, rtol=1e-12)
    inner = moved
    if done:
      break
  return (float(a), float(b), float(c)), float(abs(deviation))


def newton_schulz(
  tree: Any,
  *,
  steps: int | None = None,
  coefficients: Triple | Sequence[Triple] = QUINTIC,
  eps: float = 1e-7,
  mesh: Mesh | None = None,
) -> Any:
  """Brings the singular values of every matrix near 1 and keeps its singular vectors.

  X is divided by its Frobenius norm; then X = (a I + b A + c A^2) X with A = X X^T at every step.
  Matrices of one shape are one batched product, whatever leaves they come from.

  Args:
    tree: An array, or a tree of arrays: matrices [..., M, N], any ratio of sides; a vector is a
      matrix of one row. The leading axes are a batch.
    steps: Iterations; 5, or the length of a schedule, if not given. A longer loop than the schedule
      repeats its last triple.
    coefficients: (a, b, c), or one for each step, such as `minimax(1e-3, 6)`.
    eps: Added to the norm; a matrix of zeros stays zero.
    mesh: If given, every device of it orthogonalises its share of the matrices, instead of each
      repeating the work of all.

  Returns:
    A tree of the same structure, shapes and dtypes.

  Raises:
    ValueError: If `steps` is smaller than 1 or the coefficients are no triples.

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> print(nlx.optim.newton_schulz(jnp.diag(jnp.array([3.0, 1.0]))))
    [[0.753... 0.       ]
     [0.       1.133...]]

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 43-44, 52; Jordan et al., Muon, 2024.
  """
  schedule = _schedule(steps, coefficients)
  flat, structure = jax.tree.flatten(tree)
  for members in _groups(flat, together=mesh is not None or jax.default_backend() != 'cpu'):
    rows, columns = sorted(leaves.as_matrix(flat[members[0]]).shape[-2:])
    wide = [_wide(flat[i]).reshape(-1, rows, columns) for i in members]
    done = _orthogonalize(jnp.concatenate(wide), schedule, eps, mesh)
    ends = np.cumsum([len(matrices) for matrices in wide])[:-1]
    for i, matrices in zip(members, jnp.split(done, ends), strict=True):
      flat[i] = _from_wide(matrices, flat[i])
  return jax.tree.unflatten(structure, flat)


def _schedule(steps, coefficients) -> list[Triple]:
  table = np.atleast_2d(np.asarray(coefficients, float))
  if table.ndim != 2 or table.shape[1] != 3 or not len(table):
    raise ValueError(f'`coefficients` must be triples (a, b, c), got {coefficients}.')
  if steps is None:
    steps = 5 if len(table) == 1 else len(table)
  core.check_positive('steps', steps, 'step')
  return [tuple(table[min(i, len(table) - 1)].tolist()) for i in range(steps)]


def _groups(flat, together) -> Iterable[list[int]]:
  """Leaves of one shape and dtype; on CPUs, where a large one gains nothing, it is by itself."""
  groups: dict[tuple, list[int]] = {}
  for i, leaf in enumerate(flat):
    if leaf.size:
      rows, columns = sorted(leaves.as_matrix(leaf).shape[-2:])
      is_alone = not together and 16 * rows * columns >= _CACHE_BYTES
      groups.setdefault((rows, columns, leaf.dtype, i if is_alone else None), []).append(i)
  return groups.values()


def _orthogonalize(x, schedule, eps, mesh):
  """Matrices [n, M, N] with M <= N."""
  count = len(x)
  if mesh is not None:
    x = jnp.pad(x, ((0, -count % mesh.size), (0, 0), (0, 0)))
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    x = jax.lax.with_sharding_constraint(x, sharding)
    return core.orthogonalize(x, schedule, eps)[:count]
  at_once = max(_CACHE_BYTES // (4 * x[0].size), 1)
  if jax.default_backend() != 'cpu' or count <= at_once:
    return core.orthogonalize(x, schedule, eps)
  one = lambda x: core.orthogonalize(x[None], schedule, eps)[0]  # noqa: E731
  return jax.lax.map(one, x, batch_size=at_once)


def _wide(leaf):
  x = leaves.as_matrix(leaf)
  return x.mT if x.shape[-2] > x.shape[-1] else x


def _from_wide(matrices, leaf):
  shape = leaves.as_matrix(leaf).shape
  if shape[-2] > shape[-1]:
    matrices = matrices.mT
  return matrices.reshape(leaf.shape)
