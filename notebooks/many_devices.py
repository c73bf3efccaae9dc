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
# # Shard a model, and plan a TPU pod without a TPU
#
# At the end you will have divided a small HOPE over eight devices, checked that they compute what
# one does, and read off a compiled program what a step needs: memory, operations, communication.
# The devices are eight that one CPU pretends to be; on a pod the code is the same. You should know
# what data parallelism is. It takes half a minute on two CPU cores, most of it compilation.

# %%
# On Colab: installs nlx, and leaves a JAX that is new enough as it is.
import subprocess
import sys

SOURCE = '/content/nlx'  # a clone of the repository, or git+https://... of one
if 'google.colab' in sys.modules:
  pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--upgrade-strategy', 'only-if-needed']
  subprocess.run([*pip, SOURCE], check=True)

# %%
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import nlx
from nlx import parallel

# %% [markdown]
# ## Eight devices
#
# JAX decides how many devices there are when it is first used, so this cell comes before all
# others. Restart the kernel if it complains. With a runtime of accelerators leave it out.

# %%
if jax.config.jax_num_cpu_devices != 8:
  jax.config.update('jax_num_cpu_devices', 8)
devices = jax.devices()
print(len(devices), devices[0].device_kind)

# %% [markdown]
# ## A mesh
#
# A mesh gives devices a place along three axes. `data` divides the sequences of a batch. `fsdp`
# divides them as well, and each parameter and its optimizer's state, which are gathered where they
# are used. `model` divides what a layer computes. Here two groups of four: a batch is cut into
# eight, a parameter into four.

# %%
mesh = parallel.make_mesh(data=2, fsdp=4, model=1)
print(dict(mesh.shape))

# %% [markdown]
# ## A training step
#
# A step is an ordinary function of parameters, optimizer state and tokens; nothing in it knows of
# devices.

# %%
config = nlx.models.hope(
  vocab_size=256,
  model_dim=64,
  num_layers=1,
  num_heads=2,
  chunk_size=16,
  projection_chunk_size=32,
  cms_periods=(32,),
  memory_hidden=0,  # Matrices, which compile quicker than MLPs.
)
model = nlx.models.create(config, rngs=nnx.Rngs(0))
graph, params = nnx.split(model)
params = nnx.to_pure_dict(params)
optimizer = optax.adamw(1e-3)
tokens = jax.random.randint(jax.random.key(1), (8, 65), 0, 256)


@jax.jit
def step(params, state, tokens):
  def mean_loss(params):
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    total, count = nnx.merge(graph, params).loss(inputs, targets, jnp.ones(inputs.shape))
    return total / count

  loss, gradients = jax.value_and_grad(mean_loss)(params)
  updates, state = optimizer.update(gradients, state, params)
  return optax.apply_updates(params, updates), state, loss, gradients


state = optimizer.init(params)
_, _, loss, gradients = step(params, state, tokens)
print(f'loss on one device: {float(loss):.6f}')

# %% [markdown]
# ## Laying it out
#
# `shardings` says for each array of a tree where it lies, by rules about its path
# (`parallel.RULES`), for parameters and for the state of any optimizer; `place` moves it there. An
# axis that the devices do not divide evenly stays whole, as do small vectors.

# %%
everything = (params, state)
layout = parallel.shardings(everything, mesh)
placed_params, placed_state = parallel.place(everything, layout)
placed_tokens = parallel.place(tokens, parallel.batch_sharding(mesh))

for path, leaf in jax.tree_util.tree_leaves_with_path(placed_params)[:8]:
  print(f'{jax.tree_util.keystr(path):60} {leaf.shape!s:16} {leaf.sharding.spec}')


# %%
def bytes_on_each(tree):
  """Bytes of a tree on each device."""
  held = dict.fromkeys(devices, 0)
  for leaf in jax.tree.leaves(tree):
    for shard in leaf.addressable_shards:
      held[shard.device] += shard.data.nbytes
  return np.array(list(held.values()))


whole = sum(leaf.nbytes for leaf in jax.tree.leaves(everything))
divided = bytes_on_each((placed_params, placed_state))
figure, axes = plt.subplots(figsize=(7, 2.6), layout='constrained')
axes.bar(range(8), divided / 1e3, color='#606060', label='divided over fsdp = 4')
axes.axhline(whole / 1e3, color='black', linestyle='--', label='without a mesh, or over data alone')
axes.set(xlabel='device', ylabel='kilobytes', ylim=(0, 1.45 * whole / 1e3))
axes.set_title('Parameters and optimizer state that a device holds')
axes.legend(frameon=False, loc='upper right', ncols=2)
figure

# %% [markdown]
# ## The same numbers
#
# Under `jax.set_mesh` the same step runs on all of them. Parameters are gathered before the loop
# over time and gradients summed after it, so that while HOPE learns in context, devices that divide
# sequences and parameters have nothing to say to each other.

# %%
with jax.set_mesh(mesh):
  _, _, their_loss, their_gradients = step(placed_params, placed_state, placed_tokens)
print(f'loss on eight devices: {float(their_loss):.6f}')
differences = jax.tree.map(
  lambda a, b: float(np.max(np.abs(np.asarray(a) - np.asarray(b)))), gradients, their_gradients
)
print(f'largest difference of a gradient: {max(jax.tree.leaves(differences)):.1e}')

# %% [markdown]
# ## A plan
#
# `plan` compiles a step, runs nothing, and reads the program: what memory each device needs, how
# many operations the products take (loops counted in full), what devices send to each other, and
# the least time of a step on a chip of given peaks. The peaks here are those of an imagined chip,
# and the program is that of the CPU's compiler; the next section has the real one for TPUs. One
# can ask for shapes alone, so that a model need not fit here.

# %%
chip = parallel.Chip('imagined', memory=16e9, flops=2e14, bandwidth=8e11, interconnect=2e11)
shapes = jax.tree.map(
  lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
  (placed_params, placed_state, placed_tokens),
)
with jax.set_mesh(mesh):
  plan = parallel.plan(step, *shapes, chip=chip)
for name, size in plan.parts.items():  # `print(plan)` makes a report, in GiB and seconds.
  print(f'{size / 1e3:8.0f} kB  {name}')
for kind, found in plan.work.collectives.items():
  print(f'{found.bytes / 1e3:8.0f} kB  sent in {found.times} x {kind}')
for name, seconds in plan.least_seconds.items():
  print(f'{seconds * 1e6:8.1f} µs  at least: {name}')
per_token = plan.flops / (8 * 64)
six_n = 6 * model.num_parameters()
print(f'A token takes {per_token:.3g} operations, {per_token / six_n:.1f} times 6 N')

# %% [markdown]
# ## A TPU pod
#
# The same for a slice of TPUs, by the real XLA:TPU compiler and without a TPU, in a clone of the
# repository:
#
# ```
# make setup EXTRAS=dev,tpu
# tpu/plan.sh experiments/configs/lm.py:hope-340m v5e:4x4
# ```
#
# It takes minutes for a large model. A configuration that does not fit is refused with its largest
# arrays named, and with a mesh that may do. If this notebook lies in the repository, here are the
# results that are committed there.

# %%
results = pathlib.Path('..', 'experiments', 'results', 'plans.json')
if results.exists():
  rows = [row for row in json.loads(results.read_text())['rows'] if row['fits']]
  for row in rows:
    what = f'{row["config"]:10} {row["topology"]:12} mesh {row["mesh"]:9}'
    print(f'{what} {row["gib"]:6.1f} GiB per chip, bound by {row["bound"]}')
else:
  print('No results here: see experiments/RESULTS.md in the repository.')

# %% [markdown]
# ## What was shown

# %%
assert abs(float(loss) - float(their_loss)) < 1e-5
assert max(jax.tree.leaves(differences)) < 1e-5
assert np.all(divided < 0.4 * whole)  # A quarter, and what is too small to be divided.
assert np.ptp(divided) == 0  # All hold as much.
assert plan.fits and plan.num_devices == 8
kinds = set(plan.work.collectives)
assert 'all-gather' in kinds and kinds & {'all-reduce', 'reduce-scatter'}
spec = functools.partial(parallel.spec, mesh=mesh)
assert 'fsdp' in spec('blocks/cms/blocks/0/up/kernel', (1, 64, 64))

# %% [markdown]
# ## Where to go on
#
# - `python -m experiments.train --config.mesh.fsdp=8` trains on a mesh; checkpoints restore onto
#   another
# - [The TPU guide](../tpu/README.md): create, set up, run, resume after preemption, delete
# - [sharding.py](../nlx/parallel/sharding.py) holds the rules, [plan.py](../nlx/parallel/plan.py)
#   the plan, and [RESULTS.md](../experiments/RESULTS.md) the table of large models
