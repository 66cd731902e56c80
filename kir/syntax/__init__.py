"""Text to IR and back."""

from kir.source import load
from kir.syntax.format import (
    format_expr,
    format_kernel,
    format_module,
    format_source,
    format_step,
    format_stmt,
)
from kir.syntax.parse import parse, parse_kernel, parse_steps

__all__ = [
    "format_expr",
    "format_kernel",
    "format_module",
    "format_source",
    "format_step",
    "format_stmt",
    "load",
    "parse",
    "parse_kernel",
    "parse_steps",
]
