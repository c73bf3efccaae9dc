"""A language model of a few numbers, to test training without any real model."""

import jax
import jax.numpy as jnp
import numpy as np

from nlx import data, training

TEXT = b'the quick brown fox jumps over the lazy dog. ' * 60


def init_params(seed=0, width=16):
  first, second = jax.random.split(jax.random.key(seed))
  return {
    'embed': jax.random.normal(first, (256, width)) * 0.1,
    'layer': {'kernel': jax.random.normal(second, (width, 256)) * 0.1, 'bias': jnp.zeros(256)},
  }


def loss_fn(params, batch):
  hidden = params['embed'][batch['tokens']]
  logits = hidden @ params['layer']['kernel'] + params['layer']['bias'][None, None]
  picked = jnp.take_along_axis(logits, batch['targets'][..., None], axis=-1)[..., 0]
  losses = (jax.nn.logsumexp(logits, axis=-1) - picked) * batch['mask']
  return losses.sum(), batch['mask'].sum()


def make_task(steps=20, peak=1e-2, batch_size=4, seq_len=16, **processes):
  tokens = np.frombuffer(TEXT, np.uint8)
  train, validation = tokens[:-270], data.Split(tokens[-270:], 270)
  schedule = training.warmup_cosine(peak, warmup_steps=2, total_steps=steps)
  shape = {'seq_len': seq_len, 'batch_size': batch_size, **processes}
  return training.Task(
    loss_fn=loss_fn,
    tx=training.optimizer('adamw', schedule, weight_decay=0.1),
    schedule=schedule,
    batches=data.train_batches(train, seed=0, **shape),
    validation=data.validation_batches(validation, context=train, **shape),
    train_bytes_per_token=1.0,
    validation_bytes_per_token=1.0,
  )


def make_state(task, seed=0):
  return training.init_state(init_params(seed), task.tx, key=jax.random.key(seed))
