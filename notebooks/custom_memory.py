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
# # A memory and an update rule of your own in a language model
#
# At the end you will have written a memory network, an objective and an update rule, compared
# their chunk-parallel form with a loop over tokens in float64, and trained a language model of
# them: the memory, and beside it blocks that learn in context at two periods, as in HOPE. You
# should know what linear attention is and have seen Flax or PyTorch modules. It takes about a
# minute on two CPU cores, most of which is compilation.

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
from flax import nnx

import nlx
from nlx import memories

# %% [markdown]
# ## A network
#
# A memory is a map from keys to values whose matrices change while a sequence is read. Ours is a
# matrix with a gate per entry of the value,
#
# $$M(k) = (W_1 k) \odot 2\,\sigma(W_2 k),$$
#
# so that a part of a value can be answered for some keys and held back for others. It is written
# once, over an abstract `linear(name, x)`. With plain matrices that is a feed-forward network; with
# matrices that differ from token to token it is the read of a memory, for a whole chunk at once.
# The function is cached because configurations are compared: equal ones share compiled programs.


# %%
@functools.cache
def gated_matrix():
  def shapes(key_dim, value_dim):
    return {'w1': (value_dim, key_dim), 'w2': (value_dim, key_dim)}

  def apply(linear, keys):
    return linear('w1', keys) * 2 * jax.nn.sigmoid(linear('w2', keys))

  return memories.Network(shapes, apply)


# %% [markdown]
# ## An objective
#
# An objective is given by its gradient for the prediction. Ours is that of a Cauchy distribution.
# With the error $d = M(k) - v$,
#
# $$L = \tfrac12 \log(1 + \lVert d \rVert^2), \qquad
#   e = \frac{\partial L}{\partial M(k)} = \frac{d}{1 + \lVert d \rVert^2}.$$
#
# Near zero it is L2. Far away the gradient vanishes: what is too surprising is hardly written.


# %%
@functools.cache
def cauchy():
  def error(prediction, target):
    difference = prediction - target
    return difference / (1 + jnp.sum(jnp.square(difference), axis=-1, keepdims=True))

  return memories.Objective('Cauchy', error)


prediction, target = jnp.array([0.5, -2.0, 1.0]), jnp.array([1.0, 1.0, 1.0])
by_autodiff = jax.grad(lambda p: 0.5 * jnp.log1p(jnp.sum((p - target) ** 2)))(prediction)
objective_gap = float(jnp.abs(by_autodiff - cauchy().error(prediction, target)).max())
print(f'error by automatic differentiation and by hand: {objective_gap:.1e} apart')

# %% [markdown]
# ## A rule
#
# Most rules are a choice of fields of `memories.Rule`; its documentation has the list. Ours writes
# the errors of the last three tokens at once, through a momentum, with a cap on the rate:
#
# $$\begin{aligned}
#   S_t &= \mu_t S_{t-1} - \tfrac13 \textstyle\sum_{i=t-2}^{t} (1 - \mu_i)\, r_i\, e_i x_i^\top \\
#   W_t &= \alpha_t W_{t-1} + S_t \\
#   r_i &= \min\!\big(\eta_i / (1 + \eta_i \lVert x_i \rVert^2),\ (1 - \alpha_i) / \lVert e_i
#   \rVert\big)
# \end{aligned}$$
#
# for each matrix $W$ with its own inputs $x_i$ and errors $e_i$. Gates per token are the rate
# $\eta$, the retention $\alpha$ and the momentum $\mu$. Errors are taken at the weights that the
# chunk began with, and divided by the number of matrices, here 2. The cap makes a write no larger
# than what retention forgets.
#
# | field | here | in the formula |
# |---|---|---|
# | `momentum`, `averaged` | True | $\mu_t$, and the factor $1 - \mu_i$ |
# | `window` | 3 | the mean over three tokens |
# | `retention` | True | $\alpha_t$ |
# | `proximal` | True | the denominator of $r_i$ |
# | `soft_cap` | True | the second argument of the minimum |
# | `scale_by_depth` | True | errors over 2 |

# %%
RULE = memories.Rule('windowed', momentum=True, window=3, soft_cap=True)  # Others: defaults.
print(RULE.text)

# %% [markdown]
# ## The test: token by token
#
# A layer is a network, a rule, an objective and a chunk size. `unroll` reads a sequence and solves
# each chunk in parallel: every query is answered by the weights right after its own token. What it
# must equal is this loop, with gradients derived by hand, in NumPy. For the gated matrix, with the
# error $e$ of the whole and $g = \sigma(W_2 k)$, they are $e_1 = 2 e \odot g$ and
# $e_2 = 2 e \odot (W_1 k) \odot g \odot (1 - g)$.


# %%
def plain_loop(w1, w2, keys, values, queries, rates, retentions, momenta, chunk_size, window=3):
  sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
  live, momentum, answers = [w1, w2], [np.zeros_like(w1), np.zeros_like(w2)], []
  for t, query in enumerate(queries):
    if t % chunk_size == 0:
      held = list(live)  # Errors are taken here until the chunk ends.
    writes = [np.zeros_like(w1), np.zeros_like(w2)]
    for i in range(max(t - window + 1, 0), t + 1):
      key, linear, gate = keys[i], held[0] @ keys[i], sigmoid(held[1] @ keys[i])
      difference = 2 * linear * gate - values[i]
      error = difference / (1 + difference @ difference)
      errors = (2 * error * gate / 2, 2 * error * linear * gate * (1 - gate) / 2)
      for j, e in enumerate(errors):
        proximal = rates[i] / (1 + rates[i] * (key @ key))
        rate = min(proximal, (1 - retentions[i]) / np.linalg.norm(e))
        writes[j] += (1 - momenta[i]) * rate * np.outer(e, key) / window
    for j in range(2):
      momentum[j] = momenta[t] * momentum[j] - writes[j]
      live[j] = retentions[t] * live[j] + momentum[j]
    answers.append(2 * (live[0] @ query) * sigmoid(live[1] @ query))
  return np.stack(answers), live


# %% [markdown]
# In float64 the two agree to rounding, so that a wrong sign, or an error of a token too late, does
# not pass. The length, 21, ends inside a chunk of 8.

# %%
length, width, chunk_size = 21, 5, 8
rng = np.random.default_rng(0)
weights = {name: rng.normal(size=(width, width)) / 2 for name in ('w1', 'w2')}
keys, values, queries = rng.normal(size=(3, length, width))
rates, retentions, momenta = rng.uniform((0.1, 0.9, 0.2), (2.0, 1.0, 0.9), (length, 3)).T
with jax.enable_x64(True):
  layer = memories.layer(
    gated_matrix(), RULE, chunk_size, objective=cauchy(), widths=(width, width)
  )
  gates = memories.Gates(jnp.array(rates), jnp.log(retentions), jnp.log(momenta))
  tokens = memories.Tokens(jnp.array(keys), jnp.array(values), gates)
  start = layer.level.init(jax.tree.map(jnp.array, weights))
  answers, state = jax.jit(layer.unroll)(start, tokens, jnp.array(queries))
  answers, written = np.asarray(answers), memories.weights_of(state.gathered)
  written = {name: np.asarray(weight) for name, weight in written.items()}

signals = (keys, values, queries, rates, retentions, momenta)
want, last = plain_loop(weights['w1'], weights['w2'], *signals, chunk_size)
answer_gap = np.abs(answers - want).max()
weight_gap = max(np.abs(written[name] - last[j]).max() for j, name in enumerate(('w1', 'w2')))
late, _ = plain_loop(weights['w1'], weights['w2'], *signals, chunk_size, window=2)
print(f'{answers.dtype}: answers differ by {answer_gap:.1e}, last weights by {weight_gap:.1e}')

# %% [markdown]
# ## What the objective is good for
#
# A memory learns a map $v = A k$ from a stream in which one value of ten is wrong, and large. The
# picture has the error of recall for right pairs, averaged over 64 streams: L2 without a cap, L2
# with our cap, and our objective without one. All have our network and the same gates.

# %%
streams, stream_length, size = 64, 120, 8
draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)  # noqa: E731
unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
teacher = jnp.linalg.qr(draw(0, streams, size, size))[0]
stream_keys = unit(draw(1, streams, stream_length, size))
outlier = jax.random.bernoulli(jax.random.key(3), 0.1, (streams, stream_length, 1))
stream_values = stream_keys @ teacher.mT + 10 * outlier * draw(4, streams, stream_length, size)
probes = jnp.repeat(unit(draw(2, streams, 1, size)), stream_length, axis=1)
gate = jnp.ones((streams, stream_length))
stream_gates = memories.Gates(gate, jnp.log(0.98 * gate), jnp.log(0.5 * gate))


@functools.partial(jax.jit, static_argnames=('rule', 'objective'))
def recall_errors(rule, objective):
  """Squared error of what the memory answers to one right key, after each token."""
  layer = memories.layer(gated_matrix(), rule, 8, objective=objective, widths=(size, size))
  zeros = jnp.zeros((streams, size, size))
  tokens = memories.Tokens(stream_keys, stream_values, stream_gates)
  answers, _ = layer.unroll(layer.level.init({'w1': zeros, 'w2': zeros}), tokens, probes)
  return jnp.mean(jnp.sum((answers - probes @ teacher.mT) ** 2, axis=-1), axis=0)


uncapped = RULE._replace(soft_cap=False)
recall = {
  'L2': recall_errors(uncapped, memories.l2()),
  'L2, soft cap': recall_errors(RULE, memories.l2()),
  'Cauchy': recall_errors(uncapped, cauchy()),
}
figure, axes = plt.subplots(figsize=(7, 3.2), layout='constrained')
for (name, errors), style in zip(recall.items(), ('-', '--', ':'), strict=True):
  axes.semilogy(np.arange(1, stream_length + 1), errors, style, color='black', label=name)
axes.axhline(1, color='0.7')
axes.text(stream_length, 1.1, 'an answer of zero', color='0.3', ha='right')
axes.set(xlabel='tokens read', ylabel='squared error of recall')
axes.legend(frameon=False)
figure

# %% [markdown]
# Under L2 wrong values are written in proportion to their size. The cap bounds that damage, and
# with it what a right value can teach: at this retention its rates are small. The objective tells
# the two apart by their size. That is of use as long as right values are the small surprises.
#
# ## In a whole model
#
# `MemoryConfig` makes a sequence layer of them: slow projections make keys, values, queries and
# gates of the stream, for each head. `CMSConfig` adds the continuum memory system: MLP blocks that
# are updated in context every 8 and every 16 tokens, the slower of which learns where the faster
# one begins (`form='nested'`). `LanguageModelConfig` stacks such pairs; one is enough here.

# %%
vocab_size, model_dim = 16, 32
memory = memories.MemoryConfig(
  model_dim=model_dim,
  num_heads=2,
  chunk_size=8,
  network=gated_matrix(),
  rule=RULE,
  objective=cauchy(),
  unit_values=True,
)
blocks = nlx.cms.CMSConfig(model_dim=model_dim, hidden=32, periods=(8, 16), form='nested')
config = nlx.models.LanguageModelConfig('mine', memory, blocks, vocab_size, num_layers=1)
model = nlx.models.create(config, rngs=nnx.Rngs(0))
print(nlx.describe(model))
nlx.levels.plot(model)

# %% [markdown]
# ## A stream can be cut anywhere
#
# The model keeps its fast weights in an explicit state. Read in pieces of 12 tokens, whose ends lie
# inside chunks and periods, it must give the logits of one pass; a changed token must not reach
# those before it, nor other sequences. The text is a phrase of 16 random tokens, three times.

# %%
phrase, readings = 16, 3


def texts(key, batch_size):
  """Repeated phrases [B, T]: nothing but recall can predict the second and third reading."""
  first = jax.random.randint(key, (batch_size, phrase), 0, vocab_size)
  return jnp.tile(first, (1, readings))


graph, params = nnx.split(model, nnx.Param)
params = nnx.as_pure(params)


@jax.jit
def read(params, tokens, state, learns):
  return nnx.merge(graph, params)(tokens, state, learns=learns)


text = texts(jax.random.key(1000), 32)
fresh = model.init_state(batch_size=32)
whole, _ = read(params, text, fresh, True)

pieces, state = [], fresh
for begin in range(0, text.shape[1], 12):
  logits, state = read(params, text[:, begin : begin + 12], state, True)
  pieces.append(logits)
stream_gap = float(jnp.abs(jnp.concatenate(pieces, axis=1) - whole).max())

place = 21
changed, _ = read(params, text.at[0, place].add(1) % vocab_size, fresh, True)
print(f'stream and one pass: {stream_gap:.1e} apart')

# %% [markdown]
# ## Training
#
# `model.loss` reads fresh sequences, each chunk's loss taken before the blocks learn from it. Its
# gradient passes the writes of the memory and the updates of the blocks: what is trained is how
# well the model learns in context. The optimizer is any of optax.

# %%
tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(2e-2))


def loss(params, tokens):
  total, count = nnx.merge(graph, params).loss(
    tokens[:, :-1], tokens[:, 1:], jnp.ones(tokens[:, 1:].shape)
  )
  return total / count


@jax.jit
def train_step(params, state, key):
  value, gradient = jax.value_and_grad(loss)(params, texts(key, 16))
  updates, state = tx.update(gradient, state, params)
  norms = jax.tree.map(jnp.linalg.norm, gradient)
  return optax.apply_updates(params, updates), state, value, norms


trained, opt_state, losses = params, tx.init(params), []
for step in range(32):
  trained, opt_state, value, norms = train_step(trained, opt_state, jax.random.key(step))
  losses.append(float(value))
print('loss, nats per token:', [round(value, 2) for value in losses[::8]], round(losses[-1], 2))

# %% [markdown]
# What has been learned shows on a new text, position by position. `learns=False` holds the blocks
# at their slow weights, so that the memory is all that is left.


# %%
def by_position(params, learns):
  """Mean loss of each token but the first."""
  logits, _ = read(params, text, fresh, learns)
  return np.asarray(nlx.models.token_losses(logits[:, :-1], text[:, 1:]).mean(axis=0))


curves = {
  'before training': by_position(params, True),
  'trained': by_position(trained, True),
  'trained, blocks held': by_position(trained, False),
}
figure, axes = plt.subplots(figsize=(8, 3.4), layout='constrained')
for (name, curve), style in zip(curves.items(), ('s--', 'o-', '^:'), strict=True):
  options = {'color': 'black', 'markerfacecolor': 'white', 'markersize': 4, 'label': name}
  axes.plot(np.arange(2, text.shape[1] + 1), curve, style, **options)
axes.axhline(np.log(vocab_size), color='0.7')
axes.text(text.shape[1], np.log(vocab_size) - 0.04, 'uniform', color='0.3', ha='right', va='top')
for end in (phrase, 2 * phrase):
  axes.axvline(end + 0.5, color='0.7')
axes.set(xlabel='token', ylabel='loss (nats)', ylim=(0, None))
axes.legend(frameon=False, loc='lower left')
figure

# %% [markdown]
# The vertical lines separate the readings. What the picture shows:
#
# - Before training the second and third reading are predicted better than the first: the blocks
#   learn in context from the first chunk on, at rates that nobody has trained.
# - Training makes them recall much more of the phrase, and more at the third reading than at the
#   second. The first reading, which cannot be predicted, gets worse than uniform: the model has
#   learned to expect repetitions.
# - With the blocks held nothing is recalled. In so few steps training has found the quickest way,
#   which is through the blocks. Whether the memory would take part after longer training, the
#   picture does not say; a model without blocks that learn (`periods=(0,)`) has nothing but it.
#
# ## What was claimed

# %%
assert objective_gap < 1e-6  # The error is the gradient of the loss.
assert answers.dtype == np.float64
assert max(answer_gap, weight_gap) < 1e-9  # The parallel form is the loop over tokens,
assert np.abs(late - want).max() > 1e-3  # and a window that is too short would be seen.
assert min(np.abs(last[j] - weights[name]).max() for j, name in enumerate(weights)) > 0.1
end = {name: float(errors[-1]) for name, errors in recall.items()}
assert end['L2'] > 1 > end['L2, soft cap'] > 2 * end['Cauchy']
names = [line.split()[1] for line in nlx.describe(model).splitlines()[2:]]
assert names == ['memory', 'CMS', 'CMS', 'slow']
assert stream_gap < 1e-4  # Any cut gives one pass.
restarted, _ = read(params, text[:, 12:24], fresh, True)
assert float(jnp.abs(restarted - whole[:, 12:24]).max()) > 0.1  # Its state matters.
assert (changed[:, :place] == whole[:, :place]).all()  # Causal,
assert (changed[1:] == whole[1:]).all()  # and no sequence knows of another.
assert float(jnp.abs(changed[0, -1] - whole[0, -1]).max()) > 1e-4  # Later tokens do know.
assert all(norm > 0 for norm in jax.tree.leaves(norms))  # Every parameter is trained.
assert losses[-1] < losses[0] - 0.5
firsts, seconds, thirds = (slice(0, phrase - 1), slice(phrase, 2 * phrase), slice(2 * phrase, None))
before, after, held = curves.values()
assert before[seconds].mean() < before[firsts].mean() - 0.2
assert after[seconds].mean() < before[seconds].mean() - 0.5
assert after[thirds].mean() < after[seconds].mean()
assert after[firsts].mean() > np.log(vocab_size)
assert held[thirds].mean() > np.log(vocab_size)

# %% [markdown]
# ## Where to go on
#
# - [docs/extending.md](../docs/extending.md): mirror maps, rules that are no choice of fields, and
#   mixers of your own.
# - [nlx/memories/rules.py](../nlx/memories/rules.py): every field of a rule, and the rules of the
#   literature.
# - [nlx/memories/networks.py](../nlx/memories/networks.py) and
#   [objectives.py](../nlx/memories/objectives.py): those that are there.
# - [nlx/memories/mixer.py](../nlx/memories/mixer.py): how a memory becomes a sequence layer.
# - [nlx/models/families.py](../nlx/models/families.py): HOPE itself, whose memory also makes its
#   own keys, values and rates.
# - [associative_memory](associative_memory.ipynb): why all of these are one idea.
