"""One of two processes that add up numbers together until one is lost: PORT INDEX VICTIM."""

import os
import signal
import sys

import jax
import jax.numpy as jnp

from nlx import parallel


def main(port, index, victim):
  parallel.start_processes(2, index, f'127.0.0.1:{port}', heartbeat_timeout=20)
  numbers = parallel.place(jnp.ones(2), parallel.batch_sharding(parallel.make_mesh()))
  total, step = jax.jit(jnp.sum), 0
  while total(numbers) == 2:
    step += 1
    if step == 10 and index == victim:
      os.kill(os.getpid(), signal.SIGKILL)


if __name__ == '__main__':
  main(*map(int, sys.argv[1:]))
