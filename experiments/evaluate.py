"""Evaluates a trained model on tasks of EleutherAI's lm-evaluation-harness.

python -m experiments.evaluate --workdir=runs/tiny --tasks=lambada_openai,piqa --limit=100

The harness is an extra: `make setup EXTRAS=dev,eval`. It downloads the data of its tasks; those of
--include_path are read from there. Answers are kept in the folder of the run: the same command
again goes on where it was stopped.
"""

import json
import shlex
import sys
from collections.abc import Sequence

from absl import app, flags

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run, or gs://BUCKET/FOLDER.', required=True
)
_TASKS = flags.DEFINE_list(
  'tasks', None, "Tasks, or groups of them; the nine of the paper's table if not given."
)
_INCLUDE_PATH = flags.DEFINE_string('include_path', None, 'Folder of YAML files of further tasks.')
_LIMIT = flags.DEFINE_integer(
  'limit', None, 'Documents of each task; all if not given.', lower_bound=1
)
_NUM_FEWSHOT = flags.DEFINE_integer(
  'num_fewshot',
  None,
  'Examples before each document; as the task says if not given.',
  lower_bound=0,
)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 8, 'Texts that are read at once.', lower_bound=1)
_MAX_LENGTH = flags.DEFINE_integer(
  'max_length',
  None,
  'Tokens that the model is given at once, such as those of a training sequence. Longer texts are '
  'read in windows, each without what came before; as one stream if not given.',
  lower_bound=1,
)
_PREFIX = flags.DEFINE_string(
  'prefix',
  None,
  'Text of one token that stands before every text without context; a token that begins texts, or '
  'else a line break, if not given.',
)
_PREFIX_ALL = flags.DEFINE_bool(
  'prefix_all', False, 'Put it before every text, as for a Llama, which was trained with it there.'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of examples, and of texts that are sampled.')
_ANSWERS = flags.DEFINE_string(
  'answers',
  None,
  'Folder on the disk where answers are kept; WORKDIR/answers. A step of a run, a commit of the '
  'code and the settings have answers of their own: remove them if the code changes otherwise.',
)
_OUTPUT = flags.DEFINE_string('output', None, 'Results file; WORKDIR/evaluation.json.')


def main(argv: Sequence[str]) -> None:
  """Prints the table of scores and writes the results."""
  if len(argv) > 1:
    raise app.UsageError(f'Unknown arguments: {argv[1:]}')
  # Here, so that --help need not wait for JAX.
  from experiments import common, harness_tasks
  from nlx import core

  workdir = core.as_path(_WORKDIR.value)
  answers = harness_tasks.answers_folder(_ANSWERS.value or workdir / 'answers')
  config = common.read_config(workdir)
  common.start(config)
  language = common.create(config)
  params, step = common.restore(language, workdir)
  request = harness_tasks.Request(
    tasks=tuple(_TASKS.value or harness_tasks.TASKS),
    include_path=_INCLUDE_PATH.value,
    limit=_LIMIT.value,
    num_fewshot=_NUM_FEWSHOT.value,
    batch_size=_BATCH_SIZE.value,
    max_length=_MAX_LENGTH.value,
    prefix=_PREFIX.value,
    prefix_all=_PREFIX_ALL.value,
    seed=_SEED.value,
  )
  name = harness_tasks.answers_name(request, common.identity(config, params, step))
  result = harness_tasks.evaluate(language, params, request, answers / name)
  command = shlex.join(['python', '-m', 'experiments.evaluate', *sys.argv[1:]])
  found = {'name': config.name, 'step': step, **harness_tasks.record(command, request), **result}
  output = core.as_path(_OUTPUT.value or workdir / 'evaluation.json')
  core.write_text(output, json.dumps(found, indent=2) + '\n')
  print(harness_tasks.table(f'{config.name}, step {step}', result['scores']), flush=True)


if __name__ == '__main__':
  app.run(main)
