"""One of several processes that train the stand-in together: WORKDIR STEPS PORT INDEX COUNT."""

import json
import sys

import jax

from nlx import parallel, training
from tests.training import standin


def main(workdir, steps, port, index, count):
  jax.distributed.initialize(
    f'127.0.0.1:{port}',
    num_processes=count,
    process_id=index,
    initialization_timeout=60,
    heartbeat_timeout_seconds=10,
    shutdown_timeout_seconds=20,
  )
  mesh = parallel.make_mesh()
  task = standin.make_task(batch_size=8, process_index=index, process_count=count)
  summary = training.train(
    task,
    training.Settings(steps),
    parallel.place(standin.make_state(task), parallel.replicated(mesh)),
    workdir,
    sharding=parallel.batch_sharding(mesh),
  )
  print(json.dumps(summary))


if __name__ == '__main__':
  main(sys.argv[1], *map(int, sys.argv[2:]))
