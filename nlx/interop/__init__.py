"""Weights in and out: checkpoints that other programs write and read."""

from nlx.interop.llama import load_llama, save_llama

__all__ = ['load_llama', 'save_llama']
