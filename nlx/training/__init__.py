"""Training, the slowest level: optimizers, steps, checkpoints, metrics and the loop."""

from nlx.training.checkpoint import CheckpointError, Checkpoints, Restored
from nlx.training.failure import NonFiniteError, first_non_finite
from nlx.training.loop import train
from nlx.training.metrics import MetricsWriter, read_metrics
from nlx.training.optimizers import OPTIMIZERS, matrices, optimizer, warmup_cosine
from nlx.training.preemption import Preempted
from nlx.training.step import TrainState, evaluate, init_state, make_eval, make_step
from nlx.training.task import Hooks, Progress, Settings, Task, bits_per_byte

__all__ = [
  'bits_per_byte',
  'CheckpointError',
  'Checkpoints',
  'evaluate',
  'first_non_finite',
  'Hooks',
  'init_state',
  'make_eval',
  'make_step',
  'matrices',
  'MetricsWriter',
  'NonFiniteError',
  'optimizer',
  'OPTIMIZERS',
  'Preempted',
  'Progress',
  'read_metrics',
  'Restored',
  'Settings',
  'Task',
  'train',
  'TrainState',
  'warmup_cosine',
]
