"""Continuum memory systems: MLP blocks that are updated at several periods."""

from nlx.cms.sequential import MLPBlock, SequentialCMS, in_context_level

__all__ = ['MLPBlock', 'SequentialCMS', 'in_context_level']
