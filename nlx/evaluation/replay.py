"""A replay buffer: a uniform sample of what was seen, of each class or task or of everything."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from nlx import core

Items = Any


class ReplayState(NamedTuple):
  """What is kept of each of G groups."""

  items: Items  # tree of [G, capacity, ...]; the first min(seen, capacity) of a group are filled
  seen: jax.Array  # int32 [G]: items that were offered


def replay_init(like: Items, capacity: int, num_groups: int = 1) -> ReplayState:
  """An empty buffer.

  Args:
    like: One item: a tree of arrays, or of their shapes and dtypes.
    capacity: Items kept of each group.
    num_groups: Classes or tasks with places of their own; 1 makes one reservoir of all items.

  Returns:
    The buffer.

  Raises:
    ValueError: If a number is smaller than 1.
  """
  core.check_positive('capacity', capacity, 'item')
  core.check_positive('num_groups', num_groups, 'group')

  def places(x):
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)  # 64 bits of NumPy are 32 here, as everywhere.
    return jnp.zeros((num_groups, capacity, *x.shape), dtype)

  return ReplayState(jax.tree.map(places, like), jnp.zeros(num_groups, jnp.int32))


def replay_add(
  state: ReplayState, items: Items, groups: jax.Array | None = None, *, key: jax.Array
) -> ReplayState:
  """Offers items to the buffer, by reservoir sampling within each group.

  Of all items of a group that were ever offered, each is kept with the same probability. With the
  same key, items offered in pieces and all at once leave the same buffer.

  Args:
    state: The buffer.
    items: Tree of [N, ...], in order.
    groups: Integers [N], the group of each; None if the buffer has one. An item whose group is not
      in [0, G) is left out, as is needed of padding.
    key: Random key, the same whenever something is added to this buffer.

  Returns:
    The buffer that has seen them.

  Raises:
    ValueError: If `groups` is missing where the buffer has several, or has not one entry for each
      item.

  Example:
    >>> import jax, jax.numpy as jnp, nlx
    >>> buffer = nlx.evaluation.replay_init(jnp.zeros(()), capacity=2)
    >>> buffer = nlx.evaluation.replay_add(buffer, jnp.arange(1.0, 6.0), key=jax.random.key(0))
    >>> print(buffer.seen, buffer.items.shape)
    [5] (1, 2)

  References:
    Vitter, Random Sampling with a Reservoir, 1985, Algorithm R; Chaudhry et al., On Tiny Episodic
    Memories, arXiv 1902.10486.
  """
  num_groups, num_items = len(state.seen), len(jax.tree.leaves(items)[0])
  if groups is None:
    if num_groups > 1:
      raise ValueError(f'`groups` must say which of the {num_groups} groups each item is of.')
    groups = jnp.zeros(num_items, jnp.int32)
  if groups.shape != (num_items,):
    raise ValueError(f'`groups` must be [N] = ({num_items},) like `items`, got {groups.shape}.')
  capacity = jax.tree.leaves(state.items)[0].shape[1]
  chex.assert_trees_all_equal_shapes(
    jax.tree.map(lambda x: x[0, 0], state.items), jax.tree.map(lambda x: x[0], items)
  )
  belongs = jax.nn.one_hot(groups, num_groups, dtype=jnp.int32)  # [N, G]
  earlier = state.seen[None] + jnp.cumsum(belongs, axis=0) - belongs
  rank = jnp.sum(earlier * belongs, axis=1)  # [N]: items of the same group before this one

  def place(group, before):
    key_of_item = jax.random.fold_in(jax.random.fold_in(key, group), before)
    return jnp.where(before < capacity, before, jax.random.randint(key_of_item, (), 0, before + 1))

  places = jax.vmap(place)(groups, rank)
  # The last item that claims a place has it; a place at or beyond the capacity is none.
  kept = (places < capacity) & (groups >= 0) & (groups < num_groups)
  slots = jnp.where(kept, groups * capacity + places, num_groups * capacity)
  last = jnp.full(num_groups * capacity, -1).at[slots].max(jnp.arange(num_items), mode='drop')
  claimed = last.reshape(num_groups, capacity)

  def put(old, new):
    claims = claimed.reshape(claimed.shape + (1,) * (old.ndim - 2))
    return jnp.where(claims < 0, old, new[jnp.maximum(claimed, 0)].astype(old.dtype))

  return ReplayState(jax.tree.map(put, state.items, items), state.seen + belongs.sum(axis=0))


def replay_draw(state: ReplayState, num_items: int, *, key: jax.Array) -> tuple[Items, jax.Array]:
  """Draws items from the buffer, uniformly and with replacement.

  Args:
    state: The buffer.
    num_items: How many to draw.
    key: Random key, a new one for each draw.

  Returns:
    Tree of [num_items, ...], and weights [num_items] for their losses: one, or zero as long as the
    buffer is empty, when the items are zeros as well.

  Raises:
    ValueError: If `num_items` is smaller than 1.
  """
  core.check_positive('num_items', num_items, 'item')
  capacity = jax.tree.leaves(state.items)[0].shape[1]
  filled = jnp.arange(capacity)[None] < state.seen[:, None]  # [G, capacity]
  up_to = jnp.cumsum(filled.reshape(-1))
  nth = jax.random.randint(key, (num_items,), 0, jnp.maximum(up_to[-1], 1))
  places = jnp.searchsorted(up_to, nth, side='right') % filled.size
  drawn = jax.tree.map(lambda x: x.reshape(filled.size, *x.shape[2:])[places], state.items)
  return drawn, jnp.full(num_items, up_to[-1] > 0, jnp.float32)
