"""Update rules: how a memory writes one token."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nlx import core
from nlx.memories.mirrors import Mirror


class Rule(NamedTuple):
  """A gradient rule with retention and momentum, Eqs. 90-93.

  For every matrix W of a memory, with input x_t and error e_t taken at the weights of the chunk's
  start,

      S_t = mu_t S_{t-1} - write_t e_t x_t^T
      W_t = W_{t-1} (alpha_t I - decay_t x_t x_t^T) + S_t

  The further fields change one part of it each.

  Attributes:
    name: For tables.
    delta: Whether W decays along its input (delta gradient descent); if not, decay_t = 0.
    momentum: Whether S accumulates; if not, mu_t = 0.
    retention: Whether alpha_t is used; if not, alpha_t = 1.
    averaged: With momentum: write_t carries the factor 1 - mu_t, so that S is an average.
    proximal: Rates are those of the exact proximal step, eta / (1 + eta ||x||^2); if not, eta.
    scale_by_depth: Whether errors are divided by the number of matrices that learn at once.
    exact: Whether the error is that of alpha_t W_{t-1}, right before the token, instead of the
      chunk's start. It is then linear in W: decay_t = alpha_t eta_t, and what is left of e_t is
      -v_t. For a single matrix under the L2 objective.
    transposed: Whether W decays along its output, on the other side: decay_t v_t v_t^T W_{t-1}. For
      a single matrix under the dot product.
    window: Tokens whose errors make up one write: S_t gains the mean over the last `window` tokens
      instead of the token's own.
    span: Tokens that a proximal step is shared by: its rate is eta / (1 + span eta ||x||^2). Errors
      that are taken once per chunk add up along a key that the chunk repeats; with a span of the
      chunk's size they cannot overshoot, whatever eta is. The decay of `delta` serves the same end.
    orthogonal: Newton-Schulz steps on S_t before it is added, times eta_t; 0 for none.
    mirror: The map from what the rule moves to the weights; None for the identity.
    hard_cap: Whether rates, those of the proximal step if there is one, are at most
      2 alpha_t / (span ||x_t||^2), and half of that under delta gradient descent, whose decay takes
      the other half. With errors under L2 taken right before a token, that token makes
      W (alpha_t I - c_t x_t x_t^T) of W, where c_t is what decay and write add up to: as long as
      c_t ||x_t||^2 <= 2 alpha_t it does not expand. For longer chunks see `dgd` and `gradient`.
    soft_cap: Whether rates are at most (1 - alpha_t) / ||e_t||, so that a write is no larger than
      what retention forgets of weights as large as x_t. The error is the one that is written, of
      the chunk's start and divided by the depth. For what it bounds see `dgd` and `gradient`.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 54-57, 65-68, 90-93. The caps
    are not in the paper.
  """

  name: str
  delta: bool = False
  momentum: bool = False
  retention: bool = True
  averaged: bool = True
  proximal: bool = True
  scale_by_depth: bool = True
  exact: bool = False
  transposed: bool = False
  window: int = 1
  span: int = 1
  orthogonal: int = 0
  mirror: Mirror | None = None
  hard_cap: bool = False
  soft_cap: bool = False

  @property
  def text(self) -> str:
    """The rule in a few words."""
    parts = (
      (self.name, True),
      (f'window {self.window}', self.window > 1),
      ('momentum', self.momentum),
      ('orthogonal', self.orthogonal),
      ('hard cap', self.hard_cap),
      ('soft cap', self.soft_cap),
      (
        'retention' + (f' {self.mirror.name}' if self.mirror else ''),
        self.retention or self.mirror,
      ),
    )
    return ', '.join(part for part, is_used in parts if is_used)

  @property
  def per_token(self) -> bool:
    """Whether some step is not linear in the state, so that each token's matrices are built."""
    return self.orthogonal > 0 or self.mirror is not None


def dgd(
  *,
  momentum: bool = False,
  retention: bool = True,
  span: int = 1,
  literal: bool = False,
  hard_cap: bool = False,
  soft_cap: bool = False,
) -> Rule:
  """Delta gradient descent: the exact minimiser of an L2 regression of W x onto -grad, per token.

  Rates are those of the exact proximal step, eta' = eta / (1 + eta ||x||^2), for the decay and for
  the write. Momentum is an average, and the errors of a network of n matrices are divided by n,
  which keeps short chunks stable; long ones with momentum and open gates can diverge, see `span`
  and `nlx.memories.huber`. The printed form, which diverges sooner, is `literal`.

  Args:
    momentum: Whether writes pass through a momentum.
    retention: Whether old content decays by a gate.
    span: Tokens that share a proximal step, see `Rule`; the chunk's size bounds even momentum in
      long chunks with open gates.
    literal: eta in the write, undivided errors and S = mu S - eta e x^T, as Eqs. 91-93 print them.
    hard_cap: Whether the rate, eta' or if `literal` eta, is at most alpha / (span ||x||^2). What
      the start of a chunk contributes to the answers at a key that repeats then never grows, of one
      matrix under L2 without momentum: in chunks of any size, if `literal` of up to `span` tokens.
      With rates below 1 and unit keys it never binds where alpha >= 1/2 and the span is 1, unless
      `literal`.
    soft_cap: Whether the rate is at most (1 - alpha) / ||e||. Given alpha >= 1/2 or the hard cap,
      no matrix outgrows the larger of its start and its largest input, at any rate, chunk size and
      depth. With momentum that is for a constant alpha, and 1 / (1 - mu) as large if `literal`.
      Nothing is written where alpha is 1.

  Returns:
    The rule.

  Raises:
    ValueError: If `span` is smaller than 1, or `soft_cap` is without retention.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 54-57, 93 and App. C. The paper
    assumes ||x|| = 1.
  """
  core.check_positive('span', span, 'token')
  return _stable_or_literal(
    'DGD',
    literal,
    delta=True,
    momentum=momentum,
    retention=retention,
    span=span,
    hard_cap=hard_cap,
    soft_cap=soft_cap,
  )


def gradient(
  *,
  momentum: bool = False,
  retention: bool = True,
  span: int = 1,
  literal: bool = False,
  mirror: Mirror | None = None,
  hard_cap: bool = False,
  soft_cap: bool = False,
) -> Rule:
  """Plain gradient descent on the inner objective: Titans' rule with momentum and retention.

  On the dot product, literal, it is (gated) linear attention.

  Args:
    momentum: Whether writes pass through a momentum.
    retention: Whether old content decays by a gate.
    span: Tokens that share a proximal step, see `Rule`; the chunk's size keeps a memory from
      overshooting on repeated keys, 1 is the step of one token.
    literal: Undamped rates, undivided errors and S = mu S - eta e x^T.
    mirror: A retention other than L2, such as `lq_retention()`.
    hard_cap: Whether the rate is at most 2 alpha / (span ||x||^2). What the start of a chunk
      contributes to the answers at a key that repeats then never grows, of one matrix under L2
      without momentum, in chunks of up to `span` tokens within which alpha is constant. In longer
      chunks it may.
    soft_cap: Whether the rate is at most (1 - alpha) / ||e||. No matrix, or dual of one, outgrows
      the larger of its start and its largest input, at any rate, chunk size and depth. With
      momentum that is for a constant alpha, and 1 / (1 - mu) as large if `literal`. Nothing is
      written where alpha is 1.

  Returns:
    The rule.

  Raises:
    ValueError: If `span` is smaller than 1, `hard_cap` is with a `mirror`, or `soft_cap` without
      retention.

  References:
    Behrouz et al., Titans, arXiv 2501.00663, Eqs. 9-14; Miras, arXiv 2504.13173, Secs. 4-5.
  """
  core.check_positive('span', span, 'token')
  return _stable_or_literal(
    'gradient',
    literal,
    momentum=momentum,
    retention=retention,
    span=span,
    mirror=mirror,
    hard_cap=hard_cap,
    soft_cap=soft_cap,
  )


def delta_rule(*, retention: bool = True, hard_cap: bool = False) -> Rule:
  """The delta rule: a gradient step on the L2 error of the weights right before each token.

      W_t = alpha_t W_{t-1} (I - eta_t k_t k_t^T) + eta_t v_t k_t^T

  With retention it is that of Gated DeltaNet, without that of DeltaNet. The chunk-parallel form is
  exact for chunks of any size. Without the hard cap keys must have unit norm at most, or the decay
  overshoots.

  Args:
    retention: Whether old content decays by a gate.
    hard_cap: Whether eta is at most 2 / ||k||^2, so that W_{t-1} never expands.

  Returns:
    A rule for memories that are one matrix.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eq. 65; Yang et al., Gated Delta Networks,
    arXiv 2412.06464.
  """
  return Rule(
    'delta', delta=True, retention=retention, proximal=False, exact=True, hard_cap=hard_cap
  )


def oja(*, retention: bool = True, literal: bool = False, hard_cap: bool = False) -> Rule:
  """Oja's rule: a Hebbian write that decays what the memory already answers along the value.

      W_t = alpha_t W_{t-1} + eta_t (v_t k_t^T - v_t v_t^T W_{t-1})

  It is a gradient step on -2 <W k, v> + ||W^T v||^2. Ours: the dimensions of the printed equation
  do not match; this is the rule for W [V, K], and its rate is eta / (1 + eta ||v||^2), with which
  large values cannot overshoot. The chunk-parallel form is exact for any chunk.

  Args:
    retention: Whether old content decays by a gate.
    literal: Rates of eta, which diverge for values of a norm above the root of 2 / eta.
    hard_cap: Whether the rate is at most 2 alpha / ||v||^2, so that W_{t-1} never expands.

  Returns:
    A rule for memories that are one matrix, on the dot product.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eq. 66.
  """
  return Rule(
    'Oja',
    delta=True,
    retention=retention,
    proximal=not literal,
    transposed=True,
    hard_cap=hard_cap,
  )


def omega(
  *,
  window: int,
  momentum: bool = True,
  retention: bool = True,
  span: int = 1,
  orthogonal: int = 0,
  literal: bool = False,
  hard_cap: bool = False,
  soft_cap: bool = False,
) -> Rule:
  """The Omega rule: every write is a gradient step on the errors of the last `window` tokens.

      S_t = mu_t S_{t-1} - sum_{i > t - window} eta_i e_i x_i^T
      W_t = alpha_t W_{t-1} + S_t

  All errors, also those of tokens of the chunk before, are taken at the weights of the chunk's
  start. Ours: the weights gamma_{t,i} of the sum are the tokens' own rates; the sum is a mean, so
  that the window does not scale the step.

  Args:
    window: c, tokens in the sum.
    momentum: Whether writes pass through a momentum.
    retention: Whether old content decays by a gate.
    span: Tokens that share a proximal step, see `Rule`.
    orthogonal: Newton-Schulz steps on S_t, which make the write eta_t NS(S_t) as in Atlas; 0 for
      none.
    literal: A sum instead of a mean, undamped rates, undivided errors, no average.
    hard_cap: Whether every token's rate is at most 2 alpha / (span ||x||^2), as for `gradient`.
    soft_cap: Whether every token's rate is at most (1 - alpha) / ||e||. The bound of `gradient`
      holds for a constant alpha only, and is `window` times as large if `literal`.

  Returns:
    The rule.

  Raises:
    ValueError: If `window` or `span` is smaller than 1, `orthogonal` is negative or with a cap, or
      `soft_cap` without retention.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eq. 68; Atlas, arXiv 2505.23735.
  """
  core.check_positive('window', window, 'token')
  core.check_positive('span', span, 'token')
  if orthogonal < 0:
    raise ValueError(f'`orthogonal` must be at least 0 steps, got {orthogonal}.')
  return _stable_or_literal(
    'Omega',
    literal,
    momentum=momentum,
    retention=retention,
    window=window,
    span=span,
    orthogonal=orthogonal,
    hard_cap=hard_cap,
    soft_cap=soft_cap,
  )


def _stable_or_literal(name: str, literal: bool, **fields: Any) -> Rule:
  stable = not literal
  rule = Rule(name, averaged=stable, proximal=stable, scale_by_depth=stable, **fields)
  check_caps(rule)
  return rule


def check_caps(rule: Rule) -> None:
  """Raises ValueError if the rule has no form with its caps."""
  linear = rule.exact or rule.transposed
  without = {
    # The error itself is not known before the chunk's recurrence.
    'soft_cap': rule.soft_cap and (linear or rule.orthogonal > 0),
    # What the rule moves is not what a transition would have to hold.
    'hard_cap': rule.hard_cap and (rule.orthogonal > 0 or rule.mirror is not None),
  }
  for name, is_too_much in without.items():
    if is_too_much:
      raise ValueError(f'the rule {rule.name} has no form with `{name}`, got {rule}.')
  if rule.soft_cap and not rule.retention:
    raise ValueError(f'`soft_cap` needs `retention`, which it is measured by, got {rule}.')


class Gates(NamedTuple):
  """How strongly each token is written, and how much of the past it leaves."""

  rate: jax.Array  # [..., C] eta_t >= 0
  log_retention: jax.Array  # [..., C] log alpha_t <= 0
  log_momentum: jax.Array  # [..., C] log mu_t <= 0
  valid: jax.Array | None = None  # [..., C] 0 where a token is padding; None if none is


_LOG_FLOOR = -15.0


def log_gate(logits: jax.Array) -> jax.Array:
  """Log sigmoid of logits, bounded below so that a closed gate has finite gradients everywhere."""
  return bounded_log_gate(jax.nn.log_sigmoid(logits))


def bounded_log_gate(log_gate: jax.Array) -> jax.Array:
  """The logarithm of a gate, not below that of a gate that is as good as closed."""
  return jnp.maximum(log_gate, _LOG_FLOOR)


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


# Under a squared norm that a cap divides by: finite derivatives at inputs and errors of zero.
_SQUARE_FLOOR = 1e-12


def rates(
  rule: Rule, gates: Gates, inputs: jax.Array, errors: jax.Array
) -> tuple[jax.Array | None, jax.Array]:
  """The coefficients decay_t and write_t of one matrix, each [..., C]; decay is None without delta.

  Args:
    rule: The rule.
    gates: [..., C].
    inputs: x_t [..., C, K] of that matrix.
    errors: e_t [..., C, V] of that matrix.
  """
  squares = jnp.sum(jnp.square(inputs), axis=-1)
  rate = gates.rate / (1 + rule.span * gates.rate * squares) if rule.proximal else gates.rate
  if rule.hard_cap:
    rate = jnp.minimum(rate, _hard_cap(rule, gates, squares))
  if rule.soft_cap:
    rate = jnp.minimum(rate, _soft_cap(gates, errors))
  if rule.exact:
    return _kept(rule, gates) * rate, rate
  decay = write = rate
  if not (rule.proximal or rule.transposed):
    decay = rate / (1 + rule.span * rate * squares)
  if rule.momentum and rule.averaged:
    write = -jnp.expm1(gates.log_momentum) * write
  if rule.window > 1 and rule.averaged:
    write = write / rule.window
  return decay if rule.delta else None, write


def _kept(rule, gates):
  return jnp.exp(gates.log_retention) if rule.retention else 1


def _hard_cap(rule, gates, squares):
  """The largest rate at which no answer expands."""
  kept = 1 if rule.exact else _kept(rule, gates)
  linear = rule.exact or rule.transposed
  terms = 2 if rule.delta and not linear else 1  # Along x: the write, and the decay.
  return 2 * kept / (terms * jnp.maximum(rule.span * squares, _SQUARE_FLOOR))


def _soft_cap(gates, errors):
  """The largest rate that writes no more than retention forgets."""
  squares = jnp.sum(jnp.square(errors), axis=-1)
  return -jnp.expm1(gates.log_retention) * jax.lax.rsqrt(jnp.maximum(squares, _SQUARE_FLOOR))
