"""Writes the golden files: what torch and transformers compute, for tests that run without them.

make test-interop                                # sets up the environment
.venv-interop/bin/python -m tests.interop.make_golden
"""

import os
import shutil

import numpy as np
import safetensors.numpy

from tests.interop import problems

SIZES = {'vocab_size': 64, 'hidden_size': 16, 'num_hidden_layers': 2, 'intermediate_size': 32}
HEADS = {'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 6}
NUMBERS = {'rms_norm_eps': 1e-5, 'rope_parameters': {'rope_type': 'default', 'rope_theta': 500.0}}


def random_llama(seed=0, **config):
  """A LlamaForCausalLM whose parameters, norms too, are far from their initialisation."""
  import torch
  import transformers

  torch.manual_seed(seed)
  config = transformers.LlamaConfig(**{**SIZES, **HEADS, **NUMBERS, **config})
  model = transformers.LlamaForCausalLM(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.ndim == 1:
        parameter.uniform_(0.5, 1.5)
      else:
        parameter.normal_(std=parameter.shape[1] ** -0.5)
  return model


def torch_logits(model, ids):
  """All logits [B, T, V] of a model of transformers."""
  import torch

  with torch.no_grad():
    return model(torch.from_numpy(ids), use_cache=False).logits.float().numpy()


def torch_gated_delta(inputs, name='torch_recurrent_gated_delta_rule'):
  """Outputs [B, T, H, V] and last state [B, H, K, V] of a reference in transformers."""
  import torch
  from transformers.models.qwen3_next import modeling_qwen3_next

  tensors = {key: torch.from_numpy(x) for key, x in inputs.items()}
  outputs, state = getattr(modeling_qwen3_next, name)(**tensors, output_final_state=True)
  return outputs.numpy(), state.numpy()


def main():
  """Writes all golden files anew."""
  os.environ['HF_HUB_OFFLINE'] = '1'
  shutil.rmtree(problems.GOLDEN, ignore_errors=True)
  model, ids = random_llama(), problems.tokens(SIZES['vocab_size'])
  model.save_pretrained(problems.LLAMA)
  (problems.LLAMA / 'generation_config.json').unlink(missing_ok=True)
  expected = {'tokens': ids, 'logits': torch_logits(model, ids)}
  safetensors.numpy.save_file(expected, problems.LLAMA_LOGITS)

  inputs = problems.gated_delta_inputs(length=70, batch=1)
  outputs, state = torch_gated_delta(inputs)
  arrays = {**inputs, 'outputs': outputs, 'state': state}
  arrays = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
  safetensors.numpy.save_file(arrays, problems.GATED_DELTA)


if __name__ == '__main__':
  main()
