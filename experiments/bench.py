"""Measures speed and memory, and leaves the numbers in experiments/results/bench.json.

  python -m experiments.bench [--only=nest,memory,layer,models,families,mixers,decode,optimizers]

With `--smoke` it measures toys and writes nothing. All together take half an hour: compilation is
measured, so nothing is taken from a cache.
"""

import pathlib
from collections.abc import Sequence

from absl import app, flags

from experiments.benchmarks import sections
from experiments.reporting import provenance, tables

_NAMES = ', '.join(sections.SECTIONS)
_ONLY = flags.DEFINE_list('only', list(sections.SECTIONS), f'Some of {_NAMES}.')
_SMOKE = flags.DEFINE_bool('smoke', False, 'Toy sizes; written only where --output says.')
_OUTPUT = flags.DEFINE_string('output', None, 'Results file; experiments/results/bench.json.')
flags.register_validator(
  'only', lambda names: set(names) <= set(sections.SECTIONS), f'--only takes some of {_NAMES}.'
)


def main(argv: Sequence[str]) -> None:
  """Measures, prints the tables and writes the results."""
  if len(argv) > 1:
    raise app.UsageError(f'Unknown arguments: {argv[1:]}')
  # Here, so that --help need not wait for JAX.
  import absl.logging
  import jax

  absl.logging.set_verbosity(absl.logging.WARNING)
  jax.config.update('jax_enable_compilation_cache', False)
  output = None if _SMOKE.value else provenance.RESULTS / 'bench.json'
  output = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else output
  device = f'1 x {jax.devices()[0].device_kind}'
  for name in _ONLY.value:
    print(f'\n{name}', flush=True)
    rows = sections.measure(name, smoke=_SMOKE.value)
    print(tables.markdown(rows, leave_out=('section',)), flush=True)
    if output:
      sections.write(output, name, rows, provenance.record('python -m experiments.bench', device))


if __name__ == '__main__':
  app.run(main)
