"""Language models on text: `lm.py:MODEL-SIZE`.

  python -m experiments.train --config=experiments/configs/lm.py:hope-tiny --workdir=runs/tiny
  python -m experiments.generate --workdir=runs/tiny --prompt='The import statement'

MODEL is one of `nlx.models.FAMILIES`: hope, hope_attention, transformer, linear_attention, retnet,
deltanet, gated_deltanet, oja, ttt_linear, ttt_mlp, titans, titans_mac, titans_mag, titans_mal,
moneta, yaad, atlas, samba. SIZE is one of

  smoke   a few steps of a toy, to see that everything runs
  tiny    the smallest that learns to write; one CPU
  30m     8 layers of width 512, 13M tokens of Python in pieces of 2048; one GPU
  340m    24 layers of width 1024, 15B tokens of 4096
  760m    24 layers of width 1536, 30B tokens of 4096
  1b      24 layers of width 2048, 100B tokens of 4096

At one size all models have equally many parameters, by the width of their MLPs. The three largest
need a text and a tokenizer of their own:
`--config.data.corpus='corpus/*.txt' --config.data.tokenizer=tokenizer.json`.

A run may begin where another run of the same model ended, and give its MLPs levels:
`--config.pretrained=runs/old --config.stack.periods='(64, 256)'`. `llama.py` does that to a Llama.
"""

from typing import Any

import ml_collections
from ml_collections import config_dict

DEEP = ('titans', 'titans_mac', 'titans_mag', 'titans_mal', 'moneta', 'yaad', 'atlas')
WINDOWED = ('titans_mag', 'titans_mal', 'samba')
MODELS = (
  'hope',
  'hope_attention',
  'transformer',
  'linear_attention',
  'retnet',
  'deltanet',
  'gated_deltanet',
  'oja',
  'ttt_linear',
  'ttt_mlp',
  *DEEP,
  'samba',
)

# `parameters` are those besides embedding and head; the width of the MLPs is chosen to meet them.
SIZES = {
  'smoke': {'model_dim': 32, 'num_layers': 1, 'num_heads': 2, 'parameters': 18_000},
  'tiny': {'model_dim': 128, 'num_layers': 4, 'num_heads': 4, 'parameters': 903_000},
  '30m': {'model_dim': 512, 'num_layers': 8, 'num_heads': 8, 'parameters': 30_000_000},
  '340m': {'model_dim': 1024, 'num_layers': 24, 'num_heads': 16, 'parameters': 303_000_000},
  '760m': {'model_dim': 1536, 'num_layers': 24, 'num_heads': 16, 'parameters': 680_000_000},
  '1b': {'model_dim': 2048, 'num_layers': 24, 'num_heads': 32, 'parameters': 1_210_000_000},
}
LARGE = ('340m', '760m', '1b')
DTYPES = {'smoke': 'float32', 'tiny': 'float32'}  # bfloat16 for the others.
# What the backward pass computes anew, see `LanguageModelConfig`; layers in the others.
REMAT = {'smoke': 'chunks', 'tiny': 'chunks', '30m': 'chunks'}

# Widths of memories and MLP blocks, and the periods in tokens at which they update.
LEVELS = {
  'smoke': {'memory_hidden': 16, 'chunk_size': 16, 'projection_chunk_size': 32},
  'tiny': {'memory_hidden': 32, 'chunk_size': 16, 'projection_chunk_size': 64},
  # Few and large chunks: a GPU computes a small one hardly faster.
  '30m': {'memory_hidden': 64, 'chunk_size': 256, 'projection_chunk_size': 256},
}
LARGE_LEVELS = {'memory_hidden': 64, 'chunk_size': 64, 'projection_chunk_size': 256}
PERIODS = {'smoke': (32, 64), 'tiny': (64, 256), '30m': (256, 1024)}
LARGE_PERIODS = (256, 1024, 4096)
LARGE_WINDOW = 1024
RULE = {
  'name': 'dgd',
  'momentum': True,
  'retention': True,
  'span': 1,
  'literal': False,
  'hard_cap': False,
  'soft_cap': False,
}

# What of the self-modifying memories is adaptive, and when it is read; see `SelfModifyingConfig`.
SELF_MODIFICATION = {
  'adaptive': ('k', 'v', 'eta', 'alpha'),  # A subset of k, v, eta, alpha and q.
  'own_targets': True,
  'objective': 'l2',  # Or dot_product, huber.
  'reads': 'token',  # Or chunk.
  'rate_gate': 'sigmoid',  # Or exponential.
}
# How the blocks of the continuum memory system learn in context; see `CMSConfig`.
IN_CONTEXT = {
  'cms_form': 'sequential',  # Or nested, independent.
  'cms_rule': 'gradient_descent',  # Or dgd, momentum, delta_momentum, m3, muon.
  'cms_rate': 0.4,  # Of the fastest block; those of slower ones grow with their periods.
  'cms_proportional_rates': True,
  'cms_max_norm': 1.0,
  'meta': 'full',  # The outer gradient through inner updates; or first, detached.
}

# Levels for MLPs that do not learn in context; see `nlx.models.stack_levels`.
STACK = {
  'periods': (),  # In tokens; the model stays as it is if there are none.
  'form': 'independent',  # Or sequential, nested.
  'rule': 'gradient_descent',  # As `cms_rule`.
  'rate': 0.1,
  'proportional_rates': False,
  'max_norm': 1.0,
  'meta': 'full',  # Or first, detached.
}

# Fields of a model that say how it is computed, not what: a run goes on with other ones.
MEANS = ('remat', 'implementation')
# Fields of the data that a run finds out by itself.
NOTED = ('digest', 'tokenizer_digest')

# Steps, sequences per step, tokens per sequence, peak learning rate, warm-up steps.
RUNS = {
  'smoke': (4, 2, 64, 3e-3, 1),
  'tiny': (500, 2, 512, 1.6e-2, 30),
  '30m': (400, 16, 2048, 1e-3, 40),
  '340m': (28_610, 128, 4096, 4e-4, 1000),
  '760m': (57_220, 128, 4096, 4e-4, 1000),
  '1b': (190_735, 128, 4096, 4e-4, 2000),
}

# Options of the optimizers by name; `--config.optimizer.name=m3 --config.optimizer.m3.decay=0.9`.
_ADAMW = {'b1': 0.9, 'b2': 0.95}
OPTIONS = {
  'adamw': _ADAMW,
  'ademamix': {'b1': 0.9, 'b2': 0.95, 'b3': 0.999, 'alpha': 5.0},
  'deep_momentum': {'hidden': 64, 'decay': 0.9, 'adamw': _ADAMW},
  'delta_momentum': {'decay': 0.9, 'delta': 1e-2, 'adamw': _ADAMW},
  'generalized_gradient_descent': {'inner_steps': 1},
  'higher_order_momentum': {'decay': 0.9},
  'learned_preconditioner': {'decay': 0.9, 'rate': 1e-2},
  'm3': {'slow_period': 16, 'decay': 0.95, 'slow_decay': 0.9, 'slow_weight': 0.5, 'adamw': _ADAMW},
  'momentum': {'decay': 0.9},
  # Steps per update of the parameters whose path has the text. Others are given as a whole, as in
  # --config.optimizer.multi_rate.periods="{'cms': 4, 'mixer': 2}".
  'multi_rate': {'periods': {'cms': 4}, 'options': _ADAMW},
  'muon': {'decay': 0.95, 'nesterov': True, 'adamw': _ADAMW},
  'preconditioned_momentum': {'decay': 0.9},
}


def get_config(arg: str = 'hope-tiny') -> ml_collections.ConfigDict:
  """Returns the configuration that `arg`, MODEL-SIZE, names."""
  family, _, size = arg.partition('-')
  if family not in MODELS or size not in SIZES:
    raise ValueError(
      f'`lm.py:{arg}` is unknown; use lm.py:MODEL-SIZE with MODEL one of {", ".join(MODELS)} '
      f'and SIZE one of {", ".join(SIZES)}.'
    )
  steps, batch_size, seq_len, learning_rate, warmup_steps = RUNS[size]
  config = ml_collections.ConfigDict()
  config.name = arg
  config.seed = 0
  config.cache_dir = ''  # Compiled programs; the user's cache folder if empty.
  config.model = _model(family, size)
  # F of new blocks in series; independent ones share the hidden units of the MLP equally.
  config.stack = {**STACK, 'hidden': config_dict.placeholder(int)}
  config.pretrained = ''  # Folder of a run, or of a Llama, whose parameters are the first ones.
  config.data = {
    # Or python_source, a text file, a glob pattern; to be given where empty.
    'corpus': '' if size in LARGE else 'documentation',
    'max_bytes': config_dict.placeholder(int),
    'tokenizer': '' if size in LARGE else 'bytes',  # Or a `tokenizers` JSON file.
    'digest': '',  # Of the text, and of the tokenizer's file, as a run notes them; if one is given,
    'tokenizer_digest': '',  # another text or file is refused.
    'seq_len': seq_len,
    'batch_size': batch_size,
    'sampling': 'epochs',  # Or random.
  }
  config.optimizer = {
    'name': 'adamw',
    'learning_rate': learning_rate,
    'warmup_steps': warmup_steps,
    'floor': 0.1,  # Of the peak learning rate, at the end.
    'weight_decay': 0.1,
    'clip_norm': 1.0,
    **OPTIONS,
  }
  config.training = {
    'steps': steps,
    'log_every': 10,
    'eval_every': max(steps // 10, 1),
    'checkpoint_every': max(steps // 10, 1),
    'keep': 3,
    'accumulation': 1,  # Microbatches per step.
  }
  config.sample = {
    'prompt': 'The ',
    'max_tokens': 200,
    'temperature': 0.8,
    'top_k': config_dict.placeholder(int),
  }
  # -1: what the other axes leave. 0: as found; see `nlx.parallel.make_mesh`.
  config.mesh = {'data': -1, 'fsdp': 1, 'model': 1, 'slices': 0, 'cpu_devices': 0}
  # Of one run; 0 where the cluster says, as Cloud TPU and SLURM do. Seconds until one is lost.
  config.processes = {'count': 1, 'index': 0, 'coordinator': '', 'heartbeat_timeout': 100}
  _adapt(config, family, size)
  return config


def _adapt(config: ml_collections.ConfigDict, family: str, size: str) -> None:
  """Sets what differs at the small sizes."""
  if size == 'tiny' and family != 'hope':
    config.optimizer.learning_rate = 3e-3  # The best of four for the Transformer++; see RESULTS.md.
  if size == 'tiny':
    config.training.update(eval_every=250, checkpoint_every=25)
  if size == '30m':
    config.data.corpus = 'python_source'
    config.training.update(eval_every=100, checkpoint_every=100)
    if family == 'hope':
      config.optimizer.learning_rate = 2e-3
  if size == 'smoke':
    config.data.max_bytes = 20_000
    config.training.update(log_every=1, eval_every=2, checkpoint_every=2)
    config.sample.max_tokens = 16


def _model(family: str, size: str) -> dict[str, Any]:
  """Returns the fields of `config.model`."""
  dtype = DTYPES.get(size, 'bfloat16')
  fields: dict[str, Any] = {'family': family, **SIZES[size], 'dtype': dtype}
  fields['cms_hidden'] = config_dict.placeholder(int)  # Overrides `parameters`.
  fields['remat'] = REMAT.get(size, 'layers')  # Or none, chunks, layers_but_dots.
  levels = LEVELS.get(size, LARGE_LEVELS)
  if family == 'hope':
    fields.update(levels, rule=RULE, **SELF_MODIFICATION)
  if family in ('hope', 'hope_attention'):
    fields.update(cms_periods=PERIODS.get(size, LARGE_PERIODS), **IN_CONTEXT)
    fields['cms_shares'] = config_dict.placeholder(
      tuple
    )  # Of the hidden units; equal if not given.
    fields['truncate'] = config_dict.placeholder(int)  # Cut the outer gradient every n updates.
  if family == 'transformer':
    fields['implementation'] = 'xla'  # Or cudnn, on a GPU in bfloat16.
  if family in DEEP:
    fields.update(memory_hidden=levels['memory_hidden'])
  if family == 'atlas':
    fields['memory_hidden'] //= 2  # Every token's momentum is orthogonalised.
  if family == 'samba' and size in DTYPES:
    fields['scan_chunk'] = 16  # Quicker than 64 on a CPU.
  if family in WINDOWED and size not in DTYPES:
    fields['window'] = LARGE_WINDOW
  if size == 'tiny' and family in ('hope', 'hope_attention', 'samba'):
    fields['num_layers'] = 2  # Each has two MLPs.
  elif family == 'samba' and size != 'smoke':
    fields['num_layers'] //= 2
  return fields
