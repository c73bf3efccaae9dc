"""How well something that learns one task after another keeps and reuses what it learned.

Scores from a table of results, the two usual remedies against forgetting, elastic weight
consolidation and replay, and two sequences of tasks. All are pure functions on pytrees, for any
model and any loss.

And what a language model makes of texts: how likely they are, how it continues them, and both as
lm-evaluation-harness asks for them.

What happens inside a model while it reads a text, as numbers and as a picture.

And synthetic benchmarks, which need no data: formal languages, MAD, and needles in a haystack.
"""

from nlx.evaluation.completion import Prompt, completions
from nlx.evaluation.digits import Task, permuted_digits, split_digits
from nlx.evaluation.ewc import (
  EWCState,
  ewc_add,
  ewc_init,
  ewc_penalty,
  fisher_diagonal,
  sample_labels,
)
from nlx.evaluation.formal_languages import FORMAL_LANGUAGES, FormalLanguage, formal_language
from nlx.evaluation.harness import harness_model
from nlx.evaluation.likelihood import Likelihood, Passage, likelihoods
from nlx.evaluation.mad import MAD_BASELINES, MAD_VARIATIONS, MADSetting, mad_settings, mad_task
from nlx.evaluation.needle_codes import byte_code, symbol_code
from nlx.evaluation.needles import (
  NEEDLE_DEPTHS,
  NEEDLE_TASKS,
  NeedleCode,
  NeedleRecall,
  Needles,
  NeedleTask,
  needle_recall,
  needle_texts,
)
from nlx.evaluation.replay import ReplayState, replay_add, replay_draw, replay_init
from nlx.evaluation.scores import ContinualScores, continual_scores
from nlx.evaluation.sequences import Accuracies, LabelledSequences, accuracies
from nlx.evaluation.trace import Trace, trace
from nlx.evaluation.trace_plot import plot_trace

__all__ = [
  'Accuracies',
  'ContinualScores',
  'EWCState',
  'FORMAL_LANGUAGES',
  'FormalLanguage',
  'LabelledSequences',
  'Likelihood',
  'MADSetting',
  'MAD_BASELINES',
  'MAD_VARIATIONS',
  'NEEDLE_DEPTHS',
  'NEEDLE_TASKS',
  'NeedleCode',
  'NeedleRecall',
  'NeedleTask',
  'Needles',
  'Passage',
  'Prompt',
  'ReplayState',
  'Task',
  'Trace',
  'accuracies',
  'byte_code',
  'completions',
  'continual_scores',
  'ewc_add',
  'ewc_init',
  'ewc_penalty',
  'fisher_diagonal',
  'formal_language',
  'harness_model',
  'likelihoods',
  'mad_settings',
  'mad_task',
  'needle_recall',
  'needle_texts',
  'permuted_digits',
  'plot_trace',
  'replay_add',
  'replay_draw',
  'replay_init',
  'sample_labels',
  'split_digits',
  'symbol_code',
  'trace',
]
