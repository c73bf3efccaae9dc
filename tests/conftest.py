"""Sets JAX up for every test: eight CPU devices, strict shapes, one compilation cache."""

import gc
import importlib.metadata
import os

# One thread per operation: the workers of pytest-xdist already fill the cores. Quick compilation,
# which is what most tests wait for. Set for single runs too, because compiled programs are cached
# by these flags.
FLAGS = '--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0'
# A sixth of the time of a compilation.
FLAGS += (
  ' --xla_disable_hlo_passes='
  'simplify-while-loops,while-loop-constant-sinking,while-loop-invariant-code-motion'
)
# Simpler code for fusions, in one piece; versions without these flags would not start.
if tuple(map(int, importlib.metadata.version('jaxlib').split('.')[:2])) < (0, 11):
  FLAGS += ' --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {FLAGS}'
for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'):
  os.environ.setdefault(name, '1')
# JAX_PLATFORMS=cuda runs the suite on a GPU instead.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

# Compilation takes as long as it takes; the same examples on every run.
hypothesis.settings.register_profile('nlx', deadline=None, derandomize=True, max_examples=20)
hypothesis.settings.load_profile('nlx')


def pytest_configure(config):
  """Shares compiled programs between workers and runs; `pytest --cache-clear` forgets them."""
  jax.config.update('jax_compilation_cache_dir', str(config.cache.mkdir('jax')))
  # With a bound on its size JAX locks the cache, which makes it safe under several workers.
  jax.config.update('jax_compilation_cache_max_size', 2**30)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
  # What tracing makes is mostly kept: looking for garbage so often takes a tenth of the time.
  gc.freeze()
  gc.set_threshold(50_000, 20)


@pytest.fixture(scope='session')
def bucket_address():
  from tests import bucket

  with bucket.serve() as address:
    yield address


@pytest.fixture
def bucket(monkeypatch, bucket_address):
  """An empty bucket in memory; its gs:// path."""
  from tests import bucket

  bucket.install(monkeypatch, bucket_address)
  return 'gs://bucket'


@pytest.fixture
def float64():
  """Runs one test in double precision: `@pytest.mark.usefixtures('float64')`."""
  with jax.enable_x64(True):
    yield
