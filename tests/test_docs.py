"""The pages of the documentation: their Python runs, and what they name and link to exists."""

import importlib
import pathlib
import re

import optax
import pytest
from flax import nnx

from nlx import interop, models

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = ROOT / 'README.md'
DOCS = sorted((ROOT / 'docs').glob('*.md'))
PAGES = [README, *DOCS]
BLOCK = re.compile(r'^```python\n(.*?)^```$', re.MULTILINE | re.DOTALL)
LINK = re.compile(r'\]\(([^)#]+)[^)]*\)')
NAME = re.compile(r'\bnlx(?:\.[A-Za-z_]\w*)+')
# In blocks of the README that take long to compile; what they show is tested elsewhere.
SLOW = ('init_state', 'plot_trace', 'sessions.write')

every_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)


def read(page):
  return page.read_text(encoding='utf-8')


def blocks(page):
  """The blocks of Python of a page, with the lines of the page, so that errors name them."""
  text = read(page)
  return ['\n' * text[: match.start(1)].count('\n') + match[1] for match in BLOCK.finditer(text)]


def run(page, namespace, skipped=()):
  """Runs the blocks of a page one after another."""
  for block in blocks(page):
    if not any(words in block for words in skipped):
      exec(compile(block, str(page), 'exec'), namespace)


def resolve(name):
  """The object of a dotted name; an attribute goes before a module."""
  path, *parts = name.split('.')
  value = importlib.import_module(path)
  for part in parts:
    path = f'{path}.{part}'
    value = getattr(value, part) if hasattr(value, part) else importlib.import_module(path)
  return value


@pytest.mark.parametrize(
  'page', [page for page in DOCS if blocks(page)], ids=lambda page: page.name
)
def test_blocks_of_a_page_run_one_after_another(page):
  run(page, {'__name__': '__main__'})


def test_blocks_of_the_readme_run(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  config = models.transformer(vocab_size=16, model_dim=8, num_layers=1, num_heads=2)
  interop.save_llama(models.create(config, rngs=nnx.Rngs(0)), 'folder')
  # What the README leaves to the reader.
  small = {'vocab_size': 16, 'model_dim': 8, 'num_layers': 1, 'num_heads': 2, 'memory_hidden': 4}
  hope = models.hope(**small, chunk_size=4, projection_chunk_size=8, cms_periods=(8, 16))
  given = {'nlx': resolve('nlx'), 'nnx': nnx, 'optax': optax, 'cell': lambda *args: None}
  given['model'] = models.create(hope, rngs=nnx.Rngs(0))
  run(README, given, SLOW)


@every_page
def test_blocks_of_a_page_are_python(page):
  for block in blocks(page):
    compile(block, str(page), 'exec')


@every_page
def test_names_of_a_page_exist(page):
  for name in sorted(set(NAME.findall(read(page)))):
    resolve(name)


@every_page
def test_links_of_a_page_lead_to_files(page):
  targets = {target for target in LINK.findall(read(page)) if '://' not in target}
  missing = [target for target in sorted(targets) if not (page.parent / target).exists()]
  assert not missing, missing
