"""How well something that learns one task after another keeps and reuses what it learned.

Scores from a table of results, the two usual remedies against forgetting, elastic weight
consolidation and replay, and two sequences of tasks. All are pure functions on pytrees, for any
model and any loss.
"""

from nlx.evaluation.digits import Task, permuted_digits, split_digits
from nlx.evaluation.ewc import (
  EWCState,
  ewc_add,
  ewc_init,
  ewc_penalty,
  fisher_diagonal,
  sample_labels,
)
from nlx.evaluation.replay import ReplayState, replay_add, replay_draw, replay_init
from nlx.evaluation.scores import ContinualScores, continual_scores

__all__ = [
  'ContinualScores',
  'EWCState',
  'ReplayState',
  'Task',
  'continual_scores',
  'ewc_add',
  'ewc_init',
  'ewc_penalty',
  'fisher_diagonal',
  'permuted_digits',
  'replay_add',
  'replay_draw',
  'replay_init',
  'sample_labels',
  'split_digits',
]
