"""Loss by position far beyond the length of training."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.studies import Found, records, short_run
from nlx import data

TITLE = 'Loss far beyond the length of training'
CAPTION = (
  'Models of width 64 and equally many parameters, trained for 200 steps of 1,024 tokens on '
  'sequences of 512 of English documentation, read two stretches of 16,384 bytes of the last '
  'tenth, held out. Bits per byte by position. Later bytes are other text, easier or harder, so '
  'each stretch is also read in pieces of 512 from fresh states: `gain` is by how much the long '
  'reading is better than that beyond 8,192, and the figure shows it by position. HOPE has three '
  'blocks per layer that learn in context every 64, 128 and 256 tokens, or none that does. The '
  'Transformer++ has rotary positions. Learning rates are those of `lm.py` at size tiny, not tuned '
  'here: rows of one model compare, not models.'
)


class Sizes(NamedTuple):
  """What is trained and read."""

  steps: int = 200
  seeds: tuple[int, ...] = (0, 1, 2)
  texts: int = 2
  length: int = 16384
  smoke: bool = False


FULL = Sizes()
SMOKE = Sizes(2, (0,), texts=1, length=1024, smoke=True)
MODELS = {
  'HOPE': ('hope', short_run.levels(64, 128, 256)),
  'HOPE, no level in context': ('hope', short_run.levels(0, 0, 0)),
  'Transformer++': ('transformer', {}),
}


def run(sizes: Sizes) -> Found:
  """Returns a row for each model and seed, and the curves."""
  rows: list[dict[str, Any]] = []
  curves: dict[Any, list[np.ndarray]] = {}
  for name in MODELS:
    for seed, found in zip(sizes.seeds, remembered(sizes, name), strict=True):
      bits, fresh = (np.asarray(found[key]) for key in ('bits', 'fresh'))
      curves.setdefault(name, []).append(fresh - bits)
      rows.append({'model': name, 'seed': seed, **by_position(bits, fresh)})
      print(rows[-1], flush=True)
  return Found(rows, plot(sizes, curves))


def remembered(sizes: Sizes, name: str) -> list[dict[str, list[float]]]:
  """What a model of each seed leaves: its loss by position, and that of short readings."""
  key = (name, sizes)
  return records.remember('long_context', key, lambda: measure(sizes, name))


def measure(sizes: Sizes, name: str) -> list[dict[str, list[float]]]:
  """Trains models and has them read."""
  family, fields = MODELS[name]
  configs = [
    short_run.small(family, smoke=sizes.smoke, seed=seed, steps=sizes.steps, **fields)
    for seed in sizes.seeds
  ]
  return [
    reading(sizes, config, trained)
    for config, trained in zip(configs, short_run.train(configs), strict=True)
  ]


def reading(sizes: Sizes, config: Any, trained: short_run.Trained) -> dict[str, list[float]]:
  """Has a model read; the mean loss at every 64 positions, at once and in short readings."""
  corpus = data.load(config.data.corpus, trained.language.tokenizer)
  texts = short_run.windows(corpus.validation.tokens, sizes.texts, sizes.length + 1)
  graph, params = trained.language.graph, trained.params
  long, fresh = [], []
  for text in jnp.asarray(texts, jnp.int32):  # One by one, for the memory that attention takes.
    long.append(short_run.read(graph, params, text[None])[0])
    pieces = jnp.stack([text[i : i + 513] for i in range(0, sizes.length, 512)])
    fresh.append(short_run.read(graph, params, pieces).reshape(-1))
  return {'bits': every_64(long), 'fresh': every_64(fresh)}


def every_64(losses: list[jnp.ndarray]) -> list[float]:
  """The mean over texts at every 64 positions."""
  return np.mean(losses, axis=0, dtype=np.float64).reshape(-1, 64).mean(axis=1).tolist()


def by_position(bits: np.ndarray, fresh: np.ndarray) -> dict[str, float]:
  """Means over stretches of the text, from losses of every 64 positions."""
  late = len(bits) // 2
  mean = lambda begin, end: float(bits[begin // 64 : end // 64].mean())  # noqa: E731
  length, ends = 64 * len(bits), [512]
  while ends[-1] < length:
    ends.append(2 * ends[-1])
  columns = {'to_512': mean(0, 512)}
  columns |= {f'to_{end}': mean(end // 2, end) for end in ends[1:]}
  return columns | {'gain': float((fresh - bits)[late:].mean())}


def plot(sizes: Sizes, curves: dict[str, list[np.ndarray]]) -> Figure:
  """How much better the long reading is by position, on a logarithmic axis."""
  figure = Figure(figsize=(7, 4), layout='constrained')
  axes = figure.add_subplot()
  edges = np.unique(np.geomspace(1, sizes.length // 64, 16).astype(int))
  for (name, gains), style in zip(curves.items(), ('-', '--', ':'), strict=True):
    mean = np.mean(gains, axis=0)
    pieces = [mean[a:b].mean() for a, b in zip((0, *edges), edges, strict=False)]
    axes.plot(64 * edges, pieces, linestyle=style, marker='.', label=name)
  axes.axvline(512, color='gray', linewidth=1)
  axes.set_xscale('log', base=2)
  axes.set(xlabel='position', ylabel='gain over readings of 512, bits per byte')
  axes.grid(alpha=0.3)
  axes.legend()
  return figure
