"""Training on one GPU, beside the same run on a CPU."""

import json
import os
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments import common, language_model
from experiments.configs import lm
from experiments.reporting import provenance
from experiments.studies import Found, records
from nlx import data, training

TITLE = 'One GPU'
CAPTION = (
  'Models of `experiments/configs/lm.py`, trained on one GPU with matrix products in bfloat16 and '
  'fast state in float32, and HOPE of size tiny in float32 on the CPU beside it as well, whose '
  'cores other work shared, on the same batches: `from cpu` is the largest difference of the '
  'training losses in nats, whole runs compared, the figure shows both. Size tiny reads English '
  'documentation, 30m the first 6 MB of Python. Speed is that of training steps, without '
  'compilation, the first step and evaluation. `mfu` counts 6 FLOPs per parameter and token, '
  'whatever else a model computes while it learns in context, against the dense bfloat16 peak of '
  'the device by its datasheet. There is one seed: bits per byte on held-out text say that a model '
  'learns, and do not rank models. Attention of the Transformer++ is computed by cuDNN. HOPE of '
  'size 30m is left out: it had not compiled and taken 100 steps within seven minutes.'
)


class Run(NamedTuple):
  """One model on one device."""

  model: str  # As in lm.py:MODEL-SIZE.
  steps: int
  platform: str = 'cuda'
  fields: dict[str, Any] = {}  # of `config.model`
  max_bytes: int | None = None  # of the corpus


class Sizes(NamedTuple):
  """What is trained; the first two are compared."""

  runs: tuple[Run, ...]


_BFLOAT16 = {'dtype': 'bfloat16'}
FULL = Sizes(
  (
    Run('hope-tiny', 100, fields=_BFLOAT16),
    Run('hope-tiny', 100, 'cpu'),
    Run('transformer-30m', 100, fields={'implementation': 'cudnn'}, max_bytes=6_000_000),
  )
)
SMOKE = Sizes(
  (
    Run('linear_attention-smoke', 3, 'cpu', _BFLOAT16),
    Run('linear_attention-smoke', 3, 'cpu'),
  )
)
# Dense bfloat16 FLOP/s by NVIDIA's datasheets, of the SXM parts.
PEAKS = {'H100': 989e12, 'H200': 989e12, 'A100': 312e12}


def run(sizes: Sizes) -> Found:
  """Returns a row for each run; all compile at once, each in a process of its own."""
  processes = [start(one) for one in sizes.runs]
  found = [finish(one, process) for one, process in zip(sizes.runs, processes, strict=True)]
  curves = [record.pop('losses') for record in found]
  found[0]['from_cpu'] = float(np.abs(np.subtract(curves[0], curves[1])).max())
  return Found(found, plot(curves[0], curves[1], sizes.runs[0].model))


def start(one: Run) -> subprocess.Popen:
  """Starts a run; it prints its record as the last line."""
  environment = {
    **os.environ,
    'JAX_PLATFORMS': one.platform,
    'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',  # Several share the device while they compile.
    'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.9',
  }
  command = [sys.executable, '-m', 'experiments.studies.one_gpu', json.dumps(one)]
  return subprocess.Popen(
    command, cwd=provenance.ROOT, env=environment, stdout=subprocess.PIPE, text=True
  )


def finish(one: Run, process: subprocess.Popen) -> dict[str, Any]:
  """Waits for a run and returns its record."""
  output, _ = process.communicate()
  if process.returncode:
    raise RuntimeError(f'{one} ended with the exit status {process.returncode}.')
  print(output, flush=True)
  return json.loads(output.splitlines()[-1])


def train(one: Run) -> dict[str, Any]:
  """Trains a model for its steps, and returns its record with all losses."""
  config = lm.get_config(one.model)
  config.model.update(one.fields)
  config.data.max_bytes = one.max_bytes
  config.training.steps = one.steps
  config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, one.steps - 1)
  language = common.create(config)
  corpus = data.load(config.data.corpus, language.tokenizer, max_bytes=config.data.max_bytes)
  task = language_model.make_task(config, language, corpus)
  state = training.init_state(language.params, task.tx, key=jax.random.key(config.seed))
  batches = [jax.device_put(next(task.batches)) for _ in range(one.steps)]
  begin = time.perf_counter()
  make: Any = training.make_step(task.loss_fn, task.tx)
  step = make.lower(state, batches[0]).compile()
  compiled = time.perf_counter()
  losses = []
  for i, batch in enumerate(batches):
    state, metrics = step(state, batch)
    losses.append(float(metrics['loss']))
    if i == 0:
      timed = time.perf_counter()
  seconds = (time.perf_counter() - timed) / (one.steps - 1)
  peak_bytes = (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
  loss, _ = training.evaluate(
    training.make_eval(task.loss_fn), state.params, map(jax.device_put, task.validation)
  )
  parameters = sum(leaf.size for leaf in jax.tree.leaves(language.params))
  tokens, kind = batches[0]['tokens'].size, jax.devices()[0].device_kind
  peak = next((PEAKS[name] for name in PEAKS if name in kind), None)
  return {
    'model': one.model,
    'device': kind,
    'dtype': config.model.dtype,
    'parameters': parameters,
    'tokens': one.steps * tokens,
    'bits_per_byte': training.bits_per_byte(loss, task.validation_bytes_per_token),
    'tokens_per_second': tokens / seconds,
    'peak_mib': peak_bytes and peak_bytes / 2**20,
    'mfu': peak and 6 * parameters * tokens / seconds / peak,
    'compile_seconds': compiled - begin,
    'losses': losses,
  }


def plot(gpu: list[float], cpu: list[float], name: str) -> Figure:
  """The training losses of the same batches on both devices."""
  figure = Figure(figsize=(6, 3), layout='constrained')
  axes = figure.add_subplot()
  axes.plot(cpu, color='gray', linewidth=3, label='CPU, float32')
  axes.plot(gpu, color='black', linestyle='--', label='GPU, bfloat16')
  axes.set(xlabel='step', ylabel='training loss, nats per byte', title=name)
  axes.grid(alpha=0.3)
  axes.legend()
  return figure


if __name__ == '__main__':
  asked = Run(*json.loads(sys.argv[1]))
  print(json.dumps(records.remember('one_gpu', asked, lambda: train(asked))))
