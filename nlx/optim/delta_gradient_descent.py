"""Delta gradient descent: each layer regresses its outputs onto their negative gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlx.optim import assembly, leaves


class Captured(NamedTuple):
  """A kernel whose layer also reports the second moment of its inputs, as a gradient.

  Attributes:
    weight: [..., in, out], applied as y = x W.
    moment: [..., in, in] zeros, which stay zeros; its gradient is the mean of x x^T.
  """

  weight: jax.Array
  moment: jax.Array


def capture(weight: jax.Array) -> Captured:
  """A kernel [..., in, out] as a parameter of `dense`.

  Args:
    weight: The kernel; axes before the last two are a batch of kernels, for `jax.vmap` or a scan.

  Returns:
    The kernel with a moment of zeros, in at least float32.

  Raises:
    ValueError: If `weight` has fewer than two axes.
  """
  if weight.ndim < 2:
    raise ValueError(f'`weight` must be a kernel [..., in, out], got the shape {weight.shape}.')
  shape = (*weight.shape[:-1], weight.shape[-2])
  return Captured(weight, jnp.zeros(shape, jnp.promote_types(weight.dtype, jnp.float32)))


def dense(x: jax.Array, captured: Captured, weights: jax.Array | None = None) -> jax.Array:
  """The product x W, whose gradient for `moment` is the mean of x x^T, whatever the loss.

  Gradients of x and W are the usual ones. The mean, a weighted one, is over all leading axes of x.
  Where one kernel is used several times, as in a `jax.vmap` over data, a loop over time or two
  layers, the means add up instead, so give `dense` all that a kernel sees at once.
  Reverse mode works to any order; forward mode through `dense` itself does not (a `custom_vjp`).

  Args:
    x: [..., in].
    captured: Of a kernel [in, out].
    weights: [...], of the x x^T in the mean, such as 0 for those that are padding; equal if None.

  Returns:
    [..., out].

  Example:
    >>> import jax, nlx, jax.numpy as jnp
    >>> kernel = nlx.optim.capture(jnp.ones((2, 1)))
    >>> loss = lambda kernel: jnp.mean(nlx.optim.dense(jnp.array([[1.0, 2.0]]), kernel))
    >>> jax.grad(loss)(kernel).moment.tolist()
    [[1.0, 2.0], [2.0, 4.0]]
  """
  if weights is None:
    weights = jnp.ones(x.shape[:-1], captured.moment.dtype)
  return _dense(x, captured, weights)


@jax.custom_vjp
def _dense(x, captured, weights):
  return x @ captured.weight


def _dense_forward(x, captured, weights):
  y, backward = jax.vjp(jnp.matmul, x, captured.weight)
  return y, (backward, x, captured.moment, weights)


def _dense_backward(residuals, cotangent):
  backward, x, moment, weights = residuals
  x_gradient, weight_gradient = backward(cotangent)
  rows = x.reshape(-1, x.shape[-1]).astype(moment.dtype)
  shares = weights.reshape(-1, 1).astype(moment.dtype)
  shares /= jnp.maximum(jnp.sum(shares), jnp.finfo(shares.dtype).tiny)
  moment_gradient = (shares * rows).T @ rows
  return x_gradient, Captured(weight_gradient, moment_gradient), jnp.zeros_like(weights)


_dense.defvjp(_dense_forward, _dense_backward)


class ScaleByDeltaGradientDescentState(NamedTuple):
  """State of `scale_by_delta_gradient_descent`."""

  count: jax.Array  # type: ignore[assignment]  # int32 scalar, steps taken


def scale_by_delta_gradient_descent(
  learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
  """Delta gradient descent (DGD) for `Captured` kernels; other leaves pass unchanged.

  A gradient step lowers <W^T x, -u>, where u = -grad_y of the loss. DGD lowers an L2 regression of
  W^T x onto u instead, and takes the exact proximal step:

      W+ = argmin_W  mean_i 1/2 ||W^T x_i - u_i||^2 + 1 / (2 eta) ||W - W0||^2
         = W0 - eta D,        D = (I + eta C)^-1 (C W0 + G),        C = mean_i x_i x_i^T

  with G the gradient of the mean loss and u_i of the loss of sample i. For one sample this is the
  paper's W (I - eta' x x^T) - eta' grad with eta' = eta / (1 + eta ||x||^2). (Ours: that eta'. The
  paper assumes ||x|| = 1.) What W says of inputs that do not occur is not touched. Along
  inputs that do occur, W decays as it learns: the fixed point is a compromise, half of the
  target for a squared loss.

  C comes as the gradient of `moment`; means over steps, devices or micro-batches keep it
  right, but what rescales gradients, such as clipping by a norm, rescales it too.

  Args:
    learning_rate: eta, constant or schedule: the same as what the direction is scaled by.

  Returns:
    An optax transformation from gradients to D, with zeros for moments. It needs params.

  Raises:
    ValueError: If `learning_rate` is negative; from `update`, if params are not given.

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> params = nlx.optim.capture(jnp.ones((1, 1)))
    >>> tx = nlx.optim.scale_by_delta_gradient_descent(1.0)
    >>> gradients = params._replace(moment=jnp.ones((1, 1)))
    >>> tx.update(gradients, tx.init(params), params)[0].weight.round(3).tolist()
    [[1.0]]

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 54-57 and App. C.
  """
  leaves.check_not_negative('learning_rate', learning_rate)

  def update(gradients, state, params):
    if params is None:
      raise ValueError('delta gradient descent needs params: `update(gradients, state, params)`.')
    eta = learning_rate(state.count) if callable(learning_rate) else learning_rate

    def one(gradient, param):
      return _proximal(gradient, param, eta) if _is_present(gradient) else gradient

    updates = jax.tree.map(one, gradients, params, is_leaf=is_captured)
    return updates, ScaleByDeltaGradientDescentState(optax.safe_increment(state.count))

  def init(params):
    del params
    return ScaleByDeltaGradientDescentState(jnp.zeros((), jnp.int32))

  return leaves.transformation(init, update)


def is_captured(node: Any) -> bool:
  """Whether a node of a tree of parameters or gradients is a `Captured` kernel."""
  return isinstance(node, Captured)


def release(tree: Any) -> Any:
  """A tree of parameters or gradients with the kernels alone in place of `Captured` ones."""
  return jax.tree.map(
    lambda node: node.weight if is_captured(node) else node, tree, is_leaf=is_captured
  )


def _is_present(node: Any) -> bool:
  """Whether it is one that `optax.masked` or `optax.partition` has not left out."""
  return is_captured(node) and not isinstance(node.weight, optax.MaskedNode)


def _proximal(gradient: Captured, param: Captured, eta) -> Captured:
  """D = (I + eta C)^-1 (C W0 + G), with zeros for the moment."""
  moment = leaves.in_float32(gradient.moment)
  target = moment @ leaves.in_float32(param.weight) + leaves.in_float32(gradient.weight)
  identity = jnp.broadcast_to(jnp.eye(moment.shape[-1], dtype=moment.dtype), moment.shape)
  system = identity + (eta * moment).astype(moment.dtype)
  direction = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(system), target)
  return Captured(direction.astype(gradient.weight.dtype), jnp.zeros_like(gradient.moment))


def delta_gradient_descent(
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: float = 0.0,
  mask: Any = None,
  other: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Delta gradient descent for `Captured` kernels, and another optimizer for everything else.

  See `scale_by_delta_gradient_descent`.

  Args:
    learning_rate: Constant or schedule.
    weight_decay: Fraction of a weight removed per step, in units of the learning rate.
    mask: A function that says which parameters decay, as in `optax.adamw`.
    other: For leaves outside of `Captured` kernels; `optax.adamw` with the same learning rate,
      weight decay and mask if not given.

  Returns:
    An optax transformation. It needs params.

  Raises:
    ValueError: If `learning_rate` is negative; from `update`, if params are not given.

  Example:
    >>> import nlx
    >>> tx = nlx.optim.delta_gradient_descent(1e-1)

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eqs. 54-57.
  """
  scale = scale_by_delta_gradient_descent(learning_rate)
  if other is None:
    other = optax.adamw(learning_rate, weight_decay=weight_decay, mask=mask)

  def labels(params):
    return jax.tree.map(
      lambda node: 'captured' if is_captured(node) else 'other', params, is_leaf=is_captured
    )

  return optax.partition(
    {'captured': assembly.descend(scale, learning_rate, weight_decay, mask), 'other': other},
    labels,
  )
