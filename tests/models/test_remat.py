"""What the backward pass recomputes changes its memory, and nothing else."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nlx import models
from tests.compiling import quick_jit
from tests.models import problems

# A loop over layers has a step for each of them but the last.
DEEP = {**problems.SIZES, 'num_layers': 8}
CONFIGS = {
  'transformer': problems.in_float64(models.transformer(**DEEP)),
  'hope-attention': problems.in_float64(
    models.hope_attention(**{**DEEP, 'num_layers': 3}, cms_periods=(8,))
  ),
}


@functools.cache
def compiled(name, remat):
  """The gradient of the loss, and the parameters."""
  graph, params = problems.split(dataclasses.replace(CONFIGS[name], remat=remat))
  text = problems.texts(length=64)
  gradient = quick_jit(jax.grad(lambda params: nnx.merge(graph, params).loss(*text)[0]))
  return gradient.lower(params).compile(), params


def memory(name, remat):
  return compiled(name, remat)[0].memory_analysis().temp_size_in_bytes


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  ('name', 'remat'),
  [
    ('transformer', 'layers_but_dots'),
    ('transformer', 'layers'),
    ('hope-attention', 'layers'),
  ],
)
def test_gradient_does_not_depend_on_what_is_recomputed(name, remat):
  gradients, expected = (
    program(params) for program, params in (compiled(name, remat), compiled(name, 'chunks'))
  )

  def close(x, y):
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-12 * (1 + jnp.abs(y).max()))

  jax.tree.map(close, gradients, expected)


@pytest.mark.usefixtures('float64')
def test_recomputed_layers_take_less_memory():
  layers, but_dots, chunks = (
    memory('transformer', remat) for remat in ('layers', 'layers_but_dots', 'chunks')
  )
  assert layers < but_dots < chunks / 2
  assert memory('hope-attention', 'layers') < memory('hope-attention', 'chunks')


def test_memories_recompute_their_chunks_unless_nothing_is():
  titans = functools.partial(models.titans, **problems.SIZES)
  assert titans(remat='layers').mixer.remat and titans().mixer.remat
  assert not titans(remat='none').mixer.remat
