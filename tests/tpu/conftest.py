"""A scripted cloud for the scripts of tpu/: of either back end, or of both in turn."""

import pytest

from tests.tpu.cloud import BACKENDS, Cloud


@pytest.fixture(params=list(BACKENDS))
def cloud(request, tmp_path):
  return Cloud(tmp_path, request.param)


@pytest.fixture
def tpu(tmp_path):
  return Cloud(tmp_path, 'tpu')


@pytest.fixture
def gce(tmp_path):
  return Cloud(tmp_path, 'gce')
