"""Models of equal size: how wide an MLP makes a model of so many parameters."""

from collections.abc import Callable

from flax import nnx

from nlx import core
from nlx.models.config import LanguageModelConfig
from nlx.models.language_model import create


def count_parameters(config: LanguageModelConfig) -> int:
  """How many slow weights a model has; nothing is allocated."""
  model = nnx.eval_shape(lambda: create(config, rngs=nnx.Rngs(0)))
  return core.tree_size(nnx.state(model, nnx.Param))


def with_parameters(
  make: Callable[[int], LanguageModelConfig], num_parameters: int, multiple: int = 8
) -> LanguageModelConfig:
  """The model of a family whose size comes nearest to a number of parameters.

  Args:
    make: From the width of its MLPs to a configuration. Parameters grow linearly with the width.
    num_parameters: Slow weights wanted.
    multiple: What the width is a multiple of.

  Returns:
    The configuration.

  Raises:
    ValueError: If the model has more parameters than that at the least width, or if its size does
      not depend on the width.

  Example:
    >>> import functools, nlx
    >>> sizes = {'vocab_size': 16, 'model_dim': 16, 'num_layers': 1, 'num_heads': 2}
    >>> make = lambda width: nlx.models.transformer(mlp_hidden=width, **sizes)
    >>> nlx.models.count_parameters(nlx.models.with_parameters(make, 5_000))
    5040
  """
  least, more = (count_parameters(make(width)) for width in (multiple, 2 * multiple))
  if more == least:
    raise ValueError('`make` must use the width that it is given, but two gave one size.')
  if num_parameters < least:
    raise ValueError(
      f'`num_parameters` must be at least {least}, the size without much of an MLP, '
      f'got {num_parameters}.'
    )
  return make(multiple * (1 + round((num_parameters - least) / (more - least))))
