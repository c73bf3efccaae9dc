"""How likely texts are to a model: many at once, each read from the beginning of a document.

A passage is one stream of any length. Passages of similar length are read side by side, in
stretches of one size, and the state goes from stretch to stretch, so that few programs are compiled
and memory does not depend on the length. What fills up a row comes after its end and is not learned
from: every passage has the numbers that it has alone.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nlx import core, models
from nlx.models import streaming

# Tokens of a row that are read at once, fewer where a batch would have more logits than that.
MIN_STRETCH, MAX_STRETCH = 16, 1024
MAX_LOGITS = 2**27
MIN_CHUNKS = 4  # Chunks in a stretch: the one that is cut at its end is read twice.


class Passage(NamedTuple):
  """Tokens, and how many of them are asked for."""

  tokens: np.ndarray  # [T] ids
  num_scored: int  # the last ones; at most T - 1, as the first has none before it


class Likelihood(NamedTuple):
  """What a model makes of the scored tokens of a passage."""

  log_likelihood: float  # nats: sum of log p(token | all tokens before it)
  is_greedy: bool  # whether each of them is the likeliest one


def likelihoods(
  model: models.LanguageModel,
  passages: Sequence[Passage],
  *,
  batch_size: int = 8,
  max_length: int | None = None,
) -> Iterator[tuple[int, Likelihood]]:
  """Scores passages, each from fresh state, with all learning in context that reading brings.

  Args:
    model: A language model.
    passages: What to score.
    batch_size: Passages that are read side by side.
    max_length: Tokens that the model is given at once. A passage with more is read in windows, see
      `windows`, each from fresh state. None reads every passage as one stream.

  Yields:
    The place of a passage and its score, as they are found: long passages first.

  Raises:
    ValueError: If a passage has no tokens, more scored ones than follow its first, or tokens that
      are none of the vocabulary; or if an argument is out of range.
    FloatingPointError: If a scored token has no finite probability.

  Example:
    >>> import nlx, numpy as np
    >>> from flax import nnx
    >>> config = nlx.models.transformer(vocab_size=16, model_dim=8, num_layers=1, num_heads=2)
    >>> model = nlx.models.create(config, rngs=nnx.Rngs(0))
    >>> passage = nlx.evaluation.Passage(np.array([3, 1, 4, 1]), num_scored=2)
    >>> [(place, score)] = nlx.evaluation.likelihoods(model, [passage])
    >>> place, score.log_likelihood < 0
    (0, True)
  """
  core.check_positive('batch_size', batch_size, 'passage')
  if max_length is not None:
    core.check_positive('max_length', max_length, 'token')
  pieces = []
  for place, passage in enumerate(passages):
    _check(passage, place, model.config.vocab_size)
    pieces += [(place, piece) for piece in windows(passage, max_length)]
  return _scores(model, len(passages), pieces, batch_size)


def windows(passage: Passage, max_length: int | None) -> list[Passage]:
  """Cuts a passage so that every scored token is scored once, with as much context as fits.

  Args:
    passage: What to cut.
    max_length: Tokens that are read at once, besides the last scored one, which is not read.

  Returns:
    Windows of which each scores the tokens after those of the one before, up to `max_length` of
    them. The passage itself if it fits or `max_length` is None; nothing if it scores nothing.

  Example:
    >>> passage = Passage(np.arange(8), num_scored=7)
    >>> [(window.tokens.tolist(), window.num_scored) for window in windows(passage, 3)]
    [([0, 1, 2, 3], 3), ([3, 4, 5, 6], 3), ([4, 5, 6, 7], 1)]
  """
  tokens, num_scored = passage
  if not num_scored:
    return []
  if max_length is None:
    return [passage]
  begins = range(len(tokens) - num_scored, len(tokens), max_length)
  ends = [min(begin + max_length, len(tokens)) for begin in begins]
  return [
    Passage(tokens[max(0, end - max_length - 1) : end], end - begin)
    for begin, end in zip(begins, ends, strict=True)
  ]


def _check(passage, place, vocab_size):
  tokens, num_scored = passage
  if not len(tokens):
    raise ValueError(f'`passages[{place}].tokens` must hold at least one token, got none.')
  if not 0 <= num_scored < len(tokens):
    raise ValueError(
      f'`passages[{place}].num_scored` must be from 0 to {len(tokens) - 1}, one less than it has '
      f'tokens, got {num_scored}.'
    )
  check_ids(f'passages[{place}].tokens', tokens, vocab_size)


def check_ids(name: str, tokens: np.ndarray, vocab_size: int) -> None:
  """Raises ValueError unless all tokens are ids of the vocabulary."""
  if not np.issubdtype(np.asarray(tokens).dtype, np.integer):
    raise ValueError(f'`{name}` must be integers, got {np.asarray(tokens).dtype}.')
  low, high = np.min(tokens), np.max(tokens)
  if low < 0 or high >= vocab_size:
    raise ValueError(f'`{name}` must lie in 0..{vocab_size - 1}, got {low if low < 0 else high}.')


def _scores(model, num_passages, pieces, batch_size):
  """Scores windows, the longest first, and yields a passage when all of its windows are done."""
  places = np.array([place for place, _ in pieces], int)
  missing = np.bincount(places, minlength=num_passages)
  found = [Likelihood(0.0, True)] * num_passages
  yield from ((place, found[place]) for place in np.flatnonzero(missing == 0).tolist())
  pieces = sorted(pieces, key=lambda piece: -len(piece[1].tokens))
  for begin in range(0, len(pieces), batch_size):
    batch = pieces[begin : begin + batch_size]
    results = _read_batch(model, [piece for _, piece in batch], batch_size)
    for (place, _), (losses, hits) in zip(batch, results, strict=True):
      if not np.isfinite(losses).all():
        raise FloatingPointError(
          f'`passages[{place}]` has a token without a finite probability: the model diverges on it.'
        )
      total = found[place].log_likelihood - float(np.sum(losses, dtype=np.float64))
      found[place] = Likelihood(total, found[place].is_greedy and bool(hits.all()))
      missing[place] -= 1
      if not missing[place]:
        yield place, found[place]


def _read_batch(model, passages, batch_size):
  """Losses [num_scored] and hits [num_scored] of each passage."""
  graph, params = nnx.split(model)
  length = max(len(passage.tokens) for passage in passages) - 1
  size = _stretch(model.config, batch_size, length)
  padded = -(-length // size) * size
  tokens, targets = (np.zeros((batch_size, padded), np.int32) for _ in range(2))
  learns = np.zeros((batch_size, padded), np.float32)
  for row, passage in enumerate(passages):
    count = len(passage.tokens) - 1
    tokens[row, :count], targets[row, :count] = passage.tokens[:-1], passage.tokens[1:]
    learns[row, :count] = 1
  # The cache of attention has one of few sizes.
  room = 1 << (padded - 1).bit_length() if model.config.mixer.grows else None
  state, pieces = _start(graph, batch_size, room, params), []
  for begin in range(0, length, size):
    stretch = [x[:, begin : begin + size] for x in (tokens, learns, targets)]
    *piece, state = _read(graph, params, state, *stretch, min(size, length - begin))
    pieces.append(piece)
  losses, hits = (np.concatenate(parts, axis=1) for parts in zip(*pieces, strict=True))
  ends = [len(passage.tokens) - 1 for passage in passages]
  scored = [
    slice(end - passage.num_scored, end) for end, passage in zip(ends, passages, strict=True)
  ]
  return [(losses[row, part], hits[row, part]) for row, part in enumerate(scored)]


def _stretch(config, batch_size, length):
  """Tokens of a row that one call reads: a power of two, no more than it takes."""
  fit = min(MAX_LOGITS // (batch_size * config.vocab_size), MAX_STRETCH)
  size = max(fit, MIN_CHUNKS * config.base_chunk, MIN_STRETCH)
  needed = 1 << (max(length, MIN_STRETCH) - 1).bit_length()
  return min(1 << (size.bit_length() - 1), needed)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _start(graph, batch_size, max_length, params):
  return nnx.merge(graph, params).init_state(batch_size, max_length)


@partial(jax.jit, static_argnums=0)
def _read(graph, params, state, tokens, learns, targets, count):
  """-log p of targets [B, T] in nats, whether they are the likeliest, and the state after them."""
  text = streaming.Text(tokens, learns)
  logits, state = streaming.read(nnx.merge(graph, params), text, state, count)
  return models.token_losses(logits, targets), jnp.argmax(logits, axis=-1) == targets, state
