"""What the parts of a study leave, so that one that was interrupted goes on where it was."""

import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
from tqdm.auto import tqdm

from experiments.reporting import provenance

FOLDER = provenance.ROOT / 'runs' / 'studies'
Job = TypeVar('Job', bound=tuple)


def remember(name: str, key: Iterable[Any], make: Callable[[], Any]) -> Any:
  """Makes a record, or finds it where an interrupted study at the same commit has left it.

  Args:
    name: Of the study.
    key: What the record depends on.
    make: Makes the record, which JSON can hold.

  Returns:
    The record.
  """
  left = _left(name)
  if (text := _text(key)) in left:
    return left[text]
  record = make()
  _keep(name, text, record)
  jax.clear_caches()  # Dozens of compiled programs are more than a process may hold.
  return record


def remember_all(
  name: str, jobs: Sequence[Job], make: Callable[[Job], Any], *, processes: int = 1
) -> list[Any]:
  """Makes the records of independent jobs in parallel, or finds them as `remember` does.

  A bar shows how many are made and how long the rest will take.

  Args:
    name: Of the study.
    jobs: What each record depends on; the longest first.
    make: Makes a record; of a module, so that other processes find it.
    processes: How many work at a time, each on a core of its own; with 1, this one does it all.

  Returns:
    The records, in the order of the jobs.

  Raises:
    Exception: That of the first job that fails; those at work are waited for, and kept.
  """
  left = _left(name)
  texts = [_text(job) for job in jobs]  # Of the code that runs, though it may change.
  missing = {job: text for job, text in zip(jobs, texts, strict=True) if text not in left}
  bar = tqdm(total=len(missing), desc=name, unit='job', disable=None if missing else True)
  with bar:
    for job, record in _made(list(missing), make, processes):
      _keep(name, missing[job], record)
      left[missing[job]] = record
      bar.update()
  return [left[text] for text in texts]


def cores() -> int:
  """How many processes can work side by side."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _made(jobs, make, processes):
  """Pairs of jobs and records, in the order in which they are made."""
  if processes <= 1 or not jobs:
    for job in jobs:
      yield job, make(job)
      jax.clear_caches()
    return
  processes = min(processes, len(jobs))
  context = multiprocessing.get_context('spawn')  # A fork of JAX can hang.
  places = context.SimpleQueue()
  if hasattr(os, 'sched_getaffinity'):
    for core in sorted(os.sched_getaffinity(0))[:processes]:
      places.put(core)
  pool = concurrent.futures.ProcessPoolExecutor(
    processes, mp_context=context, initializer=_settle, initargs=(places,)
  )
  failed = None
  with pool:
    running = {pool.submit(_work, make, job): job for job in jobs}
    try:
      for done in concurrent.futures.as_completed(running):
        if done.cancelled():
          continue
        if done.exception() is None:
          yield running[done], done.result()
        else:
          failed = failed or done.exception()
          for other in running:
            other.cancel()  # Those at work go on.
    except BaseException:  # Such as Ctrl-C; nobody would keep what is made from here on.
      pool.shutdown(wait=False, cancel_futures=True)
      raise
  if failed:
    raise failed


def _settle(places: Any) -> None:
  """Keeps a process on one core, off those of the others, and ends it when the study is killed."""
  if not places.empty():
    os.sched_setaffinity(0, {places.get()})
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)


def _work(make: Callable[[Job], Any], job: Job) -> Any:
  record = make(job)
  jax.clear_caches()
  return record


def _text(key: Iterable[Any]) -> str:
  return json.dumps([provenance.commit(), *key])


def _left(name: str) -> dict[str, Any]:
  """The records of this commit by key; none of a commit with changes, which are any."""
  path = FOLDER / f'{name}.jsonl'
  if provenance.commit().endswith('-dirty') or not path.exists():
    return {}
  found = {}
  for text in path.read_text(encoding='utf-8').split('\n'):
    with contextlib.suppress(json.JSONDecodeError):  # A crash left half of it.
      line = json.loads(text)
      found[json.dumps(line['key'])] = line['record']
  return found


def _keep(name: str, text: str, record: Any) -> None:
  path = FOLDER / f'{name}.jsonl'
  path.parent.mkdir(parents=True, exist_ok=True)
  line = json.dumps({'key': json.loads(text), 'record': record})
  was_cut = path.exists() and path.read_bytes()[-1:] not in (b'', b'\n')
  with path.open('a', encoding='utf-8') as file:
    file.write('\n' * was_cut + line + '\n')
