"""Compilation that is quick rather than good, for oracle tests whose programs run once."""

import jax

OPTIONS = {'xla_backend_optimization_level': '0'}
if jax.__version_info__ < (0, 11):
  OPTIONS['xla_cpu_use_fusion_emitters'] = False  # Later versions have no such option.


def quick_jit(function, **kwargs):
  """`jax.jit` that compiles faster and runs slower."""
  return jax.jit(function, compiler_options=OPTIONS, **kwargs)
