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
# # Give levels to a pretrained Transformer
#
# A Transformer has one level: slow weights, which nothing changes while it reads. Here you load one
# from a Llama folder, make blocks that learn in context of its MLPs, and measure what they learn
# along a text. Then you train the new model, with the gradient through the updates that it makes
# while it reads. You should know what a Transformer is; nothing of nlx is assumed. It takes about a
# minute on two CPU cores, most of it compilation, and downloads nothing.

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
import math
import tempfile

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import nlx

# %% [markdown]
# ## A checkpoint
#
# Your own checkpoint is a folder with `config.json` and safetensors, as Hugging Face publishes
# Llamas. There is none here, so a small one is made first: two layers, trained for a moment on
# English, which is the documentation that ships with Python. A token is a byte.

# %%
LENGTH = 256  # tokens that are read in one sequence, here and in all that follows

english, held_out = nlx.data.split_text(nlx.data.load_text('documentation'))
python = nlx.data.load_text('python_source', max_bytes=400_000)


def windows(text, count, length, seed):
  """`count` pieces of a text, cut anywhere: [count, length] bytes."""
  text = np.frombuffer(text, np.uint8)
  begins = np.random.default_rng(seed).integers(0, len(text) - length, count)
  return text[begins[:, None] + np.arange(length)].astype(np.int32)


# %% [markdown]
# A step of training is a pure function of a state. It is made from the loss, a sum and a count, and
# from an optax transformation. The same few lines train the Transformer, and later the model with
# levels.

# %%
BATCH, STEPS, MORE_STEPS, LEARNING_RATE = 2, 160, 20, 5e-3
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(LEARNING_RATE))


@functools.cache
def step_of(graph):
  """The compiled step of all models with this graph."""

  def loss(params, batch):
    return nnx.merge(graph, params).loss(batch['tokens'], batch['targets'], batch['mask'])

  return nlx.training.make_step(loss, optimizer)


def train(model, steps, seed):
  """A model with other slow weights, and its losses in bits per byte."""
  graph, params = nnx.split(model, nnx.Param)
  state = nlx.training.init_state(nnx.as_pure(params), optimizer, key=jax.random.key(0))
  losses = []
  for text in windows(english, steps * BATCH, LENGTH + 1, seed).reshape(steps, BATCH, -1):
    tokens, targets = text[:, :-1], text[:, 1:]
    batch = {'tokens': tokens, 'targets': targets, 'mask': np.ones(tokens.shape, np.float32)}
    state, metrics = step_of(graph)(state, batch)
    losses.append(metrics['bits_per_token'])
  return nnx.merge(graph, state.params), np.array(losses)


# %%
config = nlx.models.transformer(vocab_size=256, model_dim=32, num_layers=2, num_heads=2)
small, losses = train(nlx.models.create(config, rngs=nnx.Rngs(0)), STEPS, seed=0)
print(f'{small.num_parameters():,} parameters')
print(
  f'{losses[:5].mean():.2f} bits per byte in the first steps, {losses[-20:].mean():.2f} at last'
)

# %% [markdown]
# `save_llama` writes the folder that `load_llama` reads. With your own checkpoint you begin at the
# last line: `model = nlx.interop.load_llama('folder')`.

# %%
with tempfile.TemporaryDirectory() as folder:
  nlx.interop.save_llama(small, folder)
  model = nlx.interop.load_llama(folder)

print(nlx.describe(model))

# %% [markdown]
# ## Blocks with periods
#
# The MLP of a layer is a sum over its hidden units. `stack_levels` divides the units among blocks,
#
# $$f(x) = f_1(x) + \dots + f_k(x),$$
#
# and lets block $\ell$ learn in context: it holds its weights $W_\ell$ for $C_\ell$ tokens, its
# period, and then takes one step against the mean gradient of the next-token loss over them,
#
# $$W_\ell \leftarrow W_\ell - \eta_\ell \cdot
#   \mathrm{clip}\Big(\frac{1}{C_\ell} \sum_{t} \nabla_{W_\ell} L_t\Big).$$
#
# The weights that a sequence begins with stay slow weights; what moves is a copy for each sequence.
# The rates $\eta_\ell$ are slow weights, too: one per layer and block, which begin at `rate`.

# %%
PERIODS = (16, 64)
stacked = nlx.models.stack_levels(model, periods=PERIODS, rate=0.3)
print(nlx.describe(stacked))

# %% [markdown]
# Three levels instead of one. The picture has a mark wherever a level is updated.

# %%
figure = nlx.levels.plot(stacked)
figure

# %% [markdown]
# ## The same model, until it learns
#
# A model reads a stream: `model(tokens, state)` returns the logits of the token after each, and the
# state to go on from. With `learns=False` the blocks hold still. `bits` is the loss of every byte
# along a text, $-\log_2 p(x_{t+1} \mid x_1, \dots, x_t)$.


# %%
@functools.partial(jax.jit, static_argnums=0)
def bits_of(graph, params, texts, learns):
  tokens, targets = texts[:, :-1], texts[:, 1:]
  reader = nnx.merge(graph, params)
  state = reader.init_state(*tokens.shape)
  logits, _ = reader(tokens, state, learns=learns)
  return nlx.models.token_losses(logits, targets) / math.log(2)


def bits(model, texts, learns=True):
  """The losses [B, T] of texts [B, T + 1], as they are read."""
  return np.asarray(bits_of(*nnx.split(model), texts, learns))


# %% [markdown]
# Two kinds of text that the slow weights were not trained for. In the first, English turns into
# Python source after 64 bytes. In the second, a passage of English that was held out comes twice.

# %%
COUNT, TURN = 12, 64  # texts of each kind; where English turns into Python
again = LENGTH // 2
passages = windows(held_out, COUNT, again, seed=1)
texts = {
  'English, then Python': np.concatenate(
    [windows(held_out, COUNT, TURN, seed=2), windows(python, COUNT, LENGTH + 1 - TURN, seed=3)], 1
  ),
  'a passage, read twice': np.concatenate([passages, passages, passages[:, :1]], axis=1),
}
all_texts = np.concatenate(list(texts.values()))

as_loaded = bits(model, all_texts)
still = bits(stacked, all_texts, learns=False)
learning = bits(stacked, all_texts)

# %% [markdown]
# Without learning, the model with levels computes what the loaded one does, everywhere. With
# learning it does so up to the first update, after 16 tokens, and departs from it then.

# %%
apart = np.abs(learning - as_loaded).max(axis=0)
print(f'without learning:  {np.abs(still - as_loaded).max():.1e} bits apart at most')
print(f'with learning:     {apart[: PERIODS[0]].max():.1e} in the first {PERIODS[0]} tokens,')
print(f'                   {apart[PERIODS[0]]:.1e} at the token after them')

# %% [markdown]
# ## What is learned along a text
#
# No slow weight has moved since the checkpoint. Below is the mean loss over the texts of a kind,
# in bins of 16 bytes.

# %%
BIN = 16
KINDS = {name: slice(COUNT * i, COUNT * (i + 1)) for i, name in enumerate(texts)}
EVENTS = dict(zip(texts, [(TURN, 'Python begins'), (again, 'it begins again')], strict=True))


def binned(losses):
  """The mean over texts, and over each bin: [T / BIN]."""
  return losses.mean(axis=0).reshape(-1, BIN).mean(axis=1)


def along(axes, losses, style, label):
  places = BIN * (np.arange(LENGTH // BIN) + 0.5)
  axes.plot(places, binned(losses), style, color='black', markersize=4, label=label)


def panels(ylabel):
  """A panel for each kind of text, with a line where something happens in it."""
  figure, both = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout='constrained')
  for axes, name in zip(both, texts, strict=True):
    place, event = EVENTS[name]
    axes.axvline(place, color='gray', linewidth=1)
    axes.set(title=f'{name} (line: {event})', xlabel='bytes read')
  both[0].set_ylabel(ylabel)
  return figure, both


figure, both = panels('loss, bits per byte')
for axes, name in zip(both, texts, strict=True):
  along(axes, as_loaded[KINDS[name]], 's--', 'as loaded')
  along(axes, learning[KINDS[name]], 'o-', 'learning in context')
both[0].legend()
figure

# %% [markdown]
# Both curves rise and fall with the difficulty of the text. What counts is the gap between them. It
# opens while the text goes on, as the blocks move towards the text at hand. Attention alone, in a
# model of this size, does not make much of what it has read. A larger one copies from its context,
# so that this gap need not be as wide there.

# %% [markdown]
# ## Train through the updates
#
# The gradient of the loss of a sequence passes the updates that the blocks made in it
# (`meta='full'`, the default: second order). It asks how slow weights and rates should be *so that
# learning in context goes well*. The same function `train` does it. For a fair comparison, the
# loaded model gets as many more steps on the same text, and its levels afterwards.

# %%
trained, _ = train(stacked, MORE_STEPS, seed=4)
plain, _ = train(model, MORE_STEPS, seed=4)
plain = nlx.models.stack_levels(plain, periods=PERIODS, rate=0.3)

# %%
readings = {
  'as loaded': (still, learning),
  'trained, then given levels': (bits(plain, all_texts, False), bits(plain, all_texts)),
  'given levels, then trained': (bits(trained, all_texts, False), bits(trained, all_texts)),
}


def gain(reading, rows):
  off, on = reading
  return off[rows].mean() - on[rows].mean()


for name, rows in KINDS.items():
  print(f'{name + ", bits per byte":40} {"still":>8} {"learning":>8} {"gain":>8}')
  for how, (off, on) in readings.items():
    means = off[rows].mean(), on[rows].mean(), gain((off, on), rows)
    print(f'  {how:38} {"".join(f"{x:9.3f}" for x in means)}')

# %% [markdown]
# The last column is what learning in context is worth, and the last two rows of a kind have had the
# same steps on the same text. Training through the updates makes learning worth more than training
# without levels does: slow weights have become a better place to learn from. In both, it may be
# worth less than for the model as loaded: a model that has been trained for longer leaves less to
# be learned. So compare rows of equal training.

# %%
figure, both = panels('gain from learning, bits per byte')
for axes, name in zip(both, texts, strict=True):
  for (how, (off, on)), style in zip(readings.items(), ('^:', 's--', 'o-'), strict=True):
    along(axes, (off - on)[KINDS[name]], style, how)
  axes.axhline(0, color='gray', linewidth=1)
both[0].legend(fontsize='small', loc='upper left')
figure

# %% [markdown]
# Inner rates are parameters like all others, and training has moved them, one for each level (rows)
# and layer (columns).

# %%
rates_before, rates = (np.asarray(m.blocks.cms.rates()) for m in (stacked, trained))
print(rates_before, rates, sep='\n\n')

# %% [markdown]
# ## What holds here, and what was not tried
#
# These are two narrow layers that have seen a few pages of English, texts of 256 bytes, and one
# seed. What the cells above show is that the way from a checkpoint to a model that learns in
# context works, that such learning helps this model before any training, and that training through
# the updates makes more of it than training without them. How much a real Llama gains was not
# measured. Try `periods` of 256 tokens and more there, and several rates: too large a rate costs
# more than it brings.

# %%
weights, loaded = (jax.tree.leaves(nnx.state(m)) for m in (small, model))
assert all(map(np.array_equal, weights, loaded))  # The folder keeps every number.
assert stacked.config.in_context_periods == PERIODS
assert np.allclose(still, as_loaded, atol=1e-4)  # The same function, until it learns,
assert apart[: PERIODS[0]].max() < 1e-4 < 1e-2 < apart[PERIODS[0]]  # and not afterwards.
for rows in KINDS.values():
  first, through = readings['as loaded'], readings['given levels, then trained']
  without = readings['trained, then given levels']
  assert gain(first, rows) > 0.05  # Learning helps before any training,
  assert gain(through, rows) > gain(without, rows)  # and more if training passes the updates,
  assert through[1][rows].mean() < without[1][rows].mean()  # with the lower loss, too.
repeats = (still - learning)[KINDS['a passage, read twice']].mean(axis=0)
assert repeats[again:].mean() > repeats[:again].mean()  # More where the passage comes again.
assert np.all(rates_before == np.float32(0.3)) and np.all(np.abs(rates - 0.3) > 1e-4)

# %% [markdown]
# ## Where to go on
#
# - [Pretrained models](../docs/faq.md) in the answers, and what a block, a period and a rate are in
#   the [glossary](../docs/glossary.md).
# - [`stack_levels`](../nlx/models/stacking.py) has other forms: blocks in series around the MLP,
#   and nested ones. [`load_llama`](../nlx/interop/llama.py) says what it takes.
# - [How MLPs learn while the model reads](../nlx/cms/in_context.py), and the
#   [loop over time](../nlx/levels/nest.py) that the gradient passes.
# - `python -m experiments.train --config=experiments/configs/llama.py:FOLDER --workdir=runs/llama
#   --config.data.corpus='texts/*.txt' --config.stack.periods='(256, 1024)'` trains a Llama with
#   levels on your text, on one device or many.
