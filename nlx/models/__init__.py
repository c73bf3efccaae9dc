"""Models: blocks of a sequence mixer and a continuum memory system, and what they write."""

from collections.abc import Callable

from nlx.models import sessions
from nlx.models.baselines import (
  atlas,
  deltanet,
  gated_deltanet,
  linear_attention,
  moneta,
  oja,
  retnet,
  samba,
  titans,
  titans_mac,
  titans_mag,
  titans_mal,
  ttt_linear,
  ttt_mlp,
  yaad,
)
from nlx.models.compositions import FeedForwardConfig, GatedConfig, SeriesConfig
from nlx.models.config import LanguageModelConfig, MixerConfig
from nlx.models.families import hope, hope_attention, transformer
from nlx.models.generation import generate
from nlx.models.language_model import Block, LanguageModel, create
from nlx.models.losses import head_losses, token_losses
from nlx.models.memory_as_context import MemoryAsContextConfig
from nlx.models.sampling import GREEDY, Sampling
from nlx.models.sizes import count_parameters, with_parameters
from nlx.models.stacking import stack_levels
from nlx.models.streaming import StreamState

FAMILIES: dict[str, Callable[..., LanguageModelConfig]] = {
  family.__name__: family
  for family in (
    hope,
    hope_attention,
    transformer,
    linear_attention,
    retnet,
    deltanet,
    gated_deltanet,
    oja,
    ttt_linear,
    ttt_mlp,
    titans,
    titans_mac,
    titans_mag,
    titans_mal,
    moneta,
    yaad,
    atlas,
    samba,
  )
}
"""Every named model: from sizes to a configuration."""

__all__ = [
  'FAMILIES',
  'GREEDY',
  'Block',
  'FeedForwardConfig',
  'GatedConfig',
  'LanguageModel',
  'LanguageModelConfig',
  'MemoryAsContextConfig',
  'MixerConfig',
  'Sampling',
  'SeriesConfig',
  'StreamState',
  'atlas',
  'count_parameters',
  'create',
  'deltanet',
  'gated_deltanet',
  'generate',
  'hope',
  'hope_attention',
  'linear_attention',
  'moneta',
  'oja',
  'retnet',
  'samba',
  'sessions',
  'stack_levels',
  'titans',
  'titans_mac',
  'titans_mag',
  'titans_mal',
  'head_losses',
  'token_losses',
  'transformer',
  'ttt_linear',
  'ttt_mlp',
  'with_parameters',
  'yaad',
]
