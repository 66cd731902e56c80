"""The backend for an accelerator described by data: LLVM for its cores, calls of its engines."""

from kir.backends.accel.backend import BACKEND

__all__ = ["BACKEND"]
