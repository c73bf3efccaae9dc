import pytest

from nlx import parallel


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'count': 2}, '`count`, `index` and `coordinator` must be given together'),
    ({'coordinator': 'host:1'}, "must be given together.*got None, None and 'host:1'"),
    ({'count': 2, 'index': 2, 'coordinator': 'host:1'}, '`index` must be one of the 2 processes'),
  ],
)
def test_half_of_a_cluster_is_an_error(arguments, message):
  """Before any waiting; tests/training/test_processes.py has whole ones."""
  with pytest.raises(ValueError, match=message):
    parallel.start_processes(**arguments)
