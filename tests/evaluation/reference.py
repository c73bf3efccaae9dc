"""Texts read alone, token by token: what batches of them are compared with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tests.models import problems

# The smallest that learn in context, without and with a cache that grows, and one that does not.
ATTENTION = problems.with_cms(problems.CONFIGS['hope-attention'], periods=(8, 16))
CONFIGS = {
  'hope': problems.ONE_LAYER,
  'hope-attention': dataclasses.replace(ATTENTION, num_layers=1),
  'transformer': problems.CONFIGS['transformer'],
}


def log_probs(config, tokens, *, learns=True):
  """log p of every token but the first [T - 1], and whether each is the likeliest."""
  read, targets = np.asarray(tokens[:-1])[None], np.asarray(tokens[1:])
  told = jnp.full(read.shape, float(learns))
  pieces = (1,) * len(targets)
  logits, _ = problems.read(config, read, pieces, problems.fresh(config, 1), told)
  logits = np.asarray(logits[0])
  chosen = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(targets)), targets]
  return chosen, logits.argmax(axis=-1) == targets


def continuation(config, tokens, count):
  """The likeliest next tokens, each read before the next is chosen."""
  tokens = list(tokens)
  logits, state = problems.read(
    config, np.asarray(tokens)[None], (1,) * len(tokens), problems.fresh(config, 1)
  )
  written = []
  for _ in range(count):
    written.append(int(logits[0, -1].argmax()))
    logits, state = problems.read(config, np.array([written[-1:]]), (1,), state)
  return written
