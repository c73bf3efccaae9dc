import json

from experiments.reporting import page, provenance, tables

NOTES = provenance.RESULTS / 'notes.md'


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
