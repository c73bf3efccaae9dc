"""Nested levels under one cell: the loop that in-context learning runs in."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nlx import core
from nlx.levels.nested import own, restart_faster, signals_for
from nlx.levels.periodic import PeriodicLevel, PeriodicState

META_GRADIENTS = ('full', 'first', 'detached')


class NestResult(NamedTuple):
  """What a nested system returns after a sequence of n base chunks."""

  loss: jax.Array  # [n, ...] sum of losses of each chunk, taken before its update
  count: jax.Array  # type: ignore[assignment]  # [n, ...] what each sum counts
  states: tuple[PeriodicState, ...]  # one per level, fastest first
  carry: Any  # the cell's own recurrent state
  outputs: Any  # [n, ...] the cell's outputs


class _Live(NamedTuple):
  """What the loops carry."""

  states: tuple[PeriodicState, ...]
  carry: Any


Cell = Callable[[Any, tuple, Any, Any], tuple[jax.Array, jax.Array, Any, Any]]
Run = Callable[..., NestResult]
Begin = Callable[[tuple[PeriodicState, ...], Any, Any], tuple[tuple[PeriodicState, ...], Any]]


def read_weights(levels: Sequence[PeriodicLevel], states: Sequence[PeriodicState]) -> tuple:
  """The weights of each level that the network computes with."""
  return tuple(own(level.read(state)) for level, state in zip(levels, states, strict=True))


def gradient_step(cell: Cell, levels: Sequence[PeriodicLevel], slow, states, carry, x):
  """One base chunk: the cell's results, and the gradient of its summed loss for every level.

  One backward pass serves all levels.

  Returns:
    `(loss, count, carry, outputs)` and a `Weighted` signal for each level.
  """

  def summed(fast):
    loss, count, new_carry, outputs = cell(slow, fast, carry, x)
    return jnp.sum(loss), (loss, count, new_carry, outputs)

  fast = read_weights(levels, states)
  if not fast:
    return summed(fast)[1], ()
  gradients, results = jax.grad(summed, has_aux=True)(fast)
  weights = [level.read(state) for level, state in zip(levels, states, strict=True)]
  return results, signals_for(weights, gradients, results[1])


def advance(
  levels: Sequence[PeriodicLevel], states: Sequence[PeriodicState], signals: Sequence, ticks: int
) -> tuple[PeriodicState, ...]:
  """Gathers the signals of one base chunk of `ticks`, and updates every level that is due.

  For a stream, whose periods may end anywhere; `nest` knows where they end.
  """
  gathered = zip(levels, states, signals, strict=True)
  new = tuple(level.gather(state, signal, ticks) for level, state, signal in gathered)
  for i, level in enumerate(levels):
    due = new[i].count >= level.period
    flush = lambda states, i=i: _updated(levels, states, i, lambda state: state)  # noqa: E731
    new = jax.lax.cond(due, flush, lambda states: states, new)
  return new


def _updated(levels, states, i, cut):
  """The states after level i was updated and its new state was passed through `cut`."""
  state = cut(levels[i].flush(states[i]))
  return restart_faster(levels, (*states[:i], state, *states[i + 1 :]), i)


def nest(
  levels: Sequence[PeriodicLevel],
  cell: Cell,
  *,
  chunk: int | None = None,
  meta: str = 'full',
  truncate: int | None = None,
  remat: bool = True,
  begin: Begin | None = None,
) -> Run:
  """Composes levels into one pure function over a sequence.

  The sequence is cut into base chunks. For each, the cell runs with the current fast weights, one
  backward pass gives every level's gradient of that chunk's loss, and the levels whose period ends
  are updated. The loops are nested as the periods are, so a level that is held is a constant of the
  loops inside, and only the states at period ends are kept for the backward pass.

  Args:
    levels: Fastest first; each period a multiple of the one before. Their signals are `Weighted`
      gradients. A level whose weights are `Nested` also learns the initial weights of the next
      faster level, which restarts from them when the slower period ends.
    cell: `(slow, fast, carry, x) -> (loss, count, carry, outputs)`, the whole network on one base
      chunk. `fast` is a tuple with the weights of each level; `loss` and `count` are sums, scalar
      or per sequence [B].
    chunk: Ticks of a base chunk; the fastest level's period if not given.
    meta: How an outer gradient passes the updates: 'full' through them (second order), 'first' with
      inner gradients as constants, 'detached' not at all.
    truncate: Cut the outer gradient at every `truncate`-th update of each level; None for never.
    remat: Whether the backward pass recomputes each period from its start.
    begin: `(states, carry, x) -> (states, carry)` before each base chunk, such as fresh ones where
      a document begins. It may change what is read and gathered, not the counts. Then the loops
      carry the weights of all levels, which takes more memory.

  Returns:
    `run(slow, states, carry, xs, start=0) -> NestResult`, where `states` holds `level.init(...)` of
    each level, `xs` has a leading axis of base chunks, and `start` (a Python int) is the number of
    base chunks that the states have seen. A partial period at the end updates nothing and is
    carried in the states.

  Raises:
    ValueError: If periods do not divide each other or `meta` is unknown.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Defs. 3-7, Eqs. 70-72.
  """
  base = _validated_chunk(levels, chunk, meta, truncate)
  per_update = tuple(level.period // base for level in levels)
  system = _System(tuple(levels), cell, base, per_update, meta, truncate, remat, begin)

  def run(slow, states, carry, xs, start=0):
    length = jax.tree.leaves(xs)[0].shape[0]
    if not length:
      raise ValueError('`xs` must hold at least one chunk, got none.')
    indexed = (start + jnp.arange(length), xs)
    live = _Live(tuple(states), carry)
    live, (loss, count, outputs) = _run_level(system, len(levels) - 1, slow, live, indexed, start)
    return NestResult(loss, count, live.states, live.carry, outputs)

  return run


class _System(NamedTuple):
  """What `nest` was called with."""

  levels: tuple[PeriodicLevel, ...]
  cell: Cell
  base: int  # ticks of a base chunk
  per_update: tuple[int, ...]  # base chunks per update of each level
  meta: str
  truncate: int | None
  remat: bool
  begin: Begin | None


def _run_level(system, i, slow, live, xs, start):
  """Runs all chunks of `xs` with levels 0..i updated when due and the slower ones held.

  `start` chunks have been seen of level i's current period, and perhaps of whole ones before it.
  """
  if i < 0:
    return core.scan_chunks(lambda live, x: _one_chunk(system, slow, live, x), live, xs)
  length = jax.tree.leaves(xs)[0].shape[0]
  every = system.per_update[i]
  head = min(-start % every, length)
  end = head + (length - head) // every * every
  pieces = []
  if head:
    first = _slice(xs, 0, head)
    live, out = _run_level(system, i - 1, slow, live, first, start)
    live = _flush(system, i, live, first) if (start + head) % every == 0 else live
    pieces.append(out)
  if end > head:
    live, out = _whole_periods(system, i, slow, live, _slice(xs, head, end))
    pieces.append(out)
  if end < length:
    live, out = _run_level(system, i - 1, slow, live, _slice(xs, end, length), 0)
    pieces.append(out)
  return live, _concatenate(pieces)


def _whole_periods(system, i, slow, live, xs):
  """Scans over periods of level i, with the slower levels' held states as constants by closure."""
  if system.begin is not None:
    return _whole_periods_carrying_all(system, i, slow, live, xs)
  held = tuple(state.held for state in live.states[i + 1 :])

  def split(live):
    gathered = tuple((state.gathered, state.count) for state in live.states[i + 1 :])
    return live.states[: i + 1], gathered, live.carry

  def join(states, gathered, carry):
    slower = (PeriodicState(h, *g) for h, g in zip(held, gathered, strict=True))
    return _Live((*states, *slower), carry)

  def body(carried, xs):
    live, out = _run_level(system, i - 1, slow, join(*carried), xs, 0)
    return split(_flush(system, i, live, xs)), out

  carried, outs = _scan_periods(system, i, body, split(live), xs)
  return join(*carried), outs


def _whole_periods_carrying_all(system, i, slow, live, xs):
  """The same where a chunk may begin with other weights of any level."""

  def body(live, xs):
    live, out = _run_level(system, i - 1, slow, live, xs, 0)
    return _flush(system, i, live, xs), out

  return _scan_periods(system, i, body, live, xs)


def _scan_periods(system, i, body, carried, xs):
  """Scans `body` over the periods of level i that `xs` consists of."""
  every = system.per_update[i]
  groups = jax.tree.map(lambda x: x.reshape((-1, every) + x.shape[1:]), xs)
  carried, outs = core.scan_chunks(body, carried, groups, remat=system.remat)
  return carried, jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), outs)


def _one_chunk(system, slow, live, indexed):
  """Runs the cell on one base chunk and gathers its gradients; no level is updated."""
  _, x = indexed
  if system.begin is not None:
    live = _Live(*system.begin(live.states, live.carry, x))
  results, signals = gradient_step(system.cell, system.levels, slow, live.states, live.carry, x)
  loss, count, carry, outputs = results
  if system.meta == 'first':
    signals = jax.lax.stop_gradient(signals)
  states = tuple(
    level.gather(state, signal, system.base)
    for level, state, signal in zip(system.levels, live.states, signals, strict=True)
  )
  return _Live(states, carry), (loss, count, outputs)


def _flush(system, i, live, xs):
  """Updates level i after the chunks `xs`, which end its period."""

  def cut(state):
    if system.meta == 'detached':
      return jax.lax.stop_gradient(state)
    if system.truncate is None:
      return state
    updates = (xs[0][-1] + 1) // system.per_update[i]
    return core.select(updates % system.truncate == 0, jax.lax.stop_gradient(state), state)

  return live._replace(states=_updated(system.levels, live.states, i, cut))


def _validated_chunk(levels, chunk, meta, truncate) -> int:
  """Checks the arguments of `nest` and returns the ticks of a base chunk."""
  core.check_choice('meta', meta, META_GRADIENTS)
  if truncate is not None:
    core.check_positive('truncate', truncate, 'update')
  if chunk is None:
    chunk = levels[0].period if levels else 1
  core.check_positive('chunk', chunk, 'tick')
  periods = [chunk, *(level.period for level in levels)]
  for i, (fast, slow) in enumerate(zip(periods, periods[1:], strict=False)):
    name = 'chunk' if i == 0 else f'levels[{i - 1}].period'
    core.check_divides(name, fast, f'levels[{i}].period', slow)
  return chunk


def _slice(xs, begin, end):
  return jax.tree.map(lambda x: x[begin:end], xs)


def _concatenate(pieces):
  if len(pieces) == 1:
    return pieces[0]
  return jax.tree.map(lambda *x: jnp.concatenate(x), *pieces)
