"""What a run measured: one JSON object per line, and the same for TensorBoard."""

import json
import os
from typing import Any

import tensorboardX

from nlx import core

Row = dict[str, Any]


def read_metrics(path: str | os.PathLike, up_to_step: int | None = None) -> list[Row]:
  """Reads the rows of a metrics file.

  Args:
    path: The JSONL file; a missing one has no rows.
    up_to_step: Last step to keep; None keeps all.

  Returns:
    The rows in order, without a last line that a killed run left unfinished.
  """
  path = core.as_path(path)
  if not path.exists():
    return []
  *lines, _ = path.read_bytes().split(b'\n')  # Texts may hold other ends of lines.
  rows = [json.loads(line) for line in lines]
  return [row for row in rows if up_to_step is None or row['step'] <= up_to_step]


class MetricsWriter:
  """Appends rows to `metrics.jsonl` and to TensorBoard files in the same folder.

  Rows after the step at which a run resumes are removed first, so that no step is there twice.

  On the disk a row is there once it is written. As nothing can be appended to a file in a bucket,
  the files there are replaced by longer ones when `publish` is called, and a crash loses the rows
  since. With a call before each checkpoint, a run that resumes writes all of those again.
  """

  def __init__(self, folder: str | os.PathLike, resume_step: int = 0):
    """Opens the files.

    Args:
      folder: Where they lie; made if missing.
      resume_step: Completed steps of the run so far; 0 begins anew.
    """
    folder = core.as_path(folder)
    core.make_folder(folder)
    kept = read_metrics(folder / 'metrics.jsonl', resume_step) if resume_step else []
    self._mirror = core.Mirror(folder)
    path = self._mirror.path / 'metrics.jsonl'
    core.write_text(path, ''.join(map(_line, kept)))
    self._file = path.open('a', encoding='utf-8')
    self._board = tensorboardX.SummaryWriter(
      str(self._mirror.path / 'tensorboard'), purge_step=resume_step + 1
    )
    self.publish()

  def write(self, step: int, values: Row) -> None:
    """Writes one row of numbers, texts and None; `step` counts completed steps."""
    self._file.write(_line({'step': step, **values}))
    self._file.flush()
    for name, value in values.items():
      if value is None:
        continue
      add = self._board.add_text if isinstance(value, str) else self._board.add_scalar
      add(name, value, step)

  def publish(self) -> None:
    """Brings all rows so far to a folder in a bucket."""
    self._board.flush()
    self._mirror.publish()

  def close(self) -> None:
    """Closes the files, and publishes them."""
    self._file.close()
    self._board.close()
    self._mirror.close()


def _line(row: Row) -> str:
  return json.dumps(row, ensure_ascii=False) + '\n'
