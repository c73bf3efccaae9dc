"""The most general rule in chunks of any size, against the recurrence."""

import pytest

from nlx import memories
from tests.memories import problems

RULE = memories.dgd(momentum=True)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  ('network', 'chunk_size'), [('matrix', 3), *(('mlp', size) for size in (1, 3, 64, 100))]
)
def test_layer_of_any_chunk_size_equals_the_recurrence(network, chunk_size):
  got = problems.parallel(network, RULE, chunk_size, length=70)
  problems.assert_close(got, problems.recurrence(network, RULE, length=70)(chunk_size))


def test_layer_in_single_precision_equals_the_recurrence():
  got = problems.parallel('mlp', RULE, 14, length=70, dtype='float32')
  expected = problems.recurrence('mlp', RULE, length=70, dtype='float32')(14)
  problems.assert_close(got, expected, tolerance=1e-4)


@pytest.mark.usefixtures('float64')
def test_layer_with_chunk_reads_equals_the_recurrence():
  got = problems.parallel('mlp', RULE, 7, 21, reads='chunk')
  problems.assert_close(got, problems.recurrence('mlp', RULE, 21, reads='chunk')(7))


@pytest.mark.usefixtures('float64')
def test_layer_without_remat_gives_the_same():
  got = problems.parallel('mlp', RULE, 3, 70, remat=False)
  problems.assert_close(got, problems.parallel('mlp', RULE, 3, 70))
