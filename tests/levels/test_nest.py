import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlx import levels
from tests.compiling import quick_jit, temp_bytes
from tests.levels import reference

CHUNK, WIDTH = 2, 3


class Case(NamedTuple):
  """Periods in ticks of levels under chunks of 2 ticks, and how the chunks are run."""

  periods: tuple[int, ...]
  length: int  # chunks
  start: int = 0  # chunks seen before
  meta: str = 'full'
  remat: bool = True
  truncate: int | None = None


SMALL = Case((2,), length=5)
CASES = (
  Case((8,), length=7, start=1, meta='first'),
  Case((2, 4), length=9, start=3, remat=False),
  Case((4, 8), length=6, start=1, meta='detached'),
  Case((4, 4, 12), length=13, start=4, meta='first', remat=False),
  Case((2, 4, 8, 16), length=19, start=6, truncate=2),
)


def cell(slow, fast, carry, x):
  """A recurrent network whose weights are the sum of those of all levels."""
  hidden = jnp.tanh(carry[None] + x @ sum(fast, slow['w']))
  loss = jnp.sum((hidden - slow['target'][None]) ** 2)
  return loss, jnp.asarray(2.0), 0.5 * hidden.mean(0), hidden


def make_levels(periods):
  """Stateful and different optimizers."""
  rates = (0.05 * (i + 1) for i in range(len(periods)))
  return tuple(
    levels.from_optax(optax.sgd(rate, momentum=0.5), period)
    for rate, period in zip(rates, periods, strict=True)
  )


def problem(num_levels, length):
  """Slow weights, initial fast weights of each level, the cell's carry and the chunks."""
  random = np.random.default_rng(num_levels)
  fast = tuple(0.1 * random.normal(size=(num_levels, WIDTH, WIDTH)))
  slow = {'w': random.normal(size=(WIDTH, WIDTH)), 'target': np.ones(WIDTH)}
  return slow, fast, np.zeros(WIDTH), random.normal(size=(length, CHUNK, WIDTH))


def init_states(system, fast, start=0):
  """States that have gathered nothing but count the ticks of `start` chunks."""
  states = (level.init(weights) for level, weights in zip(system, fast, strict=True))
  return tuple(
    state._replace(count=jnp.asarray(CHUNK * start % level.period, jnp.int32))
    for level, state in zip(system, states, strict=True)
  )


@functools.cache
def run_with_gradients(case, make):
  """The result of a sequence, and the gradients of a loss of it for all arguments."""
  system = make_levels(case.periods)
  options = {'chunk': CHUNK, 'meta': case.meta, 'truncate': case.truncate}
  if make is levels.nest:
    options['remat'] = case.remat
  run = make(system, cell, **options)

  def loss(slow, fast, carry, xs):
    result = run(slow, init_states(system, fast, case.start), carry, xs, case.start)
    return jnp.sum(result.loss**2) + jnp.sum(result.carry), result

  args = problem(len(case.periods), case.length)
  gradients, result = quick_jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))(*args)
  return result, gradients


def assert_close(got, expected, rtol=1e-10):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol), got, expected)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('case', CASES, ids=str)
def test_nest_has_the_results_of_a_flat_loop(case):
  got, expected = (run_with_gradients(case, make)[0] for make in (levels.nest, reference.flat))
  assert_close(got._replace(states=()), expected._replace(states=()))


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('case', CASES, ids=str)
def test_nest_leaves_the_states_of_a_flat_loop(case):
  got, expected = (run_with_gradients(case, make)[0] for make in (levels.nest, reference.flat))
  assert_close(got.states, expected.states)
  seen = CHUNK * (case.start + case.length)
  assert [int(state.count) for state in got.states] == [seen % p for p in case.periods]


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('case', CASES, ids=str)
def test_nest_has_the_meta_gradients_of_a_flat_loop(case):
  got, expected = (run_with_gradients(case, make)[1] for make in (levels.nest, reference.flat))
  assert_close(got, expected)


@pytest.mark.usefixtures('float64')
def test_nest_in_full_differs_from_first_order():
  full, first = (
    run_with_gradients(SMALL._replace(meta=meta), levels.nest)[1][0]['w']
    for meta in ('full', 'first')
  )
  assert np.abs(full - first).max() > 1e-3


@pytest.mark.usefixtures('float64')
def test_nest_truncated_at_every_update_is_detached():
  truncated = run_with_gradients(SMALL._replace(truncate=1), levels.nest)[1]
  assert_close(truncated, run_with_gradients(SMALL._replace(meta='detached'), levels.nest)[1])


@pytest.mark.usefixtures('float64')
def test_nest_detached_sends_no_gradient_to_initial_weights_after_an_update():
  def forgetful_cell(slow, fast, carry, x):  # the carry is no other way from early to late
    loss, count, _, outputs = cell(slow, fast, carry, x)
    return loss, count, carry, outputs

  system = make_levels((2, 4))
  slow, fast, carry, xs = problem(2, 4)
  run = levels.nest(system, forgetful_cell, meta='detached')

  def late_loss(fast):
    return jnp.sum(run(slow, init_states(system, fast), carry, xs).outputs[2:])

  jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), quick_jit(jax.grad(late_loss))(fast))


@pytest.mark.usefixtures('float64')
def test_nest_takes_losses_before_their_update():
  system = make_levels((2,))

  @quick_jit
  def losses(slow, fast, carry, xs):
    result = levels.nest(system, cell)(slow, init_states(system, fast), carry, xs)
    return result.loss[0], cell(slow, fast, carry, xs[0])[0]

  assert_close(*losses(*problem(1, 1)))


@pytest.mark.usefixtures('float64')
def test_nest_without_levels_is_a_scan_of_the_cell():
  def body(slow, carry, x):
    loss, _, carry, outputs = cell(slow, (), carry, x)
    return carry, (loss, outputs)

  @quick_jit
  def both(slow, carry, xs):
    result = levels.nest((), cell)(slow, (), carry, xs)
    expected = jax.lax.scan(functools.partial(body, slow), carry, xs)
    return (result.carry, (result.loss, result.outputs)), expected

  slow, _, carry, xs = problem(1, 6)
  assert_close(*both(slow, carry, xs))


@pytest.mark.usefixtures('float64')
def test_gradient_step_gives_each_level_its_own_gradient():
  system = make_levels((2, 4, 8))

  @quick_jit
  def both(slow, fast, carry, xs):
    _, signals = levels.gradient_step(cell, system, slow, init_states(system, fast), carry, xs[0])

    def alone(i):
      loss = lambda w: cell(slow, (*fast[:i], w, *fast[i + 1 :]), carry, xs[0])[0]  # noqa: E731
      return levels.Weighted(jax.grad(loss)(fast[i]), 2.0)

    return signals, tuple(map(alone, range(3)))

  assert_close(*both(*problem(3, 1)))


def make_recorder(period, size=32):
  """A level that writes down the signals of every update, in order, and how many updates it had."""

  def append(log, signals):
    return jnp.concatenate([log, signals])[-size:]

  inner = levels.Level(
    init=lambda _: (jnp.full(size, -1.0), jnp.zeros((), jnp.int32)),
    update=lambda held, window: (append(held[0], window), held[1] + 1),
    read=lambda held: 0.0 * held[0][0],
  )
  gather = levels.Gather(
    start=lambda level, held: jnp.full(period, -1.0),
    add=lambda window, held, signal: jnp.append(window, signal.total)[1:],
    result=lambda window, weights: window,
  )
  return levels.periodic(inner, period, gather)


def token_cell(slow, fast, carry, x):
  """A loss whose gradient for every level is the token itself."""
  del slow
  return sum(fast) * x, 1.0, carry, x


@pytest.mark.parametrize('cuts', [(), (1, 2), (3, 8, 9), (16,), (5, 21)])
def test_nest_over_split_calls_gives_each_level_its_tokens_in_order(cuts):
  periods, length = (1, 4, 8), 22
  system = [make_recorder(period) for period in periods]
  run = quick_jit(levels.nest(system, token_cell), static_argnums=4)
  states, tokens = tuple(level.init(None) for level in system), np.arange(float(length))
  for begin, end in zip((0, *cuts), (*cuts, length), strict=True):
    states = run((), states, (), tokens[begin:end], begin).states
  for period, state in zip(periods, states, strict=True):
    log, updates = state.held
    consumed = length // period * period
    assert int(updates) == length // period
    np.testing.assert_array_equal(log[32 - consumed :], tokens[:consumed])
    np.testing.assert_array_equal(log[: 32 - consumed], -1)


@pytest.mark.usefixtures('float64')
def test_nest_over_two_calls_equals_one():
  system, cut = make_levels((2, 8)), 3
  slow, fast, carry, xs = problem(2, 9)
  run = quick_jit(levels.nest(system, cell), static_argnums=4)
  expected = run(slow, init_states(system, fast), carry, xs, 0)
  first = run(slow, init_states(system, fast), carry, xs[:cut], 0)
  second = run(slow, first.states, first.carry, xs[cut:], cut)
  joined = jax.tree.map(lambda *x: np.concatenate(x), first.outputs, second.outputs)
  assert_close((joined, *second[2:4]), (expected.outputs, *expected[2:4]))


@pytest.mark.usefixtures('float64')
def test_nest_keeps_the_sequences_of_a_batch_apart():
  def batched_cell(slow, fast, carry, x):
    loss, _, carry, outputs = jax.vmap(cell, (None, 0, 0, 0))(slow, fast, carry, x)
    return loss, jnp.full(x.shape[0], 2.0), carry, outputs

  sgd = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.5))
  slow, fast, carry, xs = problem(1, 6)
  batch_level, level = levels.from_optax(sgd, 4, batch_axis=0), levels.from_optax(sgd, 4)
  other = np.random.default_rng(9).normal(size=xs.shape)

  @quick_jit
  def both():
    together = levels.nest([batch_level], batched_cell, chunk=CHUNK)(
      slow,
      (batch_level.init(np.stack([fast[0]] * 2)),),
      np.stack([carry] * 2),
      np.stack([xs, 10 * other], axis=1),
    )
    alone = levels.nest([level], cell, chunk=CHUNK)(slow, (level.init(fast[0]),), carry, xs)
    return together, alone

  together, alone = both()
  assert_close(together.outputs[:, 0], alone.outputs)
  assert_close(together.states[0].held.params[0], alone.states[0].held.params)


def test_nest_needs_less_memory_than_the_flat_loop():
  width, system = 64, make_levels((2, 32, 256))

  def wide_cell(slow, fast, carry, x):
    hidden = jnp.tanh(jnp.tanh(x @ sum(fast)) @ sum(fast))
    return jnp.sum((hidden - slow[None]) ** 2), jnp.asarray(2.0), carry, ()

  def memory(run):
    def loss(slow, fast, xs):
      return jnp.sum(run(slow, init_states(system, fast), (), xs).loss)

    shapes = (jnp.zeros(width), (jnp.zeros((width, width)),) * 3, jnp.zeros((512, CHUNK, width)))
    return temp_bytes(jax.grad(loss, (0, 1)), *shapes)

  flat = memory(reference.flat(system, wide_cell, chunk=CHUNK))
  assert memory(levels.nest(system, wide_cell)) < flat / 10


def test_nest_names_periods_that_do_not_divide():
  message = r'`levels\[1\]\.period` must be a multiple of `levels\[0\]\.period`, got 6 and 4\.'
  with pytest.raises(ValueError, match=message):
    levels.nest(make_levels((4, 6)), cell)


def test_nest_names_a_chunk_that_does_not_divide():
  with pytest.raises(ValueError, match=r'`levels\[0\]\.period` must be a multiple of `chunk`'):
    levels.nest(make_levels((4,)), cell, chunk=3)


def test_nest_names_an_unknown_meta_gradient():
  with pytest.raises(ValueError, match=r"`meta` must be one of .*'detached'.*, got 'none'\."):
    levels.nest(make_levels((4,)), cell, meta='none')


def test_nest_names_a_wrong_truncation():
  with pytest.raises(ValueError, match='`truncate` must be an integer of at least 1 update, got 0'):
    levels.nest(make_levels((4,)), cell, truncate=0)
