"""Sessions in files."""

import hashlib
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from nlx import core
from nlx.models.language_model import LanguageModel
from nlx.models.sessions.reading import start
from nlx.models.sessions.session import Session, describe, leaves

# What a file begins with; the number is that of the format. Then the SHA-256 of the rest, and it.
MAGIC = b'nlx session 1\n'
DIGEST_BYTES = hashlib.sha256().digest_size


def save(path: str | os.PathLike, session: Session, meta: dict[str, Any] | None = None) -> None:
  """Writes a session into one file.

  Whenever this is interrupted, the file is what it was before or complete. Equal sessions make
  equal files.

  Args:
    path: Of the file; one that is there is replaced.
    session: One or a stack.
    meta: What `load` is to compare, as JSON: of which model it is, and of which of its checkpoints.

  Raises:
    OSError: If the file cannot be written.
  """
  arrays = {name: _plain(leaf) for name, leaf in leaves(session).items()}
  content = {
    'meta': json.dumps(meta or {}, sort_keys=True),
    'key': str(jax.random.key_impl(session.key)),
    'arrays': {name: np.asarray(array) for name, array in jax.device_get(arrays).items()},
  }
  body = serialization.msgpack_serialize(content)
  digest = hashlib.sha256(body).digest()

  def write_parts(part):
    with open(part, 'wb') as file:
      file.writelines((MAGIC, digest, body))

  # What a link points to is replaced, not the link.
  core.replace_file(core.real_path(path), write_parts)


def load(
  path: str | os.PathLike, model: LanguageModel, meta: dict[str, Any] | None = None
) -> Session:
  """Reads a session from its file.

  Args:
    path: Of a file that `save` wrote.
    model: The model of the session.
    meta: What it must have been saved with; not compared if None.

  Returns:
    The session, bit for bit.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If the file is no session or is damaged, was saved with another `meta`, or belongs
      to a model of another shape; names what differs first.

  Example:
    >>> import nlx, pathlib, tempfile, jax.numpy as jnp
    >>> from flax import nnx
    >>> config = nlx.models.transformer(vocab_size=16, model_dim=8, num_layers=1, num_heads=2)
    >>> model = nlx.models.create(config, rngs=nnx.Rngs(0))
    >>> session = nlx.models.sessions.start(model, max_length=8)
    >>> session = nlx.models.sessions.read(model, session, jnp.array([[3, 1, 4]]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = pathlib.Path(folder, 'session')
    ...   nlx.models.sessions.save(path, session, {'step': 100})
    ...   loaded = nlx.models.sessions.load(path, model, {'step': 100})
    >>> bool((loaded.logits == session.logits).all())
    True
  """
  content = _read(core.as_path(path))
  if meta is not None:
    saved, expected = json.loads(content['meta']), json.loads(json.dumps(meta))
    difference = core.first_difference(saved, expected)
    if difference:
      raise ValueError(f'`path` {str(path)!r} holds the session of another model: {difference}.')
  arrays, like = content['arrays'], _like(model, content)
  expected = {name: jax.eval_shape(_plain, leaf) for name, leaf in leaves(like).items()}
  difference = core.first_difference(describe(arrays), describe(expected))
  if difference:
    raise ValueError(
      f'`path` {str(path)!r} holds the session of a model of another shape: {difference}.'
    )
  restored = [jnp.asarray(arrays[name]) for name in expected]
  session = jax.tree.unflatten(jax.tree.structure(like), restored)
  return session._replace(key=jax.random.wrap_key_data(session.key, impl=content['key']))


def _read(path: pathlib.Path) -> dict[str, Any]:
  """The content of a file, after it was checked."""
  data = path.read_bytes()
  if not data.startswith(MAGIC):
    raise ValueError(f'`path` {str(path)!r} is not the file of a session of this version of nlx.')
  begin = len(MAGIC) + DIGEST_BYTES
  digest, body = data[len(MAGIC) : begin], data[begin:]
  if hashlib.sha256(body).digest() != digest:
    raise ValueError(f'`path` {str(path)!r} is damaged: its checksum is not that of its content.')
  return serialization.msgpack_restore(body)


def _like(model: LanguageModel, content: dict[str, Any]) -> Session:
  """The shapes that a session of this model has, of as many sequences as the one in the file."""
  *stacked, batch_size, _ = content['arrays']['logits'].shape
  max_length = int(np.max(content['arrays']['max_length']))
  key = jax.random.key(0, impl=content['key'])
  one = jax.eval_shape(lambda: start(model, batch_size, max_length=max_length, key=key))
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*stacked, *x.shape), x.dtype), one)


def _plain(leaf: jax.Array) -> jax.Array:
  """The leaf, or the numbers of a random key."""
  is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  return jax.random.key_data(leaf) if is_key else leaf
