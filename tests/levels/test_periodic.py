import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx import levels

ADD = levels.Level(init=jnp.asarray, update=jnp.add)
SIGNALS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


def reads(level, signals, init=0.0):
  """What a level is read as after each signal."""
  state, seen = level.init(init), []
  for signal in signals:
    state = level.update(state, signal)
    seen.append(float(level.read(state)))
  return seen


def test_periodic_updates_at_the_end_of_each_period_and_holds_between():
  assert reads(levels.periodic(ADD, 3), SIGNALS) == [0, 0, 7, 7, 7, 63, 63]


def test_periodic_of_period_one_is_the_level_itself():
  assert reads(levels.periodic(ADD, 1), SIGNALS) == [1, 3, 7, 15, 31, 63, 127]


def test_periodic_counts_ticks_since_the_last_update():
  level, counts = levels.periodic(ADD, 3), []
  state = level.init(0.0)
  for signal in SIGNALS:
    state = level.update(state, signal)
    counts.append(int(state.count))
  assert counts == [1, 2, 0, 1, 2, 0, 1]


def test_periodic_carries_a_partial_period_as_gathered():
  level = levels.periodic(ADD, 4)
  state = level.init(0.0)
  for signal in SIGNALS:
    state = level.update(state, signal)
  assert (float(level.read(state)), float(state.gathered)) == (15, 112)


def test_periodic_takes_signals_that_are_worth_several_ticks():
  level = levels.periodic(ADD, 6)
  state = level.update(level.init(0.0), 5.0, 4)
  assert (float(level.read(state)), int(state.count)) == (0, 4)
  assert float(level.read(level.update(state, 2.0, 2))) == 7


def test_periodic_gather_changes_nothing_that_is_read():
  level = levels.periodic(ADD, 2)
  state = level.init(1.0)
  for signal in SIGNALS:
    state = level.gather(state, signal)
  assert float(level.read(state)) == 1


def test_periodic_flush_updates_and_starts_a_new_period():
  level = levels.periodic(ADD, 5)
  state = level.flush(level.gather(level.init(1.0), 2.0))
  assert (float(level.read(state)), float(state.gathered), int(state.count)) == (3, 0, 0)


def test_periodic_periods_nest():
  """A level of period 2 within one of period 3: updates every 6 ticks of the outermost loop."""
  inner = levels.periodic(ADD, 3)
  outer = levels.periodic(levels.Level(inner.init, inner.update, inner.read), 2)
  state, seen = outer.init(0.0), []
  for _ in range(13):
    state = outer.update(state, jnp.asarray(1.0))
    seen.append(float(outer.read(state)))
  assert seen == [0] * 5 + [6] * 6 + [12] * 2


@pytest.mark.parametrize('gather', [levels.total, levels.mean()], ids=['total', 'mean'])
def test_periodic_state_keeps_structure_shapes_and_dtypes(gather):
  level = levels.periodic(levels.Level(jnp.asarray, jnp.add), 3, gather)
  state = level.init(jnp.zeros((2, 3), jnp.bfloat16))
  signal = jnp.ones((2, 3), jnp.bfloat16)
  signal = signal if gather is levels.total else levels.Weighted(signal, 2.0)
  for updated in (level.update(state, signal), level.gather(state, signal), level.flush(state)):
    assert jax.tree.map(jax.typeof, updated) == jax.tree.map(jax.typeof, state)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('gather', [levels.total, levels.mean()], ids=['total', 'mean'])
def test_periodic_keeps_dtypes_in_double_precision(gather):
  level = levels.periodic(ADD, 3, gather)
  state, signal, ticks = level.init(jnp.zeros(2)), jnp.ones(2), jnp.asarray(2)
  signal = signal if gather is levels.total else levels.Weighted(signal, jnp.asarray(2.0))
  updated = level.update(state, signal, ticks)
  assert jax.tree.map(jax.typeof, updated) == jax.tree.map(jax.typeof, state)


def test_periodic_runs_inside_a_scan():
  level = levels.periodic(ADD, 3)

  def body(state, signal):
    state = level.update(state, signal)
    return state, level.read(state)

  _, seen = jax.lax.scan(body, level.init(0.0), jnp.array(SIGNALS))
  np.testing.assert_array_equal(seen, reads(level, SIGNALS))


@pytest.mark.parametrize('period', [0, -4, 2.0, None])
def test_periodic_names_a_wrong_period(period):
  with pytest.raises(ValueError, match=rf'`period` must be .* at least 1 tick, got {period!r}\.'):
    levels.periodic(ADD, period)


def test_mean_divides_the_sum_of_sums_by_the_sum_of_weights():
  level = levels.periodic(ADD, 2, levels.mean())
  signals = [levels.Weighted(jnp.asarray(6.0), 3.0), levels.Weighted(jnp.asarray(2.0), 1.0)]
  assert reads(level, signals) == [0, 2]


def test_mean_divides_by_weights_below_one():
  level = levels.periodic(ADD, 1, levels.mean())
  assert reads(level, [levels.Weighted(jnp.asarray(0.5), 0.25)]) == [2]


def test_mean_of_nothing_is_zero():
  level = levels.periodic(ADD, 1, levels.mean())
  assert reads(level, [levels.Weighted(jnp.asarray(0.0), 0.0)], init=3.0) == [3]


@pytest.mark.parametrize('axis', [0, 1])
def test_mean_separates_the_sequences_of_a_batch(axis):
  level = levels.periodic(ADD, 2, levels.mean(axis))
  sums = jnp.array([[3.0, 6.0], [4.0, 8.0], [0.0, 0.0]])
  place = lambda x: jnp.moveaxis(x, 0, axis)  # noqa: E731
  state = level.init(jnp.zeros((3, 2)) if axis == 0 else jnp.zeros((2, 3)))
  state = level.update(state, levels.Weighted(place(sums), jnp.array([1.0, 1.0, 0.0])))
  state = level.update(state, levels.Weighted(place(sums), jnp.array([2.0, 3.0, 0.0])))
  np.testing.assert_allclose(level.read(state), place(jnp.array([[2, 4], [2, 4], [0, 0]])))


def test_mean_weighs_a_vector_of_scalars_one_by_one():
  level = levels.periodic(ADD, 1, levels.mean(0))
  signal = levels.Weighted(jnp.array([2.0, 9.0]), jnp.array([1.0, 3.0]))
  state = level.update(level.init(jnp.zeros(2)), signal)
  np.testing.assert_array_equal(level.read(state), [2, 3])


def test_fold_runs_a_recurrence_against_the_held_state():
  def add(live, held, signal):
    return 2 * live + held * signal

  level = levels.periodic(levels.Level(jnp.asarray, lambda held, live: live), 2, levels.fold(add))
  # From 1: 2 + 1 = 3, 6 + 2 = 8, held. From 8: 16 + 32 = 48, 96 + 64 = 160, held.
  assert reads(level, (1.0, 2.0, 4.0, 8.0), init=1.0) == [1, 8, 8, 160]


def test_fold_makes_the_live_state_readable_meanwhile():
  level = levels.periodic(
    levels.Level(jnp.asarray, lambda held, live: live), 4, levels.fold(lambda a, _, b: a + b)
  )
  state = level.update(level.update(level.init(0.0), 1.0), 2.0)
  assert (float(state.gathered), float(state.held)) == (3, 0)
