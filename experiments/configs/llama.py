"""More training of a Llama, as Hugging Face publishes them, with levels: `llama.py:FOLDER`.

  python -m experiments.train --config=experiments/configs/llama.py:FOLDER
    --config.stack.periods='(256, 1024)' --config.data.corpus='corpus/*.txt' --workdir=runs/llama

FOLDER holds config.json, the weights as safetensors, and tokenizer.json. Sizes and tokenizer are
those of the checkpoint; all else is as in `lm.py:transformer-340m`, but for a tenth of its learning
rate and steps, and can be given on the command line. Without periods it is plain training.
"""

import ml_collections

from experiments.configs import lm

MIXER = ('num_heads', 'num_kv_heads', 'head_dim', 'rope_base')


def get_config(arg: str) -> ml_collections.ConfigDict:
  """Returns the configuration of a run that begins with the Llama in the folder `arg`."""
  from nlx import core, interop  # Here, so that whoever lists configurations need not wait for JAX.

  folder, found = core.as_path(arg), interop.llama_config(arg)
  config = lm.get_config('transformer-340m')
  config.name = f'llama-{folder.name}'
  config.model = {
    'family': 'transformer',
    'model_dim': found.model_dim,
    'num_layers': found.num_layers,
    **{name: getattr(found.mixer, name) for name in MIXER},
    'cms_hidden': found.cms.widths[0],
    'norm_epsilon': found.norm_epsilon,
    **{name: config.model[name] for name in ('dtype', 'remat')},
  }
  config.pretrained = str(folder)
  config.data.update(corpus='documentation', tokenizer=str(folder / 'tokenizer.json'))
  config.optimizer.learning_rate /= 10
  config.optimizer.warmup_steps //= 10
  config.training.steps //= 10
  config.training.eval_every //= 10
  config.training.checkpoint_every //= 10
  return config
