"""Sessions: models that keep learning while they read and write, as values to keep and to fork."""

from nlx.models.sessions.files import load, save
from nlx.models.sessions.forgetting import reset
from nlx.models.sessions.reading import read, start, write
from nlx.models.sessions.session import Session, stack, unstack

__all__ = ['Session', 'load', 'read', 'reset', 'save', 'stack', 'start', 'unstack', 'write']
