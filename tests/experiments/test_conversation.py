"""Sessions in files: what one call leaves, the next goes on with."""

import functools

import pytest

from experiments import common, conversation
from experiments.configs import lm
from nlx import models
from nlx.models import sessions

SAMPLING = models.Sampling(temperature=0.8, top_k=20, top_p=0.95)
META = {'seed': 0, 'step': 4}


@functools.cache
def language():
  """A model that has learned nothing yet."""
  config = lm.get_config('transformer-smoke')
  config.model.parameters = 5_000
  return common.create(config)


def reply(file, prompt='', meta=META, **options):
  options = {'max_tokens': 6, 'sampling': SAMPLING, **options}
  request = conversation.Request(prompt, **options)
  return conversation.reply(language(), language().params, request, file, meta)


def test_conversation_goes_on_where_it_ended(tmp_path):
  first = reply(tmp_path / 'parts', 'Our ')
  second = reply(tmp_path / 'parts')
  assert first and second
  reply(tmp_path / 'whole', 'Our ', max_tokens=12)
  assert (tmp_path / 'parts').read_bytes() == (tmp_path / 'whole').read_bytes()


def test_conversation_without_a_file_is_the_same():
  assert reply(None, 'Our ', seed=0) == reply(None, 'Our ')
  assert reply(None, 'Our ', seed=1) != reply(None, 'Our ')


def test_conversation_reads_what_is_said_next(tmp_path):
  reply(tmp_path / 'session', 'Our ')
  reply(tmp_path / 'session', 'And then ')
  kept = sessions.load(tmp_path / 'session', language().model)
  assert (int(kept.length), int(kept.written)) == (4 + 6 + 9 + 6, 12)


@pytest.mark.parametrize(
  ('learn_from', 'expected'),
  [('all', (True, True)), ('prompt', (True, False)), ('nothing', (False, False))],
)
def test_conversation_learns_from_what_it_is_told_to(monkeypatch, learn_from, expected):
  """From the prompt, and from what it writes."""
  told, read, write = [], sessions.read, sessions.write

  def spy_read(*args, learns):
    told.append(learns)
    return read(*args, learns=learns)

  def spy_write(*args, learn, sampling):
    told.append(learn)
    return write(*args, learn=learn, sampling=sampling)

  monkeypatch.setattr(sessions, 'read', spy_read)
  monkeypatch.setattr(sessions, 'write', spy_write)
  reply(None, 'Our ', learn_from=learn_from)
  assert tuple(told) == expected


@pytest.mark.parametrize(('asked', 'expected'), [(('all',), None), (('memory',), ('memory',))])
def test_conversation_resets_levels_before_it_reads(tmp_path, monkeypatch, asked, expected):
  reply(tmp_path / 'session', 'Our ')
  seen = []

  def spy(model, session, levels):
    seen.append((int(session.length), levels))
    return session

  monkeypatch.setattr(sessions, 'reset', spy)
  reply(tmp_path / 'session', 'And ', reset=asked)
  assert seen == [(10, expected)]


def test_first_prompt_of_a_conversation_is_not_empty(tmp_path):
  for file in (None, tmp_path / 'session'):
    with pytest.raises(ValueError, match='`prompt` must hold at least one token'):
      reply(file)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'meta': {'seed': 0, 'step': 8}}, 'of another model: `step` was 4, but is 8 here'),
    ({'seed': 0}, '`seed` must be left out: the session in .* has its own'),
    ({'max_length': 8}, '`max_length` must be left out'),
    ({'max_tokens': 5000}, '`session` is full: of its `max_length` 4096 tokens 4086 are left'),
    ({'reset': ('CMS 64',)}, r"`levels` must be one of \[\], got 'CMS 64'"),
  ],
  ids=['model', 'seed', 'max_length', 'full', 'reset'],
)
def test_conversation_that_cannot_go_on_is_left_as_it_is(tmp_path, options, message):
  reply(tmp_path / 'session', 'Our ')
  before = (tmp_path / 'session').read_bytes()
  with pytest.raises(ValueError, match=message):
    reply(tmp_path / 'session', **options)
  assert (tmp_path / 'session').read_bytes() == before
