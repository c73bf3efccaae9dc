import functools
import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import layer, memory, models, nest, products, sections, timing
from experiments.reporting import provenance
from tests.memories.problems import assert_close

RECORD = provenance.record('a test', '1 x cpu')


@functools.cache
def rows_of(name):
  return sections.measure(name, smoke=True)


def column(name, field):
  return [row[field] for row in rows_of(name)]


def test_nest_has_every_form_at_every_number_of_levels():
  forms = ['nest', 'flat', 'flat remat']
  assert column('nest', 'form') == 2 * forms
  assert column('nest', 'levels') == 3 * [1] + 3 * [2]


@pytest.mark.parametrize('num_levels', [1, 2])
def test_flat_computes_what_nest_does(num_levels):
  args = nest.problem(nest.SMOKE, num_levels)
  losses = nest.losses(nest.SMOKE, num_levels)
  nested, *others = (jax.jit(jax.value_and_grad(loss))(*args) for loss in losses.values())
  for other in others:
    assert_close(other, nested, 1e-5)


def test_memory_has_every_form_of_both_passes():
  forms = ['chunk-parallel', 'chunk-parallel, all kept', 'token by token']
  assert column('memory', 'form') == 2 * forms
  assert column('memory', 'pass') == 3 * ['forward'] + 3 * ['forward + backward']


def test_token_by_token_computes_what_the_layer_does():
  args = memory.problem(memory.SMOKE)
  *parallel, serial = (jax.jit(form)(*args) for form in memory.forms(memory.SMOKE).values())
  for outputs in parallel:
    assert_close(outputs, serial, 1e-5)


@pytest.mark.parametrize('name', ['nest', 'memory'])
def test_measurements_are_positive(name):
  assert min(column(name, 'ms') + column(name, 'compile_seconds')) > 0


def test_decode_has_both_models():
  assert column('decode', 'model') == ['HOPE', 'Transformer++']
  assert column('decode', 'relative_speed')[-1] == 1


def test_models_are_hope_in_all_its_gradients_and_the_transformer():
  names = list(models.variants('tiny'))
  assert names[:3] == ['HOPE', 'HOPE, first', 'HOPE, detached']
  assert names[3:] == ['HOPE, no in-context levels', 'Transformer++']


def test_models_are_compared_to_the_transformer():
  assert column('models', 'model') == ['HOPE, no in-context levels', 'Transformer++']
  assert column('models', 'relative_speed')[-1] == 1


def test_products_of_a_program_are_counted_with_the_turns_of_its_loops():
  def program(a, b):
    body = lambda c, x: (c @ x, jnp.einsum('ij,kj->ik', c, c))  # noqa: E731
    return jax.lax.scan(body, a, b)

  found = products.count(program, jnp.ones((2, 3)), jnp.ones((5, 3, 3)))
  assert found == {products.Product(1, 2, 3, 3): 5, products.Product(1, 2, 3, 2): 5}
  assert sum(n * product.operations for product, n in found.items()) == 5 * 2 * (18 + 12)


def test_batched_products_keep_their_batch():
  found = products.count(jnp.matmul, jnp.ones((2, 4, 3, 5)), jnp.ones((2, 4, 5, 7)))
  assert found == {products.Product(8, 3, 5, 7): 1}
  assert products.seconds(found, repeats=1) > 0


def test_layers_are_compared_to_their_products():
  assert column('layer', 'layer') == list(layer.SMOKE.families)
  assert min(column('layer', 'products_ms') + column('layer', 'time_to_products')) > 0


def test_families_have_a_row_with_every_length_and_context():
  (row,) = rows_of('families')
  assert row['model'] == 'linear_attention'
  assert {'train_64', 'mib_128', 'decode_8', 'decode_16', 'exponent', 'state_mib'} <= set(row)


def test_mixers_have_an_exponent():
  (row,) = rows_of('mixers')
  assert row['exponent'] == pytest.approx(math.log2(row['ms_128'] / row['ms_64']))


def test_medians_take_turns_after_a_warm_one():
  order = []
  calls = [functools.partial(order.append, name) for name in 'ab']
  assert len(timing.medians(calls, repeats=2)) == 2
  assert order == list('ababab')


def test_written_section_replaces_its_former_self_only(tmp_path):
  path = tmp_path / 'results' / 'bench.json'
  for name, value in (('memory', 1), ('nest', 2), ('memory', 3)):
    sections.write(path, name, [{'section': name, 'ms': value}], RECORD)
  result = json.loads(path.read_text())
  assert [(row['section'], row['ms']) for row in result['rows']] == [('nest', 2), ('memory', 3)]
  assert {'command', 'versions', 'hardware', 'commit'} <= set(result)
  assert set(result['sections']) == {'nest', 'memory'}


@pytest.mark.parametrize('module', ['bench', 'results'])
def test_help_does_not_wait_for_jax(module):
  code = f"import sys, experiments.{module}; print('jax' in sys.modules, 'nlx' in sys.modules)"
  command = [sys.executable, '-c', code]
  result = subprocess.run(command, cwd=provenance.ROOT, capture_output=True, text=True)
  assert result.stdout.split() == ['False', 'False']


def test_unknown_section_is_an_error():
  command = [sys.executable, '-m', 'experiments.bench', '--only=nests']
  result = subprocess.run(command, cwd=provenance.ROOT, capture_output=True, text=True)
  assert result.returncode != 0
  assert '--only takes some of nest, memory, layer, models' in result.stdout + result.stderr
