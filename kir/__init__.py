"""KIR: a small, hardware-agnostic language for compute kernels.

    >>> import kir
    >>> module = kir.parse("kernel double[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = 2 * x[i] }")

`kir.parse` and `kir.load` read text, `kir.format_kernel` writes it, and `kir.compile` makes a
function of it. Nothing heavy is imported here.
"""

from typing import TYPE_CHECKING, Any

from kir.function import Function, compile
from kir.source import load

if TYPE_CHECKING:
    from kir.syntax import format_kernel, format_module, parse, parse_kernel

__version__ = "0.1.0"
__all__ = [
    "Function",
    "__version__",
    "compile",
    "format_kernel",
    "format_module",
    "load",
    "parse",
    "parse_kernel",
]


def __getattr__(name: str) -> Any:
    """Parser and printer: loaded when they are first asked for."""
    if name not in __all__:
        raise AttributeError(f"module `kir` has no attribute `{name}`")
    import kir.syntax

    found = globals()[name] = getattr(kir.syntax, name)
    return found
