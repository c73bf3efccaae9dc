"""The language model: embedding, blocks, output head, and the loop that learns in context."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from nlx import core, parallel
from nlx.cms import ContinuumMemory, in_context_levels, initial_weights
from nlx.levels import LevelInfo, NestResult, PeriodicState, nest
from nlx.memories.modules import Projection, RMSNorm
from nlx.models import documents, streaming
from nlx.models.config import LanguageModelConfig
from nlx.models.description import gates_of, level_infos
from nlx.models.diagnosis import sizes_of_states
from nlx.models.losses import head_losses
from nlx.models.streaming import Chunk, StreamState, Text

# What layers keep for the backward pass if they are recomputed.
KEPT = {
  'layers': jax.checkpoint_policies.nothing_saveable,
  'layers_but_dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Block(nnx.Module):
  """x + mixer(norm(x)), then the continuum memory system, Eqs. 94-97."""

  def __init__(self, config: LanguageModelConfig, *, rngs: nnx.Rngs):
    self.mixer = Mixer(config, rngs=rngs)
    self.cms = ContinuumMemory(config.cms, rngs=rngs)


class Mixer(nnx.Module):
  """x + mixer(norm(x)), where the mixer is a memory of any kind, or a series of them."""

  def __init__(self, config: LanguageModelConfig, *, rngs: nnx.Rngs):
    self.memory: Any = config.mixer.make(rngs=rngs)
    self.residual = getattr(config.mixer, 'residual', False)
    if not self.residual:
      self.norm = RMSNorm(config.model_dim, epsilon=config.norm_epsilon, dtype=config.param_dtype)

  def init_state(self, batch_size: int, max_length: int | None) -> Any:
    """The state before the first token."""
    return self.memory.init_state(batch_size, max_length)

  def __call__(self, x, state, num_valid=None):
    """From the start of a base chunk: x [B, C, D] and state to x and state."""
    return self._around(x, lambda x: self.memory(x, state, num_valid))

  def step(self, x, state):
    """One token x [B, 1, D], anywhere in a chunk."""
    return self._around(x, lambda x: self.memory.step(x, state))

  def gates(self, x, state):
    """The gates of its levels where `__call__` reads x [B, C, D]."""
    return gates_of(self.memory, x if self.residual else self.norm(x), state)

  def _around(self, x, mix):
    if self.residual:
      return mix(x)
    mixed, state = mix(self.norm(x))
    return x + mixed, state


class Carry(NamedTuple):
  """Mixer states of all layers."""

  first: Any  # of the first layer, leaves [B, ...]
  rest: Any  # of the others, leaves [L - 1, B, ...]; () if there are none


class Reading(NamedTuple):
  """One base chunk as `LanguageModel.run` has read it."""

  chunk: Chunk
  fast: tuple  # weights of each level that learns in context, as in `LanguageModel.apply`
  before: Carry
  after: Carry
  logits: jax.Array  # [B, C, vocab_size] float32


class LanguageModel(nnx.Module):
  """A language model whose blocks may keep learning while it reads.

  Parameters are slow weights. Fast state is an explicit value: it goes in and comes out of every
  call and is never stored here.

  Args:
    config: The configuration.
    rngs: Random streams; 'params' is used.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Sec. 8.
  """

  def __init__(self, config: LanguageModelConfig, *, rngs: nnx.Rngs):
    self.config = config
    shape = (config.vocab_size, config.model_dim)
    self.embedding = nnx.Param(0.5 * jax.random.normal(rngs.params(), shape, config.param_dtype))

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def stacked(rngs):
      return Block(config, rngs=rngs)

    self.blocks = stacked(rngs)
    self.norm = RMSNorm(config.model_dim, epsilon=config.norm_epsilon, dtype=config.param_dtype)
    self.head = Projection(
      config.model_dim,
      config.vocab_size,
      rngs=rngs,
      scale=0.5,
      dtype=config.dtype,
      param_dtype=config.param_dtype,
    )

  def num_parameters(self) -> int:
    """How many slow weights there are."""
    return core.tree_size(nnx.state(self, nnx.Param))

  # ----- the network on one stretch of tokens

  def apply(
    self,
    tokens: jax.Array,
    fast: tuple,
    carry: Carry,
    num_valid: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, Carry]:
    """Reads tokens [B, C] from the start of a base chunk with given fast weights.

    Args:
      tokens: Token ids.
      fast: Weights of each level that learns in context, fastest first, leaves [L, B, ...].
      carry: Mixer states.
      num_valid: How many of the tokens count, a scalar; all if None.
      mask: [B, C], 0 where there is no target to learn from; all are if None.

    Returns:
      Logits [B, C, vocab_size] in float32 and the new carry.
    """
    x, carry = self._read(tokens, fast, carry, num_valid, mask)
    return self._logits(x), carry

  def apply_step(self, tokens: jax.Array, fast: tuple, carry: Carry) -> tuple[jax.Array, Carry]:
    """Reads one token [B, 1] of every sequence, anywhere in a chunk."""
    x, carry = self._through(tokens, fast, carry, lambda mixer, *args: mixer.step(*args))
    return self._logits(x), carry

  def gates(self, tokens: jax.Array, fast: tuple, carry: Carry) -> list[Any]:
    """What gates the mixers write tokens with, for `nlx.evaluation.trace`.

    Args:
      tokens: [B, C], as for `apply`.
      fast: As for `apply`.
      carry: As for `apply`.

    Returns:
      For each level of the mixers `nlx.memories.Gates`, each [L, B, H, C]; None where a level has
      none.
    """

    def mix(mixer, x, state):
      gates = mixer.gates(x, state)
      return mixer(x, state)[0], gates

    _, (first, rest) = self._through(tokens, fast, carry, mix)
    first = jax.tree.map(lambda x: x[None], first)
    if self.config.num_layers == 1:
      return first
    return jax.tree.map(lambda *layers: jnp.concatenate(layers), first, rest)

  def _read(self, tokens, fast, carry, num_valid, mask):
    """From the start of a base chunk, up to the output head."""
    mix = lambda mixer, *args: mixer(*args, num_valid)  # noqa: E731
    return self._through(tokens, fast, carry, mix, mask)

  def _logits(self, x):
    """The output head, on the normed outputs of the last block."""
    logits = self.head(x)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

  def _through(self, tokens, fast, carry, mix, mask=None):
    """All blocks. The first mixer depends on no fast weight: no inner gradient passes it."""
    mixer, mixer_params = nnx.split(self.blocks.mixer)
    cms, cms_params = nnx.split(self.blocks.cms)

    def mix_with(x, inputs):
      params, state = inputs
      x, state = mix(nnx.merge(mixer, params), x, state)
      return x.astype(self.config.dtype), state

    def cms_then_next_mixer(x, inputs):
      cms_params, fast, *mixer_inputs = inputs
      x = nnx.merge(cms, cms_params)(x, fast, mask).astype(self.config.dtype)
      return mix_with(parallel.constrain_batch(x), mixer_inputs)

    policy = KEPT.get(self.config.remat)
    remat = policy is not None
    mix_first = jax.checkpoint(mix_with, policy=policy) if remat else mix_with
    embedding = core.constrain(self.embedding[...], {1: None})  # Tokens are divided, not D.
    rows = jnp.asarray(embedding).at[tokens]  # NaN for what is no token; -1 is not the last one.
    x = rows.get(mode='fill', fill_value=jnp.nan, wrap_negative_indices=False)
    x = x.astype(self.config.dtype)
    x = parallel.constrain_batch(x)
    x, first = mix_first(x, (_layer(mixer_params, 0), carry.first))
    rest = carry.rest
    if self.config.num_layers > 1:
      up_to_last = jax.tree.map(lambda x: x[:-1], (cms_params, fast))
      from_second = jax.tree.map(lambda x: x[1:], mixer_params)
      inputs = (*up_to_last, from_second, rest)
      x, rest = core.scan_chunks(cms_then_next_mixer, x, inputs, remat=remat, policy=policy)
    x = nnx.merge(cms, _layer(cms_params, -1))(x, _layer(fast, -1), mask)
    return self.norm(x), Carry(first, rest)

  # ----- levels and state

  def levels(self) -> tuple:
    """The levels that learn in context, fastest first, at their learned rates."""
    if not self.config.in_context_periods:
      return ()
    return in_context_levels(self.config.cms, self.blocks.cms.rates())

  def init_levels(self, batch_size: int) -> tuple[PeriodicState, ...]:
    """Fast weights of each level that learns in context: its slow weights, once per sequence."""

    def copies(weight):
      return jnp.repeat(weight[:, None], batch_size, axis=1)

    graph, params = nnx.split(self.blocks.cms)
    initial = jax.vmap(lambda params: nnx.merge(graph, params).initial_weights())
    fast = parallel.constrain_fast(jax.tree.map(copies, initial(params)), axis=1)
    weights = initial_weights(self.config.cms, fast)
    return tuple(level.init(w) for level, w in zip(self.levels(), weights, strict=True))

  def init_carry(self, batch_size: int, max_length: int | None = None) -> Carry:
    """Mixer states of all layers before the first token."""
    graph, params = nnx.split(self.blocks.mixer)
    init = lambda params: nnx.merge(graph, params).init_state(batch_size, max_length)  # noqa: E731
    first = init(_layer(params, 0))
    if self.config.num_layers == 1:
      return Carry(first, ())
    return Carry(first, jax.vmap(init)(jax.tree.map(lambda x: x[1:], params)))

  # ----- learning in context

  def cell(self, slow: Any, fast: tuple, carry: Any, chunk: Chunk, num_valid=None):
    """The whole network on one base chunk, for `nlx.levels.nest`.

    Returns:
      Summed loss and token count of each sequence [B], the new carry, and logits.
    """
    model = nnx.merge(nnx.graphdef(self), slow)
    x, carry = model._read(chunk.tokens, fast, carry, num_valid, chunk.mask)
    losses = head_losses(model._logits, x, chunk.targets, self.config.vocab_size)
    losses = jnp.where(chunk.mask > 0, losses, 0) * chunk.mask  # NaN where a target is no token.
    return jnp.sum(losses, axis=1), jnp.sum(chunk.mask, axis=1), carry, model._logits(x)

  def run(
    self,
    tokens: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    outputs: Callable[[Reading], Any],
    starts: jax.Array | None = None,
  ) -> NestResult:
    """Reads whole sequences from fresh state, learning in context as it goes.

    Args:
      tokens: [B, T].
      targets: [B, T].
      mask: [B, T], 0 where there is no target.
      outputs: `Reading -> Any`, what to keep of each base chunk.
      starts: [B, n] bool, see `loss`.

    Returns:
      The result of `nest`: losses and counts [n, B] per base chunk.

    Raises:
      ValueError: If shapes differ, there are no tokens, or `starts` does not fit the base chunks.
    """
    if tokens.ndim != 2 or not tokens.size or not tokens.shape == targets.shape == mask.shape:
      raise ValueError(
        '`tokens`, `targets` and `mask` must have one shape [B, T], with at least one token, got '
        f'{tokens.shape}, {targets.shape} and {mask.shape}.'
      )
    batch_size, length = tokens.shape
    learns = bool(self.config.in_context_periods)
    size = self._chunk_size(batch_size, length, starts)
    text = Chunk(tokens, targets, mask.astype(jnp.float32))
    pad = -length % size
    text = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, pad))), parallel.constrain_batch(text))
    chunks = jax.tree.map(lambda x: core.split_time(x, size, axis=-1), text)
    carry = self.init_carry(batch_size, length + pad if learns or starts is not None else None)
    states = self.init_levels(batch_size)

    def cell(slow, fast, before, chunk):
      loss, count, after, logits = self.cell(slow, fast, before, chunk)
      return loss, count, after, outputs(Reading(chunk, fast, before, after, logits))

    def begin(old_states, old_carry, chunk):
      restarted = documents.restart_levels(chunk.starts, states, old_states)
      return restarted, documents.restart_carry(chunk.starts, carry, old_carry)

    config = self.config
    system = nest(
      self.levels(),
      cell,
      chunk=size,
      meta=config.meta,
      truncate=config.truncate,
      remat=config.remat != 'none',
      begin=None if starts is None else begin,
    )
    if starts is not None:
      chunks = chunks._replace(starts=starts.astype(bool).T)
    return system(nnx.state(self), states, carry, chunks)

  def _chunk_size(self, batch_size: int, length: int, starts: jax.Array | None) -> int:
    """Tokens that are read at once."""
    base, learns = self.config.base_chunk, bool(self.config.in_context_periods)
    if starts is None:
      return base if learns else length
    if starts.ndim != 2 or starts.shape[0] != batch_size:
      raise ValueError(
        f'`starts` must be [B, n] with the {batch_size} sequences of `tokens`, got {starts.shape}.'
      )
    entries = starts.shape[1]
    if entries == -(-length // base):
      return base
    if not learns and entries and not length % entries and not length // entries % base:
      return length // entries
    raise ValueError(
      f'`starts` must have one entry for every base chunk of {base} tokens'
      f'{"" if learns else ", or for equal stretches of them"}: '
      f'{entries} entries do not fit {length} tokens.'
    )

  def loss(
    self,
    tokens: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    starts: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Next-token loss over fresh sequences, each chunk's taken before it is learned from.

    Args:
      tokens: [B, T] int32; of the vocabulary, also where the mask is 0.
      targets: [B, T] int32.
      mask: [B, T], 0 where there is no target.
      starts: [B, n] bool, for each of n base chunks whether a document begins with it, whose
        sequence then forgets all that it has read. Without blocks that learn in context these may
        be n equal stretches of several base chunks. One document per sequence if None.

    Returns:
      The sum of losses in nats and the number of targets, scalars.

    Raises:
      ValueError: If shapes differ, there are no tokens, or `starts` does not fit the base chunks.
    """

    def sums(params, text):
      tokens, targets, mask, starts = text
      nothing = lambda reading: ()  # noqa: E731
      result = nnx.merge(graph, params).run(tokens, targets, mask, nothing, starts)
      return jnp.sum(result.loss), jnp.sum(result.count)

    graph, params = nnx.split(self)
    text = (tokens, targets, mask, starts)
    if self.config.in_context_periods:  # A loop over time reads all parameters.
      return parallel.sum_over_sequences(sums, params, text)
    return sums(params, text)

  def diagnose(
    self, tokens: jax.Array, targets: jax.Array, mask: jax.Array
  ) -> dict[str, jax.Array]:
    """The size of every level's state along a sequence, to find where a loss stopped being finite.

    Args:
      tokens: [B, T].
      targets: [B, T].
      mask: [B, T].

    Returns:
      For each level, fastest first, the root mean square of its state after each base chunk [n],
      of models without chunks after the text [1].
    """
    return sizes_of_states(self, tokens, targets, mask)

  def mixer_states(self, carry: Carry) -> list:
    """The state of each level of the mixers over all layers."""
    mixer = self.blocks.mixer.memory
    layers = [carry.first] if self.config.num_layers == 1 else list(carry)
    return list(zip(*(mixer.level_states(state) for state in layers), strict=True))

  def level_states(self, state: StreamState) -> dict[str, Any]:
    """The states of the levels that move in a stream, by their names in `level_infos`."""
    names = [info.name for info in self.level_infos()[:-1]]  # All but the slow weights.
    return dict(zip(names, [*self.mixer_states(state.live), *state.levels], strict=True))

  def level_infos(self) -> list[LevelInfo]:
    """The levels of this model, fastest first, for `nlx.describe` and `nlx.levels.plot`."""
    return level_infos(self)

  # ----- streaming

  def init_state(self, batch_size: int, max_length: int | None = None) -> StreamState:
    """The state before the first token of a stream.

    Args:
      batch_size: B.
      max_length: The most tokens that a stream may have; needed by attention, which keeps them all.

    Returns:
      The state, for `__call__`.

    Raises:
      ValueError: If the model has full attention and `max_length` is not given.
    """
    if max_length is None and self.config.mixer.grows:
      raise ValueError('`max_length` must be given: attention keeps every token that it has read.')
    if max_length is not None and self.config.has_chunks:
      max_length += self.config.base_chunk  # The last chunk is padded.
    return streaming.init_stream(self, batch_size, max_length)

  def __call__(
    self, tokens: jax.Array, state: StreamState, *, learns: jax.Array | bool = True
  ) -> tuple[jax.Array, StreamState]:
    """Reads on from `state`, learning from every base chunk as it is completed.

    Any cut of a sequence into calls gives the outputs of one call. Under `jit` no error can be
    raised for values: what full attention reads beyond the `max_length` of `init_state`, at the
    latest a base chunk later, or tokens that are not in the vocabulary, give NaN. An outer gradient
    through calls passes inner updates in full, whatever `meta` and `truncate` are.

    Args:
      tokens: [B, T] int32; one token per sequence is read in constant time.
      state: From `init_state` or an earlier call.
      learns: Which tokens the blocks that learn in context take as targets, [B, T] or one for all.
        Every token is read; memories and attention hold all that they read.

    Returns:
      Logits [B, T, vocab_size] for the token after each, and the new state.

    Raises:
      ValueError: If `tokens` has another number of axes, or of sequences than `state`, or none in
        time, or `learns` another number of axes.
    """
    batch_size = state.buffer.shape[0]
    if tokens.ndim != 2 or tokens.shape[0] != batch_size or not tokens.shape[1]:
      raise ValueError(
        f'`tokens` must be [B, T] with the {batch_size} sequences of `state` and at least one '
        f'token of each, got {tokens.shape}.'
      )
    if jnp.ndim(learns) not in (0, 2):
      raise ValueError(f'`learns` must be [B, T] or one for all, got {jnp.shape(learns)}.')
    learns = jnp.asarray(learns, jnp.float32).reshape(jnp.shape(learns) or (1, 1))
    text = Text(tokens.astype(jnp.int32), jnp.broadcast_to(learns, tokens.shape))
    return streaming.read(self, text, state)


def _layer(tree, index):
  return jax.tree.map(lambda x: x[index], tree)


def create(config: LanguageModelConfig, *, rngs: nnx.Rngs) -> LanguageModel:
  """Builds a language model.

  Args:
    config: Such as one of `nlx.models.FAMILIES` returns.
    rngs: Random streams.

  Returns:
    The model, with random parameters.

  Example:
    >>> import nlx, jax.numpy as jnp
    >>> from flax import nnx
    >>> config = nlx.models.transformer(vocab_size=16, model_dim=8, num_layers=1, num_heads=2)
    >>> model = nlx.models.create(config, rngs=nnx.Rngs(0))
    >>> logits, state = model(jnp.zeros((1, 3), int), model.init_state(batch_size=1, max_length=8))
    >>> logits.shape
    (1, 3, 16)
  """
  return LanguageModel(config, rngs=rngs)
