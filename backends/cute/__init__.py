"""Target `nvidia` via CuTe DSL: compiled for sm_80, sm_90a and sm_100a. See README.md."""

from kir.backends.cute.backend import BACKEND

__all__ = ["BACKEND"]
