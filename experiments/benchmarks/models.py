"""Training speed of language models."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments import common
from experiments.benchmarks import timing
from experiments.configs import lm
from nlx import training

CAPTION = (
  'One training step, loss, gradient and AdamW, of the models of `experiments/configs/lm.py` at '
  'their batch and sequence lengths. `first` takes inner gradients as constants, `detached` cuts '
  'the outer gradient at every inner update, and without in-context levels only the memories '
  'learn while reading. `relative_speed` is to the Transformer++, in the same run.'
)


class Sizes(NamedTuple):
  """What is measured."""

  size: str = 'tiny'  # As in lm.py:MODEL-SIZE.
  repeats: int = 5
  leave_out: tuple[str, ...] = ()  # Variants that are not measured.


FULL = Sizes()
# The models whose compilation is quick.
SMOKE = Sizes('smoke', repeats=1, leave_out=('HOPE', 'HOPE, first', 'HOPE, detached'))


def measure(sizes: Sizes) -> list[dict[str, Any]]:
  """Returns one record for each model; the Transformer++ comes last."""
  configs = variants(sizes.size)
  steps = {name: Step(configs[name]) for name in configs if name not in sizes.leave_out}
  seconds = timing.medians(list(steps.values()), sizes.repeats)
  speeds = [step.num_tokens / second for step, second in zip(steps.values(), seconds, strict=True)]
  return [
    {
      'model': name,
      'parameters': step.parameters,
      'compile_seconds': step.program.compile_seconds,
      'ms': 1e3 * second,
      'tokens_per_second': speed,
      'temp_mib': step.program.temp_bytes / 2**20,
      'relative_speed': speed / speeds[-1],
    }
    for (name, step), second, speed in zip(steps.items(), seconds, speeds, strict=True)
  ]


def variants(size: str) -> dict[str, Any]:
  """Returns the configurations that are compared, by name."""
  hope = lm.get_config(f'hope-{size}')
  still = (0,) * len(hope.model.cms_periods)
  changes = {
    'HOPE': {},
    'HOPE, first': {'meta': 'first'},
    'HOPE, detached': {'meta': 'detached'},
    'HOPE, no in-context levels': {'cms_periods': still},
  }
  configs = {}
  for name, change in changes.items():
    configs[name] = lm.get_config(f'hope-{size}')
    configs[name].model.update(change)
  return {**configs, 'Transformer++': lm.get_config(f'transformer-{size}')}


class Step:
  """A compiled training step that goes on from its own last state."""

  def __init__(self, config: Any):
    """Compiles the step of a configuration."""
    language = common.create(config)
    options = config.optimizer
    tx = training.optimizer(
      options.name,
      options.learning_rate,
      weight_decay=options.weight_decay,
      clip_norm=options.clip_norm,
      **options.get(options.name, {}),
    )
    self.parameters = sum(leaf.size for leaf in jax.tree.leaves(language.params))
    self.batch = random_batch(config, language.tokenizer.vocab_size)
    self.num_tokens = self.batch['tokens'].size
    self.state = training.init_state(language.params, tx, key=jax.random.key(0))
    step = training.make_step(common.loss_fn(language.graph), tx, config.training.accumulation)
    self.program = timing.compiled(step, self.state, self.batch)

  def __call__(self) -> jax.Array:
    """Takes one step and returns its loss."""
    self.state, metrics = self.program.call(self.state, self.batch)
    return metrics['loss']


def random_batch(config: Any, vocab_size: int) -> dict[str, jax.Array]:
  """Returns random tokens in the shape of a configuration's batches; all targets count."""
  shape = (config.data.batch_size, config.data.seq_len)
  tokens = jax.random.randint(jax.random.key(0), shape, 0, vocab_size, jnp.int32)
  return {
    'tokens': tokens,
    'targets': jnp.roll(tokens, -1, axis=1),
    'mask': jnp.ones(shape, jnp.float32),
  }
