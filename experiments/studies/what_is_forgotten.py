"""Which weights hold what a language model forgets of a domain of text."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import language_model
from experiments.studies import Found, domains, records, short_run
from nlx import data

TITLE = 'Which weights forget'
CAPTION = (
  'As in the study of domains: models of width 64 learn English documentation, then Python, C '
  'headers and JSON, 75 steps each. Bits per byte on 8,192 held-out bytes of the documentation, in '
  'windows of 512, `before` the other three and `after` them; then `after` but with a part of the '
  'weights as they were before: embedding and head, the mixers, or the MLP blocks, whose slow '
  'weights are where learning in context begins. Lower is better; the part whose return helps most '
  'is where forgetting is.'
)
PARTS = {
  'embedding_and_head': ("['embedding']", "['head']", "['norm']"),
  'mixers': ("['blocks']['mixer']",),
  'mlp_blocks': ("['blocks']['cms']",),
}


class Sizes(NamedTuple):
  """What is trained."""

  steps: int = 75  # of each phase
  seeds: tuple[int, ...] = (0, 1, 2)
  held_out: int = 8192  # bytes
  models: tuple[str, ...] = ('Transformer++', 'HOPE, 3 levels')
  smoke: bool = False


FULL = Sizes()
SMOKE = Sizes(2, (0,), held_out=512, models=('Transformer++',), smoke=True)


def run(sizes: Sizes) -> Found:
  """Returns a row for each model and seed."""
  rows = []
  for name in sizes.models:
    key = (name, sizes)
    rows += records.remember('what_is_forgotten', key, functools.partial(measure, sizes, name))
    print(rows[-1], flush=True)
  return Found(rows, None)


def measure(sizes: Sizes, name: str) -> list[dict[str, Any]]:
  """Learns four domains, and reads the first again with weights of before and after."""
  learned = domains.Sizes(sizes.steps, sizes.seeds, sizes.held_out, sizes.smoke)
  configs = [domains.configure(learned, name, seed) for seed in sizes.seeds]
  runs = short_run.SideBySide(configs)
  language = runs.languages[0]
  before: Any = None
  for phase, domain in enumerate(domains.DOMAINS):
    corpus = data.load(domain, language.tokenizer, max_bytes=domains.MAX_BYTES)
    if phase == 0:
      text = jnp.asarray(corpus.validation.tokens[None, : sizes.held_out + 1], jnp.int32)
    for i, seed in enumerate(sizes.seeds):
      configs[i].seed = seed * len(domains.PHASES) + phase
      runs.streams[i] = language_model.make_task(configs[i], language, corpus).batches
    for _ in range(sizes.steps):
      runs.advance()
    if phase == 0:
      before = [jax.tree.map(np.asarray, runs.params(i)) for i in range(len(sizes.seeds))]
  rows = []
  for i, seed in enumerate(sizes.seeds):
    after = runs.params(i)
    row = {
      'model': name,
      'seed': seed,
      'before': domains.bits(language, before[i], text),
      'after': domains.bits(language, after, text),
    }
    for part, places in PARTS.items():
      row[part] = domains.bits(language, put_back(after, before[i], places), text)
    rows.append(row)
  return rows


def put_back(after: Any, before: Any, places: tuple[str, ...]) -> Any:
  """`after`, with those leaves of `before` whose path begins with one of `places`."""

  def choose(path, new, old):
    return old if jax.tree_util.keystr(path).startswith(places) else new

  return jax.tree_util.tree_map_with_path(choose, after, before)
