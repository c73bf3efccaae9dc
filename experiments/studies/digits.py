"""Six optimizers on a small vision transformer that learns scikit-learn's handwritten digits."""

import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments.studies import Found
from nlx import optim, training

TITLE = 'Digits'
CAPTION = (
  'A vision transformer (two blocks of width 32 on 2 x 2 patches) learns the 8 x 8 digits of '
  'scikit-learn. Every optimizer has the same budget: 600 steps of 128 images, the same images in '
  'the same order, and four learning rates, each about three times the one before, around the '
  'best of a first look. The best is the one with the lowest loss of seed 0 on 297 of the 1,297 '
  'training images, kept out of that run; with it, three seeds learn from all 1,297. `rate at '
  'edge` says whether it is the first or last of the four. The other losses, and the accuracy, '
  'are of these three runs after the last step, on the 500 test images where it says test. An '
  'optimizer and its rate act on the matrices of the blocks; embeddings, norms, biases and head '
  'learn with the same AdamW (3e-3, b1 0.9, b2 0.99) everywhere. Alike are also 20 steps of '
  'warm-up and a cosine to zero, weight decay 0.01 and clipping at norm 1. AdamW and AdEMAMix '
  'have b2 0.99, and AdEMAMix b3 0.999, as 600 steps are few; all else is as by default. Times '
  'are medians over interleaved pieces of 20 steps, without compilation, and most of each is the '
  "model's gradient. In the figure: means of the seeds, and shades from least to greatest."
)
NUM_TRAIN, NUM_HELD_OUT, NUM_IMAGES = 1297, 297, 1797
BATCH, WARMUP = 128, 20
NUM_LAYERS, NUM_HEADS, HEAD_DIM, MLP_DIM = 2, 4, 8, 64
DIM = NUM_HEADS * HEAD_DIM
Params = dict[str, Any]
Data = tuple[jax.Array, jax.Array]  # patches [images, 16, 4] and labels [images]


class Sizes(NamedTuple):
  """What is measured."""

  steps: int = 600
  every: int = 20  # steps between two losses, and of one measurement of time
  num_rates: int = 4
  seeds: tuple[int, ...] = (0, 1, 2)


class Rule(NamedTuple):
  """An optimizer of matrices; see `nlx.training.OPTIMIZERS`."""

  name: str
  rates: tuple[float, ...]
  options: Mapping[str, Any] = {}
  style: Any = '-'  # of its line


class Curves(NamedTuple):
  """One run, at the start and after every so many steps."""

  losses: list[np.ndarray]  # [images] each
  correct: list[np.ndarray]  # [images] each, bool
  seconds: list[float]  # of a step, each a mean over as many; none at the start


FULL = Sizes()
SMOKE = Sizes(steps=4, every=2, num_rates=2, seeds=(0, 1))
# Around the best rate of a first look, so that no best rate lies at an edge.
RULES = {
  'AdamW': Rule('adamw', (1e-3, 3e-3, 1e-2, 3e-2), {'b2': 0.99}, '-'),
  'AdEMAMix': Rule('ademamix', (1e-3, 3e-3, 1e-2, 3e-2), {'b2': 0.99, 'b3': 0.999}, '--'),
  'Muon': Rule('muon', (3e-3, 1e-2, 3e-2, 1e-1), style='-.'),
  'M3': Rule('m3', (1e-3, 3e-3, 1e-2, 3e-2), style=':'),
  'delta momentum': Rule('delta_momentum', (3e-2, 1e-1, 3e-1, 1.0), style=(0, (8, 2))),
  'DMGD': Rule('deep_momentum', (3e-4, 1e-3, 3e-3, 1e-2), style=(0, (5, 1, 1, 1, 1, 1))),
}


def load() -> Data:
  """All images: first those to train on, of which the held-out ones come last, then the tests."""
  from sklearn.datasets import load_digits

  digits = load_digits()
  order = np.random.default_rng(0).permutation(NUM_IMAGES)
  images = digits.images[order].astype(np.float32) / 8 - 1
  patches = images.reshape(-1, 4, 2, 4, 2).swapaxes(2, 3).reshape(-1, 16, 4)
  return jnp.asarray(patches), jnp.asarray(digits.target[order])


def init(seed: int) -> Params:
  """Parameters; those of the blocks have a leading axis of layers."""
  generator = np.random.default_rng(seed)

  def matrix(*shape):
    values = generator.standard_normal(shape, np.float32)
    return jnp.asarray(values * np.float32(shape[-2] ** -0.5))

  def norm(*layers):
    return {'scale': jnp.ones((*layers, DIM)), 'bias': jnp.zeros((*layers, DIM))}

  return {
    'embedding': {'weight': matrix(4, DIM), 'position': 0.1 * matrix(16, DIM)},
    'blocks': {
      'attention_norm': norm(NUM_LAYERS),
      'qkv': matrix(NUM_LAYERS, 3, DIM, DIM),
      'out': matrix(NUM_LAYERS, DIM, DIM),
      'mlp_norm': norm(NUM_LAYERS),
      'up': matrix(NUM_LAYERS, DIM, MLP_DIM),
      'up_bias': jnp.zeros((NUM_LAYERS, MLP_DIM)),
      'down': matrix(NUM_LAYERS, MLP_DIM, DIM),
      'down_bias': jnp.zeros((NUM_LAYERS, DIM)),
    },
    'final_norm': norm(),
    'head': {'weight': jnp.zeros((DIM, 10)), 'bias': jnp.zeros(10)},
  }


def logits(params: Params, patches: jax.Array) -> jax.Array:
  """What the model says of one image [16, 4], as [10]."""

  def block(x, layer):
    heads = jnp.einsum('td,sdf->stf', _norm(layer['attention_norm'], x), layer['qkv'])
    q, k, v = heads.reshape(3, -1, NUM_HEADS, HEAD_DIM)
    scores = jax.nn.softmax(jnp.einsum('qhd,khd->hqk', q, k) / HEAD_DIM**0.5)
    mixed = jnp.einsum('hqk,khd->qhd', scores, v)
    x = x + mixed.reshape(x.shape) @ layer['out']
    hidden = _norm(layer['mlp_norm'], x) @ layer['up'] + layer['up_bias'][None]
    return x + jax.nn.gelu(hidden) @ layer['down'] + layer['down_bias'][None], None

  embedded = patches @ params['embedding']['weight'] + params['embedding']['position']
  x, _ = jax.lax.scan(block, embedded, params['blocks'])
  pooled = jnp.mean(_norm(params['final_norm'], x), axis=0)
  return pooled @ params['head']['weight'] + params['head']['bias']


def _norm(params, x):
  return jax.nn.standardize(x) * params['scale'][None] + params['bias'][None]


@jax.jit
def evaluate(params, patches, labels) -> tuple[jax.Array, jax.Array]:
  """Cross-entropies of images, and whether the likeliest digit is the right one."""
  said = jax.vmap(logits, (None, 0))(params, patches)
  losses = optax.softmax_cross_entropy_with_integer_labels(said, labels)
  return losses, jnp.argmax(said, axis=-1) == labels


def transformation(name: str, rate: Any, steps: int) -> optax.GradientTransformation:
  """The rule of this name for matrices at this peak rate, and AdamW for the rest."""
  cosine = training.warmup_cosine(1.0, warmup_steps=min(WARMUP, steps // 2), total_steps=steps)
  mask = functools.partial(training.matrices, stacked=('blocks',))
  make = functools.partial(training.optimizer, weight_decay=0.01, decay_mask=mask, clip_norm=None)
  rule = RULES[name]
  rules = {
    optim.MATRIX: make(rule.name, lambda step: rate * cosine(step), **rule.options),
    optim.OTHER: make('adamw', lambda step: 3e-3 * cosine(step), b1=0.9, b2=0.99),
  }
  return optax.chain(optax.clip_by_global_norm(1.0), optax.partition(rules, optim.matrix_labels))


def start(name: str, params: Params) -> Any:
  """The optimizer's state."""
  return transformation(name, 0.0, 1).init(params)


@jax.jit
def gradients(params: Params, data: Data, batch: jax.Array) -> Params:
  """Of the mean loss of the images with these indices [B]."""
  patches, labels = data
  return jax.grad(lambda p: evaluate(p, patches[batch], labels[batch])[0].mean())(params)


@functools.partial(jax.jit, static_argnums=(0, 1))
def update(name, steps, carry, grads, rate) -> tuple[Params, Any]:
  """Parameters and the optimizer's state after another of so many steps."""
  params, state = carry
  updates, state = transformation(name, rate, steps).update(grads, state, params)
  return optax.apply_updates(params, updates), state


def train(
  sizes: Sizes, rates: dict[str, float], seed: int, data: Data, num_train: int
) -> dict[str, Curves]:
  """Trains with one rate for each optimizer, by turns, so that load meets all of them alike."""
  params = init(seed)
  carries = {name: (params, start(name, params)) for name in rates}
  curves = {name: Curves([], [], []) for name in rates}

  def record(name):
    losses, correct = evaluate(carries[name][0], *data)
    curves[name].losses.append(np.asarray(losses))
    curves[name].correct.append(np.asarray(correct))

  def steps(name, rate, batches):
    carry = carries[name]
    for batch in batches:
      carry = update(name, sizes.steps, carry, gradients(carry[0], data, batch), rate)
    return carry

  for name in rates:
    record(name)
  drawn = np.random.default_rng(seed).integers(num_train, size=(sizes.steps, BATCH))
  for batches in np.split(drawn, sizes.steps // sizes.every):
    for name, rate in rates.items():
      before = time.perf_counter()
      carries[name] = jax.block_until_ready(steps(name, rate, batches))
      curves[name].seconds.append((time.perf_counter() - before) / sizes.every)
      record(name)
  return curves


def tune(sizes: Sizes, data: Data) -> dict[str, list[float]]:
  """Losses of seed 0 on the held-out images, by optimizer and learning rate."""
  num_train = NUM_TRAIN - NUM_HELD_OUT
  losses: dict[str, list[float]] = {name: [] for name in RULES}
  for i in range(sizes.num_rates):
    curves = train(sizes, {name: rule.rates[i] for name, rule in RULES.items()}, 0, data, num_train)
    for name, found in curves.items():
      losses[name].append(float(found.losses[-1][num_train:NUM_TRAIN].mean()))
  return losses


def run(sizes: Sizes) -> Found:
  """Returns a row for each optimizer and seed, and losses against steps and time."""
  data = load()
  held_out = tune(sizes, data)
  # A rate at which a loss is no number is never the best.
  best = {name: int(np.argmin(np.nan_to_num(x, nan=np.inf))) for name, x in held_out.items()}
  rates = {name: RULES[name].rates[i] for name, i in best.items()}
  runs = [train(sizes, rates, seed, data, NUM_TRAIN) for seed in sizes.seeds]
  found = {name: [curves[name] for curves in runs] for name in RULES}
  seconds = {name: float(np.median([x.seconds for x in found[name]])) for name in RULES}
  rows = [
    {
      'optimizer': name,
      'learning_rate': rates[name],
      'rate_at_edge': best[name] in (0, sizes.num_rates - 1),
      'held_out_loss': min(held_out[name]),
      'seed': seed,
      **_scores(curves),
      'ms_per_step': 1e3 * seconds[name],
    }
    for name in RULES
    for seed, curves in zip(sizes.seeds, found[name], strict=True)
  ]
  return Found(rows, _plot(sizes, found, seconds))


def _scores(curves: Curves) -> dict[str, float]:
  losses, correct = curves.losses[-1], curves.correct[-1]
  return {
    'train_loss': float(losses[:NUM_TRAIN].mean()),
    'test_loss': float(losses[NUM_TRAIN:].mean()),
    'test_accuracy': float(correct[NUM_TRAIN:].mean()),
  }


def _plot(sizes: Sizes, found: dict[str, list[Curves]], seconds: dict[str, float]) -> Figure:
  figure = Figure(figsize=(9, 4), layout='constrained')
  steps = np.arange(0, sizes.steps + 1, sizes.every)
  for axes, label in zip(figure.subplots(1, 2, sharey=True), ('steps', 'seconds'), strict=True):
    for name, runs in found.items():
      losses = np.array([curves.losses for curves in runs])[..., :NUM_TRAIN].mean(axis=-1)
      x = steps * (seconds[name] if label == 'seconds' else 1)
      (line,) = axes.plot(x, losses.mean(axis=0), linestyle=RULES[name].style, label=name)
      axes.fill_between(
        x, losses.min(axis=0), losses.max(axis=0), color=line.get_color(), alpha=0.15
      )
    axes.set(xlabel=label, yscale='log')
    axes.grid(alpha=0.3)
  figure.axes[0].set_ylabel('training loss')
  figure.axes[0].legend()
  return figure
