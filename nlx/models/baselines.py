"""The models that HOPE is compared with: each a memory, its rule and its gates, in one block.

Every function takes `vocab_size`, `model_dim`, `num_layers` and `num_heads`, `mlp_hidden` (as in
`transformer`) and, by name, any other field of `LanguageModelConfig` and of the configuration of
its mixer, and returns a configuration for `nlx.models.create`. What a function sets is what makes
the model; all of it can be overridden.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from nlx import core
from nlx.memories.attention import AttentionConfig
from nlx.memories.mirrors import lq_retention
from nlx.memories.mixer import MemoryConfig
from nlx.memories.networks import matrix, mlp
from nlx.memories.objectives import dot_product, huber, lp
from nlx.memories.rules import Rule, delta_rule, gradient, omega
from nlx.memories.rules import oja as oja_rule
from nlx.memories.selective_scan import SelectiveScanConfig
from nlx.models.compositions import FeedForwardConfig, GatedConfig, SeriesConfig
from nlx.models.config import LanguageModelConfig
from nlx.models.families import around, split_options
from nlx.models.memory_as_context import MemoryAsContextConfig


def _check_sizes(name: str, options: dict[str, Any]) -> None:
  """Raises TypeError, as a signature would, if a size is missing."""
  for size in ('vocab_size', 'model_dim', 'num_layers', 'num_heads'):
    if size not in options:
      raise TypeError(f'{name}() missing the required keyword argument `{size}`.')
    core.check_positive(size, options[size])


def _memory(name: str, options: dict[str, Any], **defaults: Any) -> LanguageModelConfig:
  """A model whose mixer is one memory."""
  _check_sizes(name, options)
  own, rest = split_options(MemoryConfig, options)
  return around(name, MemoryConfig(**{**defaults, **own}), **rest)


# ----- matrices


def linear_attention(**options: Any) -> LanguageModelConfig:
  """Linear attention, the Hebbian rule without retention: W_t = W_{t-1} + v_t k_t^T.

  Ours: 1 + ELU as the feature map, and a norm per head in the place of the sum over keys.

  References:
    Katharopoulos et al., arXiv 2006.16236; Nested Learning, arXiv 2512.24695v1, Eq. 64.
  """
  return _memory(
    'linear_attention',
    options,
    chunk_size=64,
    rule=gradient(retention=False, literal=True),
    objective=dot_product(),
    keys='elu',
    rate_gate='one',
    learned_start=False,
    output_gate=False,
  )


def retnet(**options: Any) -> LanguageModelConfig:
  """RetNet, the Hebbian rule with a fixed decay per head: W_t = gamma_h W_{t-1} + v_t k_t^T.

  Ours: plain rotary positions instead of xPos.

  References:
    Sun et al., RetNet, arXiv 2307.08621.
  """
  return _memory(
    'retnet',
    options,
    chunk_size=64,
    rule=gradient(literal=True),
    objective=dot_product(),
    keys='rotary',
    rate_gate='one',
    retention_gate='fixed',
    learned_start=False,
    conv_width=0,
  )


def deltanet(**options: Any) -> LanguageModelConfig:
  """DeltaNet, the delta rule without retention.

  Ours: one causal convolution before the projections instead of one after each.

  References:
    Yang et al., arXiv 2406.06484; Nested Learning, arXiv 2512.24695v1, Eq. 65.
  """
  return _memory(
    'deltanet',
    options,
    chunk_size=64,
    rule=delta_rule(retention=False),
    keys='silu_unit',
    learned_start=False,
    output_gate=False,
  )


def gated_deltanet(**options: Any) -> LanguageModelConfig:
  """Gated DeltaNet, the delta rule with a retention that x decides, and an output gate.

  Ours: one causal convolution before the projections instead of one after each.

  References:
    Yang et al., arXiv 2412.06464.
  """
  return _memory(
    'gated_deltanet',
    options,
    chunk_size=64,
    rule=delta_rule(),
    keys='silu_unit',
    retention_gate='softplus',
    learned_start=False,
  )


def oja(**options: Any) -> LanguageModelConfig:
  """Oja's rule on a matrix memory: Hebbian writes that decay along the value.

  References:
    Behrouz et al., Nested Learning, arXiv 2512.24695v1, Eq. 66.
  """
  return _memory(
    'oja',
    options,
    chunk_size=64,
    rule=oja_rule(),
    objective=dot_product(),
    keys='silu_unit',
    unit_values=True,
    learned_start=False,
  )


def ttt_linear(**options: Any) -> LanguageModelConfig:
  """TTT-Linear: gradient descent on M(k) = k + LayerNorm(W k + b), no retention, chunks of 16.

  Ours: keys and queries have unit norm and no rotary positions; the rate of a token is divided by
  its own position in the chunk, where the authors' code divides all that the chunk has written so
  far by the position of the token that reads.

  References:
    Sun et al., TTT, arXiv 2407.04620.
  """
  return _ttt('ttt_linear', options, network=matrix(bias=True), rate_scale=1.0)


def ttt_mlp(**options: Any) -> LanguageModelConfig:
  """TTT-MLP: as TTT-Linear, with an MLP of four times the width of a head inside the norm.

  References:
    Sun et al., TTT, arXiv 2407.04620.
  """
  _check_sizes('ttt_mlp', options)
  hidden = 4 * options['model_dim'] // options['num_heads']
  network = mlp(hidden, jax.nn.gelu, residual=False, bias=True)
  return _ttt('ttt_mlp', options, network=network, rate_scale=0.1)


def _ttt(name, options, **defaults):
  return _memory(
    name,
    options,
    chunk_size=16,
    rule=gradient(retention=False, literal=True),
    rate_gate='position',
    inner_norm=True,
    **defaults,
  )


# ----- deep memories: of values of unit norm, under steps that a chunk shares, both ours. Errors
# that grow with the other matrix, or add up over a chunk, let a memory of two matrices diverge.


def _deep(
  name: str, options: dict[str, Any], rule: Callable[..., Rule], **defaults: Any
) -> tuple[MemoryConfig, dict[str, Any]]:
  """A memory that is a residual MLP, and the options that are not its own."""
  _check_sizes(name, options)
  options = {'chunk_size': 16, **options}
  if 'network' in options and 'memory_hidden' in options:
    raise ValueError('give `network` or `memory_hidden`, got both.')
  network = mlp(options.pop('memory_hidden', 64))
  own, rest = split_options(MemoryConfig, options)
  core.check_positive('chunk_size', own['chunk_size'], 'token')
  like = {'network': network, 'keys': 'silu_unit', 'unit_values': True}
  like['rule'] = rule(span=own['chunk_size'])
  return MemoryConfig(**{**like, **defaults, **own}), rest


_TITANS = functools.partial(gradient, momentum=True)


def titans(**options: Any) -> LanguageModelConfig:
  """Titans' neural memory alone: an MLP under gradient descent with momentum and retention.

  The option `memory_hidden` is F of the memory. Ours: the stable form of the rule, see
  `nlx.memories.gradient`, with a span of one chunk, and one causal convolution before the
  projections.

  References:
    Behrouz et al., Titans, arXiv 2501.00663, Secs. 3 and 4.3.
  """
  memory, rest = _deep('titans', options, _TITANS)
  return around('titans', memory, **rest)


def moneta(**options: Any) -> LanguageModelConfig:
  """Moneta: an MLP memory that lowers an L3 error under L4 retention.

  The option `memory_hidden` is F of the memory. Ours: the norm that divides is at least 1, see
  `nlx.memories.lq_retention`.

  References:
    Behrouz et al., Miras, arXiv 2504.13173, Sec. 5.
  """
  rule = functools.partial(gradient, mirror=lq_retention(4.0))
  memory, rest = _deep('moneta', options, rule, objective=lp(3.0))
  return around('moneta', memory, **rest)


def yaad(**options: Any) -> LanguageModelConfig:
  """Yaad: an MLP memory that lowers a Huber error.

  The option `memory_hidden` is F of the memory. Ours: the threshold, 1, is not learned.

  References:
    Behrouz et al., Miras, arXiv 2504.13173, Sec. 5.
  """
  memory, rest = _deep('yaad', options, gradient, objective=huber())
  return around('yaad', memory, **rest)


def atlas(**options: Any) -> LanguageModelConfig:
  """Atlas: an MLP memory under the Omega rule, its momentum orthogonalised before it is added.

  The option `memory_hidden` is F of the memory. Ours: keys pass no polynomial feature map, three
  Newton-Schulz steps are taken, and rates are below 0.1, since an orthogonal write has the size of
  its rate whatever the error.

  References:
    Behrouz et al., Atlas, arXiv 2505.23735; Nested Learning, arXiv 2512.24695v1, Eq. 68.
  """
  rule = functools.partial(omega, window=4, orthogonal=3)
  memory, rest = _deep('atlas', options, rule, rate_scale=0.1, rate_bias=-1.5)
  return around('atlas', memory, **rest)


# ----- memories beside attention


def _window(rest: dict[str, Any], num_heads: int) -> tuple[AttentionConfig, dict[str, Any]]:
  """Sliding-window attention with persistent tokens, and the options that are not its own."""
  own, rest = split_options(AttentionConfig, rest)
  return AttentionConfig(**{'window': 64, 'num_persistent': 4, 'num_heads': num_heads, **own}), rest


def titans_mac(**options: Any) -> LanguageModelConfig:
  """Titans, memory as context: attention within segments, to the memory's answers as well.

  Options beside those of the memory: `memory_hidden`, F of the memory; `num_persistent`, learned
  tokens that all see. `chunk_size` is that of a segment.

  References:
    Behrouz et al., Titans, arXiv 2501.00663, Sec. 4.1.
  """
  options = {'chunk_size': 32, **options}
  num_persistent = options.pop('num_persistent', 4)
  memory, rest = _deep('titans_mac', options, _TITANS)
  return around('titans_mac', MemoryAsContextConfig(memory, num_persistent), **rest)


def titans_mag(**options: Any) -> LanguageModelConfig:
  """Titans, memory as a gate of sliding-window attention.

  Options beside those of the memory and of attention: `memory_hidden`, F of the memory. Persistent
  tokens belong to attention; the memory's initial state is learned, which they could do no more.

  References:
    Behrouz et al., Titans, arXiv 2501.00663, Sec. 4.2.
  """
  memory, rest = _deep('titans_mag', options, _TITANS)
  attention, rest = _window(rest, memory.num_heads)
  return around('titans_mag', GatedConfig(value=attention, gate=memory), **rest)


def titans_mal(**options: Any) -> LanguageModelConfig:
  """Titans, memory as a layer before sliding-window attention.

  Options as for `titans_mag`. Ours: each is added to the stream and has a norm before it.

  References:
    Behrouz et al., Titans, arXiv 2501.00663, Sec. 4.3.
  """
  memory, rest = _deep('titans_mal', options, _TITANS)
  attention, rest = _window(rest, memory.num_heads)
  epsilon = rest.get('norm_epsilon', 1e-6)
  return around('titans_mal', SeriesConfig((memory, attention), epsilon), **rest)


def samba(**options: Any) -> LanguageModelConfig:
  """Samba: Mamba, MLP, sliding-window attention and MLP in every layer.

  `num_layers` counts these groups of four.

  References:
    Ren et al., Samba, arXiv 2406.07522.
  """
  _check_sizes('samba', options)
  scan, rest = split_options(SelectiveScanConfig, options)
  attention, rest = _window({'num_persistent': 0, **rest}, rest['num_heads'])
  like = around('samba', attention, **rest)
  width = max(like.cms.widths)
  feed_forward = FeedForwardConfig(like.model_dim, width, like.dtype, like.param_dtype)
  parts = (SelectiveScanConfig(**scan), feed_forward, attention)
  return around('samba', SeriesConfig(parts, like.norm_epsilon), **rest)
