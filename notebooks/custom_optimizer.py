# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # An optimizer of your own in an optax chain
#
# At the end you will have put optimizers of nlx into optax chains, written one of your own with a
# memory that is updated every P steps, tested it against a plain loop, found out what it is good
# for and what not, and given groups of parameters frequencies of their own. You should know optax,
# or optimizers in PyTorch. It takes less than half a minute on two CPU cores.

# %%
# On Colab: installs nlx, and leaves a JAX that is new enough as it is.
import importlib.metadata
import subprocess
import sys

SOURCE = '/content/nlx'  # a clone of the repository, or git+https://... of one
if 'google.colab' in sys.modules:
  pip = [sys.executable, '-m', 'pip', 'install', '--quiet', SOURCE]
  jax_here = f'jax=={importlib.metadata.version("jax")}'
  if subprocess.run([*pip, jax_here], check=False).returncode:  # It is too old for nlx.
    subprocess.run(pip, check=True)

# %%
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import nlx
from nlx import levels, memories, optim

# %% [markdown]
# ## A chain
#
# An optimizer of nlx is an optax transformation. `scale_by_x` turns gradients into a direction, for
# chains; `x` steps against it. So clipping, weight decay and schedules are those of optax. Here is
# delta momentum, which forgets along a gradient before it writes it, and M3, a momentum at every
# step and another once per `slow_period`, each orthogonalised. Both learn a network of two layers.

# %%
draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)  # noqa: E731
inputs = draw(0, 64, 8)
targets = jnp.sin(inputs @ draw(1, 8, 4))
network = {'first': draw(2, 8, 16) / 3, 'bias': jnp.zeros(16), 'second': draw(3, 16, 4) / 4}
schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps=10, decay_steps=100)


def regression(params):
  hidden = jnp.tanh(inputs @ params['first'] + params['bias'][None])
  return jnp.mean((hidden @ params['second'] - targets) ** 2)


def train(tx, params, loss, steps):
  """The losses before each step, and the last parameters; compiled as one loop."""

  def step(carry, _):
    params, state = carry
    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = tx.update(gradient, state, params)
    return (optax.apply_updates(params, updates), state), value

  start = (params, tx.init(params))
  (params, _), losses = jax.jit(lambda start: jax.lax.scan(step, start, length=steps))(start)
  return losses, params


chains = {
  'delta momentum': optax.chain(
    optax.clip_by_global_norm(1.0),
    optim.scale_by_delta_momentum(decay=0.9, delta=0.1),
    optax.add_decayed_weights(1e-3, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
    optax.scale_by_learning_rate(lambda step: 0.1 * schedule(step)),
  ),
  'M3': optax.chain(
    optax.clip_by_global_norm(1.0),
    optim.m3(lambda step: 0.02 * schedule(step), slow_period=8, weight_decay=1e-3),
  ),
}
curves = {name: train(tx, network, regression, 100)[0] for name, tx in chains.items()}
for name, losses in curves.items():
  print(f'{name:14}  loss {losses[0]:.3f} before, {losses[-1]:.3f} after 100 steps')

# %% [markdown]
# M3 acts on matrices and hands the bias to AdamW, which its argument `labels` can change.
#
# ## An optimizer as levels
#
# Now one of our own. In nested learning an optimizer is a memory of gradients, and a deep optimizer
# has several, each with a frequency. Ours has two:
#
# $$\begin{aligned}
#   m_t &= \beta\, m_{t-1} + (1 - \beta)\, g_t && \text{every step} \\
#   s &\leftarrow s - \gamma\, \nabla_s L(s; \bar g), \quad
#     \bar g = \text{mean of the last } P \text{ gradients} && \text{every } P \text{ steps} \\
#   u_t &= (1 - w)\, m_t + w\, s
# \end{aligned}$$
#
# The slow memory $s$ learns the mean gradient under an objective $L$ that we can choose. Under
# L2, $\nabla_s L = s - \bar g$, and $s$ is a moving average of means. A *level* is such a state
# with a pure way to update it; `levels.periodic` holds it for $P$ ticks and gathers meanwhile.

# %%
level = levels.Level(init=jnp.zeros_like, update=lambda s, mean: s - 0.5 * (s - mean))
slow = levels.periodic(level, 3, levels.mean())
state, seen = slow.init(jnp.zeros(())), []
for gradient in (1.0, 2.0, 6.0, 0.0):
  state = slow.update(state, levels.Weighted(jnp.asarray(gradient), 1.0))
  seen.append(float(slow.read(state)))
print(seen)  # Held for three steps, then half of the way to the mean of 1, 2 and 6.

# %% [markdown]
# The transformation is that level and a momentum. Its state is one NamedTuple, in at least
# float32, and `init` and `update` are all that optax asks for.


# %%
class ScaleByTwoSpeedsState(NamedTuple):
  fast: Any  # like params, float32: moves at every step
  slow: levels.PeriodicState  # like params, float32: moves once per period


def scale_by_two_speeds(
  decay=0.9, *, slow_period=16, slow_rate=0.5, slow_weight=0.8, objective=None
):
  """A momentum, and a slow memory that learns the mean gradient of every period."""
  error = (objective or memories.l2()).error

  def zeros(params):
    return jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params)

  def learn(memory, mean):
    return jax.tree.map(lambda s, g: s - slow_rate * error(s, g), memory, mean)

  slow = levels.periodic(levels.Level(zeros, learn), slow_period, levels.mean())

  def init(params):
    return ScaleByTwoSpeedsState(zeros(params), slow.init(params))

  def levels_of(state):  # For the table of levels below.
    held = state.slow.held
    return [
      optim.memory_info('fast', 'dot product', 'gradient, retention', state.fast),
      optim.memory_info('slow', (objective or memories.l2()).name, 'gradient', held, slow_period),
    ]

  def update(gradients, state, params=None):
    del params
    fast = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, state.fast, gradients)
    held = slow.update(state.slow, levels.Weighted(gradients, 1.0))
    updates = jax.tree.map(
      lambda m, s, g: ((1 - slow_weight) * m + slow_weight * s).astype(g.dtype),
      fast,
      slow.read(held),
      gradients,
    )
    return updates, ScaleByTwoSpeedsState(fast, held)

  return optax.GradientTransformation(optim.described(init, levels_of), update)


# %% [markdown]
# ## The test: a plain loop
#
# What a transformation must equal is a loop that anyone can read. NumPy, one number at a time, no
# library. A period that is off by one step, or a sum in place of a mean, does not pass.


# %%
def plain_loop(gradients, decay, period, slow_rate, slow_weight):
  fast, slow, recent, directions = np.zeros(2), np.zeros(2), [], []
  for gradient in gradients:
    fast = decay * fast + (1 - decay) * gradient
    recent.append(gradient)
    if len(recent) == period:
      slow = slow - slow_rate * (slow - np.mean(recent, axis=0))
      recent = []
    directions.append((1 - slow_weight) * fast + slow_weight * slow)
  return np.stack(directions)


gradients = np.random.default_rng(0).normal(size=(11, 2))
tx = scale_by_two_speeds(0.8, slow_period=4, slow_rate=0.3, slow_weight=0.6)
update, state, directions = jax.jit(tx.update), tx.init(jnp.zeros(2)), []
for gradient in gradients.astype(np.float32):
  direction, state = update(jnp.asarray(gradient), state)
  directions.append(direction)
want = plain_loop(gradients, 0.8, 4, 0.3, 0.6)
loop_gap = float(np.abs(np.stack(directions) - want).max())
print(f'largest difference to the plain loop over 11 steps: {loop_gap:.1e}')

# %% [markdown]
# ## What is a slow memory good for?
#
# For seeing further than the fast one. Two tasks take turns, one after the other for $n$ steps.
# Both are quadratics of one matrix $W$ with the same curvature $H$, whose eigenvalues go from 0.03
# to 1; they agree about a part $A$ of the solution and contradict each other about a part $B$:
#
# $$f_\pm(W) = \tfrac{1}{16} \operatorname{tr}\, (W - A \mp B)\, H\, (W - A \mp B)^\top.$$
#
# What is wanted is the minimum $W = A$ of their mean. A momentum that is shorter than a task runs
# after each of them in turn. A slow memory of a period that covers both tasks, $P = 2 n$, is
# written with gradients in which $B$ has cancelled.
#
# The score is the loss of the mean task above its minimum, averaged over the last 128 of 512 steps
# at a constant learning rate. Everyone has the same 13 rates. `slow_weight=0` is our optimizer
# without its slow memory, a momentum of 0.99 a long memory of one level.

# %%
dim, steps, period = 8, 512, 16
basis = jnp.linalg.qr(draw(4, dim, dim))[0]
curvature = (basis * jnp.geomspace(0.03, 1.0, dim)[None]) @ basis.T
agreed, disputed = draw(5, dim, dim), draw(6, dim, dim)


def quadratic(error):
  return jnp.sum(error * (error @ curvature)) / (2 * dim)


@functools.partial(jax.jit, static_argnames=('make', 'decays'))
def final_losses(make, rates, turns, decays=False):
  """Losses of the mean task [turns, rates], where a task lasts so many steps."""

  def one(rate, turn):
    tx = make((lambda step: rate * (1 - step / steps)) if decays else rate)

    def step(carry, t):
      weight, state = carry
      sign = 1.0 - 2.0 * (t // turn % 2)
      gradient = jax.grad(lambda w: quadratic(w - agreed - sign * disputed))(weight)
      updates, state = tx.update(gradient, state, weight)
      weight = optax.apply_updates(weight, updates)
      return (weight, state), quadratic(weight - agreed)

    start = jnp.zeros((dim, dim))
    _, losses = jax.lax.scan(step, (start, tx.init(start)), jnp.arange(steps))
    return jnp.mean(losses[-16 if decays else -128 :])

  return jax.vmap(lambda turn: jax.vmap(lambda rate: one(rate, turn))(rates))(turns)


def chained(scale):
  return lambda rate: optax.chain(scale, optax.scale_by_learning_rate(rate))


OPTIMIZERS = {
  'two speeds': chained(scale_by_two_speeds(slow_period=period)),
  'momentum 0.9': chained(scale_by_two_speeds(slow_period=period, slow_weight=0.0)),
  'momentum 0.99': chained(optim.scale_by_momentum(0.99, rate=0.01)),
  'Adam': optax.adam,
  'M3': lambda rate: optim.m3(rate, slow_period=period),
}
rates, turns = np.geomspace(1e-3, 10, 13), np.array([2, 4, 8, 16, 32, 64])
losses = {
  name: np.asarray(final_losses(make, rates, turns)) / float(quadratic(agreed))
  for name, make in OPTIMIZERS.items()
}
best = {name: np.nanmin(found, axis=1) for name, found in losses.items()}  # [task lengths]
print('best over learning rates, relative to the loss at the start')
print(f'{"steps per task":16}' + ''.join(f'{turn:>10}' for turn in turns))
for name, found in best.items():
  print(f'{name:16}' + ''.join(f'{value:10.1e}' for value in found))

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), layout='constrained')
styles = dict(zip(OPTIMIZERS, ('o-', 's--', 'D-.', '^:', 'v-'), strict=True))
colors = dict(zip(OPTIMIZERS, ('black', 'black', '0.4', 'black', '0.6'), strict=True))
for name, style in styles.items():
  options = {'color': colors[name], 'markerfacecolor': 'white', 'markersize': 5}
  axes[0].loglog(rates, losses[name][2], style, **options)
  axes[1].loglog(turns, best[name], style, label=name, **options)
axes[0].set(ylim=(1e-4, 10), xlabel='learning rate', title='Each task lasts 8 steps')
axes[0].set_ylabel('loss above the minimum (1 at the start)')
axes[1].set(xlabel='steps per task', title='Each at its best learning rate', ylim=(1e-4, 10))
axes[1].axvline(period // 2, color='0.8', zorder=0)
axes[1].text(period / 2 * 1.1, 1.2e-4, 'slow period\n= both tasks', color='0.3', va='bottom')
axes[1].set_xticks(turns, turns)
axes[1].minorticks_off()
axes[1].legend(frameon=False)
figure

# %% [markdown]
# What the picture shows:
#
# - Where the slow period covers both tasks, on the left and at 8 steps per task, the slow memory
#   wins: what the tasks dispute has left its gradient.
# - It wins nowhere else. Tasks that take turns faster than a short momentum forgets are averaged by
#   that momentum, and by Adam, without waiting for a period to end. Tasks that last longer than the
#   slow period are not averaged by it at all; there M3 and a long momentum are ahead.
# - It has a price. A direction that is held for 16 steps is out of date, so that learning rates
#   that a plain momentum still takes make ours diverge: its curve turns up the most steeply.
#
# So the period is an assumption about the context. One more thing is needed to be fair: a learning
# rate that decays averages as well. The same for tasks of 8 steps with rates that fall linearly to
# zero, and the loss of the last 16 steps:

# %%
eight = np.array([8])
decayed = {
  name: np.nanmin(final_losses(make, rates, eight, decays=True)) / float(quadratic(agreed))
  for name, make in OPTIMIZERS.items()
}
for name, found in decayed.items():
  print(f'{name:16}{best[name][2]:10.1e} at constant rates{found:10.1e} at decaying ones')

# %% [markdown]
# Everyone gains, and the slow memory loses its lead to Adam and to its own fast half, which bear
# larger rates at the beginning. So it is for learning that does not end, where rates must stay what
# they are; in a run whose end is known, a schedule does more.
#
# ## Another objective
#
# The slow memory takes any `memories.Objective`. Under Huber's a period whose gradients explode
# moves it by no more than `slow_rate` times the threshold. That is a line for you to change.

# %%
jumps = {}
for objective in (memories.l2(), memories.huber(1.0)):
  tx = scale_by_two_speeds(slow_period=2, slow_weight=1.0, objective=objective)
  state = tx.init(jnp.zeros(2))
  for _ in range(2):
    jump, state = tx.update(jnp.array([30.0, 40.0]), state)
  jumps[objective.name] = float(jnp.linalg.norm(jump))
print(jumps)

# %% [markdown]
# ## Frequencies for groups of parameters
#
# Parameters are a level as well. `optim.multi_rate` gives groups of them periods, by regular
# expressions on their paths: a group takes one step with its mean gradient per period (Eq. 71
# across training). `inner` is any factory with the arguments of `optax.adamw`, ours for example.


# %%
def two_speeds(learning_rate, *, weight_decay=0.0, mask=None, **options):
  return optax.chain(
    scale_by_two_speeds(**options),
    optax.add_decayed_weights(weight_decay, mask),
    optax.scale_by_learning_rate(learning_rate),
  )


periods = {r'blocks.*\[1\]': 4, r'blocks.*\[2\]': 16}
options = {'slow_period': 4, 'slow_weight': 0.5}
tx = optax.chain(
  optax.clip_by_global_norm(1e3),
  optim.multi_rate(0.1, periods, inner=two_speeds, weight_decay=1e-3, options=options),
)
params = {'blocks': [jnp.ones((2, 2)) for _ in range(3)], 'head': jnp.ones(3)}
stream = jax.tree.map(lambda p: draw(7, 32, *p.shape), params)  # Gradients of 32 steps.


@jax.jit
def follow(params):
  def step(carry, gradient):
    params, state = carry
    updates, state = tx.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    return (params, state), (params, jax.tree.map(lambda u: jnp.any(u != 0), updates))

  return jax.lax.scan(step, (params, tx.init(params)), stream)[1]


path, moved = follow(params)
for where, flags in jax.tree.leaves_with_path(moved):
  print(f'{jax.tree_util.keystr(where):14}', ''.join('#' if flag else '.' for flag in flags))

# %% [markdown]
# The third block must move like one that our optimizer trains alone, on means of 16 gradients:

# %%
alone = two_speeds(0.1, weight_decay=1e-3, **options)
weight = params['blocks'][2]
state = alone.init(weight)
for mean in stream['blocks'][2].reshape(2, 16, 2, 2).mean(axis=1):
  updates, state = alone.update(mean, state, weight)
  weight = optax.apply_updates(weight, updates)
group_gap = float(jnp.abs(path['blocks'][2][-1] - weight).max())
print(f'largest difference: {group_gap:.1e}')

# %% [markdown]
# Frequencies multiply: the slow memory of a group of period 16 is written every 4 of its steps,
# which is every 64 of training. `optim.level_infos` finds the levels in any chain, those of our own
# optimizer by what it gave to `optim.described`. As a table, fastest first:

# %%
infos = optim.level_infos(tx, params)
print(nlx.describe(infos))
levels.plot(infos)

# %% [markdown]
# ## What was claimed

# %%
assert all(losses_[-1] < 0.5 * losses_[0] for losses_ in curves.values())  # The chains learn.
assert seen == [0.0, 0.0, 1.5, 1.5]
assert loop_gap < 1e-6  # The transformation is the plain loop,
late = plain_loop(gradients, 0.8, 5, 0.3, 0.6)
assert np.abs(late - want).max() > 1e-2  # and the test would see a period that is off by one.
at_two, at_eight, at_sixty_four = ({n: b[i] for n, b in best.items()} for i in (0, 2, 5))
others = [name for name in OPTIMIZERS if name != 'two speeds']
assert all(at_eight['two speeds'] < 0.5 * at_eight[name] for name in others)
assert max(at_two['Adam'], at_two['momentum 0.9']) < at_two['two speeds']
assert max(at_sixty_four['M3'], at_sixty_four['momentum 0.99']) < at_sixty_four['two speeds']
assert all(0 < np.nanargmin(found[2]) < len(rates) - 1 for found in losses.values())
assert not losses['two speeds'][2, -1] < 10 * losses['momentum 0.9'][2, -1]  # Its price.
assert all(decayed[name] < at_eight[name] for name in OPTIMIZERS)
assert max(decayed['Adam'], decayed['momentum 0.9']) < decayed['two speeds']
assert np.isclose(jumps['L2'], 25) and np.isclose(jumps['Huber'], 0.5)
for group, ticks in zip(moved['blocks'], (1, 4, 16), strict=True):
  assert (np.flatnonzero(group) + 1).tolist() == list(range(ticks, 33, ticks))
assert group_gap < 1e-6
assert {info.period for info in infos if info.name == 'slow'} == {4, 16, 64}
assert sum(info.parameters for info in infos if info.name == 'weights') == 15

# %% [markdown]
# ## Where to go on
#
# - [docs/extending.md](../docs/extending.md): optimizers, and everything else that can be added;
#   the same transformation as the rule by which blocks learn in context.
# - [nlx/levels/periodic.py](../nlx/levels/periodic.py): "every P steps", written once.
# - [nlx/optim/m3.py](../nlx/optim/m3.py): two frequencies with orthogonalised momenta.
# - [nlx/optim/multi_rate.py](../nlx/optim/multi_rate.py): groups of parameters.
# - [experiments/RESULTS.md](../experiments/RESULTS.md): optimizers of nlx against those of optax.
# - [associative_memory](associative_memory.ipynb): why an optimizer is a memory.
