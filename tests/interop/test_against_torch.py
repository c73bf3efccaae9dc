"""nlx against torch and transformers, live; `make test-interop` runs it."""

import numpy as np
import pytest

from nlx import models
from nlx.interop import load_llama, save_llama
from tests.interop import make_golden, problems
from tests.interop.test_llama import random

torch = pytest.importorskip('torch', reason='torch is missing: run `make test-interop`')
transformers = pytest.importorskip(
  'transformers', reason='transformers is missing: run `make test-interop`'
)

pytestmark = pytest.mark.interop

# What differs from the golden checkpoint, which shares keys between two heads.
LLAMAS = {
  'grouped': {'head_dim': None},
  'one-key-head': {'num_key_value_heads': 1},
  'all-key-heads': {'num_key_value_heads': 4, 'head_dim': 4},
  'wide-heads': {'head_dim': 10},
  'tied': {'tie_word_embeddings': True},
  'long-waves': {'rope_parameters': {'rope_type': 'default', 'rope_theta': 5e5}},
}


def assert_equal_logits(model, llama, length=40):
  """Of a model of nlx and one of transformers."""
  ids = problems.tokens(llama.config.vocab_size, length)
  expected = make_golden.torch_logits(llama, ids)
  assert expected.std() > 0.5  # Small logits would be equal however they come about.
  np.testing.assert_allclose(problems.logits(model, ids), expected, atol=problems.TOLERANCE)


@pytest.mark.parametrize('name', LLAMAS)
def test_llama_of_transformers_gives_its_logits_here(tmp_path, name):
  llama = make_golden.random_llama(**LLAMAS[name])
  llama.save_pretrained(tmp_path)
  assert_equal_logits(load_llama(tmp_path), llama)


def test_llama_of_transformers_in_several_files_gives_its_logits_here(tmp_path):
  llama = make_golden.random_llama(num_hidden_layers=4)
  llama.save_pretrained(tmp_path, max_shard_size='20KB')
  assert len(list(tmp_path.glob('model-*.safetensors'))) > 1
  assert_equal_logits(load_llama(tmp_path), llama)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_llama_in_16_bits_gives_its_logits_here(tmp_path, dtype):
  make_golden.random_llama().to(dtype).save_pretrained(tmp_path)
  # Not `float()` of the same model, whose rotary frequencies have lost their last bits.
  llama = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
  assert_equal_logits(load_llama(tmp_path), llama)


@pytest.mark.parametrize(
  'options',
  [
    {},
    {'num_heads': 4, 'num_kv_heads': 2},
    {'head_dim': 12, 'rope_base': 500.0, 'norm_epsilon': 1e-3},
    {'num_layers': 1, 'mlp_hidden': 40},
  ],
  ids=['plain', 'grouped', 'wide-heads', 'one-layer'],
)
def test_model_of_nlx_gives_its_logits_in_transformers(tmp_path, options):
  model = random(**options)
  save_llama(model, tmp_path)
  llama = transformers.LlamaForCausalLM.from_pretrained(tmp_path, local_files_only=True).eval()
  assert_equal_logits(model, llama)


def test_tied_llama_comes_back_untied(tmp_path):
  tied = make_golden.random_llama(tie_word_embeddings=True)
  tied.save_pretrained(tmp_path / 'tied')
  save_llama(load_llama(tmp_path / 'tied'), tmp_path / 'untied')
  llama = transformers.LlamaForCausalLM.from_pretrained(tmp_path / 'untied').eval()
  assert not llama.config.tie_word_embeddings
  ids = problems.tokens(tied.config.vocab_size)
  first, second = (make_golden.torch_logits(model, ids) for model in (tied, llama))
  np.testing.assert_array_equal(first, second)


def test_saved_config_says_what_transformers_ask_for(tmp_path):
  model = random(param_dtype='bfloat16', rope_base=500.0)
  save_llama(model, tmp_path, max_length=77)
  llama = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
  assert llama.dtype == torch.bfloat16
  assert llama.config.rope_parameters == {'rope_type': 'default', 'rope_theta': 500.0}
  assert llama.config.max_position_embeddings == 77
  assert llama.config.eos_token_id is None
  assert llama.num_parameters() == models.count_parameters(model.config)


# ----- the gated delta rule


@pytest.mark.parametrize(
  'name', ['torch_chunk_gated_delta_rule', 'torch_recurrent_gated_delta_rule']
)
@pytest.mark.parametrize('length', [1, 5, 63, 64, 65, 130, 300])
def test_delta_rule_is_the_gated_delta_rule_of_transformers(name, length):
  inputs = problems.gated_delta_inputs(length, keys=16, values=24)
  expected = make_golden.torch_gated_delta(inputs, name)
  got = problems.gated_delta(**inputs)
  for found, wanted in zip(got, expected, strict=True):
    np.testing.assert_allclose(found, wanted, atol=problems.DELTA_TOLERANCE)
