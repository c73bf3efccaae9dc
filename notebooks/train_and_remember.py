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
# # Train a HOPE, watch its levels, and let it go on learning
#
# At the end you will have trained a small HOPE on English text, seen which of its levels moves
# when, let it write, and used a session: a stream that learns from what it reads, can be forked,
# and is kept in a file. You should know what a language model is. It takes about a minute on two
# CPU cores; what it writes after so little training is no English yet.

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
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import nlx
from nlx import data, evaluation
from nlx.models import Sampling, sessions

# %% [markdown]
# ## A model and its levels
#
# A HOPE layer is a memory that makes its own keys, values and rates, and after it MLP blocks that
# learn while the model reads. Here the memory is written in chunks of 16 tokens, the roles that
# make its keys and rates are updated every 32, and the two blocks every 32 and every 64.

# %%
config = nlx.models.hope(
  vocab_size=256,
  model_dim=32,
  num_layers=1,
  num_heads=2,
  chunk_size=16,
  projection_chunk_size=32,
  cms_periods=(32, 64),
)
model = nlx.models.create(config, rngs=nnx.Rngs(0))
print(nlx.describe(model))

# %%
figure = nlx.levels.plot(model)
figure

# %% [markdown]
# ## Training
#
# The text is English documentation that comes with Python, one token per byte. `model.loss` reads
# sequences from fresh state and learns in context as it goes; the gradient of its sum passes all
# these inner updates, so that the slow weights learn how to learn (second-order meta-gradients).

# %%
corpus = data.load('documentation', data.byte_tokenizer())
batches = data.train_batches(corpus.train.tokens, seq_len=128, batch_size=4, seed=0)
optimizer = optax.chain(
  optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1.5e-2, 36))
)
graph, params = nnx.split(model)


@jax.jit
def step(params, state, batch):
  def mean_loss(params):
    total, count = nnx.merge(graph, params).loss(**batch)
    return total / count

  loss, gradients = jax.value_and_grad(mean_loss)(params)
  updates, state = optimizer.update(gradients, state, params)
  return optax.apply_updates(params, updates), state, loss


state, losses = optimizer.init(params), []
for _ in range(36):
  params, state, loss = step(params, state, next(batches))
  losses.append(float(loss))
trained = nnx.merge(graph, params)
print(f'bits per byte: {losses[0] / np.log(2):.2f} at first, {losses[-1] / np.log(2):.2f} at last')

# %% [markdown]
# ## Watching the levels
#
# `trace` reads one text and records what happens: how surprised the model is by each token, how far
# each level has moved from where it began, and with what rate each token is written. The memory
# moves at once; a block shows its first movement when its first period is over. The text is held
# out: the model was not trained on it.

# %%
text = corpus.validation.tokens[:320]
before, after = evaluation.trace(model, text), evaluation.trace(trained, text)
pieces = [chr(token) for token in text]
figure = evaluation.plot_trace(after, pieces)
figure

# %% [markdown]
# ## Writing
#
# A *session* is all that goes on in a stream, as one value: `read` and `write` return a new one and
# leave the old one as it was. The model learns in context from the prompt and, unless told
# otherwise, from what it writes.

# %%
encode = lambda text: jnp.asarray(np.frombuffer(text.encode(), np.uint8).astype(np.int32))[None]  # noqa: E731
decode = lambda tokens: bytes(np.asarray(tokens[0]).astype(np.uint8)).decode(errors='replace')  # noqa: E731

session = sessions.start(trained, key=jax.random.key(1))
session = sessions.read(trained, session, encode('The import statement '))
written, longer = sessions.write(trained, session, 64, sampling=Sampling(temperature=0.7))
print(decode(written))

# %% [markdown]
# ## Going on learning
#
# The fast state is what a session has learned. Let it read a note twice, and measure what the note
# costs, in bits per byte, the first time and the second. The third number is that of a session
# which has read another text of the same length instead: it tells what the note itself has taught
# from what any text would have.

# %%
note = 'The blue heron of Lake Umber eats 37 grey eels before noon and 12 after it. '
other = 'A lazy brown fox has 94 small teeth and jumps over 85 tall yellow dogs daily'
assert len(note) == len(other)
fresh = sessions.start(trained)


@jax.jit
def bits(params, tokens, state):
  """Bits per byte of a text, after its first byte, for a session in some state."""
  logits, _ = nnx.merge(graph, params)(tokens, state)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
  return jnp.mean(losses) / jnp.log(2)


after_note = sessions.read(trained, fresh, encode(note))
after_other = sessions.read(trained, fresh, encode(other))
cost = {
  name: float(bits(params, encode(note), session.state))
  for name, session in {
    'nothing': fresh,
    'the note': after_note,
    'another text': after_other,
  }.items()
}
for name, value in cost.items():
  print(f'{value:5.2f} bits per byte after {name}')

# %% [markdown]
# ## Forks, files, and forgetting
#
# A session is a value: an older one is a fork. A file brings it back bit for bit, and `reset`
# returns levels to where they began, all or some of them by name.

# %%
with tempfile.TemporaryDirectory() as folder:
  path = pathlib.Path(folder, 'talk')
  sessions.save(path, after_note, meta={'steps': len(losses)})
  loaded = sessions.load(path, trained, meta={'steps': len(losses)})
forgotten = sessions.reset(trained, after_note)
print('the same after a file:', bool(jnp.all(loaded.logits == after_note.logits)))
print('after a reset of all levels:', round(float(bits(params, encode(note), forgotten.state)), 2))

# %%
figure, axes = plt.subplots(figsize=(6, 2), layout='constrained')
bars = axes.barh(list(cost), list(cost.values()), color=['#b0b0b0', '#404040', '#808080'])
axes.bar_label(bars, fmt='%.2f', padding=3)
axes.invert_yaxis()
axes.set(xlabel='bits per byte of the note', ylabel='what was read before')
axes.spines[['top', 'right']].set_visible(False)
figure

# %% [markdown]
# ## What was shown

# %%
assert losses[-1] < losses[0] - 1.0  # Training works.
assert np.nanmean(after.surprise) < np.nanmean(before.surprise) - 1.0  # On held-out text as well.
assert after.moved['CMS 32'][0] == 0 < after.moved['CMS 32'][1]  # Moved after its first period.
assert np.all(after.moved['CMS 64'][:2] == 0) and after.moved['CMS 64'][2] > 0
assert cost['the note'] < cost['another text'] and cost['the note'] < cost['nothing']
assert (
  int(longer.length) == int(session.length) + 64
)  # The fork that was written from is as it was.
assert jax.tree.all(
  jax.tree.map(lambda a, b: bool(jnp.all(a == b)), loaded.state, after_note.state)
)

# %% [markdown]
# ## Where to go on
#
# - [Levels, frequency, context flow](../docs/concepts.md), and [what each word
#   means](../docs/glossary.md), with when each state is reset
# - `make train`, which trains a HOPE of a million parameters with checkpoints, and
#   `python -m experiments.generate --workdir=runs/tiny --session=runs/talk --prompt='...'`, which
#   goes on in the same session between calls
# - [session.py](../nlx/models/sessions/session.py) and [trace.py](../nlx/evaluation/trace.py)
