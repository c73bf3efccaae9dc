"""Weights in and out: checkpoints that other programs write and read."""

from nlx.interop.llama import llama_config, load_llama, save_llama

__all__ = ['llama_config', 'load_llama', 'save_llama']
