"""The backend for a custom accelerator described by data: LLVM for its cores, calls of its engines."""

from kir.backends.accel.backend import BACKEND

__all__ = ["BACKEND"]
