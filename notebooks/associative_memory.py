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
# # Everything is an associative memory
#
# Backpropagation, momentum, Adam, linear attention and the delta rule are one operation here: a
# memory is written with a key and a value. At the end you will have seen each of them computed
# twice, once as it is usually written and once as a memory of nlx, with the same numbers. You
# should know SGD and attention; nothing of nlx is assumed. It takes less than half a minute on two
# CPU cores.

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

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import nlx
from nlx import memories, optim

# %% [markdown]
# ## One write
#
# An associative memory $M$ maps keys $k$ to values $v$. An objective $L(M(k), v)$ says what it
# should do, and a rule how it gets there. For a matrix, $M(k) = W k$, one gradient step with
# retention $\alpha$ and rate $\eta$ is
#
# $$W \leftarrow \alpha W - \eta\, e\, k^\top, \qquad e = \partial L / \partial M(k).$$
#
# | objective | $L$ | $e$ | the write is called |
# |---|---|---|---|
# | dot product | $-\langle W k, v\rangle$ | $-v$ | Hebbian |
# | L2 | $\frac12 \lVert W k - v\rVert^2$ | $W k - v$ | delta rule |
#
# Everything below is this line; what changes is what the keys and values are, and which $e$.
# `memories.layer` runs a memory along a sequence of pairs. `literal=True` means the rule as it is
# printed, without the damping that keeps long chunks stable.

# %%
HEBBIAN = {
  'rule': memories.gradient(literal=True),
  'objective': memories.dot_product(),
}
DELTA = {'rule': memories.delta_rule(), 'objective': memories.l2()}


@functools.partial(jax.jit, static_argnames=('rule', 'objective', 'chunk_size'))
def run(weight, keys, values, queries, rate, retention=1.0, *, rule, objective, chunk_size=1):
  """Writes one pair after another; each query is answered right after the pair of its place."""
  layer = memories.layer(memories.matrix(), rule, chunk_size, objective=objective)
  shape = jnp.broadcast_shapes(jnp.shape(rate), keys.shape[:-1])
  fill = lambda gate: jnp.broadcast_to(jnp.asarray(gate, jnp.float32), shape)  # noqa: E731
  gates = memories.Gates(fill(rate), fill(jnp.log(retention)), fill(0.0))
  answers, state = layer.unroll(
    layer.level.init({'w': weight}), memories.Tokens(keys, values, gates), queries
  )
  return answers, memories.weights_of(state.gathered)['w']


key, value = jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 3.0]])
for name, memory in {'dot product': HEBBIAN, 'L2': DELTA}.items():
  twice = (jnp.repeat(key, 2, axis=0), jnp.repeat(value, 2, axis=0))
  answers, _ = run(jnp.zeros((2, 2)), *twice, twice[0], 1.0, **memory)
  print(f'{name:11}  after one write {answers[0]}, after the same write again {answers[1]}')

# %% [markdown]
# The Hebbian memory has counted the pair twice. The delta rule has noticed that it knew it.
#
# ## Backpropagation
#
# Take any layer $y = W x$ of a network. The chain rule gives $\partial L/\partial W = \sum_i
# \delta_i x_i^\top$, where $\delta_i = \partial L / \partial y_i$ is the *local surprise*: how the
# loss would like this output to move. So the step of SGD is
#
# $$W \leftarrow W - \eta \sum_i \delta_i x_i^\top,$$
#
# the Hebbian write of a memory with **keys** $x_i$, the layer's inputs, and **values**
# $-\delta_i$. Here is a network of three layers. The surprises are gradients with respect to zeros
# that are added to the outputs.

# %%
rate, samples = 0.1, 16
sizes = (6, 6, 6, 6)
draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)  # noqa: E731
network = [
  draw(i, m, n) / n**0.5 for i, (n, m) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
]
x, target = draw(10, samples, sizes[0]), draw(11, samples, sizes[-1])


def loss(network, offsets):
  inputs, hidden = [], x
  for i, (weight, offset) in enumerate(zip(network, offsets, strict=True)):
    inputs.append(hidden)
    hidden = hidden @ weight.T + offset
    hidden = jnp.tanh(hidden) if i < len(network) - 1 else hidden
  return jnp.sum((hidden - target) ** 2) / samples, inputs


zeros = [jnp.zeros((samples, size)) for size in sizes[1:]]
by_weight, by_output = 0, 1
gradients, inputs = jax.grad(loss, by_weight, has_aux=True)(network, zeros)
surprises, _ = jax.grad(loss, by_output, has_aux=True)(network, zeros)

sgd = optax.sgd(rate)
updates, _ = sgd.update(gradients, sgd.init(network))
stepped = optax.apply_updates(network, updates)
written = [
  run(weight, inputs[i], -surprises[i], inputs[i], rate, **HEBBIAN)[1]
  for i, weight in enumerate(network)
]
sgd_gap = max(float(jnp.abs(a - b).max()) for a, b in zip(stepped, written, strict=True))
print(f'SGD and {samples} Hebbian writes per layer differ by at most {sgd_gap:.1e}')

# %% [markdown]
# A trained network is therefore a memory of its own mistakes: it maps what came in to how wrong the
# answer was.
#
# If that is a memory under the dot product, what is backpropagation under L2? It is *delta gradient
# descent*, $W \leftarrow W (I - \eta' x x^\top) - \eta' \delta x^\top$ with $\eta' = \eta / (1 +
# \eta \lVert x\rVert^2)$ (Eqs. 56 and 57): before the surprise is written, what $W$ holds along
# $x$ decays. nlx has it as an optimizer, for kernels `(in, out)`, and as a rule of memories.

# %%
kernel, one_x, one_surprise = network[0].T, x[:1], surprises[0][:1]
captured = optim.capture(kernel)


def linear_loss(captured):  # Its gradient for the output is the surprise.
  return jnp.sum(optim.dense(one_x, captured) * one_surprise)


dgd = optim.delta_gradient_descent(rate)
updates, _ = dgd.update(jax.grad(linear_loss)(captured), dgd.init(captured), captured)
optimizer_step = optax.apply_updates(captured, updates).weight.T
rule = memories.dgd(retention=False)
_, memory_write = run(
  network[0], one_x, -one_surprise, one_x, rate, rule=rule, objective=memories.dot_product()
)
dgd_gap = float(jnp.abs(optimizer_step - memory_write).max())
print(f'delta gradient descent, as an optimizer and as a memory: {dgd_gap:.1e}')

# %% [markdown]
# ## Momentum
#
# Heavy-ball momentum, $m \leftarrow \mu m + g$, is the same write with retention $\alpha = \mu$,
# rate 1, a **key** that is always 1, and the gradient as **value**. A memory with a constant key
# remembers one thing: what the gradients were lately. Three ways to compute it:

# %%
steps, width, decay = 50, 6, 0.9
stream = draw(20, steps, width) + jnp.linspace(-1, 1, steps)[:, None]  # Gradients, one per step.


def directions(tx, stream):
  """What an optax transformation makes of a stream of gradients."""

  def step(state, gradient):
    update, state = tx.update(gradient, state, jnp.zeros(width))
    return state, update

  return jax.lax.scan(step, tx.init(jnp.zeros(width)), stream)[1]


ones = jnp.ones((steps, 1))
momenta = {
  'optax.trace': directions(optax.trace(decay), stream),
  'scale_by_momentum': directions(optim.scale_by_momentum(decay), stream),
  'Hebbian memory': run(jnp.zeros((width, 1)), ones, stream, ones, 1.0, decay, **HEBBIAN)[0],
}
momentum_gaps = {
  name: float(jnp.abs(m - momenta['optax.trace']).max()) for name, m in momenta.items()
}
print(momentum_gaps)

# %% [markdown]
# Now the objective can be changed here as well. *Delta momentum* (Eqs. 48 and 49) forgets along a
# gradient before it writes it,
#
# $$m \leftarrow m\,(\mu I - \lambda\, g^\top g) + g, \qquad
#   \lambda = \delta / (1 + \delta \lVert g\rVert^2),$$
#
# with $m$ and $g$ as rows. With $\delta = 0$ it is momentum again. The picture shows both on a
# gradient of 1 that becomes -1 after 25 steps. What erases more holds less, and turns sooner.

# %%
no_delta = directions(optim.scale_by_delta_momentum(decay, delta=0.0), stream)

turn = jnp.where(jnp.arange(steps) < 25, 1.0, -1.0)[:, None] * jnp.eye(width)[:1]
turned = {
  'momentum': directions(optim.scale_by_momentum(decay), turn),
  r'delta momentum, $\delta = 0.1$': directions(
    optim.scale_by_delta_momentum(decay, delta=0.1), turn
  ),
  r'delta momentum, $\delta = 1$': directions(
    optim.scale_by_delta_momentum(decay, delta=1.0), turn
  ),
}
figure, axes = plt.subplots(figsize=(7, 3), layout='constrained')
for (name, m), style in zip(turned.items(), ('-', '--', ':'), strict=True):
  axes.plot(np.arange(1, steps + 1), m[:, 0], style, color='black', label=name)
axes.axvline(25.5, color='0.7')
axes.axhline(0, color='0.7')
axes.set(xlabel='step', ylabel='what the memory holds (gradients)')
axes.legend(frameon=False)
figure

# %% [markdown]
# ## Adam
#
# Adam is two such memories side by side. Both have the constant key; one has the gradients as
# values, the other their squares. Debiased, they are
#
# $$\hat m = \text{memory of } g, \qquad \hat v = \text{memory of } g^2, \qquad
#   u = \hat m / (\sqrt{\hat v} + \epsilon).$$
#
# With the rate $1 - \mu$ a Hebbian memory is a moving average. In the library the second memory is
# a *preconditioner*: `diagonal()`, applied to the momentum (App. B of the paper).

# %%
first = directions(optim.scale_by_momentum(0.9, rate=0.1, debias=True), stream)
second = directions(optim.scale_by_momentum(0.999, rate=0.001, debias=True), stream**2)
adams = {
  'optax.scale_by_adam': directions(optax.scale_by_adam(0.9, 0.999, eps=1e-8), stream),
  'two memories': first / (jnp.sqrt(second) + 1e-8),
  'preconditioned momentum': directions(
    optim.scale_by_preconditioned_momentum(
      0.9, rate=0.1, debias=True, applied_to='momentum', preconditioner=optim.diagonal(0.999)
    ),
    stream,
  ),
}
adam_gaps = {
  name: float(jnp.abs(u - adams['optax.scale_by_adam']).max()) for name, u in adams.items()
}
print(adam_gaps)

# %% [markdown]
# Other preconditioners are other memories of the same context: `optim.kronecker()` is Shampoo,
# `optim.diagonal(None)` AdaGrad. [equations.md](../docs/equations.md) lists them.
#
# ## Linear attention
#
# Now along a sequence. Keys and values are made of tokens, one pair per token, and the query $q_t$
# is answered after its own token was written. With Hebbian writes from zero,
#
# $$W_t = W_{t-1} + v_t k_t^\top, \qquad
#   y_t = W_t q_t = \sum_{s \le t} v_s \langle k_s, q_t\rangle,$$
#
# which is causal attention without the softmax. Retention below 1 multiplies the score by
# $\alpha^{t-s}$, as in RetNet. Chunks of any size give the same, since this $e$ does not depend on
# $W$; they are a matter of speed.

# %%
length, dim = 48, 8
queries, keys, values = (draw(30 + i, length, dim) / dim**0.25 for i in range(3))
age = jnp.arange(length)[:, None] - jnp.arange(length)[None]
attention_gaps = {}
for retention in (1.0, 0.9):
  scores = jnp.where(age >= 0, retention ** jnp.maximum(age, 0) * (queries @ keys.T), 0)
  for chunk_size in (1, 16):
    answers, _ = run(
      jnp.zeros((dim, dim)),
      keys,
      values,
      queries,
      1.0,
      retention,
      **HEBBIAN,
      chunk_size=chunk_size,
    )
    attention_gaps[retention, chunk_size] = float(jnp.abs(answers - scores @ values).max())
print(attention_gaps)

# %% [markdown]
# ## The delta rule
#
# A Hebbian memory piles up: a pair that is written to a key that is in use is added to what is
# there. The delta rule overwrites (Eq. 65),
#
# $$W_t = W_{t-1} (I - \eta k_t k_t^\top) + \eta\, v_t k_t^\top,$$
#
# and for $\eta = 1$ and keys of norm 1 the last pair is always recalled exactly. Two experiments,
# with the mean over 16 drawings of $\lVert W k - v\rVert^2 / \lVert v\rVert^2$ over all pairs that
# the memory should hold:
#
# - *Capacity.* $n$ pairs with random keys in 32 dimensions, each written once.
# - *Repeated keys.* 16 orthogonal keys, all of them written $r$ times, each time with new values.
#   Only the last value of a key counts.

# %%
key_dim, value_dim, seeds, most = 32, 16, 16, 64
MEMORIES = {
  'Hebbian': {**HEBBIAN},
  'Hebbian, retention 0.95': {**HEBBIAN, 'retention': 0.95},
  'delta rule': {**DELTA},
}


def error(weight, keys, values, counted):
  """Relative squared error of recall, averaged over the pairs that are counted."""
  errors = jnp.sum((keys @ weight.mT - values) ** 2, axis=-1) / jnp.sum(values**2, axis=-1)
  errors = jnp.mean(errors, axis=0)  # Over drawings.
  return jnp.sum(errors * counted, axis=-1) / jnp.sum(counted, axis=-1)


def unit(x):
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def prefixes(memory, keys, values, lengths):
  """The memory after the first pairs only, for each number of them: the others have rate 0."""
  written = jnp.arange(keys.shape[1])[None] < jnp.asarray(lengths)[:, None]
  rates = jnp.broadcast_to(written.astype(jnp.float32)[None], (seeds, *written.shape))
  retention = jnp.where(written, memory.get('retention', 1.0), 1.0)[None]
  keys, values = (jnp.repeat(x[:, None], len(lengths), axis=1) for x in (keys, values))
  start = jnp.zeros((seeds, len(lengths), value_dim, key_dim))
  how = {name: memory[name] for name in ('rule', 'objective')}
  return run(start, keys, values, keys, rates, retention, **how, chunk_size=16)[1], keys, values


def capacity(memory):
  """Errors of recall after 1 to `most` pairs."""
  keys, values = unit(draw(40, seeds, most, key_dim)), draw(41, seeds, most, value_dim)
  weight, keys, values = prefixes(memory, keys, values, range(1, most + 1))
  return error(weight, keys, values, jnp.tri(most))


def repeats(memory, count=16):
  """Errors of recall of the last value of each key, after each of `rounds`."""
  keys = jnp.linalg.qr(draw(42, seeds, key_dim, key_dim))[0][:, :count]
  values = draw(43, seeds, rounds[-1], count, value_dim)
  stream = jnp.tile(keys, (1, rounds[-1], 1)), values.reshape(seeds, -1, value_dim)
  weight, _, _ = prefixes(memory, *stream, [r * count for r in rounds])
  last = values[:, np.array(rounds) - 1]
  return error(weight, keys[:, None], last, jnp.ones((1, count)))


rounds = (1, 2, 4, 6, 8)
by_count = {name: np.asarray(capacity(memory)) for name, memory in MEMORIES.items()}
by_rounds = {name: np.asarray(repeats(memory)) for name, memory in MEMORIES.items()}

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout='constrained')
styles = {'Hebbian': 'o-', 'Hebbian, retention 0.95': 's--', 'delta rule': '^:'}
for name, style in styles.items():
  options = {'markersize': 5, 'color': 'black', 'markerfacecolor': 'white', 'label': name}
  axes[0].plot(np.arange(1, most + 1), by_count[name], style, markevery=8, **options)
  axes[1].plot(rounds, by_rounds[name], style, **options)
axes[0].axvline(key_dim, color='0.7')
axes[0].axhline(1, color='0.7')
axes[0].text(0, 1.03, 'an answer of zero')
axes[0].text(
  key_dim - 1, 0.02, 'width of a key', ha='right', transform=axes[0].get_xaxis_transform()
)
axes[0].set(xlabel='pairs stored', ylabel='squared error of recall (relative)', title='Capacity')
axes[1].set(xlabel='times that each key was written', title='Repeated keys')
axes[1].legend(frameon=False)
for axis in axes:
  axis.set_ylim(bottom=-0.15)
figure

# %% [markdown]
# Random keys interfere: a Hebbian memory makes an error that grows with every pair. The delta rule
# stays below it, but is not free of it: to write a pair exactly it disturbs older ones, and beyond
# as many pairs as a key has dimensions no matrix holds all of them. A memory that says nothing has
# an error of 1. Towards that tends the Hebbian one with retention: where there is too much to hold,
# forgetting beats exact writes in this measure. With repeated keys the difference is one of kind:
# old values pile up in one memory and are gone from the other. Retention bounds the pile, and pays
# with an error on what was written once.
#
# ## Side by side
#
# All of it in the table of nlx: what an update lowers, by which rule, how often. Each row is the
# same write. What differs is the context, what keys and values are:
#
# | memory | keys | values | retention | rate |
# |---|---|---|---|---|
# | weights under SGD | inputs of the layer | minus the local surprise | 1 | learning rate |
# | momentum | 1 | gradients | decay | 1 |
# | Adam's second moment | 1 | squares of gradients | decay | 1 - decay |
# | linear attention | keys of tokens | values of tokens | 1 | 1 |
# | delta rule | keys of tokens | values of tokens | 1 | $\eta_t$ |

# %%
Info = nlx.levels.LevelInfo
size = sum(weight.size for weight in network)
infos = [
  Info('linear attention', 1, 'token', 'dot product', 'gradient', dim * dim, 'weights'),
  Info('delta rule', 16, 'token', 'L2', DELTA['rule'].text, dim * dim, 'weights'),
  Info('momentum', 1, 'step', 'dot product', 'gradient, retention', size, 'generation'),
  Info('second moment', 1, 'step', 'dot product', 'gradient, retention', size, 'generation'),
  Info('weights', 1, 'step', 'dot product', 'gradient', size, 'gradient'),
]
print(nlx.describe(infos))
nlx.levels.plot(infos, span=64)

# %% [markdown]
# As in tables of models, the period of the delta rule is the chunk that it is computed in, for this
# rule a matter of speed alone. The hatched rows are updated by steps of the optimizer, not
# by tokens: those memories have another clock, and read another stream.
#
# ## What was claimed

# %%
assert sgd_gap < 1e-5  # Backpropagation with SGD is a Hebbian write.
assert dgd_gap < 1e-5  # And delta gradient descent one that first decays along its key.
assert any(float(jnp.abs(a - b).max()) > 1e-3 for a, b in zip(network, written, strict=True))
assert max(momentum_gaps.values()) < 1e-4  # Momentum is a memory with a constant key.
assert jnp.allclose(no_delta, momenta['optax.trace'], atol=1e-4)
held, erased = (turned[name][24, 0] for name in (list(turned)[0], list(turned)[2]))
assert jnp.isclose(held, (1 - decay**25) / (1 - decay), rtol=1e-4)
assert jnp.isclose(erased, 1 / (1 - decay + 0.5), rtol=1e-4)  # Its fixed point: lambda is 1/2.
crossed = [int(jnp.argmax(m[25:, 0] < 0)) for m in turned.values()]
assert crossed[0] > crossed[1] > crossed[2]  # The more it erases, the sooner it turns.
assert max(adam_gaps.values()) < 1e-4  # Adam is two of them.
assert max(attention_gaps.values()) < 1e-4  # Linear attention is a Hebbian write per token.
hebbian, delta = by_count['Hebbian'], by_count['delta rule']
assert hebbian[0] < 1e-6 > delta[0]
assert (delta[4:] < hebbian[4:]).all()
assert max(by_rounds['delta rule']) < 1e-6  # Overwrites,
assert np.allclose(by_rounds['Hebbian'], np.array(rounds) - 1, rtol=0.2)  # and piles up.
assert by_rounds['delta rule'][0] < by_rounds['Hebbian, retention 0.95'][0]
assert by_rounds['Hebbian, retention 0.95'][-1] < by_rounds['Hebbian'][-1]
table = nlx.describe(infos)
assert table.splitlines()[2].split()[:3] == ['1', 'linear', 'attention']

# %% [markdown]
# ## Where to go on
#
# - [docs/concepts.md](../docs/concepts.md): levels, frequency and context on one page.
# - [docs/equations.md](../docs/equations.md): which equation is which function, and its test.
# - [nlx/memories/rules.py](../nlx/memories/rules.py): every rule, with momentum, windows and caps.
# - [nlx/memories/chunk.py](../nlx/memories/chunk.py): how a chunk of tokens is written at once.
# - [nlx/optim/momentum.py](../nlx/optim/momentum.py) and
#   [preconditioners.py](../nlx/optim/preconditioners.py): memories of gradients.
# - [custom_optimizer](custom_optimizer.ipynb) and [custom_memory](custom_memory.ipynb): your own.
