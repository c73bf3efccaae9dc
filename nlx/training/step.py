"""One training step and one evaluation step, as pure functions of a state."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlx import optim
from nlx.optim.leaves import in_float32

Params = Any
Batch = dict[str, jax.Array]
LossFn = Callable[[Params, Batch], tuple[jax.Array, jax.Array]]
Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
  """All that a step reads and writes."""

  params: Params  # Slow weights, float32.
  opt_state: optax.OptState
  step: jax.Array  # [] int32 completed steps
  key: jax.Array  # [] PRNG key of the run, constant; fold in `step` to use it
  failed_step: jax.Array  # [] int32, 0 while healthy, else the step (from 1) that was not finite


def init_state(params: Params, tx: optax.GradientTransformation, *, key: jax.Array) -> TrainState:
  """Returns the state before the first step.

  Args:
    params: Tree of arrays; copied, as the key is, because a step gives its input buffers away.
    tx: The optimizer.
    key: PRNG key of the run.

  Returns:
    A healthy state at step 0.
  """
  params = jax.tree.map(lambda param: jnp.array(param, copy=True), params)
  zero = jnp.zeros((), jnp.int32)
  opt_state = jax.tree.map(jnp.copy, tx.init(params))  # It may hold the parameters themselves.
  return TrainState(params, opt_state, zero, jnp.copy(key), jnp.zeros((), jnp.int32))


def make_step(
  loss_fn: LossFn,
  tx: optax.GradientTransformation,
  accumulation: int = 1,
  *,
  schedule: optax.Schedule | None = None,
  shardings: TrainState | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Makes the jitted training step; it gives the buffers of its input state away.

  The loss is the mean over the valid tokens of the whole batch, however it is divided. If the
  loss, the norm of its gradient or that of the update is not finite, the state stays as it was, but
  for `failed_step`, and no later step changes it.

  Args:
    loss_fn: Maps params and a batch to the sum of losses, in nats, and the number of tokens.
    tx: The optimizer.
    accumulation: Microbatches, one after the other, per batch; divides the batch size.
    schedule: Learning rate by step, for the metrics only.
    shardings: A tree like the state, so that the new state lies where the old one lay.

  Returns:
    A function from a state and a batch to the next state and its metrics: `loss` in nats per
    token, `bits_per_token`, `tokens`, `grad_norm`, `update_norm`, `learning_rate` where a
    schedule is given, and `failed_step`.

  Raises:
    ValueError: If `accumulation` is smaller than 1 or, while tracing, does not divide the batch.
  """
  if accumulation < 1:
    raise ValueError(f'`accumulation` must be at least 1 microbatch, got {accumulation}.')

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    loss, count, grads = _mean_gradient(loss_fn, state.params, batch, accumulation)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    grad_norm, update_norm = optax.tree.norm(optim.release(grads)), optax.tree.norm(updates)
    new = state._replace(
      params=optax.apply_updates(state.params, updates), opt_state=opt_state, step=state.step + 1
    )
    new = _guard(state, new, jnp.isfinite(jnp.stack([loss, grad_norm, update_norm])).all())
    metrics = {
      'loss': loss,
      'bits_per_token': loss / math.log(2),
      'tokens': count,
      'grad_norm': grad_norm,
      'update_norm': update_norm,
      'failed_step': new.failed_step,
    }
    if schedule is not None:
      metrics['learning_rate'] = jnp.asarray(schedule(state.step))
    return new, metrics

  out_shardings = None if shardings is None else (shardings, None)
  return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)


def make_eval(loss_fn: LossFn) -> LossFn:
  """Makes the jitted evaluation step: params and a batch to a sum of losses and a count."""
  return jax.jit(loss_fn)


def evaluate(eval_step: LossFn, params: Params, batches: Iterable[Batch]) -> tuple[float, float]:
  """Returns the mean loss per token over all batches.

  Args:
    eval_step: What `make_eval` returned.
    params: Slow weights.
    batches: Batches as `eval_step` takes them.

  Returns:
    The loss in nats per valid token, and the number of valid tokens.

  Raises:
    ValueError: If no token is valid.
  """
  total, count = 0.0, 0.0
  for batch in batches:
    loss_sum, valid = eval_step(params, batch)
    total, count = total + float(loss_sum), count + float(valid)
  if not count:
    raise ValueError('`batches` must hold at least one valid token, got none.')
  return total / count, count


def _mean_gradient(loss_fn: LossFn, params: Params, batch: Batch, accumulation: int):
  """Returns the mean loss, the number of tokens and the gradient of the mean."""

  def mean(params, batch):
    loss_sum, count = loss_fn(params, batch)
    return _over(loss_sum, count), count

  def means_of(batch):
    return jax.value_and_grad(mean, has_aux=True)(params, batch)

  if accumulation == 1:
    (loss, count), grads = means_of(batch)
    return loss, count, grads

  def sums_of(batch):
    (loss, count), grads = means_of(batch)
    return jax.tree.map(lambda x: in_float32(x) * count, (loss, grads)), count

  def add(sums, microbatch):
    return jax.tree.map(jnp.add, sums, sums_of(microbatch)), None

  microbatches = jax.tree.map(lambda leaf: _divide(leaf, accumulation), batch)
  zeros = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
    jax.eval_shape(sums_of, jax.tree.map(lambda leaf: leaf[0], microbatches)),
  )
  (sums, count), _ = jax.lax.scan(add, zeros, microbatches)
  loss, grads = jax.tree.map(lambda x: _over(x, count), sums)
  return loss, count, jax.tree.map(lambda grad, param: grad.astype(param.dtype), grads, params)


def _over(total: jax.Array, count: jax.Array) -> jax.Array:
  """A sum divided by the number of tokens in it, nothing by 1."""
  total = in_float32(total)
  return total / jnp.maximum(count, 1).astype(total.dtype)


def _divide(leaf: jax.Array, parts: int) -> jax.Array:
  """Divides the leading axis, [B, ...] -> [parts, B / parts, ...].

  Every microbatch takes rows from all over the batch, so that a batch divided over devices stays
  divided over the same devices.
  """
  if leaf.shape[0] % parts:
    raise ValueError(
      f'`accumulation` must divide the batch of {leaf.shape[0]} sequences, got {parts}.'
    )
  return leaf.reshape(leaf.shape[0] // parts, parts, *leaf.shape[1:]).swapaxes(0, 1)


def _guard(old: TrainState, new: TrainState, finite: jax.Array) -> TrainState:
  """Returns the new state if this and every earlier step was finite, else the old one."""
  healthy = old.failed_step == 0
  failed_step = jnp.where(healthy & ~finite, old.step + 1, old.failed_step)
  kept = jax.tree.map(lambda a, b: jnp.where(healthy & finite, a, b), new, old)
  return kept._replace(failed_step=failed_step)
