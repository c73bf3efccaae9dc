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
# # Shard it, and plan a TPU pod without a TPU
#
# One CPU pretends to be eight devices. You lay a small HOPE and its optimizer out over them, see
# what each holds, and check that a step of training on all of them is the step of one. Then you ask
# what a step would need at least on a chip that is not here. You should know `jax.jit`; nothing of
# nlx is assumed. It takes about a minute on two CPU cores, nearly all of it compilation.

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
import json
import os
import pathlib

# Compile quickly, whatever the speed of what comes out. Leave this out where you train.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import nlx

# %% [markdown]
# ## Eight devices
#
# How many devices a CPU pretends to be is settled when JAX is first used; restart the kernel if
# there are fewer than eight below. Where there is an accelerator, as on Colab, `jax.devices()`
# lists that, and the CPUs have to be asked for by name. All that follows takes the devices from
# this list. For real ones, write `jax.devices()` instead, and sizes of the mesh that multiply to
# their number.

# %%
if jax.config.jax_num_cpu_devices != 8:
  jax.config.update('jax_num_cpu_devices', 8)
devices = jax.devices('cpu')[:8]
print(f'{len(devices)} devices, the first: {devices[0]}')

# %% [markdown]
# ## A mesh
#
# A mesh gives devices three axes. `data` divides the sequences of a batch; `fsdp` divides sequences
# and parameters; `model` divides what a layer computes. One of the sizes may be -1, for all devices
# that the others leave.

# %%
mesh = nlx.parallel.make_mesh(data=2, fsdp=-1, model=2, devices=devices)
print(dict(mesh.shape))

# %% [markdown]
# ## Rules say where arrays lie
#
# A rule is a pattern for the path of a parameter, and names for its last axes. `MESH_AXES` says
# which axis of the mesh divides which name. A parameter that no rule names is whole on every
# device.

# %%
for pattern, axes in nlx.parallel.RULES:
  print(f'{pattern:50} {axes}')
print(nlx.parallel.MESH_AXES)

# %% [markdown]
# A small HOPE, and its training state: parameters, and what the optimizer keeps for each.
# `shardings` applies the rules to the whole tree. The moments of Adam lie as their parameters do,
# because their paths end alike.

# %%
config = nlx.models.hope(
  vocab_size=256, model_dim=32, num_layers=1, num_heads=2,
  chunk_size=16, projection_chunk_size=32, memory_hidden=16, cms_periods=(32,),
)  # fmt: skip
graph, params = nnx.split(nlx.models.create(config, rngs=nnx.Rngs(0)), nnx.Param)
optimizer = optax.adamw(1e-3)


def new_state():
  return nlx.training.init_state(nnx.as_pure(params), optimizer, key=jax.random.key(0))


layout = nlx.parallel.shardings(new_state(), mesh)
state = nlx.parallel.place(new_state(), layout)


# %%
def path_text(path):
  return jax.tree_util.keystr(path, simple=True, separator='/')


def part(x):
  """The part of an array that the first device holds."""
  return x.addressable_shards[0].data


leaves = jax.tree_util.tree_leaves_with_path(state.params)
leaves.sort(key=lambda leaf: leaf[1].size, reverse=True)
print(f'{"parameter":42} {"shape":18} {"on a device":18} divided by')
for path, x in leaves[:10]:
  print(f'{path_text(path):42} {x.shape!s:18} {part(x).shape!s:18} {tuple(x.sharding.spec)}')

# %% [markdown]
# Bytes in all, and on each device. With four devices along `fsdp` and `model`, a quarter is the
# least. Above it is what only one of the two axes divides, or none.


# %%
def total_and_part(tree):
  leaves = jax.tree.leaves(tree)
  return sum(x.nbytes for x in leaves), sum(part(x).nbytes for x in leaves)


held = {
  'parameters': total_and_part(state.params),
  'state of the optimizer': total_and_part(state.opt_state),
}
print(f'{"":24} {"in all":>12} {"on a device":>14} {"share":>8}')
for name, (total, one) in held.items():
  print(f'{name:24} {total:10,} B {one:12,} B {one / total:8.0%}')

# %% [markdown]
# ## One step, on one device and on eight
#
# A step on many devices is the same program with other places: the state lies as `layout` says, the
# batch is divided over `data` and `fsdp`, and the mesh is set while the step is traced. `shardings`
# makes the new state lie where the old one lay.

# %%
BATCH, LENGTH = 8, 64
text = np.random.default_rng(0).integers(0, 256, (BATCH, LENGTH + 1), np.int32)
batch = {
  'tokens': text[:, :-1],
  'targets': text[:, 1:],
  'mask': np.ones((BATCH, LENGTH), np.float32),
}


def loss(params, batch):
  return nnx.merge(graph, params).loss(batch['tokens'], batch['targets'], batch['mask'])


alone = nlx.training.make_step(loss, optimizer)
expected, expected_metrics = alone(jax.device_put(new_state(), devices[0]), batch)

# %% [markdown]
# On the mesh, the step is planned before it runs: `plan` compiles it and says what it needs. JAX
# keeps what was compiled, so that the call after it does not compile again. Figures of the chip are
# what its maker says, here for TPU v5e; the plan sets them against the program that XLA made for
# eight CPUs.

# %%
v5e = nlx.parallel.Chip(
  'v5e',
  memory=15.75 * 2**30,  # bytes that a program may use
  flops=197e12,  # per second, in bfloat16
  bandwidth=819e9,  # bytes per second, to and from memory
  interconnect=200e9,  # bytes per second, to other chips
)
placed_batch = nlx.parallel.place(
  {name: jnp.asarray(x) for name, x in batch.items()}, nlx.parallel.batch_sharding(mesh)
)
together = nlx.training.make_step(loss, optimizer, shardings=layout)
with jax.set_mesh(mesh):
  plan = nlx.parallel.plan(together, state, placed_batch, chip=v5e)
  found, metrics = together(state, placed_batch)

# %% [markdown]
# Adam's first moment after one step is $m = (1 - \beta_1)\, g$, which gives the gradient of each
# parameter away. Sums over devices are made in another order, so that numbers agree to rounding.


# %%
def gradient(state):
  return jax.tree.map(lambda m: np.asarray(m) / (1 - 0.9), optax.tree.get(state.opt_state, 'mu'))


apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), gradient(found), gradient(expected))
apart = max(jax.tree.leaves(apart))
losses = float(metrics['loss']), float(expected_metrics['loss'])
print(f'loss on eight devices {losses[0]:.6f}, on one {losses[1]:.6f}')
print(f'gradients: {apart:.1e} apart at most, of norm {float(metrics["grad_norm"]):.3f}')

# %% [markdown]
# ## Fast weights
#
# A block that learns in context has weights of its own for every sequence, $[L, B, \dots]$ for $L$
# layers and $B$ sequences. They are divided over sequences by `data` and `fsdp`, and over a layer
# by `model`, as the slow weights that they begin as. While sequences are read, devices along `data`
# and `fsdp` have nothing to say to each other: parameters are gathered before the loop over time,
# and gradients summed after it.


# %%
@jax.jit
def fast_weights(params):
  levels = nnx.merge(graph, params).init_levels(BATCH)
  return [level.held for level in levels]


with jax.set_mesh(mesh):
  (fast,) = fast_weights(found.params)
fast = {path_text(path): x for path, x in jax.tree_util.tree_leaves_with_path(fast)}
for path, x in fast.items():
  print(f'{path:32} {x.shape!s:18} {part(x).shape!s:18} {tuple(x.sharding.spec)}')

# %% [markdown]
# ## What a large model puts on each chip
#
# Where arrays lie follows from shapes alone, so that nothing has to be allocated, and no device has
# to be there: an abstract mesh has sizes only. This is `hope-340m` of the experiments, with a
# vocabulary of 32,000. Parameters and moments of AdamW are in float32, and there are 16 chips.

# %%
large = nlx.models.hope(
  vocab_size=32_000, model_dim=1024, num_layers=24, num_heads=16, memory_hidden=64,
  chunk_size=64, projection_chunk_size=256, cms_periods=(256, 1024, 4096), cms_hidden=512,
)  # fmt: skip
shapes = nnx.eval_shape(lambda: nlx.models.create(large, rngs=nnx.Rngs(0)))
shapes = nnx.as_pure(nnx.state(shapes, nnx.Param))
shapes = {'parameters': shapes, 'moments of AdamW': jax.eval_shape(optimizer.init, shapes)}
print(f'{nlx.core.tree_size(shapes["parameters"]):,} parameters')


def gib_per_chip(tree, sizes):
  """GiB of a tree of shapes on each chip of a mesh with these sizes."""
  mesh = jax.sharding.AbstractMesh(sizes, nlx.parallel.AXES)
  places = nlx.parallel.shardings(tree, mesh)
  parts = jax.tree.map(
    lambda x, s: np.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, tree, places
  )
  return sum(jax.tree.leaves(parts)) / 2**30


MESHES = {
  'one chip': (1, 1, 1),
  'data 16': (16, 1, 1),
  'fsdp 16': (1, 16, 1),
  'fsdp 8, model 2': (1, 8, 2),
  'fsdp 4, model 4': (1, 4, 4),
}
gib = {name: [gib_per_chip(tree, m) for m in MESHES.values()] for name, tree in shapes.items()}

# %%
figure, axes = plt.subplots(figsize=(7, 3), layout='constrained')
left = np.zeros(len(MESHES))
for (name, sizes), hatch, color in zip(
  gib.items(), ('', '//'), ('#555555', '#dddddd'), strict=True
):
  axes.barh(list(MESHES), sizes, left=left, label=name, color=color, hatch=hatch, edgecolor='black')
  left += sizes
for row, size in enumerate(left):
  axes.text(size + 0.05, row, f'{size:.2f}', va='center')
axes.invert_yaxis()
axes.set(xlabel='GiB on each chip', xlim=(0, 1.12 * left.max()))
axes.legend(loc='lower right')
figure

# %% [markdown]
# `data` divides no parameters: every chip has a copy. `fsdp` divides nearly all of them. Gradients
# come on top, and so does what the backward pass keeps, which is often the larger part; only a
# compiler can tell.

# %% [markdown]
# ## What a step takes at least
#
# The plan of the small model has what the compiler gave each device, the operations of all matrix
# products, and the bytes that move: in the memory of a device, and between devices. With $n$ chips,
# $F$ operations in all, $M$ bytes of memory traffic and $S$ bytes sent per chip, no step is quicker
# than
#
# $$t \ge \max\left(\frac{F}{n \cdot \mathrm{peak}}, \frac{M}{\mathrm{bandwidth}},
#   \frac{S}{\mathrm{interconnect}}\right).$$

# %%
print(f'memory per device: {plan.memory / 1e3:,.0f} KB')
for name, size in plan.parts.items():
  print(f'  {name:20} {size / 1e3:10,.0f} KB')
print('each device sends')
for kind, collective in plan.work.collectives.items():
  print(f'  {kind:20} {collective.bytes / 1e3:10,.1f} KB in {collective.times}')

num_parameters = nlx.core.tree_size(params)
per_token = plan.flops / (BATCH * LENGTH)
over_6n = per_token / (6 * num_parameters)
print(f'{per_token:,.0f} operations per token, {over_6n:.1f} times 6 N')
print(f'a step takes at least {max(plan.least_seconds.values()) * 1e6:.1f} us, by {plan.bound}')

# %% [markdown]
# A Transformer takes about $6 N$ operations per token for $N$ parameters, forward and backward.
# HOPE takes more: each chunk has a backward pass of its own, which the outer gradient passes in
# turn, its memories compute with matrices that are no parameters, and the backward pass computes
# anew what it does not keep. An embedding, on the other hand, is looked up and costs no products.
# `count_flops` counts the products of any function in its jaxpr, loops included; nothing is
# compiled for that. The first chunk alone takes far less than half of the text: nothing after it
# asks for what the block would have learned, and its inner backward pass is left out.

# %%
one_chunk = {name: x[:, :32] for name, x in batch.items()}
flops = {
  'the loss': jax.make_jaxpr(loss)(params, batch),
  'the loss of its first chunk': jax.make_jaxpr(loss)(params, one_chunk),
}
flops = {name: nlx.parallel.count_flops(jaxpr) for name, jaxpr in flops.items()}
for name, count in flops.items():
  print(f'{name:28} {count:14,} operations')
print(f'{"a step of training":28} {plan.flops:14,} operations')

# %% [markdown]
# ## The real compiler
#
# What a TPU would need only its own compiler knows. It runs on any machine, TPU or not, but takes
# minutes and several GB, so that it is a command and no cell:
#
# ```
# tpu/plan.sh experiments/configs/lm.py:hope-340m v5e:4x4
# ```
#
# The report is that of a plan, top to bottom: whether the step fits, with the memory of each chip
# and what it is for; the operations of the products; what each chip sends; and the three times, of
# which the longest is the bound. They are bounds at the peaks of the chip, not predictions: nothing
# in them stands for the latency of the collectives. A step that does not fit ends with its largest
# arrays and with flags that may fit. The repository keeps the results of some; where this notebook
# lies in it, here they are.

# %%
here = pathlib.Path.cwd()
files = [p / 'experiments' / 'results' / 'plans.json' for p in (here, here.parent)]
rows = next((json.loads(p.read_text(encoding='utf-8'))['rows'] for p in files if p.exists()), [])
TIMES = ('compute', 'memory', 'interconnect')

if rows:
  print(
    f'{"":24} {"mesh":9} {"GiB":>6} {"to spare":>8} {"over 6 N":>8}', *map('{:>13}'.format, TIMES)
  )
for row in rows:
  cells = [f'{row["config"]} {row["topology"]:24}'[:24], f'{row["mesh"]:9}', f'{row["gib"]:6.1f}']
  cells += [f'{row["gib_to_spare"]:8.1f}', f'{row["over_6_n"]:8.1f}']
  seconds = [row[f'{name}_seconds'] for name in TIMES]
  print(*cells, *(' ' * 13 if s is None else f'{s:11.2f} s' for s in seconds))
if not rows:
  print('The results of the TPU compiler lie in the repository, which is not here.')

# %% [markdown]
# Where the time goes: the three bounds of a step, each as a share of the longest.

# %%
bounds = {'small HOPE, 8 devices': [plan.least_seconds[name] for name in TIMES]}
for row in rows:
  if row['topology'] == 'v5e:4x4' and row['fits']:
    bounds[f'{row["config"]}, {row["topology"]}'] = [row[f'{name}_seconds'] for name in TIMES]

figure, axes = plt.subplots(figsize=(7, 1.4 + 0.6 * len(bounds)), layout='constrained')
styles = {
  'compute': ('#222222', ''),
  'memory': ('#999999', '//'),
  'interconnect': ('#eeeeee', '..'),
}
for i, (name, (color, hatch)) in enumerate(styles.items()):
  shares = [times[i] / max(times) for times in bounds.values()]
  places = np.arange(len(bounds)) + 0.27 * (i - 1)
  axes.barh(places, shares, 0.25, label=name, color=color, hatch=hatch, edgecolor='black')
axes.set_yticks(range(len(bounds)), list(bounds))
axes.invert_yaxis()
axes.set(xlabel='least time, as a share of the longest of the three', xlim=(0, 1.55))
axes.legend(loc='upper right')
figure

# %% [markdown]
# Of the three, products take the least time, whatever the size: these programs move many small
# arrays. The bars of the small model say how the formula is used, not how HOPE is on a TPU: its
# arrays are tiny, and compiled for CPUs.

# %%
assert len(devices) == 8 and dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'model': 2}
for total, one in held.values():  # At least a quarter, and less than half, on each device.
  assert total / 4 <= one < total / 2
np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
assert apart < 1e-5 < 1e-2 < float(metrics['grad_norm'])
for old, new in zip(jax.tree.leaves(layout), jax.tree.leaves(found), strict=True):
  assert new.sharding.is_equivalent_to(old, new.ndim)  # The new state lies where the old one lay.
for x in fast.values():  # Each device has the fast weights of a quarter of the sequences.
  assert x.shape[1] == BATCH and part(x).shape[1] == BATCH // 4
copies, divided = (sum(gib[name][i] for name in gib) for i in (1, 2))
assert copies == sum(gib[name][0] for name in gib) > 9 * divided
assert plan.num_devices == 8 and plan.fits and plan.parts['arguments'] > 0
assert plan.work.unknown_loops == 0 and plan.work.collectives
assert plan.bound == max(TIMES, key=lambda name: plan.least_seconds[name])
assert all(times[0] == min(times) for times in bounds.values())  # Products take the least time.
assert plan.flops > 3 * flops['the loss']  # More than forward and backward.
assert flops['the loss'] > 3 * flops['the loss of its first chunk']  # It learns in between.

# %% [markdown]
# ## Where to go on
#
# - [The rules](../nlx/parallel/sharding.py), [the mesh](../nlx/parallel/mesh.py) with slices of a
#   pod, and [the plan](../nlx/parallel/plan.py).
# - `python -m experiments.train --config=experiments/configs/lm.py:hope-smoke --workdir=runs/two
#   --config.mesh.fsdp=2 --config.mesh.cpu_devices=2` trains on two such devices; `config.mesh` has
#   the three sizes.
# - [Runs on TPU VMs](../tpu/README.md), from the plan to a spot TPU that is taken away.
# - A [parameter of your own](../docs/extending.md) is whole on each device until a rule names it.
