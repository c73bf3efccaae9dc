"""Muon: the momentum memory with Newton-Schulz as its output."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import optax
from jax.sharding import Mesh

from nlx.optim import assembly
from nlx.optim.momentum import scale_by_momentum
from nlx.optim.newton_schulz import QUINTIC, Triple, newton_schulz


def muon(
  learning_rate: optax.ScalarOrSchedule,
  decay: float = 0.95,
  *,
  nesterov: bool = True,
  steps: int | None = None,
  coefficients: Triple | Sequence[Triple] = QUINTIC,
  mesh: Mesh | None = None,
  weight_decay: float = 0.0,
  mask: Any = None,
  labels: assembly.Labels | None = None,
  adamw: Mapping[str, Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Muon for matrices, AdamW for the rest: a linear memory with a non-linear output.

  Its direction is `scale_by_momentum(decay, rate=1 - decay, output=newton_schulz, ...)`, times
  0.2 sqrt(max(M, N)), so that one learning rate serves both (Liu et al., arXiv 2502.16982).

  Args:
    learning_rate: Constant or schedule, in the range of AdamW's.
    decay: What is kept of the memory per step, in [0, 1).
    nesterov: Whether the memory looks one step ahead.
    steps: Of Newton-Schulz; see `newton_schulz`.
    coefficients: Of Newton-Schulz.
    mesh: Devices that share the work of Newton-Schulz.
    weight_decay: Fraction of a weight removed per step, in units of the learning rate.
    mask: A function that says which parameters decay, as in `optax.adamw`.
    labels: From params to 'matrix' or 'other'; see `nlx.optim.matrix_labels`.
    adamw: Options of the AdamW for the rest.

  Returns:
    An optax transformation.

  Raises:
    ValueError: If `decay` is not in [0, 1).

  Example:
    >>> import nlx
    >>> tx = nlx.optim.muon(3e-4, weight_decay=0.1)

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eq. 52; Jordan et al., Muon, 2024.
  """
  output = functools.partial(newton_schulz, steps=steps, coefficients=coefficients, mesh=mesh)
  scale = scale_by_momentum(decay, rate=1 - decay, nesterov=nesterov, debias=True, output=output)
  scale = optax.chain(scale, assembly.scale_by_shape())
  return assembly.by_kind(
    scale, learning_rate, weight_decay=weight_decay, mask=mask, labels=labels, adamw=adamw
  )
