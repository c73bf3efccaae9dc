"""Continues a text with a trained model, which learns from what it reads and writes.

python -m experiments.generate --workdir=runs/tiny --prompt='The import statement'

With --session the model remembers: the next call goes on where this one ended.

python -m experiments.generate --workdir=runs/tiny --session=runs/talk --prompt='The import'
python -m experiments.generate --workdir=runs/tiny --session=runs/talk
"""

from collections.abc import Sequence

from absl import app, flags

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run, or gs://BUCKET/FOLDER.', required=True
)
_PROMPT = flags.DEFINE_string(
  'prompt', '', 'Text to continue; what is read next, if a session goes on, and may be empty then.'
)
_MAX_TOKENS = flags.DEFINE_integer('max_tokens', 200, 'Tokens to write.', lower_bound=1)
_TEMPERATURE = flags.DEFINE_float('temperature', 0.8, 'Randomness; 0 is greedy.', lower_bound=0)
_TOP_K = flags.DEFINE_integer('top_k', None, 'Choose among the likeliest only.', lower_bound=1)
_TOP_P = flags.DEFINE_float(
  'top_p', 1.0, 'Choose among the likeliest that have this probability together.'
)
_SEED = flags.DEFINE_integer('seed', None, 'Decides the choices of a new session; 0 if not given.')
_SESSION = flags.DEFINE_string(
  'session', None, 'File of a session: goes on if it exists, is made if not.'
)
_LEARN_FROM = flags.DEFINE_enum(
  'learn_from',
  'all',
  ['all', 'prompt', 'nothing'],
  'What the blocks that learn in context learn from: prompt and own text, or less.',
)
_RESET = flags.DEFINE_list(
  'reset', [], 'Levels to begin anew before the prompt is read, such as "CMS 64", or "all".'
)
_MAX_LENGTH = flags.DEFINE_integer(
  'max_length',
  None,
  'Tokens that fit into a new session of a model with full attention; 4096 in a file if not given.',
  lower_bound=1,
)


def main(argv: Sequence[str]) -> None:
  """Prints the prompt and its continuation."""
  if len(argv) > 1:
    raise app.UsageError(f'Unknown arguments: {argv[1:]}')
  # Here, so that --help need not wait for JAX.
  from experiments import common, conversation
  from nlx import core, models

  workdir = core.as_path(_WORKDIR.value)
  config = common.read_config(workdir)
  common.start(config)
  language = common.create(config)
  params, step = common.restore(language, workdir)
  request = conversation.Request(
    prompt=_PROMPT.value,
    max_tokens=_MAX_TOKENS.value,
    sampling=models.Sampling(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value),
    learn_from=_LEARN_FROM.value,
    reset=tuple(_RESET.value),
    seed=_SEED.value,
    max_length=_MAX_LENGTH.value,
  )
  file = core.as_path(_SESSION.value) if _SESSION.value else None
  meta = common.identity(config, params, step) if file else None
  print(_PROMPT.value + conversation.reply(language, params, request, file, meta))


if __name__ == '__main__':
  app.run(main)
