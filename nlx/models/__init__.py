"""Models: blocks of a sequence mixer and a continuum memory system, and what they write."""

from nlx.models.config import LanguageModelConfig, hope, transformer
from nlx.models.generation import generate
from nlx.models.language_model import Block, LanguageModel, create, token_losses
from nlx.models.streaming import StreamState

__all__ = [
  'Block',
  'LanguageModel',
  'LanguageModelConfig',
  'StreamState',
  'create',
  'generate',
  'hope',
  'token_losses',
  'transformer',
]
