"""Compilation that is quick rather than good, for oracle tests whose programs run once."""

import jax
import numpy as np
from flax import nnx

OPTIONS = {'xla_backend_optimization_level': '0'}
if jax.__version_info__ < (0, 11):
  OPTIONS['xla_cpu_use_fusion_emitters'] = False  # Later versions have no such option.


def quick_jit(function, **kwargs):
  """`jax.jit` that compiles faster and runs slower."""
  return jax.jit(function, compiler_options=OPTIONS, **kwargs)


def long_jit(function):
  """`jax.jit` for programs that would run longer than they take to compile well."""
  return jax.jit(function, compiler_options={**OPTIONS, 'xla_backend_optimization_level': '1'})


def temp_bytes(function, *args):
  """The temporary memory of a function, under all passes of the compiler."""
  compiled = jax.jit(function).lower(*args).compile({'xla_disable_hlo_passes': ''})
  return compiled.memory_analysis().temp_size_in_bytes


def quick_make(config, noise=0.0):
  """A layer, made by one program rather than draw by draw, with noise on all of its parameters.

  Noise, because norms, offsets and biases begin with equal numbers.
  """
  create = lambda: config.make(rngs=nnx.Rngs(0))  # noqa: E731
  params, random = quick_jit(lambda: nnx.state(create()))(), np.random.default_rng(1)
  params = jax.tree.map(lambda x: x + noise * random.normal(size=x.shape).astype(x.dtype), params)
  return nnx.merge(nnx.graphdef(nnx.eval_shape(create)), params)
