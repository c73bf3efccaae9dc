"""Plans ahead of time: operations, the text of compiled programs, memory and the roofline."""

import functools
import importlib.util
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from nlx import models, parallel
from nlx.parallel.plan import assigned_bytes, refused_bytes
from nlx.parallel.program import arrays, parse
from nlx.parallel.work import Collective, largest, work

HAS_LIBTPU = importlib.util.find_spec('libtpu') is not None
needs_libtpu = pytest.mark.skipif(not HAS_LIBTPU, reason='libtpu is missing: make test-tpu has it')
CHIP = parallel.Chip('toy', memory=1e6, flops=1e6, bandwidth=1e5, interconnect=1e4)


def flops(function, *args):
  return parallel.count_flops(jax.make_jaxpr(function)(*args))


def test_flops_are_those_of_a_transformer_counted_by_hand():
  """Forward, every matrix once per token and two products of attention; backward, twice that."""
  batch, length, dim, layers, vocab = 2, 16, 32, 3, 64
  config = models.transformer(
    vocab_size=vocab, model_dim=dim, num_layers=layers, num_heads=4, mlp_hidden=48, remat='none'
  )
  graph, params = nnx.split(
    nnx.eval_shape(lambda: models.create(config, rngs=nnx.Rngs(0))), nnx.Param
  )
  params = nnx.as_pure(params)
  tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
  mask = jax.ShapeDtypeStruct((batch, length), jnp.float32)
  loss = lambda *args: nnx.merge(graph, args[0]).loss(*args[1:])[0]  # noqa: E731
  matrices = dim * vocab + layers * (4 * dim * dim + 3 * dim * 48)
  forward = 2 * batch * length * matrices + layers * 4 * batch * length * length * dim
  assert flops(loss, params, tokens, tokens, mask) == forward
  assert flops(jax.grad(loss), params, tokens, tokens, mask) == 3 * forward


def test_flops_of_fused_attention_are_those_of_its_products(monkeypatch):
  monkeypatch.setattr(
    'jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version', lambda: 91_100
  )
  batch, length, heads, width = shape = 2, 16, 4, 64
  x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)

  def loss(queries, keys, values, implementation):
    out = jax.nn.dot_product_attention(queries, keys, values, implementation=implementation)
    return out.astype(jnp.float32).sum()

  fused, plain = (functools.partial(loss, implementation=kind) for kind in ('cudnn', 'xla'))
  product = 2 * batch * heads * width * length**2
  assert flops(fused, x, x, x) == flops(plain, x, x, x) == 2 * product
  backward = lambda f: flops(jax.grad(f, argnums=(0, 1, 2)), x, x, x)  # noqa: E731
  assert backward(fused) == (2 + 5) * product  # Scores are computed anew.


@pytest.mark.parametrize(
  ('function', 'products'),
  [
    (lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, length=7)[0], 7),
    (lambda x: jax.lax.fori_loop(0, 5, lambda _, x: x @ x, x), 5),
    (lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x, x), 2),
    (jax.value_and_grad(lambda x: jax.checkpoint(lambda x: jnp.sin(x @ x))(x).sum()), 1 + 1 + 2),
    (jax.jit(lambda x: jnp.einsum('ij,kj->ik', x, x) + 1), 1),
    (lambda x: jax.lax.scan(lambda x, _: (jnp.sin(x), x @ x), x, length=7)[0], 0),
    (lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x + 1, x), 0),
  ],
)
def test_flops_count_whatever_runs(function, products):
  assert flops(function, jnp.ones((4, 4))) == products * 2 * 4**3


def test_flops_of_an_unknown_number_of_turns_are_an_error():
  loop = lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ x, x)  # noqa: E731
  with pytest.raises(ValueError, match='in a loop of unknown length'):
    flops(loop, jnp.ones((4, 4)))


# As XLA writes a program for TPUs: a loop of 3 turns with an asynchronous all-gather, which is
# written three times, and a reduce-scatter that is written as an all-reduce.
TEXT = """HloModule jit_f, is_scheduled=true

FileNames
1 "somewhere/model.py"

FunctionNames
1 "Model.read"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=2 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}


%slices (p0: f32[3,8,4], p1: s32[], p2: f32[3,4]) -> f32[3,4] {
  %p0 = f32[3,8,4]{2,1,0:T(8,128)} parameter(0)
  %p2 = f32[3,4]{1,0} parameter(2)
  %p1 = s32[] parameter(1)
  %ds = f32[1,8,4]{2,1,0} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,8,4}
  %row = f32[1,4]{1,0} reduce(%ds, %p1), dimensions={1}, to_apply=%add
  ROOT %dus = f32[3,4]{1,0} dynamic-update-slice(%p2, %row, %p1)
}

%begins (q0: f32[4]) -> (f32[4], f32[8]) {
  %q0 = f32[4]{0} parameter(0)
  ROOT %ag.1 = f32[8]{0} all-gather(%q0), channel_id=5, replica_groups={{0,1},{2,3}}
}

%goes_on (r0: f32[4]) -> f32[8] {
  %r0 = f32[4]{0} parameter(0)
  ROOT %ag.2 = f32[8]{0} all-gather(%r0), channel_id=5, replica_groups={{0,1},{2,3}}
}

%all-reduce-scatter.1 (s0: f32[8]) -> f32[4] {
  %s0 = f32[8]{0} parameter(0)
  %ar = f32[8]{0} all-reduce(%s0), channel_id=6, replica_groups=[2,2]<=[4], to_apply=%add
  ROOT %half = f32[4]{0} slice(%ar), slice={[0:4]}
}

%body (b: (s32[], f32[3,8,4], f32[3,4], f32[4])) -> (s32[], f32[3,8,4], f32[3,4], f32[4]) {
  %b = (s32[], f32[3,8,4]{2,1,0}, f32[3,4]{1,0}, f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %xs = f32[3,8,4]{2,1,0:T(8,128)} get-tuple-element(%b), index=1
  %ys = f32[3,4]{1,0} get-tuple-element(%b), index=2
  %x = f32[4]{0} get-tuple-element(%b), index=3
  %out = f32[3,4]{1,0} fusion(%xs, %i, %ys), kind=kLoop, calls=%slices, metadata={stack_frame_id=1}
  %start = f32[8]{0:S(1)} fusion(%x), kind=kCustom, calls=%begins
  %done = f32[8]{0:S(1)} fusion(%x), kind=kCustom, calls=%goes_on
  %rs = f32[4]{0} fusion(%done), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %t = (s32[], f32[3,8,4]{2,1,0}, f32[3,4]{1,0}, f32[4]{0}) tuple(%i, %xs, %out, %rs)
}

%condition (c: (s32[], f32[3,8,4], f32[3,4], f32[4])) -> pred[] {
  %c = (s32[], f32[3,8,4]{2,1,0}, f32[3,4]{1,0}, f32[4]{0}) parameter(0)
  %three = s32[]{:T(128)} constant(3)
  %j = s32[] get-tuple-element(%c), index=0
  ROOT %lt = pred[] compare(%j, %three), direction=LT
}

ENTRY %main (a0: (s32[], f32[3,8,4], f32[3,4], f32[4])) -> f32[4] {
  %a0 = (s32[], f32[3,8,4]{2,1,0}, f32[3,4]{1,0}, f32[4]{0}) parameter(0)
  %loop = (s32[], f32[3,8,4]{2,1,0}, f32[3,4]{1,0}, f32[4]{0}) while(%a0), condition=%condition, \
body=%body
  %last = f32[4]{0} get-tuple-element(%loop), index=3
  ROOT %all = f32[4]{0} all-reduce(%last), channel_id=7, \
replica_groups=mesh['x'=2,'y'=2,'z'=1] {'x','y'}, to_apply=%add
}
"""


def test_collectives_count_once_for_each_turn():
  """With what a device of 2, or in the end of 4, sends on a ring."""
  assert work(parse(TEXT)).collectives == {
    'all-gather': Collective(3, 3 * 16),
    'all-reduce': Collective(1, 2 * 3 / 4 * 16),
    'reduce-scatter': Collective(3, 3 / 2 * 32),
  }


def test_groups_along_axes_may_name_the_order_of_the_devices():
  ordered = TEXT.replace("] {'x','y'}", "], device_ids=([2,4]T(1,0)) {'x','y'}")
  assert ordered != TEXT
  assert work(parse(ordered)).collectives == work(parse(TEXT)).collectives


def test_permutation_has_no_groups_and_sends_all():
  permuted = TEXT.replace('all-reduce(%last)', 'collective-permute(%last)')
  permuted = permuted.replace(
    "replica_groups=mesh['x'=2,'y'=2,'z'=1] {'x','y'}, to_apply=%add",
    'source_target_pairs={{0,1},{1,0}}',
  )
  assert work(parse(permuted)).collectives['collective-permute'] == Collective(1, 16)


def test_groups_that_cannot_be_read_are_an_error():
  with pytest.raises(ValueError, match='groups of a collective cannot be read: .*somehow'):
    work(parse(TEXT.replace("mesh['x'=2,'y'=2,'z'=1] {'x','y'}", 'somehow')))


def test_traffic_is_what_passes_the_main_memory():
  """A slice is read and an update is written; what stays in a smaller memory is not counted."""
  fusion = 8 * 4 * 4 + 4 + 4 * 4  # The slice, the counter, and the row.
  turn = fusion + 16 + 16 + 16  # Two readings of x, and the result of the reduce-scatter.
  assert work(parse(TEXT)).traffic == 3 * turn + 16 + 16


def test_largest_arrays_are_named_by_their_functions():
  first, second = largest(parse(TEXT), 2)
  assert first[:3] == ('f32[3,8,4]', 384, 1)
  assert second == ('f32[3,4]', 48, 2, 'Model.read (model.py:7)')


def test_loops_of_unknown_length_are_counted():
  assert work(parse(TEXT)).unknown_loops == 0
  assert work(parse(TEXT.replace('direction=LT', 'direction=NE'))).unknown_loops == 1


def test_branches_of_a_condition_count():
  choose = lambda x: jax.lax.cond(x[0] > 0, jnp.sin, lambda x: jnp.sort(x)[::-1], x)  # noqa: E731
  pick = lambda x: jax.lax.switch(x[0].astype(int), [jnp.sin, jnp.cos, jnp.sort], x)  # noqa: E731
  for function, branches in ((choose, 2), (pick, 3)):
    text = jax.jit(function).lower(jnp.ones(1024)).compile().as_text()
    assert work(parse(text)).traffic >= branches * 2 * 4096


def test_arrays_know_their_size_and_memory():
  found = arrays('(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, s32[], /*index=2*/pred[5]{0}, token[])')
  assert found == [
    ('bf16[2,3]', 12, False),
    ('s32[]', 4, True),
    ('pred[5]', 5, True),
    ('token[]', 0, True),
  ]


def test_text_without_entry_is_an_error():
  with pytest.raises(ValueError, match='has no ENTRY'):
    parse('HloModule jit_f')


@pytest.mark.parametrize(
  ('message', 'expected'),
  [
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries '
      '(26.39G) exceeds available HBM (15.75G).',
      26.39 * 2**30,
    ),
    ('Ran out of memory in memory space hbm. Used 840.50M of 15.75G hbm.', 840.5 * 2**20),
  ],
)
def test_a_refusal_tells_how_much_is_needed(message, expected):
  assert refused_bytes(message) == expected


def test_a_refusal_without_numbers_is_an_error():
  with pytest.raises(ValueError, match='must tell how much memory is needed'):
    refused_bytes('INTERNAL: it broke')


def test_report_of_memories_tells_what_the_main_one_holds():
  report = 'Memory Space: vmem (color=1)\nTotal bytes: 5\n\nMemory Space: default (color=0)\n'
  assert assigned_bytes(report + 'Total bytes: 4711 (4.6KiB)\n  cumulative_size') == 4711
  with pytest.raises(ValueError, match='must tell of the default memory'):
    assigned_bytes('Memory Space: vmem (color=1)\nTotal bytes: 5\n')


def step(x, w):
  """Over a mesh of 2 x 2: a product and a sum over all devices, four times."""

  def one(x, _):
    return jnp.sin(x @ w), None

  def sums(x, w):
    del w
    return jax.lax.psum(jax.lax.scan(one, x, length=4)[0], ('data', 'fsdp'))

  specs = {'in_specs': (P(('data', 'fsdp')), P()), 'out_specs': P()}
  return jax.shard_map(sums, **specs, check_vma=False)(x, w)


def arguments(mesh, rows=8):
  def shape(shape, *spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))

  return shape((rows, 16), ('data', 'fsdp')), shape((16, 16))


@pytest.fixture(scope='module')
def found():
  """The plan of a step on four devices."""
  mesh = parallel.make_mesh(data=2, fsdp=2, devices=jax.devices()[:4])
  with jax.set_mesh(mesh):
    return parallel.plan(jax.jit(step), *arguments(mesh), chip=CHIP)


def test_plan_knows_what_a_step_does(found):
  assert found.num_devices == 4
  assert found.flops == 4 * 2 * 8 * 16 * 16
  assert found.work.collectives == {'all-reduce': Collective(1, 2 * 3 / 4 * 2 * 16 * 4)}
  assert found.parts['arguments'] == 2 * 16 * 4 + 16 * 16 * 4
  assert found.memory == sum(found.parts.values())


def test_plan_has_the_roofline_of_the_chip(found):
  assert found.least_seconds == {
    'compute': found.flops / 4 / 1e6,
    'memory': found.work.traffic / 1e5,
    'interconnect': 192 / 1e4,
  }
  assert found.bound == max(found.least_seconds, key=found.least_seconds.get)
  assert f'{found.bound} sets the bound' in str(found)


def test_plan_of_an_unknown_chip_knows_no_times(found):
  unknown = found._replace(chip=parallel.Chip('cpu'))
  assert unknown.fits and unknown.margin is None and unknown.bound is None
  assert 'how much there is is unknown' in str(unknown)


def test_plan_that_fits_says_what_it_leaves(found):
  assert found.fits and found.margin == 1e6 - found.memory
  assert 'Memory fits: ' in str(found) and 'The largest arrays' not in str(found)
  assert '1.12 KiB  arguments' in str(found)
  large = found._replace(memory=3 * 2**30, chip=CHIP._replace(memory=4 * 2**30))
  assert '3.00 GiB per device of 4.00 GiB, 1.00 GiB (25%) to spare' in str(large)


def test_plan_that_does_not_fit_names_the_largest_arrays(found):
  small = found._replace(chip=CHIP._replace(memory=1000))
  assert not small.fits and small.margin < 0
  assert 'does not fit: ' in str(small) and 'too much' in str(small)
  assert 'f32[16,16]' in str(small)


def test_slice_of_an_unknown_chip_is_an_error():
  with pytest.raises(ValueError, match='`topology` must begin with one of v4, v5e, v5p, v6e'):
    parallel.tpu_slice('v9:2x2')


@pytest.mark.skipif(HAS_LIBTPU, reason='libtpu is here')
def test_slice_without_libtpu_is_an_error():
  with pytest.raises(ModuleNotFoundError, match='a TPU slice needs libtpu'):
    parallel.tpu_slice('v5e:2x2')


@needs_libtpu
@pytest.mark.tpu_compiler
@pytest.mark.parametrize('topology', ['v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'])
def test_compiler_of_tpus_takes_a_step_or_says_what_it_needs(topology):
  chip, devices = parallel.tpu_slice(topology)
  mesh = parallel.make_mesh(data=2, fsdp=2, devices=devices)
  with jax.set_mesh(mesh):
    small = parallel.plan(jax.jit(step), *arguments(mesh), chip=chip)
    rows = math.ceil(4 * chip.memory / 16 / 4)
    large = parallel.plan(jax.jit(step), *arguments(mesh, rows - rows % 4), chip=chip)
  assert small.fits and small.work.collectives['all-reduce'].times == 1
  assert small.parts['arguments'] >= 2 * 16 * 4 + 16 * 16 * 4  # Padded.
  assert 0 <= small.parts['temporaries'] < 1e6 and small.parts['code'] > 0
  assert not large.fits and large.work is None and large.memory > chip.memory
  assert large.largest and 'does not fit' in str(large)


@needs_libtpu
@pytest.mark.tpu_compiler
@pytest.mark.parametrize('topology', ['v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'])
def test_memory_of_a_chip_is_what_the_compiler_leaves(topology):
  chip, devices = parallel.tpu_slice(topology)
  mesh = parallel.make_mesh(data=2, fsdp=2, devices=devices)
  with jax.set_mesh(mesh):
    lowered = jax.jit(step).lower(*arguments(mesh, 2**36))
  with pytest.raises(jax.errors.JaxRuntimeError) as refused:
    lowered.compile()
  available = re.search(r'available HBM \(([\d.]+)G\)', str(refused.value))
  assert float(available[1]) == pytest.approx(chip.memory / 2**30, abs=0.02)


@needs_libtpu
@pytest.mark.tpu_compiler
def test_slice_that_is_none_is_an_error():
  with pytest.raises(ValueError, match="`topology` 'v5e:3x5' is no slice of v5e"):
    parallel.tpu_slice('v5e:3x5')


@needs_libtpu
@pytest.mark.tpu_compiler
@pytest.mark.parametrize('topology', ['v5e:16x16', 'v5p:8x8x8', 'v6e:16x16'])
def test_meshes_of_any_sizes_lie_on_a_slice(topology):
  _, devices = parallel.tpu_slice(topology)
  for model in (2, 4, 8):
    mesh = parallel.make_mesh(data=1, fsdp=-1, model=model, devices=devices)
    assert mesh.size == len(devices) and mesh.shape['model'] == model


def test_what_has_no_sharding_lies_where_the_rest_does():
  step = jax.jit(lambda x, batch: x * batch['tokens'])
  placed, plain = jnp.ones(3), np.ones(3, np.float32)
  for x in (placed, plain):
    assert parallel.plan(step, x, {'tokens': plain}, chip=CHIP).num_devices == 1
