"""The LLVM emitter shared by the backends `cpu` and `accel`."""

from kir.backends.llvm.emit import Emitted, emit, symbol_of
from kir.backends.llvm.machine import Machine

__all__ = ["Emitted", "Machine", "emit", "symbol_of"]
