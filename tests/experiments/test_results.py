import json
import shutil

import pytest

from experiments.reporting import page, provenance, runs, tables
from tests.experiments.test_train import call

NOTES = provenance.RESULTS / 'notes.md'


@pytest.fixture(scope='module')
def folder(tmp_path_factory, request):
  """What a smoke run of one seed leaves."""
  folder = tmp_path_factory.mktemp('results')
  arguments = ('--smoke', '--seeds=0', f'--folder={folder}')
  call('results', *arguments, cache=request.config.cache.mkdir('jax-mains'))
  return folder


def language_models(folder):
  return json.loads((folder / 'results' / 'language_model.json').read_text())


def test_smoke_has_a_row_for_each_model(folder):
  rows = language_models(folder)['rows']
  assert [row['model'] for row in rows] == ['hope-smoke', 'transformer-smoke']
  assert {name for row in rows for name in row} == {'model', 'seed', *runs.FIELDS}


def test_smoke_has_a_row_for_each_learning_rate(folder):
  rows = json.loads((folder / 'results' / 'learning_rates.json').read_text())['rows']
  assert [row['learning_rate'] for row in rows] == 2 * list(runs.RATES['smoke'])


def test_results_file_says_where_it_comes_from(folder):
  assert {'command', 'versions', 'hardware', 'commit'} <= set(language_models(folder))


def test_finished_run_is_not_repeated(folder):
  summary = folder / 'runs' / 'hope-smoke-seed0' / 'summary.json'
  before = summary.stat().st_mtime_ns
  runs.train(runs.Run('hope-smoke', 0), folder / 'runs')
  assert summary.stat().st_mtime_ns == before


def test_finished_run_of_another_configuration_is_an_error(folder, tmp_path):
  shutil.copytree(folder / 'runs' / 'hope-smoke-seed0', tmp_path / 'hope-smoke-seed1')
  with pytest.raises(ValueError, match='was made with another `seed`'):
    runs.train(runs.Run('hope-smoke', 1), tmp_path)


def test_report_is_the_same_again(folder):
  assert (folder / 'RESULTS.md').read_text() == page.page(folder / 'results', NOTES)


def test_report_has_the_notes_and_the_numbers(folder):
  text = (folder / 'RESULTS.md').read_text()
  assert NOTES.read_text().strip() in text
  bits = language_models(folder)['rows'][0]['val_bits_per_byte']
  assert f'{bits:.3f}' in text


def test_committed_report_is_that_of_the_committed_results():
  committed = provenance.RESULTS.parent / 'RESULTS.md'
  assert committed.read_text() == page.page(provenance.RESULTS, NOTES), (
    'run `python -m experiments.results --report_only`'
  )


def test_report_shows_the_figure_of_a_result(tmp_path):
  record = {'command': 'a', 'commit': 'b', 'hardware': 'c', 'versions': {}}
  result = {'title': 'A study', 'figure': 'study.png', 'rows': [{'x': 1}], **record}
  (tmp_path / 'study.json').write_text(json.dumps(result))
  assert '![A study](../docs/images/study.png)' in page.page(tmp_path, NOTES)


def test_seeds_become_mean_and_spread():
  rows = [{'model': 'a', 'seed': seed, 'size': 7, 'bits': 1.0 + seed} for seed in range(3)]
  assert tables.over_seeds(rows) == [
    {'model': 'a', 'seeds': 3, 'size': 7, 'bits': '2.000 (1.000 to 3.000)'}
  ]


def test_table_aligns_numbers_and_leaves_missing_fields_empty():
  table = tables.markdown([{'model': 'a', 'ms': 1234.5}, {'model': 'bc', 'mean_size': 2000}])
  assert table.splitlines() == [
    '| model |    ms | mean size |',
    '| ----- | ----: | --------: |',
    '| a     | 1,234 |           |',
    '| bc    |       |     2,000 |',
  ]
