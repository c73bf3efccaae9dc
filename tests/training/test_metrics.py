import pytest

from nlx import core, training


@pytest.fixture(params=['disk', 'bucket'])
def folder(request, tmp_path):
  if request.param == 'disk':
    return tmp_path
  return core.as_path(request.getfixturevalue('bucket')) / 'run'


def write(folder, steps, resume_step=0, **values):
  writer = training.MetricsWriter(folder, resume_step)
  for step in steps:
    writer.write(step, values or {'loss': step / 2})
  writer.close()


def rows(folder):
  return training.read_metrics(folder / 'metrics.jsonl')


@pytest.mark.parametrize('sample', ['é\n', 'a\u2028b\x85c\r'])
def test_metrics_round_trip(folder, sample):
  write(folder, [1], loss=0.5, sample=sample, speed=None)
  assert rows(folder) == [{'step': 1, 'loss': 0.5, 'sample': sample, 'speed': None}]


def test_metrics_are_there_before_the_file_is_closed(tmp_path):
  writer = training.MetricsWriter(tmp_path)
  writer.write(1, {'loss': 1.0})
  assert len(rows(tmp_path)) == 1
  writer.close()


def test_metrics_are_in_a_bucket_when_they_are_published(bucket):
  folder = core.as_path(bucket) / 'run'
  writer = training.MetricsWriter(folder)
  writer.write(1, {'loss': 1.0})
  assert rows(folder) == []
  writer.publish()
  assert len(rows(folder)) == 1
  writer.write(2, {'loss': 1.0})
  writer.close()
  assert len(rows(folder)) == 2


def test_metrics_after_the_resumed_step_are_removed(folder):
  write(folder, [10, 20, 30])
  write(folder, [30, 40], resume_step=20)
  assert [row['step'] for row in rows(folder)] == [10, 20, 30, 40]


def test_metrics_of_a_new_run_replace_those_of_one_without_checkpoint(folder):
  write(folder, [10, 20])
  write(folder, [10])
  assert [row['step'] for row in rows(folder)] == [10]


def test_metrics_survive_a_row_that_was_cut_off(tmp_path):
  write(tmp_path, [10, 20])
  path = tmp_path / 'metrics.jsonl'
  path.write_text(path.read_text() + '{"step": 20, "lo')
  write(tmp_path, [30], resume_step=20)
  assert [row['step'] for row in rows(tmp_path)] == [10, 20, 30]


def test_metrics_of_a_missing_file_are_empty(folder):
  assert rows(folder) == []


def test_metrics_go_to_tensorboard_too(folder):
  write(folder, [1], val_loss=0.5)
  files = list((folder / 'tensorboard').iterdir())
  assert len(files) == 1
  assert b'val_loss' in files[0].read_bytes()


@pytest.mark.parametrize('up_to', [5, 10, None])
def test_metrics_can_be_read_up_to_a_step(tmp_path, up_to):
  write(tmp_path, [5, 10, 15])
  found = training.read_metrics(tmp_path / 'metrics.jsonl', up_to)
  assert [row['step'] for row in found] == [s for s in (5, 10, 15) if up_to is None or s <= up_to]
