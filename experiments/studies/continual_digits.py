"""What is forgotten of handwritten digits that come one task after another, by levels."""

import concurrent.futures
import functools
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from experiments.studies import Found, digits
from nlx import cms, core, evaluation, optim

TITLE = 'Digits, one task after another'
CAPTION = (
  'The 8 x 8 digits of scikit-learn, 1,347 to train on and 450 tests, as a sequence of tasks that '
  'share one head of ten classes. `split`: 0 and 1, then 2 and 3, and so on, five tasks of 170 '
  'steps; `permuted`: all ten digits with ten orders of the pixels, 420 steps each; for the MLP '
  '340 and 840. A step is plain SGD on 16 images of the current task. `naive` does nothing else; '
  '`EWC` adds its penalty, with the Fisher diagonal of 192 images and labels that the model draws; '
  '`replay` adds 16 images of a buffer that keeps 20 of each digit (`split`) or 50 of each order '
  '(`permuted`), the loss being the mean over all 32; `joint` draws from all tasks throughout, as '
  'many steps in sum. `accuracy` is the mean over tasks of the accuracy on their tests in the end '
  '(ACC), `right after` that on the task just learned; the others are as in '
  '`nlx.evaluation.continual_scores`, none for `joint`. `MLP` is 64-128-10 with the fixed rate 0.1 '
  'and lambda 10. `k blocks, k levels` is a continuum memory system across training steps: between '
  'an embedding of width 32 and the head, k residual MLP blocks of 96 / k hidden units each, the '
  'i-th of which takes a step with the mean gradient of 1, 4, 16 or 64 steps once per as many '
  'steps; all else learns every step. Controls: four blocks in one level, which all learn every '
  'step; `sums`, where the step is that of the summed gradient (the rate times the period); `small '
  'rates`, where all blocks learn every step and their rates are divided by the periods instead. '
  '`ViT` is that of the study of digits; with three levels its attention learns every 4 steps and '
  'its MLPs every 16. Except for the MLP, every model and method has the same five learning rates, '
  '0.01, 0.03, 0.1, 0.3 and 1, and EWC each of them with lambda 1, 10 and 100; the best has the '
  'highest accuracy in the end, over all tasks, on a fifth of the training images kept out of a '
  'run of seed 0. With it three seeds learn from all training images. In the figure: means, and '
  'whiskers from least to greatest.'
)
BATCH, NUM_PIXELS, NUM_CLASSES = 16, 64, 10
NUM_FISHER = 192  # images of a task that its Fisher information is a mean over
TOGETHER = 6  # runs of one call
MODEL_DIM, HIDDEN = 32, 96
PERIODS = (1, 4, 16, 64)
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
Params = Any


class Method(NamedTuple):
  """What is done against forgetting."""

  strengths: tuple[float, ...] = (0.0,)  # lambdas of elastic weight consolidation that are tried
  replay: bool = False
  joint: bool = False  # all tasks at once


class Model(NamedTuple):
  """A classifier and its levels."""

  init: Callable[[int], Params]  # of a seed
  logits: Callable[[Params, jax.Array], jax.Array]  # [10] of one image [64]
  periods: tuple[tuple[str, int], ...] = ()  # steps per update of what has this in its path


class Setting(NamedTuple):
  """How long a model learns a task, and what it may keep."""

  steps: int
  capacity: int = 0  # images that replay keeps of each digit or order; 0 for no replay


class Case(NamedTuple):
  """A model, and what is tried with it."""

  model: Model
  settings: Mapping[str, Setting]  # by sequence of tasks
  methods: Mapping[str, Method]
  rates: tuple[float, ...] = RATES
  factors: tuple[float, ...] = ()  # of the rates of `model.periods`; ones if empty


class Sizes(NamedTuple):
  """What is measured."""

  cases: tuple[str, ...] = ()  # all if empty
  sequences: tuple[str, ...] = ('split', 'permuted')
  max_steps: int = 10**9
  seeds: tuple[int, ...] = (0, 1, 2)


FULL = Sizes()
SMOKE = Sizes(('2 blocks, 2 levels',), ('split',), max_steps=2, seeds=(0, 1))
EWC, REPLAY, JOINT = Method((1.0, 10.0, 100.0)), Method(replay=True), Method(joint=True)
METHODS = {'naive': Method(), 'EWC': EWC, 'replay': REPLAY, 'joint': JOINT}


@functools.cache
def cases() -> dict[str, Case]:
  """Everything that is compared; cases of the same model stand together."""
  short = {'split': Setting(170, 20), 'permuted': Setting(420, 50)}
  long = {'split': Setting(340, 20), 'permuted': Setting(840, 50)}
  models = {k: chain(*PERIODS[:k]) for k in (1, 2, 3, 4)}
  flat = chain(*(1 for _ in PERIODS))
  controls = {name: METHODS[name] for name in ('naive', 'replay', 'joint')}
  network, levels = mlp(128), PERIODS[1:]
  groups = ('attention_norm', 4), ('qkv', 4), ('out', 4), ('mlp_norm', 16), ('up', 16), ('down', 16)
  transformers = {'split': Setting(170)}, {name: METHODS[name] for name in ('naive', 'joint')}
  return {
    'MLP': Case(network, long, METHODS | {'EWC': Method((10.0,))}, (0.1,)),
    'MLP, 5 per digit': Case(network, {'split': Setting(340, 5)}, {'replay': REPLAY}, (0.1,)),
    '1 block, 1 level': Case(models[1], short, METHODS),
    '2 blocks, 2 levels': Case(models[2], short, METHODS),
    '3 blocks, 3 levels': Case(models[3], short, METHODS),
    '4 blocks, 4 levels': Case(models[4], short, METHODS),
    '4 blocks, 4 levels, sums': Case(models[4], short, controls, factors=levels),
    '4 blocks, 1 level': Case(flat, short, controls),
    '4 blocks, small rates': Case(flat, short, controls, factors=tuple(1 / p for p in levels)),
    'ViT, 1 level': Case(vision_transformer(), *transformers),
    'ViT, 3 levels': Case(vision_transformer(*groups), *transformers),
  }


class Problem(NamedTuple):
  """A sequence of T tasks, filled up with zeros to equal numbers of images."""

  inputs: Any  # [T, N, 64]
  labels: Any  # [T, N]
  groups: Any  # [T, N] of the replay buffer, plus 1; 0 for what is not trained on
  test_inputs: Any  # [T, M, 64] what may be held out, and the tests
  test_labels: Any  # [T, M]
  weights: Any  # [T, M, 2]: one if an image may be held out, and if it is a test


class Run(NamedTuple):
  """One training run; a leading axis [R] is a batch of them."""

  seed: Any  # []
  rate: Any  # []
  factors: Any  # [levels] of the rate
  strength: Any  # [] of elastic weight consolidation
  replay: Any  # [] one with replay, else zero
  batches: Any  # [T, steps, B, 2]: task and image
  fisher: Any  # [T, NUM_FISHER]: images


def problem(name: str, hold_out: bool) -> Problem:
  """Makes the tasks; the last fifth of each one's training images may be held out."""

  def arrays(index, task):
    number = len(task.labels)
    cut = number - number // 5
    groups = 1 + (task.labels if name == 'split' else np.full(number, index))
    test_inputs = np.concatenate([task.inputs[cut:], task.test_inputs])
    test_labels = np.concatenate([task.labels[cut:], task.test_labels])
    is_test = np.arange(len(test_labels)) >= number - cut
    return Problem(
      task.inputs,
      task.labels,
      np.where(np.arange(number) < (cut if hold_out else number), groups, 0),
      test_inputs,
      test_labels,
      np.stack([~is_test, is_test], axis=-1).astype(np.float32),
    )

  def fill(*parts):
    most = max(map(len, parts))
    widths = [[(0, most - len(x)), *[(0, 0)] * (x.ndim - 1)] for x in parts]
    return jnp.asarray([np.pad(x, width) for x, width in zip(parts, widths, strict=True)])

  tasks = evaluation.split_digits() if name == 'split' else evaluation.permuted_digits()
  return jax.tree.map(fill, *map(arrays, range(len(tasks)), tasks))


def draw(tasks: Problem, num_steps: int, seed: int, joint: bool) -> tuple[np.ndarray, np.ndarray]:
  """Batches [T, steps, B, 2] of one task after another or of all, and images [T, NUM_FISHER]."""
  numbers = np.asarray(jnp.sum(tasks.groups > 0, axis=1))
  num_tasks, random = len(numbers), np.random.default_rng(seed)
  of = np.broadcast_to(np.arange(num_tasks)[:, None, None], (num_tasks, num_steps, BATCH))
  of = random.integers(num_tasks, size=of.shape) if joint else of
  fisher = random.integers(numbers[:, None], size=(num_tasks, NUM_FISHER))
  return np.stack([of, random.integers(numbers[of])], axis=-1), fisher


def directions(model: Model) -> optax.GradientTransformation:
  """The gradient; of a slow level the mean of its period, once per period, else zero."""
  periods = {re.escape(part): period for part, period in model.periods}
  return optim.scale_by_multi_rate(periods, optax.identity())


@functools.partial(jax.jit, static_argnums=(0, 1))
@functools.partial(jax.vmap, in_axes=(None, None, None, 0, 0))
def learn(model: Model, capacity: int, tasks: Problem, params: Params, run: Run) -> jax.Array:
  """Learns one task after another.

  Args:
    model: What learns.
    capacity: Images that replay keeps of each group; 0 for no replay.
    tasks: What is learned.
    params: Of the start [R, ...].
    run: How [R, ...].

  Returns:
    Accuracies [R, 1 + T, T, 2] on all tasks, held out and tests, at the start and after each.
  """
  key = jax.random.key(run.seed)
  tx = directions(model)

  def loss(params, inputs, labels, weights, penalties):
    logits = jax.vmap(model.logits, (None, 0))(params, inputs)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    fitted = jnp.sum(weights * losses) / jnp.sum(weights)
    return fitted + evaluation.ewc_penalty(penalties, params, run.strength)

  def evaluate(params):
    logits = jax.vmap(jax.vmap(model.logits, (None, 0)), (None, 0))(params, tasks.test_inputs)
    correct = (jnp.argmax(logits, axis=-1) == tasks.test_labels)[..., None]
    return jnp.sum(correct * tasks.weights, axis=1) / jnp.sum(tasks.weights, axis=1)

  def batch(buffer, where, key):
    images = tuple(x[where[:, 0], where[:, 1]] for x in (tasks.inputs, tasks.labels))
    if not capacity:
      return *images, jnp.ones(BATCH)
    old, held = evaluation.replay_draw(buffer, BATCH, key=key)
    inputs, labels = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), images, old)
    return inputs, labels, jnp.concatenate([jnp.ones(BATCH), run.replay * held])

  def learn_task(carry, now):
    (params, state, buffer, penalties), (task, batches, sample) = carry, now
    key_of_task = jax.random.fold_in(key, task)

    def step(carry, now):
      (params, state), (count, where) = carry, now
      drawn = batch(buffer, where, jax.random.fold_in(key_of_task, count))
      updates, state = tx.update(jax.grad(loss)(params, *drawn, penalties), state, params)
      return (optax.apply_updates(params, _step(model, run, updates)), state), None

    steps = jnp.arange(len(batches)), batches
    (params, state), _ = jax.lax.scan(step, (params, state), steps)
    images = tasks.inputs[task], tasks.labels[task]
    if capacity:
      buffer = evaluation.replay_add(buffer, images, tasks.groups[task] - 1, key=key)
    fisher = _fisher(model, params, images[0][sample], key_of_task)
    penalties = evaluation.ewc_add(penalties, params, fisher)
    return (params, state, buffer, penalties), evaluate(params)

  image = tasks.inputs[0, 0], tasks.labels[0, 0]
  buffer = evaluation.replay_init(image, capacity, NUM_CLASSES) if capacity else None
  start = params, tx.init(params), buffer, evaluation.ewc_init(params)
  now = jnp.arange(len(tasks.inputs)), run.batches, run.fisher
  after = jax.lax.scan(learn_task, start, now)[1]
  return jnp.concatenate([evaluate(params)[None], after])


def _step(model, run, updates):
  """Against the direction, at the rate of each level."""

  def step(path, update):
    name = jax.tree_util.keystr(path)
    level = next((1 + i for i, (part, _) in enumerate(model.periods) if part in name), 0)
    return -run.rate * run.factors[level] * update

  return jax.tree_util.tree_map_with_path(step, updates)


def _fisher(model, params, inputs, key):
  """Of labels as the model draws them."""

  def log_likelihood(params, x, label):
    return jax.nn.log_softmax(model.logits(params, x))[label]

  labels = evaluation.sample_labels(model.logits, params, inputs, key=key)
  return evaluation.fisher_diagonal(log_likelihood, params, inputs, labels)


def mlp(hidden: int) -> Model:
  """64-`hidden`-10 with ReLU."""

  def init(seed):
    random = np.random.default_rng(seed)

    def layer(rows, columns):
      weight = random.normal(0, (2 / rows) ** 0.5, (rows, columns))
      return {'weight': jnp.asarray(weight, jnp.float32), 'bias': jnp.zeros(columns)}

    return {'first': layer(NUM_PIXELS, hidden), 'head': layer(hidden, NUM_CLASSES)}

  def logits(params, x):
    first, head = params['first'], params['head']
    return jax.nn.relu(x @ first['weight'] + first['bias']) @ head['weight'] + head['bias']

  return Model(init, logits)


class Chain(nnx.Module):
  """MLP blocks in series between an embedding and a head."""

  def __init__(self, num_blocks: int, *, rngs: nnx.Rngs):
    hidden = HIDDEN // num_blocks
    self.embedding = nnx.Linear(NUM_PIXELS, MODEL_DIM, rngs=rngs)
    self.blocks = nnx.List([cms.MLPBlock(MODEL_DIM, hidden, rngs=rngs) for _ in range(num_blocks)])
    self.norm = nnx.RMSNorm(MODEL_DIM, rngs=rngs)
    self.head = nnx.Linear(MODEL_DIM, NUM_CLASSES, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., 64] to [..., 10]."""
    x = self.embedding(x)
    for block in self.blocks:
      x = block(x)
    return self.head(self.norm(x))


def chain(*periods: int) -> Model:
  """A block for each number of steps per update; all that is no block has period 1."""
  create = functools.partial(Chain, len(periods))
  graph = nnx.graphdef(nnx.eval_shape(lambda: create(rngs=nnx.Rngs(0))))

  @jax.jit
  def init(seed):
    return nnx.to_pure_dict(nnx.state(create(rngs=nnx.Rngs(jax.random.key(seed))), nnx.Param))

  def logits(params, x):
    return nnx.merge(graph, params)(x[None])[0]

  levels = [(f"['blocks'][{i}]", period) for i, period in enumerate(periods)]
  return Model(init, logits, tuple(levels[1:]))


def vision_transformer(*periods: tuple[str, int]) -> Model:
  """That of the study of digits."""

  def logits(params, x):
    patches = (2 * x - 1).reshape(4, 2, 4, 2).swapaxes(1, 2).reshape(16, 4)
    return digits.logits(params, patches)

  return Model(digits.init, logits, periods)


class Trial(NamedTuple):
  """One run of a case."""

  method: str
  rate: float
  strength: float
  seed: int


def accuracies(case: Case, tasks: Problem, setting: Setting, trials: Sequence[Trial]) -> np.ndarray:
  """What `learn` returns of these runs [trials, 1 + T, T, 2], some of them together."""

  def start(trial):
    method = case.methods[trial.method]
    batches, fisher = draw(tasks, setting.steps, trial.seed, method.joint)
    factors = np.array([1.0, *(case.factors or (1.0 for _ in case.model.periods))])
    replay, strength = float(method.replay), trial.strength
    run = Run(trial.seed, trial.rate, factors, strength, replay, batches, fisher)
    return case.model.init(trial.seed), run

  found = []
  for first in range(0, len(trials), TOGETHER):
    some = list(trials[first : first + TOGETHER])
    some += some[-1:] * (TOGETHER - len(some))  # so that there is one program
    starts = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *map(start, some))
    found.append(np.asarray(learn(case.model, setting.capacity, tasks, *starts)))
  return np.concatenate(found)[: len(trials)]


def choose(case: Case, sequence: str, setting: Setting) -> dict[str, Trial]:
  """The best trial of every method, by the held-out images."""
  trials = [
    Trial(name, rate, strength, 0)
    for name, method in case.methods.items()
    for rate in case.rates
    for strength in method.strengths
  ]
  if len(trials) == len(case.methods):
    return {trial.method: trial for trial in trials}
  held_out = accuracies(case, problem(sequence, True), setting, trials)[:, -1, :, 0].mean(axis=-1)
  order = np.argsort(held_out, kind='stable')
  return {trials[i].method: trials[i] for i in order}  # The last of a method is its best.


def measure(sizes: Sizes, sequence: str, name: str) -> list[dict[str, Any]]:
  """The rows of one case on one sequence of tasks."""
  case = cases()[name]
  setting = case.settings[sequence]
  setting = setting._replace(steps=min(setting.steps, sizes.max_steps))
  best = choose(case, sequence, setting)
  trials = [best[method]._replace(seed=seed) for method in case.methods for seed in sizes.seeds]
  found = accuracies(case, problem(sequence, False), setting, trials)[..., 1]
  parameters = core.tree_size(case.model.init(0))
  return [
    {
      'tasks': sequence,
      'model': name,
      'method': trial.method,
      'parameters': parameters,
      'learning_rate': trial.rate,
      'rate_at_edge': len(case.rates) > 1 and trial.rate in (case.rates[0], case.rates[-1]),
      **({'lambda': trial.strength} if trial.strength else {}),
      'seed': trial.seed,
      **_scores(table, case.methods[trial.method].joint),
    }
    for trial, table in zip(trials, found, strict=True)
  ]


def _scores(table: np.ndarray, joint: bool) -> dict[str, float]:
  scores = evaluation.continual_scores(table[1:], table[0])
  if joint:
    return {'accuracy': float(scores.average)}
  return {
    'accuracy': float(scores.average),
    'right_after': float(np.diagonal(table[1:]).mean()),
    'forgetting': float(scores.forgetting),
    'backward_transfer': float(scores.backward_transfer),
    'forward_transfer': float(scores.forward_transfer),
  }


def run(sizes: Sizes) -> Found:
  """Returns a row for each sequence, model, method and seed, and what is kept and forgotten."""
  chosen = [(name, case) for name, case in cases().items() if name in (sizes.cases or cases())]
  groups = [list(group) for _, group in itertools.groupby(chosen, lambda x: id(x[1].model))]

  def rows(job):
    sequence, group = job
    return [
      row
      for name, case in group
      if sequence in case.settings
      for row in measure(sizes, sequence, name)
    ]

  # One compiles while another runs; cases of the same model share a program.
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    found = list(pool.map(rows, itertools.product(sizes.sequences, groups)))
  flat = [row for part in found for row in part]
  return Found(flat, _plot(sizes, flat))


def _plot(sizes: Sizes, rows: list[dict[str, Any]]) -> Figure:
  figure = Figure(figsize=(12, 4 * len(sizes.sequences)), layout='constrained')
  grid = figure.subplots(len(sizes.sequences), 2, squeeze=False, sharey=True)
  for (sequence, line), (i, score) in itertools.product(
    zip(sizes.sequences, grid, strict=True), enumerate(('accuracy', 'forgetting'))
  ):
    here = [row for row in rows if row['tasks'] == sequence and score in row]
    names = list(dict.fromkeys(row['model'] for row in here))
    for j, method in enumerate(METHODS):
      _bars(line[i], j, method, names, [row for row in here if row['method'] == method], score)
    line[i].set_xticks(range(len(names)), names, rotation=30, ha='right')
    line[i].set(ylabel=score, title=f'{sequence} digits')
    line[i].grid(axis='y', alpha=0.3)
  figure.legend(*grid[0, 0].get_legend_handles_labels(), loc='outside right center')
  return figure


def _bars(axes, j, method, names, rows, score):
  """A bar for each model that has this method, with a whisker over its seeds."""
  values = {name: [row[score] for row in rows if row['model'] == name] for name in names}
  values = {name: found for name, found in values.items() if found}
  if values:
    x = [names.index(name) + 0.2 * (j - 1.5) for name in values]
    means, low, high = (np.array([f(v) for v in values.values()]) for f in (np.mean, min, max))
    whiskers = np.maximum([means - low, high - means], 0)  # Of equal values the mean may round.
    axes.bar(x, means, 0.2, yerr=whiskers, capsize=2, color=f'C{j}', label=method)
