"""Update rules: how a memory writes one token."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Rule(NamedTuple):
  """A gradient rule with retention and momentum, Eqs. 90-93.

  For every matrix W of a memory, with input x_t and error e_t taken at the weights of the chunk's
  start,

      S_t = mu_t S_{t-1} - write_t e_t x_t^T
      W_t = W_{t-1} (alpha_t I - decay_t x_t x_t^T) + S_t

  Attributes:
    name: For tables.
    delta: Whether W decays along its input (delta gradient descent); if not, decay_t = 0.
    momentum: Whether S accumulates; if not, mu_t = 0.
    retention: Whether alpha_t is used; if not, alpha_t = 1.
    averaged: With momentum: write_t carries the factor 1 - mu_t, so that S is an average.
    proximal: Rates are those of the exact proximal step, eta / (1 + eta ||x||^2); if not, eta.
    scale_by_depth: Whether errors are divided by the number of matrices that learn at once.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 54-57, 90-93.
  """

  name: str
  delta: bool
  momentum: bool
  retention: bool
  averaged: bool = True
  proximal: bool = True
  scale_by_depth: bool = True


def dgd(*, momentum: bool = False, retention: bool = True, literal: bool = False) -> Rule:
  """Delta gradient descent: the exact minimiser of an L2 regression of W x onto -grad, per token.

  Rates are those of the exact proximal step, eta' = eta / (1 + eta ||x||^2), for the decay and for
  the write. Momentum is an average, and the errors of a network of n matrices are divided by n;
  both keep chunks of any size stable. The printed form, which diverges, is `literal`.

  Args:
    momentum: Whether writes pass through a momentum.
    retention: Whether old content decays by a gate.
    literal: eta in the write, undivided errors and S = mu S - eta e x^T, as Eqs. 91-93 print them.

  Returns:
    The rule.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 54-57, 93 and App. C. The paper
    assumes ||x|| = 1.
  """
  stable = not literal
  return Rule('DGD', True, momentum, retention, stable, stable, stable)


def gradient(*, momentum: bool = False, retention: bool = True, literal: bool = False) -> Rule:
  """Plain gradient descent on the inner objective: Titans' rule with momentum and retention.

  Args:
    momentum: Whether writes pass through a momentum.
    retention: Whether old content decays by a gate.
    literal: Undamped rates, undivided errors and S = mu S - eta e x^T.

  Returns:
    The rule.

  References:
    Behrouz et al., Titans, arXiv 2501.00663, Eqs. 9-14.
  """
  stable = not literal
  return Rule('gradient', False, momentum, retention, stable, stable, stable)


class Gates(NamedTuple):
  """How strongly each token is written, and how much of the past it leaves."""

  rate: jax.Array  # [..., C] eta_t >= 0
  log_retention: jax.Array  # [..., C] log alpha_t <= 0
  log_momentum: jax.Array  # [..., C] log mu_t <= 0
  valid: jax.Array | None = None  # [..., C] 0 where a token is padding; None if none is


_LOG_FLOOR = -15.0


def log_gate(logits: jax.Array) -> jax.Array:
  """Log sigmoid of logits, bounded below so that a closed gate has finite gradients everywhere."""
  return jnp.maximum(jax.nn.log_sigmoid(logits), _LOG_FLOOR)


def mask_gates(gates: Gates, valid: jax.Array) -> Gates:
  """Gates under which tokens with `valid` False leave no trace.

  Args:
    gates: [..., C].
    valid: [C] bool.
  """
  valid = valid.reshape((1,) * (gates.rate.ndim - 1) + valid.shape)
  valid = jnp.broadcast_to(valid, gates.rate.shape)
  masked = jax.tree.map(lambda gate: jnp.where(valid, gate, 0), gates)
  return masked._replace(valid=valid.astype(gates.rate.dtype))


def rates(
  rule: Rule, gates: Gates, squared_inputs: jax.Array
) -> tuple[jax.Array | None, jax.Array]:
  """The coefficients decay_t and write_t of one matrix, each [..., C]; decay is None without delta.

  Args:
    rule: The rule.
    gates: [..., C].
    squared_inputs: ||x_t||^2 [..., C] of that matrix's inputs.
  """
  proximal = gates.rate / (1 + gates.rate * squared_inputs)
  write = proximal if rule.proximal else gates.rate
  if rule.momentum and rule.averaged:
    write = -jnp.expm1(gates.log_momentum) * write
  return proximal if rule.delta else None, write
