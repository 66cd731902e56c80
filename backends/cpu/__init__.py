"""The target `cpu`: LLVM through llvmlite, just in time and ahead of time.

Nothing of the compiler is imported here: code that was compiled before is found and run without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kir.backends.cpu.backend import BACKEND

__all__ = ["BACKEND"]


def __getattr__(name: str) -> Any:
    if name != "BACKEND":
        raise AttributeError(name)
    from kir.backends.cpu.backend import BACKEND

    return BACKEND
