"""Language models as EleutherAI's lm-evaluation-harness asks them.

The harness is an extra, `eval`; nothing of it is imported before `harness_model` is called.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nlx import core, models
from nlx.evaluation.completion import Prompt, completions
from nlx.evaluation.likelihood import Passage, likelihoods

if TYPE_CHECKING:
  from nlx.data import Tokenizer

# What begins and ends a text, where it is one token of the tokenizer. A line break begins any text.
BEGINNINGS = ('<|begin_of_text|>', '<|endoftext|>', '<bos>', '<s>', '\n')
ENDINGS = ('<|end_of_text|>', '<|endoftext|>', '<eos>', '</s>')
GENERATION = (
  'until',
  'max_gen_toks',
  'max_new_tokens',
  'do_sample',
  'temperature',
  'top_k',
  'top_p',
)
MAX_GENERATED = 256  # Tokens, where a task does not say.


class Answers:
  """Answers to the three kinds of requests, whose `args` are those of the harness.

  Args:
    model: A language model. One that learns in context learns from every request anew.
    tokenizer: Of its tokens.
    batch_size: Requests that are answered side by side.
    max_length: Tokens that the model is given at once. Longer texts are read in windows, each from
      fresh state, and longer contexts lose their beginning. None reads every text as one stream.
    prefix: A text of one token that stands before every text without context. The first of
      `BEGINNINGS` that is one if None: a line break for the byte tokenizer.
    prefix_all: Put it before every text, as for a model that was trained with it there, like Llama.
    seed: Decides what is sampled where a task asks for that.

  Raises:
    ValueError: If the prefix is not one token, or a number is out of range.
  """

  cache_hook: Any = None  # The harness puts one here to keep answers; see its `CachingLM`.

  def __init__(
    self,
    model: models.LanguageModel,
    tokenizer: 'Tokenizer',
    *,
    batch_size: int = 8,
    max_length: int | None = None,
    prefix: str | None = None,
    prefix_all: bool = False,
    seed: int = 0,
  ):
    super().__init__()
    core.check_positive('batch_size', batch_size, 'request')
    if max_length is not None:
      core.check_positive('max_length', max_length, 'token')
    self._model, self._tokenizer = model, tokenizer
    self._batch_size, self._max_length, self._seed = batch_size, max_length, seed
    self._prefix, self._prefix_all = _prefix_token(tokenizer, prefix), prefix_all
    self._endings = tuple(text for text in ENDINGS if _is_token(tokenizer, text))

  def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
    """Scores continuations.

    Args:
      requests: With `args` (context, continuation). White space at the end of a context is taken as
        the beginning of its continuation, as the harness does.

    Returns:
      For each the log-likelihood of the continuation in nats, and whether all of its tokens are the
      likeliest.

    Raises:
      ValueError: If a continuation has no tokens of its own.
    """
    passages = [self._pair(*request.args) for request in requests]
    scores = self._likelihoods(passages)
    return self._answers('loglikelihood', requests, scores, tuple)

  def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
    """Scores whole texts, each token once.

    Args:
      requests: With `args` (text,).

    Returns:
      For each the log-likelihood in nats.
    """
    texts = [self._tokenizer.encode(*request.args) for request in requests]
    passages = [Passage(np.append(self._prefix, text), len(text)) for text in texts]
    scores = self._likelihoods(passages)
    return self._answers('loglikelihood_rolling', requests, scores, lambda x: x.log_likelihood)

  def generate_until(self, requests: Sequence[Any]) -> list[str]:
    """Continues contexts.

    Args:
      requests: With `args` (context, options); options are those of `GENERATION`.

    Returns:
      For each the text up to the first of `until`, the end of text, or `max_gen_toks` tokens.

    Raises:
      ValueError: If there are other options, or `max_gen_toks` leaves no room for a context.
    """
    prompts = [self._prompt(*request.args) for request in requests]
    texts = completions(
      self._model,
      self._tokenizer.decode,
      prompts,
      batch_size=self._batch_size,
      seed=self._seed,
    )
    return self._answers('generate_until', requests, texts, str)

  def _likelihoods(self, passages):
    return likelihoods(
      self._model, passages, batch_size=self._batch_size, max_length=self._max_length
    )

  def _pair(self, context: str, continuation: str) -> Passage:
    """The tokens of both texts together; tokenizers may treat them differently apart."""
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    before = self._tokenizer.encode(kept)
    both = self._tokenizer.encode(kept + continuation)
    num_scored = len(both) - len(before)
    if num_scored < 1:
      raise ValueError(
        f'`continuation` must have at least one token of its own after its context, got '
        f'{continuation!r}.'
      )
    return Passage(self._begin(both, before), num_scored)

  def _prompt(self, context: str, options: dict[str, Any]) -> Prompt:
    unknown = sorted(set(options) - set(GENERATION))
    if unknown:
      raise ValueError(f'`generation_kwargs` must be some of {GENERATION}, got {unknown}.')
    until = options.get('until') or ()
    until = (until,) if isinstance(until, str) else tuple(until)
    max_tokens = options.get('max_gen_toks', options.get('max_new_tokens', MAX_GENERATED))
    tokens = self._tokenizer.encode(context)
    tokens = self._begin(tokens, tokens)
    if self._max_length is not None:
      room = self._max_length - max_tokens
      core.check_positive('max_length - max_gen_toks', room, 'token')
      is_cut = len(tokens) > room
      tokens = tokens[-room:]
      if is_cut and self._prefix_all:
        tokens = np.append(self._prefix, tokens[1:])
    return Prompt(tokens, until + self._endings, max_tokens, _sampling(options))

  def _begin(self, tokens, context):
    """The tokens, after the prefix if there is no context."""
    return tokens if len(context) and not self._prefix_all else np.append(self._prefix, tokens)

  def _answers(
    self, kind: str, requests: Sequence[Any], found: Iterator[tuple[int, Any]], answer: Callable
  ) -> list[Any]:
    """Answers in the order of requests; each is kept as soon as it is found."""
    from tqdm.auto import tqdm

    answers: list[Any] = [None] * len(requests)
    for place, value in tqdm(found, desc=kind, total=len(requests), disable=None):
      answers[place] = answer(value)
      if self.cache_hook is not None:
        self.cache_hook.add_partial(kind, requests[place].args, answers[place])
    return answers


def harness_model(model: models.LanguageModel, tokenizer: 'Tokenizer', **options: Any) -> Any:
  """Returns a model that lm-evaluation-harness can evaluate.

  Args:
    model: A language model.
    tokenizer: Of its tokens.
    **options: As of `Answers`.

  Returns:
    An `lm_eval.api.model.LM`, for `lm_eval.simple_evaluate(model=...)`.

  Raises:
    ModuleNotFoundError: If the harness is not installed.
    ValueError: If an option is out of range.

  References:
    Gao et al., The Language Model Evaluation Harness, doi 10.5281/zenodo.12608602.
  """
  try:
    from lm_eval.api.model import LM
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f'lm-evaluation-harness is missing ({error}): `make setup EXTRAS=dev,eval` installs it.'
    ) from error

  class NlxModel(Answers, LM):
    """The requests of the harness, answered by a model of nlx."""

  return NlxModel(model, tokenizer, **options)


def _prefix_token(tokenizer: 'Tokenizer', prefix: str | None) -> int:
  """The id of what stands before a text without context."""
  choices = BEGINNINGS if prefix is None else (prefix,)
  found = [text for text in choices if _is_token(tokenizer, text)]
  if not found:
    raise ValueError(
      f'`prefix` must be a text of one token, and {" and ".join(map(repr, choices))} is none.'
    )
  return int(tokenizer.encode(found[0])[0])


def _is_token(tokenizer: 'Tokenizer', text: str) -> bool:
  """Whether a text is one token; one that stands for unknown text is not."""
  tokens = tokenizer.encode(text)
  return len(tokens) == 1 and tokenizer.decode(tokens.tolist()) == text


def _sampling(options: dict[str, Any]) -> models.Sampling:
  """Greedy unless asked for otherwise."""
  sampled = options.get('do_sample')
  temperature = options.get('temperature', 1.0 if sampled else 0.0)
  if sampled is False or not temperature:
    return models.GREEDY
  top_k, top_p = options.get('top_k') or None, options.get('top_p')  # Of 0: all.
  return models.Sampling(temperature, top_k, 1.0 if top_p is None else top_p)
