"""KIR: a small, hardware-agnostic language for compute kernels.

    >>> import kir
    >>> module = kir.parse("kernel double[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = 2 * x[i] }")

`kir.parse` and `kir.load` read text, `kir.format_kernel` writes it, `kir.compile` (in
`kir.pipeline`) makes it run. Nothing heavy is imported here.
"""

from kir.syntax import format_kernel, format_module, load, parse, parse_kernel

__version__ = "0.1.0"
__all__ = ["__version__", "format_kernel", "format_module", "load", "parse", "parse_kernel"]
