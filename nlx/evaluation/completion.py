"""What a model writes after a prompt, up to a text that ends it: many prompts at once."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import jax
import numpy as np

from nlx import core, models
from nlx.models import sessions

PIECE = 32  # Tokens between two looks at what was written.


class Prompt(NamedTuple):
  """What to continue, and how."""

  tokens: np.ndarray  # [T] ids, at least one
  until: tuple[str, ...] = ()  # texts; a continuation ends before the first of any of them
  max_tokens: int = 256
  sampling: models.Sampling = models.GREEDY


def completions(
  model: models.LanguageModel,
  decode: Callable[[Sequence[int]], str],
  prompts: Sequence[Prompt],
  *,
  batch_size: int = 8,
  seed: int = 0,
) -> Iterator[tuple[int, str]]:
  """Continues prompts, each read and written in a session of its own.

  Blocks that learn in context learn from the prompt and from what is written.

  Args:
    model: A language model.
    decode: Of the tokenizer, [N] ids to text.
    prompts: What to continue.
    batch_size: Continuations that are written side by side.
    seed: Decides what is sampled, together with the place of a prompt and nothing else.

  Yields:
    The place of a prompt and its continuation, as they are found.

  Raises:
    ValueError: If a prompt has no tokens, tokens that are none of the vocabulary or an empty text
      in `until`, or if an argument is out of range.
    FloatingPointError: If the model diverges.

  Example:
    >>> import nlx, numpy as np
    >>> from flax import nnx
    >>> config = nlx.models.transformer(vocab_size=256, model_dim=8, num_layers=1, num_heads=2)
    >>> model = nlx.models.create(config, rngs=nnx.Rngs(0))
    >>> prompt = nlx.evaluation.Prompt(np.array([72, 105]), max_tokens=4)
    >>> decode = nlx.data.byte_tokenizer().decode
    >>> [(place, text)] = nlx.evaluation.completions(model, decode, [prompt], batch_size=1)
    >>> place, len(text) <= 4
    (0, True)
  """
  core.check_positive('batch_size', batch_size, 'prompt')
  for place, prompt in enumerate(prompts):
    core.check_positive(f'prompts[{place}].max_tokens', prompt.max_tokens, 'token')
    if not len(prompt.tokens):
      raise ValueError(f'`prompts[{place}].tokens` must be at least one token, got none.')
    if '' in prompt.until:
      raise ValueError(f'`prompts[{place}].until` must not hold an empty text.')
  return _completions(model, decode, prompts, batch_size, jax.random.key(seed))


def _completions(model, decode, prompts, batch_size, key):
  # One program writes what is sampled in one way; like lengths end together.
  order = sorted(range(len(prompts)), key=lambda place: _kind(prompts[place]))
  for _, same in groupby(order, key=lambda place: prompts[place].sampling):
    places = list(same)
    for begin in range(0, len(places), batch_size):
      batch = {place: prompts[place] for place in places[begin : begin + batch_size]}
      stack = _read(model, batch, batch_size, key)
      yield from zip(batch, _write(model, decode, list(batch.values()), stack), strict=True)


def _kind(prompt):
  return repr(prompt.sampling), -prompt.max_tokens, -len(prompt.tokens)


def _read(model, batch, batch_size, key):
  """A stack of sessions that have read their prompts; copies of the last fill it up."""
  longest = max(len(prompt.tokens) for prompt in batch.values())
  steps = max(prompt.max_tokens for prompt in batch.values())
  room = 1 << (longest + steps - 1).bit_length()  # Few sizes, as each is a program.
  read = []
  for place, prompt in batch.items():
    session = sessions.start(model, max_length=room, key=jax.random.fold_in(key, place))
    read.append(sessions.read(model, session, np.asarray(prompt.tokens)[None]))
  return sessions.stack(read + [read[-1]] * (batch_size - len(read)))


def _write(model, decode, prompts, stack):
  """Texts of the prompts; all sessions write until the last text has ended."""
  texts: dict[int, str] = {}
  written = np.zeros((len(prompts), 0), np.int32)
  steps = max(prompt.max_tokens for prompt in prompts)
  while len(texts) < len(prompts):
    count = min(PIECE, steps - written.shape[1])
    tokens, stack = sessions.write(model, stack, count, sampling=prompts[0].sampling)
    written = np.concatenate([written, np.asarray(tokens)[: len(prompts), 0]], axis=1)
    for row in set(range(len(prompts))) - set(texts):
      prompt = prompts[row]
      text = decode(written[row, : prompt.max_tokens].tolist())
      ends = [end for end in map(text.find, prompt.until) if end >= 0]
      if ends or written.shape[1] >= prompt.max_tokens:
        texts[row] = text[: min(ends, default=None)]
  return [texts[row] for row in range(len(prompts))]
