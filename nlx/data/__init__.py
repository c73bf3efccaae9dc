"""Corpora, tokenizers and batches of text."""

from nlx.data.corpora import CORPORA, load_text, split_text
from nlx.data.pipeline import Corpus, Split, load, train_batches, validation_batches
from nlx.data.tokenizers import Tokenizer, byte_tokenizer, json_tokenizer, tokenizer

__all__ = [
  'byte_tokenizer',
  'CORPORA',
  'Corpus',
  'json_tokenizer',
  'load',
  'load_text',
  'Split',
  'split_text',
  'Tokenizer',
  'tokenizer',
  'train_batches',
  'validation_batches',
]
