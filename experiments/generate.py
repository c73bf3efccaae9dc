"""Continues a text with a trained model.

python -m experiments.generate --workdir=runs/tiny --prompt='The import statement'
"""

import pathlib
from collections.abc import Sequence

from absl import app, flags

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)
_PROMPT = flags.DEFINE_string('prompt', None, 'Text to continue.', required=True)
_MAX_TOKENS = flags.DEFINE_integer('max_tokens', 200, 'Tokens to write.', lower_bound=1)
_TEMPERATURE = flags.DEFINE_float('temperature', 0.8, 'Randomness; 0 is greedy.', lower_bound=0)
_TOP_K = flags.DEFINE_integer('top_k', None, 'Choose among the likeliest only.', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', 0, 'Decides the choices.')


def main(argv: Sequence[str]) -> None:
  """Prints the prompt and its continuation."""
  if len(argv) > 1:
    raise app.UsageError(f'Unknown arguments: {argv[1:]}')
  # Here, so that --help need not wait for JAX.
  import jax

  from experiments import common

  workdir = pathlib.Path(_WORKDIR.value)
  config = common.read_config(workdir)
  common.start(config)
  language = common.create(config)
  params = common.restore_params(language, workdir)
  print(
    _PROMPT.value
    + common.continuation(
      language,
      params,
      _PROMPT.value,
      max_tokens=_MAX_TOKENS.value,
      key=jax.random.key(_SEED.value),
      temperature=_TEMPERATURE.value,
      top_k=_TOP_K.value,
    )
  )


if __name__ == '__main__':
  app.run(main)
