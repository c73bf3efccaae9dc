"""A bucket in memory: what fsspec and tensorstore see at gs://, without gcsfs or a network.

Like a bucket it has no folders, writes an object as a whole, and can neither append nor rename.
"""

import contextlib
import http.server
import io
import json
import sys
import threading
import types
import urllib.parse

import fsspec
from fsspec.registry import _registry

OBJECTS: dict[str, tuple[bytes, int]] = {}  # BUCKET/NAME -> content, generation.
WRITES: list[str] = []  # The names that were written, in order.


def write(name, content):
  """Writes an object; its generation is the number of writes so far."""
  WRITES.append(name)
  OBJECTS[name] = content, len(WRITES)
  return len(WRITES)


class Object(io.BytesIO):
  """An object that is being written: it is there once this is closed."""

  def __init__(self, name):
    super().__init__()
    self.name = name

  def close(self):
    if not self.closed:
      write(self.name, self.getvalue())
    super().close()


class FileSystem(fsspec.AbstractFileSystem):
  """The bucket as fsspec, and with it epath and Orbax, sees it."""

  protocol = ('gs', 'gcs')

  def _open(self, path, mode='rb', **kwargs):
    if not path.startswith('bucket/'):
      raise FileNotFoundError(path)
    if mode == 'wb':
      return Object(path)
    if mode != 'rb':
      raise NotImplementedError(f'A bucket cannot open {path} in mode {mode}.')
    if path not in OBJECTS:
      raise FileNotFoundError(path)
    return io.BytesIO(OBJECTS[path][0])

  def ls(self, path, detail=True, **kwargs):
    path = self._strip_protocol(path)
    found = {}
    for name, (content, _) in list(OBJECTS.items()):
      if name == path or name.startswith(f'{path}/'):
        rest = name[len(path) + 1 :].partition('/')
        here = f'{path}/{rest[0]}' if rest[0] else name
        kind = 'directory' if rest[1] else 'file'
        found[here] = {'name': here, 'type': kind, 'size': 0 if rest[1] else len(content)}
    if not found:
      raise FileNotFoundError(path)
    return list(found.values()) if detail else list(found)

  def makedirs(self, path, exist_ok=False):
    """There is nothing to make."""

  def rm(self, path, recursive=False, maxdepth=None):
    path = self._strip_protocol(path)
    found = [name for name in OBJECTS if name == path or recursive and name.startswith(f'{path}/')]
    if not found:
      raise FileNotFoundError(path)
    for name in found:
      del OBJECTS[name]


class Handler(http.server.BaseHTTPRequestHandler):
  """The part of the JSON interface that tensorstore uses."""

  protocol_version = 'HTTP/1.1'

  def do_GET(self):
    name, _ = self._parse()
    if name not in OBJECTS:
      self._reply(404)
      return
    content, generation = OBJECTS[name]
    status, size, headers = 200, len(content), {'x-goog-generation': generation}
    if 'Range' in self.headers:
      first, last = self.headers['Range'].removeprefix('bytes=').split('-')
      begin = int(first) if first else size - int(last)
      end = min(int(last) + 1, size) if first and last else size
      content, status = content[begin:end], 206
      headers['Content-Range'] = f'bytes {begin}-{end - 1}/{size}'
    self._reply(status, content, headers)

  def do_POST(self):
    bucket, query = self._parse()
    name, content = bucket + query['name'], self.rfile.read(int(self.headers['Content-Length']))
    current = OBJECTS[name][1] if name in OBJECTS else 0
    if query.get('ifGenerationMatch', str(current)) != str(current):
      self._reply(412)
    else:
      answer = {'name': query['name'], 'generation': str(write(name, content))}
      self._reply(200, json.dumps(answer).encode())

  def _parse(self):
    """Returns BUCKET/NAME, where NAME is empty if an object is written, and the query."""
    url = urllib.parse.urlsplit(self.path)
    bucket, _, name = url.path.partition('/b/')[2].partition('/o')
    query = dict(urllib.parse.parse_qsl(url.query))
    return f'{bucket}/{urllib.parse.unquote(name.removeprefix("/"))}', query

  def _reply(self, status, content=b'', headers=None):
    self.send_response(status)
    for key, value in {**(headers or {}), 'Content-Length': len(content)}.items():
      self.send_header(key, str(value))
    self.end_headers()
    self.wfile.write(content)

  def log_message(self, *args):
    """Says nothing."""


@contextlib.contextmanager
def serve():
  """Serves the bucket to tensorstore; yields the address."""
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.05})
  thread.start()
  try:
    yield f'http://127.0.0.1:{server.server_port}'
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


def install(monkeypatch, address):
  """Makes this the bucket of one test, and empties it."""
  OBJECTS.clear()
  WRITES.clear()
  for protocol in FileSystem.protocol:
    monkeypatch.setitem(_registry, protocol, FileSystem)
  monkeypatch.setenv('TENSORSTORE_GCS_HTTP_URL', address)
  monkeypatch.setenv('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'none')
  # Orbax asks what kind of bucket it is: a plain one.
  client = types.SimpleNamespace(get_bucket=lambda name: None)
  google = types.SimpleNamespace(storage=types.SimpleNamespace(Client=lambda: client))
  monkeypatch.setitem(sys.modules, 'google.cloud', google)
