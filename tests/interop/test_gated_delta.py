"""The delta rule in chunks is the gated delta rule of transformers, from its golden outputs."""

import numpy as np
import pytest
import safetensors.numpy

from tests.interop import problems


@pytest.fixture(scope='module')
def golden():
  return safetensors.numpy.load_file(problems.GATED_DELTA)


@pytest.mark.parametrize('chunk_size', [16, 64])
def test_delta_rule_gives_the_golden_outputs_and_state(golden, chunk_size):
  golden = dict(golden)
  expected = [golden.pop(name) for name in ('outputs', 'state')]
  got = problems.gated_delta(**golden, chunk_size=chunk_size)
  for found, wanted in zip(got, expected, strict=True):
    np.testing.assert_allclose(found, wanted, atol=problems.DELTA_TOLERANCE)
