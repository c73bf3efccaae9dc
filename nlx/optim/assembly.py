"""From a direction to an optimizer: learning rate, weight decay, and who gets which rule."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nlx.optim.leaves import Params, as_matrix, check_not_negative

MATRIX, OTHER = 'matrix', 'other'
Labels = Callable[[Params], Any]


def descend(
  scale: optax.GradientTransformation,
  learning_rate: optax.ScalarOrSchedule,
  weight_decay: float = 0.0,
  mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """Steps against a direction, with decoupled weight decay.

  Args:
    scale: What turns gradients into a direction.
    learning_rate: Constant or schedule.
    weight_decay: Fraction of a weight removed per step, in units of the learning rate.
    mask: Says which parameters decay, as in `optax.adamw`.

  Returns:
    An optax transformation.
  """
  check_not_negative('learning_rate', learning_rate)
  decay = optax.add_decayed_weights(weight_decay, mask)
  if isinstance(weight_decay, int | float) and weight_decay == 0:  # No parameters are needed.
    decay = optax.GradientTransformation(decay.init, optax.identity().update)
  return optax.chain(scale, decay, optax.scale_by_learning_rate(learning_rate))


def matrix_labels(params: Params) -> Any:
  """Says which leaves a matrix rule acts on: 'matrix', or 'other' for AdamW.

  A leaf is a matrix if it has two axes or more, its path names no embedding, head, norm or
  convolution and its own name no vector, see `names_vector`. Axes before the last two are a batch
  of matrices. Trees that are named otherwise need a function of their own.
  """

  def label(path, leaf):
    named_other = any(part in _HEADS or _OTHERS.intersection(part) for part in _parts(path))
    return OTHER if leaf.ndim < 2 or named_other or names_vector(path) else MATRIX

  return jax.tree_util.tree_map_with_path(label, params)


def names_vector(path: tuple[Any, ...]) -> bool:
  """Whether the path of a leaf says that it is no matrix, however many axes it has.

  So it is with biases, scales and gates of every head, group or layer.

  Args:
    path: As `jax.tree_util.tree_map_with_path` gives it.

  Returns:
    Whether a word of the leaf's own name is bias, scale, offset, rate, decay, factor, logit or
    skip, or the plural of one, or the name is b.
  """
  words = _parts(path)[-1]
  return words == ['b'] or any(not _VECTORS.isdisjoint((x, x.removesuffix('s'))) for x in words)


def scale_by_shape(factor: float = 0.2) -> optax.GradientTransformation:
  """Multiplies matrices of singular values 1 so that their entries are as large as AdamW's steps.

  Args:
    factor: The root mean square of the entries; matrices [..., M, N] are multiplied by it times
      sqrt(max(M, N)).

  References:
    Liu et al., Muon is scalable for LLM training, arXiv 2502.16982.
  """

  def scale(update):
    return update * jnp.asarray(factor * max(as_matrix(update).shape[-2:]) ** 0.5, update.dtype)

  return optax.stateless(lambda updates, params: jax.tree.map(scale, updates))


_HEADS = (['head'], ['lm', 'head'], ['output', 'head'])
_OTHERS = {'embed', 'embedding', 'embeddings', 'norm', 'conv'}
_VECTORS = {'bias', 'biases', 'scale', 'offset', 'rate', 'decay', 'factor', 'logit', 'skip'}


def _parts(path: tuple[Any, ...]) -> list[list[str]]:
  """The words of each name in a path, but for the `value` that ends those of `nnx.state`."""
  names = [str(getattr(entry, 'key', getattr(entry, 'name', ''))) for entry in path]
  return [_words(name) for name in (names[:-1] if names[-1:] == ['value'] else names)] or [[]]


def _words(name: str) -> list[str]:
  """The words of a name like `layer_norm`, `LayerNorm_0` or `lm_head`, in lower case."""
  return re.findall('[a-z]+', re.sub('(?<=[a-z])(?=[A-Z])', '_', name).lower())


def by_kind(
  scale: optax.GradientTransformation,
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: float = 0.0,
  mask: Any = None,
  labels: Labels | None = None,
  adamw: Mapping[str, Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """A matrix rule for matrices, and AdamW at the same learning rate for everything else.

  Args:
    scale: What turns gradients of matrices into a direction.
    learning_rate: Constant or schedule, for both.
    weight_decay: Fraction of a weight removed per step, in units of the learning rate.
    mask: A function that says which parameters decay, as in `optax.adamw`.
    labels: From params to a tree of 'matrix' and 'other'; `matrix_labels` if not given.
    adamw: Options of `optax.adamw`, such as b1 and b2, or a `learning_rate` of its own, which is a
      constant if it is a number, whatever `learning_rate` is.

  Returns:
    An optax transformation.
  """
  other = {'learning_rate': learning_rate, 'weight_decay': weight_decay, 'mask': mask}
  return optax.partition(
    {
      MATRIX: descend(scale, learning_rate, weight_decay, mask),
      OTHER: optax.adamw(**{**other, **(adamw or {})}),
    },
    labels or matrix_labels,
  )
