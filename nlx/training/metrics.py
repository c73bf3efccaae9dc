"""What a run measured: one JSON object per line, and the same for TensorBoard."""

import json
import os
import pathlib
from typing import Any

import tensorboardX

Row = dict[str, Any]


def read_metrics(path: str | os.PathLike, up_to_step: int | None = None) -> list[Row]:
  """Reads the rows of a metrics file.

  Args:
    path: The JSONL file; a missing one has no rows.
    up_to_step: Last step to keep; None keeps all.

  Returns:
    The rows in order, without a last line that a killed run left unfinished.
  """
  path = pathlib.Path(path)
  if not path.exists():
    return []
  lines = path.read_text(encoding='utf-8').splitlines(keepends=True)
  rows = [json.loads(line) for line in lines if line.endswith('\n')]
  return [row for row in rows if up_to_step is None or row['step'] <= up_to_step]


class MetricsWriter:
  """Appends rows to `metrics.jsonl` and to TensorBoard files in the same folder.

  Rows after the step at which a run resumes are removed first, so that no step is there twice.
  """

  def __init__(self, folder: str | os.PathLike, resume_step: int = 0):
    """Opens the files.

    Args:
      folder: Where they lie; made if missing.
      resume_step: Completed steps of the run so far; 0 begins anew.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'metrics.jsonl'
    kept = read_metrics(path, resume_step) if resume_step else []
    temporary = path.with_suffix('.jsonl.tmp')
    temporary.write_text(''.join(map(_line, kept)), encoding='utf-8')
    os.replace(temporary, path)
    self._file = path.open('a', encoding='utf-8')
    self._board = tensorboardX.SummaryWriter(
      str(folder / 'tensorboard'), purge_step=resume_step + 1
    )

  def write(self, step: int, values: Row) -> None:
    """Writes one row of numbers, texts and None; `step` counts completed steps."""
    self._file.write(_line({'step': step, **values}))
    self._file.flush()
    for name, value in values.items():
      if value is None:
        continue
      add = self._board.add_text if isinstance(value, str) else self._board.add_scalar
      add(name, value, step)

  def close(self) -> None:
    """Closes the files."""
    self._file.close()
    self._board.close()


def _line(row: Row) -> str:
  return json.dumps(row, ensure_ascii=False) + '\n'
