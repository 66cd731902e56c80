"""NVIDIA and AMD GPUs through Triton. Nothing here imports triton until something is compiled."""

from kir.backends.triton.backend import BACKEND, TritonBackend

__all__ = ["BACKEND", "TritonBackend"]
