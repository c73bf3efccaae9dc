"""A session with a trained model that is kept in a file and goes on in later calls."""

import pathlib
from typing import Any, NamedTuple

import jax
from flax import nnx

from experiments import common
from nlx import core, models
from nlx.models import sessions

MAX_LENGTH = 4096  # Of a session in a file, if the model has full attention.


class Request(NamedTuple):
  """What one call asks for."""

  prompt: str
  max_tokens: int
  sampling: models.Sampling
  learn_from: str = 'all'  # Or 'prompt', 'nothing': what blocks that learn in context learn from.
  reset: tuple[str, ...] = ()  # Levels to begin anew before the prompt is read; 'all' for all.
  seed: int | None = None  # Of a new session.
  max_length: int | None = None  # Of a new session.


def reply(
  language: common.Language,
  params: Any,
  request: Request,
  file: pathlib.Path | None = None,
  meta: dict[str, Any] | None = None,
) -> str:
  """Reads a prompt, writes, and keeps the session.

  Args:
    language: The model.
    params: Its parameters.
    request: What is asked for.
    file: Where the session is kept. If the file exists, it goes on: the prompt follows what was
      written last, and may be empty. A new session that is not kept if None.
    meta: What a file must have been saved with, see `common.identity`.

  Returns:
    The text that is written, fit for a terminal.

  Raises:
    ValueError: If the file holds the session of another model or is full, or the request is not for
      one that exists.
  """
  if file is not None:
    core.make_folder(file.parent)
  model = nnx.merge(language.graph, params)
  goes_on = file is not None and file.exists()
  session = _load(file, model, meta, request) if goes_on else _start(language, model, request, file)
  if request.reset:
    names = None if request.reset == ('all',) else request.reset
    session = sessions.reset(model, session, names)
  if request.prompt or not goes_on:
    tokens = common.encode(language, request.prompt)
    session = sessions.read(model, session, tokens, learns=request.learn_from != 'nothing')
  written, session = sessions.write(
    model,
    session,
    request.max_tokens,
    sampling=request.sampling,
    learn=request.learn_from == 'all',
  )
  if file is not None:
    sessions.save(file, session, meta)
  return common.decode(language, written)


def _start(language, model, request, file):
  max_length = request.max_length
  if max_length is None and file is None:
    max_length = len(common.encode(language, request.prompt)[0]) + request.max_tokens
  key = jax.random.key(request.seed or 0)
  return sessions.start(model, max_length=max_length or MAX_LENGTH, key=key)


def _load(file, model, meta, request):
  for name in ('seed', 'max_length'):
    if getattr(request, name) is not None:
      raise ValueError(f'`{name}` must be left out: the session in {str(file)!r} has its own.')
  return sessions.load(file, model, meta)
