import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlx import evaluation
from tests.compiling import quick_jit

KEY = jax.random.key(0)
add = quick_jit(functools.partial(evaluation.replay_add, key=KEY))
draw = quick_jit(evaluation.replay_draw, static_argnums=1)


@functools.cache
def filled(capacity=3, num_groups=2, num_items=20):
  """A buffer of numbers that was offered all of them at once; odd ones are of group 1."""
  items = jnp.arange(1, 1 + num_items)
  empty = evaluation.replay_init(items[0], capacity, num_groups)
  return add(empty, items, items % num_groups)


def test_replay_keeps_as_many_of_each_group_as_fit():
  buffer = filled()
  assert buffer.items.shape == (2, 3)
  assert buffer.seen.tolist() == [10, 10]
  for group, items in enumerate(buffer.items.tolist()):
    assert len(set(items)) == 3
    assert all(item % 2 == group and 1 <= item <= 20 for item in items)


def test_replay_keeps_everything_that_fits_in_its_order():
  buffer = filled(capacity=12)
  assert buffer.items[0].tolist() == [*range(2, 21, 2), 0, 0]


def test_replay_in_pieces_is_replay_at_once():
  items, buffer = np.arange(1, 21), evaluation.replay_init(jnp.zeros((), jnp.int32), 3, 2)
  for piece in np.split(items, 4):
    buffer = add(buffer, piece, piece % 2)
  jax.tree.map(np.testing.assert_array_equal, buffer, filled())


def test_replay_keeps_every_item_equally_often():
  """Each of 10 items is one of 4 in two cases of five; over 2,000 keys that is 800, sd 22."""
  items = jnp.arange(10)
  empty = evaluation.replay_init(items[0], 4)
  kept = quick_jit(jax.vmap(lambda key: evaluation.replay_add(empty, items, key=key).items))
  counts = np.bincount(np.ravel(kept(jax.random.split(KEY, 2000))), minlength=10)
  assert counts.sum() == 8000
  assert np.abs(counts - 800).max() < 5 * 22


def test_replay_leaves_out_items_of_no_group():
  empty = evaluation.replay_init(jnp.zeros(()), 2, 2)
  buffer = add(empty, np.ones(3), np.array([-1, 0, 2]))
  assert buffer.items.tolist() == [[1, 0], [0, 0]]
  assert buffer.seen.tolist() == [1, 0]


def test_replay_keeps_what_belongs_together():
  items = {'input': np.arange(12.0, dtype='f').reshape(6, 2), 'label': np.arange(6)}
  empty = evaluation.replay_init(jax.tree.map(lambda x: x[0], items), 3)
  buffer = add(empty, items)
  for kept in (jax.tree.map(lambda x: x[0], buffer.items), draw(buffer, 4, key=KEY)[0]):
    np.testing.assert_array_equal(np.array(kept['input'])[:, 0], 2 * np.array(kept['label']))


def test_replay_draws_what_is_held_and_nothing_else_equally_often():
  empty = evaluation.replay_init(jnp.zeros((), jnp.int32), 4, 2)
  held = add(empty, np.array([5, 6, 7]), np.array([0, 1, 1]))
  drawn, weights = draw(held, 3000, key=KEY)
  values, counts = np.unique(drawn, return_counts=True)
  assert values.tolist() == [5, 6, 7]
  assert np.abs(counts - 1000).max() < 5 * 26
  assert weights.tolist() == [1.0] * 3000


def test_replay_draws_depend_on_nothing_but_buffer_and_key():
  keys = (KEY, KEY, jax.random.key(1))
  first, again, other = (draw(filled(), 8, key=key)[0].tolist() for key in keys)
  assert first == again != other


def test_replay_from_an_empty_buffer_weighs_nothing():
  empty = evaluation.replay_init(jnp.zeros(2), 3)
  drawn, weights = draw(empty, 4, key=KEY)
  assert drawn.shape == (4, 2)
  assert weights.tolist() == [0, 0, 0, 0]


def test_replay_says_what_is_wrong_with_groups():
  buffer = evaluation.replay_init(jnp.zeros(()), 3, 2)
  with pytest.raises(ValueError, match='`groups` must say which of the 2 groups each item is of'):
    evaluation.replay_add(buffer, jnp.ones(4), key=KEY)
  with pytest.raises(ValueError, match=r'`groups` must be \[N\] = \(4,\) like `items`'):
    evaluation.replay_add(buffer, jnp.ones(4), jnp.zeros(3, jnp.int32), key=KEY)


def test_replay_says_which_numbers_it_needs():
  with pytest.raises(ValueError, match='`capacity` must be an integer of at least 1 item'):
    evaluation.replay_init(jnp.zeros(()), 0)
  with pytest.raises(ValueError, match='`num_groups` must be an integer of at least 1 group'):
    evaluation.replay_init(jnp.zeros(()), 1, 0)
  with pytest.raises(ValueError, match='`num_items` must be an integer of at least 1 item'):
    evaluation.replay_draw(filled(), 0, key=KEY)
