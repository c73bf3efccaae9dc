"""HOPE and others on English documentation, for equally long, at equal parameters and tuning."""

import statistics
import time
from typing import NamedTuple

import jax

from experiments.studies import Found, all_models, records, short_run
from nlx import training

TITLE = 'HOPE and others at equal time'
CAPTION = (
  'Models of `experiments/configs/lm.py` at size tiny, a million parameters, on its corpus, '
  'English documentation, each trained for as many steps as take five minutes of one CPU core at '
  'its own pace: the median of ten warm steps, before the runs. Compiling and evaluation do not '
  'count. The schedules of learning rates are as long as the runs. Each model was trained at the '
  'same three learning rates on seed 0; the one with the least held-out loss was run with two '
  'more seeds. `bits_per_byte` is of the last tenth, held out, the mean over seeds, with the '
  '`least` and the `greatest`; a rate at the edge of those tried is named so.'
)


class Sizes(NamedTuple):
  """What is trained."""

  models: tuple[str, ...] = ('hope', 'titans', 'gated_deltanet', 'transformer')
  size: str = 'tiny'
  seconds: float = 300.0
  rates: tuple[float, ...] = all_models.FULL.rates
  seeds: tuple[int, ...] = all_models.FULL.seeds
  turns: int = 10  # Timed steps of each model.
  processes: int | None = None  # As many as there are cores if None.


class Timed(NamedTuple):
  """The pace of a model."""

  model: str
  size: str
  turns: int


FULL = Sizes()
SMOKE = Sizes(('linear_attention',), 'smoke', 0.1, (3e-3,), (0,), turns=1, processes=1)


def run(sizes: Sizes) -> Found:
  """Returns a row for each model."""
  processes = sizes.processes or records.cores()
  timed = [Timed(model, sizes.size, sizes.turns) for model in sizes.models]
  paces = records.remember_all('equal_time', timed, pace, processes=processes)
  steps = {
    model: max(2, round(sizes.seconds / seconds))
    for model, seconds in zip(sizes.models, paces, strict=True)
  }
  return all_models.compare('equal_time', sizes.size, steps, sizes.rates, sizes.seeds, processes)


def pace(timed: Timed) -> float:
  """The seconds of a step."""
  job = all_models.Job(timed.model, all_models.FULL.rates[0], 0, timed.size, 2)
  task, language = short_run.prepare(all_models.configure(job))
  step = training.make_step(task.loss_fn, task.tx)
  state = training.init_state(language.params, task.tx, key=jax.random.key(0))
  seconds: list[float] = []
  for _ in range(1 + timed.turns):
    batch = jax.device_put(next(task.batches))
    start = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, batch))
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds[1:])
