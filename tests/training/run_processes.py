"""One of several processes that train the stand-in together.

WORKDIR STEPS PORT INDEX COUNT BATCH MODEL; at that batch, the last of them is told to end, unless
0. MODEL is the size of the `model` axis.
"""

import json
import sys

from nlx import parallel, training
from tests.training import standin
from tests.training.run_standin import Signalling


def main(workdir, steps, port, index, count, batch, model):
  parallel.start_processes(count, index, f'127.0.0.1:{port}')
  mesh = parallel.make_mesh(model=model, slices=count // model)  # As if each were a host.
  part, parts = parallel.batch_part(mesh)
  task = standin.make_task(batch_size=8, process_index=part, process_count=parts)
  if index == count - 1:
    task = task._replace(batches=Signalling(task.batches, batch, 'SIGTERM'))
  state = standin.make_state(task)
  try:
    summary = training.train(
      task,
      training.Settings(steps),
      parallel.place(state, parallel.shardings(state, mesh)),
      workdir,
      sharding=parallel.batch_sharding(mesh),
    )
    print(json.dumps(summary))
  except training.Preempted as end:
    print(json.dumps({'ended': end.step}))


if __name__ == '__main__':
  main(sys.argv[1], *map(int, sys.argv[2:]))
