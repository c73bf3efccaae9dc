"""Several processes, on one machine or on many, as one run."""

import jax


def start_processes(
  count: int | None = None, index: int | None = None, coordinator: str | None = None
) -> None:
  """Joins the processes of a run; before anything asks for the devices.

  Args:
    count: How many processes there are; as the cluster says if None, which Cloud TPU, SLURM and
      others do.
    index: Which of them this is, from 0.
    coordinator: `host:port` of the first, reachable from all.

  Raises:
    ValueError: If not all or none is given, or `index` is none of the processes.
    RuntimeError: If there is no cluster to ask, or a process is missing.
  """
  if count is not None and index is not None and coordinator is not None:
    if not 0 <= index < count:
      raise ValueError(f'`index` must be one of the {count} processes, got {index}.')
  elif (count, index, coordinator) != (None, None, None):
    raise ValueError(
      '`count`, `index` and `coordinator` must be given together, or none of them where a cluster '
      f'knows them, got {count}, {index} and {coordinator!r}.'
    )
  jax.distributed.initialize(coordinator, num_processes=count, process_id=index)
